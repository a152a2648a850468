"""The diagonal of the Hessian, estimated with random signs: all tensors from one probe, signed, with its error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from esa_ray.errors import EsaError
from esa_ray.models.modes import eval_mode
from esa_ray.randomness import rademacher, rademacher_on, stream_key
from esa_ray.scoring.gradients import window_nll
from esa_ray.scoring.memory import Layout
from esa_ray.scoring.products import experts_one_by_one
from esa_ray.scoring.scores import Effort

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor


@contextmanager
def twice_differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Attention in plain operations for the length of a ``with`` block: fused kernels have no second derivative."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with experts_one_by_one(model), eval_mode(model):
            yield
    finally:
        model.set_attn_implementation(before)


def _signs(tensors: Sequence[WeightTensor], seed: int, probe: int, window_T: Tensor) -> list[Tensor]:
    """Rademacher signs, one byte each: the same on every device, in every order of windows and for any tensors."""
    window = hashlib.sha256(window_T.cpu().numpy().astype("<i8").tobytes()).hexdigest()
    keys = (stream_key(seed, "hutchinson", probe, window, t.name) for t in tensors)
    return [_signs_of(t, key) for t, key in zip(tensors, keys, strict=True)]


def _signs_of(tensor: WeightTensor, key: int) -> Tensor:
    # Made where the weights are: on the host a probe of billions of weights would take longer than its passes.
    device = tensor.parameter.device
    if device.type == "cpu":
        return torch.from_numpy(rademacher(key, tensor.size)).view(tensor.parameter.shape)
    return rademacher_on(key, tensor.size, device).view(tensor.parameter.shape)


def probe_bytes(tensors: Sequence[WeightTensor], part: Sequence[WeightTensor], activations: int) -> int:
    """Peak memory of probing above the weights: (b + 1)·W + 16·W_r + 3·A, in bytes.

    Gradients (b bytes each in the model's dtype) and signs of all W weights; for the W_r weights of a range the
    products, the probe so far, and mean and variance, in fp32; a graph that can be differentiated again takes
    about three times the activations A of a gradient pass.
    """
    weights = sum(t.size for t in tensors)
    return (tensors[0].dtype.itemsize + 1) * weights + 16 * sum(t.size for t in part) + 3 * activations


class HessianDiagonal:
    r"""Hutchinson's estimator h = E[z ⊙ Hz] of the diagonal of H = ∇²(Σ_n L_n) / tokens, z of random signs.

    One draw of z spans all tensors at once; each window has its own, so a probe is Σ_n z_n ⊙ H_n z_n over all N
    windows, by one double backward pass each. E[z_i z_j] = 0 for i ≠ j leaves the diagonal; the standard error
    is that of the mean over probes. Signed, never rectified before averaging, fp32. What no window's loss depends on
    (blocks that text never runs) has no curvature: zero.

    Memory above the weights: :func:`probe_bytes`. With several ranges the mean and variance lie in files.

    References
    ----------
    Hutchinson 1990, doi:10.1080/03610919008812866; Bekas, Kokiopoulou & Saad 2007,
    doi:10.1016/j.apnum.2007.01.003.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tensors: Sequence[WeightTensor],
        *,
        seed: int,
        layout: Layout | None = None,
    ):
        if any(p.is_meta for p in model.parameters()):
            raise EsaError(
                "hutchinson_* differentiates twice and needs the whole model on its devices; use more memory"
            )
        self.model, self.tensors, self.seed = model, tensors, seed
        self.layout = layout or Layout.whole(len(tensors))
        self.probes = 0
        self.mean = [self.layout.zeros(t) for t in tensors]
        self._squared_deviations = [self.layout.zeros(t) for t in tensors]

    def run(self, windows_NT: Tensor, probes: int, relative_error: float) -> Effort:
        """Probe until ‖standard error‖ / ‖h‖ over all weights is small enough, at least twice."""
        with twice_differentiable(self.model), self._differentiated(), torch.enable_grad():
            while self.probes < 2 or (self.probes < probes and self.relative_error() > relative_error):
                for part in self.layout.ranges:
                    self._add(part, self._probe(windows_NT, part))
                self.probes += 1
        return Effort(self.probes, self.relative_error())

    @contextmanager
    def _differentiated(self) -> Iterator[None]:
        parameters = list(self.model.parameters())
        before = [p.requires_grad for p in parameters]
        self.model.requires_grad_(False)
        for tensor in self.tensors:
            tensor.parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, required in zip(parameters, before, strict=True):
                parameter.requires_grad_(required)

    def _probe(self, windows_NT: Tensor, part: Sequence[int]) -> list[Tensor]:
        """Σ_n z_n ⊙ H_n z_n per token, for some of the tensors; z spans all of them all the same."""
        parameters = [t.parameter for t in self.tensors]
        current = [torch.zeros_like(parameters[i], dtype=torch.float32).view(self.tensors[i].shape) for i in part]
        for window_T in windows_NT:
            signs = _signs(self.tensors, self.seed, self.probes, window_T)
            loss = window_nll(self.model, window_T[None])
            if not loss.requires_grad:  # text reaches none of them
                continue
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            reached = [(g, z) for g, z in zip(gradients, signs, strict=True) if g is not None and g.requires_grad]
            if not reached:  # the loss is linear in what it reaches
                continue
            # The parts of the product may lie on several devices.
            along = torch.stack([(g * z).sum(dtype=torch.float32).to(self.model.device) for g, z in reached]).sum()
            del gradients, reached
            products = torch.autograd.grad(
                along, [parameters[i] for i in part], materialize_grads=True, allow_unused=True
            )
            for total, i, product in zip(current, part, products, strict=True):
                total.add_(product.detach().float().mul_(signs[i]).reshape(total.shape))
        scored = windows_NT[:, 1:].numel()
        return [total.div_(scored) for total in current]

    def _add(self, part: Sequence[int], estimates: list[Tensor]) -> None:
        # Welford's update: the variance of close numbers without cancellation.
        for i, estimate in zip(part, estimates, strict=True):
            mean, m2 = self.mean[i], self._squared_deviations[i]
            estimate = estimate.to(mean.device)
            delta = estimate - mean
            mean.add_(delta, alpha=1 / (self.probes + 1))
            m2.addcmul_(delta, estimate - mean)

    def standard_errors(self) -> list[Tensor]:
        """Of the mean over probes, per weight. The variance is estimated from as few as two probes."""
        scale = self.probes * (self.probes - 1)
        return [
            self.layout.keep(t, (m2 / scale).sqrt_())
            for t, m2 in zip(self.tensors, self._squared_deviations, strict=True)
        ]

    def relative_error(self) -> float:
        """‖standard error‖ / ‖h‖ over all weights; noise is taken out of ‖h‖, and infinite if nothing is left."""
        noise = sum(float(m2.sum(dtype=torch.float64)) for m2 in self._squared_deviations)
        noise /= self.probes * (self.probes - 1)
        signal = sum(float(m.square().sum(dtype=torch.float64)) for m in self.mean) - noise
        return (noise / signal) ** 0.5 if signal > 0 else float("inf")
