"""Batched gradients of products, beside the window-by-window pass and gradients in float64."""

import copy
import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.modes import eval_mode
from esa_ray.scoring import gather, routing
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.gradients import WindowGradients, batch_nll, window_nll, zeros
from esa_ray.scoring.memory import activation_bytes, peak_bytes
from esa_ray.scoring.outer import ProductGradients, Rows
from esa_ray.scoring.products import Product, experts_one_by_one
from esa_ray.scoring.steps import batches, sizes
from esa_ray.scoring.uses import reached, uses
from tests.tiny import FAMILIES, HIDDEN, random_windows, summed_nll, tiny, window_gradients

MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "router")
STATISTICS = ("gradient", "gradient_abs", "gradient_square")
SCORES = ("grad_x_weight", "grad_x_weight_abs", "grad_squared")


def window_by_window(model, tensors, windows):
    """The oracle: every window alone, its gradients made by autograd."""
    totals = zeros(tensors, STATISTICS)
    with eval_mode(model), WindowGradients(model, tensors, totals), torch.enable_grad():
        for window in torch.as_tensor(windows):
            window_nll(model, window[None]).backward()
    return totals


def batched(model, tensors, windows, size):
    totals = zeros(tensors, STATISTICS)
    gradients = ProductGradients(model, tensors, totals)
    with eval_mode(model), gradients.around(), torch.enable_grad():
        for windows_BT in torch.as_tensor(windows).split(size):
            with gradients.of(windows_BT):
                loss = batch_nll(model, windows_BT)
            loss.backward()
    return totals


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_give_the_window_by_window_sums(family, size):
    model, windows = tiny(family), random_windows(7, 9)
    tensors = catalogue(model).select(MATRICES)
    wanted, found = window_by_window(model, tensors, windows), batched(model, tensors, windows, size)
    for name in STATISTICS:
        for tensor, one, other in zip(tensors, found[name], wanted[name], strict=True):
            scale = float(other.abs().max())
            assert scale > 0
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale, msg=f"{name} of {tensor.name}")


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_16_bit_models_gradients_are_never_rounded_to_16_bits(family):
    # What enters and leaves each matrix is 16 bits wide; all that is made of it is compared with float64.
    model, windows = tiny(family, dtype=torch.bfloat16), random_windows(6, 9)
    tensors = catalogue(model).select(MATRICES)
    found = batched(model, tensors, windows, 6)
    twin, seen = copy.deepcopy(model).requires_grad_(True), {}
    for name, module in twin.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            module.register_forward_hook(lambda _, a, y, n=name: seen.setdefault(n, []).append(a[0].detach()))
            module.register_full_backward_hook(lambda _, __, g, n=name: seen[n].append(g[0].detach()))
    batch_nll(twin, torch.as_tensor(windows)).backward()
    for index, tensor in enumerate(tensors):
        x, dy = (v.double().numpy() for v in seen[tensor.name.removesuffix(".weight")])
        g = np.einsum("bto,bti->bio" if tensor.transposed else "bto,bti->boi", dy, x)
        for name, wanted in (("gradient_square", (g**2).sum(0)), ("gradient_abs", np.abs(g).sum(0)),
                             ("gradient", g.sum(0))):  # fmt: skip
            np.testing.assert_allclose(found[name][index].numpy(), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_small_gradients_of_a_float16_model_do_not_vanish():
    windows = random_windows(4, 9)

    def weak(dtype):
        model = tiny("llama", dtype=dtype)
        with torch.no_grad():  # the loss hardly depends on the first blocks: gradients below 6e-8, float16's smallest
            for layer in model.model.layers:
                layer.self_attn.v_proj.weight.mul_(3e-4)
                layer.self_attn.o_proj.weight.mul_(3e-4)
        return model

    narrow, exact = weak(torch.float16), weak(torch.float16).float()
    tensors = catalogue(narrow).select(("q", "k"))
    found = score_tensors(narrow, tensors, windows, ["grad_x_weight_abs"])
    wanted = score_tensors(exact, catalogue(exact).select(("q", "k")), windows, ["grad_x_weight_abs"])
    unscaled = batched(narrow, tensors, windows, 4)["gradient_abs"]
    for index in range(len(tensors)):
        mine, truth = (
            float(found.of("grad_x_weight_abs", index).sum()),
            float(wanted.of("grad_x_weight_abs", index).sum()),
        )
        assert mine == pytest.approx(truth, rel=0.1)
    # What the loss scale is for.
    truth = [float(wanted.statistic("gradient_abs", i, slice(None)).sum()) for i in range(len(tensors))]
    assert max(abs(float(u.sum()) / t - 1) for u, t in zip(unscaled, truth, strict=True)) > 0.3


def test_a_loss_scale_that_proves_too_large_is_lowered(monkeypatch):
    model, windows = tiny("llama", dtype=torch.float16), random_windows(3, 9)
    tensors = catalogue(model).select(("q", "norm"))
    wanted = score_tensors(model, tensors, windows, ["grad_squared"])
    monkeypatch.setattr(gather, "uses", lambda *a: replace(uses(*a), scale=2.0**15))
    found = score_tensors(model, tensors, windows, ["grad_squared"])
    for index in range(len(tensors)):
        torch.testing.assert_close(
            found.of("grad_squared", index), wanted.of("grad_squared", index), rtol=1e-2, atol=1e-6
        )


def test_a_batchs_loss_is_the_sum_of_its_windows_and_so_is_its_gradient():
    model, windows = tiny("gpt2"), torch.as_tensor(random_windows(3, 11))
    logits = model(windows).logits.detach().requires_grad_(True)
    stand_in = lambda *_, **__: type("Output", (), {"logits": logits})  # noqa: E731
    mine = batch_nll(stand_in, windows, scale=4.0)
    (found,) = torch.autograd.grad(mine, logits)
    (wanted,) = torch.autograd.grad(window_nll(stand_in, windows), logits)
    assert float(mine) == pytest.approx(
        sum(float(summed_nll(tiny("gpt2").double(), w)) for w in windows.numpy()), rel=1e-6
    )
    torch.testing.assert_close(found, 4 * wanted, rtol=1e-5, atol=1e-6)
    (first,) = torch.autograd.grad(batch_nll(stand_in, windows, only=0), logits)
    assert (first[1:] == 0).all()
    torch.testing.assert_close(first[0], wanted[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_inside_blocks_are_multiplied_with_once_and_embeddings_and_norms_are_not(family):
    model = tiny(family)
    tensors = catalogue(model).tensors
    found = uses(model, tensors, torch.as_tensor(random_windows(2)))
    for index, tensor in enumerate(tensors):
        component = tensor.parts[0].component
        once = component in MATRICES or (component == "head")
        assert (index in found.once) == once, tensor.name
    assert found.scale == 1


def test_a_matrix_that_two_blocks_share_takes_a_pass_a_window_and_scores_right():
    model, windows = tiny("llama"), random_windows(5, 9)
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
    tensors = catalogue(model).select(("up", "down"))
    shared = next(i for i, t in enumerate(tensors) if "up" in t.name)
    assert shared not in uses(model, tensors, torch.as_tensor(windows)).once
    scores, wanted = score_tensors(model, tensors, windows, SCORES), window_by_window(model, tensors, windows)
    found = scores.of("grad_squared", shared) * scores.tokens
    torch.testing.assert_close(found, wanted["gradient_square"][shared].flatten(), rtol=1e-4, atol=1e-7)


def test_a_matrix_that_is_also_used_otherwise_is_not_multiplied_with_once():
    model = tiny("llama")
    layer = model.model.layers[0].mlp
    forward = layer.forward
    layer.forward = lambda x: forward(x) + 0.1 * layer.down_proj.weight.sum(1)
    tensors = catalogue(model).select(("up", "down"))
    found = uses(model, tensors, torch.as_tensor(random_windows(2)))
    assert {tensors[i].name for i in set(range(len(tensors))) - found.once} == {"model.layers.0.mlp.down_proj.weight"}


def test_rows_that_mix_windows_are_noticed():
    model = tiny("llama")
    layer = model.model.layers[0].mlp
    forward = layer.forward
    layer.forward = lambda x: forward(x.transpose(0, 1)).transpose(0, 1)  # tokens before windows
    tensors = catalogue(model).select(("up", "q"))
    found = uses(model, tensors, torch.as_tensor(random_windows(2)))
    assert {tensors[i].name for i in set(range(len(tensors))) - found.once} == {"model.layers.0.mlp.up_proj.weight"}


def test_routed_rows_are_put_in_order_of_their_windows():
    positions = torch.tensor([13, 2, 7, 0, 14, 6])  # windows of 5 tokens: 2, 0, 1, 0, 2, 1
    rows = Rows.routed(positions, windows=4, tokens=5)
    assert rows.sorted(positions).tolist() == [2, 0, 7, 6, 13, 14]
    assert rows.offsets.tolist() == [0, 2, 4, 6, 6]


def test_experts_of_a_batch_get_the_tokens_of_each_window():
    model, windows = tiny("mixtral"), torch.as_tensor(random_windows(3, 8))
    tensors = [t for t in catalogue(model).select(("down",)) if t.layer == 0]
    seen = []

    class Noting(ProductGradients):
        def _rows(self, product: Product) -> Rows:
            seen.append((product, super()._rows(product)))
            return seen[-1][1]

    with torch.no_grad(), experts_one_by_one(model), Noting(model, tensors, {}).of(windows):
        model(windows, use_cache=False)
    assert len(seen) == 3
    for product, rows in seen:
        bounds = rows.offsets.tolist()
        assert bounds[-1] == len(product.inputs)
        x = rows.sorted(product.inputs)
        # Window by window, an expert computes the same rows.
        for n, (a, b) in enumerate(pairwise(bounds)):
            alone = []

            class Alone(ProductGradients):
                def multiplied(self, product, into=alone):
                    into.append(product)
                    return product.run()

            with torch.no_grad(), experts_one_by_one(model), Alone(model, tensors, {}).of(windows[n : n + 1]):
                model(windows[n : n + 1], use_cache=False)
            mine = [p.inputs for p in alone if p.expert == product.expert]
            there = torch.cat(mine) if mine else x[:0]
            torch.testing.assert_close(x[a:b].sort(0).values, there.sort(0).values, rtol=1e-4, atol=1e-6)


def test_nothing_of_a_product_outlives_its_backward_pass():
    model, windows = tiny("llama"), torch.as_tensor(random_windows(2))
    tensors = catalogue(model).select(("down",))
    gradients, alive = ProductGradients(model, tensors, zeros(tensors, STATISTICS)), []
    multiplied = gradients.multiplied
    gradients.multiplied = lambda product: alive.append(weakref.ref(product)) or multiplied(product)
    with gradients.around(), torch.enable_grad():
        with gradients.of(windows):
            loss = batch_nll(model, windows)
        gc.collect()
        assert len(alive) == 2
        assert not any(ref() for ref in alive)
        loss.backward()


@pytest.mark.parametrize("n", [1, 2, 3, 16, 24, 200])
def test_batches_hold_all_windows_in_order_and_end_wherever_scores_are_looked_at(n):
    windows = torch.arange(n)[:, None]
    found = batches(windows, 8, at=(5,) if n > 5 else ())
    assert torch.cat(found).flatten().tolist() == list(range(n))
    assert max(map(len, found)) <= 8
    ends = set(np.cumsum([len(b) for b in found]).tolist())
    assert ends >= set(sizes(n)) | ({5} if n > 5 else set())


def test_where_a_batch_does_not_fit_with_one_block_fewer_windows_pass_together(monkeypatch):
    model, windows = tiny("llama"), random_windows(6, 9)
    tensors = catalogue(model).select(MATRICES)
    block = [t for t in tensors if t.layer == 0]

    def budget(n: int) -> int:
        return peak_bytes(block, 3, activation_bytes(model, tensors, torch.as_tensor(windows[:n])))

    shapes, real = [], gather.batch_nll
    monkeypatch.setattr(gather, "batch_nll", lambda m, w, **more: shapes.append(len(w)) or real(m, w, **more))
    wanted = score_tensors(model, tensors, windows, SCORES, batch_size=6)
    assert max(shapes) == 3  # six windows are looked at after three
    shapes.clear()
    found = score_tensors(model, tensors, windows, SCORES, batch_size=6, budget=budget(3) - 1)
    assert max(shapes) == 2
    for metric in SCORES:
        for index in range(len(tensors)):
            torch.testing.assert_close(found.of(metric, index), wanted.of(metric, index), rtol=1e-3, atol=1e-7)
    with pytest.raises(EsaError, match="memory budget"):
        score_tensors(model, tensors, windows, SCORES, batch_size=6, budget=budget(1) - 1)


class Pieces(nn.Linear):
    """A Linear that uses its weight otherwise than as one matrix, with the same result."""

    def forward(self, x):
        w, half, cols = self.weight, self.out_features // 2, self.in_features
        return {
            "rows apart": lambda: torch.cat([linear(x, w[:half]), linear(x, w[half:])], -1),
            "columns apart": lambda: linear(x[..., :8], w[:, :8]) + linear(x[..., 8:], w[:, 8:]),
            "tokens apart": lambda: torch.cat([linear(part, w) for part in x.split(6, dim=1)], 1),
            "turned round": lambda: linear(x, w.t().contiguous().t()),
            "merged": lambda: linear(x, linear(w, torch.eye(cols, dtype=w.dtype))),
            "by matmul": lambda: x @ w.t(),
            "by matmul in real passes": lambda: x @ w.t() if x.shape[1] > 8 else linear(x, w),
            "in real passes twice": lambda: linear(x, w) if x.shape[1] <= 8 else linear(x, w) / 2 + x @ w.t() / 2,
        }[self.how]()


def squares_of_exact_gradients(model, tensors, windows):
    return [(g**2).sum(0) for g in window_gradients(model, [t.name for t in tensors], windows)]


def assert_exact(model, tensors, windows, budget=None):
    scores = score_tensors(model, tensors, windows, ["grad_squared"], batch_size=4, budget=budget)
    for index, wanted in enumerate(squares_of_exact_gradients(model, tensors, windows)):
        found = scores.of("grad_squared", index).double().numpy() * scores.tokens
        np.testing.assert_allclose(found, wanted.ravel(), rtol=1e-3, atol=2e-5 * wanted.max())


USES = (
    "rows apart", "columns apart", "tokens apart", "turned round", "merged", "by matmul", "by matmul in real passes",
    "in real passes twice",
)  # fmt: skip


@pytest.mark.parametrize("budget", [None, 10**12])
@pytest.mark.parametrize("how", USES)
def test_a_matrix_that_is_used_in_pieces_or_turned_round_scores_right_all_the_same(how, budget):
    # Windows are longer than a trial's: tokens fall apart in real passes alone.
    model, windows = tiny("llama"), random_windows(5, 17)
    projection = model.model.layers[1].mlp.up_proj
    projection.__class__, projection.how = Pieces, how
    tensors = [t for t in catalogue(model).select(("up", "down")) if t.layer == 1]
    assert_exact(model, tensors, windows, budget)


class Routed(nn.Module):
    """A mixture of an MLP's copies, each of which computes on the tokens that it is given, picked in some way."""

    def __init__(self, mlp, how, attribute):
        super().__init__()
        setattr(self, attribute, nn.ModuleList(copy.deepcopy(mlp) for _ in range(3)))
        self.router, self.how, self.attribute = nn.Linear(HIDDEN, 3, bias=False), how, attribute
        with torch.no_grad():
            for number, expert in enumerate(getattr(self, attribute)):
                for parameter in expert.parameters():
                    parameter.add_(0.1 * number * torch.randn(parameter.shape, generator=torch.manual_seed(number)))
            self.router.weight.normal_(generator=torch.manual_seed(7))

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(flat).softmax(-1).topk(2, dim=-1)
        made = torch.zeros_like(flat)
        for number, expert in enumerate(getattr(self, self.attribute)):
            token, place = torch.where(chosen == number)
            by = weights[token, place, None]  # another gather, before the tokens' own
            if self.how == "index_select":
                mine = flat.index_select(0, token)
            elif self.how == "mask":
                mask = (chosen == number).any(-1)
                by, mine, token = weights[mask][chosen[mask] == number][:, None], flat[mask], torch.nonzero(mask)[:, 0]
            elif self.how == "picked twice":
                mine = flat[token.flip(0)][torch.arange(len(token)).flip(0)]
            elif self.how == "unfollowed":
                mine = torch.gather(flat, 0, token[:, None].expand(-1, flat.shape[-1]))
            else:
                mine = flat[None, token].reshape(-1, flat.shape[-1])
            made = made.index_add(0, token, expert(mine) * by)
        return made.view(x.shape)


@pytest.mark.parametrize("attribute", ["experts", "routed_experts"])
@pytest.mark.parametrize("how", ["plain", "index_select", "mask", "picked twice", "unfollowed"])
def test_experts_that_are_modules_get_the_rows_of_their_windows_however_tokens_are_picked(how, attribute):
    model, windows = tiny("llama"), random_windows(6, 11)
    model.model.layers[1].mlp = Routed(model.model.layers[1].mlp, how, attribute)
    model.requires_grad_(False)
    tensors = [t for t in catalogue(model).tensors if attribute in t.name]
    assert len(tensors) == 9
    assert_exact(model, tensors, windows)


def test_a_trial_sees_rows_that_are_taken_for_the_wrong_windows(monkeypatch):
    model = tiny("mixtral")
    tensors = catalogue(model).select(("gate", "up", "down"))
    windows = torch.as_tensor(random_windows(2))
    assert len(uses(model, tensors, windows).once) == len(tensors)
    for window in (0, 1):

        def all_of_one(positions, windows, tokens, window=window):
            return Rows([0, 0, len(positions)] if window else [0, len(positions), len(positions)])

        monkeypatch.setattr(Rows, "routed", staticmethod(all_of_one))
        assert not uses(model, tensors, windows).once


def test_positions_travel_row_by_row_and_are_lost_otherwise():
    batch, index = torch.randn(6, 4), torch.tensor([5, 1, 2])
    model = nn.Linear(4, 3)

    class Following(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            routing.follow(func, args, kwargs or {}, result, rows=6)
            return result

    with Following():
        picked = batch[index]
        kept = [torch.nn.functional.silu(picked) * picked.float(), *picked.chunk(2, -1), model(picked), picked[..., 1:],
                batch[None, index].reshape(-1, 4), torch.index_select(batch, 0, index)]  # fmt: skip
        lost = [
            picked.flip(0),
            picked.T,
            picked.cumsum(0),
            picked[..., None],
            batch[index, index % 4],
            batch + 1,
            picked.view(-1),
        ]
        again, part = picked[torch.tensor([2, 0])], picked[1:]
        masked = batch[torch.tensor([True, False, True, False, False, True])]
    assert all(torch.equal(routing.positions(t), index) for t in kept)
    assert all(routing.positions(t) is None for t in lost)
    assert routing.positions(again).tolist() == [2, 5]
    assert routing.positions(part).tolist() == [1, 2]
    assert routing.positions(masked).tolist() == [0, 2, 5]


def test_a_model_that_writes_into_what_a_matrix_gives_is_scored_as_autograd_does():
    # Products of more than two axes are views, which autograd would protect if a function of ours gave them as such.
    model, windows = tiny("llama"), random_windows(3)

    def in_place(mlp, x):
        hidden = mlp.gate_proj(x)
        hidden *= mlp.up_proj(x)
        return mlp.down_proj(hidden)

    for block in model.model.layers:
        block.mlp.forward = in_place.__get__(block.mlp)
    tensors = catalogue(model).select(("gate", "up", "down"))
    mine = score_tensors(model, tensors, windows, ["grad_squared"])
    reference = window_gradients(model, [t.name for t in tensors], windows)
    for index, gradients in enumerate(reference):
        wanted = (gradients**2).sum(0).ravel() / (3 * 9)
        np.testing.assert_allclose(mine.of("grad_squared", index), wanted, rtol=1e-3, atol=1e-6 * wanted.max())


def test_a_model_without_a_backward_pass_is_a_sentence():
    class OnlyForward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dx):
            raise AssertionError("train it, or leave it")

    model, windows = tiny("llama"), random_windows(2)
    model.model.norm.register_forward_hook(lambda m, a, y: OnlyForward.apply(y))
    tensors = catalogue(model).select(("down",))
    with pytest.raises(EsaError, match=r"gives no gradients \(train it, or leave it\); choose .* act_mag or magnitude"):
        score_tensors(model, tensors, windows, ["grad_squared"])
    assert score_tensors(model, tensors, windows, ["act_mag"]).of("act_mag", 0).max() > 0
    with pytest.raises(EsaError, match="gives no gradients"):
        reached(model, tensors, torch.from_numpy(windows))
