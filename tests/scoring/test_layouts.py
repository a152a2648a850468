"""Scores of models with every layout against dense references that know of no layout."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.products import experts_one_by_one
from esa_ray.spec import BLOCK_COMPONENTS
from tests.tiny import random_windows, summed_nll
from tests.tiny_layouts import CASES, VOCAB, tiny_layout

WINDOWS = random_windows(3, 12, vocab=VOCAB)


class Multiplied(TorchDispatchMode):
    """Every matrix product of a pass as torch's own kernels get it: the operand that lies in a parameter, and X."""

    def __init__(self, parameters):
        super().__init__()
        self.spans = {p.data_ptr(): (name, p.nbytes) for name, p in parameters}
        self.seen: dict[str, dict[tuple, tuple[torch.Tensor, list[torch.Tensor]]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            x, w = args[-2:]
            pairs = zip(x, w, strict=True) if x.dim() == 3 else [(x, w)]
            for mine, matrix in pairs:
                self.note(mine, matrix)
                self.note(matrix.T, mine.T)
        return func(*args, **(kwargs or {}))

    def note(self, x, matrix):
        at = matrix.data_ptr()
        for start, (name, size) in self.spans.items():
            if start <= at < start + size:
                key = (at - start, matrix.shape, matrix.stride())
                self.seen.setdefault(name, {}).setdefault(key, (matrix, []))[1].append(x.clone())


def act_mag(model) -> dict[str, torch.Tensor]:
    """|W_ij| · √(N/n) ‖X_j‖ of every parameter that some product is with, (in, out) as the kernel has it."""
    with torch.no_grad(), experts_one_by_one(model), Multiplied(model.named_parameters()) as multiplied:
        for window in WINDOWS:
            model(torch.as_tensor(window)[None], use_cache=False)
    found = {}
    for name, parameter in model.named_parameters():
        values = torch.zeros_like(parameter)
        for (offset, shape, stride), (matrix, inputs) in multiplied.seen.get(name, {}).items():
            x = torch.cat(inputs).double()
            x = x[x.any(1)] if name.endswith(("experts.gate_up_proj", "experts.down_proj")) else x
            norms = (x.square().sum(0) * WINDOWS.size / max(1, len(x))).sqrt()
            place = values.view(-1).as_strided(shape, stride, offset // values.element_size())
            place.copy_(matrix.abs() * norms[:, None])
        found[name] = values
    return found


@pytest.mark.parametrize("case", [c for c in CASES if c != "xlnet"])  # whose einsums copy their operands
def test_act_mag_is_what_the_kernels_multiply(case):
    model = tiny_layout(case)
    tensors = catalogue(model).select(BLOCK_COMPONENTS)
    scores, wanted = score_tensors(model, tensors, WINDOWS, ["act_mag"]), act_mag(model)
    for index, tensor in enumerate(tensors):
        found = scores.of("act_mag", index).view(tensor.parameter.shape)
        torch.testing.assert_close(found, wanted[tensor.name], rtol=1e-4, atol=1e-6)
        assert found.any() != ("encoder_attn" in tensor.name), tensor.name


def outputs(model) -> torch.Tensor:
    """What the attention of XLNet's first block gives out, (positions, channels), its norm left out."""
    seen: list[torch.Tensor] = []
    attention = model.transformer.layer[0].rel_attn
    with torch.no_grad(), attention.register_forward_hook(lambda *args: seen.append(args[-1][0].reshape(-1, 16))):
        for window in WINDOWS:
            model(torch.as_tensor(window)[None], use_cache=False)
    return torch.cat(seen)


def test_a_product_by_einsum_has_the_inputs_that_an_edit_shows():
    # Y = X·Wᵀ: a weight that is 1 larger adds a column of X to a column of Y.
    model = tiny_layout("xlnet")
    model.transformer.layer[0].rel_attn.layer_norm = nn.Identity()
    (tensor,) = (t for t in catalogue(model).select(("o",)) if t.layer == 0)
    found = score_tensors(model, [tensor], WINDOWS, ["act_mag"]).of("act_mag", 0)
    before = outputs(model)
    for col in (0, 5, 11):
        flat = tensor.index(3, col)
        weight = float(tensor.flat_weights()[flat])
        tensor.flat_weights()[flat] += 1
        change = outputs(model) - before
        tensor.flat_weights()[flat] -= 1
        assert set(torch.nonzero(change.abs().amax(0) > 1e-5).flatten().tolist()) == {3}
        assert float(found[flat]) == pytest.approx(abs(weight) * float(change[:, 3].norm()), rel=1e-4)


class ByHand(nn.Linear):
    """A product that is written out, as no recognised operation."""

    def forward(self, x):
        return (x.unsqueeze(-2) * self.weight).sum(-1)


def test_a_product_that_is_not_seen_is_an_error_that_names_the_matrix_and_never_zero():
    model = tiny_layout("olmo2")
    attention = model.model.layers[0].self_attn
    attention.o_proj = ByHand(16, 16, bias=False).requires_grad_(False)
    tensors = catalogue(model).select(("o",))
    scores = score_tensors(model, tensors, WINDOWS, ["act_mag"])
    with pytest.raises(EsaError, match=r"model\.layers\.0\.self_attn\.o_proj\.weight was never seen"):
        scores.of("act_mag", 0)
    assert scores.of("act_mag", 1).any()


def gradients(model, tensors) -> list[np.ndarray]:
    """The gradient of each window's summed NLL by torch.autograd.grad, (N, weights), of a float64 twin."""
    twin = copy.deepcopy(model).double().requires_grad_(True)
    parameters = dict(twin.named_parameters())
    mine = [parameters[t.name] for t in tensors]
    found = []
    with experts_one_by_one(twin):
        for window in WINDOWS:
            each = torch.autograd.grad(summed_nll(twin, window), mine, materialize_grads=True)
            found.append([g.detach().flatten().numpy() for g in each])
    return [np.stack(windows) for windows in zip(*found, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_gradient_scores_are_those_of_autograd_window_by_window(case):
    model = tiny_layout(case)
    tensors = [t for t in catalogue(model).tensors if len(t.shape) > 1]
    scores = score_tensors(model, tensors, WINDOWS, ["grad_x_weight", "grad_squared"])
    for index, (tensor, g) in enumerate(zip(tensors, gradients(model, tensors), strict=True)):
        w = tensor.parameter.double().flatten().numpy()
        for metric, wanted in (("grad_x_weight", np.abs(g.sum(0) * w)), ("grad_squared", (g**2).sum(0))):
            found = scores.of(metric, index).double().numpy() * scores.tokens
            np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=3e-5 * wanted.max(), err_msg=tensor.name)
