"""What a study ranks: every score of a seed, its rankings, their statistics, and the single-weight sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from esa_ray.grid import GRADIENT_SCORE
from esa_ray.models.naming import find_weight
from esa_ray.models.units import Units
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.listing import listing
from esa_ray.scoring.pools import holds
from esa_ray.scoring.ranking import Request, combined, rank, ranked_and_described, score_stats
from esa_ray.scoring.sample_sizes import SampleSizes
from esa_ray.scoring.sampling import sample
from esa_ray.scoring.unit_listing import unit_listing
from esa_ray.scoring.unit_ranking import UnitRanking
from esa_ray.spec import LISTED, ScoreSpec, StudySpec, members
from esa_ray.storage.store import Store, ranking_name, samples_name

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel

    from esa_ray.data import Windows
    from esa_ray.models.addressing import Catalogue, WeightTensor
    from esa_ray.scoring.ensemble import RankEnsemble
    from esa_ray.scoring.scores import Scores
    from esa_ray.spec import WeightList


@dataclass
class Rankings:
    """Scores a model's weights and stores a study's rankings; ``name`` is the model's."""

    model: PreTrainedModel
    catalogue: Catalogue
    windows: Windows
    spec: StudySpec
    store: Store
    name: str

    @cached_property
    def tensors(self) -> tuple[WeightTensor, ...]:
        """Every tensor that a ranking can name, in the model's order.

        Raises
        ------
        EsaError
            If the model has no weight of a listed name.
        """
        components = tuple(dict.fromkeys(c for s in self.spec.scores for c in s.components))
        listed = [weight for given in self.spec.lists for weight in given.weights]
        named = {find_weight(self.catalogue, weight)[0].name for weight in listed}
        wanted = {t.name for t in self.catalogue.select(components)} | named if components else named
        return tuple(t for t in self.catalogue.tensors if t.name in wanted)

    def write(self, seed: int, budget: int | None) -> None:
        """Score, select and store every table of a seed; all gradient scores share one backward pass.

        ``budget`` are the bytes above the weights that scoring may take. What was gathered is gone when it ends,
        however it ends.
        """
        specs, depth, model = self.spec.scores, max(self.spec.topk), self.name
        growth = SampleSizes(
            specs if "weights" in self.spec.analyses else (), depth, self.spec.data.calibration_windows
        )
        scores = self._score(seed, growth, budget)
        if self.spec.fidelity and seed == self.spec.seeds[0] and not self.store.has("samples", samples_name(seed)):
            self._sample(scores, seed)
        for spec in specs:
            name = ranking_name(spec.metric, spec.mode, seed)
            if spec.unit == "weight":
                self._write_tables(name, combined(scores, spec), spec, depth, seed)
            else:
                self._write_units(name, scores, spec, depth, seed)
            if "weights" in self.spec.analyses and not self.store.has("sample_sizes", name):
                self.store.write("sample_sizes", name, growth.table(spec, seed=seed, model=model))
        for weights in self.spec.lists:
            name = ranking_name(LISTED, weights.name, seed)
            if not self.store.has("rankings", name):
                self.store.write("rankings", name, self._listed(scores, weights, seed))

    def _listed(self, scores: Scores, given: WeightList, seed: int) -> pa.Table:
        """The ranking that stands for a list."""
        groups, draws = self.spec.groups, self.spec.control_draws
        if given.unit == "weight":
            return listing(scores, self.catalogue, given, groups, seed=seed, model=self.name, draws=draws)
        return unit_listing(
            scores, self.model, self.catalogue, given, groups, seed=seed, name=self.name, draws=draws,
            gradients=self._along_gradients,
        )  # fmt: skip

    @property
    def _along_gradients(self) -> bool:
        """Whether some damage follows the gradient."""
        return any(p.needs_gradient for p in self.spec.perturbations)

    def _write_tables(self, name: str, scores: Scores | RankEnsemble, spec: ScoreSpec, depth: int, seed: int) -> None:
        """A score's ranking and statistics. What is stored stays: others may have been measured by it."""
        groups, draws = self.spec.groups, self.spec.control_draws
        ranked, described = (self.store.has(table, name) for table in ("rankings", "score_stats"))
        if not ranked and not described:
            ranking, stats = ranked_and_described(scores, Request(spec, depth, groups, seed, self.name, draws))
            self.store.write("score_stats", name, stats)
            self.store.write("rankings", name, ranking)
        elif not described:
            self.store.write("score_stats", name, score_stats(scores, spec, seed=seed, model=self.name))
        elif not ranked:
            ranking = rank(scores, spec, depth, groups, seed=seed, model=self.name, draws=draws)
            self.store.write("rankings", name, ranking)

    def _write_units(self, name: str, scores: Scores, spec: ScoreSpec, depth: int, seed: int) -> None:
        """The same of rows, columns, neurons or heads."""
        families = Units(self.model, self.catalogue, spec.unit, spec.components).families
        ranking = UnitRanking(scores, families, spec, self._along_gradients)
        if not self.store.has("score_stats", name):
            self.store.write("score_stats", name, ranking.stats(seed=seed, model=self.name))
        if not self.store.has("rankings", name):
            groups, draws = self.spec.groups, self.spec.control_draws
            self.store.write("rankings", name, ranking.table(depth, groups, seed=seed, model=self.name, draws=draws))

    def _score(self, seed: int, growth: SampleSizes, budget: int | None) -> Scores:
        """All scores that the study ranks by, and the gradients that its kinds of damage need."""
        specs, tensors = self.spec.scores, self.tensors
        gradient = [GRADIENT_SCORE] if self._along_gradients else []
        probing = next((self._probing(s, tensors) for s in specs if s.estimated), {})
        return score_tensors(
            self.model, tensors, self.windows.calibration(seed),
            tuple(dict.fromkeys([*(s.metric for s in specs), *gradient])), batch_size=self.spec.data.batch_size,
            budget=budget, seed=seed, watch=growth, watch_at=growth.at, **probing,
        )  # fmt: skip

    @staticmethod
    def _probing(spec: ScoreSpec, tensors: Sequence[WeightTensor]) -> dict[str, Any]:
        """A probe spans the estimated scores' own components, whatever else the study scores."""
        probed = [i for i, tensor in enumerate(tensors) if holds(tensor, spec.components)]
        return {"probes": spec.probes, "relative_error": spec.relative_error, "probed": probed}

    def _sample(self, scores: Scores, seed: int) -> None:
        """Draw the weights of the single-weight sample, by quantiles of the study's first score."""
        first = self.spec.scores[0]
        drawn = sample(
            scores, members(first.metric)[0], self.spec.fidelity, seed=seed, components=first.components,
            model=self.name,
        )  # fmt: skip
        self.store.write("samples", samples_name(seed), drawn)
