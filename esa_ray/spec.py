"""Specs: what a study is, as frozen and validated values.

A spec says what to compute and never where. Variants derive with ``model_copy(update=...)`` or
:meth:`StudySpec.replace`; every field is checked again on the way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from esa_ray.errors import EsaError
from esa_ray.identity import digest

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Metric = Literal[
    "grad_x_weight", "grad_x_weight_abs", "grad_squared", "act_mag", "magnitude", "hutchinson_diag", "hutchinson_abs",
    "super_activation",
]  # fmt: skip
Mode = Literal["per_layer", "per_tensor", "global"]
Group = Literal["super", "random_k", "matched_k", "bottom_k"]
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
Analysis = Literal["stability", "weights", "architecture"]
Component = Literal["q", "k", "v", "o", "gate", "up", "down", "router", "embed", "head", "norm"]

COMPONENT_GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("q", "k", "v", "o"),
    "ffn": ("gate", "up", "down", "router"),
}
COMPONENTS: tuple[str, ...] = get_args(Component)

METRICS: tuple[str, ...] = get_args(Metric)
#: Scores that are estimated with random probes.
PROBED = frozenset({"hutchinson_diag", "hutchinson_abs"})
#: Scores that don't depend on any text, and so not on the seed.
DATA_FREE = frozenset({"magnitude"})

KINDS: tuple[str, ...] = get_args(Kind)
#: Kinds that draw random numbers: their repetitions differ.
RANDOM_KINDS = frozenset({"gauss_noise", "bit_flip", "correlated", "adaptive"})
#: Kinds that move weights along the gradient of the calibration loss, and so need it.
GRADIENT_KINDS = frozenset({"gradient_aligned", "gradient_opposed"})
#: Group of the weights of a :class:`WeightList`, and the score that their rows and rankings name.
LISTED = "listed"

#: Controls that are drawn for the super weights of a ranking, down to its largest k.
DRAWN_CONTROLS = ("random_k", "matched_k")

#: What the plan understands but this version can't compute yet: shown by ``--plan``, refused by a run.
PLANNED_ANALYSES = frozenset({"architecture"})


def members(metric: str) -> tuple[str, ...]:
    """The scores that a rank ensemble combines; a score by itself is its only member.

    >>> members("grad_x_weight+act_mag")
    ('grad_x_weight', 'act_mag')
    """
    return tuple(metric.split("+"))


class Spec(BaseModel):
    """Base of all specs: immutable, and a field that nobody defined is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same spec with some fields changed, validated anew (pydantic's own copy checks nothing)."""
        return type(self).model_validate(self.model_dump() | dict(update or {}))


class ModelSpec(Spec):
    """A causal language model and the dtype its weights are held, scored and damaged in.

    ``source`` is a hub id, a local directory, a GGUF file, or the name of a packaged model.
    ``dtype="auto"`` is the file's dtype on a GPU and fp32 on a CPU, where bf16 is many times slower.
    """

    source: str = Field(min_length=1)
    dtype: Dtype = "auto"
    revision: str | None = None


class DataSpec(Spec):
    """A text, and how it is cut into calibration windows (for scores) and evaluation windows (for damage).

    ``window`` is the number of tokens in a window, BOS included; T-1 of them are scored.
    ``calibration_windows`` is drawn anew by every seed; the ``evaluation_windows`` are the same for all,
    and the two never overlap. ``bos="auto"`` begins a window with BOS where the tokenizer does by default.
    The first half of each of the first ``prompts`` evaluation windows is also continued, to see whether the
    damaged model's text runs into loops (0: none).
    """

    source: str = Field(default="pydoc", min_length=1)
    text_column: str = "text"
    split: str = "train"
    window: int = Field(default=128, ge=2)
    calibration_windows: int = Field(default=128, ge=1)
    evaluation_windows: int = Field(default=16, ge=2)
    batch_size: int = Field(default=8, ge=1)
    bos: Literal["auto", "always", "never"] = "auto"
    prompts: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _enough_windows(self) -> DataSpec:
        if self.prompts > self.evaluation_windows:
            raise ValueError(f"prompts are taken from the {self.evaluation_windows} evaluation windows; lower --prompts")
        return self


class ScoreSpec(Spec):
    """One ranking of weights: by which score, among which pool, over which components.

    ``metric`` is a score, or several joined by "+": their rank ensemble (:mod:`esa_ray.scoring.ensemble`).
    ``probes`` and ``relative_error`` say when an estimated score (``hutchinson_*``) is done: at the latest after
    so many probes, and no sooner than two, once ‖standard error‖ / ‖estimate‖ over all weights is that small.

    >>> ScoreSpec(metric="act_mag+grad_x_weight").metric
    'grad_x_weight+act_mag'
    """

    metric: str = "grad_x_weight"
    mode: Mode = "per_layer"
    components: tuple[str, ...] = ("attention", "ffn")
    probes: int | None = Field(default=None, ge=2)
    relative_error: float | None = Field(default=None, gt=0)

    @field_validator("metric")
    @classmethod
    def _metric(cls, value: str) -> str:
        parts = [part.strip() for part in members(value)]
        if unknown := [part for part in parts if part not in METRICS]:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(METRICS)}, or several of these joined by +")
        if len(set(parts)) < len(parts):
            raise ValueError(f"{value!r} names a score twice")
        return "+".join(m for m in METRICS if m in parts)

    @field_validator("components")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = {c for name in value for c in COMPONENT_GROUPS.get(name, (name,))}
        if unknown := sorted(names - set(COMPONENTS)):
            raise ValueError(f"{unknown[0]!r} is not one of attention, ffn, {', '.join(COMPONENTS)}")
        if not names:
            raise ValueError("at least one component is needed")
        return tuple(c for c in COMPONENTS if c in names)

    @model_validator(mode="after")
    def _defined(self) -> ScoreSpec:
        parts = set(members(self.metric))
        if "super_activation" in parts:
            if "down" not in self.components:
                raise ValueError("super_activation is defined for down-projections alone; add down to --components")
            object.__setattr__(self, "components", ("down",))
        if "act_mag" in parts and (undefined := {"embed", "norm"} & set(self.components)):
            raise ValueError(
                f"act_mag is defined for matrices that multiply activations; leave {' and '.join(sorted(undefined))} "
                "out of --components"
            )
        for name, default in (("probes", 8), ("relative_error", 0.1)):
            if parts & PROBED:
                object.__setattr__(self, name, getattr(self, name) or default)
            elif getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to estimated scores ({', '.join(sorted(PROBED))})")
        return self

    @property
    def estimated(self) -> bool:
        """Whether random probes are part of it."""
        return self.probes is not None


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
#: Kinds whose strength is a plain magnitude, from 0 up.
SCALED = ("sign_flip", "scale", "gauss_noise", "gradient_aligned", "gradient_opposed", "correlated", "adaptive")


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
        return self

    @classmethod
    def parse(cls, text: str) -> PerturbSpec:
        """A perturbation from its label; what is left out takes its default.

        Raises
        ------
        ValueError
            If a part of the text is no kind, variant or strength.
        """
        found = re.fullmatch(r"([a-z_]+?)((?:-[a-z_]+)*(?:-[a-z_].*?)?)?(?:-(-?[0-9][0-9.]*(?:e[+-]?[0-9]+)?))?", text)
        if found is None or found[1] not in KINDS:
            raise ValueError(f"{text!r} is not one of {', '.join(KINDS)}, or one with its variant and strength")
        kind, rest, number = found[1], (found[2] or "")[1:], found[3]
        fields: dict[str, Any] = {"kind": kind, "strength": float(number) if number else None}
        if kind == "progressive" and rest:
            return cls.model_validate(fields | {"toward": cls.parse(rest)})
        domains = {"bits": Bits, "relative_to": NoiseScale, "shared": Shared, "adapt": Adapt, "per": Grid}
        for word in filter(None, rest.split("-")):
            names = [name for name, _ in _VARIANTS.get(kind, ()) if word in get_args(domains[name])]
            if not names:
                raise ValueError(f"{text!r}: {word!r} is no variant of {kind}")
            fields[names[0]] = word
        return cls.model_validate(fields)

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
        parts: list[str] = [self.kind]
        for name, default in _VARIANTS.get(self.kind, ()):
            value = getattr(self, name)
            if name == "toward":
                parts.append(value.label)
            elif value != default:
                parts.append(str(value))
        if self.strength is not None:
            parts.append(f"{self.strength:.12g}")
        return "-".join(parts)

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return self.kind in RANDOM_KINDS or (self.toward is not None and self.toward.random)

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
        return digest([w.model_dump() for w in self.weights])


