"""Model, text and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from esa_ray.spec.base import Spec
from esa_ray.spec.metrics import PROBED, SCORES, members

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Mode = Literal["per_layer", "per_tensor", "global"]
Trust = Literal["remote_code", "pickle"]
#: What is ranked and damaged: single weights, rows or columns of matrices, neurons, attention heads.
Ranked = Literal["weight", "row", "col", "neuron", "head"]
UNITS: tuple[str, ...] = get_args(Ranked)
#: What many of them are called.
PLURALS = {"weight": "weights", "row": "rows", "col": "columns", "neuron": "neurons", "head": "heads"}
Combine = Literal["joint", "sum", "largest"]
Component = Literal[
    "q", "k", "v", "o", "q_latent", "kv_latent", "attn_gate",
    "gate", "up", "down", "router",
    "mixer_in", "mixer_gate", "mixer_q", "mixer_k", "mixer_v", "mixer_b", "mixer_c", "mixer_dt", "mixer_conv",
    "mixer_out",
    "embed", "head", "norm", "decay", "other",
]  # fmt: skip
COMPONENTS: tuple[str, ...] = get_args(Component)

#: ``mixer`` is what stands in attention's place in state-space and linear-attention blocks. What Mamba
#: (arXiv:2312.00752) calls x, z, B, C and Δ are ``mixer_in``, ``mixer_gate``, ``mixer_b``, ``mixer_c``, ``mixer_dt``; A
#: multiplies no activations and is ``decay``, beside the groups as norms are.
COMPONENT_GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("q", "k", "v", "o", "q_latent", "kv_latent", "attn_gate"),
    "ffn": ("gate", "up", "down", "router"),
    "mixer": tuple(c for c in COMPONENTS if c.startswith("mixer_")),
}
#: What is scored by default: every matrix of the blocks that is known.
BLOCK_COMPONENTS = tuple(c for group in COMPONENT_GROUPS.values() for c in group)
_FIRST_ATTENTION = ("q", "k", "v", "o")
#: Units that reach over several matrices, and the components that these are.
SPANNED = {"neuron": ("gate", "up", "down"), "head": (*_FIRST_ATTENTION, "attn_gate")}
_FIRST_BLOCK = (*_FIRST_ATTENTION, *COMPONENT_GROUPS["ffn"])


def asks_for(components: Sequence[str], component: str, tensor: str) -> bool:
    """Whether a selection takes the weights of a component in a tensor: by the component, or by the tensor's name.

    >>> asks_for(("q", "*.A_log"), "k", "h.0.attn.weight"), asks_for(("q", "*.A_log"), "other", "h.0.A_log")
    (False, True)
    """
    return component in components or any(is_tensor_name(c) and fnmatchcase(tensor, c) for c in components)


def grouped(components: Sequence[str]) -> list[str]:
    """A selection in the fewest names: a group's where all of its components are in.

    >>> grouped(("q", *COMPONENT_GROUPS["ffn"], "embed")), grouped(BLOCK_COMPONENTS)
    (['ffn', 'q', 'embed'], ['attention', 'ffn', 'mixer'])
    """
    whole = [name for name, group in COMPONENT_GROUPS.items() if set(group) <= set(components)]
    inside = {c for name in whole for c in COMPONENT_GROUPS[name]}
    return [*whole, *(c for c in components if c not in inside)]


def is_tensor_name(component: str) -> bool:
    """Whether a selected "component" is a tensor's name, or a pattern of names."""
    return "." in component or "*" in component


class ModelSpec(Spec):
    """A causal language model and the dtype its weights are held, scored and damaged in.

    ``source`` is a hub id, a local directory, a GGUF file, or the name of a packaged model.
    ``dtype="auto"`` is the file's dtype on a GPU and fp32 on a CPU, where bf16 is many times slower.
    ``trust`` names what of a stranger's model may run or be unpickled here: "remote_code", the Python code that it
    brings along, and "pickle", weights that aren't safetensors. It is part of no cell's identity: the fingerprint
    covers the content, code included.

    >>> ModelSpec(source="m", trust=("remote_code", "pickle", "pickle")).trust
    ('pickle', 'remote_code')
    """

    source: str = Field(min_length=1)
    dtype: Dtype = "auto"
    revision: str | None = None
    trust: tuple[Trust, ...] = ()

    @field_validator("trust")
    @classmethod
    def _by_name(cls, value: tuple[Trust, ...]) -> tuple[Trust, ...]:
        return tuple(sorted(set(value)))


