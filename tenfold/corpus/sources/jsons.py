"""Large JSON files, element by element.

COCO's training annotations are one JSON object of 450 MB; read whole they take several GB of Python objects.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tenfold.errors import InputError

PIECE = 1 << 20
NEAR = 64  # characters at the end of a piece in which a value may be cut
_SPACE = " \t\n\r"


def elements(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, element) for every element of every array in the JSON object at `path`, in the order of the file.

    A value that is no array comes as one (key, value). Memory stays at one element and a piece of the file.
    Raises InputError where the file is no JSON object, or ends too early.
    """
    reader = _Reader(path)
    try:
        reader.expect("{")
        while reader.peek() != "}":
            key = reader.value()
            reader.expect(":")
            if reader.peek() != "[":
                yield key, reader.value()
            else:
                reader.expect("[")
                while reader.peek() != "]":
                    yield key, reader.value()
                    if reader.peek() != "]":
                        reader.expect(",")
                reader.expect("]")
            if reader.peek() != "}":
                reader.expect(",")
    finally:
        reader.close()


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.parse = json.JSONDecoder().raw_decode
        self.text, self.at, self.ended = "", 0, False

    def close(self) -> None:
        self.file.close()

    def more(self) -> None:
        """Drop what was read and add a piece, as large as what is waiting: long elements are parsed few times."""
        if self.ended:
            raise InputError(f"{self.path} ends in the middle of its JSON", "fetch it anew")
        waiting = self.text[self.at :]
        data = self.file.read(max(PIECE, len(waiting)))
        self.ended = not data
        self.text, self.at = waiting + self.decoder.decode(data, final=self.ended), 0

    def peek(self) -> str:
        """The next character that is no space."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            self.more()

    def expect(self, character: str) -> None:
        if (got := self.peek()) != character:
            raise InputError(f"{self.path} is not the JSON expected: {got!r} where {character!r} belongs", "fetch anew")
        self.at += 1

    def value(self) -> Any:
        """The value that begins at the next character."""
        self.peek()
        while True:
            try:
                value, end = self.parse(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or (error.pos < len(self.text) - NEAR and not _unfinished(error)):
                    raise InputError(f"{self.path} is not JSON: {error.msg}", "fetch it anew") from None
                self.more()
                continue
            if len(self.text) - end < NEAR and not self.ended:  # a number may go on in the next piece
                self.more()
                continue
            self.at = end
            return value


def _unfinished(error: json.JSONDecodeError) -> bool:
    """Whether the text may only have ended too early: strings report where they began."""
    return error.msg.startswith("Unterminated string")
