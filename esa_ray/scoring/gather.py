"""Score tensors: every statistic that the wanted scores need, from as few passes over the windows as they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.models.modes import eval_mode, reference_mixers
from esa_ray.models.offload import reloading
from esa_ray.models.slots import input_device
from esa_ray.scoring.activations import ActivationStatistics
from esa_ray.scoring.curvature import HessianDiagonal, probe_bytes
from esa_ray.scoring.gradients import Totals, WindowGradients, batch_nll, go_back, zeros
from esa_ray.scoring.memory import Layout, activation_bytes, peak_bytes, plan
from esa_ray.scoring.metrics import needed
from esa_ray.scoring.outer import NotOnceError, ProductGradients
from esa_ray.scoring.precision import reproducible_attention
from esa_ray.scoring.products import experts_one_by_one
from esa_ray.scoring.scores import Effort, Scores
from esa_ray.scoring.steps import batches
from esa_ray.scoring.uses import HEADROOM, Uses, reached, uses

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
    batches: Sequence[Tensor]
    layout: Layout
    used: Uses
    watch: Watch | None = None
    at: Sequence[int] = ()
    statistics: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    #: Whether the range in work was looked at.
    told: bool = False

    def passes(self, backward: Sequence[str], forward: Sequence[str]) -> None:
        """Backward and forward statistics of all tensors."""
        for part in self.layout.ranges:
            with ExitStack() as around:
                around.enter_context(eval_mode(self.model))
                around.enter_context(reference_mixers(self.model))
                if backward:  # forward passes alone are the same on every run
                    around.enter_context(reproducible_attention(self.model))
                around.enter_context(reloading(self.model))  # before anything that looks at weights in place
                once = [i for i in part if i in self.used.once] if backward else []
                while once and not self._done(partial(self._products, once, backward, forward), once):
                    pass
                rest = [i for i in part if i not in once]
                while backward and rest and not self._done(partial(self._windows, rest, backward), rest):
                    pass
                if forward and rest:
                    self._forward(rest, forward)

    def _done(self, run: Callable[[], None], part: list[int]) -> bool:
        """Whether a range is through. If not it begins again: with a smaller loss scale, or without one of its tensors.

        Raises
        ------
        EsaError
            If that shows only after the range was looked at.
        """
        self.told = False
        try:
            run()
            return True
        except _OverflowError:
            why = "gradients overflow in float16 in some windows; try --dtype fp32"
            self.used = replace(self.used, scale=max(1.0, self.used.scale / HEADROOM))
        except NotOnceError as found:  # real passes use it otherwise than the trial did
            names = [self.tensors[part[at]].name for at in sorted(found.indices)]
            why = f"{names[0]} is used otherwise in some windows than in others; score without --weight-analysis"
            part[:] = [index for at, index in enumerate(part) if at not in found.indices]
        if self.told:
            raise EsaError(why)
        return False

    def _products(self, part: Sequence[int], backward: Sequence[str], forward: Sequence[str]) -> None:
        """Of matrices that are multiplied with once: a batch a pass, forward statistics on the way."""
        tensors = [self.tensors[i] for i in part]
        gradients = ProductGradients(self.model, tensors, zeros(tensors, backward, self.layout.device))
        gradients.scale = self.used.scale
        inputs = ActivationStatistics(tensors)
        with gradients.around(), torch.enable_grad():
            for seen, windows_BT in self._numbered():
                with ExitStack() as run:
                    run.enter_context(gradients.of(windows_BT))
                    if forward:
                        inputs.positions += windows_BT.numel()
                        run.enter_context(inputs)
                    loss = batch_nll(self.model, windows_BT, scale=gradients.scale)
                gradients.certain()
                go_back(self.model, loss)
                _check(gradients)
                self._tell(seen, part, gradients.totals, inputs, forward)
        self._keep(part, gradients.totals, inputs, forward)

    def _windows(self, part: Sequence[int], backward: Sequence[str]) -> None:
        """Of all other weights: a window a pass."""
        tensors = [self.tensors[i] for i in part]
        gradients = WindowGradients(self.model, tensors, zeros(tensors, backward, self.layout.device))
        gradients.scale = self.used.scale
        with gradients, torch.enable_grad():
            for seen, windows_BT in self._numbered():
                for window_BT in windows_BT.split(1):
                    loss = batch_nll(self.model, window_BT, scale=gradients.scale)
                    go_back(self.model, loss)
                _check(gradients)
                self._tell(seen, part, gradients.totals)
        self._keep(part, gradients.totals)

    @torch.no_grad()
    def _forward(self, part: Sequence[int], forward: Sequence[str]) -> None:
        """Forward statistics alone."""
        inputs = ActivationStatistics([self.tensors[i] for i in part])
        with experts_one_by_one(self.model):
            for seen, windows_BT in self._numbered():
                inputs.positions += windows_BT.numel()
                with inputs:
                    self.model(windows_BT, use_cache=False)
                self._tell(seen, part, {}, inputs, forward)
        self._idle(part, inputs)
        self._keep(part, {}, inputs, forward)

    def _idle(self, part: Sequence[int], inputs: ActivationStatistics) -> None:
        """Say of matrices that no text comes to (cross-attention without anything to cross to) that they saw none."""
        unseen = [at for at in range(len(part)) if not inputs.seen(at)]
        if unseen:
            some = [self.tensors[part[at]] for at in unseen]
            try:
                busy = set().union(*(reached(self.model, some, windows_BT) for windows_BT in self.batches))
            except EsaError:  # without a backward pass nobody can tell
                return
            inputs.idle |= {at for number, at in enumerate(unseen) if number not in busy}

    def _numbered(self) -> Iterator[tuple[int, Tensor]]:
        """Every batch, with the number of windows up to its end."""
        seen = 0
        for windows_BT in self.batches:
            seen += len(windows_BT)
            yield seen, windows_BT

    def _tell(
        self,
        seen: int,
        part: Sequence[int],
        totals: Totals,
        inputs: ActivationStatistics | None = None,
        forward: Sequence[str] = (),
    ) -> None:
        if self.watch and seen in self.at:
            found, self.told = _found(part, totals, inputs, forward), True
            self.watch(seen, Scores(self.tensors, found, seen * (self.batches[0].shape[1] - 1)), part)

    def _keep(
        self,
        part: Sequence[int],
        totals: Totals,
        inputs: ActivationStatistics | None = None,
        forward: Sequence[str] = (),
    ) -> None:
        for name, values in _found(part, totals, inputs, forward).items():
            kept = {i: self.layout.keep(self.tensors[i], v) if name in totals else v for i, v in values.items()}
            self.statistics.setdefault(name, {}).update(kept)


class _OverflowError(Exception):
    """The loss scale is too large: a gradient is NaN or infinite."""


def _check(gradients: ProductGradients | WindowGradients) -> None:
    totals = [total for values in gradients.totals.values() for total in values]
    if gradients.scale > 1 and not all(bool(torch.isfinite(total.sum())) for total in totals):
        raise _OverflowError


def _found(
    part: Sequence[int], totals: Totals, inputs: ActivationStatistics | None, forward: Sequence[str]
) -> dict[str, dict[int, Tensor]]:
    """Statistic → tensor index → its values, of what a range has gathered so far."""
    found = {name: dict(zip(part, values, strict=True)) for name, values in totals.items()}
    for name in forward if inputs else ():
        found[name] = {i: inputs.statistic(name, at) for at, i in enumerate(part) if inputs.known(at)}  # type: ignore[union-attr]
    return found


def _planned(
    model: PreTrainedModel,
    tensors: Sequence[WeightTensor],
    windows_NT: Tensor,
    size: int,
    at: Sequence[int],
    statistics: int,
    budget: int | None,
) -> tuple[tuple[Tensor, ...], Layout]:
    """How windows pass, and where their statistics are accumulated: half as many together if need be, and again."""
    passing, on_device = batches(windows_NT, size, at), windows_NT.device.type != "cpu"
    if not statistics or budget is None:
        # A device too small for all weights is too small for these.
        away = statistics and on_device and any(t.offloaded for t in tensors)
        return passing, Layout.whole(len(tensors), "cpu" if away else None)
    activations = activation_bytes(model, tensors, max(passing, key=len))
    need = partial(peak_bytes, statistics=statistics, activations=activations)
    try:
        return passing, plan(tensors, need, budget, offload=need(tensors, statistics=0) if on_device else None)
    except EsaError:
        if size == 1:
            raise
    return _planned(model, tensors, windows_NT, -(-size // 2), at, statistics, budget)


def score_tensors(
    model: PreTrainedModel,
    tensors: Sequence[WeightTensor],
    windows: np.ndarray | Tensor,
    metrics: Sequence[str],
    *,
    batch_size: int = 8,
    budget: int | None = None,
    probes: int = 8,
    relative_error: float = 0.1,
    seed: int = 0,
    probed: Sequence[int] | None = None,
    watch: Watch | None = None,
    watch_at: Sequence[int] = (),
) -> Scores:
    """Score every weight of some tensors on some windows.

    All gradient scores come out of one backward pass a batch, and those of activations out of its forward pass. Each
    window's gradient is folded by itself all the same: batches change nothing but rounding. Embeddings, norms, and
    matrices that a model multiplies with more than once (tied, shared), take a pass a window instead.

    ``print(esa_ray.spec.SCORES)`` is a table of the scores with their formulas and units.

    Parameters
    ----------
    windows
        Token windows, integers of shape (N, T).
    batch_size
        Windows a pass (:func:`esa_ray.scoring.steps.batches`). Products of 16-bit numbers depend on it in their last
        bits.
    budget
        Bytes above the weights that accumulators, gradients and activations may take on any one device
        (:func:`esa_ray.scoring.memory.plan`); None is no limit. It changes no score: but where a batch doesn't fit
        with one block's accumulators, half as many windows pass together, which changes rounding.
    probes, relative_error, seed, probed
        When the Hessian's diagonal is known well enough, the stream of its random signs, and which tensors (by
        index; None: all) a probe spans: the estimate depends on it.
    watch, watch_at
        Called with the scores so far after so many windows of ``watch_at``, for some tensors at a time (estimates by
        probes left out).

    Raises
    ------
    EsaError
        If the budget is too small for one block. (A score that can't be made for some tensor says so when it is
        asked for.)

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
    windows_NT = torch.as_tensor(np.asarray(windows), device=input_device(model))
    used = uses(model, tensors, windows_NT) if backward else Uses(frozenset(range(len(tensors))), 1.0)
    passing, layout = _planned(model, tensors, windows_NT, batch_size, watch_at, len(backward), budget)
    gathering = _Gathering(model, tensors, passing, layout, used, watch, watch_at)
    if backward or forward:
        gathering.passes(backward, forward)
    effort: Effort | None = None
    if probing:
        spanned = list(range(len(tensors)) if probed is None else probed)
        mine = [tensors[i] for i in spanned]
        held = activation_bytes(model, mine, windows_NT[:1]) if budget is not None else 0
        of_probes = plan(mine, partial(probe_bytes, mine, activations=held), budget)
        hessian = HessianDiagonal(model, mine, seed=seed, layout=of_probes)
        effort = hessian.run(windows_NT, probes, relative_error)
        gathering.statistics["curvature"] = dict(zip(spanned, hessian.mean, strict=True))
        gathering.statistics["curvature_error"] = dict(zip(spanned, hessian.standard_errors(), strict=True))
    return Scores(tensors, gathering.statistics, tokens=windows_NT[:, 1:].numel(), effort=effort)
