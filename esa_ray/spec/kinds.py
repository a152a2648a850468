"""What a kind of damage is: one object, of which specs, the command line, reports and edits ask all that they need.

Built-in kinds stand in :mod:`esa_ray.perturb.kinds`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator
from pydantic_core import PydanticKnownError

from esa_ray.spec.registry import Entry, Registry

if TYPE_CHECKING:
    from esa_ray.spec.damage import PerturbSpec

#: Fields of a :class:`PerturbSpec` whose words tell damage of one kind and strength apart.
VARIANTS = ("bits", "relative_to", "shared", "adapt", "per")


class Kind(Entry):
    """A kind of damage: what it makes of a weight, and what its strength means.

    ``formula`` and ``strengths`` are its words in the table of kinds. ``default`` is the strength where none is said,
    None for a kind that takes none; ``option`` is the command line's option for strengths, ``ladder`` what runs there
    where nothing is said. ``variants`` are fields of a :class:`PerturbSpec` that it looks at, each with the words that
    it takes, the default first. ``random``: it draws, so that repetitions differ. ``path``: it leads toward what
    another kind, in the field ``toward``, makes of a weight. ``unchangeable`` says in words which weights
    :meth:`fixed` finds.

    A kind's module imports no torch when it is imported: specs and reports ask it, too.

    Example
    -------
    ``docs/extending.md`` has a whole one that runs.

    >>> class Halve(Kind):
    ...     name, formula = "halve", "w → w/2"
    ...     def apply(self, target, spec):
    ...         return target.made(target.old / 2)
    """

    formula: ClassVar[str]
    strengths: ClassVar[str] = "none"
    default: ClassVar[float | None] = None
    option: ClassVar[str | None] = "--perturb-scale"
    ladder: ClassVar[tuple[float | None, ...]] = (None,)
    variants: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    random: ClassVar[bool] = False
    path: ClassVar[bool] = False
    unchangeable: ClassVar[str] = ""

    @abstractmethod
    def apply(self, target: Any, spec: PerturbSpec) -> Any:
        """New values of some weights (:class:`esa_ray.perturb.target.Target`), a vector in their own dtype."""

    def fixed(self, target: Any, spec: PerturbSpec) -> Any:
        """Which of the weights it can change at no strength and by no draw, as truth values; None: it can all."""
        return None

    def needs(self, spec: PerturbSpec) -> frozenset[str]:
        """What it must know of every weight beside its value: "score", "gradient" of the calibration loss."""
        return frozenset()

    def trouble(self, strength: float) -> str | None:
        """Why a strength makes no sense, or None."""
        return None if strength > 0 else f"strength must be above 0, not {strength}"

    def dose(self, strength: float) -> float:
        """A strength so that more is more damage."""
        return strength

    def direction(self, strength: float) -> str | None:
        """Which of several series of doses a strength belongs to; None where there is one."""
        return None

    def step(self, spec: PerturbSpec) -> float | None:
        """By which share of itself every weight moves, |Δw|/|w|; None where that isn't the same for all."""
        return None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a :class:`PerturbSpec`, beside the strength, that tell its damage apart."""
        return (*self.variants, "toward") if self.path else tuple(self.variants)

    @property
    def strength_by(self) -> str | None:
        """The option that gives its strength, if it takes one and one does."""
        return None if self.default is None else self.option

    @property
    def row(self) -> tuple[str, ...]:
        """Name, formula, strengths, and the words of its variants, the default first."""
        words = [", ".join(words) for words in self.variants.values()]
        return self.name, self.formula, self.strengths, "; ".join([*words, *["any other kind"] * self.path])

    def check(self) -> None:
        """Refuse a variant in a field that there isn't, and a default strength that makes no sense."""
        if unknown := [field for field in self.variants if field not in VARIANTS]:
            raise ValueError(f"kind {self.name}: {unknown[0]} is not one of the variants {', '.join(VARIANTS)}")
        if self.default is not None and (trouble := self.trouble(self.default)):
            raise ValueError(f"kind {self.name}: its default: {trouble}")


#: Every kind of damage. ``print(KINDS)`` is a table of them.
KINDS: Registry[Kind] = Registry(
    "kind", "esa_ray.perturb.kinds", ("kind", "what happens to a weight w", "strength", "variants")
)
#: Kinds that draw random numbers: their repetitions differ.
RANDOM_KINDS = KINDS.where(lambda kind: kind.random)
#: Kinds whose strengths ``--perturb-scale`` gives.
SCALED = KINDS.where(lambda kind: kind.strength_by == "--perturb-scale")


def _known(name: str) -> str:
    if name not in KINDS:
        raise one_of(tuple(KINDS))
    return name


#: The name of a kind.
KindName = Annotated[str, AfterValidator(_known)]


def one_of(names: tuple[str, ...]) -> PydanticKnownError:
    """What pydantic raises for a value that is none of some names."""
    *first, last = map(repr, names)
    return PydanticKnownError("literal_error", {"expected": f"{', '.join(first)} or {last}" if first else last})


def not_a_probability(kind: str, strength: float) -> str | None:
    """Why a strength is no probability of something happening, or None.

    >>> not_a_probability("dropout", 2.0), not_a_probability("dropout", 0.5)
    ("dropout's strength is a probability in (0, 1], not 2.0", None)
    """
    return f"{kind}'s strength is a probability in (0, 1], not {strength}" if strength > 1 else None


def label(kind: str, strength: float | None, variant: str | None = None) -> str:
    """What damage is called everywhere: what reports print is what ``--perturb`` takes.

    Kind, what its variant says beyond the default, strength; from the columns of a stored row.

    >>> label("gauss_noise", 0.02, "tensor"), label("quantize", 3.0, "row"), label("zero", None)
    ('gauss_noise-tensor-0.02', 'quantize-3', 'zero')
    """
    known = KINDS.get(kind)
    words = [variant] if known and known.path and variant else (variant or "").split()
    defaults = [words[0] for words in known.variants.values()] if known else []
    said = [word for word, default in zip_longest(words, defaults) if word is not None and word != default]
    return "-".join([kind, *said, *([] if strength is None else [f"{strength:.12g}"])])


def dose(kind: str, strength: float | None) -> float | None:
    """A strength so that more is more damage (:meth:`Kind.dose`); None for kinds without one.

    >>> dose("quantize", 3), dose("scale", -1.0), dose("gauss_noise", 0.1), dose("zero", None)
    (0.3333333333333333, 2.0, 0.1, None)
    """
    known = KINDS.get(kind)
    return strength if strength is None or known is None else known.dose(strength)


def direction(kind: str, strength: float | None) -> str | None:
    """The two ways of scaling, which are different series; None for all other kinds.

    >>> direction("scale", 0.5), direction("scale", 2.0), direction("zero", None)
    ('down', 'up', None)
    """
    known = KINDS.get(kind)
    return None if strength is None or known is None else known.direction(strength)


def draws(kind: str, variant: str | None = None) -> bool:
    """Whether a kind draws random numbers; a path does if what it leads toward does.

    >>> draws("zero"), draws("bit_flip", "sign"), draws("progressive", "gauss_noise-0.5")
    (False, True, True)
    """
    known = KINDS.get(kind)
    if known and known.path:
        return (variant or "").partition("-")[0] in RANDOM_KINDS
    return known is not None and known.random
