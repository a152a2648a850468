"""What a measurement of a study takes, as far as the spec alone tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from esa_ray.grid import continuation

if TYPE_CHECKING:
    from esa_ray.spec import StudySpec

#: What adds up over measurements.
_ADDED = ("forward_passes", "backward_passes", "double_backward_passes", "single_edits", "block_passes",
          "continued_tokens")  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Passes of one window each, and the line that a plan has of the measurement.

    Parameters
    ----------
    count
        How many there are of what the measurement is called (``cells``); None where the spec doesn't tell.
    said
        What the plan's line adds to that. Without either there is no such line.
    forward_passes, backward_passes, double_backward_passes
        A backward pass needs a forward pass, which counts as well; what comes before a double backward one doesn't.
    single_edits
        Edits of one weight, each evaluated on all evaluation windows from the edited block on.
    block_passes
        Windows for each block of the model, each from that block on.
    continued_tokens
        Tokens that are generated.

    Example
    -------
    >>> (Cost(forward_passes=3) + Cost(forward_passes=4, single_edits=1)).forward_passes
    7
    """

    count: int | None = None
    said: str = ""
    forward_passes: int = 0
    backward_passes: int = 0
    double_backward_passes: int = 0
    single_edits: int = 0
    block_passes: int = 0
    continued_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Both, without what they say."""
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in _ADDED})

    @property
    def told(self) -> str:
        """Count and words."""
        return " ".join(filter(None, ["" if self.count is None else str(self.count), self.said]))


def evaluated(spec: StudySpec, count: int, said: str = "") -> Cost:
    """What it takes to evaluate so many models on a study's windows, and to continue its prompts by each."""
    return Cost(
        count, said, forward_passes=count * spec.data.evaluation_windows,
        continued_tokens=count * spec.data.prompts * continuation(spec.data),
    )  # fmt: skip
