"""What a study asks of the weights that a model hangs on: what they do, what they do to attention, what facts need."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from esa_ray.spec.base import Spec
from esa_ray.spec.damage import PerturbSpec

RoleName = Literal[
    "spike", "sink", "confidence", "frequency", "bigram", "induction", "previous-token", "position", "token-specific",
    "fact",
]  # fmt: skip
ROLES: tuple[RoleName, ...] = get_args(RoleName)
FactSource = Literal["countries", "elements"]
FACTS: tuple[str, ...] = get_args(FactSource)
Corruption = Literal["subject", "noise"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
SetName = Literal["row", "col", "neuron", "head"]
SETS: tuple[SetName, ...] = get_args(SetName)
#: A head is a sink's where its mean attention to one key exceeds this (Gu et al. 2025, arXiv:2410.10781).
SINK = 0.3
#: A channel spikes where its |h| is this many times the median |h| at its position (arXiv:2402.17762).
SPIKE = 100.0
#: Which way damage moves the metric of a weight that has the role: up, down, or (0) either way. A weight whose damage
#: moves it the other way works against it: what is to be tested is one-sided.
SIDES: dict[RoleName, int] = {
    "spike": -1, "sink": -1, "confidence": 0, "frequency": 1, "bigram": 1, "induction": 1, "previous-token": -1,
    "position": 0, "token-specific": 1, "fact": -1,
}  # fmt: skip
#: Kinds of damage that move a weight to about 0 or past it. Others may as well make it stronger, and have no side.
_AWAY = ("zero", "sign_flip", "set_mean")
#: Kendall's τ of the logits' ranks that a change of confidence leaves at least (arXiv:2406.16254).
RANKS_KEPT = 0.95


def side(role: RoleName, edit: PerturbSpec) -> int:
    """The sign that a change of a role's metric has under damage to a weight that has the role; 0: either.

    >>> side("sink", PerturbSpec(kind="zero")), side("sink", PerturbSpec(kind="scale", strength=1.5))
    (-1, 0)
    """
    weaker = edit.kind == "scale" and edit.strength is not None and edit.strength < 1
    return SIDES[role] if weaker or edit.kind in _AWAY else 0


class RoleSpec(Spec):
    """Which roles of the leading weights are tested, on how much text, and against which null.

    A role has a metric R and a mediator m, a place in the forward pass. A weight holds it if damage changes R beyond
    what damage of matched weights does (necessity), if holding m at its intact value undoes at least half of the damage
    (mediation, MF = 1 − ΔNLL(damaged, m held)/ΔNLL(damaged)), and if it undoes less than half of what matched weights
    cost that cost anything (specificity).

    ``edits`` are kinds of damage: the first is tested, the others repeat it. ``null_weights`` is how many matched
    weights of each tensor are damaged at most. ``windows`` is how many evaluation windows roles are tested on; the
    texts of single roles are made of as many. ``sets`` also damages the whole row, column, head or neuron of each
    leading weight. ``attention`` also measures sinks, entropy and spikes under each damage.

    Example
    -------
    >>> RoleSpec(roles=("sink", "spike")).roles, RoleSpec().edits[0].kind
    (('sink', 'spike'), 'zero')
    """

    roles: tuple[RoleName, ...] = Field(default=ROLES, min_length=1)
    edits: tuple[PerturbSpec, ...] = Field(
        default_factory=lambda: (PerturbSpec(kind="zero"),), min_length=1, validate_default=True
    )
    null_weights: int = Field(default=5, ge=1)
    windows: int = Field(default=8, ge=2)
    sets: tuple[SetName, ...] = ()
    attention: bool = True

    @field_validator("roles", "edits", "sets")
    @classmethod
    def _distinct(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("edits", mode="before")
    @classmethod
    def _labels(cls, value: object) -> object:
        """A damage may be stated by its label."""
        if not isinstance(value, list | tuple):
            return value
        return tuple(PerturbSpec.parse(each) if isinstance(each, str) else each for each in value)

    @field_validator("edits")
    @classmethod
    def _alone(cls, value: tuple[PerturbSpec, ...]) -> tuple[PerturbSpec, ...]:
        for edit in value:
            if edit.needs_score or edit.needs_gradient:
                what = "a score" if edit.needs_score else "the gradient"
                raise ValueError(f"{edit.label} needs {what} of each weight, which roles don't keep; take another kind")
        return value


class FactSpec(Spec):
    """Facts that a model may know, where it holds them, and whether the weights it hangs on are where.

    Causal tracing (Meng et al. 2022, arXiv:2202.05262): a prompt about a subject, the same with the subject corrupted,
    and the corrupted run with one state restored; the indirect effect is what that gives back of the answer's logit
    over an alternative's of the same type. ``corruptions``: "subject" puts another subject of the same type and length
    in its place, "noise" adds ``noise`` times the standard deviation of the embeddings to the subject's, ``draws``
    times. Only facts are traced that the model knows, in at least one paraphrase; ``paraphrases`` of each are tried.
    ``restored`` are how many neighbouring layers are restored at once: 1 and a window are told apart.

    ``sources`` are "countries" (capitals), "elements" (symbols and numbers), or a CSV of prompt, subject, answer and
    alternative; of each the first ``limit`` facts are asked about.

    Example
    -------
    >>> FactSpec(sources=("countries",)).limit, FactSpec().corruptions
    (40, ('subject', 'noise'))
    """

    # A fact is what it says, wherever that stands.
    origin: ClassVar[frozenset[str]] = frozenset({"sources"})

    sources: tuple[str, ...] = Field(default=FACTS, min_length=1)
    limit: int = Field(default=40, ge=1)
    paraphrases: int = Field(default=3, ge=1, le=3)
    corruptions: tuple[Corruption, ...] = Field(default=CORRUPTIONS, min_length=1)
    noise: float = Field(default=3.0, gt=0)
    draws: int = Field(default=10, ge=1)
    restored: tuple[int, ...] = Field(default=(1, 5), min_length=1)

    @field_validator("sources", "corruptions", "restored")
    @classmethod
    def _distinct(cls, value: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(dict.fromkeys(value))

    @property
    def anchored(self) -> FactSpec:
        """The same with absolute paths: the actors that read files run in other directories."""
        found = [name if name in FACTS else str(Path(name).expanduser().resolve()) for name in self.sources]
        return self.model_copy(update={"sources": found})

    @model_validator(mode="after")
    def _odd(self) -> FactSpec:
        if wrong := [n for n in self.restored if n < 1 or n % 2 == 0]:
            raise ValueError(f"layers are restored around one, so their number is odd and above 0, not {wrong[0]}")
        return self
