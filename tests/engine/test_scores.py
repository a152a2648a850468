"""A study of scores through the engine: every score, sets by sample size, and the single-weight sample."""

import numpy as np
import pytest
import torch

from esa_ray.engine.sweep import run_study
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.scoring import memory
from esa_ray.scoring.steps import batches
from esa_ray.spec import METRICS, ScoreSpec
from esa_ray.storage.store import Store, ranking_name
from tests.measuring import measure

pytestmark = pytest.mark.ray
SCORES = (
    *(ScoreSpec(metric=m, probes=2 if "hutchinson" in m else None) for m in METRICS),
    ScoreSpec(metric="grad_x_weight+act_mag"),
    ScoreSpec(metric="grad_x_weight", mode="global"),
)


@pytest.fixture(scope="module")
def spec(tiny_study):
    return tiny_study.replace(
        name="scores", scores=SCORES, perturbations=(), groups=("super",),
        analyses=("stability", "weights"), fidelity=30,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(spec, ray_cluster, tmp_path_factory):
    directory = tmp_path_factory.mktemp("scores")
    assert run_study(spec, directory).complete
    return Store(directory)


def test_every_score_is_ranked_and_described_for_every_seed(done, spec):
    wanted = {ranking_name(s.metric, s.mode, seed) for s in SCORES for seed in spec.seeds}
    assert set(done.names("rankings")) == set(done.names("score_stats")) == wanted
    for score in SCORES:
        rows = done.read("rankings", ranking_name(score.metric, score.mode, 7)).to_pylist()
        assert {r["metric"] for r in rows} == {score.metric}
        assert {r["std_error"] is None for r in rows} == {not score.estimated}
        assert {r["component"] for r in rows} <= set(score.components)
        stats = done.read("score_stats", ranking_name(score.metric, score.mode, 7)).to_pylist()
        assert {r["probes"] for r in stats} == ({2} if score.estimated else {None})


def test_sets_by_sample_size_end_with_the_ranking_itself(done, spec):
    for score in SCORES[:3]:
        name = ranking_name(score.metric, score.mode, 8)
        last = [r for r in done.read("sample_sizes", name).to_pylist() if r["windows"] == 4]
        ranking = [r for r in done.read("rankings", name).to_pylist() if r["group"] == "super"]
        places = [{(r["tensor"], r["flat"], r["rank"]) for r in rows} for rows in (last, ranking)]
        assert places[0] == places[1]


def test_the_single_weight_sample_measures_every_sampled_weight_by_every_edit(done, spec):
    samples = done.read("samples", "s7").to_pylist()
    rows = [r for name in done.names("fidelity") for r in done.read("fidelity", name).to_pylist()]
    assert len(samples) >= 30
    for edit in ("zero", "sign_flip"):
        mine = {(r["tensor"], r["flat"]): r for r in rows if r["edit"] == edit}
        assert mine.keys() == {(s["tensor"], s["flat"]) for s in samples}
        assert all(len(r["delta_nll"]) == 5 and r["first_order"] is not None for r in mine.values())
    assert any(r["edit"] == "null_edit" for r in rows)
    assert {r["seed"] for r in rows} == {7}


def test_a_lost_packet_is_measured_again_and_nothing_else(done, spec, ray_cluster):
    lost = done.directory / "fidelity" / f"{done.names('fidelity')[0]}.parquet"
    before = {p: p.stat().st_mtime_ns for p in done.directory.glob("*/*.parquet") if p != lost}
    rows = done.read("fidelity", lost.stem).to_pylist()
    lost.unlink()
    assert run_study(spec, done.directory).computed == 1
    assert {p: p.stat().st_mtime_ns for p in before} == before
    again = done.read("fidelity", lost.stem).to_pylist()
    np.testing.assert_allclose([r["delta_nll"] for r in again], [r["delta_nll"] for r in rows], atol=1e-4)


def test_a_budget_of_one_block_changes_no_ranking(done, spec, tmp_path):
    source = find(spec.model)
    few = spec.replace(scores=SCORES[:4], fidelity=0)
    free = Worker(few, source, str(tmp_path / "free"))
    sizes = []
    plan = memory.plan

    def counted(*arguments, **options):
        layout = plan(*arguments, **options)
        sizes.append(len(layout.ranges))
        return layout

    # What accumulating for one block takes beside a batch of all windows that pass together.
    tensors = free.rankings.tensors
    block = [t for t in tensors if t.layer == 0]
    batch = max(batches(torch.as_tensor(free.windows.calibration(7)), few.data.batch_size), key=len)
    activations = memory.activation_bytes(free.model, tensors, batch)
    tight = Worker(few, source, str(tmp_path / "tight"), memory_budget=memory.peak_bytes(block, 3, activations))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esa_ray.scoring.gather.plan", counted)
        measure(tight, "rankings", 7)
    measure(free, "rankings", 7)
    assert sizes == [2]
    for score in few.scores:
        tables = [w.store.read("rankings", ranking_name(score.metric, score.mode, 7)) for w in (free, tight)]
        assert tables[0].equals(tables[1])
