"""Bytes → lines of text, each with its number."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

from esa_ray.data.faults import Fault
from esa_ray.data.formats import DAMAGED

#: Characters that one row may have. A book has a million; what goes on for longer is a file of documents without an
#: end of line, or a quote that nobody closed, and would fill the memory of whoever waits for its end.
RECORD = 2**28


def too_long(where: str, mend: str) -> str:
    """That there are more than :data:`RECORD` characters, and what to do about it."""
    return f"has more than {RECORD:,} characters {where}, which is no document; {mend}"


class Text:
    """A stream of bytes as text, read by lines or in parts; what is no text raises :class:`Fault` with its line.

    Lines end as editors count them (``\\n``, ``\\r\\n`` and ``\\r``), and nowhere else: U+2028 and its like are text.
    ``newline`` is that of :class:`io.TextIOWrapper`.
    """

    def __init__(self, stream: IO[bytes], encoding: str, newline: str | None = None):
        self._utf8 = encoding.startswith("utf-8")
        # Bytes that are no UTF-8 come out as lone surrogates, so that their line is known when they are refused.
        errors = "surrogateescape" if self._utf8 else "surrogatepass"
        self._text = io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline=newline)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        number = 0
        try:
            for number, line in enumerate(iter(partial(self._text.readline, RECORD + 1), ""), 1):
                if len(line) > RECORD:
                    raise Fault(number, too_long("without an end of line", "write a document a line"))
                yield number, self._checked(line, number)
        except DAMAGED as error:
            raise _unreadable(number, error) from None

    def read(self, size: int = -1, line: int = 1) -> str:
        """Up to ``size`` characters, the first of which stands in ``line``."""
        try:
            return self._checked(self._text.read(size), line)
        except DAMAGED as error:
            raise _unreadable(line - 1, error) from None

    def _checked(self, text: str, line: int) -> str:
        if "\0" in text:
            raise Fault(
                line + text.count("\n", 0, text.index("\0")),
                "holds a NUL byte, which no text does; if the file is UTF-16 without its mark, say "
                "iconv -f UTF-16LE -t UTF-8",
            )
        if self._utf8 and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise _no_utf8(text, line, error.start) from None
        return text


class FilePart(io.RawIOBase):
    """The next bytes of a stream as one of their own, of which nothing is read before it is asked for."""

    def __init__(self, stream: IO[bytes], size: int):
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is left, as much as the buffer holds."""
        found = self._stream.read(min(len(buffer), self._left))
        self._left -= len(found)
        buffer[: len(found)] = found
        return len(found)


def _no_utf8(text: str, line: int, at: int) -> Fault:
    start = text.rfind("\n", 0, at) + 1
    place = len(text[start:at].encode(errors="surrogateescape")) + 1
    return Fault(
        line + text.count("\n", 0, at),
        f"holds 0x{ord(text[at]) - 0xDC00:02X} as byte {place}, which is no UTF-8; convert the file, from CP1252 by "
        "iconv -f CP1252 -t UTF-8",
    )


def _unreadable(line: int, error: BaseException) -> Fault:
    # What was read last may not have come out as lines yet.
    what = "it ends within a character" if isinstance(error, UnicodeDecodeError) else error
    return Fault(line + 1, f"or one soon after can't be read ({what}); fetch or write the file again")
