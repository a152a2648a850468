"""What every document says of the studies that it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from analysis.comparison.loading import model_name
from analysis.study import Study


def sources(studies: Iterable[Study]) -> list[dict[str, Any]]:
    """Which models the numbers are of, on which text, and in what versions."""
    return [
        {"model": model_name(s), "fingerprint": s.resolved["model"][:16], "text": s.resolved["text"],
         "versions": s.record["versions"]}
        for s in studies
    ]  # fmt: skip
