"""A fact about this machine, and how sizes are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]
GB = 10**9
#: How long a reply over the network may take, seconds.
PATIENCE = 3.0


@dataclass(frozen=True)
class Finding:
    """One fact: "ok", a "note" (it works, but), or a "problem"; the sentence says how to mend it."""

    name: str
    state: State
    sentence: str


def size(n: float) -> str:
    """Bytes as people read them.

    >>> size(1.5e9), size(2e8)
    ('1.5 GB', '200 MB')
    """
    return f"{n / GB:.1f} GB" if n >= GB else f"{n / 1e6:.0f} MB"


def count(n: float) -> str:
    """A number of parameters as people read it.

    >>> count(134_515_008), count(7.2e9), count(12)
    ('135 M', '7.2 B', '0')
    """
    return f"{n / 1e9:.1f} B" if n >= 1e9 else f"{n / 1e6:.0f} M" if n >= 1e6 else "0"
