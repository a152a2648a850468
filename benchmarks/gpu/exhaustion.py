"""Real exhaustion of memory in scoring, in a ranking, in a cell and while damage is taken back; then the same table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import BODY, PYTHIA, random_model, windows
from benchmarks.gpu.scarcity import Rationed, full, scarce
from benchmarks.gpu.subject import FLIP, GROUPS, Table, bits, cell, intact_since, put_back, scores_of, table
from esa_ray.evaluation import Intact, evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.models.exhaustion import out_of_memory
from esa_ray.perturb.edit import NotRestoredError
from esa_ray.scoring.ranking import rank, score_stats
from esa_ray.spec import ScoreSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel

REFUSED = "the model is refused"
METRICS, SPEC, K = ("grad_x_weight", "act_mag"), ScoreSpec(metric="grad_x_weight", components=BODY), 5


def needed(bench: Bench, work: Callable[[], object]) -> int:
    """Bytes that some work takes of the device; on the CPU what :class:`Rationed` counts."""
    if bench.full:
        return bench.peak(work)
    with Rationed() as counted:
        work()
    return counted.made


def exhausted(bench: Bench, work: Callable[[], object]) -> str:
    """Run some work with half of the memory that it takes, and say how it ended."""
    half = needed(bench, work) // 2
    try:
        with scarce(bench.device, half):
            work()
    except NotRestoredError:
        return REFUSED
    except Exception as error:
        if not out_of_memory(error):
            raise
        return "out of memory"
    finally:
        bench.free()
    return "done with half of the memory"


def works(model: PreTrainedModel, text, evaluation) -> dict[str, Callable[[], object]]:
    """What memory runs out in, by name."""
    weights, scores = catalogue(model), scores_of(model, text, METRICS)
    ranking, intact = rank(scores, SPEC, K, GROUPS, seed=0), Intact(model, evaluation, tail_stays=True)
    return {
        "scoring": lambda: scores_of(model, text, METRICS),
        "a ranking": lambda: rank(scores, SPEC, K, GROUPS, seed=0),
        "distributions": lambda: score_stats(scores, SPEC, seed=0),
        "a cell": lambda: cell(weights, ranking, "super", K, FLIP, lambda: evaluate(model, evaluation, intact=intact)),
    }


def restoring_without_memory(model: PreTrainedModel, ranking: pa.Table) -> str:
    """Take damage back while no memory is left, and say how that ended."""
    weights, no_memory = catalogue(model), ExitStack()
    try:
        with no_memory:
            cell(weights, ranking, "super", K, FLIP, lambda: no_memory.enter_context(full(model.device)))
    except NotRestoredError:
        return REFUSED
    except Exception as error:
        if not out_of_memory(error):
            raise
        return "out of memory"
    return "done"


def exhaustion(bench: Bench) -> None:
    """The whole part."""
    model = random_model(PYTHIA, bench)
    text, evaluation = windows(model, 2), windows(model, 8, seed=1)
    first, before = table(model, text, evaluation, k=K), bits(model)
    for what, work in works(model, text, evaluation).items():
        with bench.trying(f"memory ends in {what}"):
            _judged(bench, f"memory ends in {what}", exhausted(bench, work), model, before)
    with bench.trying("the same table after memory ended"):
        _same(bench, "the same table after memory ended", first, model, text, evaluation)
    with bench.trying("memory ends while damage is taken back"):
        ended = restoring_without_memory(model, first.rankings)
        _judged(bench, "memory ends while damage is taken back", ended, model, before)
    with bench.trying("the same table once more"):
        _same(bench, "the same table once more", first, model, text, evaluation)


def _judged(bench: Bench, what: str, ended: str, model: PreTrainedModel, before: list[torch.Tensor]) -> None:
    """A model must keep its bits, or be refused; one that was refused gets them back, as if it were loaded anew."""
    kept = intact_since(model, before)
    note = "" if bench.full else "a stand-in refuses memory"
    words = f"{ended}; the weights are {'intact' if kept else 'damaged'}"
    bench.note(what, words, goal="intact, or refused", met=kept or ended == REFUSED, note=note)
    if not kept:
        put_back(model, before)


def _same(
    bench: Bench, what: str, first: Table, model: PreTrainedModel, text: np.ndarray, evaluation: np.ndarray
) -> None:
    again = table(model, text, evaluation, k=K).equals(first)
    bench.note(what, "the same bits" if again else "differs", goal="the same bits", met=again)
