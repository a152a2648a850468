"""What is damaged, and how."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from esa_ray.identity import digest
from esa_ray.spec.base import Spec

Kind = Literal[
    "sign_flip", "zero", "set_mean", "scale", "gauss_noise", "bit_flip", "gradient_aligned", "gradient_opposed",
    "correlated", "adaptive", "quantize", "progressive",
]  # fmt: skip
Bits = Literal["all", "sign", "exponent", "mantissa"]
NoiseScale = Literal["weight", "tensor"]
Shared = Literal["row", "layer", "component"]
Adapt = Literal["score", "row"]
Grid = Literal["row", "tensor"]
PartKind = Literal["layer", "only", "all_but_first", "all_but_last"]

KINDS: tuple[str, ...] = get_args(Kind)
#: Kinds that draw random numbers: their repetitions differ.
RANDOM_KINDS = frozenset({"gauss_noise", "bit_flip", "correlated", "adaptive"})
#: Kinds that move weights along the gradient of the calibration loss, and so need it.
GRADIENT_KINDS = frozenset({"gradient_aligned", "gradient_opposed"})
#: Group of the weights of a :class:`WeightList`, and the score that their rows and rankings name.
LISTED = "listed"

#: What tells perturbations of one kind and strength apart: kind → ((field, default), …).
_VARIANTS: dict[str, tuple[tuple[str, Any], ...]] = {
    "bit_flip": (("bits", "all"),),
    "gauss_noise": (("relative_to", "weight"),),
    "correlated": (("shared", "row"), ("relative_to", "weight")),
    "adaptive": (("adapt", "score"),),
    "quantize": (("per", "row"),),
    "progressive": (("toward", None),),
}
_DEFAULT_STRENGTH: dict[str, float | None] = {
    "sign_flip": 1.0, "zero": None, "set_mean": None, "scale": 0.5, "gauss_noise": 0.02, "bit_flip": 0.05,
    "gradient_aligned": 0.1, "gradient_opposed": 0.1, "correlated": 0.1, "adaptive": 0.1, "quantize": 4.0,
    "progressive": 0.5,
}  # fmt: skip
#: Bits of mantissa of fp32, the finest dtype that a model is loaded in.
LONGEST_MANTISSA = 23
#: Kinds whose strengths ``--perturb-scale`` gives.
SCALED = (
    "sign_flip", "scale", "gauss_noise", "gradient_aligned", "gradient_opposed", "correlated", "adaptive",
    "progressive",
)  # fmt: skip


def label(kind: str, strength: float | None, variant: str | None = None) -> str:
    """What damage is called everywhere: what reports print is what ``--perturb`` takes.

    Kind, what its variant says beyond the default, strength; from the columns of a stored row.

    >>> label("gauss_noise", 0.02, "tensor"), label("quantize", 3.0, "row"), label("zero", None)
    ('gauss_noise-tensor-0.02', 'quantize-3', 'zero')
    """
    words = [variant] if kind == "progressive" and variant else (variant or "").split()
    defaults = [default for _, default in _VARIANTS.get(kind, ())]
    said = [word for word, default in zip_longest(words, defaults) if word is not None and word != default]
    return "-".join([kind, *said, *([] if strength is None else [f"{strength:.12g}"])])


def dose(kind: str, strength: float | None) -> float | None:
    """A strength so that more is more damage; None for kinds without one.

    scale by α: |1 − α|. quantize to n bits: 1/(2^(n−1) − 1), the grid's step as a part of the largest weight.
    All others: the strength itself.

    >>> dose("quantize", 3), dose("scale", -1.0), dose("gauss_noise", 0.1), dose("zero", None)
    (0.3333333333333333, 2.0, 0.1, None)
    """
    if strength is None:
        return None
    if kind == "quantize":
        return 1 / (2 ** (strength - 1) - 1)
    return abs(1 - strength) if kind == "scale" else strength


def direction(kind: str, strength: float | None) -> str | None:
    """The two ways of scaling, which are different series; None for all other kinds.

    >>> direction("scale", 0.5), direction("scale", 2.0), direction("zero", None)
    ('down', 'up', None)
    """
    if kind != "scale" or strength is None:
        return None
    return "up" if strength > 1 else "down"


def draws(kind: str, variant: str | None = None) -> bool:
    """Whether a kind draws random numbers; a path does if what it leads toward does.

    >>> draws("zero"), draws("bit_flip", "sign"), draws("progressive", "gauss_noise-0.5")
    (False, True, True)
    """
    toward = (variant or "").partition("-")[0] if kind == "progressive" else None
    return kind in RANDOM_KINDS or toward in RANDOM_KINDS


def _strength_trouble(kind: str, strength: float | None) -> str | None:
    """Why a strength makes no sense for a kind, or None."""
    if strength is None:
        return None
    if _DEFAULT_STRENGTH[kind] is None:
        return f"{kind} takes no strength"
    if kind == "scale":
        return "scale by 1 changes nothing" if strength == 1 else None
    if not strength > 0:
        return f"strength must be above 0, not {strength}"
    if kind == "bit_flip" and strength > 1:
        return f"bit_flip's strength is a probability in (0, 1], not {strength}"
    if kind == "progressive" and strength > 1:
        return f"progressive's strength is the part of the way, in (0, 1], not {strength}"
    if kind == "quantize" and (strength != int(strength) or not 2 <= strength <= 16):
        return f"quantize's strength is a number of bits from 2 to 16, not {strength:g}"
    return None


class PerturbSpec(Spec):
    """One kind of damage at one strength.

    ====================  ==========================================================  ===================
    kind                  what happens to a weight w                                  strength
    ====================  ==========================================================  ===================
    ``sign_flip``         w → (1 − 2λ) w                                              λ > 0; 1 flips
    ``zero``              w → 0                                                       none
    ``set_mean``          w → mean of its tensor                                      none
    ``scale``             w → α w                                                     α ≠ 1
    ``gauss_noise``       w + σ·|w|·ε, or w + σ·std(tensor)·ε (``relative_to``)       σ > 0
    ``bit_flip``          each bit of the class (``bits``) XORed with probability p   0 < p ≤ 1
    ``gradient_aligned``  w + ε·|w|·sign(g), uphill for the calibration loss          ε > 0
    ``gradient_opposed``  w − ε·|w|·sign(g), downhill                                 ε > 0
    ``correlated``        as gauss_noise, with one draw for all weights of a row,     σ > 0
                          a layer or a component (``shared``)
    ``adaptive``          w + σ·a·ε, a by score or by row (``adapt``)                 σ > 0
    ``quantize``          to n bits, symmetric, per row or tensor (``per``)           n from 2 to 16
    ``progressive``       w + t·(w* − w), w* what ``toward`` makes of it              0 < t ≤ 1
    ====================  ==========================================================  ===================

    ``adaptive`` by "score" spreads the expected ‖Δ‖² of ``gauss_noise`` over the set in proportion to its squared
    scores, a = s·‖w‖/‖s‖ over the whole set; by "row" a is the root mean square of the weight's own output row.

    Damage that can never change a weight is refused before it runs: here where kind and strength say so
    (``scale`` by 1, steps that round away in every dtype), by the worker where the model's dtype does, and in its own
    cell, whose status is then ``empty``, where every weight of the set is one that the kind leaves as it is
    (:mod:`esa_ray.perturb.fixed`), say a set of zeros under ``zero``. A draw, or an edit, that happened to change
    nothing is an outcome instead, ΔNLL 0, and counts in every mean: without it the cost of rare bit flips would be
    that of the cells in which a bit flipped.

    >>> PerturbSpec.parse("bit_flip-mantissa-0.05").label, PerturbSpec(kind="quantize", strength=3).label
    ('bit_flip-mantissa-0.05', 'quantize-3')
    """

    kind: Kind
    strength: float | None = None
    bits: Bits | None = None
    relative_to: NoiseScale | None = None
    shared: Shared | None = None
    adapt: Adapt | None = None
    per: Grid | None = None
    toward: PerturbSpec | None = None

    @model_validator(mode="after")
    def _complete(self) -> PerturbSpec:
        if trouble := _strength_trouble(self.kind, self.strength):
            raise ValueError(trouble)
        mine = dict(_VARIANTS.get(self.kind, ()))
        fill: dict[str, object] = {}
        if self.strength is None:
            fill["strength"] = _DEFAULT_STRENGTH[self.kind]
        for name in ("bits", "relative_to", "shared", "adapt", "per", "toward"):
            if name in mine:
                default = PerturbSpec(kind="zero") if name == "toward" else mine[name]
                fill[name] = getattr(self, name) or default
            elif getattr(self, name) is not None:
                owners = [kind for kind, fields in _VARIANTS.items() if name in dict(fields)]
                raise ValueError(f"{name} belongs to {' and '.join(owners)}, not to {self.kind}")
        for name, value in fill.items():
            object.__setattr__(self, name, value)
        if self.toward is not None and self.toward.kind == "progressive":
            raise ValueError("progressive leads toward another kind, not toward itself")
        if self.step_rounds_away(LONGEST_MANTISSA):
            raise ValueError(
                f"{self.label} can never change a weight: {self.step:.2g} of one rounds away in fp32 and in every "
                "shorter dtype; give another strength"
            )
        return self

    def _default_of(self, name: str) -> Any:
        own = dict(_VARIANTS.get(self.kind, ()))
        if name == "toward" and "toward" in own:
            return PerturbSpec(kind="zero")
        return own.get(name, super()._default_of(name))

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
        found = re.fullmatch(r"([a-z_]+?)((?:-[a-z_]+)*(?:-[a-z_].*?)?)?(?:-(-?[0-9][0-9.]*(?:e[+-]?[0-9]+)?))?", text)
        if found is None or found[1] not in KINDS:
            raise ValueError(f"{text!r} is not one of {', '.join(KINDS)}, or one with its variant and strength")
        kind, rest, number = found[1], (found[2] or "")[1:], found[3]
        fields: dict[str, Any] = {"kind": kind, "strength": float(number) if number else None}
        if kind == "progressive" and rest:
            return fields | {"toward": cls.parse(rest)}
        domains = {"bits": Bits, "relative_to": NoiseScale, "shared": Shared, "adapt": Adapt, "per": Grid}
        for word in filter(None, rest.split("-")):
            names = [name for name, _ in _VARIANTS.get(kind, ()) if word in get_args(domains[name])]
            if not names:
                raise ValueError(f"{text!r}: {word!r} is no variant of {kind}")
            if names[0] in fields:
                raise ValueError(f"{text!r} says both {fields[names[0]]} and {word}")
            fields[names[0]] = word
        return fields

    @property
    def variant(self) -> str | None:
        """What tells two cells of one kind and strength apart: bit class, scale, unit, grid, or where a path leads."""
        if self.toward is not None:
            return self.toward.label
        named = [str(getattr(self, name)) for name, _ in _VARIANTS.get(self.kind, ())]
        if self.kind == "correlated" and self.relative_to == "weight":
            named = named[:1]
        return " ".join(named) or None

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
        shares = {"zero": 1.0, "sign_flip": 2 * self._given, "scale": abs(1 - self._given)}
        if self.toward is not None:
            return None if self.toward.step is None else self._given * self.toward.step
        return self._given if self.kind in GRADIENT_KINDS else shares.get(self.kind)

    @property
    def _given(self) -> float:
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
        return self.kind in GRADIENT_KINDS or (self.toward is not None and self.toward.needs_gradient)

    @property
    def needs_score(self) -> bool:
        """Whether it needs the score of every weight."""
        return self.adapt == "score" or (self.toward is not None and self.toward.needs_score)


class Part(Spec):
    """Which weights of a set are damaged, when it isn't the whole set.

    ``layer``: those of one block, counted from 0. ``only``: one member alone, counted from 1. ``all_but_first`` and
    ``all_but_last``: all but this fraction of every pool's k, from its highest or its lowest ranks: what the rest
    costs tells what restoring these brings back.
    """

    kind: PartKind
    value: float = Field(ge=0)

    @model_validator(mode="after")
    def _sensible(self) -> Part:
        if self.kind.startswith("all_but") and not 0 < self.value < 1:
            raise ValueError(f"a restored part is a fraction between 0 and 1, not {self.value:g}")
        if not self.kind.startswith("all_but") and self.value != int(self.value):
            raise ValueError(f"{self.kind} takes a whole number, not {self.value:g}")
        if self.kind == "only" and self.value < 1:
            raise ValueError("members are counted from 1")
        return self

    @property
    def label(self) -> str:
        """Short text for file names."""
        return f"{self.kind}-{self.value:g}"


class WeightName(Spec):
    """One weight by name: its tensor, output row and input column, and the expert of a 3-D tensor."""

    tensor: str = Field(min_length=1)
    row: int = Field(ge=0)
    col: int = Field(default=0, ge=0)
    expert: int | None = Field(default=None, ge=0)


class WeightList(Spec):
    """Weights that are given rather than chosen by a score, in the order of their ranks.

    :func:`esa_ray.weights.read_weights` makes one of a file or of another study.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    weights: tuple[WeightName, ...] = Field(min_length=1)

    @field_validator("weights")
    @classmethod
    def _once(cls, value: tuple[WeightName, ...]) -> tuple[WeightName, ...]:
        if len(set(value)) < len(value):
            twice = next(w for i, w in enumerate(value) if w in value[:i])
            raise ValueError(f"{twice.tensor} [{twice.row}, {twice.col}] stands twice in a list")
        return value

    @property
    def k(self) -> int:
        """How many weights it names."""
        return len(self.weights)

    @property
    def digest(self) -> str:
        """Its content as 16 hex digits."""
        return digest([w.content() for w in self.weights])
