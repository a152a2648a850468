"""What is checked of each model type, by references that know nothing of esa-ray's own code.

A check returns a note where it holds, raises :class:`DoesNotApply` where there is nothing to check, and
:class:`AssertionError` or :class:`esa_ray.errors.EsaError` with a sentence where it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.architectures import references
from benchmarks.architectures.shrink import NEVER, POSITIONS
from benchmarks.mixer_proofs import misread, mixers
from benchmarks.proofs import NO_CLAIM, NOT_RUN, OK, pattern, prove
from esa_ray.errors import EsaError
from esa_ray.evaluation import Intact, Outcome, continued, evaluate
from esa_ray.measurements.forecast import activations as activations_of
from esa_ray.models.addressing import Catalogue, WeightTensor, catalogue
from esa_ray.models.blocks import context
from esa_ray.models.known import facts, hollow
from esa_ray.models.load import load_model, load_tokenizer
from esa_ray.models.slots import bits, weight_slots
from esa_ray.models.sources import find
from esa_ray.perturb.edit import perturbed
from esa_ray.resume import Resumable
from esa_ray.scoring.gather import score_tensors
from esa_ray.spec import ModelSpec, PerturbSpec

WINDOWS, TOKENS, CHOSEN = 4, 32, 5
#: Nats per token; share of a tensor's largest score, or of that of a tensor whose gradients are a thousandth of the
#: model's largest: what is zero by definition is rounding here and there.
LOSS, SCORE = 1e-5, 2e-4
SMALL = {"grad_x_weight": 1e-3, "grad_squared": 1e-6}


#: What a proof says that finds nothing wrong.
SAID = (OK, NOT_RUN, NO_CLAIM)


class DoesNotApply(Exception):
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
    loaded = state_bits(subject.model)
    assert not (names := differing(loaded, state_bits(subject.load()))), f"loads otherwise: {names[:3]}"
    with torch.no_grad():
        off = close(
            subject.intact.nll, references.plain_nll(subject.plain, subject.evaluation).tolist(), "the intact loss"
        )
    assert not (names := differing(loaded, state_bits(subject.model))), f"running the model changes {names[:3]}"
    assert not (names := differing(loaded, state_bits(subject.plain))), f"plain weights differ: {names[:3]}"
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
    """Shares of the weights: of known components, of what is ``other``, of what isn't addressed; and their names."""

    known: float
    other: float
    left_out: float
    components: tuple[str, ...]
    unknown: tuple[str, ...]
    unaddressed: tuple[str, ...]


def coverage(subject: Subject) -> Coverage:
    """What of the parameters is addressed.

    Raises
    ------
    AssertionError
        If a parameter of two axes or more isn't, and isn't listed with a reason.
    """
    weights, other = subject.weights, sum(subject.weights.unknown.values())
    whole = addressed = 0
    lost = []
    for places in weight_slots(subject.model):
        name, parameter = places[0].name, places[0].parameter
        whole += parameter.numel()
        addressed += parameter.numel() if name in weights.by_name else 0
        listed = name in weights.by_name or any(name == out.name for out in weights.left_out)
        lost += [name] if parameter.dim() > 1 and not listed else []
    assert not lost, f"{len(lost)} matrices are neither addressed nor listed: {', '.join(lost[:3])}"
    return Coverage(
        (addressed - other) / whole, other / whole, 1 - addressed / whole,
        tuple(dict.fromkeys(p.component for t in weights.tensors for p in t.parts)), tuple(weights.unknown),
        tuple(f"{out.name} ({out.why})" for out in weights.left_out if len(out.shape) > 1),
    )  # fmt: skip


def proofs(subject: Subject) -> str:
    """A row of each component is edited, and what the model's own code makes of it changes where it must."""
    told = prove(subject.model, subject.weights)
    apart = _of_mixers(subject.model)
    wrong = [f"{key}: {said}" for key, said in told.items() if said not in SAID and key.split(" ")[1] not in apart]
    if apart:
        wrong += misread(subject.model, torch.from_numpy(subject.evaluation[:2]))
    assert not wrong, "; ".join(wrong[:4])
    unclaimed = sum(said == NO_CLAIM and key.split(" ")[1] not in apart for key, said in told.items())
    proven = {key.split(" ")[0] for key, said in told.items() if said == OK or key.split(" ")[1] in apart}
    return f"{len(proven)} components, {unclaimed} kinds of tensors without a claim"


def _of_mixers(model: PreTrainedModel) -> set[str]:
    """Kinds of tensors that the proofs of mixers speak of."""
    names = (f"{name}.{leaf}" for name, _, parameters in mixers(model) for leaf in parameters)
    return {pattern(whole) for name in names for whole in (name, f"{name}.weight")}


def scores(subject: Subject) -> str:
    """Gradient scores of every addressed weight equal plain autograd's, window by window; Wanda's that of a hook."""
    tensors = subject.weights.tensors
    mine = score_tensors(subject.model, tensors, subject.calibration, tuple(SMALL))
    reference = references.autograd(subject.plain, [t.name for t in tensors], subject.calibration)
    worst = (0.0, "")
    for metric in SMALL:
        largest = max(float(values.max()) for values in reference[metric])
        for index, (tensor, values) in enumerate(zip(tensors, reference[metric], strict=True)):
            scale = max(float(values.max()), SMALL[metric] * largest)
            off = float((mine.of(metric, index) - values.flatten()).abs().max()) / scale if scale else 0.0
            worst = max(worst, (off, f"{metric} of {tensor.name}"))
    assert worst[0] <= SCORE, f"{worst[1]} differs from plain autograd by {worst[0]:.1e} of the largest"
    return f"off by {worst[0]:.0e}"


