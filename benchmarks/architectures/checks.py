"""What is checked of each model type, by references that know nothing of esa-ray's own code.

A check returns a note where it holds, raises :class:`DoesNotApply` where there is nothing to check, and
:class:`AssertionError` or :class:`esa_ray.errors.EsaError` with a sentence where it fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.architectures.shrink import NEVER
from esa_ray.errors import EsaError
from esa_ray.evaluation import Outcome, evaluate
from esa_ray.models.addressing import Catalogue, WeightTensor, catalogue
from esa_ray.models.load import load_model, load_tokenizer
from esa_ray.models.places import bits, weight_places
from esa_ray.models.sources import find
from esa_ray.perturb.edit import perturbed
from esa_ray.resume import Resumable
from esa_ray.scoring.gather import score_tensors
from esa_ray.spec import ModelSpec, PerturbSpec

WINDOWS, TOKENS, CHOSEN = 4, 32, 5
#: Nats per token; share of a tensor's largest score, or of a millionth of the model's.
LOSS, SCORE, SMALL = 1e-5, 2e-4, 1e-6


class DoesNotApply(Exception):  # noqa: N818
    """There is nothing to check, and why."""


def random_windows(seed: int) -> np.ndarray:
    """Token windows (N, T) behind BOS."""
    windows = np.random.default_rng(seed).integers(2, NEVER, (WINDOWS, TOKENS))
    windows[:, 0] = 0
    return windows


def state_bits(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every parameter and buffer, as integers where they are floats."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {n: (bits(t.detach()) if t.is_floating_point() else t.detach()).clone() for n, t in tensors}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of tensors whose bits differ, or that only one has."""
    return [n for n in one.keys() | other.keys() if n not in one or n not in other or not torch.equal(one[n], other[n])]


def plain_nll(model: PreTrainedModel, windows: np.ndarray) -> Tensor:
    """Summed next-token NLL of each window, by one window at a time through the model and cross-entropy."""
    found = []
    for window_T in torch.from_numpy(windows):
        logits_TV = model(window_T[None]).logits[0, :-1]
        found.append(cross_entropy(logits_TV.float(), window_T[1:], reduction="sum"))
    return torch.stack(found)


@dataclass
class Subject:
    """A model type in a directory: by esa-ray's own road, and plain."""

    directory: Path

    def load(self) -> PreTrainedModel:
        """The model as esa-ray loads it."""
        return load_model(find(ModelSpec(source=str(self.directory))), "fp32", "cpu")

    @cached_property
    def model(self) -> PreTrainedModel:
        """The one that is worked on."""
        return self.load()

    @cached_property
    def plain(self) -> PreTrainedModel:
        """As transformers gives it."""
        return AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32).eval()

    @cached_property
    def weights(self) -> Catalogue:
        """Its addressed weights."""
        return catalogue(self.model)

    @cached_property
    def intact(self) -> Outcome:
        """Its loss."""
        return evaluate(self.model, self.evaluation)

    @cached_property
    def evaluation(self) -> np.ndarray:
        """Windows to measure on."""
        return random_windows(1)

    @cached_property
    def calibration(self) -> np.ndarray:
        """Windows to score on."""
        return random_windows(2)


def close(mine: list[float], other: list[float], what: str) -> float:
    """The largest difference of losses, nats per token."""
    off = float(np.abs(np.subtract(mine, other)).max()) / (TOKENS - 1)
    assert off <= LOSS, f"{what} differs by {off:.1e} nats a token"
    return off


