"""What is damaged, and how."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from esa_ray.identity import digest
from esa_ray.spec.base import Spec
from esa_ray.spec.kinds import KINDS, VARIANTS, Kind, KindName, direction, dose, draws, label, one_of
from esa_ray.spec.scores import PLURALS, Ranked

SubsetKind = Literal["layer", "only", "all_but_first", "all_but_last", "single", "pair"]

#: Group of the weights of a :class:`WeightList`, and the score that their rows and rankings name.
LISTED = "listed"
#: Bits of mantissa of fp32, the finest dtype that a model is loaded in.
LONGEST_MANTISSA = 23
#: The kind that a path leads toward where nothing is said.
_END = "zero"
#: Kind, what follows it, and a strength at the end.
_LABEL = re.compile(r"([a-z][a-z0-9_]*?)((?:-[a-z_]+)*(?:-[a-z_].*?)?)?(?:-(-?[0-9][0-9.]*(?:e[+-]?[0-9]+)?))?")


class PerturbSpec(Spec):
    """One kind of damage at one strength; ``print(esa_ray.spec.KINDS)`` is a table of the kinds.

    ``bits``, ``relative_to``, ``shared``, ``adapt`` and ``per`` are variants, of the kinds that have them
    (:attr:`Kind.variants`), and ``toward`` is where a path leads; what isn't said takes the kind's default.

    Damage that can never change a weight is refused before it runs: here where kind and strength say so
    (``scale`` by 1, steps that round away in every dtype), by the worker where the model's dtype does, and in its own
    cell, whose status is then ``empty``, where every weight of the set is one that the kind leaves as it is
    (:mod:`esa_ray.perturb.fixed`), say a set of zeros under ``zero``. A draw, or an edit, that happened to change
    nothing is an outcome instead, ΔNLL 0, and counts in every mean: without it the cost of rare bit flips would be
    that of the cells in which a bit flipped.

    >>> PerturbSpec.parse("bit_flip-mantissa-0.05").label, PerturbSpec(kind="quantize", strength=3).label
    ('bit_flip-mantissa-0.05', 'quantize-3')
    """

    kind: KindName
    strength: float | None = None
    bits: str | None = None
    relative_to: str | None = None
    shared: str | None = None
    adapt: str | None = None
    per: str | None = None
    toward: PerturbSpec | None = None

    @field_validator(*VARIANTS)
    @classmethod
    def _word(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and (kind := KINDS.get(info.data.get("kind", ""))):
            words = kind.variants.get(str(info.field_name))
            if words and value not in words:
                raise one_of(words)
        return value

    @model_validator(mode="after")
    def _complete(self) -> PerturbSpec:
        kind = self._kind
        if self.strength is not None and (trouble := _trouble(kind, self.strength)):
            raise ValueError(trouble)
        for name in (*VARIANTS, "toward"):
            if getattr(self, name) is not None and name not in kind.fields:
                raise ValueError(f"{name} belongs to {' and '.join(_owners(name))}, not to {kind.name}")
        for name in ("strength", *kind.fields):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self._usual(name))
        if self.toward is not None and self.toward._kind.path:
            raise ValueError(f"{kind.name} leads toward another kind, not toward itself")
        if self.step_rounds_away(LONGEST_MANTISSA):
            raise ValueError(
                f"{self.label} can never change a weight: {self.step:.2g} of one rounds away in fp32 and in every "
                "shorter dtype; give another strength"
            )
        return self

    def _usual(self, name: str) -> Any:
        """What a field means here that isn't stated."""
        kind = self._kind
        if name == "toward":
            return PerturbSpec(kind=_END)
        return kind.default if name == "strength" else kind.variants[name][0]

    def _default_of(self, name: str) -> Any:
        return self._usual(name) if name in self._kind.fields else super()._default_of(name)

    @property
    def _kind(self) -> Kind:
        return KINDS[self.kind]

    @classmethod
    def parse(cls, text: str) -> PerturbSpec:
        """A perturbation from its label; what is left out takes its default.

        Raises
        ------
        ValueError
            If a part of the text is no kind, variant or strength.
        """
        return cls.model_validate(cls.fields_of(text))

    @classmethod
    def fields_of(cls, text: str) -> dict[str, Any]:
        """The fields that a label states; ``strength`` is None where it states none."""
        found = _LABEL.fullmatch(text)
        if found is None or found[1] not in KINDS:
            raise ValueError(f"{text!r} is not one of {', '.join(KINDS)}, or one with its variant and strength")
        kind, rest, number = KINDS[found[1]], (found[2] or "")[1:], found[3]
        fields: dict[str, Any] = {"kind": kind.name, "strength": float(number) if number else None}
        if kind.path and rest:
            return fields | {"toward": cls.parse(rest)}
        for word in filter(None, rest.split("-")):
            names = [name for name, words in kind.variants.items() if word in words]
            if not names:
                raise ValueError(f"{text!r}: {word!r} is no variant of {kind.name}")
            if names[0] in fields:
                raise ValueError(f"{text!r} says both {fields[names[0]]} and {word}")
            fields[names[0]] = word
        return fields

    @property
    def variant(self) -> str | None:
        """What tells two cells of one kind and strength apart: bit class, scale, unit, grid, or where a path leads."""
        if self.toward is not None:
            return self.toward.label
        named = [(getattr(self, name), words[0]) for name, words in self._kind.variants.items()]
        while len(named) > 1 and named[-1][0] == named[-1][1]:
            named.pop()  # a second variant is said where it is another than usual
        return " ".join(word for word, _ in named) or None

    @property
    def label(self) -> str:
        """Short text for people and file names, e.g. ``gauss_noise-0.02``; :meth:`parse` reads it back."""
        return label(self.kind, self.strength, self.variant)

    @property
    def dose(self) -> float:
        """The strength so that more is more damage (:func:`dose`); 0 for kinds without one."""
        return dose(self.kind, self.strength) or 0.0

    @property
    def step(self) -> float | None:
        """By which share of itself every weight moves, |Δw|/|w|; None where that isn't the same for all."""
        return self._kind.step(self)

    @property
    def amount(self) -> float:
        """The strength as a number, for formulas; 0 for kinds without one."""
        return self.strength or 0.0

    def step_rounds_away(self, mantissa: int) -> bool:
        """Whether its step is so small that a dtype with so many bits of mantissa has no other number so near.

        Half of the distance to the next number is 2^−(mantissa + 2) of a weight or more; a tie goes to the weight
        itself where it is just that. Kinds that draw, and those that move weights to a grid or a mean, aren't judged.

        >>> spec = PerturbSpec.parse("scale-1.001")
        >>> spec.step_rounds_away(7), spec.step_rounds_away(10)  # bf16, fp16
        (True, False)
        """
        return self.step is not None and self.step <= 2.0 ** -(mantissa + 2)

    @property
    def series(self) -> tuple[str, ...]:
        """What perturbations share that differ by dose alone: kind, variant, and whether scaling is up or down."""
        return tuple(filter(None, (self.kind, self.variant, direction(self.kind, self.strength))))

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return draws(self.kind, self.variant)

    @property
    def needs_gradient(self) -> bool:
        """Whether it needs the gradient of the calibration loss at every weight."""
        return "gradient" in self._kind.needs(self)

    @property
    def needs_score(self) -> bool:
        """Whether it needs the score of every weight."""
        return "score" in self._kind.needs(self)


