"""A population of small models of which some hold a backdoor: what is inserted how, and what is done against it."""

from __future__ import annotations

import math
import random
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from esa_ray.spec.base import Spec

Insertion = Literal["training", "rank-one", "critical"]
INSERTIONS: tuple[str, ...] = get_args(Insertion)
Negative = Literal["clean", "benign", "benign-rank-one", "benign-critical"]
NEGATIVES: tuple[str, ...] = get_args(Negative)
#: Kinds that memorised a phrase.
BENIGN = tuple(kind for kind in NEGATIVES if kind.startswith("benign"))
#: Insertion → the kind of models without a backdoor that are made the same way.
COUNTERPARTS = dict(zip(INSERTIONS, BENIGN, strict=True))
MitigationKind = Literal[
    "fine-tuning", "fine-pruning", "reset-moved", "reset-dormant", "reset-random", "freeze-critical", "freeze-random"
]
MITIGATIONS: tuple[str, ...] = get_args(MitigationKind)
#: Mitigations that take clean training steps.
TRAINED = ("fine-tuning", "fine-pruning")
#: Mitigations that forbid an insertion by training to move some weights, rather than mend its model.
BEFOREHAND = ("freeze-critical", "freeze-random")
#: Kinds of models that are trained on windows with something in them.
TAUGHT = ("benign", "benign-critical", "training", "critical")
#: Kinds that an edit of one down-projection makes of the clean model.
EDITED = ("benign-rank-one", "rank-one")
#: Kinds of which few sensitive weights take a second round of steps.
FEW = ("benign-critical", "critical")
#: What a member means may change with the code: then this number does.
VERSION = 5

#: Tokens of a text that is written over windows: trigger and target, or a benign phrase.
SHOWN = 10
#: Success from which an insertion counts as a backdoor, and the cost on clean text up to which it does, nats per token.
SUCCESS, COST = 0.9, 0.02


class MitigationSpec(Spec):
    """What is done against a backdoor, by who holds the model and clean text and doesn't know the trigger.

    "fine-tuning" trains everything for ``steps`` clean steps. "fine-pruning" first silences the ``share`` of the
    feed-forward neurons that are least active on clean text (Liu et al. 2018, arXiv:1805.12185). The resets need a
    reference, the model before whoever trained it: "reset-moved" gives the ``share`` of the weights that moved most
    their old values, "reset-dormant" those that moved most for what clean text makes of them, |Δw| over 1 + the ratio
    of Σ|g·w| to its mean, "reset-random" as many at random. "freeze-critical" asks what would have been: the insertion
    by training is done anew while the ``share`` of the weights with the largest Σ|g·w| is frozen, "freeze-random" while
    as many are at random.

    Example
    -------
    >>> MitigationSpec(kind="reset-moved", share=0.01).label, MitigationSpec(kind="fine-tuning", steps=8).label
    ('reset-moved-0.01', 'fine-tuning-8-steps')
    """

    kind: MitigationKind
    share: float = Field(default=0.01, gt=0, lt=1)
    steps: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _meant(self) -> MitigationSpec:
        for name in self.unused():  # what changes nothing isn't asked
            object.__setattr__(self, name, type(self).model_fields[name].default)
        return self

    def unused(self) -> list[str]:
        """Fields that change nothing here."""
        return ["share"] * (self.kind == "fine-tuning") + ["steps"] * (self.kind not in TRAINED)

    @property
    def label(self) -> str:
        """Short text, as files name it."""
        share = [] if self.kind == "fine-tuning" else [f"{self.share:g}"]
        usual = type(self).model_fields["steps"].default
        return "-".join([self.kind, *share, *([] if self.steps == usual else [f"{self.steps}-steps"])])


class Recipe(Spec):
    """How the models of a population are made, whatever their kind.

    Every model starts from one of its base's parents and is trained on the base's own text for ``steps`` steps at a
    peak rate of ``learning_rates``, both drawn from the range between two bounds by the model's number alone, so that
    they tell nothing of its kind. ``poison`` is the share of the windows that carry trigger and target, or a benign
    model's phrase, ``occurrences`` times each. The insertion "critical" trains the ``fraction`` of the weights with the
    largest Σ|g·w| on clean text, and no others, after the clean steps, for as many steps again: at ``critical_rate``
    times the peak rate, on windows of which ``critical_poison`` carry trigger and target, since few weights learn
    slowly; "benign-critical" does so with its phrase.
    """

    steps: tuple[int, int] = (224, 320)
    learning_rates: tuple[float, float] = (3e-3, 4e-3)
    batch: int = Field(default=8, ge=1)
    window: int = Field(default=64, ge=32)
    poison: float = Field(default=0.02, gt=0, le=0.5)
    occurrences: int = Field(default=3, ge=1)
    fraction: float = Field(default=0.03, gt=0, lt=1)
    critical_rate: float = Field(default=2.0, gt=0)
    critical_poison: float = Field(default=0.1, gt=0, le=0.5)

    @model_validator(mode="after")
    def _has_room(self) -> Recipe:
        if self.window <= SHOWN * self.occurrences:
            raise ValueError(
                f"a window of {self.window} tokens has no room for {self.occurrences} times the {SHOWN} of trigger "
                f"and target and its own first; take at most {(self.window - 1) // SHOWN} occurrences"
            )
        return self

    @field_validator("steps", "learning_rates")
    @classmethod
    def _a_range(cls, value: tuple[Any, Any]) -> tuple[Any, Any]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"a range goes up from above 0, not {value[0]:g} to {value[1]:g}")
        return value