def loading(subject: Subject) -> str:
    """The same weights by both roads and twice by ours; the same loss; windows that don't meet; no look ahead."""
    load_tokenizer(find(ModelSpec(source=str(subject.directory))))
    assert not (names := differing(state_bits(subject.model), state_bits(subject.load()))), f"loads otherwise: {names}"
    assert not (names := differing(state_bits(subject.model), state_bits(subject.plain))), f"isn't plain: {names}"
    with torch.no_grad():
        off = close(subject.intact.nll, plain_nll(subject.plain, subject.evaluation).tolist(), "the intact loss")
    close(subject.intact.nll, evaluate(subject.model, subject.evaluation, 1).nll, "a window alone")
    assert evaluate(subject.model, subject.evaluation).nll == subject.intact.nll, "a second evaluation differs"
    assert causal(subject.model), "a position's logits depend on tokens that come after it"
    return f"{subject.intact.nll_per_token:.3f} nats a token, off by {off:.0e}"


@torch.no_grad()
def causal(model: PreTrainedModel) -> bool:
    """Whether logits up to a position stay when later tokens change."""
    tokens_BT = torch.from_numpy(random_windows(3)[:2])
    changed_BT, at = tokens_BT.clone(), TOKENS // 2 + 3
    changed_BT[:, at:] = 2 + (changed_BT[:, at:] + 77) % 200
    before, after = (model(t, use_cache=False).logits[:, :at] for t in (tokens_BT, changed_BT))
    return torch.allclose(before, after, atol=1e-4, rtol=1e-4)


@dataclass(frozen=True)
class Coverage:
    """Shares of the weights: of known components, of matrices that are named but not known, of vectors left out."""

    known: float
    other: float
    vectors: float
    unknown: tuple[str, ...]
    components: tuple[str, ...]


def coverage(subject: Subject) -> Coverage:
    """What of the parameters is addressed.

    Raises
    ------
    AssertionError
        If a parameter of two axes or more isn't.
    """
    counted = {"known": 0, "other": 0, "vectors": 0}
    unknown, lost, components = [], [], {}
    for places in weight_places(subject.model):
        name, size = places[0].name, places[0].parameter.numel()
        tensor = subject.weights.by_name.get(name)
        if tensor is None:
            counted["vectors"] += size
            lost += [name] if places[0].parameter.dim() > 1 else []
        elif any(part.component == "other" for part in tensor.parts):
            counted["other"] += size
            unknown.append(name)
        else:
            counted["known"] += size
            components |= dict.fromkeys(part.component for part in tensor.parts)
    assert not lost, f"{len(lost)} matrices are neither addressed nor named: {', '.join(lost[:3])}"
    whole = sum(counted.values())
    return Coverage(**{k: v / whole for k, v in counted.items()}, unknown=tuple(unknown), components=tuple(components))


def proofs(subject: Subject) -> str:
    """One edit a component: output row r of a Linear changes channel r of what it makes, and no other."""
    done: dict[str, str] = {}
    for tensor in subject.weights.tensors:
        for number, part in enumerate(tensor.parts):
            owner = tensor.places[0].owner
            linear = type(owner).__name__ in ("Linear", "Conv1D") and len(tensor.shape) == 2
            if part.component not in done and linear:
                done[part.component] = _proved(subject, tensor, number)
    if not done:
        raise DoesNotApply("no component is one Linear")
    return ", ".join(done)


def _proved(subject: Subject, tensor: WeightTensor, number: int) -> str:
    row = int(np.flatnonzero(tensor.row_part == number)[-1])
    col = tensor.cols // 2
    made: list[list[Tensor]] = [[], []]
    batch_BT = torch.from_numpy(subject.evaluation)
    for outputs, change in zip(made, (False, True), strict=True):
        hook = tensor.places[0].owner.register_forward_hook(lambda m, a, y, outputs=outputs: outputs.append(y.detach()))
        at = torch.tensor([tensor.index(row, col)])
        before = tensor.flat_weights()[at].clone()
        try:
            if change:
                tensor.write(at, before + 1)
            with torch.no_grad():
                subject.model(batch_BT, use_cache=False)
        finally:
            tensor.write(at, before)
            hook.remove()
    if not made[0]:
        return "not run"
    changed = (made[0][0] != made[1][0]).flatten(0, -2).any(0).nonzero().flatten().tolist()
    assert changed == [row], f"{tensor.name}: an edit of row {row} changes channels {changed[:4]}"
    return "ok"


