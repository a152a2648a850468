"""What the parser of options says of a command that it can't read, as one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from esa_ray.errors import EsaError

#: What a parser says of a value → what is said here.
_SAID = (
    (r"Input should be a valid integer.*|.* is not a valid integer\b.*", "must be a whole number"),
    (r"Input should be a valid number.*|.* is not a valid float\b.*", "must be a number"),
    (r"Input should be greater than or equal to ([\d.]+)", r"must be at least \1"),
    (r".* is not in the range x>=([\d.]+)\.?", r"must be at least \1"),
)


def sentence(error: Any, arguments: Sequence[str]) -> str:
    """A parser's error in one line: the option as it was typed, what it takes, and where more is said.

    >>> class Wrong(Exception):
    ...     ctx = None
    ...     def format_message(self):
    ...         return "Invalid value for '--window': Input should be a valid integer, unable to parse it"
    >>> sentence(Wrong(), ["run", "--window", "x"])
    "--window must be a whole number, not 'x'; see esa --help"
    """
    message = " ".join(error.format_message().split()).rstrip(".")
    path = getattr(getattr(error, "ctx", None), "command_path", None) or "esa"
    return f"{_told(message, arguments)}; see {path} --help"


def check_values(command: Any, arguments: Sequence[str]) -> None:
    """Refuse an option without its value: a parser would take the option behind it for one.

    ``command`` is the whole command line, of which the first words choose what is asked.

    Raises
    ------
    EsaError
        For the first that has none.
    """
    words, rest = ["esa"], list(takewhile(lambda argument: argument != "--", arguments))
    while rest and (deeper := getattr(command, "commands", {}).get(rest[0])):
        command, words, rest = deeper, [*words, rest[0]], rest[1:]
    options = {name: each for each in command.params for name in (*each.opts, *each.secondary_opts)}
    for at, name in enumerate(rest):
        following = rest[at + 1].partition("=")[0] if at + 1 < len(rest) else None
        takes = name.startswith("-") and name in options and not options[name].is_flag
        if takes and (following is None or following == "--help" or following in options):
            instead = f" but {following} behind it" if following else ""
            raise EsaError(f"{name} has no value{instead}; give it one, as {' '.join(words)} --help says")


def _told(message: str, arguments: Sequence[str]) -> str:
    found = re.match(r"Invalid value for '([^']+)'(?: / '([^']+)')*: (.+)", message)
    if found is None:
        return message[:1].lower() + message[1:]
    option = next((name for name in re.findall(r"'(--[^']+)'", message) if _typed(name, arguments)), found[1])
    for pattern, said in _SAID:
        if fitting := re.fullmatch(pattern, found[3]):
            value = _typed(option, arguments)
            return f"{option} {fitting.expand(said)}" + (f", not {value!r}" if value is not None else "")
    return f"{option}: {found[3]}"


def _typed(option: str, arguments: Sequence[str]) -> str | None:
    """The value that an option was given."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == option:
            return following
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None
