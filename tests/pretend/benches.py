"""Models on the CPU and spread over pretend cards, side by side, and whether a path finds the same on both."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from esa_ray.applications import calibration
from esa_ray.applications.tuning import trained
from esa_ray.resume import HEAD_TOLERANCE
from esa_ray.scoring import gather
from tests.pretend.compare import difference
from tests.pretend.device import PretendCards
from tests.pretend.layouts import Case, spread, whole
from tests.pretend.paths import BY_SHORTCUT, EVALUATION, PATHS, Bench

F32, F16, B16 = torch.float32, torch.float16, torch.bfloat16
#: Families, dtypes, tying and layouts in pairs, not in full product.
CASES = [
    Case("llama", False, F32, "one card"),
    Case("gpt2", True, F16, "one card"),
    Case("mixtral", False, B16, "one card"),
    Case("phi3", False, B16, "one card"),
    Case("gemma", True, F32, "one card"),
    Case("gpt_neox", False, F16, "one card"),
    Case("llama", False, F32, "two cards"),
    Case("llama", True, B16, "two cards"),
    Case("gpt2", True, F32, "two cards"),
    Case("mixtral", False, B16, "two cards"),
    Case("gpt_neox", False, F16, "two cards"),
    Case("llama", False, B16, "card and CPU"),
    Case("phi3", False, F32, "card and CPU"),
    Case("llama", False, F32, "card and disk"),
    Case("mixtral", False, B16, "card and disk"),
    Case("llama", False, B16, "two cards and CPU"),
    Case("gemma", False, F32, "two cards and CPU"),
]


def _plain(_: PreTrainedModel) -> AbstractContextManager[None]:
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def attention_of_cards() -> Iterator[None]:
    """Backward passes on the CPU with the attention that they have on cards: the CPU's own rounds otherwise."""
    places = (mock.patch.object(module, "reproducible_attention", _plain) for module in (gather, calibration, trained))
    with next(places), next(places), next(places):
        yield


class Benches:
    """Every case's model on the CPU and spread over one machine's cards, and what the CPU's found; each made once.

    ``folder`` takes what goes to disk.
    """

    def __init__(self, folder: str):
        self._cards, self._folder = PretendCards(), folder
        self._spread = lru_cache(maxsize=None)(self._make)
        self._whole = lru_cache(maxsize=None)(lambda *model: Bench(whole(*model)))
        self._expected = lru_cache(maxsize=None)(self._on_cpu)

    def _make(self, case: Case) -> Bench:
        return Bench(spread(case, self._cards, tempfile.mkdtemp(dir=self._folder)))

    def _on_cpu(self, name: str, *model: Any) -> Any:
        with attention_of_cards():
            return PATHS[name](self._whole(*model))

    def difference(self, case: Case, name: str) -> str | None:
        """Where a path finds something else on the case's cards than on the CPU, in words; None: nowhere."""
        expected: Any = self._expected(name, case.family, case.tied, case.dtype)
        with self._cards:
            bench = self._spread(case)
            found = PATHS[name](bench)
        if bench.offloads and (name == "second derivatives" or name.startswith("tuning")):
            return None  # refused, as it ought to be: a part of the model is away
        longer = name in BY_SHORTCUT and bench.head_away
        return difference(expected, found, HEAD_TOLERANCE * EVALUATION.shape[1] if longer else 0.0)