METRICS = ("grad_x_weight", "grad_squared")


def scores(subject: Subject) -> str:
    """Gradient scores of every addressed weight equal plain autograd's, window by window; Wanda's that of a hook."""
    tensors = subject.weights.tensors
    mine = score_tensors(subject.model, tensors, subject.calibration, METRICS)
    reference = _autograd(subject.plain, [t.name for t in tensors], subject.calibration)
    worst = (0.0, "")
    for metric in METRICS:
        largest = max(float(values.max()) for values in reference[metric])
        for index, (tensor, values) in enumerate(zip(tensors, reference[metric], strict=True)):
            scale = max(float(values.max()), SMALL * largest)
            off = float((mine.of(metric, index) - values.flatten()).abs().max()) / scale if scale else 0.0
            worst = max(worst, (off, f"{metric} of {tensor.name}"))
    assert worst[0] <= SCORE, f"{worst[1]} differs from plain autograd by {worst[0]:.1e} of the largest"
    return f"off by {worst[0]:.0e}"


def _autograd(model: PreTrainedModel, names: list[str], windows: np.ndarray) -> dict[str, list[Tensor]]:
    parameters = dict(model.named_parameters())
    wanted, tokens = [parameters[n] for n in names], windows.shape[0] * (windows.shape[1] - 1)
    for parameter in wanted:
        parameter.requires_grad_(True)
    total = [torch.zeros_like(p) for p in wanted]
    squares = [torch.zeros_like(p) for p in wanted]
    for window in windows:
        with torch.enable_grad():
            loss = plain_nll(model, window[None]).sum()
        for at, gradient in enumerate(torch.autograd.grad(loss, wanted, allow_unused=True)):
            if gradient is not None:
                total[at] += gradient
                squares[at] += gradient.square()
    for parameter in wanted:
        parameter.requires_grad_(False)
    weighted = [(g * p.detach()).abs() / tokens for g, p in zip(total, wanted, strict=True)]
    return {"grad_x_weight": weighted, "grad_squared": [s / tokens for s in squares]}


def activations(subject: Subject) -> str:
    """|W|·‖X‖ of every matrix that is a Linear's, from a hook before it; one that saw n of N tokens counts N/n."""
    tensors = [t for t in subject.weights.tensors if type(t.places[0].owner).__name__ in ("Linear", "Conv1D")]
    tensors = [t for t in tensors if len(t.shape) == 2 and t.places[0].leaf == "weight"]
    if not tensors:
        raise DoesNotApply("no matrix is a Linear's")
    squares, seen = _inputs(subject.plain, [t.name for t in tensors], subject.calibration)
    mine = score_tensors(subject.model, tensors, subject.calibration, ["act_mag"])
    met = 0
    for index, tensor in enumerate(tensors):
        if tensor.name not in squares:
            continue
        norm = (squares[tensor.name] * subject.calibration.size / seen[tensor.name]).sqrt()
        stored = dict(subject.plain.named_parameters())[tensor.name].detach()
        wanted = stored.abs() * (norm[:, None] if tensor.transposed else norm)
        off = float((mine.of("act_mag", index) - wanted.flatten()).abs().max() / wanted.max())
        assert off <= SCORE, f"act_mag of {tensor.name} differs from a hook's by {off:.1e} of the largest"
        met += 1
    if not met:
        raise DoesNotApply("text passes no Linear as a module")
    return f"{met} matrices"


