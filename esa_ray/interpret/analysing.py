"""Roles and attention from Python: what damage to weights of a model in hand does, beside that of matched weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from esa_ray import data
from esa_ray.applications.guided import SEED, opened
from esa_ray.errors import EsaError
from esa_ray.interpret.attention import Attending, attended
from esa_ray.interpret.chosen import subjects_of
from esa_ray.interpret.damage import Damage, or_empty
from esa_ray.interpret.facts.prompts import fact_prompts
from esa_ray.interpret.roles.bench import Bench
from esa_ray.interpret.roles.measure import measured, mediated
from esa_ray.interpret.screen import standing_out
from esa_ray.models.addressing import catalogue
from esa_ray.spec import DataSpec, FactSpec, PerturbSpec, RoleSpec, WeightList, WeightName, explain
from esa_ray.spec.roles import side
from esa_ray.statistics.null import judged
from esa_ray.statistics.partial import Partial, partial_correlation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.interpret.subjects import Subject
    from esa_ray.models.addressing import Catalogue

#: Weights as :func:`weight_role_analysis` takes them: how many, a file, or names.
Chosen = int | str | Path | WeightList | Sequence[WeightName | tuple[str, int, int]]


@dataclass(frozen=True)
class RoleAnalysis:
    """What damage to leading weights and to matched ones came to.

    Parameters
    ----------
    rows, mediations
        As the tables ``roles/`` and ``mediations/`` have them (:mod:`esa_ray.schema.roles`).
    """

    spec: RoleSpec
    rows: list[dict[str, Any]]
    mediations: list[dict[str, Any]]

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """A row a leading weight and role that was measured: ``change``, ``times`` and ``p``, and ``mediated``.

        ``times`` is |change| over the geometric mean of the matched weights' of its tensor, ``p`` that a further
        matched weight changes the metric so much, 1 if the change has the wrong sign for the role
        (:func:`esa_ray.statistics.null.judged`, which ``analysis.weight_roles`` computes by, too); both are None where
        the tensor has no matched weight. ``mediated`` is MF = 1 − Σ ΔNLL(damaged, mediator held)/Σ ΔNLL(damaged), None
        where the mediator wasn't held. With false discovery rate and intervals ``analysis.weight_roles`` tells who
        holds a role, of a study of ``esa roles``.
        """
        held = {_key(row): row for row in self.mediations if row["status"] == "ok"}
        found = []
        for (role, _, edit), mine in self._by_role.items():
            leading, null = ([row for row in mine if row["group"] == group] for group in ("super", "matched_k"))
            told = judged(*_changes(leading), *_changes(null), side=side(role, PerturbSpec.parse(edit)))
            for row, *numbers in zip(leading, told.times_L, told.p_L, strict=True):
                times, p = (None if np.isnan(x) else float(x) for x in numbers)
                what = {name: row[name] for name in ("rank", "subject", "unit", "edit", "role", "change")}
                found.append(what | {"times": times, "p": p, "mediated": _share(held.get(_key(row)))})
        return sorted(found, key=lambda row: (row["rank"], row["edit"]))

    @cached_property
    def _by_role(self) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in self.rows:
            if row["status"] == "ok" and row["change"] is not None and np.isfinite(row["change"]):
                found[row["role"], row["unit"], row["edit"]].append(row)
        return found


@dataclass(frozen=True)
class AttentionCorrelation:
    """What damage did to attention, as the table ``attention/`` has it: a row a weight and block."""

    rows: list[dict[str, Any]]

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """A row a damage: ``delta_nll`` and ``delta_z``, and means over blocks and heads of what changed."""
        by_damage: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in self.rows:
            if row["status"] == "ok":
                by_damage[row["subject"], row["unit"], row["edit"]].append(row)
        return [_changed(mine) for mine in by_damage.values()]

    def correlation(
        self, change: str = "sink", group: str = "super", *, edit: str | None = None, unit: str = "weight"
    ) -> Partial:
        """Spearman's ρ over weights of ΔNLL with a change of attention (sink, entropy, previous, spike).

        ``partial`` is the same with ‖Δz‖, the RMS change of the logits, held fixed, with a 95% interval of a bootstrap
        over weights (:func:`esa_ray.statistics.partial.partial_correlation`). NaN of fewer than eight weights, and
        where one of these doesn't vary. ``edit`` is the kind of damage, by its label; None is the first.
        """
        edit = edit or next((row["edit"] for row in self.table), "")
        mine = [row for row in self.table if (row["group"], row["edit"], row["unit"]) == (group, edit, unit)]
        changed, cost, moved = (np.array([row[name] for row in mine]) for name in (change, "delta_nll", "delta_z"))
        return partial_correlation(changed, cost, moved)


@dataclass
class _Opened:
    """A model in hand, its windows, and what is to be damaged of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    weights: Catalogue
    spec: RoleSpec
    windows: np.ndarray
    calibration: np.ndarray
    seed: int
    batch_size: int
    subjects: list[Subject]

    @cached_property
    def damage(self) -> Damage:
        return Damage(self.model, self.weights)

    @cached_property
    def bench(self) -> Bench:
        facts = None
        if "fact" in self.spec.roles and self.tokenizer is not None:
            facts = fact_prompts(self.model, self.tokenizer, FactSpec(), limit=self.spec.windows, seed=self.seed)
        return Bench(
            self.model, self.weights, self.windows, self.calibration, self.spec, self.seed, self.batch_size,
            self.damage.together(self.subjects), facts, self.tokenizer,
        )  # fmt: skip

    def roles_under(self, subject: Subject) -> list[dict[str, Any]]:
        """Rows of the roles under damage."""
        return measured(self.bench, subject, self.damage.of(subject))

    def attention_under(self, subject: Subject, intact: Attending) -> list[dict[str, Any]]:
        """Rows of attention under damage."""
        start = intact.prepare(self.weights[subject.tensor])
        with self.damage.of(subject):
            return attended(intact, start)


