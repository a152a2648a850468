"""The Triton kernel against float64 gradients: on a CUDA device if there is one, else by Triton's interpreter.

Tolerances are those of ``test_fold.py``: fp32 sums of exact products, in any order.
"""

import os
import warnings

import pytest
import torch

from esa_ray.scoring import fold as folding
from esa_ray.scoring.fold import FOLDS, fold_plainly, fold_windows, tried_kernel
from tests.scoring.folds import DTYPES, SUBSETS, check, reference, rows, zeros

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
# The interpreter of older ones doesn't go with numpy 2.4.
pytest.importorskip("triton", minversion="3.8" if DEVICE.type == "cpu" else None)

from esa_ray.scoring import kernels  # noqa: E402


def folded(names, left, right, offsets, scale=1.0):
    """Totals of the kernel, in main memory."""
    totals = {name: t.to(DEVICE) for name, t in zeros(names, left.shape[1], right.shape[1]).items()}
    bounds = offsets.to(DEVICE) if isinstance(offsets, torch.Tensor) else offsets
    kernels.fold(totals, left.to(DEVICE), right.to(DEVICE), bounds, scale)
    return {name: total.cpu() for name, total in totals.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_every_subset_of_statistics_is_that_of_exact_gradients(names, dtype):
    left, right, offsets = rows((90, 7), dtype), rows((90, 13), dtype, 1), [0, 16, 16, 17, 90]
    check(folded(names, left, right, offsets), reference(left, right, offsets))


@pytest.mark.parametrize("shape", [(1, 1), (128, 64), (129, 65), (256, 30), (1030, 5), (1300, 200)], ids=str)
def test_weights_of_any_shape(shape):
    # 1300 × 200 has more tiles of rows than a group, and groups of different heights.
    left, right, offsets = rows((6, shape[0])), rows((6, shape[1]), seed=1), [0, 2, 6]
    check(folded(FOLDS, left, right, offsets), reference(left, right, offsets))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_are_read_where_they_lie(dtype):
    wide, tall = rows((2, 80, 9), dtype).to(DEVICE), rows((6, 80), dtype, 1).to(DEVICE)
    left, right, offsets = wide[1, :, 1::2], tall.T, [0, 70, 80]
    stacks = {name: torch.zeros(3, 4, 6, device=DEVICE) for name in FOLDS}
    kernels.fold({name: stack[1] for name, stack in stacks.items()}, left, right, offsets, 1.0)
    check({name: stack[1].cpu() for name, stack in stacks.items()}, reference(left.cpu(), right.cpu(), offsets))
    assert not any(stack[[0, 2]].any() for stack in stacks.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_is_never_rounded_to_16_bits(dtype):
    left, right = torch.tensor([[1.0], [2.0**-12]]).to(dtype), torch.ones(2, 1).to(dtype)
    totals = folded(FOLDS, left, right, [0, 2])
    assert totals["gradient"].item() == totals["gradient_abs"].item() == 1 + 2.0**-12
    assert totals["gradient_square"].item() == 1 + 2.0**-11  # to the nearest in fp32


def test_the_scale_is_undone_in_fp32():
    left, right = torch.full((4, 3), 2.0**-10, dtype=torch.float16), torch.ones(4, 5, dtype=torch.float16)
    totals = folded(FOLDS, left, right, [0, 1, 4], 2.0**-20)
    assert (totals["gradient"] == 4 * 2.0**-30).all()
    assert (totals["gradient_abs"] == 4 * 2.0**-30).all()
    assert (totals["gradient_square"] == 10 * 2.0**-60).all()


def test_offsets_may_lie_on_the_device():
    left, right, offsets = rows((12, 5)), rows((12, 6), seed=1), [0, 0, 5, 12, 12]
    check(folded(FOLDS, left, right, torch.tensor(offsets)), reference(left, right, offsets))


def test_no_rows_add_nothing():
    totals = folded(FOLDS, torch.ones(0, 5), torch.ones(0, 6), [0, 0, 0])
    assert not any(total.any() for total in totals.values())


def test_one_statistic_alone_has_the_bits_that_it_has_in_company():
    left, right, offsets = rows((140, 33)), rows((140, 65), seed=1), [0, 20, 140]
    together = folded(FOLDS, left, right, offsets)
    for name in FOLDS:
        assert torch.equal(folded([name], left, right, offsets)[name], together[name])


def test_windows_folded_call_by_call_have_the_bits_of_one_call():
    left, right = rows((140, 33), torch.bfloat16).to(DEVICE), rows((140, 65), torch.bfloat16, 1).to(DEVICE)
    together = folded(FOLDS, left, right, [0, 20, 140])
    one_by_one = {name: torch.zeros(33, 65, device=DEVICE) for name in FOLDS}
    for a, b in ((0, 20), (20, 140)):
        kernels.fold(one_by_one, left[a:b], right[a:b], [0, b - a], 1.0)
    for name in FOLDS:
        assert torch.equal(one_by_one[name].cpu(), together[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_kernel_that_is_right_is_used(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tried_kernel(DEVICE, dtype, FOLDS) is kernels.fold


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("gradient", lambda total: total.copy_(total.bfloat16())),
        ("gradient_abs", lambda total: total[-1, -1].zero_()),
        ("gradient_square", lambda total: total[0, 0].fill_(torch.nan)),
    ],
)
def test_a_kernel_that_is_wrong_is_not_used(name, spoil, monkeypatch):
    def wrong(totals, *others):
        fold_plainly(totals, *others)
        spoil(totals[name])

    monkeypatch.setattr(kernels, "fold", wrong)
    with pytest.warns(UserWarning, match="without the Triton kernel: the kernel is off by"):
        assert tried_kernel(DEVICE, torch.float32, FOLDS) is fold_plainly


def test_a_kernel_that_fails_is_not_used(monkeypatch):
    def fails(*_):
        raise RuntimeError("no C compiler\nfound")

    monkeypatch.setattr(kernels, "fold", fails)
    with pytest.warns(UserWarning, match="Triton kernel: RuntimeError: no C compiler$"):
        assert tried_kernel(DEVICE, torch.bfloat16, FOLDS) is fold_plainly


def test_memory_that_runs_out_says_nothing_about_the_kernel(monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(kernels, "fold", fails)
    with pytest.raises(torch.OutOfMemoryError):
        tried_kernel(DEVICE, torch.bfloat16, FOLDS)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plain", [False, True])
def test_a_device_folds_as_it_should(dtype, plain, monkeypatch):
    if plain:
        monkeypatch.setattr(folding, "_route", lambda *_: fold_plainly)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    left, right, offsets = rows((300, 513), dtype), rows((300, 260), dtype, 1), [0, 128, 256, 256, 300]
    totals = {name: torch.zeros(513, 260, device=DEVICE) for name in FOLDS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold_windows(totals, left.to(DEVICE), right.to(DEVICE), offsets)
    check({name: total.cpu() for name, total in totals.items()}, reference(left, right, offsets))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="no CUDA device")
def test_accumulators_in_main_memory_have_the_bits_of_those_on_the_device():
    left, right, offsets = rows((90, 40)).to(DEVICE), rows((90, 30), seed=1).to(DEVICE), [0, 30, 60, 90]
    held, near = zeros(FOLDS, 40, 30), {name: t.to(DEVICE) for name, t in zeros(FOLDS, 40, 30).items()}
    fold_windows(held, left, right, offsets)
    fold_windows(near, left, right, offsets)
    for name in FOLDS:
        assert torch.equal(held[name], near[name].cpu())