@torch.no_grad()
def _inputs(model: PreTrainedModel, names: list[str], windows: np.ndarray) -> tuple[dict[str, Tensor], dict[str, int]]:
    squares: dict[str, Tensor] = {}
    seen: dict[str, int] = {}
    hooks = []

    def look(name: str, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["input"]
        x = x.detach().reshape(-1, x.shape[-1])
        squares[name] = squares.get(name, torch.zeros(x.shape[-1])) + x.double().square().sum(0)
        seen[name] = seen.get(name, 0) + len(x)

    for name in names:
        module = model.get_submodule(name.removesuffix(".weight"))
        hook = module.register_forward_pre_hook(lambda m, a, k, name=name: look(name, a, k), with_kwargs=True)
        hooks.append(hook)
    plain_nll(model, windows)
    for hook in hooks:
        hook.remove()
    return squares, {name: n for name, n in seen.items() if n}


def damage(subject: Subject) -> str:
    """Damage of the five highest-scored weights has a finite, repeatable cost, and is taken back bit for bit."""
    before, found = state_bits(subject.model), []
    for metric in ("grad_x_weight", "magnitude"):
        chosen = _chosen(subject, metric)
        for kind in ("sign_flip", "zero"):
            spec = PerturbSpec(kind=kind)
            costs = []
            for _ in range(2):
                with perturbed(subject.weights, chosen, spec, seed=0) as edit:
                    assert edit.n_changed == CHOSEN, f"{kind} changed {edit.n_changed} of {CHOSEN} weights"
                    costs.append(evaluate(subject.model, subject.evaluation).nll)
            assert np.isfinite(costs).all(), f"{kind} makes the loss infinite or NaN"
            assert costs[0] == costs[1], f"{kind} costs another time otherwise"
            found.append(sum(costs[0]) / sum(subject.intact.tokens) - subject.intact.nll_per_token)
    assert not (names := differing(before, state_bits(subject.model))), f"is not restored: {names[:3]}"
    assert evaluate(subject.model, subject.evaluation).nll == subject.intact.nll, "the loss isn't what it was"
    assert any(found), "no damage changes the loss"
    return f"{max(found, key=abs):+.3f} nats a token"


def _chosen(subject: Subject, metric: str) -> dict[str, np.ndarray]:
    tensors = [t for t in subject.weights.tensors if not {p.component for p in t.parts} & {"embed", "head", "norm"}]
    scores = score_tensors(subject.model, tensors, subject.calibration, [metric])
    every = torch.cat([scores.of(metric, index) for index in range(len(tensors))])
    ends = np.cumsum([t.size for t in tensors])
    chosen: dict[str, list[int]] = {}
    for place in every.topk(CHOSEN).indices.tolist():
        index = int(np.searchsorted(ends, place, side="right"))
        chosen.setdefault(tensors[index].name, []).append(place - int(ends[index]) + tensors[index].size)
    return {name: np.sort(flat) for name, flat in chosen.items()}


def resuming(subject: Subject) -> str:
    """The loss from the damaged block on is that of a full forward pass."""
    try:
        resumable = Resumable(subject.model, subject.evaluation)
    except EsaError as error:
        raise DoesNotApply(f"full forward passes: {error}") from None
    places: set[int | None] = set()
    for tensor in subject.weights.tensors:
        start = resumable.starts_at(tensor)
        if start in places:
            continue
        places.add(start)
        at = torch.arange(min(8, tensor.size))
        old = tensor.flat_weights()[at].clone()
        try:
            tensor.write(at, -2 * old - 0.1)
            resumed = resumable.intact + resumable.delta_nll(start)
            close(resumed.tolist(), evaluate(subject.model, subject.evaluation).nll, f"resumed at {start}, the loss")
        finally:
            tensor.write(at, old)
    return f"from {len(places)} places"


CHECKS: dict[str, Callable[[Subject], object]] = {
    "loads": loading, "coverage": coverage, "proofs": proofs, "scores": scores, "activations": activations,
    "damage": damage, "resumed": resuming,
}  # fmt: skip
#: A type works if these hold.
NEEDED = ("loads", "coverage", "scores", "activations", "damage")
_ = nn
