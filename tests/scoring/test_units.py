"""Scores, rankings and controls of units against dense sums in float64 and brute force."""

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from scipy.stats import chisquare

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.units import Units
from esa_ray.scoring import streaming
from esa_ray.scoring.chosen_units import chosen_units_and_known, unit_of
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.ranking import rank
from esa_ray.scoring.unit_controls import Urn, control
from esa_ray.scoring.unit_ranking import UnitRanking
from esa_ray.spec import UNITS, ScoreSpec, Subset
from tests.tiny import HIDDEN, random_windows, tiny, window_gradients

FAMILIES = ["gpt2", "llama", "phi3", "mixtral", "gpt_neox"]
WINDOWS = random_windows(3)
MANY = [unit for unit in UNITS if unit != "weight"]


def ranked(model, metrics, *, gradients=False, **score):
    spec = ScoreSpec(**score)
    found = catalogue(model)
    scores = score_tensors(model, found.select(spec.components), WINDOWS, metrics)
    families = Units(model, found, spec.unit, spec.components).families
    return UnitRanking(scores, families, spec, gradients)


def members(ranking, values):
    """For every family and unit, what ``values`` (by tensor, flat) has at the unit's weights."""
    return [
        [np.concatenate([values[name][flat] for name, flat in family.weights(i).items()]) for i in range(len(family))]
        for family in ranking.families
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unit", MANY)
def test_the_joint_score_by_gradients_is_the_first_order_change_of_zeroing_the_whole_unit(family, unit):
    model = tiny(family)
    ranking = ranked(model, ["grad_x_weight"], unit=unit)
    tensors = ranking.scores.tensors
    gradients = window_gradients(model, [t.name for t in tensors], WINDOWS)
    exact = {
        t.name: (g.sum(0).ravel() * t.flat_weights().double().numpy()) / ranking.scores.tokens
        for t, g in zip(tensors, gradients, strict=True)
    }
    for found, mine in zip(ranking.scored.values, members(ranking, exact), strict=True):
        np.testing.assert_allclose(found, [abs(m.sum()) for m in mine], rtol=2e-4, atol=2e-7)


COMBINED = [
    ("grad_x_weight", "sum", np.sum), ("grad_x_weight", "largest", np.max), ("act_mag", "joint", np.linalg.norm),
    ("act_mag", "sum", np.sum), ("magnitude", "joint", np.linalg.norm), ("magnitude", "largest", np.max),
    ("grad_squared", "joint", np.sum), ("grad_x_weight_abs", "largest", np.max),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "combine", "by_hand"), COMBINED)
@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_every_way_to_combine_is_that_of_its_members_scores(family, metric, combine, by_hand):
    ranking = ranked(tiny(family), [metric], metric=metric, unit="neuron", combine=combine)
    scores = {t.name: ranking.scores.of(metric, i).double().numpy() for i, t in enumerate(ranking.scores.tensors)}
    weights = {t.name: t.flat_weights().double().numpy() for t in ranking.scores.tensors}
    for found, mine in zip(ranking.scored.values, members(ranking, scores), strict=True):
        np.testing.assert_allclose(found, [by_hand(m) for m in mine], rtol=1e-12)
    for found, mine in zip(ranking.scored.norms, members(ranking, weights), strict=True):
        np.testing.assert_allclose(found, [np.linalg.norm(m) for m in mine], rtol=1e-12)


