"""What can be wrong with a row of a file, in words that follow the file's name and the row's number."""

from __future__ import annotations

from collections.abc import Iterable

#: Columns in which chat rows usually stand.
CHAT_COLUMNS = ("messages", "conversations", "conversation")
#: Columns that a sentence names.
SHOWN = 12


class Fault(Exception):
    """Something wrong at a line or row: ``what`` goes on with a sentence that begins with file and number."""

    def __init__(self, number: int, what: str):
        super().__init__(number, what)
        self.number, self.what = number, what


def no_column(column: str, have: Iterable[str]) -> str:
    """That a column isn't there, which are, and what to say instead.

    >>> no_column("text", ["Text", "url"])
    "has no column 'text' but Text, url; name one with --text-column"
    """
    names = list(map(str, have))
    # Whatever a file calls its columns, a sentence is a line.
    plain = [name if name.isprintable() and len(name) < 40 else f"{name!r:.40}" for name in names[:SHOWN]]
    shown = ", ".join(plain) + (", …" if len(names) > SHOWN else "") or "none at all"
    chats = [name for name in CHAT_COLUMNS if name in names]
    mend = f"chat rows are read by --chat --text-column {chats[0]}" if chats else "name one with --text-column"
    return f"has no column {column!r} but {shown}; {mend}"
