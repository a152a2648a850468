"""Bytes → lines of text, each with its number."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO

from esa_ray.data.faults import Fault
from esa_ray.data.formats import DAMAGED


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
            for number, line in enumerate(self._text, 1):
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