def test_wandas_joint_score_of_a_column_is_the_norm_of_all_that_it_adds_to_the_output():
    model = tiny("llama")
    ranking = ranked(model, ["act_mag"], metric="act_mag", unit="col", components=("down",))
    layer, seen = model.model.layers[1].mlp.down_proj, []
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1).double()))
    model(torch.as_tensor(WINDOWS))
    added = [torch.linalg.norm(torch.outer(seen[0][:, j], layer.weight[:, j].double())) for j in range(24)]
    np.testing.assert_allclose(ranking.scored.values[1], torch.stack(added).numpy(), rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("unit", ["row", "col"])
def test_scores_are_the_same_however_the_weights_are_cut_as_they_stream_by(family, unit, monkeypatch):
    whole = ranked(tiny(family), ["grad_x_weight"], unit=unit).scored
    monkeypatch.setattr(streaming, "STRETCH", 100)
    monkeypatch.setattr(streaming, "CHUNK", 40)
    pieces = ranked(tiny(family), ["grad_x_weight"], unit=unit).scored
    for a, b in zip(whole.values + whole.norms, pieces.values + pieces.norms, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("mode", ["global", "per_layer", "per_tensor"])
def test_an_ensemble_is_the_rank_product_of_its_members_units(mode):
    model, names = tiny("llama"), ["grad_x_weight", "act_mag"]
    ranking = ranked(model, names, metric="grad_x_weight+act_mag", unit="row", mode=mode)
    alone = [ranked(model, [name], metric=name, unit="row", mode=mode).scored.values for name in names]

    def pool(family):
        return {"global": 0, "per_layer": family.tensor.layer, "per_tensor": family.tensor.name}[mode]

    for number, family in enumerate(ranking.families[:9]):
        mine = [i for i, other in enumerate(ranking.families) if pool(other) == pool(family)]
        for unit in (0, len(family) - 1):
            logs = []
            for values in alone:
                every = np.concatenate([values[i] for i in mine])
                logs.append(np.log((1 + (every > values[number][unit]).sum()) / (len(every) + 1)))
            assert ranking.scored.values[number][unit] == pytest.approx(-np.mean(logs))


@pytest.mark.parametrize("unit", MANY)
def test_a_ranking_is_the_brute_force_order_and_names_each_units_place(unit):
    model = tiny("mixtral")
    ranking = ranked(model, ["grad_x_weight"], unit=unit)
    table = ranking.table(2, ("super", "bottom_k"), seed=1, model="m").to_pylist()
    assert unit_of(ranking.table(1, ("super",), seed=1)) == unit
    for layer in range(2):
        every = [
            (score, family, i) for family, values in zip(ranking.families, ranking.scored.values, strict=True)
            for i, score in enumerate(values) if family.tensor.layer == layer
        ]  # fmt: skip
        every.sort(key=lambda item: -item[0])
        for group, wanted in (("super", every[:2]), ("bottom_k", every[::-1][:2])):
            rows = [r for r in table if r["group"] == group and r["layer"] == layer]
            assert [r["rank"] for r in rows] == [1, 2]
            for row, (score, family, i) in zip(rows, wanted, strict=True):
                assert row["score"] == score
                assert (row["tensor"], row["expert"]) == (family.tensor.name, family.expert)
                assert (row["component"], row["members"]) == (family.component, family.members)
                place = family.tensor.locate(np.array([row["flat"]]))
                assert row["row"] == (place["row"][0] if unit == "row" else None)
                assert row["col"] == (place["col"][0] if unit == "col" else None)
                assert (row["number"], row["unit"]) == (i, unit)


def test_a_ranking_of_weights_says_so_and_is_the_same_as_ever():
    model = tiny("llama")
    scores = score_tensors(model, catalogue(model).select(("down",)), WINDOWS, ["magnitude"])
    table = rank(scores, ScoreSpec(metric="magnitude"), 2, ("super", "random_k"), seed=1)
    assert set(table["unit"].to_pylist()) == {"weight"}
    assert set(table["members"].to_pylist()) == {1}
    assert table["number"].null_count == table["gradients"].null_count == len(table)


def test_statistics_are_of_units_matrix_by_matrix():
    ranking = ranked(tiny("phi3"), ["magnitude"], metric="magnitude", unit="row")
    rows = {(r["tensor"], r["component"]): r for r in ranking.stats(seed=1).to_pylist()}
    for family, values in zip(ranking.families, ranking.scored.values, strict=True):
        row = rows[family.tensor.name, family.component]
        assert row["n"] == len(family)
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-6)
        assert row["max"] == pytest.approx(values.max(), rel=1e-6)


def urn(norms, supers, unit="row"):
    """An urn of a made-up family with so many rows."""
    model = tiny("llama")
    family = Units(model, catalogue(model), unit).families[1]
    wide = type(family)(unit, tuple(
        type(lines)(lines.tensor, lines.axis, np.arange(len(norms))[:, None]) for lines in family.lines[:1]
    ), None)  # fmt: skip
    return Urn(wide, np.asarray(norms, dtype=float), np.asarray(supers))


def test_random_controls_are_uniform_over_the_others():
    found = np.concatenate([control(urn(np.ones(12), [3, 7]), "random_k", seed) for seed in range(1500)])
    counts = np.bincount(found, minlength=12)
    assert counts[[3, 7]].tolist() == [0, 0]
    assert chisquare(np.delete(counts, [3, 7])).pvalue > 1e-3


def test_sets_of_a_seed_are_drawn_by_themselves_and_never_twice_the_same_unit():
    draws = [control(urn(np.ones(12), [3, 7, 1]), "random_k", 5, draw) for draw in range(4)]
    assert len({tuple(d.tolist()) for d in draws}) > 1
    assert all(len(set(d.tolist())) == 3 for d in draws)


@pytest.mark.parametrize("n", [12, 40, 200])
def test_matched_controls_are_among_the_nearest_in_norm_by_brute_force(n):
    norms = np.random.default_rng(n).lognormal(size=n)
    supers = np.array([4, 9, 0])
    near = {12: 1, 40: 2, 200: 8}[n]
    for seed in range(20):
        found = control(urn(norms, supers), "matched_k", seed).tolist()
        taken = set(supers.tolist())
        for unit, other in zip(supers.tolist(), found, strict=True):
            left = sorted((abs(norms[i] - norms[unit]), i) for i in range(n) if i not in taken)
            assert other in [i for _, i in left[:near]]
            taken.add(other)


def test_the_largest_controls_are_those_of_the_highest_norm_that_arent_super():
    norms = np.array([5.0, 9.0, 1.0, 8.0, 7.0, 2.0])
    assert control(urn(norms, [1, 2]), "largest_k", 3).tolist() == [3, 4]


@pytest.mark.parametrize("group", ["random_k", "matched_k", "largest_k"])
def test_only_a_unit_of_zeros_has_a_control_of_zeros(group):
    norms = np.array([0.0, 3.0, 0.0, 2.0, 1.0, 4.0, 0.0])
    for seed in range(10):
        first, second = control(urn(norms, [2, 3]), group, seed).tolist()
        assert first in (0, 6)
        assert norms[second] > 0


def test_too_few_units_for_controls_are_refused_by_name():
    with pytest.raises(EsaError, match="holds 4 heads of a kind, too few for 3 super heads"):
        control(urn(np.ones(4), [0, 1, 2], "head"), "random_k", 1)


@pytest.mark.parametrize("unit", MANY)
def test_controls_are_of_the_same_matrix_and_size_at_the_same_rank_and_never_super(unit):
    ranking = ranked(tiny("gpt2"), ["act_mag"], metric="act_mag", unit=unit)
    k = 2 if unit == "head" else 4
    table = ranking.table(k, ("super", "random_k", "matched_k", "largest_k"), seed=3, draws=2)
    rows = table.to_pylist()
    supers = {(r["tensor"], r["flat"]) for r in rows if r["group"] == "super"}
    for group, draws in (("random_k", (0, 1)), ("matched_k", (0, 1)), ("largest_k", (None,))):
        for draw in draws:
            mine = [r for r in rows if r["group"] == group and r["control_draw"] == draw]
            key = ("layer", "rank", "tensor", "component", "expert", "members")
            assert sorted([r[n] for n in key[:4]] for r in mine) == sorted(
                [r[n] for n in key[:4]] for r in rows if r["group"] == "super"
            )
            assert not supers & {(r["tensor"], r["flat"]) for r in mine}
            assert len({(r["tensor"], r["flat"]) for r in mine}) == len(mine) == len(supers)


def test_a_set_of_units_is_all_their_weights_with_their_own_gradients_and_their_units_scores():
    model = tiny("mixtral")
    ranking = ranked(model, ["grad_x_weight"], unit="neuron", gradients=True)
    table = ranking.table(2, ("super",), seed=1)
    units = Units(model, catalogue(model), "neuron")
    weights, known = chosen_units_and_known(units, table, "super", 2)
    assert sum(map(len, weights.values())) == pc.sum(table["members"]).as_py()
    index = {t.name: i for i, t in enumerate(ranking.scores.tensors)}
    squares = 0.0
    for name, flat in weights.items():
        assert len(set(flat.tolist())) == len(flat)
        exact = ranking.scores.signed("gradient", index[name], torch.as_tensor(flat)).numpy()
        np.testing.assert_array_equal(known[name].gradient.astype(np.float32), exact)
        assert set(known[name].score) <= set(table["score"].to_pylist())
        squares += (known[name].score ** 2).sum()
    norm = np.linalg.norm(np.concatenate([catalogue(model)[n].flat_weights().numpy()[f] for n, f in weights.items()]))
    assert known[name].weight_per_score == pytest.approx(norm / squares**0.5)
    down = next(name for name in weights if "down" in name)
    assert len(weights[down]) % HIDDEN == 0


def test_pairs_count_places_over_the_whole_set_whatever_the_pool():
    ranking = ranked(tiny("llama"), ["grad_x_weight"], unit="row")
    table = ranking.table(2, ("super", "random_k"), seed=1)
    units = Units(tiny("llama"), catalogue(tiny("llama")), "row")
    rows = sorted((r for r in table.to_pylist() if r["group"] == "super"), key=lambda r: -r["score"])
    assert len(rows) == 4

    def damaged(part):
        return {
            (name, flat) for name, mine in chosen_units_and_known(units, table, "super", 2, part)[0].items()
            for flat in mine.tolist()
        }  # fmt: skip

    def exact(*places):
        found = set()
        for place in places:
            family, number = units.find(rows[place - 1]["tensor"], rows[place - 1]["flat"])
            found |= {(name, f) for name, flat in family.weights(number).items() for f in flat.tolist()}
        return found

    assert damaged(Subset(kind="single", value=3)) == exact(3)
    assert damaged(Subset(kind="pair", value=1, other=4)) == exact(1, 4)
    with pytest.raises(RuntimeError, match="no weights of the set are its part single-5"):
        damaged(Subset(kind="single", value=5))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"combine": "sum"}, "--combine sum is of units of many weights"),
        ({"unit": "neuron", "components": ("attention",)}, "a neuron reaches over gate, up and down, and gate isn't"),
        ({"unit": "head", "components": ("q", "o")}, "a head reaches over q, k, v, o and attn_gate, and k isn't"),
        ({"unit": "neuron", "metric": "super_activation"}, "a neuron reaches over gate, up and down"),
    ],
)
def test_what_no_unit_has_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        ScoreSpec(**fields)


def test_a_k_larger_than_a_pool_is_refused_in_the_units_own_words():
    with pytest.raises(EsaError, match="k=5 is larger than layer 0, which holds 4 scored heads; lower --topk"):
        ranked(tiny("llama"), ["magnitude"], metric="magnitude", unit="head").table(5, ("super",), seed=1)
