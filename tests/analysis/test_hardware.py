"""Mixed hardware: a cell is compared with the intact loss of where it was computed, and the report says so."""

import numpy as np
import polars as pl
import pytest

import analysis
from analysis.comparison.architecture import by_window
from analysis.report.sections.compression import excess
from analysis.report.sections.faults import broken
from analysis.report.sections.ran import ran
from analysis.run.hardware import mixed_hardware
from esa_ray.spec import AttackSpec, FaultSpec
from esa_ray.storage.store import Store
from tests.analysis.attacked import BASE, attack, injected, written
from tests.analysis.compressed import compressed, prune
from tests.analysis.conftest import TOKENS, write_study
from tests.analysis.synthetic import save_table

#: How far the other card's intact loss lies from the baseline's, nats per token and window: more than the control's
#: planted damage.
SHIFT = np.array([0.03, -0.01, 0.02, 0.04, 0.01, 0.02, 0.03, 0.02])
CONTROL = 0.005


@pytest.fixture
def directory(tmp_path):
    return write_study(tmp_path, shift={"super": 2.0, "random_k": CONTROL})


def moved(directory, *, own):
    """The control's cells as another card computes them; with ``own`` their rows say what is intact there."""
    study, store = analysis.load(directory), Store(directory)
    base = np.array(study.baselines["nll"][0])
    for row in study.cells.to_dicts():
        row |= {"device": "NVIDIA H100 on one", "worker": "one/1"}
        if row["group"] == "random_k":
            nll = np.array(row["nll"]) + TOKENS * SHIFT
            row |= {"device": "NVIDIA A100 on two", "worker": "two/2", "nll": nll.tolist()}
            row |= {"intact_nll": (base + TOKENS * SHIFT).tolist()} if own else {}
        store.write("cells", row["cell_id"], [row])
    store.write("baselines", "baseline", [study.baselines.to_dicts()[0] | {"device": "NVIDIA H100 on one"}])
    return analysis.load(directory)


def test_damage_is_measured_against_the_hardware_that_it_was_done_on(directory):
    study = moved(directory, own=True)
    effects = {row["group"]: row for row in analysis.effects(study).iter_rows(named=True)}
    assert effects["random_k"]["delta_nll"] == pytest.approx(CONTROL, rel=1e-9)
    assert effects["super"]["delta_nll"] == pytest.approx(2.0)
    (comparison,) = analysis.comparisons(study).iter_rows(named=True)
    assert comparison["difference"] == pytest.approx(2.0 - CONTROL)


def test_without_a_loss_of_its_own_a_cell_is_compared_with_the_baseline(directory):
    effects = {row["group"]: row for row in analysis.effects(moved(directory, own=False)).iter_rows(named=True)}
    assert effects["random_k"]["delta_nll"] == pytest.approx(CONTROL + SHIFT.mean())


def test_cells_that_stopped_early_are_compared_with_the_first_windows(directory):
    study = moved(directory, own=True)
    row = next(r for r in study.cells.to_dicts() if r["group"] == "random_k" and r["seed"] == 2)
    short = {name: row[name][:3] for name in ("nll", "tokens", "hits")}
    Store(directory).write("cells", row["cell_id"], [row | short])
    effects = {row["group"]: row for row in analysis.effects(analysis.load(directory)).iter_rows(named=True)}
    assert (effects["random_k"]["windows"], effects["random_k"]["delta_nll"]) == (3, pytest.approx(CONTROL, rel=1e-9))


def ablated(directory):
    """Attention and FFN of one block, silenced on the other card at a cost of 0.5 and 0.25 nats per token."""
    base = np.array(analysis.load(directory).baselines["nll"][0])
    there = base + TOKENS * SHIFT
    Store(directory).write("ablations", "block-0000", [
        {"model": "m", "layer": 0, "part": part, "status": "ok", "nll": (there + TOKENS * cost).tolist(),
         "tokens": [TOKENS] * len(base), "intact_nll": there.tolist(), "device": "NVIDIA A100 on two"}
        for part, cost in (("attention", 0.5), ("ffn", 0.25))
    ])  # fmt: skip
    return analysis.load(directory)


