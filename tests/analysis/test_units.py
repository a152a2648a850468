"""Studies of rows say rows, and aren't held against what was said of weights."""

import numpy as np
import pytest
from rich.console import Console

import analysis
from analysis.comparison.loading import compare
from analysis.names import chosen, unit_name, unit_of, units
from analysis.report.terminal import print_summary
from analysis.study import StudyError
from tests.analysis.cells import cell, noise, study_of
from tests.analysis.test_pairs import ranked

SCORES = [{"metric": "grad_x_weight", "mode": "per_layer", "components": ["down"], "unit": "row", "combine": "joint"}]


@pytest.fixture
def rows(tmp_path):
    """A study of rows: a set, its control of the highest norm, and a table of their scores' distribution."""
    rng, common = (
        np.random.default_rng(0),
        {"mode": "per_layer", "k": 2, "unit": "row", "delta_norm": 1.0, "n_changed": 32},
    )
    cells = [
        cell(cost + noise(rng), seed=seed, group=group, n_weights=32, **common)
        for seed in (1, 2) for group, cost in (("super", 2.0), ("largest_k", 0.1))
    ]  # fmt: skip
    stats = [
        {"model": "m", "metric": "grad_x_weight", "mode": "per_layer", "seed": seed, "tensor": f"layers.{layer}.down",
         "layer": layer, "component": "down", "n": 16, "mean": 1.0, "std": 0.1, "min": 0.5, "max": 10.0, "gini": 0.1,
         "quantiles": np.linspace(0.5, 10, 9).tolist(), "top1pct_over_median": 3.0}
        for seed in (1, 2) for layer in (0, 1)
    ]  # fmt: skip
    rankings = [row for seed in (1, 2) for row in ranked(seed, [2, 0, 3, 1])]
    return study_of(
        tmp_path / "rows", cells, rankings=rankings, score_stats=stats, scores=SCORES, topk=[2], seeds=[1, 2],
        groups=["super", "largest_k"], perturbations=[{"kind": "zero"}],
    )  # fmt: skip


def test_a_study_of_rows_is_reported_in_rows(rows):
    html = analysis.write_report(rows).read_text()
    assert "Which rows does" in html
    assert "down row 2 in block 0" in html
    assert "largest_k: rows of the same tensor with the highest norm" in html
    assert "grad_x_weight, per_layer, of rows (joint), over" in html
    assert "super weights" not in html
    console = Console(width=160, record=True)
    print_summary(rows, console)
    text = console.export_text()
    assert "The rows that most seeds agree on" in text
    assert "None" not in text


def test_every_table_names_the_unit_with_the_set(rows):
    assert (unit_of(rows), units(rows)) == ("row", "rows")
    assert chosen(rows, {"metric": "grad_x_weight", "mode": "per_layer", "k": 2}) == "k=2 rows"
    assert set(analysis.effects(rows)["chosen"]) == {"k=2 rows"}


def test_two_random_sets_of_rows_agree_by_the_number_of_rows(rows):
    """The chance of agreement is k/(2N − k) of a pool's N rows, which for 2 of 16 is 1/15."""
    assert analysis.jaccard(rows)["chance"].to_list() == pytest.approx([2 / 30])


def test_criteria_and_laws_of_weights_leave_studies_of_rows_out(rows):
    assert analysis.verdicts(rows) == []
    assert analysis.residual_channels(rows).is_empty()
    with pytest.raises(StudyError, match="ranks rows, and shares and laws are of single weights"):
        compare([rows.location.text])


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (
            {"unit": "col", "component": "v", "number": 3, "expert": 1, "layer": 2},
            "v column 3 of expert 1 in block 2",
        ),
        ({"unit": "head", "component": "q", "number": 5, "expert": None, "layer": 0}, "head 5 in block 0"),
        ({"unit": "row", "component": "head", "number": 7, "expert": None, "layer": None}, "head row 7"),
        ({"unit": None, "component": "q", "row": 1, "col": 2, "expert": None, "layer": 0}, "q [1, 2] in block 0"),
    ],
)
def test_a_unit_is_named_by_where_it_is(row, name):
    assert unit_name(row) == name
