"""What the fields of a study are called on the command line, so that a sentence names what was typed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from esa_ray.errors import EsaError
from esa_ray.spec import explain

#: A field's place, without the numbers in it → the option that gives it. What isn't here is nobody's in particular.
OPTIONS = {
    "name": "--out-dir", "model.source": "--model", "model.dtype": "--dtype", "model.revision": "--revision",
    "model.trust": "--trust", "data.source": "--data", "data.text_column": "--text-column", "data.split": "--split",
    "data.window": "--window", "data.calibration_windows": "--max-samples", "data.evaluation_windows": "--eval-windows",
    "data.batch_size": "--batch-size", "data.bos": "--bos", "data.prompts": "--prompts", "scores.metric": "--metric",
    "scores.mode": "--mode", "scores.components": "--components", "scores.probes": "--probes",
    "scores.relative_error": "--probe-error", "scores.unit": "--unit", "scores.combine": "--combine",
    "pairs": "--pairs", "topk": "--topk", "seeds": "--seeds", "groups": "--controls",
    "fidelity": "--fidelity", "repeats": "--repeats",
    "control_draws": "--control-draws", "early_stop": "--early-stop", "search.damage": "--damage",
    "search.smallest": "--smallest", "search.trials": "--trials", "windows": "--windows", "contexts": "--contexts",
    "tasks": "--tasks", "limit": "--limit", "bits": "--bits", "relative_to": "--noise-scale",
    "save_models": "--save-model", "other_texts.source": "--other-data",
    **{f"compressions.prune.{name}": f"--{name}" for name in (
        "score", "group", "pattern", "sparsity", "allocation", "update", "damping", "components")},
    "compressions.quantize.bits": "--bits", "compressions.quantize.group_size": "--group-size",
    "compressions.quantize.kept": "--keep", "compressions.quantize.keep_by": "--keep-by",
    "compressions.quantize.components": "--components",
    **{f"tunings.{name}": f"--{name.replace('_', '-')}" for name in (
        "arm", "fraction", "score", "learning_rate", "steps", "batch", "looks", "protect", "strength", "rescore",
        "damage", "damaged", "components")},
    "tunings.draw": "--random-draws", "validation_windows": "--validation-windows",
    "target.source": "--target", "target.text_column": "--target-column", "target.split": "--target-split",
    "target.calibration_windows": "--target-windows", "target.evaluation_windows": "--eval-windows",
    **{f"target.{name}": f"--{name.replace('_', '-')}" for name in ("window", "batch_size", "bos")},
    **{f"{part}.{name}": f"--{name}" for part in ("faults", "attacks") for name in (
        "dtype", "protect", "critical", "score", "policy", "code", "components")},
    **{f"faults.{name}": f"--{name.replace('_', '-')}" for name in (
        "fault", "rate", "events", "burst", "row_bytes", "repeats")},
    "attacks.arm": "--arms", "attacks.k": "--topk", "attacks.draw": "--draws",
    **{f"attacks.{name}": f"--{name.replace('_', '-')}" for name in (
        "threat", "budget", "search_windows", "selection_windows", "candidates", "tries")},
    "population.insertions": "--insertion", "population.mitigations": "--mitigate",
    **{f"population.{name}": f"--{name}" for name in ("negatives", "models", "parents", "mitigated")},
    "population.mitigations.kind": "--mitigate", "population.mitigations.share": "--share",
    "population.mitigations.steps": "--clean-steps",
    "population.recipe.learning_rates": "--learning-rates",
    **{f"population.recipe.{name}": f"--{name}" for name in ("steps", "batch", "poison", "occurrences", "fraction")},
    "roles.roles": "--roles", "roles.edits": "--edits", "roles.null_weights": "--null-weights",
    "roles.windows": "--eval-windows", "roles.sets": "--sets", "facts.sources": "--facts",
    "facts.corruptions": "--corruption",
    **{f"facts.{name}": f"--{name}" for name in ("limit", "paraphrases", "noise", "draws", "restored")},
}  # fmt: skip


def option(place: Iterable[Any]) -> str | None:
    """The option that gives a field; None of a fault of several.

    >>> option(("scores", 0, "metric")), option(())
    ('--metric', None)
    """
    return OPTIONS.get(".".join(part for part in place if isinstance(part, str)))


def told(error: ValidationError, where: str | None = None) -> EsaError:
    """A pydantic error as one sentence about an option; ``where`` is what was typed, if that is known."""
    return explain(error, lambda place: option(place) or where)


def check_given(options: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse an option that is given and empty, where leaving it out says something else.

    Raises
    ------
    EsaError
        For the first that is.
    """
    for name, value in options.items():
        if isinstance(value, str) and not value.strip() and defaults.get(name, value) != value:
            raise EsaError(f"--{name.replace('_', '-')} is empty; give a value or leave it out")
