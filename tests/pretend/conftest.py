from __future__ import annotations

import tempfile
from functools import lru_cache
from typing import Any

import pytest

from tests.pretend.device import PretendCards
from tests.pretend.layouts import Case, spread, whole
from tests.pretend.paths import PATHS, Bench


@pytest.fixture
def cards():
    """A machine with two pretend cards, for the length of a test."""
    with PretendCards() as machine:
        yield machine


class Benches:
    """Every case's model on the CPU and spread over one machine's cards, and what the CPU's found; each made once."""

    def __init__(self, folder: str):
        self.cards, self._folder = PretendCards(), folder
        self.on_cpu = lru_cache(maxsize=None)(lambda family, tied, dtype: Bench(whole(Case(family, tied, dtype, ""))))
        self.spread = lru_cache(maxsize=None)(self._spread)
        self.expected = lru_cache(maxsize=None)(self._expected)

    def _spread(self, case: Case) -> Bench:
        return Bench(spread(case, self.cards, tempfile.mkdtemp(dir=self._folder)))

    def _expected(self, name: str, family: str, tied: bool, dtype: Any) -> Any:
        return PATHS[name](self.on_cpu(family, tied, dtype))


@pytest.fixture(scope="session")
def benches(tmp_path_factory):
    return Benches(str(tmp_path_factory.mktemp("benches")))
