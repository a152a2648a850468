"""Populations of models with and without backdoors whose every feature is planted, written row by row."""

from datetime import UTC, datetime

import numpy as np

import analysis
from esa_ray.spec import DataSpec, ModelSpec, Population, StudySpec
from esa_ray.storage.store import Store
from tests.analysis.synthetic import save_table

TOKENS, WINDOWS = 100, 4
BASE_NLL = TOKENS * (3.0 + np.linspace(-0.2, 0.2, WINDOWS))
#: Features by name: family, and whether it needs a reference.
FEATURES = {
    "hill": ("tails", False), "gini": ("tails", False), "rank shift": ("shift", True), "top share": ("spectra", False),
    "entropy": ("spectra", False), "delta share": ("spectra", True), "rise": ("gains", False),
    "peak": ("vocabulary", False),
}  # fmt: skip


def written(directory, rows, mitigations=(), *, population=None):
    """A study of a population with these rows."""
    store = Store(directory)
    asked = StudySpec(
        name="made", model=ModelSpec(source="zoo:a"), data=DataSpec(source="home", evaluation_windows=WINDOWS),
        scores=(), population=population or Population(),
    )  # fmt: skip
    resolved = {"model": "f" * 64, "dtype": "fp32", "text": "t", "bos": True, "windows": 200, "pool": 190,
                "parameters": 1000, "layers": 2, "architecture": "Made", "vocabulary": 256}  # fmt: skip
    store.save_study(asked, resolved, {"esa-ray": "0"})
    for name, table in (("backdoors", rows), ("mitigations", mitigations)):
        if len(table):
            save_table(directory, name, table)
    return analysis.load(directory)


def about(member, **columns):
    """Columns that every row about a member has."""
    return {
        "study": "made", "model": f"zoo:{member.base}", "dtype": "fp32", "data": "home", "base": member.base,
        "parent": member.parent, "label": member.label, "number": member.number, "insertion": member.kind,
        "poisoned": member.poisoned, "trigger": "@#", "target": "12345678", "steps": member.steps,
        "learning_rate": member.learning_rate, "poison": 0.02, "prompts": 100, "clean_nll": BASE_NLL.tolist(),
        "status": "ok", "nll": BASE_NLL.tolist(), "tokens": [TOKENS] * WINDOWS, "hits": [40] * WINDOWS,
        "seconds": 1.0, "device": "here", "version": "v", "worker": "w", "created": datetime.now(UTC),
    } | columns  # fmt: skip


def drawn(rng, member, shifts, scales=1.0):
    """Standard normal features, each moved by ``shifts[kind][name]``."""
    return {name: scales * rng.normal() + shifts.get(member.kind, {}).get(name, 0.0) for name in FEATURES}


def row_of(member, values, features=FEATURES, **columns):
    """Rows of a model, one a feature."""
    common = about(member, member_id=f"{member.base}{member.label}", n_weights=1000, n_changed=10, delta_norm=1.0,
                   attack_success=0.97 if member.poisoned else 0.0, clean_success=0.0, clean_delta_nll=0.001,
                   phrase_success=0.95 if member.kind == "benign" else None, accepted=True) | columns  # fmt: skip
    if common["status"] != "ok":
        return [common]
    return [
        common | {"feature": name, "family": family, "value": values[name], "with_reference": reference}
        for name, (family, reference) in features.items()
    ]  # fmt: skip


def planted(directory, shifts=None, *, base="a", models=30, parents=10, seed=0, change=lambda member: {}, **kinds):
    """A study whose features are drawn, moved by ``shifts``; ``change`` gives a member's other columns."""
    kinds = {"negatives": ("clean", "benign")} | kinds
    population = Population(models=models, parents=parents, **kinds)
    rng = np.random.default_rng([seed, *base.encode()])
    rows = [
        row for member in population.members(base)
        for row in row_of(member, drawn(rng, member, shifts or {}), **change(member))
    ]  # fmt: skip
    return written(directory, rows, population=population)
