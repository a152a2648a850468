"""Statistics of per-window gradients, against float64 gradients of every window by itself."""

import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from esa_ray.scoring import fold as folding
from esa_ray.scoring.fold import FOLDS, fold_plainly, fold_windows, tried_kernel
from tests.scoring.folds import DTYPES, SUBSETS, check, reference, rows, zeros


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_every_subset_of_statistics_is_that_of_exact_gradients(names, dtype):
    left, right, offsets = rows((40, 7), dtype), rows((40, 13), dtype, 1), [0, 16, 16, 17, 40]
    totals = zeros(names, 7, 13)
    fold_windows(totals, left, right, offsets)
    check(totals, reference(left, right, offsets))


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (5, 2), (3, 9), (13, 17)], ids=str)
def test_weights_of_any_shape_are_taken_tile_by_tile(shape, monkeypatch):
    monkeypatch.setattr(folding, "_TILE", 4)
    left, right, offsets = rows((6, shape[0])), rows((6, shape[1]), seed=1), [0, 2, 6]
    totals = zeros(FOLDS, *shape)
    fold_windows(totals, left, right, offsets)
    check(totals, reference(left, right, offsets))


def test_totals_are_added_to():
    left, right = rows((6, 3)), rows((6, 4), seed=1)
    totals = {name: torch.full((3, 4), 1000.0) for name in FOLDS}
    fold_windows(totals, left, right, [0, 6])
    wanted = reference(left, right, [0, 6])
    for name, total in totals.items():
        torch.testing.assert_close(total.double(), 1000 + wanted[name][0], rtol=0, atol=1e-4)


def test_a_gradient_is_never_rounded_to_16_bits():
    # 1 + 2⁻¹² isn't a number in bf16 or fp16.
    left, right = torch.tensor([[1.0], [2.0**-12]]), torch.ones(2, 1)
    for dtype in DTYPES:
        totals = zeros(FOLDS, 1, 1)
        fold_windows(totals, left.to(dtype), right.to(dtype), [0, 2])
        assert totals["gradient"].item() == totals["gradient_abs"].item() == 1 + 2.0**-12
        assert totals["gradient_square"].item() == 1 + 2.0**-11  # to the nearest in fp32


def test_the_scale_is_undone_in_fp32():
    # What fp16 holds only thanks to the scale, it wouldn't hold afterwards: 2⁻³⁰ is 0 there.
    left, right = torch.full((4, 3), 2.0**-10, dtype=torch.float16), torch.ones(4, 5, dtype=torch.float16)
    totals = zeros(FOLDS, 3, 5)
    fold_windows(totals, left, right, [0, 1, 4], scale=2.0**-20)
    assert (totals["gradient"] == 4 * 2.0**-30).all()
    assert (totals["gradient_abs"] == 4 * 2.0**-30).all()
    assert (totals["gradient_square"] == 10 * 2.0**-60).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_are_read_where_they_lie(dtype):
    left, right, offsets = rows((2, 10, 9), dtype)[1, :, 1::2], rows((6, 10), dtype, 1).T, [0, 5, 10]
    totals = {name: torch.zeros(3, 4, 6)[1] for name in FOLDS}  # one expert's
    assert not left.is_contiguous()
    fold_windows(totals, left, right, offsets)
    check(totals, reference(left, right, offsets))


def test_offsets_may_be_a_tensor():
    left, right, offsets = rows((12, 5)), rows((12, 6), seed=1), [0, 0, 5, 12, 12]
    listed, held = zeros(FOLDS, 5, 6), zeros(FOLDS, 5, 6)
    fold_windows(listed, left, right, offsets)
    fold_windows(held, left, right, torch.tensor(offsets))
    for name in FOLDS:
        assert torch.equal(listed[name], held[name])


def test_no_rows_add_nothing():
    totals = zeros(FOLDS, 5, 6)
    fold_windows(totals, torch.ones(0, 5), torch.ones(0, 6), [0, 0, 0])
    assert not any(total.any() for total in totals.values())


@pytest.mark.parametrize("offsets", [[0, 3], [1, 4], [0, 5]])
def test_windows_that_leave_rows_out_are_refused(offsets):
    with pytest.raises(ValueError, match="of 4 rows"):
        fold_windows(zeros(FOLDS, 2, 2), torch.ones(4, 2), torch.ones(4, 2), offsets)


@pytest.mark.parametrize("total", [torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 4)[:, ::2]])
def test_accumulators_of_another_kind_are_refused(total):
    with pytest.raises(ValueError, match="contiguous and in fp32"):
        fold_windows({"gradient": total}, torch.ones(4, 2), torch.ones(4, 2), [0, 4])


def test_without_triton_pytorch_folds_and_a_warning_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "esa_ray.scoring.kernels", raising=False)
    with pytest.warns(UserWarning, match="bfloat16 on cpu fold without the Triton kernel: .*triton"):
        assert tried_kernel(torch.device("cpu"), torch.bfloat16, FOLDS) is fold_plainly


@pytest.mark.parametrize(
    ("environment", "capability", "kernel"), [("0", (9, 0), False), ("1", (9, 0), True), ("1", (7, 5), False)]
)
def test_the_environment_turns_the_kernel_off(monkeypatch, environment, capability, kernel):
    monkeypatch.setenv("ESA_TRITON", environment)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(folding, "tried_kernel", lambda *_: "the kernel")
    route = folding._route.__wrapped__(torch.device("cuda:0"), torch.float32, frozenset(FOLDS))
    assert route == ("the kernel" if kernel else fold_plainly)


def test_a_poisoned_device_is_no_matter_of_the_kernel(monkeypatch):
    def fails(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(folding, "_disagreement", fails)
    monkeypatch.setitem(sys.modules, "esa_ray.scoring.kernels", SimpleNamespace(fold=None))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tried_kernel(torch.device("cpu"), torch.bfloat16, FOLDS)


def test_one_statistic_alone_has_the_bits_that_it_has_in_company():
    left, right, offsets = rows((64, 33)), rows((64, 65), seed=1), [0, 20, 64]
    together = zeros(FOLDS, 33, 65)
    fold_windows(together, left, right, offsets)
    for name in FOLDS:
        alone = zeros([name], 33, 65)
        fold_windows(alone, left, right, offsets)
        assert torch.equal(alone[name], together[name])


def test_windows_folded_call_by_call_have_the_bits_of_one_call():
    left, right, offsets = rows((40, 17)), rows((40, 19), seed=1), [0, 8, 9, 24, 40]
    together, one_by_one = zeros(FOLDS, 17, 19), zeros(FOLDS, 17, 19)
    fold_windows(together, left, right, offsets)
    for a, b in pairwise(offsets):
        fold_windows(one_by_one, left[a:b], right[a:b], [0, b - a])
    for name in FOLDS:
        assert torch.equal(together[name], one_by_one[name])


def test_the_other_way_of_storing_a_weight_is_the_transpose():
    left, right, offsets = rows((40, 17)), rows((40, 19), seed=1), [0, 10, 20, 30, 40]
    stored, transposed = zeros(FOLDS, 17, 19), zeros(FOLDS, 19, 17)
    fold_windows(stored, left, right, offsets)
    fold_windows(transposed, right, left, offsets)
    wanted = reference(left, right, offsets)
    check(stored, wanted)
    check({name: total.T for name, total in transposed.items()}, wanted)