def weight_role_analysis(
    model: PreTrainedModel | str,
    weights: Chosen = 10,
    *,
    windows: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: DataSpec | None = None,
    seed: int | None = None,
    **how: Any,
) -> RoleAnalysis:
    """What weights do: each damaged once, all roles measured, and the mediators held of pairs that stand out.

    Parameters
    ----------
    model
        A transformers model, or a name, directory or file as ``--model`` takes it.
    weights
        How many leading weights by Σ|g·w| of the calibration windows; or a file as ``--weights`` takes it; or weights
        by name, each (tensor, row, col).
    windows
        Evaluation windows, integers of shape (N, T), N ≥ 2. None cuts ``windows`` of ``how`` (8) out of ``text``.
    calibration
        Calibration windows (M, T), beside ``windows``: what scores, controls, and tables of tokens are made of.
    tokenizer
        Of a model in hand; a model by its name brings its own. Without one the role "fact" is empty.
    text
        The text; None is the default of ``esa roles``.
    seed
        Draws calibration windows, matched weights and texts; None is 1337.
    **how
        As :class:`esa_ray.spec.RoleSpec` has them: ``roles``, ``edits``, ``null_weights``, ``sets``

    Raises
    ------
    EsaError
        If the roles can't be tested, a weight isn't there, or nothing says which text to measure on.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> windows = np.random.default_rng(0).integers(16, size=(8, 8))
    >>> found = weight_role_analysis(
    ...     model, 2, windows=windows[:4], calibration=windows[4:], roles=("frequency",), null_weights=3
    ... )
    >>> [row["rank"] for row in found.table], found.table[0].keys() >= {"change", "p", "mediated"}
    ([1, 2], True)
    """
    here = _opened(model, weights, windows, calibration, tokenizer, text, seed, how)
    blank, rows = [{"role": name} for name in here.spec.roles], []
    for subject in here.subjects:
        rows += [subject.columns() | row for row in or_empty(partial(here.roles_under, subject), blank)]
    held = [
        subject.columns() | mediated(here.bench, subject, role, here.damage.of(subject))
        for subject, role in standing_out(here.subjects, rows)
    ]
    return RoleAnalysis(here.spec, rows, held)


def attention_pattern_correlation(
    model: PreTrainedModel | str,
    weights: Chosen = 10,
    *,
    windows: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: DataSpec | None = None,
    seed: int | None = None,
    **how: Any,
) -> AttentionCorrelation:
    """What damage to weights does to attention: sinks, entropy and spikes, and whether what it costs goes with that.

    Takes what :func:`weight_role_analysis` takes.

    Raises
    ------
    EsaError
        As there, and if the model has no attention that can be seen.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> windows = np.random.default_rng(0).integers(16, size=(8, 8))
    >>> found = attention_pattern_correlation(model, 8, windows=windows[:4], calibration=windows[4:], null_weights=1)
    >>> found.correlation("entropy").n
    8
    """
    here = _opened(model, weights, windows, calibration, tokenizer, text, seed, how)
    intact, rows = Attending(here.model, here.windows, here.batch_size), []
    for subject in here.subjects:
        rows += [subject.columns() | row for row in or_empty(partial(here.attention_under, subject, intact))]
    return AttentionCorrelation(rows)


def _opened(
    model: PreTrainedModel | str, chosen: Chosen, windows: np.ndarray | None, calibration: np.ndarray | None,
    tokenizer: PreTrainedTokenizerBase | None, text: DataSpec | None, seed: int | None, how: dict[str, Any],
) -> _Opened:  # fmt: skip
    model, tokenizer, _ = opened(model, tokenizer, None)
    seed = SEED if seed is None else seed
    try:
        spec = RoleSpec.model_validate(how | ({} if windows is None else {"windows": len(windows)}))
    except ValidationError as error:
        raise explain(error) from None
    asked = text or DataSpec(evaluation_windows=spec.windows)
    if windows is None:
        if tokenizer is None:
            raise EsaError("a model in hand needs windows=, or a tokenizer= that cuts them out of a text; give one")
        cut = data.windows(asked, tokenizer, (seed,), data.read_documents(asked, tokenizer))
        windows, calibration = cut.evaluation[: spec.windows], cut.calibration(seed)
    if calibration is None:
        raise EsaError("weights are chosen and compared by calibration windows; give them as calibration=")
    found = catalogue(model)
    mine = subjects_of(model, found, np.asarray(calibration), chosen, spec, seed, asked.batch_size)
    again = Damage(model, found).again(mine)
    mine = [subject for subject in mine if subject not in again]
    return _Opened(
        model, tokenizer, found, spec, np.asarray(windows), np.asarray(calibration), seed, asked.batch_size, mine
    )


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["subject"], row["unit"], row["edit"], row["role"]


def _changes(rows: Sequence[dict[str, Any]]) -> tuple[list[str], np.ndarray]:
    return [row["tensor"] for row in rows], np.array([row["change"] for row in rows], dtype=float)


def _share(row: dict[str, Any] | None) -> float | None:
    damage = sum(row["delta_nll"]) if row else 0.0
    return 1 - sum(row["held_nll"]) / damage if row and damage > 0 else None


def _changed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    found = {
        name: float(np.mean([np.mean(row[name]) - np.mean(row[f"{name}_intact"]) for row in rows]))
        for name in ("sink", "entropy", "previous", "spike")
    }
    told = {name: first[name] for name in ("subject", "unit", "group", "rank", "edit", "delta_z")}
    return told | found | {"delta_nll": float(np.mean(first["delta_nll"]))}
