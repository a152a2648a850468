import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from esa_ray.applications import masks
from esa_ray.applications.masks import largest, pruned
from esa_ray.errors import EsaError
from esa_ray.scoring.selection import keep


def random_scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_ties(*shape: int) -> torch.Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(1)).float()


def by_sorting(values: np.ndarray, n: int) -> np.ndarray:
    """The n smallest, of equal ones the last: those at the end of (score descending, index ascending)."""
    mask = np.zeros(values.size, dtype=bool)
    mask[np.lexsort((np.arange(values.size), -values.ravel()))[values.size - n :]] = True
    return mask.reshape(values.shape)


@pytest.mark.parametrize("make", [random_scores, with_ties])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_every_group_loses_its_smallest_as_a_sort_finds_them(make, sparsity):
    scores = [make(5, 12), make(7, 9), make(2, 3, 4)]
    rows, tensors, joint = (pruned(scores, sparsity, group) for group in masks.GROUPS)
    everything = np.concatenate([s.numpy().ravel() for s in scores])
    wanted = by_sorting(everything, math.floor(Fraction(str(sparsity)) * everything.size))
    np.testing.assert_array_equal(torch.cat([m.flatten() for m in joint]).numpy(), wanted)
    for each, row, tensor in zip(scores, rows, tensors, strict=True):
        n = math.floor(Fraction(str(sparsity)) * each.numel())
        np.testing.assert_array_equal(tensor.numpy(), by_sorting(each.numpy(), n))
        n = math.floor(Fraction(str(sparsity)) * each.shape[-1])
        by_hand = np.stack([by_sorting(line, n) for line in each.numpy().reshape(-1, each.shape[-1])])
        np.testing.assert_array_equal(row.numpy(), by_hand.reshape(each.shape))


def test_what_is_pruned_is_what_the_largest_leave_over():
    scores = with_ties(11, 13)
    kept = keep(scores.flatten(), 100, largest=True)
    mask = pruned([scores], 43 / 143, "tensor")[0].flatten()
    assert int(mask.sum()) == 43
    assert not mask[kept].any()


def test_magnitude_by_tensor_is_what_torch_prunes():
    layer = nn.Linear(40, 30)
    scores = layer.weight.detach().abs()
    prune.l1_unstructured(layer, "weight", amount=0.35)
    assert torch.equal(pruned([scores], 0.35, "tensor")[0], layer.weight_mask == 0)


def test_magnitude_over_a_model_is_what_torch_prunes_globally():
    layers = [nn.Linear(20, 30), nn.Linear(30, 10)]
    scores = [layer.weight.detach().abs() for layer in layers]
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=0.6)
    for mask, layer in zip(pruned(scores, 0.6, "joint"), layers, strict=True):
        assert torch.equal(mask, layer.weight_mask == 0)


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:2", 1, 2), ("3:4", 3, 4)])
@pytest.mark.parametrize("make", [random_scores, with_ties])
def test_a_pattern_takes_the_smallest_of_every_few_inputs(pattern, n, m, make):
    scores = make(6, 24)
    wanted = np.stack([by_sorting(part, n) for part in scores.numpy().reshape(-1, m)]).reshape(6, 24)
    np.testing.assert_array_equal(pruned([scores], None, "row", pattern)[0].numpy(), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_every_dtype_are_told_apart(dtype):
    scores = random_scores(40, 50).to(dtype)
    if dtype == torch.float64:  # differences below float32's
        scores = 1 + scores * 1e-12
    wanted = by_sorting(scores.double().numpy(), 700)
    np.testing.assert_array_equal(pruned([scores], 0.35, "tensor")[0].numpy(), wanted)


def test_chunks_change_nothing(monkeypatch):
    scores = [with_ties(9, 31), with_ties(4, 7)]
    whole = pruned(scores, 0.4, "joint")
    monkeypatch.setattr(masks, "CHUNK", 10)
    assert all(map(torch.equal, whole, pruned(scores, 0.4, "joint")))


def test_infinite_scores_and_signed_zeros_have_their_order():
    scores = torch.tensor([[-0.0, 0.0, math.inf, -math.inf]])
    for group in masks.GROUPS:
        assert pruned([scores], 0.5, group)[0].tolist() == [[False, True, False, True]]


def test_a_sparsity_counts_as_it_is_written():
    assert int(pruned([random_scores(1, 100)], 0.29)[0].sum()) == 29
    assert masks.count(0.7, 10) == 7


def test_each_tensor_may_have_a_sparsity_of_its_own():
    found = pruned([random_scores(4, 10), random_scores(4, 10)], [0.2, 0.7])
    assert [int(mask.sum()) for mask in found] == [8, 28]


def test_the_largest_are_counted_exactly_of_equal_ones_the_first():
    found = largest([torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 0.0])], 0.4)
    assert [mask.tolist() for mask in found] == [[False, True, True], [False, False]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([torch.ones(2, 10)], None, "row", "2:4"), "2:4 needs inputs in groups of 4, and 10 inputs leave 2 over"),
        (([torch.tensor([[1.0, math.nan]])], 0.5), "score tensor 0 holds NaN"),
        (([torch.ones(2, 4)] * 2, [0.5, 0.6], "joint"), "several sparsities can't share one group"),
        (([torch.ones(2, 4)], 0.6, "row", "2:4"), r"2:4 prunes 0\.5 of the weights, not 0\.6"),
        (([torch.ones(2, 4)], 0.5, "row", "4:2"), "'4:2' is no pattern"),
        (([torch.ones(2, 4)], 0.5, "layer"), "'layer' is no group"),
        (([torch.ones(2, 4)], 1.5), r"not 1\.5"),
        (([torch.ones(2, 4)],), "needs a sparsity"),
        (([torch.ones(2, 4)], [0.5, 0.5]), "2 sparsities don't fit 1 tensors"),
    ],
)
def test_what_makes_no_mask_is_refused(arguments, said):
    with pytest.raises(EsaError, match=said):
        pruned(*arguments)
