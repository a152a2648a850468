"""The document of a benchmark on a GPU: what it found, beside its goals, or that there was no card."""

from __future__ import annotations

from typing import Any

#: Figures of one part from which on its table is folded.
MANY = 30

MET = {True: "met", False: "**not met**", None: ""}


def _value(figure: dict[str, Any]) -> str:
    value = figure["value"]
    if value is None:
        return "–"
    return f"{value:.3g} {figure['unit']}".strip() if isinstance(value, int | float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _where(environment: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{n} {environment[n]}" for n in ("python", "torch", "transformers") if environment.get(n))
    if environment["device"] == "cpu":
        return [
            f"**No card was at hand: these are figures of a CPU** ({environment['name']}, {environment['threads']} "
            f"threads; {versions}; {environment['date']}), with small models that take seconds. They show that every "
            "part runs to its end, and that numbers, restoration and repetition hold here. They say nothing of the "
            "speed or memory of a card, and goals of speed and memory stay open.",
            "",
        ]
    return [
        f"Measured on one **{environment['name']}** ({environment['memory'] / 1e9:.0f} GB, capability "
        f"{environment['capability']}, driver {environment['driver']}, CUDA {environment['cuda']}; {versions}; "
        f"{environment['date']}), on models with random weights, which speed and memory don't depend on.",
        "",
    ]


def _part(part: dict[str, Any]) -> list[str]:
    ended = f"{part['status']} after {part['seconds']:.0f} s" + (f": {part['error']}" if part["error"] else "")
    lines = [f"## {part['title']}", "", f"The part is {ended}." if part["status"] == "done" else f"**{ended}.**", ""]
    if not part["figures"]:
        return lines
    rows = [
        [f["what"], _value(f), f["goal"], MET[f["met"]] if f["met"] is not None or not f["goal"] else "open", f["note"]]
        for f in part["figures"]
    ]
    body = ["| figure | value | goal | | |", "| :-- | --: | --: | :-- | :-- |"]
    body += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    if len(rows) > MANY:
        body = [f"<details><summary>{len(rows)} figures</summary>", "", *body, "", "</details>"]
    return [*lines, *body, ""]


def document(title: str, command: str, found: dict[str, Any]) -> str:
    """The document that says what a benchmark found."""
    figures = [f for part in found["parts"] for f in part["figures"] if f["goal"] or f["met"] is False]
    count = {met: sum(f["met"] is met for f in figures) for met in (True, False, None)}
    missed = [f"- {f['what']}: {_value(f)}, goal {f['goal'] or 'no failure'}" for f in figures if f["met"] is False]
    lines = [
        f"# {title}", "",
        f"Made by `make docs` from what `{command}` found. Not to be edited by hand.", "",
        *_where(found["environment"]),
        f"Of {len(figures)} goals {count[True]} are met, {count[False]} are not, and {count[None]} are open.", "",
        *missed, *([""] if missed else []),
    ]  # fmt: skip
    for part in found["parts"]:
        lines += _part(part)
    return "\n".join(lines).rstrip() + "\n"
