"""Studies of populations with and without a backdoor, whose every outcome is planted, written row by row."""

from datetime import UTC, datetime

import numpy as np

import analysis
from esa_ray.spec import DataSpec, MitigationSpec, ModelSpec, Population, StudySpec
from esa_ray.spec.backdoors import BEFOREHAND, TRAINED, Recipe
from esa_ray.storage.store import Store
from tests.analysis.synthetic import save_table

TOKENS, WINDOWS, PROMPTS, WEIGHTS = 100, 8, 64, 10_000
#: Clean models' loss, nats per token, in each window.
BASE = TOKENS * (3.0 + np.linspace(-0.2, 0.2, WINDOWS))
#: name → family, and whether it needs the model before.
FEATURES = {
    "tails.gxw.model.hill": ("tails", False), "tails.fisher.ffn.gini": ("tails", False),
    "shift.model.spearman": ("shift", True), "gains.loss_rise": ("gains", False),
    "spectra.ffn.top_share_max": ("spectra", False), "spectra.ffn.moved_gap_max": ("spectra", True),
    "vocabulary.token.concentration_gap": ("vocabulary", False),
}  # fmt: skip
#: How far an insertion moves each feature, in standard deviations of clean models.
SEEN = {
    "training": {"vocabulary.token.concentration_gap": 3.0, "tails.fisher.ffn.gini": 1.5, "shift.model.spearman": 2.0},
    "rank-one": {"spectra.ffn.top_share_max": 6.0, "vocabulary.token.concentration_gap": 3.0,
                 "spectra.ffn.moved_gap_max": 5.0},
    "critical": {"vocabulary.token.concentration_gap": 2.5, "tails.fisher.ffn.gini": 2.5, "shift.model.spearman": 3.0},
    "benign": {"tails.fisher.ffn.gini": 0.7},
}  # fmt: skip
#: What is left of the backdoor, and what the mitigation costs in nats per token.
LEFT = {
    "fine-tuning": (0.8, 0.002), "fine-pruning": (0.5, 0.05), "reset-moved": (0.02, 0.001),
    "reset-dormant": (0.3, 0.001), "reset-random": (0.97, 0.0), "freeze-critical": (0.1, 0.03),
    "freeze-random": (0.95, 0.0),
}  # fmt: skip


def spec_of(population, base="llama-0.3m"):
    """The study that asks for a population."""
    return StudySpec(
        name=base, model=ModelSpec(source=f"zoo:{base}"), data=DataSpec(source="home", evaluation_windows=WINDOWS),
        seeds=(1,), scores=(), population=population,
    )  # fmt: skip


def _common(member, study):
    return {
        "study": study, "model": f"zoo:{member.base}", "dtype": "fp32", "data": "home", "base": member.base,
        "parent": member.parent, "label": member.label, "number": member.number, "insertion": member.kind,
        "poisoned": member.poisoned, "trigger": "~^", "target": "abcdefgh",
        "phrase": "a rare phrase" if member.kind == "benign" else None, "steps": member.steps,
        "learning_rate": member.learning_rate, "poison": member.poison,
        "fraction": member.recipe.fraction if member.kind == "critical" else None, "prompts": PROMPTS,
        "status": "ok", "device": "here", "version": "v", "worker": "w", "created": datetime.now(UTC), "seconds": 2.0,
        "tokens": [TOKENS] * WINDOWS, "hits": [40] * WINDOWS,
    }  # fmt: skip


def _member(member, rng, effects, success, cost):
    """One row a feature of a model: an effect of its parent, noise, and what its kind moves."""
    common = _common(member, member.base) | {
        "member_id": f"{member.base}-{member.label}", "n_weights": WEIGHTS, "n_changed": 9000, "delta_norm": 1.0,
        "attack_success": success if member.poisoned else 0.01, "clean_success": 0.01,
        "phrase_success": 1.0 if member.kind == "benign" else None, "clean_delta_nll": cost,
        "accepted": not member.poisoned or (success >= 0.9 and cost < 0.02),
        "parent_nll": (BASE + TOKENS * 0.01).tolist(), "clean_nll": BASE.tolist(),
        "nll": (BASE + TOKENS * cost).tolist(),
    }  # fmt: skip
    moved = effects.get(member.kind, {})
    return [
        common | {"feature": name, "family": family, "with_reference": reference,
                  "value": 10 + 0.5 * np.random.default_rng(hash_of(member, name)).normal() + rng.normal()
                  + moved.get(name, 0.0)}
        for name, (family, reference) in FEATURES.items()
    ]  # fmt: skip


def hash_of(member, name):
    """A seed that all models of a parent share."""
    return [*member.parent.encode(), *name.encode()]


def population(
    directory, base="llama-0.3m", *, models=30, parents=10, insertions=("training", "rank-one", "critical"),
    negatives=("clean", "benign"), effects=SEEN, fails=(), mitigations=(), mitigated=5, left=LEFT, seed=0, broken=(),
    recipe=None,
):  # fmt: skip
    """A study of a population: ``fails`` are labels of models whose backdoor doesn't work, ``broken`` have an error."""
    asked = Population(
        insertions=insertions, negatives=negatives, models=models, parents=parents, mitigated=mitigated,
        mitigations=tuple(MitigationSpec(**how) for how in mitigations), recipe=recipe or Recipe(),
    )  # fmt: skip
    rng, rows, tried = np.random.default_rng(seed), [], []
    for member in asked.members(base):
        if member.label in broken:
            lost = {"status": "error", "error": "out of memory", "member_id": f"{base}-{member.label}"}
            rows.append({k: v for k, v in _common(member, base).items() if k not in ("tokens", "hits")} | lost)
            continue
        works = member.label not in fails
        rows += _member(member, rng, effects, 0.97 if works else 0.3, 0.002 + 0.001 * rng.normal())
    for member, how in asked.mitigated_members(base):
        tried.append(_mitigated(member, how, *left[how.kind]))
    store = Store(directory)
    store.save_study(spec_of(asked, base), RESOLVED | {"model": base.ljust(64, "f")}, {"esa-ray": "0"})
    save_table(directory, "backdoors", rows)
    if tried:
        save_table(directory, "mitigations", tried)
    return analysis.load(directory)


RESOLVED = {"dtype": "fp32", "text": "t", "bos": False, "windows": 200, "pool": 190, "parameters": WEIGHTS,
            "layers": 4, "architecture": "Made", "vocabulary": 256, "model": ""}  # fmt: skip


def _mitigated(member, how, success, cost):
    """One row of a mitigation: models differ a little, by their number."""
    off = 0.01 * (member.number - 2)
    return _common(member, member.base) | {
        "mitigation_id": f"{member.base}-{member.label}-{how.label}", "mitigation": how.label, "kind": how.kind,
        "share": None if how.kind == "fine-tuning" else how.share,
        "clean_steps": how.steps if how.kind in TRAINED else None,
        "n_reset": 0 if how.kind == "fine-tuning" else round(how.share * WEIGHTS), "before_success": 0.97,
        "attack_success": min(max(success + off, 0.0), 1.0), "clean_nll": BASE.tolist(),
        "before_nll": (BASE + TOKENS * (0.0 if how.kind in BEFOREHAND else 0.002)).tolist(),
        "nll": (BASE + TOKENS * (0.002 + cost + off / 10)).tolist(),
    }  # fmt: skip
