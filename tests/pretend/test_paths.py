"""Every path on every layout of cards finds what the CPU finds, bit for bit: pretend cards run the CPU's kernels."""

import pytest

from tests.pretend.benches import CASES, Benches
from tests.pretend.compare import difference
from tests.pretend.paths import PATHS


@pytest.fixture(scope="session")
def benches(tmp_path_factory):
    return Benches(str(tmp_path_factory.mktemp("benches")))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_path_finds_on_cards_what_it_finds_on_the_cpu(benches, case, name):
    assert (differs := benches.difference(case, name)) is None, differs


@pytest.mark.parametrize(
    ("expected", "found"),
    [([1.0, 2.0], [1.0, 2.5]), ({"a": 1}, {"b": 1}), ([1], [1, 2]), (1.0, float("nan")), (b"a", b"b"), (None, 0)],
)
def test_a_difference_is_found(expected, found):
    assert difference(expected, found)
    assert difference(expected, expected) is None
    assert difference([float("nan")], [float("nan")]) is None
    assert difference(1.0, 1.5, tolerance=0.5) is None
    assert difference({"delta_norm": 1.0}, {"delta_norm": 1.0 + 2e-15}) is None
    assert difference({"delta_norm": float("inf")}, {"delta_norm": 1.0})
    assert difference({"nll": 1.0}, {"nll": 1.0 + 2e-15})
