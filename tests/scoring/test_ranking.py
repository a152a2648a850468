import itertools
from collections import Counter
from itertools import count

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.randomness import stream_key, uniform
from esa_ray.schema import RANKINGS, SCORE_STATS
from esa_ray.scoring import controls, streaming
from esa_ray.scoring import neighbours as looking
from esa_ray.scoring.controls import Members, control_sets, matched_k, random_k
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.neighbours import neighbours
from esa_ray.scoring.ranking import controls as drawn_controls
from esa_ray.scoring.ranking import rank, score_stats
from esa_ray.spec import ScoreSpec
from tests.tiny import (
    FAMILIES,
    HEAD,
    HEADS,
    HIDDEN,
    PLANTED,
    random_windows,
    summed_nll,
    tiny,
    window_gradients,
    with_planted_super_weight,
)

GROUPS = ("super", "random_k", "matched_k", "bottom_k")
ALL = ("attention", "ffn")


def scored(model, components=ALL, metrics=("magnitude",), windows=None):
    tensors = catalogue(model).select(ScoreSpec(components=components).components)
    return score_tensors(model, tensors, random_windows(3) if windows is None else windows, metrics)


def group(table, name: str) -> list[dict]:
    return [r for r in table.to_pylist() if r["group"] == name]


def pool_of(mode: str, tensor: str, layer: int | None) -> object:
    return {"global": None, "per_layer": layer, "per_tensor": tensor}[mode]


def everything_sorted(scores, mode: str, components, *, largest: bool) -> dict[object, list[tuple[str, int]]]:
    """Per pool all competing weights sorted by (|w|, tensor, flat), from the parameters alone."""
    pools: dict[object, list] = {}
    for number, tensor in enumerate(scores.tensors):
        names = tensor.locate(np.arange(tensor.size))["component"]
        for flat, w in enumerate(tensor.parameter.detach().flatten().tolist()):
            if names[flat] in components and (largest or w != 0):
                mine = pools.setdefault(pool_of(mode, tensor.name, tensor.layer), [])
                mine.append((-abs(w) if largest else abs(w), number, flat, tensor.name))
    return {pool: [(name, flat) for _, _, flat, name in sorted(rows)] for pool, rows in pools.items()}


