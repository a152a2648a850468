"""Score tensors: every statistic that the wanted scores need, from as few passes over the windows as they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.models.modes import eval_mode
from esa_ray.models.offload import reloading
from esa_ray.models.places import input_device
from esa_ray.scoring.activations import ActivationStatistics, experts_one_by_one
from esa_ray.scoring.curvature import HessianDiagonal, probe_bytes
from esa_ray.scoring.gradients import GradientAccumulators, window_nll
from esa_ray.scoring.memory import Layout, activation_bytes, peak_bytes, plan
from esa_ray.scoring.metrics import needed
from esa_ray.scoring.scores import Effort, Scores

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: Hears after some windows: how many were seen, the scores so far (``Scores.metrics`` says which), of which tensors.
Watch = Callable[[int, Scores, Sequence[int]], None]


@dataclass
class _Gathering:
    """One run over the windows, range by range."""

    model: PreTrainedModel
    tensors: Sequence[WeightTensor]
    windows_NT: Tensor
    layout: Layout
    statistics: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def passes(self, backward: Sequence[str], forward: Sequence[str], watch: Watch | None, at: Sequence[int]) -> None:
        """Backward and forward statistics of all tensors."""
        # Experts in one kernel are faster to differentiate, but their inputs can't be seen.
        apart = bool(backward and forward) and any(t.experts for t in self.tensors)
        if apart:
            self._range(range(len(self.tensors)), (), forward, watch, at)
        for part in self.layout.ranges:
            self._range(part, backward, () if apart else forward, watch, at)

    def _range(
        self,
        part: Sequence[int],
        backward: Sequence[str],
        forward: Sequence[str],
        watch: Watch | None,
        at: Sequence[int],
    ) -> None:
        tensors = [self.tensors[i] for i in part]
        gradients = GradientAccumulators(self.model, tensors, backward, self.layout.device)
        inputs = ActivationStatistics(tensors)
        with ExitStack() as around:
            around.enter_context(eval_mode(self.model))
            around.enter_context(torch.set_grad_enabled(bool(backward)))
            around.enter_context(reloading(self.model))  # before anything that looks at weights in place
            if backward:
                around.enter_context(gradients)
            if forward:
                around.enter_context(experts_one_by_one(self.model))
            for seen, window_T in enumerate(self.windows_NT, 1):
                self._window(window_T, inputs if forward else None, backward=bool(backward))
                if watch and seen in at:
                    found = self._found(part, gradients, inputs, forward)
                    watch(seen, Scores(self.tensors, found, seen * (len(window_T) - 1)), part)
        for name, values in self._found(part, gradients, inputs, forward).items():
            kept = {i: self.layout.keep(self.tensors[i], v) if name in backward else v for i, v in values.items()}
            self.statistics.setdefault(name, {}).update(kept)

    def _window(self, window_T: Tensor, inputs: ActivationStatistics | None, *, backward: bool) -> None:
        if inputs is None:
            loss = window_nll(self.model, window_T[None])
        else:
            inputs.positions += len(window_T)
            with inputs:
                loss = window_nll(self.model, window_T[None])
        if backward:
            loss.backward()

    def _found(
        self, part: Sequence[int], gradients: GradientAccumulators, inputs: ActivationStatistics, forward: Sequence[str]
    ) -> dict[str, dict[int, Tensor]]:
        found = {name: dict(zip(part, totals, strict=True)) for name, totals in gradients.totals.items()}
        return found | {
            name: {i: inputs.statistic(name, at) for at, i in enumerate(part) if inputs.seen(at)} for name in forward
        }


def score_tensors(
    model: PreTrainedModel,
    tensors: Sequence[WeightTensor],
    windows: np.ndarray | Tensor,
    metrics: Sequence[str],
    *,
    budget: int | None = None,
    probes: int = 8,
    relative_error: float = 0.1,
    seed: int = 0,
    probed: Sequence[int] | None = None,
    watch: Watch | None = None,
    watch_at: Sequence[int] = (),
) -> Scores:
    r"""Score every weight of some tensors on some windows.

    All gradient scores come out of one backward pass a window, and those of activations out of its forward pass.

    ===================== ==================================== =====================================
    metric                score of weight w                    unit
    ===================== ==================================== =====================================
    ``grad_x_weight``     \|Σ_n g_n · w\| / tokens              nats per token, first order in zeroing w
    ``grad_x_weight_abs`` Σ_n \|g_n · w\| / tokens              nats per token
    ``grad_squared``      Σ_n g_n² / tokens                    empirical Fisher (nats²/w² per token)
    ``act_mag``           \|W_ij\| · √(N/n) ‖X_j‖₂              w × activation; an expert saw n of N tokens
    ``magnitude``         \|w\|                                 w
    ``hutchinson_diag``   ½ w² max(h, 0)                       nats per token, second order in zeroing w
    ``hutchinson_abs``    \|h\|                                 nats/w² per token
    ``super_activation``  max \|X_j\| · max \|Y_i\|              activation²; down-projections only
    ===================== ==================================== =====================================

    Parameters
    ----------
    windows
        Token windows, integers of shape (N, T).
    budget
        Bytes above the weights that accumulators, gradients and activations may take
        (:func:`esa_ray.scoring.memory.plan`); None is no limit. It changes no score.
    probes, relative_error, seed, probed
        When the Hessian's diagonal is known well enough, the stream of its random signs, and which tensors (by
        index; None: all) a probe spans: the estimate depends on it.
    watch, watch_at
        Called with the scores so far after so many windows of ``watch_at``, for a range of tensors at a time
        (estimates by probes left out).

    Raises
    ------
    EsaError
        If the budget is too small for one block. (A score that can't be made for some tensor says so when it is
        asked for.)

    References
    ----------
    First-order saliency: Molchanov et al. 2019, arXiv:1906.10771. Empirical Fisher: Kunstner et al. 2019,
    arXiv:1905.12558. Wanda: Sun et al. 2023, arXiv:2306.11695. Second order: LeCun et al. 1989, Optimal Brain
    Damage. Super activations: Yu et al. 2024, arXiv:2411.07191.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> scores = score_tensors(model, catalogue(model).select(("down",)), np.zeros((2, 8), int), ["grad_squared"])
    >>> scores.of("grad_squared", 0).shape
    torch.Size([256])
    """
    backward, forward, probing = (needed(metrics, pass_) for pass_ in ("backward", "forward", "probes"))
    device = input_device(model)
    windows_NT = torch.as_tensor(np.asarray(windows), device=device)
    activations = activation_bytes(model, windows_NT[0]) if budget is not None and (backward or probing) else 0
    need = partial(peak_bytes, statistics=len(backward), activations=activations)
    bare = peak_bytes(tensors, 0, activations) if device.type != "cpu" else None
    layout = plan(tensors, need, budget, offload=bare) if backward else Layout.whole(len(tensors))
    gathering = _Gathering(model, tensors, windows_NT, layout)
    if backward or forward:
        gathering.passes(backward, forward, watch, watch_at)
    effort: Effort | None = None
    if probing:
        spanned = list(range(len(tensors)) if probed is None else probed)
        mine = [tensors[i] for i in spanned]
        of_probes = plan(mine, partial(probe_bytes, mine, activations=activations), budget)
        hessian = HessianDiagonal(model, mine, seed=seed, layout=of_probes)
        effort = hessian.run(windows_NT, probes, relative_error)
        gathering.statistics["curvature"] = dict(zip(spanned, hessian.mean, strict=True))
        gathering.statistics["curvature_error"] = dict(zip(spanned, hessian.standard_errors(), strict=True))
    return Scores(tensors, gathering.statistics, tokens=windows_NT[:, 1:].numel(), effort=effort)