def test_silenced_parts_are_compared_with_the_intact_loss_of_their_own_hardware(directory):
    study = ablated(directory)
    found = by_window(study, study.ablations.sort("part"))
    np.testing.assert_allclose(found, np.repeat([[0.5], [0.25]], len(SHIFT), axis=1))


def test_the_report_says_what_was_computed_elsewhere_and_how_far_that_lies_away(directory):
    study = moved(directory, own=True)
    assert (
        "The hardware was mixed: 3 cells were computed on NVIDIA A100, where the intact model's loss is not to the bit "
        "that of the baseline (from NVIDIA H100), but up to 0.0200 nats per token away."
    ) in ran(study).answer
    assert "The hardware was mixed: 3 cells" in analysis.write_report(study).read_text()
    found = mixed_hardware(ablated(directory))
    assert (found.cells, found.ablations, found.cards, found.reference) == (3, 2, ["NVIDIA A100"], "NVIDIA H100")
    assert found.largest == pytest.approx(SHIFT.mean())


def test_where_all_hardware_agrees_nothing_is_said(directory):
    study = moved(directory, own=False)
    assert mixed_hardware(study) is None
    assert "mixed" not in ran(study).answer
    # The same loss to the bit, stored all the same: a cell may run before there is a baseline.
    row = study.cells.to_dicts()[0] | {"intact_nll": study.baselines["nll"][0].to_list()}
    Store(directory).write("cells", row["cell_id"], [row])
    assert mixed_hardware(analysis.load(directory)) is None


def test_compressions_of_mixed_hardware_are_told_too(tmp_path):
    study = compressed(tmp_path, [prune("wanda"), prune("sparsegpt")], lambda p, s, t: 0.5, seeds=(1,))
    there = (pl.col("score") == "obs") & (pl.col("domain") == "out")
    # Half a nat more in each window of 100 tokens.
    other = pl.when(there).then(pl.col("nll").list.eval(pl.element() - 50.0 + 0.5))
    device = pl.when(there).then(pl.lit("NVIDIA A100 on two")).otherwise(pl.lit("NVIDIA H100 on one"))
    table = study.compressions.with_columns(device.alias("device"), other.alias("intact_nll"))
    save_table(tmp_path, "compressions", table)
    found = mixed_hardware(analysis.load(tmp_path))
    assert (found.cells, found.ablations, found.compressions) == (0, 0, 1)
    assert (found.cards, found.reference) == (["NVIDIA A100"], "NVIDIA H100")
    assert found.largest == pytest.approx(0.005)
    assert "The hardware was mixed: 1 compression was computed on NVIDIA A100" in excess(analysis.load(tmp_path)).answer


def test_faults_and_attacks_of_mixed_hardware_are_told_by_their_packets(tmp_path):
    fault, way = FaultSpec(rate=1e-5, repeats=3), AttackSpec(arm="random", budget=2)
    rows, steps = injected(fault, (1, 2), 0), attack(way, 1, 2)
    other = {"device": "NVIDIA A100 on two", "intact_nll": (BASE + 1.5).tolist()}
    for row in (*rows[3:], *steps):
        row |= other  # of the second seed's packet
    own = {"device": "NVIDIA H100 on one", "intact_nll": BASE.tolist()}
    for row in rows[:3]:
        row |= own
    written(tmp_path, [fault], [way], rows=rows, attacked=steps)
    base = {"nll": BASE.tolist(), "tokens": rows[0]["tokens"], "hits": rows[0]["hits"], "device": own["device"]}
    save_table(tmp_path, "baselines", [base | {"status": "ok", "seconds": 1.0}])
    found = mixed_hardware(analysis.load(tmp_path))
    assert (found.faults, found.attacks, found.cells, found.cards) == (1, 1, 0, ["NVIDIA A100"])
    assert found.largest == pytest.approx(1.5 / 100)
    assert "1 fault packet and 1 attack were computed on NVIDIA A100" in broken(analysis.load(tmp_path)).answer
