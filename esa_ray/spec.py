"""Specs: what a study is, as frozen and validated values.

A spec says what to compute and never where. Variants derive with ``model_copy(update=...)`` or
:meth:`StudySpec.replace`; every field is checked again on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from esa_ray.errors import EsaError

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Metric = Literal[
    "grad_x_weight", "grad_x_weight_abs", "grad_squared", "act_mag", "magnitude", "hutchinson_diag", "hutchinson_abs",
    "super_activation",
]  # fmt: skip
Mode = Literal["per_layer", "per_tensor", "global"]
Group = Literal["super", "random_k", "matched_k", "bottom_k"]
Kind = Literal["sign_flip", "zero", "gauss_noise", "bit_flip"]
Bits = Literal["all", "sign", "exponent", "mantissa"]
NoiseScale = Literal["weight", "tensor"]
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
    """

    source: str = Field(default="pydoc", min_length=1)
    text_column: str = "text"
    split: str = "train"
    window: int = Field(default=128, ge=2)
    calibration_windows: int = Field(default=128, ge=1)
    evaluation_windows: int = Field(default=16, ge=2)
    batch_size: int = Field(default=8, ge=1)
    bos: Literal["auto", "always", "never"] = "auto"


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


class PerturbSpec(Spec):
    """One kind of damage at one strength.

    ======================  =====================================================  ====================
    kind                    what happens to a weight w                             strength
    ======================  =====================================================  ====================
    ``sign_flip``           w → (1 − 2λ) w                                         λ > 0; 1 flips
    ``zero``                w → 0                                                  none
    ``gauss_noise``         w + σ·|w|·ε, or w + σ·std(tensor)·ε                    σ > 0
    ``bit_flip``            each bit of the class is XORed with probability p      0 < p ≤ 1
    ======================  =====================================================  ====================
    """

    kind: Kind
    strength: float | None = None
    bits: Bits | None = None
    relative_to: NoiseScale | None = None

    @model_validator(mode="after")
    def _complete(self) -> PerturbSpec:
        defaults = {"sign_flip": 1.0, "zero": None, "gauss_noise": 0.02, "bit_flip": 0.05}
        fill: dict[str, object] = {}
        if self.kind == "zero" and self.strength is not None:
            raise ValueError("zero takes no strength")
        if self.strength is None:
            fill["strength"] = defaults[self.kind]
        elif not self.strength > 0:
            raise ValueError(f"strength must be above 0, not {self.strength}")
        elif self.kind == "bit_flip" and self.strength > 1:
            raise ValueError(f"bit_flip's strength is a probability in (0, 1], not {self.strength}")
        for name, kind, default in (("bits", "bit_flip", "all"), ("relative_to", "gauss_noise", "weight")):
            if self.kind == kind:
                fill[name] = getattr(self, name) or default
            elif getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to {kind}, not to {self.kind}")
        for name, value in fill.items():
            object.__setattr__(self, name, value)
        return self

    @property
    def variant(self) -> str | None:
        """What tells two cells of one kind and strength apart: the bit class, or what noise scales with."""
        return self.bits or self.relative_to

    @property
    def label(self) -> str:
        """Short text for people and file names, e.g. ``gauss_noise-0.02``."""
        parts: list[str] = [self.kind]
        if self.bits not in (None, "all"):
            parts.append(str(self.bits))
        if self.relative_to == "tensor":
            parts.append("tensor")
        if self.strength is not None:
            parts.append(f"{self.strength:g}")
        return "-".join(parts)


Unique = Annotated[tuple[int, ...], Field(min_length=1)]


class StudySpec(Spec):
    """A whole study: one model, one text, and the grid of scores × k × seeds × perturbations × groups.

    ``analyses`` are extra questions: "stability" compares seeds, "weights" also ranks by growing parts of each
    seed's calibration windows. ``fidelity`` is how many single weights are damaged one by one to see what each
    score is worth (0: none).

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

    @field_validator("scores", "perturbations", "analyses")
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
