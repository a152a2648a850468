"""Scores in pieces: the same tables whatever the pieces and threads, masks against the catalogue, refusals."""

import threading

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.scoring import ensemble, streaming
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.ranking import Request, rank, ranked_and_described, score_stats
from esa_ray.scoring.scores import Scores
from esa_ray.scoring.streaming import in_order, stretches, walk
from esa_ray.spec import ScoreSpec
from tests.tiny import random_windows, tiny

GROUPS = ("super", "random_k", "matched_k", "bottom_k")
METRICS = ("grad_x_weight", "act_mag")


def scored(family: str) -> Scores:
    model = tiny(family)
    tensors = catalogue(model).select(("q", "k", "v", "o", "gate", "up", "down"))
    return score_tensors(model, tensors, random_windows(3), METRICS)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def small(monkeypatch, chunk: int, stretch: int) -> None:
    monkeypatch.setattr(streaming, "CHUNK", chunk)
    monkeypatch.setattr(streaming, "STRETCH", stretch)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "mixtral"])
def test_chunks_cover_every_weight_once_in_order_and_know_their_parts(family, monkeypatch):
    small(monkeypatch, 40, 130)
    scores = scored(family)
    components = tuple({p.component for t in scores.tensors for p in t.parts})
    whole = {i: scores.of("grad_x_weight", i) for i in range(len(scores.tensors))}
    upto = dict.fromkeys(whole, 0)
    for stretch in stretches(scores, "grad_x_weight", components):
        tensor = scores.tensors[stretch.index]
        for chunk in stretch.chunks():
            assert chunk.flat.start == upto[stretch.index]
            upto[stretch.index] = chunk.flat.stop
            flat = np.arange(chunk.flat.start, chunk.flat.stop)
            assert torch.equal(chunk.scores, whole[stretch.index][chunk.flat])
            where = tensor.locate(flat)
            assert set(where["expert"]) == {stretch.expert}
            for number in range(len(tensor.parts)):
                mine = tensor.part_of(flat) == number
                mask = chunk.mask(tensor.row_part == number)
                assert (np.ones(len(flat), bool) if mask is None else mask.numpy()).tolist() == mine.tolist()
                assert sorted(chunk.of(tensor.row_part == number).tolist()) == sorted(chunk.scores[mine].tolist())
    assert upto == {i: t.size for i, t in enumerate(scores.tensors)}


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
@pytest.mark.parametrize("metric", ["grad_x_weight", "act_mag", "grad_x_weight+act_mag"])
def test_tables_do_not_depend_on_pieces_or_threads(family, metric, monkeypatch, threads):
    monkeypatch.setattr(ensemble, "EXACT", 50)
    scores = scored(family)
    spec = ScoreSpec(metric=metric, components=("q", "v", "up"))
    threads(1)
    ranking, shapes = rank(scores, spec, 9, GROUPS, seed=1), score_stats(scores, spec, seed=1)
    assert ranked_and_described(scores, Request(spec, 9, GROUPS, seed=1)) == (ranking, shapes)
    small(monkeypatch, 50, 100)
    threads(3)
    again, others = ranked_and_described(scores, Request(spec, 9, GROUPS, seed=1))
    assert again == ranking
    for mine, other in zip(shapes.to_pylist(), others.to_pylist(), strict=True):
        assert mine.pop("std") == pytest.approx(other.pop("std"), rel=1e-9)  # sums of squares in another order
        assert mine == other


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("nan")])
def test_a_score_that_is_not_finite_is_refused_wherever_it_is(bad):
    tensors = catalogue(tiny("llama")).select(("down",))
    gradients = {i: torch.ones(t.shape) for i, t in enumerate(tensors)}
    gradients[1].view(-1)[100] = bad
    scores, spec = Scores(tensors, {"gradient": gradients}, 1), ScoreSpec(components=("down",))
    for route in (lambda: rank(scores, spec, 2, GROUPS, seed=0), lambda: score_stats(scores, spec, seed=0)):
        with pytest.raises(EsaError, match=rf"grad_x_weight of {tensors[1].name} is NaN or infinite"):
            route()


@pytest.mark.parametrize("shape", [(7,), (6, 5), (3, 4, 5)])
def test_slices_of_a_statistic_by_channel_are_those_of_the_whole(shape):
    tensors = catalogue(tiny("llama")).select(("down",))[:1]

    class Shaped(Scores):
        def __init__(self, values):
            super().__init__(tensors, {"input_norm": {0: values}}, 1)
            self.tensors = (type("Tensor", (), {"shape": shape})(),)

    for broadcast in range(len(shape)):
        sizes = [1 if i == broadcast and len(shape) > 1 else n for i, n in enumerate(shape)]
        values = torch.randn(sizes)
        whole, found = values.expand(shape).flatten(), Shaped(values)
        for start in range(len(whole)):
            for stop in range(start, len(whole) + 1):
                assert torch.equal(found.statistic("input_norm", 0, slice(start, stop)), whole[start:stop])
        assert torch.equal(found.statistic("input_norm", 0, slice(None)), whole)


def test_results_come_in_order_from_several_threads(threads):
    threads(3)
    seen, gate = set(), threading.Event()

    def work(n: int) -> int:
        seen.add(threading.get_ident())
        if n == 1:
            gate.set()
        if n == 0:
            assert gate.wait(60)  # the second is done before the first
        return n

    assert list(in_order(work, range(50))) == list(range(50))
    assert threading.get_ident() not in seen


def test_an_error_in_a_thread_is_raised_and_nothing_is_handed_over_after_it(threads):
    threads(2)

    def work(n: int) -> int:
        if n == 3:
            raise ValueError("three")
        return n

    got = []
    with pytest.raises(ValueError, match="three"):
        got.extend(iter(in_order(work, range(10**6))))
    assert len(got) <= 3


def test_walking_builds_no_graph_of_weights_that_want_gradients():
    model = tiny("llama").requires_grad_(True)
    scores = Scores(catalogue(model).select(("down",)), {}, 1)
    graphs = []

    class Looking:
        def __init__(self, stretch):
            pass

        def see(self, chunk):
            graphs.append(chunk.scores.requires_grad)

        def hand_over(self):
            pass

    walk(stretches(scores, "magnitude", ("down",)), [Looking])
    assert graphs
    assert not any(graphs)
