"""Single weights against brute force: strata, inclusion, predictions and effects in float64."""

import copy
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.evaluation.single_weights import measure, nudged
from esa_ray.models.addressing import FusedPart, WeightTensor, catalogue
from esa_ray.models.slots import ParameterSlot
from esa_ray.perturb.edit import NotRestoredError
from esa_ray.resume import Resumable
from esa_ray.schema import FIDELITY, SAMPLES
from esa_ray.scoring import streaming
from esa_ray.scoring.sampling import sample
from esa_ray.scoring.scores import Reading, Scores
from esa_ray.scoring.strata import BORDERS, STRATA, rounded_down
from tests.questions import questions
from tests.tiny import (
    PLANTED,
    random_windows,
    state_bits,
    summed_nll,
    tiny,
    window_gradients,
    with_planted_super_weight,
)

N = 24


class Fake(Scores):
    """Scores by tensor and metric, all given."""

    metrics = ("mine", "other")

    def __init__(self, tensors, values):
        super().__init__(tensors, {}, tokens=1)
        self._values = values

    def reading(self, metric, index):
        return Given(self, metric, index)

    def signed(self, what, index, flat):
        return -self._values[index][flat] if what == "gradient" else None


class Given(Reading):
    def __call__(self, flat):
        values = self.scores._values[self.index]
        return (values if self.metric == "mine" else 2 * values)[flat]


def a_tensor(name: str, layer: int, shape: tuple[int, int], *components: str) -> WeightTensor:
    rows = shape[0] // len(components)
    parts = tuple(FusedPart(c, i * rows, rows, shape[0]) for i, c in enumerate(components))
    owner = torch.nn.Linear(shape[1], shape[0], bias=False)
    return WeightTensor(name, layer, shape, parts, False, False, None, (ParameterSlot(name, owner, "weight"),))


@pytest.fixture
def heavy() -> Fake:
    """Two components over four tensors, one of them fused; each score in a bin of its own, so quantiles are exact."""
    shapes = [(0, (40, 50), ("q",)), (0, (30, 40), ("down",)), (1, (80, 50), ("q", "down")), (2, (10, 50), ("q",))]
    tensors = [a_tensor(f"t{i}", layer, shape, *c) for i, (layer, shape, c) in enumerate(shapes)]
    order = np.random.default_rng(0).permutation(sum(t.size for t in tensors))
    scores = torch.from_numpy(1.006 ** (order - 4000.0)).float()
    values = list(scores.split([t.size for t in tensors]))
    with torch.no_grad():
        tensors[0].flat_weights()[::11] = 0.0
    return Fake(tensors, values)


def population(scores, component: str) -> dict[tuple[str, int], float]:
    """Brute force: every non-zero weight of a component and its score."""
    found = {}
    for index, tensor in enumerate(scores.tensors):
        names, weights = tensor.locate(np.arange(tensor.size))["component"], tensor.flat_weights()
        for flat in range(tensor.size):
            if names[flat] == component and weights[flat] != 0:
                found[tensor.name, flat] = float(scores.of("mine", index)[flat])
    return found


def places(table) -> list[tuple[str, int]]:
    return list(zip(table["tensor"].to_pylist(), table["flat"].to_pylist(), strict=True))


