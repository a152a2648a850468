"""Section on a search: the smallest set or strength that does a given damage."""

from __future__ import annotations

from typing import Any

from analysis.report import wording
from analysis.report.parts import Section, Table
from analysis.report.questions import question
from analysis.study import Study


@question("damage")
def search(study: Study) -> Section | None:
    """What was searched for, what was found, and what was measured on the way."""
    found = study.search
    if found is None:
        return None
    target = wording.significant(found["target"])
    reached = [b for b in found["branches"] if b["reached"]]
    if reached:
        words = [f"{_what(b, found['smallest'])} ({wording.signed(b['damage'])})" for b in reached]
        answer = f"The smallest {found['smallest']} that costs {target} nats per token or more: {'; '.join(words)}."
    else:
        answer = f"Nothing that was tried costs {target} nats per token."
    rows = [
        [b["branch"], str(b["candidates"]), _what(b, found["smallest"]) if b["reached"] else "not reached",
         wording.signed(b.get("damage")), wording.signed(b.get("damage_below"))]
        for b in found["branches"]
    ]  # fmt: skip
    measured = [[m["branch"], str(m["k"]), m["perturbation"], wording.signed(m["damage"])] for m in found["measured"]]
    return Section(
        "search", "How little is enough?", answer,
        f"The answer is a step of a ladder. {_below_words(reached)}Where damage doesn't grow with every step, a "
        "smaller one further down could also do. These are point estimates over the study's windows and seeds; run the "
        "candidates beside controls for intervals.",
        [],
        [Table(["<branch", "steps", "<smallest", "ΔNLL", "ΔNLL one step below"], rows),
         Table(["<branch", "k", "<damage", "ΔNLL"], measured, "All that was measured", folded=True)],
    )  # fmt: skip


def _below_words(reached: list[dict[str, Any]]) -> str:
    bare = [b["branch"] for b in reached if b["damage_below"] is None]
    words = "The next smaller step was measured too and does less than asked. " if len(bare) < len(reached) else ""
    return words + (f"Of {', '.join(bare)} the smallest step already does it: look below. " if bare else "")


def _what(branch: dict[str, Any], smallest: str) -> str:
    return (
        f"k={branch['k']} of {branch['branch']}"
        if smallest == "k"
        else f"{branch['perturbation']} ({branch['branch']})"
    )
