"""A whole study."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from esa_ray.spec.backdoors import Population
from esa_ray.spec.base import Spec
from esa_ray.spec.compression import Compression
from esa_ray.spec.damage import LISTED, PerturbSpec, Subset, WeightList
from esa_ray.spec.protocols import Protocol
from esa_ray.spec.roles import FactSpec, RoleSpec
from esa_ray.spec.scores import DataSpec, ModelSpec, ScoreSpec
from esa_ray.spec.security import CONFINED, AttackSpec, FaultSpec
from esa_ray.spec.tuning import TuneSpec

Group = Literal["super", "random_k", "matched_k", "largest_k", "bottom_k"]
Analysis = Literal["stability", "weights", "architecture"]

#: Groups whose damage is in question: chosen by a score, or given in a list; and what they are held against.
TREATED = ("super", LISTED)
CONTROLS = ("random_k", "matched_k", "largest_k", "bottom_k")
#: Controls that are drawn for the super weights of a ranking, down to its largest k.
DRAWN_CONTROLS = ("random_k", "matched_k")
#: Controls with one member for each super weight, so that they depend on all of a ranking's super weights.
PAIRED_CONTROLS = (*DRAWN_CONTROLS, "largest_k")

Unique = Annotated[tuple[int, ...], Field(min_length=1)]


class Search(Spec):
    """Instead of running the whole grid: find the smallest k, or strength, whose damage is at least ``damage``.

    ``damage`` is ΔNLL in nats per token, the mean over seeds; ``trials`` how many candidates are proposed before the
    answer is settled.
    """

    damage: float = Field(gt=0)
    smallest: Literal["k", "strength"] = "k"
    trials: int = Field(default=12, ge=1)


class StudySpec(Spec):
    """A whole study: one model, one text, and the grid of scores × k × seeds × perturbations × groups.

    Only a study of ``compressions``, ``tunings``, ``faults``, ``attacks``, a ``population`` or ``facts``, or of the
    ``roles`` of given weights, may do without ``scores``: it ranks nothing.

    ``analyses`` are extra questions: "stability" compares seeds, "weights" also ranks by growing parts of each
    seed's calibration windows, "architecture" silences every sub-layer and expert and watches how experts are used.
    ``fidelity`` is how many single weights are damaged one by one to see what each score is worth (0: none).

    ``lists`` are sets of given weights, damaged beside the scores' own. Besides the whole sets, ``parts`` of them are
    damaged, and with ``one_by_one`` every member of a list and of a ``global`` score's largest set by itself.
    ``pairs`` is how many of the highest members of each set are damaged by twos, besides one at a time (0: none).
    ``repeats`` runs every whole-set cell so many times, with new draws where a kind draws. ``control_draws`` is how
    many sets of each drawn control a seed has: three random sets tell little of what random sets cost. ``early_stop``
    is the error rate at which a cell may stop before its last window (None: never). With a ``search`` the grid is a
    ladder of candidates, of which only some are run. ``protocols`` measure the intact model.

    ``compressions`` are ways to prune or quantize the model, each calibrated on every seed's windows and measured on
    the evaluation windows and on ``other_texts``, of another domain. ``tunings`` are ways to tune it to the text
    ``target``, each by every seed, which draws the target's ``calibration_windows`` to train on and
    ``validation_windows`` more to choose learning rates by; what is forgotten shows on the study's evaluation windows.
    ``faults`` hit the weights as they are stored, and ``attacks`` flip their bits on purpose, each by every seed.
    A ``population`` is one of small models with and without a backdoor, made of a model of the zoo.
    ``roles`` are tested of the leading weights of its ``global`` score, or of its list; ``facts`` are traced.
    ``save_models`` is a directory for the compressed and tuned models and the population's (None: they are measured and
    taken back).

    Example
    -------
    >>> spec = StudySpec(name="demo", model=ModelSpec(source="gpt2"), topk=(50, 100), seeds=(1, 2, 3),
    ...                  perturbations=(PerturbSpec(kind="zero"),), groups=("super", "random_k"))
    >>> spec.replace(topk=(10,)).topk
    (10,)
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$")
    model: ModelSpec
    data: DataSpec = DataSpec()
    scores: tuple[ScoreSpec, ...] = Field(default_factory=lambda: (ScoreSpec(),))
    topk: Unique = (100,)
    seeds: Unique = (1337,)
    perturbations: tuple[PerturbSpec, ...] = ()
    groups: tuple[Group, ...] = ("super",)
    analyses: tuple[Analysis, ...] = ()
    fidelity: int = Field(default=0, ge=0)
    lists: tuple[WeightList, ...] = ()
    parts: tuple[Subset, ...] = ()
    one_by_one: bool = False
    pairs: int = Field(default=0, ge=0)
    repeats: int = Field(default=1, ge=1)
    control_draws: int = Field(default=1, ge=1)
    early_stop: float | None = Field(default=None, gt=0, lt=0.5)
    search: Search | None = None
    protocols: tuple[Protocol, ...] = ()
    compressions: tuple[Compression, ...] = ()
    other_texts: tuple[DataSpec, ...] = ()
    tunings: tuple[TuneSpec, ...] = ()
    target: DataSpec | None = None
    validation_windows: int = Field(default=16, ge=1)
    faults: tuple[FaultSpec, ...] = ()
    attacks: tuple[AttackSpec, ...] = ()
    population: Population | None = None
    roles: RoleSpec | None = None
    facts: FactSpec | None = None
    save_models: str | None = None

    @field_validator("topk")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
            raise ValueError(f"k must be at least 1, not {min(value)}")
        return tuple(sorted(set(value)))

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 0 or max(value) >= 2**63:
            raise ValueError(f"a seed must be from 0 to 2**63 − 1, not {min(value) if min(value) < 0 else max(value)}")
        return tuple(dict.fromkeys(value))

    @field_validator(
        "scores", "perturbations", "analyses", "parts", "compressions", "other_texts", "tunings", "faults", "attacks"
    )
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("groups")
    @classmethod
    def _super_first(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # A control without the set that it controls for answers nothing.
        return tuple(dict.fromkeys(("super", *value)))

    @model_validator(mode="after")
    def _answerable(self) -> StudySpec:
        ranked = self.perturbations or (self.roles and not self.lists)
        if not self.scores and (ranked or not self.beyond_cells):
            raise ValueError(
                "--metric is empty; only a study of compressions, tunings, faults, attacks, a population or facts does "
                "without a score"
            )
        if len({(s.metric, s.mode) for s in self.scores}) < len(self.scores):
            raise ValueError("a metric and mode stand twice with other components; make them two studies")
        if len({(s.probes, s.relative_error, s.components) for s in self.scores if s.estimated}) > 1:
            raise ValueError("estimates of one study share their probes and components; give all the same")
        if len({p.name for p in self.protocols}) < len(self.protocols):
            raise ValueError("--protocol names one twice; leave one out")
        if len({w.name for w in self.lists}) < len(self.lists):
            raise ValueError("--weights: two lists have the same name; rename one of the files")
        if self.one_by_one and not (self.lists or any(s.mode == "global" for s in self.scores)):
            raise ValueError(
                "--one-by-one damages the members of lists and of global sets; add --mode global or --weights"
            )
        if self.tunings and self.target is None:
            raise ValueError("--target is missing: the text that the model is tuned to")
        if self.target is not None and not self.tunings:
            raise ValueError(
                "--target is the text that tunings are to, and none is asked for; add one, or leave it out"
            )
        self._check_tunings()
        self._check_memory()
        labels = [how.label for how in (*self.compressions, *self.tunings)]
        if self.save_models and (twice := [label for label in labels if labels.count(label) > 1]):
            raise ValueError(f"--save-model would write two models to {twice[0]}; make them two studies")
        self._check_population()
        self._check_roles()
        self._check_search()
        self._check_parts()
        self._check_units()
        if self.control_draws > 1 and not (self._damages and set(self.groups) & set(DRAWN_CONTROLS)):
            raise ValueError("--control-draws is about drawn controls; add --perturb, and --controls random_k")
        extra = self._of_damage()
        own = (extra == "--early-stop" and self.faults) or (extra == "--weights" and self.roles)
        if extra and not self.perturbations and not own:
            raise ValueError(f"{extra} is about damage; add --perturb, or leave it out")
        if "stability" in self.analyses and len(self.seeds) < 2:
            raise ValueError("--stability-check compares seeds; give at least two to --seeds")
        return self

    def _check_memory(self) -> None:
        """Refuse faults or attacks that are called alike, and attacks without the windows that they look at."""
        for what, told, ways in (
            ("faults", "components or repeats", [how.label for how in self.faults]),
            ("attacks", "budget, windows, candidates, tries or components", [how.label for how in self.attacks]),
        ):
            if alike := next((label for i, label in enumerate(ways) if label in ways[:i]), None):
                raise ValueError(f"two {what} called {alike} differ in {told}; make them two studies")
        for what, scores in (
            ("single flips", {how.score for how in self.faults if how.fault == "single"}),
            ("attacks", {how.score for how in self.attacks if how.arm in CONFINED}),
        ):
            if len(scores) > 1:  # reports pool them
                raise ValueError(f"{what} go by {' and by '.join(sorted(scores))}; make them two studies")
        need, have = max([0, *(how.windows for how in self.attacks)]), self.data.calibration_windows
        if need > have:
            raise ValueError(
                f"--search-windows and --selection-windows are {need} of the {have} calibration windows; raise "
                "--max-samples, or lower them"
            )

    def _check_population(self) -> None:
        if self.population is None:
            return
        source = self.model.source
        if not source.startswith("zoo:"):
            raise ValueError("a population is trained here from models of the zoo; name one, as zoo:llama-0.3m")
        if "~" in source:
            raise ValueError(f"{source} is but one parent of a population; name {source.partition('~')[0]}")
        if self.model.dtype not in ("auto", "fp32"):
            raise ValueError(f"a population is trained and measured in fp32, not in {self.model.dtype}; leave that out")
        if len(self.seeds) > 1:
            raise ValueError("a population draws its calibration windows once; give --seeds one seed")

    def _check_roles(self) -> None:
        """Refuse roles without the weights that they are of, and without the null that they are tested against."""
        if self.roles is None:
            return
        if len(self.scores) + len(self.lists) != 1 or len(self.topk) != 1:
            raise ValueError("roles are of the leading weights of one score, or of one list; give one of them, one k")
        if self.unit != "weight" or any(score.mode != "global" for score in self.scores):
            raise ValueError("roles are of the leading weights of a whole model; rank weights, by --mode global")
        if "matched_k" not in self.groups:
            raise ValueError("roles are tested against matched_k; add it to the groups")
        if self.roles.windows > self.data.evaluation_windows:
            raise ValueError(
                f"roles are tested on {self.roles.windows} windows of the {self.data.evaluation_windows} evaluation "
                "windows; raise --eval-windows"
            )

    @property
    def _damages(self) -> bool:
        """Whether any of its measurements damages ranked weights and their controls."""
        return bool(self.perturbations or self.roles)

    def controls_of(self, weights: WeightList) -> tuple[str, ...]:
        """The controls that a list is held against: one member for each of its own."""
        paired = DRAWN_CONTROLS if weights.unit == "weight" else PAIRED_CONTROLS
        return tuple(group for group in self.groups if group in paired)

    @property
    def applied(self) -> tuple[Compression | TuneSpec | FaultSpec | AttackSpec, ...]:
        """What is done to the model beside damage of ranked weights: compressions, tunings, faults, attacks."""
        return (*self.compressions, *self.tunings, *self.faults, *self.attacks)

    @property
    def beyond_cells(self) -> bool:
        """Whether it asks for more than rankings, what damage of them costs, and protocols."""
        return bool(self.applied or self.population or self.roles or self.facts)

    @property
    def unit(self) -> str:
        """What its scores rank: weight, row, col, neuron or head."""
        return self.scores[0].unit if self.scores else "weight"

    def _check_tunings(self) -> None:
        """Of one way there is one tuning for each learning rate: reports choose among these alone."""
        by_way: dict[str, list[TuneSpec]] = {}
        for how in self.tunings:
            by_way.setdefault(how.way, []).append(how)
        for way, mine in by_way.items():
            for how, other in combinations(mine, 2):
                unlike = [name for name in type(how).model_fields if getattr(how, name) != getattr(other, name)]
                if (alike := how.label == other.label) or unlike != ["learning_rate"]:
                    raise ValueError(
                        f"two tunings called {how.label if alike else way} differ in {', '.join(unlike)}; make them "
                        "two studies"
                    )

    def _check_units(self) -> None:
        if len({s.unit for s in self.scores}) > 1:
            raise ValueError("the scores of a study rank one kind of unit; make them a study each")
        if self.pairs == 1:
            raise ValueError("--pairs 1 makes no pair; give at least 2")
        few = [("--topk", max(self.topk))] * all(s.mode == "global" for s in self.scores)
        for source, k in [*few, *(("--weights", given.k) for given in self.lists)]:
            if self.pairs > k:
                raise ValueError(f"--pairs {self.pairs}: {source} has {k} members; give at most so many")
        if self.unit == "weight":
            if "largest_k" in self.groups:
                raise ValueError(
                    "largest_k is a control of rows, columns, neurons and heads; add --unit, or rank by --metric "
                    "magnitude beside your score"
                )
            return
        if "weights" in self.analyses:
            raise ValueError(f"--weight-analysis ranks single weights; leave it or --unit {self.unit} out")
        if self.fidelity:
            raise ValueError(f"--fidelity damages single weights; leave it or --unit {self.unit} out")

    def _of_damage(self) -> str | None:
        """What is asked for that only a grid of damage has, by its option; the first of it."""
        given = {
            "--weights": self.lists,
            "--layers": any(part.kind == "layer" for part in self.parts),
            "--restore": self.parts,
            "--one-by-one": self.one_by_one,
            "--pairs": self.pairs,
            "--repeats": self.repeats > 1,
            "--early-stop": self.early_stop is not None,
        }
        return next((option for option, asked in given.items() if asked), None)

    def _check_parts(self) -> None:
        if self.lists and any(p.needs_score for p in self.perturbations):
            raise ValueError(
                "--weights have no scores, which adaptive-score spreads its noise by; use --perturb adaptive-row"
            )
        for part in self.parts:
            for k in (*self.topk, *(given.k for given in self.lists)):
                if part.kind.startswith("all_but") and not 0 < round(part.value * k) < k:
                    raise ValueError(
                        f"--restore {part.value:g} of {k} weights is none or all of them; give another fraction"
                    )

    def _check_search(self) -> None:
        if self.search is None:
            return
        if not self.perturbations:
            raise ValueError("a search needs damage to search for; add --perturb")
        if extra := self._of_damage():
            raise ValueError(f"a search damages whole sets once over all windows; leave {extra} out")
        if len(self.groups) > 1:
            raise ValueError("a search looks at super weights alone; leave --controls out")
        if self.search.smallest == "k" and len(self.topk) < 2:
            raise ValueError("a search for the smallest k needs a ladder; give several --topk")
        if self.search.smallest == "strength":
            doses: dict[tuple[str, ...], set[float]] = {}
            for p in self.perturbations:
                if p.strength is None:
                    raise ValueError(f"{p.kind} has no strength to search over; use --smallest k")
                doses.setdefault(p.series, set()).add(p.dose)
            if max(map(len, doses.values())) < 2:
                raise ValueError(
                    "a search for the smallest strength needs a ladder; give several strengths of a kind, by "
                    "--perturb-scale or --perturb-prob"
                )

    def replace(self, **changes: object) -> StudySpec:
        """The same study with some fields changed, validated anew."""
        return self.model_copy(update=changes)
