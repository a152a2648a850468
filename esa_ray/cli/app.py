"""The command line's root: what every command shares, and how a command ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated, Any

import typer
from rich.console import Console

from esa_ray import __version__
from esa_ray.cli.usage import check_values, sentence
from esa_ray.errors import EsaError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which few weights does a language model hang on, how sure are we, and what does damage to them cost?",
)
console = Console()


def _version(asked: bool) -> None:
    if asked:
        console.out(f"esa-ray {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


def guarded(command: Any) -> None:
    """Run a command; a cause that the user can mend is one sentence and exit status 2."""
    try:
        command()
    except EsaError as error:
        print(f"esa: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("esa: stopped; run the same command again to go on", file=sys.stderr)
        raise SystemExit(1) from None


def check_once(arguments: Sequence[str]) -> None:
    """Refuse an option that stands twice: of the two the parser would take the last, without a word."""
    names = [a.split("=")[0] for a in takewhile(lambda a: a != "--", arguments) if a.startswith("--")]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise EsaError(f"{twice} stands twice, and only the last would count; join the two by a comma: {twice} A,B")


def _command() -> None:
    check_once(sys.argv[1:])
    check_values(typer.main.get_command(app), sys.argv[1:])
    try:
        code = app(prog_name="esa", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if "\n" in error.format_message().strip():  # the help, of a command that needs another behind it
            print(error.format_message(), file=sys.stderr)
            raise SystemExit(2) from None
        raise EsaError(sentence(error, sys.argv[1:])) from None
    raise SystemExit(code or 0)


def main() -> None:
    """Entry point of ``esa``."""
    guarded(_command)