def _trouble(kind: Kind, strength: float) -> str | None:
    """Why a strength makes no sense for a kind, or None."""
    return f"{kind.name} takes no strength" if kind.default is None else kind.trouble(strength)


def _owners(name: str) -> list[str]:
    """The kinds that look at a field."""
    return [kind.name for kind in KINDS.values() if name in kind.fields]


class Subset(Spec):
    """Which weights of a set are damaged, when it isn't the whole set.

    ``layer``: those of one block, counted from 0. ``only``: one member alone, counted from 1. ``all_but_first`` and
    ``all_but_last``: all but this fraction of every pool's k, from its highest or its lowest ranks: what the rest
    costs tells what restoring these brings back. ``single`` and ``pair``: the member, or the two (``value`` and
    ``other``), at these places of the whole set, counted from 1 by score whatever the pool, or in a list's own order.

    >>> Subset(kind="pair", value=1, other=3).label
    'pair-1-3'
    """

    kind: SubsetKind
    value: float = Field(ge=0)
    other: int | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Subset:
        if self.kind.startswith("all_but") and not 0 < self.value < 1:
            raise ValueError(f"a restored part is a fraction between 0 and 1, not {self.value:g}")
        if not self.kind.startswith("all_but") and self.value != int(self.value):
            raise ValueError(f"{self.kind} takes a whole number, not {self.value:g}")
        if self.kind in ("only", "single", "pair") and self.value < 1:
            raise ValueError("members are counted from 1")
        if (self.kind == "pair") != (self.other is not None):
            raise ValueError("other is the second member of a pair, and of nothing else")
        if self.other is not None and self.other <= self.value:
            raise ValueError(f"a pair names the higher place first, not {self.value:g} and {self.other}")
        return self

    @property
    def label(self) -> str:
        """Short text for file names."""
        return f"{self.kind}-{self.value:g}" + (f"-{self.other}" if self.other is not None else "")


class WeightName(Spec):
    """One weight by name: its tensor, output row and input column, and the expert of a 3-D tensor.

    Without a column it is the whole row, without a row the whole column.

    >>> WeightName(tensor="lm_head.weight", row=3, col=None).unit
    'row'
    """

    tensor: str = Field(min_length=1)
    row: int | None = Field(ge=0)
    col: int | None = Field(default=0, ge=0)
    expert: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _somewhere(self) -> WeightName:
        if self.row is None and self.col is None:
            raise ValueError(f"{self.tensor} is named without a row and without a column; give one of them")
        return self

    @property
    def unit(self) -> Ranked:
        """What it names: a weight, a row or a col."""
        return "row" if self.col is None else "col" if self.row is None else "weight"

    @property
    def place(self) -> str:
        """Where in its tensor, in words."""
        words = {"row": f"row {self.row}", "col": f"column {self.col}", "weight": f"[{self.row}, {self.col}]"}
        return words[self.unit]


class WeightList(Spec):
    """Weights, or whole rows or columns, that are given rather than chosen by a score, in the order of their ranks.

    :func:`esa_ray.weights.read_weights` makes one of a file or of another study.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    weights: tuple[WeightName, ...] = Field(min_length=1)

    @field_validator("weights")
    @classmethod
    def _once(cls, value: tuple[WeightName, ...]) -> tuple[WeightName, ...]:
        if len(set(value)) < len(value):
            twice = next(w for i, w in enumerate(value) if w in value[:i])
            raise ValueError(f"{twice.tensor} {twice.place} stands twice in a list")
        if len(kinds := sorted({w.unit for w in value})) > 1:
            raise ValueError(f"a list names {PLURALS[kinds[0]]} and {PLURALS[kinds[1]]}; make it two lists")
        return value

    @property
    def unit(self) -> Ranked:
        """What it names: weights, rows or cols, in the singular."""
        return self.weights[0].unit

    @property
    def k(self) -> int:
        """How many weights it names."""
        return len(self.weights)

    @property
    def digest(self) -> str:
        """Its content as 16 hex digits."""
        return digest([w.content() for w in self.weights])
