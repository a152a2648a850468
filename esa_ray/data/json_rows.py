"""JSON, a row a line or all in one → the values of a column."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from esa_ray.data.chat import is_chat
from esa_ray.data.faults import Fault, no_column
from esa_ray.data.lines import RECORD, Text, too_long

#: Characters that are read at first to find the end of a value.
CHARACTERS = 2**18
#: An error that far before the end of what was read isn't one of its having been cut there.
MARGIN = 16
_SPACE = " \t\n\r"
_ROWS = "write them as rows: pandas.read_json(FILE).to_json(NEW, orient='records'), NEW ending in .json"
_OTHER_NAME = "if this is JSON over several lines, or in one array, name the file .json"


def json_lines(lines: Iterable[tuple[int, str]], column: str) -> Iterator[tuple[int, object]]:
    """Numbered lines that hold an object each → (line, value of a column)."""
    decode = _decoder(column).decode
    for number, line in lines:
        if line.strip():
            try:
                row = decode(line)
            except (ValueError, RecursionError) as error:
                if line.strip() in ("{", "["):
                    raise Fault(number, f"holds no more than {line.strip()}; {_OTHER_NAME}") from None
                raise _no_json(number, error) from None
            yield number, _cell(row, column, number)


def json_values(text: Text, column: str) -> Iterator[tuple[int, object]]:
    """Objects over lines as they come, or in one array → (first line, value of a column), a few in memory at a time."""
    source = _Values(text, _decoder(column).raw_decode)
    many = source.next() == "["
    source.skip(many)
    at_first = True
    while (first := source.next()) and not (many and first == "]"):
        line = source.line
        value = _cell(source.value(), column, line)
        if at_first and not many and _is_column(value):
            raise Fault(line, f"has {value!r:.40} in {column!r}: columns, where rows belong; {_ROWS}")
        yield line, value
        at_first = False
        if many and source.next() == ",":
            source.skip()
            if source.next() == "]":
                raise source.fault("a comma without a value behind it")
        elif many and source.next() != "]":
            raise source.fault("no comma, nor the array's end, behind a value")
    if many:
        if not source.next():
            raise source.fault("the array has no end")
        source.skip()
        if source.next():
            raise source.fault("something behind the array's end")


def _is_column(value: object) -> bool:
    """Whether a value holds the texts of many rows, as a table written by columns has them."""
    texts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return bool(texts) and all(text is None or isinstance(text, str) for text in texts)


class _Values:
    """JSON values in a text that is read as far as they need it."""

    def __init__(self, text: Text, decode: Callable[[str, int], tuple[Any, int]]):
        self._text, self._decode = text, decode
        self._held, self._at, self._ended = "", 0, False
        self.line, self._before = 1, 0  # of what is held, and characters of its first line that aren't

    def next(self) -> str:
        """The character that stands behind white space here; empty at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in _SPACE:
                self.line += self._held[self._at] == "\n"
                self._at += 1
            if self._at < len(self._held) or not self._more():
                return self._held[self._at : self._at + 1]

    def skip(self, characters: int = 1) -> None:
        """Go on behind characters that are no line ends."""
        self._at += characters

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                found, end = self._decode(self._held, self._at)
            except RecursionError as error:
                raise _no_json(self.line, error) from None
            except ValueError as error:
                if not (self._cut(error) and self._more()):
                    raise self._fault(error) from None
                continue
            # A number may go on behind what was read.
            if end < len(self._held) or not self._more():
                self.line += self._held.count("\n", self._at, end)
                self._at = end
                return found

    def fault(self, what: str) -> Fault:
        """That there is something else here than JSON has."""
        return Fault(self.line, f"isn't JSON: {what}; write the file again, or a document a line as .jsonl")

    def _cut(self, error: ValueError) -> bool:
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.pos >= len(self._held) - MARGIN or error.msg.startswith("Unterminated string")

    def _more(self) -> bool:
        if self._ended:
            return False
        left = len(self._held) - self._at
        if left > RECORD:
            raise Fault(self.line, too_long("in one value", "write the rows in one array, or a line each as .jsonl"))
        more = self._text.read(max(CHARACTERS, left), self.line + self._held.count("\n", self._at))
        if not more:
            self._ended = True
            return False
        start = self._held.rfind("\n", 0, self._at) + 1
        self._before = self._at - start + (0 if start else self._before)
        self._held, self._at = self._held[self._at :] + more, 0
        return True

    def _fault(self, error: ValueError) -> Fault:
        if not isinstance(error, json.JSONDecodeError):
            return _no_json(self.line, error)
        first = "\n" not in self._held[: error.pos]
        error.colno += self._before if first else 0
        return _no_json(self.line + self._held.count("\n", self._at, error.pos), error)


def _decoder(column: str) -> json.JSONDecoder:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs) and sum(name == column for name, _ in pairs) > 1:
            raise ValueError(f"{column!r} stands twice in an object")
        return row

    return json.JSONDecoder(object_pairs_hook=once)


def _no_json(line: int, error: BaseException) -> Fault:
    if isinstance(error, json.JSONDecodeError):
        what = f"{error.msg.removesuffix(' starting at')} at character {error.colno}"
    else:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return Fault(line, f"isn't JSON: {what}; mend it, or leave it out")


def _cell(row: object, column: str, line: int) -> object:
    if not isinstance(row, dict):
        mend = _OTHER_NAME if isinstance(row, list) else f"write {{{json.dumps(column)}: …}}"
        raise Fault(line, f"holds {row!r:.40}, which is no JSON object; {mend}")
    if column in row:
        return row[column]
    what = no_column(column, row)
    if inner := [
        name
        for name, value in row.items()
        if isinstance(value, list) and value and isinstance(value[0], dict) and not is_chat(value)
    ]:
        what += f", or make the rows in {inner[0]!r} lines: jq -c '.[{json.dumps(inner[0])}][]'"
    raise Fault(line, what)
