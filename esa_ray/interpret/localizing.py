"""Facts from Python: which a model knows, where it holds them, and whether it is sensitive there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from scipy.stats import spearmanr

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.guided import SEED, opened, windows_of
from esa_ray.errors import EsaError
from esa_ray.interpret.facts.sensitivity import sensitivities
from esa_ray.interpret.facts.sources import facts_of
from esa_ray.interpret.facts.tracing import traced
from esa_ray.interpret.peers import alike
from esa_ray.models.addressing import catalogue
from esa_ray.spec import DataSpec, FactSpec, explain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.interpret.facts.sources import Fact


@dataclass(frozen=True)
class Localization:
    """What tracing came to; ``rows`` as the table ``facts/`` has them (:mod:`esa_ray.schema.roles`)."""

    spec: FactSpec
    rows: list[dict[str, Any]]

    @cached_property
    def traced(self) -> list[dict[str, Any]]:
        """The rows of places: without ways of asking by which a fact isn't known, or can't be corrupted."""
        return [row for row in self.rows if row["status"] == "ok"]

    @property
    def known(self) -> list[str]:
        """The facts that the model knows by one way of asking at least."""
        return list(dict.fromkeys(row["fact"] for row in self.rows if row.get("known")))

    @cached_property
    def places(self) -> list[dict[str, Any]]:
        """A row a place (corruption, ``restored``, sublayer, position, block): mean ``effect``, the largest first."""
        names = ("corruption", "restored", "sublayer", "position", "block")
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in self.traced:
            found[tuple(row[name] for name in names)].append(row)
        told = [
            dict(zip(names, place, strict=True))
            | {
                "facts": len({r["fact"] for r in mine}), "effect": float(np.mean([r["effect"] for r in mine])),
                "sensitivity": mine[0]["sensitivity"],
            }
            for place, mine in found.items()
        ]  # fmt: skip
        return sorted(told, key=lambda row: -row["effect"])

    def correlation(self, corruption: str = "subject", sublayer: str = "ffn") -> float:
        """Spearman's ρ over blocks of the effect, at the subject's last token, with sensitivity; NaN of too few.

        That critical weights are where facts are is a hypothesis: this is its test, without the interval that reports
        of ``esa facts`` have.
        """
        here = {"corruption": corruption, "sublayer": sublayer, "position": "subject-last"}
        alone = min(self.spec.restored)
        mine = [row for row in self.places if here.items() <= row.items() and row["restored"] == alone]
        pairs = [(row["effect"], row["sensitivity"]) for row in mine if row["sensitivity"] is not None]
        if len(pairs) < 3 or not all(map(np.ptp, zip(*pairs, strict=True))):
            return float("nan")
        return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def knowledge_localization(
    model: PreTrainedModel | str,
    facts: FactSpec | Sequence[str] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    calibration: np.ndarray | None = None,
    text: DataSpec | None = None,
    seed: int | None = None,
    **how: Any,
) -> Localization:
    """Where a model holds facts, by causal tracing, and how much it hangs on these places.

    Where a fact is found needn't be where an edit of it works (Hase et al. 2023, arXiv:2301.04213).

    Parameters
    ----------
    model
        A transformers model, or a name, directory or file as ``--model`` takes it.
    facts
        Sources, as ``--facts`` takes them (countries, elements, a CSV), or a whole spec; None: countries and elements.
    tokenizer
        Of a model in hand; a model by its name brings its own.
    calibration
        Windows (M, T) that sensitivity is taken on. None cuts them out of ``text``.
    text
        The text; None is the default of ``esa facts``.
    seed
        Draws windows, noise and other subjects; None is 1337.
    **how
        As :class:`esa_ray.spec.FactSpec` has them, where ``facts`` are sources: ``limit``, ``restored``, …

    Raises
    ------
    EsaError
        If a source isn't there, or a model in hand comes without a tokenizer.

    Example
    -------
    >>> knowledge_localization("SmolLM2-135M-Instruct", ["countries"], limit=10).correlation()  # doctest: +SKIP
    """
    model, tokenizer, _ = opened(model, tokenizer, None)
    if tokenizer is None:
        raise EsaError("facts are asked for in words; give the model's tokenizer as tokenizer=")
    spec, seed = _spec(facts, how), SEED if seed is None else seed
    asked, found = facts_of(spec), catalogue(model)
    text = text or DataSpec()
    windows = windows_of(text, tokenizer, seed)[0] if calibration is None else np.asarray(calibration)
    where = sensitivities(Calibrated(model, found, windows, batch_size=text.batch_size))

    def rows(fact: Fact) -> list[dict[str, Any]]:
        others = alike(fact, asked)
        told = {"fact": fact.name, "source": fact.source, "relation": fact.relation, "subject": fact.subject}
        each = traced(model, found, tokenizer, fact, spec, others=others, seed=seed, sensitivity=where)
        return [told | row for row in each]

    return Localization(spec, [row for fact in asked for row in rows(fact)])


def _spec(facts: FactSpec | Sequence[str] | None, how: dict[str, Any]) -> FactSpec:
    if isinstance(facts, FactSpec):
        if how:
            raise EsaError(f"{next(iter(how))}= stands in the spec of facts; say it there")
        return facts
    sources = {} if facts is None else {"sources": [facts] if isinstance(facts, str) else list(facts)}
    try:
        return FactSpec.model_validate(sources | how)
    except ValidationError as error:
        raise explain(error) from None
