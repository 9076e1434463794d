"""An HTTP server of our own that cuts connections, and honours or ignores ranges."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server:
    """Serves `content` at any path.

    Attributes:
        cuts: after how many bytes each of the next answers breaks off.
        statuses: the next answers are these errors.
        ranges, etag, length, kind: what it offers and says.
        asked: the `Range` of each request so far.
        pause_after: bytes after which answers stand still (for a minute), or None.
    """

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content, self.etag = content, '"one"'
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.length = True
        self.kind = "application/octet-stream"
        self.asked: list[str | None] = []
        self.pause_after: int | None = None
        self.closed = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        start = 0
        fresh = handler.headers.get("If-Range") in (None, self.etag)
        if asked and self.ranges and fresh:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.content):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            handler.send_response(200)
        body = self.content[start:]
        handler.send_header("Content-Type", self.kind)
        if self.length:
            handler.send_header("Content-Length", str(len(body)))
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        if self.pause_after is not None:
            handler.wfile.write(body[: self.pause_after])
            handler.wfile.flush()
            self.closed.wait(60)
            return
        cut = self.cuts.pop(0) if self.cuts else len(body)
        handler.wfile.write(body[:cut])
        handler.wfile.flush()
        handler.close_connection = True
        if cut < len(body):
            handler.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop; the port refuses connections from now on."""
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()
