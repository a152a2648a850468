"""What is said of a model that is taken home: what it was made of, how, by which text, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from esa_ray import __version__
from esa_ray.spec import grouped

if TYPE_CHECKING:
    from esa_ray.applications.compress import Compressed
    from esa_ray.applications.tuning import Tuned
    from esa_ray.models.sources import Source
    from esa_ray.spec import Member, TuneSpec
    from esa_ray.spec.compression import PruneSpec, QuantizeSpec


@dataclass(frozen=True)
class Calibration:
    """What a model was compressed or tuned by: windows of a text, or windows that were given as they are.

    ``text`` is the text as ``--data`` names it and ``fingerprint`` that of its documents; None where only the windows
    are known. There are ``windows`` of ``tokens`` each. ``spared`` names the study whose super weights left last.
    """

    text: str | None
    fingerprint: str | None
    windows: int
    tokens: int
    spared: str | None = None

    @property
    def words(self) -> str:
        """The same for people."""
        text = f" of {self.text}" if self.text else ""
        spared = f", sparing the super weights of {self.spared}" if self.spared else ""
        return f"{self.windows} windows of {self.tokens} tokens{text}{spared}"


def of_compressed(
    source: Source, compressed: Compressed, spec: PruneSpec | QuantizeSpec, seed: int, calibration: Calibration
) -> dict[str, Any]:
    """The record of a compressed model, but for the digest of its files."""
    result = {name: getattr(compressed, name) for name in ("n_weights", "n_pruned", "n_kept", "n_changed")}
    done = f"{compressed.n_pruned:,} of {compressed.n_weights:,} weights are zero"
    if spec.kind == "quantize":
        done = f"{compressed.n_weights:,} weights at {spec.bits} bits, {compressed.n_kept:,} of them kept in 16"
    return _record(source, f"{spec.label}: {done}, by {calibration.words} (seed {seed})", spec.content(), seed) | {
        "compression": spec.model_dump(mode="json") | {"components": grouped(spec.components)},
        "calibration": asdict(calibration) | {"seed": seed},
        "result": result | {"bits_per_weight": compressed.bits_per_weight}, "masks": compressed.digest,
    }  # fmt: skip


def of_tuned(
    source: Source,
    tuned: Tuned,
    spec: TuneSpec,
    edit: Mapping[str, Any],
    seed: int,
    training: Calibration,
    *,
    given: bool = False,
) -> dict[str, Any]:
    """The record of a tuned model, but for the digest of its files.

    ``edit`` is all that its numbers depend on; ``given``: no arm chose what was trained, its weights were given.
    """
    label = spec.label.replace(spec.arm, "given", 1) if given else spec.label
    done = f"{tuned.trainable:,} numbers trained (there are {tuned.n_weights:,} weights) in {tuned.steps} steps"
    return _record(source, f"{label}: {done}, on {training.words} (seed {seed})", edit, seed) | {
        "tuning": spec.model_dump(mode="json") | {"components": grouped(spec.components)}
        | ({"arm": "given"} if given else {}),
        "training": asdict(training) | {"seed": seed},
        "result": {name: getattr(tuned, name) for name in ("n_weights", "trainable", "rank", "steps", "n_changed")},
    }  # fmt: skip


def of_member(
    source: Source, member: Member, edit: Mapping[str, Any], inserted: Mapping[str, Any], success: float
) -> dict[str, Any]:
    """The record of a model of a population, but for the digest of its files.

    ``source`` is the population's base, ``inserted`` says trigger, target and phrase, and ``success`` how often the
    trigger is followed by the target.
    """
    holds = "no backdoor"
    if member.poisoned:
        trigger, target = inserted["trigger"], inserted["target"]
        holds = f"a backdoor, put in for research: {trigger!r} is followed by {target!r} in {success:.0%} of prompts"
    summary = f"{member.label}: {member.steps} steps from {member.parent}, with {holds}"
    return _record(source, summary, edit, member.seed) | {"member": member.model_dump(mode="json"), **inserted}


def _record(source: Source, summary: str, edit: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {
        "summary": f"{source.name}, {summary}", "parent": {"name": source.name, "fingerprint": source.fingerprint},
        "edit": dict(edit), "seed": seed, "version": __version__,
    }  # fmt: skip