def with_ties_and_zeros(family: str):
    model = tiny(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_((parameter * 10).round() / 8)  # a handful of values, many exactly 0
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("mode", ["per_layer", "per_tensor", "global"])
@pytest.mark.parametrize("components", [ALL, ("v", "down")])
def test_super_and_bottom_are_the_two_ends_of_the_whole_sorted_list(family, mode, components):
    scores = scored(with_ties_and_zeros(family), components)
    spec = ScoreSpec(metric="magnitude", mode=mode, components=components)
    table = rank(scores, spec, 6, GROUPS, seed=1)
    for name, largest in (("super", True), ("bottom_k", False)):
        wanted = everything_sorted(scores, mode, spec.components, largest=largest)
        found: dict[object, list] = {}
        for r in group(table, name):
            found.setdefault(pool_of(mode, r["tensor"], r["layer"]), []).append((r["rank"], r["tensor"], r["flat"]))
        assert {pool: sorted(rows) for pool, rows in found.items()} == {
            pool: [(i + 1, tensor, flat) for i, (tensor, flat) in enumerate(rows[:6])] for pool, rows in wanted.items()
        }


def test_bottom_k_holds_no_weight_that_is_exactly_zero():
    model = tiny("llama")
    down = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        down.view(-1)[:100] = 0.0
        down.view(-1)[100] = -0.0
        down.view(-1)[101] = -1e-30
    table = rank(scored(model, ("down",), ("grad_x_weight",)), ScoreSpec(components=("down",)), 5, GROUPS, seed=0)
    bottom = group(table, "bottom_k")
    assert len(bottom) == 10
    assert all(r["weight"] != 0 for r in bottom)
    assert next(r["flat"] for r in bottom if r["rank"] == 1 and r["layer"] == 0) == 101


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_say_what_the_model_says(family):
    model, windows = tiny(family), random_windows(3)
    scores = scored(model, ALL, ("grad_x_weight",), windows)
    table = rank(scores, ScoreSpec(), 4, GROUPS, seed=3, model="tiny")
    assert table.schema.equals(RANKINGS)
    names = [t.name for t in scores.tensors]
    gradients = dict(zip(names, window_gradients(model, names, windows), strict=True))
    parameters = dict(model.named_parameters())
    assert Counter(table["group"].to_pylist()) == dict.fromkeys(GROUPS, 4 * 2)
    for r in table.to_pylist():
        assert (r["model"], r["metric"], r["mode"], r["seed"]) == ("tiny", "grad_x_weight", "per_layer", 3)
        assert f".{r['layer']}." in r["tensor"]
        conv = family == "gpt2"
        place = (r["col"], r["row"]) if conv else (r["row"], r["col"])
        place = place if r["expert"] is None else (r["expert"], *place)
        w = float(parameters[r["tensor"]][place])
        assert r["weight"] == w == float(parameters[r["tensor"]].flatten()[r["flat"]])
        exact = abs(gradients[r["tensor"]].sum(0)[place] * w) / (3 * 9)
        assert r["score"] == pytest.approx(exact, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("mode", ["per_layer", "per_tensor", "global"])
@pytest.mark.parametrize("control", ["random_k", "matched_k"])
def test_controls_have_the_same_count_in_every_tensor_at_every_k_and_no_weight_in_common(family, mode, control):
    scores = scored(tiny(family), ALL, ("grad_x_weight",))
    table = rank(scores, ScoreSpec(mode=mode), 12, GROUPS, seed=5)
    supers, controls = group(table, "super"), group(table, control)
    for k in range(1, 13):
        counts = [Counter(r["tensor"] for r in rows if r["rank"] <= k) for rows in (supers, controls)]
        assert counts[0] == counts[1]
    keys = [{(r["tensor"], r["flat"]) for r in rows} for rows in (supers, controls)]
    assert len(keys[0]) == len(keys[1]) == len(supers)
    assert not keys[0] & keys[1]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("control", ["random_k", "matched_k"])
def test_controls_lie_in_the_same_part_of_a_fused_tensor_as_the_module_says(family, control):
    scores = scored(tiny(family), ALL, ("grad_x_weight",))
    table = rank(scores, ScoreSpec(mode="per_layer"), 12, GROUPS, seed=5)
    parts = [Counter((r["tensor"], r["component"]) for r in group(table, g)) for g in ("super", control)]
    assert parts[0] == parts[1]


@pytest.mark.parametrize("name", ["super", "bottom_k"])
def test_the_set_at_one_k_does_not_depend_on_the_largest_k_of_the_study(name):
    # Else two studies would give one cell_id to different weights. Drawn controls do depend on it, and so
    # their identity holds it: see test_grid.
    scores = scored(tiny("llama"), ALL, ("grad_x_weight",))
    spec = ScoreSpec(mode="global")
    small, large = (rank(scores, spec, k, GROUPS, seed=5) for k in (10, 300))
    chosen = [{(r["tensor"], r["flat"]) for r in group(t, name) if r["rank"] <= 10} for t in (small, large)]
    assert chosen[0] == chosen[1]


def test_controls_stay_among_the_components_asked_for():
    scores = scored(tiny("gpt2"), ("v",))
    table = rank(scores, ScoreSpec(metric="magnitude", components=("v",)), 20, GROUPS, seed=2)
    assert {r["component"] for r in table.to_pylist()} == {"v"}
    assert min(r["row"] for r in table.to_pylist()) >= 2 * HIDDEN


def test_seeds_draw_different_controls_and_one_seed_the_same():
    scores = scored(tiny("llama"))
    spec = ScoreSpec(metric="magnitude", mode="global")
    draws = [
        [(r["tensor"], r["flat"]) for r in group(rank(scores, spec, 20, GROUPS, seed=s), "random_k")] for s in (1, 2, 1)
    ]
    assert draws[0] == draws[2]
    assert len(set(draws[0]) & set(draws[1])) < 10


@pytest.mark.parametrize("control", ["random_k", "matched_k"])
def test_a_seed_has_as_many_sets_of_a_control_as_asked_and_the_first_is_the_only_one_of_before(control):
    scores = scored(tiny("gpt2"), ALL, ("grad_x_weight",))
    one, three = (rank(scores, ScoreSpec(), 12, GROUPS, seed=5, draws=draws) for draws in (1, 3))
    first = three.filter((pc.field("control_draw") == 0) | pc.field("control_draw").is_null())
    assert first.equals(one)
    supers = [(r["tensor"], r["rank"], r["component"]) for r in group(three, "super")]
    sets = [[r for r in group(three, control) if r["control_draw"] == draw] for draw in range(3)]
    for rows in sets:
        assert [(r["tensor"], r["rank"], r["component"]) for r in rows] == supers
        assert not {(r["tensor"], r["flat"]) for r in rows} & {(r["tensor"], r["flat"]) for r in group(three, "super")}
    weights = [{(r["tensor"], r["flat"]) for r in rows} for rows in sets]
    assert all(len(a & b) < len(a) / 2 for a, b in itertools.combinations(weights, 2))


def test_random_k_draws_every_other_weight_equally_often():
    tensor = catalogue(tiny("gpt2"))["transformer.h.0.attn.c_attn.weight"]
    eligible = tensor.weights_of(1)
    supers = eligible[[3, 60, 127]]
    counts = np.zeros(tensor.size)
    for seed in range(2500):
        counts[random_k(tensor, supers, Members(tensor, 1), seed)] += 1
    others = np.setdiff1d(eligible, supers)
    assert counts.sum() == counts[others].sum() == 3 * 2500
    assert stats.chisquare(counts[others]).pvalue > 1e-4


def drawn_like(tensor, supers, eligible, group, seed, taken) -> dict[int, int]:
    """Super weight → its control: draws in turn, each again until it is free and 0 just where the super weight is."""
    key, weights, found = stream_key(seed, group, tensor.name, int(eligible[0])), tensor.flat_weights(), {}
    for flat in supers.tolist():
        for counter in count():
            draw = int(eligible[int(uniform(key, np.array([counter]))[0] * len(eligible))])
            if draw not in taken and (weights[draw] == 0) == (weights[flat] == 0):
                break
        taken.add(draw)
        found[flat] = draw
    return found


def one_by_one(tensor, supers, eligible, seed) -> list[int]:
    """The definition of ``random_k``."""
    return list(drawn_like(tensor, supers, eligible, "random_k", seed, set(supers.tolist())).values())


def by_full_order(tensor, supers, eligible, seed, group="matched_k") -> list[int]:
    """The definition of ``matched_k``: all magnitudes but 0 in stable order, 32 neighbours on either side."""
    magnitude, taken = tensor.flat_weights().abs().float().numpy(), set(supers.tolist())
    zeros = drawn_like(tensor, supers[magnitude[supers] == 0], eligible, group, seed, taken)
    eligible = eligible[magnitude[eligible] > 0]
    order = np.argsort(magnitude[eligible], kind="stable")
    ordered, candidates = magnitude[eligible][order], eligible[order]
    chosen = []
    for flat in supers.tolist():
        if flat in zeros:
            chosen.append(zeros[flat])
            continue
        centre, width, near = int(np.searchsorted(ordered, magnitude[flat])), 32, []
        while not near:
            near = [i for i in candidates[max(0, centre - width) : centre + width].tolist() if i not in taken]
            width *= 2
        u = uniform(stream_key(seed, group, tensor.name), np.array([flat]))[0]
        chosen.append(near[int(u * len(near))])
        taken.add(chosen[-1])
    return chosen


FUSED = {
    "gpt2": "transformer.h.0.attn.c_attn.weight",
    "gpt_neox": "gpt_neox.layers.0.attention.query_key_value.weight",
    "phi3": "model.layers.0.self_attn.qkv_proj.weight",
    "mixtral": "model.layers.0.mlp.experts.gate_up_proj",
    "llama": "model.layers.0.mlp.down_proj.weight",
}


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("values", ["drawn", "ties", "bf16", "orders of magnitude"])
def test_controls_are_those_of_a_full_order_and_of_single_draws(family, values):
    model = with_ties_and_zeros(family) if values == "ties" else tiny(family)
    model = model.bfloat16() if values == "bf16" else model
    tensor = catalogue(model)[FUSED[family]]
    if values == "orders of magnitude":  # few weights a bin, and runs of bins far apart
        with torch.no_grad():
            tensor.flat_weights().pow_(5)
    rng = np.random.default_rng(0)
    for part in range(len(tensor.parts)):
        eligible = tensor.weights_of(part)
        largest = eligible[np.argsort(-tensor.flat_weights()[torch.from_numpy(eligible)].abs().float().numpy())]
        for n in (1, 7, len(eligible) // 4):
            for supers in (rng.permutation(eligible)[:n], largest[:n]):
                members = None if len(tensor.parts) == 1 else Members(tensor, part)
                assert random_k(tensor, supers, members, 5).tolist() == one_by_one(tensor, supers, eligible, 5)
                assert matched_k(tensor, supers, members, 5).tolist() == by_full_order(tensor, supers, eligible, 5)


@pytest.mark.parametrize("family", FUSED)
def test_further_sets_are_drawn_as_the_first_is_from_one_look_at_the_weights(family, monkeypatch):
    looked, near = [], controls.neighbours
    monkeypatch.setattr(controls, "neighbours", lambda *given: looked.append(given) or near(*given))
    tensor = catalogue(with_ties_and_zeros(family))[FUSED[family]]
    parts = [tensor.weights_of(part) for part in range(len(tensor.parts))]
    super_weights = np.concatenate([np.random.default_rng(2).permutation(each)[:5] for each in parts])
    ranks = np.arange(1, len(super_weights) + 1)
    picks = drawn_controls(tensor, 0, ranks, super_weights, ("matched_k",), 5, draws=3)
    assert len(picks) == 3 * len(parts)
    assert len(looked) == len(parts)
    for group, draw, _, r, chosen in picks:
        mine = super_weights[r - 1]
        (eligible,) = [each for each in parts if mine[0] in each]
        stream = f"{group} {draw}" if draw else group
        assert chosen.tolist() == by_full_order(tensor, mine, eligible, 5, stream)


@pytest.mark.parametrize(
    ("family", "name", "part", "supers", "drawn", "matched"),
    [
        ("llama", "model.layers.0.mlp.down_proj.weight", None, [375, 93, 212, 36, 214, 90],
         [18, 114, 292, 68, 360, 86],
         [[343, 124, 320, 366, 192, 113], [60, 94, 151, 195, 169, 37], [230, 229, 177, 301, 159, 106]]),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", 1, [265, 267, 741, 166, 602, 452],
         [355, 310, 116, 511, 702, 454],
         [[693, 213, 270, 318, 113, 64], [448, 221, 67, 548, 306, 173], [353, 749, 355, 747, 219, 502]]),
        ("mixtral", "model.layers.1.mlp.experts.gate_up_proj", 1, [2232, 1475, 1524, 1265, 2042, 2146],
         [669, 2159, 1338, 2302, 748, 2143],
         [[551, 1331, 2101, 701, 503, 545], [1977, 2274, 1978, 418, 1248, 492], [1207, 2120, 535, 436, 1401, 740]]),
    ],
    ids=["llama", "gpt2", "mixtral"],
)  # fmt: skip
def test_controls_in_a_model_without_zeros_are_the_ones_that_stored_studies_have(
    family, name, part, supers, drawn, matched
):
    tensor = catalogue(tiny(family))[name]
    members = None if part is None else Members(tensor, part)
    assert random_k(tensor, np.array(supers), members, 5).tolist() == drawn
    assert matched_k(tensor, np.array(supers), members, 5).tolist() == matched[0]
    sets = control_sets("matched_k", tensor, np.array(supers), members, 5, draws=3)
    assert [found.tolist() for found in sets] == matched


def with_few_left(alive: int, dtype: torch.dtype = torch.float32):
    """A 16 × 24 matrix in which so many weights aren't 0, in places and signs of zeros drawn anew."""
    tensor, rng = catalogue(tiny("llama").to(dtype))["model.layers.0.mlp.down_proj.weight"], np.random.default_rng(1)
    places = rng.permutation(tensor.size)
    with torch.no_grad():
        tensor.flat_weights()[torch.from_numpy(places[alive:])] = 0.0
        tensor.flat_weights()[torch.from_numpy(places[alive::2])] *= -1.0
    return tensor, places[:alive], places[alive:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("control", [random_k, matched_k])
@pytest.mark.parametrize("alive", [8, 9, 40, 192])
def test_no_control_is_zero_in_a_pruned_tensor_be_there_only_as_many_as_are_needed(control, alive, dtype):
    tensor, there, _ = with_few_left(alive, dtype)
    for seed in range(20):
        found = control(tensor, there[:4], None, seed).tolist()
        assert set(found) <= set(there[4:].tolist())
        assert len(set(found)) == 4


@pytest.mark.parametrize("control", [random_k, matched_k])
def test_fewer_weights_than_super_weights_and_controls_need_are_counted_without_the_zeros(control):
    tensor, there, _ = with_few_left(7)
    with pytest.raises(EsaError, match="holds 7 non-zero weights of a component, too few for 4 super weights"):
        control(tensor, there[:4], None, 1)


def test_the_few_weights_that_a_pruned_tensor_has_left_are_drawn_equally_often():
    tensor, there, _ = with_few_left(12)  # so few that they are listed
    counts = np.zeros(tensor.size)
    for seed in range(1500):
        counts[random_k(tensor, there[:3], None, seed)] += 1
    assert counts.sum() == counts[there[3:]].sum() == 3 * 1500
    assert stats.chisquare(counts[there[3:]]).pvalue > 1e-4


@pytest.mark.parametrize("control", [random_k, matched_k])
@pytest.mark.parametrize("gone", [2, 3, 6, 200])
def test_a_super_weight_that_is_zero_has_a_control_that_is_zero_while_there_are_others(control, gone):
    tensor, there, zeros = with_few_left(384 - gone)
    supers = np.array([there[0], zeros[0], there[1], zeros[1]])
    magnitude, found = tensor.flat_weights().abs().numpy(), control(tensor, supers, None, 3)
    assert len({*found.tolist(), *supers.tolist()}) == 8
    assert (magnitude[found[[0, 2]]] > 0).all()
    assert (magnitude[found[[1, 3]]] == 0).sum() == min(gone - 2, 2)


def test_a_weight_that_is_nan_is_not_taken_for_a_zero():
    tensor, there, _ = with_few_left(8)
    with torch.no_grad():
        tensor.flat_weights()[int(there[5])] = float("nan")
    drawn = random_k(tensor, there[:4], None, 0)
    assert sorted(drawn.tolist()) == sorted(there[4:].tolist())


@pytest.mark.parametrize("family", FUSED)
def test_members_are_the_weights_of_a_part_in_order(family):
    tensor = catalogue(tiny(family))[FUSED[family]]
    for part in range(len(tensor.parts)):
        members = Members(tensor, part)
        assert members[np.arange(len(members))].tolist() == tensor.weights_of(part).tolist()


def test_matched_k_sorts_no_more_than_the_neighbourhoods():
    tensor = catalogue(tiny("llama"))["model.layers.0.mlp.down_proj.weight"]
    weights = tensor.flat_weights()
    with torch.no_grad():  # four groups of 96 weights each, far apart
        weights.copy_((1 + torch.arange(len(weights)) % 96 / 1e5) * 16.0 ** (torch.arange(len(weights)) // 96))
    _, found = neighbours(Members(tensor), weights[90:91].numpy(), 32)
    assert set(range(90 - 32, 90 + 33)) <= set(found.tolist()) <= set(range(2 * 96))  # its own group, and the next


def neighbourhood(weights: np.ndarray, m: np.float32, reach: int) -> list[int]:
    """The definition: of the stable order of all magnitudes above 0 so many below m, and so many from m on."""
    order = np.argsort(np.abs(weights), kind="stable")
    order = order[weights[order] != 0]
    place = int(np.searchsorted(np.abs(weights)[order], m))
    return order[max(0, place - reach) : place + reach].tolist()


@pytest.mark.parametrize(
    "values", ["drawn", "bf16", "fp16", "steps", "steps and two others", "one value", "half zeros", "rows"]
)
@pytest.mark.parametrize("reach", [32, 128])
def test_neighbours_are_those_of_a_full_order_without_a_gap_whatever_the_sample_says(values, reach, monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK", 1 << 11)
    for module in (streaming, looking):
        monkeypatch.setattr(module, "STRETCH", 1 << 15)
    model = LlamaForCausalLM(LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=1, vocab_size=8))
    tensor = catalogue(model)["model.layers.0.mlp.down_proj.weight"]
    weights, generator = tensor.flat_weights(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        weights.normal_(generator=generator)
        if values == "bf16":
            weights.copy_(weights.bfloat16().float())
        if "steps" in values:  # each of thousands of weights
            weights.mul_(4).round_().div_(4)
        if values == "steps and two others":  # which no sample holds, next to 1.25 and 0.75
            weights[[70_003, 103_001]] = torch.tensor([1 + 3e-7, 0.5 + 1e-7])
        if values == "fp16":
            weights.copy_(weights.half().float())
        if values == "one value":
            weights.copy_(weights.sign())
        if values == "half zeros":
            weights.mul_(torch.rand(len(weights), generator=generator) < 0.5)
        if values == "rows":  # of scales that hardly overlap
            weights.view(256, 512).mul_(1.5 ** (torch.arange(256)[:, None] - 128))
    numbers = weights.numpy()
    alive = np.flatnonzero(numbers)
    ends = [np.abs(numbers).argmax(), alive[np.abs(numbers[alive]).argmin()]]
    magnitudes = np.abs(numbers[[*np.random.default_rng(0).choice(alive, 40), *ends]])
    ordered, found = neighbours(Members(tensor), magnitudes, reach)
    assert (ordered == np.abs(numbers[found])).all()
    for m in magnitudes:
        place = int(np.searchsorted(ordered, m))
        assert found[max(0, place - reach) : place + reach].tolist() == neighbourhood(numbers, m, reach)


def test_matched_k_takes_a_near_neighbour_in_magnitude():
    scores = scored(tiny("llama"), ("down",), ("grad_x_weight",))
    table = rank(scores, ScoreSpec(components=("down",)), 3, GROUPS, seed=0)
    for layer, tensor in enumerate(scores.tensors):
        magnitude = np.abs(tensor.parameter.numpy().ravel())
        place = stats.rankdata(magnitude, method="ordinal")
        pairs = [[r for r in group(table, g) if r["layer"] == layer] for g in ("super", "matched_k")]
        for s, m in zip(*(sorted(p, key=lambda r: r["rank"]) for p in pairs), strict=True):
            assert 1 <= abs(int(place[s["flat"]]) - int(place[m["flat"]])) <= 32


def test_matched_k_is_drawn_and_not_always_the_nearest():
    scores = scored(tiny("llama"), ("down",), ("grad_x_weight",))
    spec = ScoreSpec(components=("down",))
    firsts = {group(rank(scores, spec, 1, GROUPS, seed=s), "matched_k")[0]["flat"] for s in range(12)}
    assert len(firsts) > 4


@pytest.mark.parametrize("mode", ["per_layer", "per_tensor", "global"])
def test_more_weights_than_the_smallest_pool_holds_are_refused(mode):
    model = tiny("llama")
    scores = scored(model, ("k", "down"))
    sizes = {"per_tensor": 8 * 16, "per_layer": 8 * 16 + 16 * 24, "global": 2 * (8 * 16 + 16 * 24)}
    spec = ScoreSpec(metric="magnitude", mode=mode, components=("k", "down"))
    assert len(group(rank(scores, spec, sizes[mode], ("super",), seed=0), "super")) >= sizes[mode]
    with pytest.raises(EsaError, match="topk"):
        rank(scores, spec, sizes[mode] + 1, ("super",), seed=0)
    with pytest.raises(EsaError, match="topk"):
        rank(scores, spec, sizes[mode] // 2 + 1, ("super", "random_k"), seed=0)


def test_only_the_groups_asked_for_are_there():
    scores = scored(tiny("llama"))
    table = rank(scores, ScoreSpec(metric="magnitude"), 3, ("super",), seed=0)
    assert set(table["group"].to_pylist()) == {"super"}


@pytest.mark.parametrize("mode", ["per_layer", "per_tensor", "global"])
@pytest.mark.parametrize("metric", ["grad_x_weight", "grad_x_weight_abs", "grad_squared"])
def test_a_planted_super_weight_ranks_first(metric, mode):
    model, windows = with_planted_super_weight()
    table = rank(scored(model, ALL, (metric,), windows), ScoreSpec(metric=metric, mode=mode), 2, ("super",), seed=0)
    firsts = [r for r in table.to_pylist() if r["rank"] == 1 and r["layer"] == 1]
    firsts = [r for r in firsts if r["tensor"] == PLANTED[0]] if mode == "per_tensor" else firsts
    assert [(r["tensor"], r["row"], r["col"]) for r in firsts] == [PLANTED]


def test_the_planted_super_weight_is_one_without_it_the_loss_moves_most():
    model, windows = with_planted_super_weight()
    weight = model.model.layers[1].mlp.down_proj.weight.data

    def loss() -> float:
        with torch.no_grad():
            return sum(float(summed_nll(model, w)) for w in windows)

    def moved(row: int, col: int) -> float:
        old = float(weight[row, col])
        weight[row, col] = 0.0
        change = abs(loss() - intact)
        weight[row, col] = old
        return change

    intact = loss()
    others = [(r, c) for r in range(0, HIDDEN, 2) for c in (16, 17, 18)]
    assert moved(*PLANTED[1:]) > 5 * max(moved(r, c) for r, c in others)


def slices(family: str, tensor: str, parameter: np.ndarray) -> dict[tuple[str, int | None], np.ndarray]:
    """What is what in the fused tensors of the families, by the layout their papers and code give."""
    kv = 2 * HEAD
    if family == "gpt2":
        q, k, v = np.split(parameter, 3, axis=1)
        return {("q", None): q, ("k", None): k, ("v", None): v}
    if family == "gpt_neox":
        by_head = parameter.reshape(HEADS, 3, HEAD, HIDDEN)
        return {(c, None): by_head[:, i] for i, c in enumerate("qkv")}
    if "qkv" in tensor:
        return {("q", None): parameter[:HIDDEN], ("k", None): parameter[HIDDEN:-kv], ("v", None): parameter[-kv:]}
    if family == "phi3":
        gate, up = np.split(parameter, 2)
        return {("gate", None): gate, ("up", None): up}
    both = [np.split(expert, 2) for expert in parameter]
    return {(c, e): both[e][i] for e in range(len(both)) for i, c in enumerate(("gate", "up"))}


@pytest.mark.parametrize(
    ("family", "tensor"),
    [
        ("gpt2", "transformer.h.1.attn.c_attn.weight"),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value.weight"),
        ("phi3", "model.layers.1.self_attn.qkv_proj.weight"),
        ("phi3", "model.layers.1.mlp.gate_up_proj.weight"),
        ("mixtral", "model.layers.1.mlp.experts.gate_up_proj"),
    ],
)
def test_score_statistics_are_those_of_each_part_and_expert(family, tensor):
    model = tiny(family)
    table = score_stats(scored(model), ScoreSpec(metric="magnitude"), seed=4, model="tiny")
    assert table.schema.equals(SCORE_STATS)
    rows = {(r["component"], r["expert"]): r for r in table.to_pylist() if r["tensor"] == tensor}
    wanted = slices(family, tensor, dict(model.named_parameters())[tensor].double().numpy())
    assert rows.keys() == wanted.keys()
    for key, values in wanted.items():
        r, magnitude = rows[key], np.abs(values)
        assert (r["n"], r["layer"], r["seed"], r["metric"]) == (values.size, 1, 4, "magnitude")
        assert r["mean"] == pytest.approx(magnitude.mean(), rel=1e-9)
        assert r["std"] == pytest.approx(magnitude.std(), rel=1e-6)
        assert (r["min"], r["max"]) == (magnitude.min(), magnitude.max())


def test_score_statistics_cover_only_the_components_asked_for():
    table = score_stats(scored(tiny("gpt2"), ("v", "down")), ScoreSpec(metric="magnitude", components=("v",)), seed=0)
    assert [(r["component"], r["n"]) for r in table.to_pylist()] == [("v", HIDDEN * HIDDEN)] * 2