@pytest.mark.parametrize("quota", [1, 3, 10])
def test_strata_and_inclusion_are_those_of_all_scores_laid_side_by_side(heavy, quota):
    table = sample(heavy, "mine", 24 * quota, seed=3, components=("q", "down"), model="m")
    assert table.schema == SAMPLES
    rows = table.to_pylist()
    for component in ("q", "down"):
        everything = population(heavy, component)
        mine = [r for r in rows if r["component"] == component]
        ordered = np.sort(np.array(list(everything.values())))
        borders = [ordered[round(p * (len(ordered) - 1))] for p in BORDERS]
        stratum = {place: STRATA[sum(score > b for b in borders)] for place, score in everything.items()}
        assert [r["stratum"] for r in mine] == [stratum[r["tensor"], r["flat"]] for r in mine]
        top = set(sorted(everything, key=everything.__getitem__)[len(everything) - quota // 2 :])
        certain = top
        assert {(r["tensor"], r["flat"]) for r in mine if r["inclusion"] == 1.0} >= certain
        rest = Counter(s for place, s in stratum.items() if place not in certain)
        drawn = [r for r in mine if (r["tensor"], r["flat"]) not in certain]
        quotas = {name: quota - quota // 2 if name == STRATA[-1] else quota for name in STRATA}
        assert Counter(r["stratum"] for r in drawn) == {s: min(quotas[s], n) for s, n in rest.items() if n}
        assert all(r["inclusion"] == min(1.0, quotas[r["stratum"]] / rest[r["stratum"]]) for r in drawn)
    assert len(set(places(table))) == table.num_rows
    assert ("t0", 11) not in places(table)


@pytest.mark.parametrize("components", [("q", "t2"), ("q", "t[02]*", "t*"), ("t*",)])
def test_a_weight_that_is_asked_for_by_component_and_by_name_is_drawn_once(heavy, components):
    names = tuple(f"{c}.weight" if c.startswith("t") else c for c in components)
    for tensor in heavy.tensors:
        object.__setattr__(tensor, "name", f"{tensor.name}.weight")
    table = sample(heavy, "mine", 96, seed=3, components=names)
    assert len(set(places(table))) == table.num_rows
    every = {t.name for t in heavy.tensors} if "t*" in components else {"t2.weight"}
    true = {p for c in ("q", "down") for p in population(heavy, c) if c in components or p[0] in every}
    assert set(places(table)) <= true
    assert sum(1 / p for p in table["inclusion"].to_pylist()) == pytest.approx(len(true))


@pytest.mark.parametrize("n", [24, 25, 31, 48])
def test_a_sample_is_as_large_as_asked_for_and_the_remainder_goes_to_the_top(heavy, n):
    table = sample(heavy, "mine", n, seed=3, components=("q", "down"))
    assert table.num_rows == n
    counts = Counter(table["stratum"].to_pylist())
    assert sorted(counts.values()) == [counts[s] for s in STRATA]
    assert min(counts.values()) >= n // 24 * 2


def test_no_stratum_goes_without(heavy):
    counts = Counter(sample(heavy, "mine", 1, seed=3, components=("q",))["stratum"].to_pylist())
    assert counts == dict.fromkeys(STRATA, 1)


def test_a_row_says_all_that_is_known_of_its_weight(heavy):
    for row in sample(heavy, "mine", 100, seed=1, components=("q",), model="m").to_pylist():
        index = int(row["tensor"][1:])
        tensor, score = heavy.tensors[index], float(heavy.of("mine", index)[row["flat"]])
        assert row["weight"] == float(tensor.flat_weights()[row["flat"]]) != 0
        assert (row["metrics"], row["scores"]) == (["mine", "other"], [score, 2 * score])
        assert (row["gradient"], row["curvature"], row["layer"]) == (-score, None, tensor.layer)
        assert row["flat"] == row["row"] * tensor.shape[1] + row["col"]
        assert (row["model"], row["seed"], row["metric"], row["component"]) == ("m", 1, "mine", "q")


def test_draws_are_uniform_within_a_stratum(heavy):
    everything = population(heavy, "q")
    counts, times = Counter(), 400
    for seed in range(times):
        counts.update(places(sample(heavy, "mine", 12 * 40, seed=seed, components=("q",))))
    rows = sample(heavy, "mine", 12 * 40, seed=0, components=("q",)).to_pylist()
    middle = [r for r in rows if r["stratum"] == "0.4-0.5"]
    p = middle[0]["inclusion"]
    ordered = sorted(everything, key=everything.__getitem__)
    n = len(ordered)
    inside = np.array([counts[place] for place in ordered[int(0.41 * n) : int(0.49 * n)]])
    assert inside.mean() == pytest.approx(times * p, rel=0.03)
    assert inside.var() == pytest.approx(times * p * (1 - p), rel=0.25)
    tensors = Counter(r["tensor"] for r in middle)
    assert len(tensors) == 3  # every tensor that holds the component


def test_a_larger_sample_holds_the_smaller_one_and_seeds_differ(heavy):
    drawn = {n: set(places(sample(heavy, "mine", n, seed=0, components=("q",)))) for n in (24, 240)}
    assert drawn[24] < drawn[240]
    assert set(places(sample(heavy, "mine", 240, seed=1, components=("q",)))) != drawn[240]


def test_the_sample_does_not_depend_on_how_scores_are_stored_or_come_in_pieces(heavy, monkeypatch):
    table = sample(heavy, "mine", 300, seed=5, components=("down", "q"))
    rows = sorted(table.to_pylist(), key=lambda r: (r["tensor"], r["flat"]))
    monkeypatch.setattr(streaming, "CHUNK", 137)
    monkeypatch.setattr(streaming, "STRETCH", 450)
    other = Fake(heavy.tensors[::-1], [v.clone() for v in heavy._values[::-1]])
    other_rows = sample(other, "mine", 300, seed=5, components=("q", "down")).to_pylist()
    assert rows == sorted(other_rows, key=lambda r: (r["tensor"], r["flat"]))


def test_the_sample_is_pinned(heavy):
    found = places(sample(heavy, "mine", 12, seed=0, components=("q",)))
    first, second = (221, 889, 1324, 1566), (148, 183, 983, 1006, 1691, 1756, 1783, 1875)
    assert found == [("t0", flat) for flat in first] + [("t2", flat) for flat in second]


def test_equal_scores_are_low_and_the_highest_is_still_in():
    tensor = a_tensor("t", 0, (20, 50), "up")
    values = torch.zeros(1000)
    values[7] = 3.0
    rows = sample(Fake([tensor], [values]), "mine", 48, seed=0, components=("up", "router")).to_pylist()
    assert {r["stratum"] for r in rows if r["flat"] != 7} == {"0.0-0.1"}
    assert [r["stratum"] for r in rows if r["flat"] == 7] == [STRATA[-1]]


def test_a_sample_of_nothing_is_refused(heavy):
    with pytest.raises(EsaError, match="no non-zero weights of the components router"):
        sample(heavy, "mine", 10, seed=0, components=("router",))
    with torch.no_grad():
        for tensor in heavy.tensors:
            tensor.flat_weights().zero_()
    with pytest.raises(EsaError, match="no non-zero weights"):
        sample(heavy, "mine", 10, seed=0, components=("q",))


def scored(model, windows):
    """Scores with the exact gradient, and the curvature where it is asked for, of a model's block matrices."""
    tensors = [t for t in catalogue(model).tensors if t.layer is not None and len(t.shape) > 1]
    gradients = window_gradients(model, [t.name for t in tensors], windows)
    statistics = {"gradient": {i: torch.from_numpy(g.sum(0)).float() for i, g in enumerate(gradients)}}
    return Scores(tensors, statistics, tokens=windows[:, 1:].size)


@pytest.fixture
def census(request):
    model, windows = tiny(getattr(request, "param", "llama")), random_windows(4, 10)
    drawn = sample(scored(model, windows), "grad_x_weight", N, seed=0, components=("q", "down"), model="tiny")
    # Calibrated and evaluated on the same windows, predictions can be held against the truth.
    return SimpleNamespace(model=model, windows=windows, drawn=drawn, resumable=Resumable(model, windows))


def test_the_single_weight_sample_measures_what_full_forwards_measure_and_leaves_the_model(census):
    before = state_bits(census.model)
    table = measure(catalogue(census.model), census.resumable, census.drawn, null_every=1)
    assert state_bits(census.model) == before
    assert table.schema == FIDELITY
    rows = table.to_pylist()
    assert Counter(r["edit"] for r in rows) == dict.fromkeys(("zero", "sign_flip", "null_edit"), census.drawn.num_rows)
    assert [r["layer"] for r in rows] == sorted(r["layer"] for r in rows)
    intact, factor = np.array(evaluate(census.model, census.windows).nll), {"zero": 0, "sign_flip": -1, "null_edit": 1}
    for row in rows:
        model = copy.deepcopy(census.model)
        with torch.no_grad():
            model.get_parameter(row["tensor"]).view(-1)[row["flat"]] *= factor[row["edit"]]
        full = np.array(evaluate(model, census.windows).nll) - intact
        assert row["delta_nll"] == pytest.approx(full, abs=2e-5)
        assert row["tokens"] == [9] * 4


# GPT-2 computes in float64 throughout; Llama's norms go through float32, too coarse to take differences of.
@pytest.mark.parametrize("census", ["gpt2"], indirect=True)
def test_first_order_is_the_slope_that_central_differences_find(census):
    twin = copy.deepcopy(census.model).double()

    def loss(row, value):
        weights = twin.get_parameter(row["tensor"]).view(-1)
        old = float(weights[row["flat"]])
        weights[row["flat"]] = value
        total = sum(float(summed_nll(twin, window)) for window in census.windows)
        weights[row["flat"]] = old
        return total / (9 * 4)

    for row in measure(catalogue(census.model), census.resumable, census.drawn).to_pylist():
        step = {"zero": -1, "sign_flip": -2}.get(row["edit"], 0) * row["weight"]
        if row["edit"] == "null_edit":
            assert row["first_order"] == 0  # the weight stays as it is
            continue
        slope = (loss(row, row["weight"] + 1e-5) - loss(row, row["weight"] - 1e-5)) / 2e-5
        assert row["first_order"] == pytest.approx(slope * step, rel=1e-4, abs=1e-8)
        assert row["second_order"] is None
        assert sum(row["delta_nll"]) / sum(row["tokens"]) == pytest.approx(
            loss(row, row["weight"] + step) - loss(row, row["weight"]), abs=1e-6
        )


def test_second_order_adds_half_the_curvature_times_the_square_of_the_step(census):
    rows = [r | {"gradient": 3.0, "curvature": 5.0} for r in census.drawn.to_pylist()]
    known = type(census.drawn).from_pylist(rows, schema=SAMPLES)
    for row in measure(catalogue(census.model), census.resumable, known, null_every=0).to_pylist():
        step = {"zero": -1, "sign_flip": -2}[row["edit"]] * row["weight"]
        assert row["first_order"] == pytest.approx(3 * step)
        assert row["second_order"] == pytest.approx(3 * step + 2.5 * step**2)


def test_a_planted_super_weight_has_the_largest_effect_and_is_in_the_sample():
    model, windows = with_planted_super_weight()
    scores = scored(model, windows[:3])
    # Gate and up drive the spike that the planted weight carries, so they can do as much: not asked here.
    drawn = sample(scores, "magnitude", 60, seed=0, components=("down", "q", "k", "v", "o"))
    assert (PLANTED[0], catalogue(model)[PLANTED[0]].index(*PLANTED[1:])) in places(drawn)
    rows = measure(catalogue(model), Resumable(model, windows[3:]), drawn).to_pylist()
    worst = max(rows, key=lambda r: abs(sum(r["delta_nll"])))
    assert (worst["tensor"], worst["row"], worst["col"], worst["edit"]) == (*PLANTED, "sign_flip")
    zeroed = sorted(abs(sum(r["delta_nll"])) for r in rows if r["edit"] == "zero")
    assert zeroed[-1] > 3 * zeroed[-2]


def test_null_edits_stand_at_every_fourth_weight_and_are_noise(census):
    rows = measure(catalogue(census.model), census.resumable, census.drawn).to_pylist()
    null = [r for r in rows if r["edit"] == "null_edit"]
    assert len(null) == -(-census.drawn.num_rows // 4)
    assert max(abs(d) for r in null for d in r["delta_nll"]) < 1e-5
    bare = measure(catalogue(census.model), census.resumable, census.drawn, ("zero",), null_every=0)
    assert set(bare["edit"].to_pylist()) == {"zero"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.3, -0.3, 1e-7, -6e4])
def test_a_nudge_is_one_unit_in_the_last_place_towards_zero_and_is_taken_back(dtype, value):
    model = tiny("llama", dtype=dtype)
    tensor = catalogue(model)["model.layers.0.mlp.up_proj.weight"]
    tensor.flat_weights()[5] = value
    old, before = tensor.flat_weights()[5].clone(), state_bits(model)
    with nudged(tensor, 5):
        assert tensor.flat_weights()[5] == torch.nextafter(old.float(), torch.tensor(0.0)) or dtype != torch.float32
        assert abs(tensor.flat_weights()[5]) < abs(old)
        assert sum(a != b for a, b in zip(state_bits(model).values(), before.values(), strict=True)) == 1
    assert state_bits(model) == before
    with pytest.raises(ZeroDivisionError), nudged(tensor, 5):
        1 / 0
    assert state_bits(model) == before


def test_a_nudge_that_is_not_taken_back_is_an_error(monkeypatch):
    tensor = catalogue(tiny("llama"))["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(NotRestoredError), nudged(tensor, 5):
        monkeypatch.setattr(WeightTensor, "write", lambda *_: None)


def test_a_nudge_that_cannot_be_written_back_is_not_restored(monkeypatch):
    tensor, error = catalogue(tiny("llama"))["model.layers.0.mlp.up_proj.weight"], torch.OutOfMemoryError("CUDA")

    def write(*_):
        raise error

    with pytest.raises(NotRestoredError) as raised, nudged(tensor, 5):
        monkeypatch.setattr(WeightTensor, "write", write)
    assert raised.value.__cause__ is error


def test_a_nudge_says_how_far_it_went():
    tensor = catalogue(tiny("llama"))["model.layers.0.mlp.up_proj.weight"]
    old = tensor.flat_weights()[5].item()
    with nudged(tensor, 5) as step:
        assert step == tensor.flat_weights()[5].item() - old != 0


@pytest.mark.parametrize("edit", ["zero", "sign_flip", "null_edit"])
def test_a_single_weight_is_measured_with_as_few_questions_for_many_windows_as_for_few(edit):
    model, counts = tiny("gpt_neox"), []
    drawn = sample(scored(model, random_windows(2)), "grad_x_weight", 12, seed=0, components=("down",)).slice(0, 1)
    edits = () if edit == "null_edit" else (edit,)
    for n in (2, 12):
        resumable = Resumable(model, random_windows(n), 1)
        with questions() as asked:
            measure(catalogue(model), resumable, drawn, edits, null_every=0 if edits else 1)
        counts.append(asked)
    assert counts[0] == counts[1]
    assert counts[0].total() - counts[0]["numpy"] <= 4


def test_an_edit_that_the_single_weight_sample_does_not_know_is_refused(census):
    with pytest.raises(EsaError, match="no edit 'bit_flip'; give some of zero, sign_flip"):
        measure(catalogue(census.model), census.resumable, census.drawn, ("bit_flip",))


@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=11), st.lists(st.floats(0, 2.0**100, width=32), max_size=20))
@settings(deadline=None)
def test_a_score_is_above_a_border_where_it_is_above_the_border_in_single_precision(borders, scores):
    borders = np.sort(borders)
    near = [float(np.nextafter(np.float32(b), np.float32(to))) for b in borders for to in (0, 1e38)]
    values = np.array([*scores, *borders, *near], dtype=np.float32)
    rounded = torch.from_numpy(rounded_down(borders))
    wanted = [sum(float(v) > b for b in borders) for v in values]
    assert torch.bucketize(torch.from_numpy(values), rounded).tolist() == wanted