def activations(subject: Subject) -> str:
    """√(N/n)·|W|·‖X‖ of every matrix and expert that saw n of N tokens: by hooks, and by products beneath them."""
    tensors = [t for t in subject.weights.tensors if len(t.shape) > 1 and not _unmultiplied(t)]
    linear = [t.name for t in tensors if type(t.slots[0].owner).__name__ in ("Linear", "Conv1D")]
    hooks = references.hooked(subject.plain, linear, subject.calibration)
    each = {t.name: t.rows * t.cols for t in tensors}
    products = references.multiplied(subject.plain, each, subject.calibration)
    mine = score_tensors(subject.model, tensors, subject.calibration, ["act_mag"])
    met, refused = 0, 0
    for index, tensor in enumerate(tensors):
        experts = range(tensor.shape[0] if tensor.experts else 1)
        by_product = [products.get((tensor.name, expert)) for expert in experts]
        seen = [[hooks[tensor.name]]] if tensor.name in hooks else []
        seen += [by_product] if any(by_product) and not any(i and i.odd for i in by_product) else []
        try:
            values = mine.of("act_mag", index)
        except EsaError:
            refused += bool(seen)
            continue
        for inputs in seen:
            _norms_hold(subject, tensor, values, inputs)
            met += 1
    if not met:
        raise DoesNotApply("text passes no matrix")
    return f"{met} matrices" + (f", {refused} refused by name" if refused else "")


def _unmultiplied(tensor: WeightTensor) -> bool:
    return bool({part.component for part in tensor.parts} & {"embed", "norm", "decay"})


def _norms_hold(
    subject: Subject, tensor: WeightTensor, mine: Tensor, inputs: Sequence[references.Inputs | None]
) -> None:
    stored = dict(subject.plain.named_parameters())[tensor.name].detach()
    for expert, found in enumerate(inputs):
        if found is None:  # no token was routed to it
            continue
        norm = (found.squares * subject.calibration.size / max(1, found.rows)).sqrt()
        matrix, values = (
            v.view(tensor.shape)[expert] if tensor.experts else v.view(tensor.shape) for v in (stored, mine)
        )
        wanted = matrix.abs() * (norm[:, None] if tensor.transposed else norm)
        off = float((values - wanted).abs().max() / wanted.max())
        assert off <= SCORE, f"act_mag of {tensor.name} is off by {off:.1e} of the largest"


def damage(subject: Subject) -> str:
    """Damage of the five highest-scored weights has a finite, repeatable cost, and is taken back bit for bit."""
    before, found, intact = state_bits(subject.model), [], Intact(subject.model, subject.evaluation)
    for metric in ("grad_x_weight", "magnitude"):
        chosen = _chosen(subject, metric)
        for kind in ("sign_flip", "zero"):
            spec = PerturbSpec(kind=kind)
            costs = []
            for _ in range(2):
                with perturbed(subject.weights, chosen, spec, seed=0) as edit:
                    assert edit.n_changed == CHOSEN, f"{kind} changed {edit.n_changed} of {CHOSEN} weights"
                    outcome = evaluate(subject.model, subject.evaluation, intact=intact)
                    costs.append(outcome.nll)
                    told = references.divergence(subject.plain, subject.model, subject.evaluation)
            close(outcome.kl or [], told, "the divergence")
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


def foreseen(subject: Subject) -> str:
    """The config alone tells the same weights as the loaded model, its sizes, and how long a window may be."""
    loaded, alone = (_told(catalogue(model)) for model in (subject.model, hollow(str(subject.directory), "fp32")))
    differ = [name for name in loaded.keys() | alone.keys() if loaded.get(name) != alone.get(name)]
    assert not differ, f"{len(differ)} tensors are told otherwise by the config alone: {', '.join(sorted(differ)[:3])}"
    activations_of(subject.model, TOKENS)
    told, limit = facts(subject.directory.name, subject.model), context(subject.model)
    long_BT = 2 + torch.arange(limit if limit and limit <= POSITIONS else POSITIONS + 44)[None] % 200
    with torch.no_grad():
        subject.model(long_BT, use_cache=False)
    return f"{told['parameters']:,} parameters, windows of up to {limit or 'any number of'} tokens"


def _told(weights: Catalogue) -> dict[str, tuple]:
    return {t.name: (t.shape, t.parts, t.transposed, t.experts, t.layer) for t in weights.tensors}


def continuing(subject: Subject) -> str:
    """Continuations are the most likely token of a full forward pass each, up to the end of text."""
    prompts, tokens = subject.evaluation[:2, : TOKENS // 2], 4
    mine, text_BT = continued(subject.model, prompts, tokens), torch.from_numpy(prompts)
    with torch.no_grad():
        for _ in range(tokens):
            next_B = subject.model(text_BT, use_cache=False).logits[:, -1].argmax(-1)
            text_BT = torch.cat([text_BT, next_B[:, None]], 1)
    for found, wanted in zip(mine.tolist(), text_BT[:, -tokens:].tolist(), strict=True):
        end = found.index(-1) if -1 in found else tokens
        assert found[:end] == wanted[:end], f"continues with {found[:end]}, where {wanted[:end]} is most likely"
    return f"{tokens} tokens"


CHECKS: dict[str, Callable[[Subject], object]] = {
    "loads": loading, "coverage": coverage, "proofs": proofs, "scores": scores, "activations": activations,
    "damage": damage, "foreseen": foreseen, "continues": continuing, "resumed": resuming,
}  # fmt: skip
#: A type works if these hold.
NEEDED = ("loads", "coverage", "proofs", "scores", "activations", "damage", "foreseen", "continues")
