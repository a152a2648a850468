"""Given weights: where they lie, what is drawn for them, and a set that only breaks the model together."""

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.models.naming import find_weight
from esa_ray.perturb.edit import perturbed
from esa_ray.scoring.chosen import EmptySubsetError, chosen, first_block
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.listing import listing
from esa_ray.spec import PerturbSpec, Subset, WeightList, WeightName
from tests.tiny import FAMILIES, PLANTED, random_windows, tiny, with_planted_super_weight

GROUPS = ("random_k", "matched_k")


def given(catalogue_, n=6, seed=0) -> WeightList:
    """n weights from all over a model, by name."""
    rng, weights = np.random.default_rng(seed), []
    for tensor in rng.choice(np.array(catalogue_.select(("q", "down")), dtype=object), n):
        place = tensor.locate(np.array([rng.integers(tensor.size)]))
        expert = place["expert"][0] if tensor.experts else None
        weights.append(WeightName(tensor=tensor.name, row=place["row"][0], col=place["col"][0], expert=expert))
    return WeightList(name="given", weights=tuple(dict.fromkeys(weights)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_listed_weight_is_the_one_of_its_name_and_its_controls_are_others_of_its_tensor(family):
    model = tiny(family)
    found = catalogue(model)
    weights = given(found)
    scores = score_tensors(model, found.select(("q", "down")), random_windows(2), ["grad_x_weight"])
    table = listing(scores, found, weights, GROUPS, seed=3).to_pylist()
    listed = sorted((r for r in table if r["group"] == "listed"), key=lambda r: r["rank"])
    assert [(r["tensor"], r["row"], r["col"], r["expert"]) for r in listed] == [
        (w.tensor, w.row, w.col, w.expert) for w in weights.weights
    ]
    for r in listed:
        assert r["weight"] == float(found[r["tensor"]].flat_weights()[r["flat"]])
        assert (r["mode"], r["score"]) == ("given", None)
        assert r["gradient"] is not None
    taken = {(r["tensor"], r["flat"]) for r in listed}
    for group in GROUPS:
        drawn = [r for r in table if r["group"] == group]
        assert {r["rank"]: (r["tensor"], r["component"]) for r in drawn} == {
            r["rank"]: (r["tensor"], r["component"]) for r in listed
        }
        assert not taken & {(r["tensor"], r["flat"]) for r in drawn}


def test_an_expert_must_be_named_where_a_tensor_holds_several():
    found = catalogue(tiny("mixtral"))
    tensor = next(t for t in found.tensors if t.experts)
    with pytest.raises(EsaError, match="say which"):
        find_weight(found, WeightName(tensor=tensor.name, row=0, col=0))
    with pytest.raises(EsaError, match="no expert 99"):
        find_weight(found, WeightName(tensor=tensor.name, row=0, col=0, expert=99))


def test_two_weights_that_are_harmless_alone_break_the_model_together():
    model, windows = with_planted_super_weight(-3.0)
    name, row, col = PLANTED
    mlp, twin = model.model.layers[1].mlp, col + 1
    with torch.no_grad():  # the same spike over a second path: the final norm makes up for the loss of one
        for projection in (mlp.gate_proj.weight, mlp.up_proj.weight):
            projection[twin] = projection[col]
        mlp.down_proj.weight[row, twin] = -3.0
    found = catalogue(model)
    both = WeightList(name="two", weights=tuple(WeightName(tensor=name, row=row, col=c) for c in (col, twin)))
    scores = score_tensors(model, found.select(("down",)), windows, ["magnitude"])
    table = listing(scores, found, both, (), seed=0)
    intact = sum(evaluate(model, windows).nll)

    def damage(part):
        with perturbed(found, chosen(table, "listed", 2, part), PerturbSpec(kind="zero"), 0):
            return (sum(evaluate(model, windows).nll) - intact) / (6 * 9)

    joint, singles = damage(None), [damage(Subset(kind="only", value=i)) for i in (1, 2)]
    assert all(0 < single < 0.02 for single in singles)
    assert joint > 0.9
    assert joint > 50 * sum(singles)


def test_a_part_without_weights_and_a_fraction_that_is_none_are_told_apart():
    model = tiny("llama")
    found = catalogue(model)
    scores = score_tensors(model, found.select(("q", "down")), random_windows(2), ["magnitude"])
    table = listing(scores, found, given(found), (), seed=0)
    with pytest.raises(EmptySubsetError):
        chosen(table, "listed", 6, Subset(kind="layer", value=77))
    with pytest.raises(EsaError, match="no whole weight"):
        chosen(table, "listed", 6, Subset(kind="all_but_first", value=0.01))
    layers = [r["layer"] for r in table.to_pylist()]
    assert first_block(table, "listed", 6) == min(layers)
    assert first_block(table, "listed", 6, Subset(kind="layer", value=1)) == 1
