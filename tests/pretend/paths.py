"""Every path through the science layer that touches a device, as a function of a model that finds plain numbers.

The same function runs on the CPU and on pretend cards, and what it finds has to be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.compress import compressed
from esa_ray.applications.kept import Kept, replacing
from esa_ray.applications.tuning import tune
from esa_ray.errors import EsaError
from esa_ray.evaluation import Intact, confident, continued, evaluate
from esa_ray.evaluation.single_weights import measure
from esa_ray.evaluation.sublayers import observed, silenced, sublayers
from esa_ray.models.addressing import Catalogue, WeightTensor, catalogue
from esa_ray.models.slots import input_device
from esa_ray.perturb.edit import perturbed
from esa_ray.resume import Resumable
from esa_ray.scoring.chosen import chosen_and_known, first_block
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.memory import activation_bytes, peak_bytes
from esa_ray.scoring.ranking import combined, rank, score_stats
from esa_ray.scoring.sample_sizes import SampleSizes
from esa_ray.scoring.sampling import sample
from esa_ray.scoring.scores import Scores
from esa_ray.spec import ARMS, PerturbSpec, PruneSpec, QuantizeSpec, ScoreSpec, TuneSpec
from esa_ray.spec.compression import KEEPING
from tests.tiny import random_windows

MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "router")
CALIBRATION, EVALUATION = random_windows(3, 12), random_windows(5, 12, seed=1)
BATCH, K, SEED = 2, 3, 0
GROUPS = ("super", "random_k", "matched_k", "bottom_k")
#: Scores of one pass; those that differentiate twice stand apart.
ONE_PASS = ("grad_x_weight", "grad_x_weight_abs", "grad_squared", "act_mag", "magnitude", "super_activation")
#: One of every kind and variant.
KINDS = (
    "sign_flip-1", "sign_flip-0.3", "zero", "set_mean", "scale-0.5", "gauss_noise-0.5", "gauss_noise-tensor-0.5",
    "bit_flip-0.2", "bit_flip-sign-0.5", "bit_flip-exponent-0.2", "bit_flip-mantissa-0.2", "gradient_aligned-0.5",
    "gradient_opposed-0.5", "correlated-0.5", "correlated-layer-0.5", "correlated-component-tensor-0.5",
    "adaptive-0.5", "adaptive-row-0.5", "quantize-3", "quantize-tensor-3", "progressive-zero-0.5",
    "progressive-quantize-3-0.5",
)  # fmt: skip


#: Paths that spare the head some work, which takes a head that isn't away: without, they measure the same by a longer
#: way. What the short one leaves out is below ``HEAD_TOLERANCE`` nats a token.
BY_SHORTCUT = {
    "divergence from kept head inputs, or logits", "cell resumed at its block, stopped early",
    "single weights damaged alone",
}  # fmt: skip


@dataclass
class Bench:
    """A model with what several paths share, made once."""

    model: PreTrainedModel

    @cached_property
    def catalogue(self) -> Catalogue:
        return catalogue(self.model)

    @cached_property
    def tensors(self) -> tuple[WeightTensor, ...]:
        return self.catalogue.select(MATRICES)

    @cached_property
    def components(self) -> tuple[str, ...]:
        held = {part.component for tensor in self.tensors for part in tensor.parts}
        return tuple(c for c in MATRICES if c in held)

    @cached_property
    def scores(self) -> Scores:
        return score_tensors(self.model, self.tensors, CALIBRATION, ONE_PASS)

    @cached_property
    def ranking(self) -> pa.Table:
        return rank(self.scores, self.spec("grad_x_weight"), K, GROUPS, seed=SEED)

    @cached_property
    def resumable(self) -> Resumable:
        return Resumable(self.model, EVALUATION, BATCH, head_shortcut=False)

    def spec(self, metric: str, mode: str = "per_layer") -> ScoreSpec:
        return ScoreSpec.model_validate({"metric": metric, "mode": mode, "components": self.components})

    @property
    def offloads(self) -> bool:
        return any(p.is_meta for p in self.model.parameters())

    @property
    def head_away(self) -> bool:
        return self.model.get_output_embeddings().weight.is_meta

    @property
    def bits(self) -> list[bytes]:
        """All weights as they are now."""
        return [_bits(tensor.flat_weights()) for tensor in self.catalogue.tensors]


Path = Callable[[Bench], Any]
PATHS: dict[str, Path] = {}


def path(name: str) -> Callable[[Path], Path]:
    """Registers a path under a name."""

    def register(run: Path) -> Path:
        PATHS[name] = run
        return run

    return register


def _bits(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _table(table: pa.Table) -> dict[str, list]:
    return table.to_pydict()


def _all_scores(bench: Bench, scores: Scores, metrics: tuple[str, ...]) -> dict[str, list]:
    found = {}
    for metric in metrics:
        for index, tensor in enumerate(scores.tensors):
            if metric == "super_activation" and not any(p.component == "down" for p in tensor.parts):
                continue
            found[f"{metric} {tensor.name}"] = scores.of(metric, index).cpu().tolist()
    return found


@path("scores")
def _scores(bench: Bench) -> Any:
    return _all_scores(bench, bench.scores, ONE_PASS)


@path("scores, a range of blocks at a time")
def _ranges(bench: Bench) -> Any:
    first = [t for t in bench.tensors if t.layer == 0]
    activations = activation_bytes(
        bench.model, bench.tensors, torch.as_tensor(CALIBRATION, device=input_device(bench.model))
    )
    metrics = ("grad_x_weight", "grad_squared")
    scores = score_tensors(bench.model, bench.tensors, CALIBRATION, metrics, budget=peak_bytes(first, 2, activations))
    return _all_scores(bench, scores, metrics)


@path("scores, watched while windows pass")
def _watched(bench: Bench) -> Any:
    spec = bench.spec("grad_squared")
    growth = SampleSizes([spec], K, len(CALIBRATION))
    score_tensors(bench.model, bench.tensors, CALIBRATION, ["grad_squared"], watch=growth, watch_at=growth.at)
    return _table(growth.table(spec, seed=SEED))


@path("second derivatives")
def _hessian(bench: Bench) -> Any:
    metrics = ("hutchinson_diag", "hutchinson_abs")
    if bench.offloads:
        with pytest.raises(EsaError, match="whole model"):
            score_tensors(bench.model, bench.tensors, CALIBRATION, metrics)
        return None
    scores = score_tensors(bench.model, bench.tensors, CALIBRATION[:2], metrics, probes=2, relative_error=0.0)
    ranking = rank(scores, bench.spec("hutchinson_diag"), K, GROUPS, seed=SEED)
    stats = score_stats(scores, bench.spec("hutchinson_diag"), seed=SEED)
    return _all_scores(bench, scores, metrics), _table(ranking), _table(stats)


def _ranks(mode: str) -> Path:
    def ranks(bench: Bench) -> Any:
        metrics = (
            [m for m in ONE_PASS if m != "super_activation"] if mode == "per_layer" else ["grad_squared", "act_mag"]
        )
        return {m: _table(rank(bench.scores, bench.spec(m, mode), K, GROUPS, seed=SEED)) for m in metrics}

    return ranks


for _mode in ("per_layer", "per_tensor", "global"):
    path(f"rankings {_mode}")(_ranks(_mode))


@path("score statistics")
def _statistics(bench: Bench) -> Any:
    return {m: _table(score_stats(bench.scores, bench.spec(m), seed=SEED)) for m in ("grad_squared", "act_mag")}


@path("rank ensemble")
def _ensemble(bench: Bench) -> Any:
    spec = bench.spec("grad_squared+act_mag")
    ensemble = combined(bench.scores, spec)
    return _table(rank(ensemble, spec, K, GROUPS, seed=SEED))


@path("loss of the intact model")
def _evaluated(bench: Bench) -> Any:
    return vars(evaluate(bench.model, EVALUATION, BATCH))


@path("divergence from kept head inputs, or logits")
def _compact(bench: Bench) -> Any:
    return _diverged(bench, head_stays=True)


@path("divergence from kept logits")
def _logits(bench: Bench) -> Any:
    return _diverged(bench, head_stays=False)


def _diverged(bench: Bench, *, head_stays: bool) -> Any:
    intact = Intact(bench.model, EVALUATION, BATCH, head_stays=head_stays)
    weights, known = chosen_and_known(bench.ranking, "super", K)
    with perturbed(bench.catalogue, weights, PerturbSpec(kind="zero"), SEED, known):
        return vars(evaluate(bench.model, EVALUATION, BATCH, intact=intact))


def _cell(label: str) -> Path:
    def cell(bench: Bench) -> Any:
        weights, known = chosen_and_known(bench.ranking, "super", K)
        before = bench.bits
        with perturbed(bench.catalogue, weights, PerturbSpec.parse(label), SEED, known) as edit:
            found = vars(edit) | vars(evaluate(bench.model, EVALUATION, BATCH)) | {"damaged": bench.bits}
        assert bench.bits == before
        return found

    return cell


for _label in KINDS:
    path(f"cell {_label}")(_cell(_label))


@path("cell resumed at its block, stopped early")
def _resumed(bench: Bench) -> Any:
    intact, resumable = Intact(bench.model, EVALUATION, BATCH), bench.resumable  # made while nothing is damaged
    found = []
    for group in GROUPS:
        for block in range(1, bench.catalogue.layers):
            mine = bench.ranking.filter(pc.field("layer") >= block)
            weights, known = chosen_and_known(mine, group, K)
            assert first_block(mine, group, K) == block

            def forward(number: int, _: Tensor, block: int = block) -> Tensor:
                return resumable.logits(block, number)

            with perturbed(bench.catalogue, weights, PerturbSpec(kind="sign_flip"), SEED, known):
                outcome = evaluate(bench.model, EVALUATION, BATCH, intact=intact, error_rate=0.4, forward=forward)
            found.append(vars(outcome))
    return found


@path("single-weight sample")
def _sampled(bench: Bench) -> Any:
    return _table(sample(bench.scores, "grad_x_weight", 40, seed=SEED, components=bench.components[:2]))


@path("single weights damaged alone")
def _alone(bench: Bench) -> Any:
    drawn = sample(bench.scores, "grad_x_weight", 40, seed=SEED, components=bench.components[:2])
    resumable = Resumable(bench.model, EVALUATION, BATCH)
    return _table(measure(bench.catalogue, resumable, drawn.slice(0, 5)))


@path("ablation")
def _ablated(bench: Bench) -> Any:
    found: list[Any] = []
    for layer in range(bench.catalogue.layers):
        parts = sublayers(bench.catalogue, layer)
        with observed(bench.model, parts, EVALUATION) as seen:
            evaluate(bench.model, EVALUATION, BATCH)
        found.append(list(seen[0].peaks.items()))
        found.append([vars(use) for use in seen[0].uses.values()])
        for part in parts:
            with silenced(part):
                found.append(vars(evaluate(bench.model, EVALUATION, BATCH)))
    return found


@path("confidence")
def _confidence(bench: Bench) -> Any:
    outcome, confidence = confident(bench.model, EVALUATION, BATCH)
    return vars(outcome), vars(confidence)


@path("generation")
def _generated(bench: Bench) -> Any:
    return continued(bench.model, EVALUATION[:2, :6], 4).tolist()


def _compression(spec: PruneSpec | QuantizeSpec) -> Path:
    def compression(bench: Bench) -> Any:
        before = bench.bits
        with compressed(bench.model, bench.catalogue, CALIBRATION, spec, SEED, batch_size=BATCH) as found:
            outcome = evaluate(bench.model, EVALUATION, BATCH)
            told = {k: v for k, v in vars(found).items() if k != "masks"} | {"digest": found.digest}
        assert bench.bits == before
        if isinstance(spec, PruneSpec) and spec.update == "refit":  # factorised otherwise on cards
            return {name: told[name] for name in ("digest", "n_pruned", "n_changed", "blind")}
        return {**told, "nll": outcome.nll}

    return compression


#: One of every score, group, pattern, allocation and update of pruning, and of every rule of quantizing.
COMPRESSIONS: list[PruneSpec | QuantizeSpec] = [
    PruneSpec(group="block"), PruneSpec(score="obs", group="tensor", update="sparsegpt"),
    PruneSpec(score="regional", update="refit"), PruneSpec(score="gblm", allocation="owl", sequential=False),
    PruneSpec(score="act_mag+grad_x_weight_abs", group="model"), PruneSpec(score="obs", pattern="2:4"),
    PruneSpec(pattern="neuron", score="magnitude"), PruneSpec(pattern="kv", allocation="damage"),
    *(QuantizeSpec(bits=3, group_size=8, kept=0.01, keep_by=rule) for rule in KEEPING),
]  # fmt: skip

for _spec in COMPRESSIONS:
    path(f"compression {_spec.label}")(_compression(_spec))


def _tuning(spec: TuneSpec) -> Path:
    def tuning(bench: Bench) -> Any:
        text = Calibrated(bench.model, bench.catalogue, CALIBRATION, batch_size=BATCH)
        before, states, found = bench.bits, list[bytes](), list[Any]()

        def run(state: bytes | None, kept: Kept) -> Any:
            return tune(
                bench.model, bench.catalogue, spec, SEED, CALIBRATION, source=text, target=text, kept=kept,
                look=found.append, state=state, checkpoint=lambda make: states.append(make()),
            )  # fmt: skip

        if bench.offloads:
            with replacing() as kept, pytest.raises(EsaError, match="is offloaded, and only a model"):
                run(None, kept)
            return None
        for state in (None, 0):  # once as a whole, and once from the state on that it stored on its way
            with replacing() as kept:
                told = vars(run(None if state is None else states[state], kept))
                found.append({**told, "nll": evaluate(bench.model, EVALUATION, BATCH).nll, "tuned": bench.bits})
            assert bench.bits == before
        return [each if isinstance(each, dict) else vars(each) for each in found]

    return tuning


#: One of every arm and protection, and damage on the way.
TUNINGS: list[dict[str, Any]] = [
    *({"arm": arm, "fraction": 0.05} for arm in ARMS if arm not in ("full", "lora")),
    {"arm": "lora", "fraction": 0.3}, {"arm": "full"}, {"protect": "ewc"}, {"protect": "freeze", "strength": 0.1},
    {"protect": "scale", "rescore": 2}, {"damage": PerturbSpec.parse("gauss_noise-0.5"), "damaged": 9},
]  # fmt: skip

for _how in TUNINGS:
    _spec = TuneSpec.model_validate({"steps": 3, "looks": 2, "batch": 2, "learning_rate": 1e-3, **_how})
    path(f"tuning {_spec.label}")(_tuning(_spec))