Unique = Annotated[tuple[int, ...], Field(min_length=1)]


class StudySpec(Spec):
    """A whole study: one model, one text, and the grid of scores × k × seeds × perturbations × groups.

    ``analyses`` are extra questions: "stability" compares seeds, "weights" also ranks by growing parts of each
    seed's calibration windows. ``fidelity`` is how many single weights are damaged one by one to see what each
    score is worth (0: none).

    ``lists`` are sets of given weights, damaged beside the scores' own. Besides the whole sets, ``parts`` of them are
    damaged, and with ``one_by_one`` every member of a list and of a ``global`` score's largest set by itself.
    ``repeats`` runs every whole-set cell so many times, with new draws where a kind draws. ``early_stop`` is the
    error rate at which a cell may stop before its last window (None: never).

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
    scores: tuple[ScoreSpec, ...] = Field(default=(ScoreSpec(),), min_length=1)
    topk: Unique = (100,)
    seeds: Unique = (1337,)
    perturbations: tuple[PerturbSpec, ...] = ()
    groups: tuple[Group, ...] = ("super",)
    analyses: tuple[Analysis, ...] = ()
    fidelity: int = Field(default=0, ge=0)
    lists: tuple[WeightList, ...] = ()
    parts: tuple[Part, ...] = ()
    one_by_one: bool = False
    repeats: int = Field(default=1, ge=1)
    early_stop: float | None = Field(default=None, gt=0, lt=0.5)

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

    @field_validator("scores", "perturbations", "analyses", "parts")
    @classmethod
    def _distinct(cls, value: tuple) -> tuple:
        return tuple(dict.fromkeys(value))

    @field_validator("groups")
    @classmethod
    def _super_first(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # A control without the set that it controls for answers nothing.
        return tuple(dict.fromkeys(("super", *value)))

    @model_validator(mode="after")
    def _answerable(self) -> StudySpec:
        if len({(s.metric, s.mode) for s in self.scores}) < len(self.scores):
            raise ValueError("scores: a metric and mode stand twice with other components; make them two studies")
        if len({(s.probes, s.relative_error, s.components) for s in self.scores if s.estimated}) > 1:
            raise ValueError("scores: estimates of one study share their probes and components; give all the same")
        if len({w.name for w in self.lists}) < len(self.lists):
            raise ValueError("lists: two have the same name; rename one of the files")
        if self.one_by_one and not (self.lists or any(s.mode == "global" for s in self.scores)):
            raise ValueError("one_by_one damages the members of lists and of global sets; add --mode global or --weights")
        extras = (self.lists or self.parts or self.one_by_one or self.repeats > 1 or self.early_stop is not None)
        if extras and not self.perturbations:
            raise ValueError("lists, parts, one_by_one, repeats and early_stop are about damage; add --perturb")
        if "stability" in self.analyses and len(self.seeds) < 2:
            raise ValueError("a stability check compares seeds; give at least two")
        return self

    def replace(self, **changes: object) -> StudySpec:
        """The same study with some fields changed, validated anew."""
        return self.model_copy(update=changes)


def unavailable(spec: StudySpec) -> list[str]:
    """One sentence for each thing the spec asks for that this version can plan but not compute."""
    flags = {"architecture": "--architecture-analysis"}
    return [
        f"{flags[a]} can be planned but not computed yet; leave it out" for a in spec.analyses if a in PLANNED_ANALYSES
    ]


def explain(error: ValidationError) -> EsaError:
    """A pydantic error as one sentence: the field, the value, and what is allowed."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the study"
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    shown = f" (got {value!r})" if isinstance(value, str | int | float) and repr(value) not in message else ""
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return EsaError(f"{field}: {message}{shown}{more}")
