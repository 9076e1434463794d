"""A network that misbehaves: a TCP proxy in front of a real server that delays, damages, cuts or swallows."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self


class FaultyProxy:
    """Forwards 127.0.0.1:port to another local port; the attributes may be changed while it runs.

    Attributes:
        delay: seconds added to each piece in each direction.
        flip_at: how many bytes from a client, counted over all connections, pass before one is damaged; once.
        cut_at: likewise, before the connection is reset; once.
        mute: accept, read, and never answer.
        received: bytes from clients so far.
        connections: how many were accepted.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.flip_at: int | None = None
        self.cut_at: int | None = None
        self.mute = False
        self.received = self.connections = 0
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()
        self._pump(client, server, True)

    def _pump(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1 << 16)):
                if self.delay:
                    time.sleep(self.delay)
                if from_client and self._harm(data):
                    break
                if not (self.mute and not from_client):
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _harm(self, data: bytearray) -> bool:
        """Damage the piece where it is its turn; True where the connection is to be cut."""
        with self._lock:
            start, self.received = self.received, self.received + len(data)
            if self.flip_at is not None and start <= self.flip_at < self.received:
                data[self.flip_at - start] ^= 0xFF
                self.flip_at = None
            if self.cut_at is not None and start <= self.cut_at < self.received:
                self.cut_at = None
                return True
        return False
