"""What restoring brings back: planted shares, ratios that don't exist, and coverage by simulation."""

import numpy as np
import pytest

from analysis.damage.recovery import RECOVERY, recovery
from analysis.report.figures import sets as figures
from analysis.report.sections import sets
from analysis.statistics.ratios import ratio
from tests.analysis.cells import WINDOWS, cell, study_of, the, with_rests

RESTS = {("all_but_first", 0.5): 0.1, ("all_but_last", 0.5): 0.7, ("all_but_first", 0.2): 0.6}


def test_the_recovered_share_is_the_planted_one(tmp_path):
    table = recovery(study_of(tmp_path / "s", with_rests(2.0, RESTS, size=0.002)))
    assert len(table) == 3
    for (part, fraction), share in RESTS.items():
        row = the(table, part=part, fraction=fraction)
        assert row["recovered"] == pytest.approx(1 - share, abs=0.01)
        assert row["low"] < 1 - share < row["high"]
        assert row["rest"] == pytest.approx(share * row["whole"], abs=0.01)
        assert row["high"] - row["low"] < 0.02  # windows and seeds differ by 20%, rest and whole alike
        assert row["why_not"] is None


def test_the_most_sensitive_first_against_the_least(tmp_path):
    table = recovery(study_of(tmp_path / "s", with_rests(2.0, RESTS, size=0.002)))
    for part in ("all_but_first", "all_but_last"):
        row = the(table, part=part, fraction=0.5)
        assert row["first_minus_last"] == pytest.approx(0.6, abs=0.01)
        assert row["first_minus_last_low"] < 0.6 < row["first_minus_last_high"]
    assert the(table, fraction=0.2)["first_minus_last"] is None


def test_a_share_of_no_damage_is_undefined(tmp_path):
    rows = with_rests(0.0, RESTS, size=0.01)
    table = recovery(study_of(tmp_path / "s", rows))
    assert table["recovered"].null_count() == 3
    assert table["first_minus_last"].null_count() == 3
    assert all("isn't surely above 0" in why for why in table["why_not"])
    assert table["rest"].null_count() == 0


def test_shares_can_lie_outside_0_to_1(tmp_path):
    rests = {("all_but_first", 0.5): -0.25, ("all_but_last", 0.5): 1.5}
    table = recovery(study_of(tmp_path / "s", with_rests(2.0, rests, size=0.002)))
    assert the(table, part="all_but_first")["recovered"] == pytest.approx(1.25, abs=0.01)
    assert the(table, part="all_but_last")["recovered"] == pytest.approx(-0.5, abs=0.01)


def test_diverged_cells_are_counted_and_never_averaged_in(tmp_path):
    rows = with_rests(2.0, {("all_but_first", 0.5): 0.25}, seeds=(1, 2, 3, 4))
    rows[2] = cell(None, seed=2)  # the whole set of seed 2
    row = the(recovery(study_of(tmp_path / "s", rows)))
    assert (row["seeds"], row["left_out"], row["diverged"]) == (3, 1, 1)
    assert row["recovered"] == pytest.approx(0.75)
    lost = [r if r["part"] else cell(None, seed=r["seed"]) for r in rows]
    row = the(recovery(study_of(tmp_path / "lost", lost)))
    assert (row["seeds"], row["recovered"]) == (0, None)
    assert "finite loss" in row["why_not"]


def test_a_rest_that_stopped_early_is_compared_over_its_windows(tmp_path):
    rows = [cell(np.linspace(1, 2, WINDOWS)), cell(np.linspace(1, 2, WINDOWS)[:4] / 2, part="all_but_first",
                                                   part_value=0.5)]  # fmt: skip
    row = the(recovery(study_of(tmp_path / "s", rows)))
    assert (row["windows"], row["recovered"]) == (4, pytest.approx(0.5))
    assert (row["low"], row["high"]) == (pytest.approx(0.5), pytest.approx(0.5))


def simulated(seeds, windows, seed_spread, rng, share=0.4):
    """Damages (S, W) of a whole set and of a rest, whose means have the ratio ``share``."""

    def field():
        return (
            seed_spread * rng.standard_normal((seeds, 1))
            + 0.3 * rng.standard_normal((1, windows))
            + 0.1 * rng.standard_normal((seeds, windows))
        )

    whole = 1 + field()
    return share * whole + share * field(), whole


@pytest.mark.parametrize(("seeds", "seed_spread"), [(1, 0.0), (3, 0.0), (3, 0.3), (5, 0.3)])
def test_the_interval_covers_the_true_share(seeds, seed_spread):
    rng, covered, defined = np.random.default_rng(1), 0, 0
    for _ in range(250):
        found = ratio(*simulated(seeds, 16, seed_spread, rng))
        if found is not None:
            defined += 1
            covered += found[1].low < 0.4 < found[1].high
    assert defined > 190
    assert 0.90 <= covered / defined <= 0.99


def test_the_interval_is_fiellers():
    # One seed: the roots of (a − R b)² = t² · var(a − R b)/n, the quadratic of Fieller's theorem.
    rng, n, t = np.random.default_rng(2), 12, 2.2009851600916384  # Student's t, 11 degrees, 97.5%
    whole = 1 + 0.4 * rng.standard_normal(n)
    part = 0.5 * whole + 0.2 * rng.standard_normal(n)
    (vp, c), (_, vw) = np.cov(part, whole) / n
    roots = np.sort(np.roots([
        whole.mean() ** 2 - t**2 * vw, 2 * (t**2 * c - part.mean() * whole.mean()), part.mean() ** 2 - t**2 * vp,
    ]))  # fmt: skip
    value, interval = ratio(part[None], whole[None])
    assert value == pytest.approx(part.mean() / whole.mean())
    assert (interval.low, interval.high) == pytest.approx(tuple(roots), rel=1e-6)


def test_the_section_says_what_was_planted(tmp_path):
    study = study_of(
        tmp_path / "s", with_rests(2.0, RESTS) + with_rests(0.5, RESTS, perturbation="scale", strength=0.5)
    )
    section = sets.recovery(study)
    assert section.answer.startswith("Restoring the most sensitive 20.0% of k=3 brings back 40.0% [40.0%, 40.0%] of")
    assert "of what zero costs. That is 60.0%" in section.answer
    assert len(section.tables[0].rows) == 6
    assert figures.recovery(study).to_dict()["width"] == "container"
    nothing = study_of(tmp_path / "none", with_rests(0.0, RESTS, size=0.01))
    assert "Nothing can be said" in sets.recovery(nothing).answer
    assert figures.recovery(nothing) is None


def test_without_parts_there_are_no_rows_but_all_columns(tmp_path):
    study = study_of(tmp_path / "s", [cell(np.ones(WINDOWS))])
    table = recovery(study)
    assert table.is_empty()
    assert sets.recovery(study) is figures.recovery(study) is None
    assert dict(table.schema) == RECOVERY
