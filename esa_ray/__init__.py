"""esa-ray: which few weights does a language model hang on, and what does damage to them cost?

``import esa_ray`` loads neither torch nor ray; names are imported when first used. The science needs no
Ray: score a model in hand, damage it, evaluate it::

    from esa_ray import PerturbSpec, ScoreSpec, catalogue, chosen, evaluate, perturbed, rank, score_tensors

    weights = catalogue(model)
    tensors = weights.select(("q", "k", "v", "o", "gate", "up", "down"))
    scores = score_tensors(model, tensors, calibration_windows, ["grad_x_weight"])
    ranking = rank(scores, ScoreSpec(), k=100, groups=["super", "random_k"], seed=0)
    with perturbed(weights, chosen(ranking, "super", 100), PerturbSpec(kind="zero"), seed=0):
        damaged = evaluate(model, evaluation_windows)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: The version of the code that runs, which need not be installed; the package takes its own from here.
__version__ = "0.1.0"

_EXPORTS = {
    "esa_ray.errors": ("EsaError",),
    "esa_ray.spec": (
        "AttackSpec",
        "DataSpec",
        "FactSpec",
        "FaultSpec",
        "MitigationSpec",
        "ModelSpec",
        "PerturbSpec",
        "Population",
        "PruneSpec",
        "QuantizeSpec",
        "RoleSpec",
        "ScoreSpec",
        "StudySpec",
        "Subset",
        "TuneSpec",
        "WeightList",
        "WeightName",
    ),
    "esa_ray.grid": ("Cell", "cell_id", "cells"),
    "esa_ray.measurements.plan": ("plan",),
    "esa_ray.data": ("read_documents", "windows"),
    "esa_ray.models.sources": ("find",),
    "esa_ray.models.load": ("load_model", "load_tokenizer"),
    "esa_ray.models.addressing": ("catalogue",),
    "esa_ray.scoring.gather": ("score_tensors",),
    "esa_ray.scoring.ranking": ("rank", "score_stats"),
    "esa_ray.scoring.chosen": ("chosen", "chosen_and_known"),
    "esa_ray.scoring.listing": ("listing",),
    "esa_ray.perturb.edit": ("perturbed",),
    "esa_ray.evaluation": ("Intact", "continued", "evaluate", "loops"),
    "esa_ray.resume": ("Resumable",),
    "esa_ray.applications.compress": ("compressed",),
    "esa_ray.applications.guided": ("esa_guided_pruning",),
    "esa_ray.applications.enhancing": ("efficient_fine_tuning", "robustness_enhancement"),
    "esa_ray.security.assessing": ("adversarial_vulnerability_assessment", "fault_tolerance_analysis"),
    "esa_ray.security.detecting": ("backdoor_detection",),
    "esa_ray.interpret.analysing": ("attention_pattern_correlation", "weight_role_analysis"),
    "esa_ray.interpret.localizing": ("knowledge_localization",),
    "esa_ray.engine.sweep": ("run_study",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'esa_ray' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
