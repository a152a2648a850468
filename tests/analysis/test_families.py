"""What is asked of several models: who stands for each, against what, and where."""

import numpy as np
import pytest

from analysis.compression.families import families
from analysis.documents.families import family_sections
from esa_ray.spec import QuantizeSpec
from tests.analysis.compressed import compressed, prune

OURS, WORSE = prune(score="obs", update="refit"), prune(score="gblm", update="refit")
COSTS = {"magnitude": 1.0, "act_mag": 0.5, "regional": 0.4, "obs": 0.3, "gblm": 0.45}


def pruned(directory, *, settings=(0.5, 0.6), away=None, lost=()):
    """Excess by score alone; out of domain as ``away`` says."""
    methods = [prune("magnitude"), prune("wanda"), prune("wanda++"), OURS, WORSE]

    def cost(p, seed, text):
        if p.label in lost:
            return None
        return ({**COSTS, **(away or {})} if text == "away" else COSTS)[p.score] * (1 + 0.01 * np.cos(np.arange(16)))

    specs = [m.model_copy(update={"sparsity": s}) for m in methods for s in settings]
    return compressed(directory, specs, cost)


def rows_of(table):
    return {(r["model"], r["setting"], r["domain"], r["against"]): r for r in table.iter_rows(named=True)}


def test_a_model_is_represented_by_the_unpublished_method_that_costs_least_at_home(tmp_path):
    away = {"obs": 0.8, "gblm": 0.1, "act_mag": 0.2}
    found = rows_of(families([("a", pruned(tmp_path, away=away))]))
    assert {r["method"] for r in found.values()} == {"obs-row-refit"}
    assert {r["candidates"] for r in found.values()} == {2}
    told = {key[2:]: (r["rival"], round(r["saving"], 6)) for key, r in found.items() if key[1] == "60%"}
    assert told == {
        ("in", "magnitude"): ("magnitude", 0.7), ("in", "best"): ("wanda++", 0.25),
        ("out", "magnitude"): ("magnitude", 0.2), ("out", "best"): ("wanda", -3.0),
    }  # fmt: skip


def test_only_settings_that_every_model_has_are_compared(tmp_path):
    two = [("a", pruned(tmp_path / "a")), ("b", pruned(tmp_path / "b", settings=(0.6, 0.7)))]
    assert set(families(two)["setting"]) == {"60%"}
    (section,) = family_sections(families(two))
    assert len(section.tables[0].rows) == 2
    assert family_sections(families(two[:1])) == []


def test_a_method_that_diverges_represents_a_model_only_where_no_other_is_left(tmp_path):
    at_half = [m.model_copy(update={"sparsity": 0.5}).label for m in (OURS, WORSE)]
    studies = [("a", pruned(tmp_path / "a", lost=at_half)), ("b", pruned(tmp_path / "b", lost=at_half[:1]))]
    table = families(studies)
    assert rows_of(table)["b", "50%", "in", "best"]["method"] == "gblm-row-refit"
    (section,) = family_sections(table)
    (row,) = (row for row in section.tables[0].rows if row[:2] == ["a", "50%"])
    assert row[3].startswith("diverges")
    assert (
        "In domain the point that isn't published has surely less excess NLL than magnitude in 3 of 4" in section.answer
    )


def test_quantizations_are_held_against_magnitude_and_the_best_other_rule(tmp_path):
    costs = {"tacq": 0.2, "fisher": 0.3, "random": 0.25, "magnitude": 0.5}

    def made(name):
        specs = [QuantizeSpec(bits=3, kept=0.0035, keep_by=rule) for rule in costs]
        return compressed(tmp_path / name, specs, lambda q, s, t: costs[q.keep_by] * (1 + 0.01 * np.cos(np.arange(16))))

    table = families([(name, made(name)) for name in ("a", "b")])
    found = rows_of(table)
    row = found["a", "3 bits g64 0.35% kept", "in", "best"]
    assert (row["method"], row["rival"], row["candidates"]) == ("tacq", "random", 2)
    assert row["saving"] == pytest.approx(0.2)
    assert found["b", "3 bits g64 0.35% kept", "out", "magnitude"]["saving"] == pytest.approx(0.6)
    (section,) = family_sections(table)
    assert "surely less excess NLL than the best other rule in 2 of 2" in section.answer
