"""GPUs by name, with what their makers state of them: to foresee what a study takes on one that isn't here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files

from esa_ray.errors import EsaError
from esa_ray.host.footprint import GPU_SHARE
from esa_ray.models.sources import on_card

#: Share of the stated operations a second that is taken to be reached where nothing was measured.
ASSUMED = 0.4


@dataclass(frozen=True)
class Card:
    """One type of GPU.

    ``memory`` in bytes, as torch sees it; ``half`` and ``single`` the stated dense operations a second in 16-bit tensor
    cores (with sums in fp32, without sparsity) and in fp32; ``bandwidth`` of its memory in bytes a second; ``bf16``
    whether it computes in that. ``measured`` is the share of ``half`` that passes were measured to reach on it
    (``python -m benchmarks gpu``: operations of bare forward and backward passes a second), None if never.
    """

    name: str
    title: str
    memory: int
    half: float
    single: float
    bandwidth: float
    bf16: bool
    measured: float | None = None

    @property
    def room(self) -> float:
        """Bytes that an actor may fill."""
        return self.memory * GPU_SHARE

    def dtype(self, asked: str, own: str) -> str:
        """What "auto" comes to on it for a model whose weights are of the dtype ``own``: that, as in a run.

        Raises
        ------
        EsaError
            If bf16 is asked of a card without it.
        """
        if asked == "bf16" and not self.bf16:
            raise EsaError(f"{self.title} doesn't compute in bf16; take --dtype fp16 or fp32, or another card for --on")
        return asked if asked != "auto" else on_card(own, bf16=self.bf16)

    def rate(self, dtype: str) -> float:
        """Operations a second that passes are taken to reach."""
        return self._stated(dtype) * (self.measured or ASSUMED)

    def basis(self, dtype: str) -> str:
        """What :meth:`rate` rests on.

        >>> card("h100").basis("bf16")
        'assumes 40% of 989 TFLOP/s; not measured'
        """
        share, stated = self.measured or ASSUMED, f"{self._stated(dtype) / 1e12:.3g} TFLOP/s"
        if self.measured and dtype != "fp32":
            return f"goes by {share:.0%} of {stated}, as measured"
        return f"assumes {share:.0%} of {stated}; not measured"

    def _stated(self, dtype: str) -> float:
        return self.single if dtype == "fp32" else self.half


def cards() -> dict[str, Card]:
    """All that are known, by name."""
    told = json.loads((files("esa_ray.models") / "cards.json").read_text(encoding="utf-8"))
    return {
        c["name"]: Card(
            c["name"], c["title"], int(c["gib"] * 2**30), c["half"] * 1e12, c["single"] * 1e12, c["bandwidth"] * 1e9,
            c["bf16"], c.get("measured"),
        )
        for c in told
    }  # fmt: skip


def card(name: str) -> Card:
    """A card by its name.

    Raises
    ------
    EsaError
        If none is known by it; it names the nearest.

    Example
    -------
    >>> card("H100").title
    'NVIDIA H100 SXM 80 GB'
    """
    known, asked = cards(), name.strip().lower()
    if asked in known:
        return known[asked]
    longer = [each for each in known if asked and each.startswith(asked)]
    near = list(dict.fromkeys([*longer, *get_close_matches(asked, known, n=3, cutoff=0.5)]))[:3]
    words = f"the nearest are {', '.join(near)}" if near else f"known are {', '.join(known)}"
    raise EsaError(f"--on knows no card {name!r}; {words}")
