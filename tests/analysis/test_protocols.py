"""The intact model under protocols: what a diverging seed and too wide an interval allow to be said."""

import numpy as np
import pytest

import analysis
from analysis.report.sections.intact import intact
from esa_ray.spec import DataSpec, ModelSpec, Protocol, ScoreSpec, StudySpec
from esa_ray.storage.store import Store

TOKENS, BINS = 100, 15


def measured(directory, losses):
    """A baseline study whose seeds lost so many nats per token: {(protocol, context): (a loss a seed, None: NaN)}."""
    names = dict.fromkeys(name for name, _ in losses)
    spec = StudySpec(
        name="made", model=ModelSpec(source="made"), topk=(1,), seeds=(1, 2, 3), groups=("super",), perturbations=(),
        data=DataSpec(source="made", window=8), scores=(ScoreSpec(metric="magnitude", mode="global"),),
        protocols=tuple(
            Protocol(name=n, windows=2, contexts=tuple(c for p, c in losses if p == n)) for n in names
        ),
    )  # fmt: skip
    store = Store(directory)
    resolved = {"model": "f" * 16, "dtype": "fp32", "text": "t" * 16, "bos": True, "windows": 10**6, "layers": 2}
    store.save_study(spec, resolved, {"esa-ray": "0"}, cells=0)
    common = {"model": "made", "dtype": "fp32", "right": [0] * BINS, "tokens_per_second": 1.0, "peak_memory": 1}
    for (protocol, context), seeds in losses.items():
        for seed, loss in zip(spec.seeds, seeds, strict=True):
            counts = [0] * (BINS - 1) + [0 if loss is None else 2 * TOKENS]
            row = common | {
                "protocol": protocol, "context": context, "seed": seed, "tokens": [TOKENS] * 2, "hits": [10] * 2,
                "status": "diverged" if loss is None else "ok", "nll": [float("nan") if loss is None else loss * TOKENS]
                * 2, "nonfinite": 57 if loss is None else 0, "counts": counts, "sums": [float(n) for n in counts],
            }  # fmt: skip
            store.write("protocols", f"{protocol}-c{context}-s{seed}", [row])
    return analysis.load(directory)


def statuses(study):
    return {v.id: v.status for v in analysis.verdicts(study)}


def test_a_seed_that_diverges_is_counted_and_no_criterion_holds(tmp_path):
    study = measured(tmp_path, {("smoke", 8): (2.0, 2.0, 2.0), ("extended", 16): (2.0, 2.0, None)})
    rows = analysis.protocol_summary(study).select("protocol", "diverged", "nonfinite").rows()
    assert rows == [("smoke", 0, 0), ("extended", 1, 57)]
    assert statuses(study) == {"P1.3a": "fails", "P1.3b": "fails"}
    assert [row[2] for row in intact(study).tables[0].rows] == ["3", "3, 1 diverged"]


def test_the_longest_context_is_judged_though_every_seed_diverges_there(tmp_path):
    losses = {("smoke", 8): (2.0, 2.01, 2.0), ("extended", 16): (2.0, 2.01, 2.0), ("extended", 32): (None,) * 3}
    assert statuses(measured(tmp_path, losses))["P1.3b"] == "fails"


@pytest.mark.parametrize(
    ("worse", "scatter", "status"),
    # 5% are 0.0488 nats: surely less, surely more, and an interval on both sides of it.
    [(0.01, 0.001, "holds"), (0.2, 0.001, "fails"), (0.04, 0.005, "open"), (-0.3, 0.001, "holds")],
)
def test_five_percent_is_what_the_interval_is_judged_by(tmp_path, worse, scatter, status):
    seeds = np.array([-1.0, 0.0, 1.0]) * scatter
    losses = {("smoke", 8): 2.0 + seeds, ("extended", 16): 2.0 + worse + seeds}
    assert statuses(measured(tmp_path, losses))["P1.3b"] == status
