"""What a verdict is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["holds", "fails", "open"]


@dataclass(frozen=True)
class Verdict:
    """A criterion, whether it holds ("open": this study can't say), and the numbers behind it."""

    id: str
    claim: str
    status: Status
    evidence: str


def judge(condition: bool) -> Status:
    """Whether a criterion holds or fails."""
    return "holds" if condition else "fails"