#: Tokens of a window by default.
WINDOW = 128
#: Tokens of a batch by default. A product then does 1,024 operations for every byte of 16-bit weights that it reads;
#: a card is busy from about 300 on.
BATCH_TOKENS = 1024


class DataSpec(Spec):
    """A text, and how it is cut into calibration windows (for scores) and evaluation windows (for damage).

    A table's text stands in ``text_column``; with ``chat`` that holds messages, which the tokenizer's template writes
    down. ``split`` is that of a hub data set.
    ``window`` is the number of tokens in a window, BOS included; T-1 of them are scored.
    ``calibration_windows`` is drawn anew by every seed; the ``evaluation_windows`` are the same for all,
    and the two never overlap. ``batch_size`` windows pass a model at a time: by default as many as hold
    :data:`BATCH_TOKENS` tokens, at least one. ``bos="auto"`` begins a window with what the tokenizer puts before a
    text by default: BOS, another token, or nothing. The first half of each of the first ``prompts`` evaluation windows
    is also continued, to see whether the damaged model's text runs into loops (0: none).
    """

    # What the text says is part of an id, wherever it comes from. The batch is: it orders floating-point sums.
    origin: ClassVar[frozenset[str]] = frozenset({"source", "text_column", "chat", "split"})

    source: str = Field(default="pydoc", min_length=1)
    text_column: str = "text"
    chat: bool = False
    split: str = "train"
    window: int = Field(default=WINDOW, ge=2)
    calibration_windows: int = Field(default=128, ge=1)
    evaluation_windows: int = Field(default=16, ge=2)
    batch_size: int = Field(default=BATCH_TOKENS // WINDOW, ge=1)
    bos: Literal["auto", "always", "never"] = "auto"
    prompts: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _unsaid(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("batch_size", 1) is None:
            return {name: value for name, value in given.items() if name != "batch_size"}
        return given

    @model_validator(mode="after")
    def _filled(self) -> DataSpec:
        if "batch_size" not in self.model_fields_set:
            object.__setattr__(self, "batch_size", _filling(self.window))
        return self

    @model_validator(mode="after")
    def _enough_windows(self) -> DataSpec:
        if self.prompts > self.evaluation_windows:
            raise ValueError(
                f"--prompts {self.prompts}: prompts are taken from the {self.evaluation_windows} evaluation windows; "
                "lower it, or raise --eval-windows"
            )
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> DataSpec:
        """The same with some fields changed; a batch that went by the window goes by the new one."""
        unsaid = set() if "batch_size" in self.model_fields_set else {"batch_size"}
        return type(self).model_validate(self.model_dump(exclude=unsaid) | dict(update or {}))


def _filling(window: int) -> int:
    """Windows that hold ``BATCH_TOKENS`` tokens, at least one."""
    return max(1, BATCH_TOKENS // window)


def check_metric(value: str) -> str:
    """A score's name, or those of a rank ensemble in the order of the scores.

    >>> check_metric("act_mag + grad_x_weight")
    'grad_x_weight+act_mag'
    """
    parts = [part.strip() for part in members(value)]
    if unknown := [part for part in parts if part not in SCORES]:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(SCORES)}, or several of these joined by +")
    if len(set(parts)) < len(parts):
        raise ValueError(f"{value!r} names a score twice")
    # Those of others stand behind ours by name: the order in which packages were imported names no ensemble.
    own = [m for m in SCORES if m in parts and type(SCORES[m]).__module__.startswith("esa_ray.")]
    return "+".join([*own, *sorted(set(parts) - set(own))])


def check_components(value: tuple[str, ...]) -> tuple[str, ...]:
    """Components by name, groups of them spelt out, and names of tensors, in one order.

    >>> check_components(("ffn",))
    ('gate', 'up', 'down', 'router')
    """
    names = {c for name in value for c in COMPONENT_GROUPS.get(name, (name,))}
    tensors = sorted(filter(is_tensor_name, names))
    if unknown := sorted(names - {*COMPONENTS, *tensors}):
        raise ValueError(
            f"{unknown[0]!r} is not one of {', '.join((*COMPONENT_GROUPS, *COMPONENTS))}, nor a tensor's name"
        )
    if not names:
        raise ValueError("at least one component is needed")
    if names == set(_FIRST_BLOCK):
        names = set(BLOCK_COMPONENTS)
    elif names >= set(_FIRST_ATTENTION):
        names |= set(COMPONENT_GROUPS["attention"])
    return (*(c for c in COMPONENTS if c in names), *tensors)


class ScoreSpec(Spec):
    """One ranking of weights, or of larger units: by which score, among which pool, over which components.

    ``metric`` is a score (``print(esa_ray.spec.SCORES)`` is a table of them), or several joined by "+": their rank
    ensemble (:mod:`esa_ray.scoring.ensemble`).
    ``components`` are names of components, groups of them, and names of tensors, in which ``*`` stands for anything.
    ``probes`` and ``relative_error`` say when an estimated score (``hutchinson_*``) is done: at the latest after
    so many probes, and no sooner than two, once ‖standard error‖ / ‖estimate‖ over all weights is that small.
    ``unit`` is what is ranked (:mod:`esa_ray.models.units`), and ``combine`` how its weights' scores make its own:
    their "sum", the "largest" of them, or by default "joint", the score's own form for weights that are damaged
    together (``Score.joint``).

    >>> ScoreSpec(metric="act_mag+grad_x_weight").metric
    'grad_x_weight+act_mag'
    >>> ScoreSpec(unit="neuron").components, ScoreSpec(unit="row", metric="grad_squared", combine="sum").combine
    (('gate', 'up', 'down'), 'joint')
    """

    metric: str = "grad_x_weight"
    mode: Mode = "per_layer"
    components: tuple[str, ...] = tuple(COMPONENT_GROUPS)
    probes: int | None = Field(default=None, ge=2)
    relative_error: float | None = Field(default=None, gt=0)
    unit: Ranked = "weight"
    combine: Combine = "joint"

    @field_validator("metric")
    @classmethod
    def _metric(cls, value: str) -> str:
        return check_metric(value)

    @field_validator("components")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_components(value)

    @model_validator(mode="after")
    def _defined(self) -> ScoreSpec:
        parts = [SCORES[name] for name in members(self.metric)]
        for score in parts:
            if score.alone:
                object.__setattr__(self, "components", score.narrowed(self.components))
        for score in parts:
            score.check_components(self.components)
        self._complete_unit()
        for name, default in (("probes", 8), ("relative_error", 0.1)):
            if any(score.probed for score in parts):
                object.__setattr__(self, name, getattr(self, name) or default)
            elif getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to estimated scores ({', '.join(sorted(PROBED))})")
        return self

    def _complete_unit(self) -> None:
        """Narrow the components to those that the unit reaches over, and call its usual combination by one name."""
        if self.unit == "weight" and self.combine != "joint":
            raise ValueError(
                f"--combine {self.combine} is of units of many weights; add --unit row, col, neuron or head"
            )
        if spanned := SPANNED.get(self.unit):
            if lacking := [c for c in spanned if c not in self.components and c != "attn_gate"]:
                group = "ffn" if self.unit == "neuron" else "attention"
                raise ValueError(
                    f"a {self.unit} reaches over {', '.join(spanned[:-1])} and {spanned[-1]}, and {lacking[0]} isn't "
                    f"scored; give --components {group}, and scores that are defined for them"
                )
            object.__setattr__(self, "components", spanned)
        if {SCORES[name].joint for name in members(self.metric)} == {self.combine}:
            object.__setattr__(self, "combine", "joint")

    def _differing(self, inner: Callable[[Spec], dict[str, Any]]) -> dict[str, Any]:
        # A group by its name may grow by components that nobody knew.
        found, asked = super()._differing(inner), grouped(self.components)
        found.pop("components", None)
        return found if asked == list(COMPONENT_GROUPS) else found | {"components": asked}

    @property
    def estimated(self) -> bool:
        """Whether random probes are part of it."""
        return self.probes is not None