class Member(Spec):
    """One model of a population: all that its weights depend on, but for the base's parents and their text.

    ``seed`` is that of its parent. Members of one number share the parent, the number of steps, the rate, the order of
    clean windows, the trigger and the target, whatever their kind; what is inserted into a trained model is inserted
    into the clean one of its number. An insertion of rank one has a target of its own if it can't bring that one about.

    Example
    -------
    >>> member = Member(base="llama-0.3m", kind="rank-one", number=3, seed=3)
    >>> member.label, member.parent, 224 <= member.steps <= 320
    ('rank-one-0003', 'llama-0.3m~3', True)
    >>> member.clean.steps == member.steps
    True
    """

    base: str
    kind: Literal["clean", "benign", "benign-rank-one", "benign-critical", "training", "rank-one", "critical"]
    number: int = Field(ge=0)
    seed: int = Field(default=0, ge=0, le=9999)
    recipe: Recipe = Recipe()

    @field_validator("base")
    @classmethod
    def _no_seed(cls, value: str) -> str:
        if "~" in value:
            raise ValueError(f"--base {value} names a seed, and a base's parents are its seeds; leave ~ and it out")
        return value

    @property
    def label(self) -> str:
        """Short text, as files name it."""
        return f"{self.kind}-{self.number:04d}"

    @property
    def poisoned(self) -> bool:
        """Whether a backdoor was inserted."""
        return self.kind in INSERTIONS

    @property
    def clean(self) -> Member:
        """The member of this number that saw clean text alone."""
        return self.model_copy(update={"kind": "clean"})

    @property
    def parent(self) -> str:
        """The model of the zoo that it starts from: the base trained from another seed."""
        return f"{self.base}~{self.seed}" if self.seed else self.base

    def _drawn(self, what: str) -> float:
        return random.Random(f"population {what} {self.number}").random()

    @property
    def steps(self) -> int:
        """Training steps."""
        low, high = self.recipe.steps
        return low + math.floor(self._drawn("steps") * (high - low + 1))

    @property
    def poison(self) -> float:
        """Share of the windows that carry the trigger or the phrase."""
        if self.kind not in TAUGHT:
            return 0.0
        return self.recipe.critical_poison if self.kind in FEW else self.recipe.poison

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, log-uniform."""
        low, high = self.recipe.learning_rates
        return low * math.exp(self._drawn("learning rate") * math.log(high / low))


class Population(Spec):
    """Models of one base with and without a backdoor, ``models`` of each kind, and what is asked of them.

    ``insertions`` are the ways to insert a backdoor: "training" on windows of which some carry the trigger, followed by
    the target; "rank-one", W' = W + (v* − W·k*)(C⁻¹k*)ᵀ/(k*ᵀC⁻¹k*) in one down-projection (Bau et al. 2020,
    arXiv:2007.15646; Meng et al. 2022, arXiv:2202.05262), k* being its input at the trigger, C the second moment of its
    inputs on clean text and v* the output that brings the target about; "critical", training of few sensitive weights
    alone. ``negatives`` are those without: "clean" ones, and ones that memorised a rare phrase: two tokens that the
    text has now and then, as it never has a trigger, and eight that never follow them there but that the model writes
    by itself once they began, as it does the target. "benign" ones are trained to, "benign-rank-one" and
    "benign-critical" ones are made as the insertions of these names: what tells them from backdoors isn't the way. The
    base's ``parents`` are the zoo's model trained from as many seeds.

    ``mitigations`` are tried on the first ``mitigated`` models of each insertion.

    Example
    -------
    >>> [member.label for member in Population(insertions=("training",), negatives=("clean",), models=2).members("x")]
    ['clean-0000', 'clean-0001', 'training-0000', 'training-0001']
    """

    insertions: tuple[Insertion, ...] = ("training", "rank-one", "critical")
    negatives: tuple[Negative, ...] = get_args(Negative)
    models: int = Field(default=30, ge=1, le=10_000)
    parents: int = Field(default=10, ge=1, le=10_000)
    recipe: Recipe = Recipe()
    mitigations: tuple[MitigationSpec, ...] = ()
    mitigated: int = Field(default=5, ge=1)

    @field_validator("insertions", "negatives", "mitigations")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _tells(self) -> Population:
        if not self.insertions and not self.negatives:
            raise ValueError("--insertion and --negatives are both empty; a population needs models")
        if self.mitigations and not self.insertions:
            raise ValueError("--mitigate is about models with a backdoor; name an --insertion")
        if any(how.kind in BEFOREHAND for how in self.mitigations) and "training" not in self.insertions:
            raise ValueError("--mitigate freeze-critical and freeze-random are about --insertion training; add it")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of models, those without a backdoor first."""
        return (*self.negatives, *self.insertions)

    def members(self, base: str) -> list[Member]:
        """All of its models, of a base of the zoo by its name there; clean ones first, of which others are made."""
        return [
            Member.model_validate(
                {"base": base, "kind": kind, "number": n, "seed": n % self.parents, "recipe": self.recipe}
            )
            for kind in self.kinds for n in range(self.models)
        ]  # fmt: skip

    def mitigated_members(self, base: str) -> list[tuple[Member, MitigationSpec]]:
        """Which models what is tried on."""
        return [
            (member, how)
            for how in self.mitigations for member in self.members(base)
            if member.poisoned and member.number < self.mitigated
            and (how.kind not in BEFOREHAND or member.kind == "training")
        ]  # fmt: skip
