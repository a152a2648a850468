"""How a model is tuned: which weights are trained, at what rate, what is protected, and what is damaged on the way."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from esa_ray.spec.base import Spec
from esa_ray.spec.damage import PerturbSpec
from esa_ray.spec.metrics import PROBED, SCORES, members
from esa_ray.spec.scores import check_components, check_metric

Arm = Literal["full", "lora", "critical-source", "critical-target", "magnitude", "bottom", "random"]
ARMS: tuple[str, ...] = get_args(Arm)
Protection = Literal["none", "ewc", "freeze", "scale"]
PROTECTIONS: tuple[str, ...] = get_args(Protection)
#: Arms whose weights a score of the source text chooses.
BY_SOURCE = ("critical-source", "bottom")
#: Protection → what its strength is, and where it stands if nothing is said.
STRENGTHS: dict[str, tuple[str, float]] = {
    "ewc": ("λ of λ/2·Σ F·(w − w₀)², F over its mean", 1.0),
    "freeze": ("the share of the weights that don't move, those with the largest F", 0.01),
    "scale": ("τ of 1/(1 + F/τ), F over its mean", 1.0),
}
#: What is tuned where nothing is said: every matrix of the blocks.
TUNED = check_components(("attention", "ffn", "mixer"))


class TuneSpec(Spec):
    """One way to tune: which weights learn, how fast and how long, what holds others back, what is damaged meanwhile.

    ``arm`` says which weights of ``components`` are trained, exactly ⌊fraction·N⌋ of N: "full" all of them;
    "critical-source" those with the largest ``score`` on the source text, "bottom" those with the smallest;
    "critical-target" those with the largest Fisher information Σ g² on the target's training windows; "magnitude" the
    largest |w|; "random" a draw, of which ``draw`` is the number. "lora" stands adapters beside the matrices (Hu et al.
    2021, arXiv:2106.09685) at the rank whose count comes nearest, or beside those of query and value alone where rank 1
    is too many and that comes nearer; it leaves convolutions alone. What isn't trained stays bit for bit.

    Adam with ``learning_rate`` (a linear warm-up over the first tenth of ``steps``, then linear decay to 0) and no
    weight decay takes ``batch`` windows a step, of which as many pass the model at a time as the target's
    ``batch_size`` says; the gradient of the mean loss per token is clipped to norm 1. The
    outcome is measured ``looks`` times, evenly over the steps.

    ``protect`` keeps what the source text needs, F being the Fisher information of its calibration windows: "ewc" adds
    λ/2·Σ F·(w − w₀)² (Kirkpatrick et al. 2017, arXiv:1612.00796), "freeze" leaves the top share alone, "scale"
    multiplies each update by 1/(1 + F/τ). Every ``rescore`` steps F is measured anew (0: never).

    ``damage`` is done to the ``damaged`` weights with the largest ``score`` in the forward and backward pass of every
    step, drawn anew each time, and taken back before the update: tuning for robustness.

    Example
    -------
    >>> TuneSpec(arm="critical-source", fraction=0.001, learning_rate=1e-3).label
    'critical-source-0.001-lr0.001'
    >>> TuneSpec(protect="ewc", strength=10).label
    'full-lr0.0001-ewc10'
    """

    arm: Arm = "full"
    fraction: float = Field(default=0.01, gt=0, le=1)
    score: str = "grad_x_weight_abs"
    draw: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    steps: int = Field(default=100, ge=1)
    batch: int = Field(default=8, ge=1)
    looks: int = Field(default=4, ge=1)
    protect: Protection = "none"
    strength: float | None = Field(default=None, gt=0)
    rescore: int = Field(default=0, ge=0)
    damage: PerturbSpec | None = None
    damaged: int = Field(default=100, ge=1)
    components: tuple[str, ...] = Field(default=TUNED, min_length=1)

    @field_validator("components")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_components(value)

    @field_validator("damage", mode="before")
    @classmethod
    def _by_label(cls, value: Any) -> Any:
        return PerturbSpec.parse(value) if isinstance(value, str) else value

    @field_validator("score")
    @classmethod
    def _a_score(cls, value: str) -> str:
        value = check_metric(value)
        if probed := [name for name in members(value) if name in PROBED]:
            raise ValueError(f"{probed[0]} is estimated by probes, which tell few weights apart; choose another score")
        if alone := [name for name in members(value) if SCORES[name].alone]:
            raise ValueError(f"{alone[0]} scores a few components alone; choose a score of every matrix")
        return value

    @model_validator(mode="after")
    def _one_question(self) -> TuneSpec:
        if self.looks > self.steps:
            raise ValueError(f"{self.looks} looks need as many steps; lower --looks or raise --steps")
        if self.protect == "none" and (self.strength is not None or self.rescore):
            raise ValueError("a strength and --rescore belong to --protect; add one, or leave them out")
        if self.rescore >= self.steps:
            raise ValueError(f"--rescore {self.rescore} is never done in {self.steps} steps; lower it, or leave it out")
        if self.protect == "freeze" and self.strength is not None and self.strength >= 1:
            raise ValueError("--protect freeze leaves something to train only below a share of 1")
        if self.protect != "none" and self.arm != "full":
            raise ValueError(f"--protect {self.protect} holds back full tuning; use --arm full")
        if self.damage is not None and self.arm == "lora":
            raise ValueError("--damage is done to the weights themselves, beside which adapters stand; use another arm")
        if self.damage is not None and (self.damage.needs_score or self.damage.needs_gradient):
            what = "a score" if self.damage.needs_score else "the gradient"
            raise ValueError(f"--damage {self.damage.label} goes by {what}, which tuning changes; choose another")
        for name in members(self.score) if self.arm in BY_SOURCE or self.damage is not None else ():
            SCORES[name].check_components(self.components)
        for name in self.unused():  # what changes nothing isn't asked
            object.__setattr__(self, name, type(self).model_fields[name].default)
        return self

    def unused(self) -> list[str]:
        """Fields that change nothing here."""
        by_score = self.arm in BY_SOURCE or self.damage is not None
        unused = {
            "fraction": self.arm == "full", "draw": self.arm != "random", "score": not by_score,
            "damaged": self.damage is None,
        }  # fmt: skip
        return [name for name, changes_nothing in unused.items() if changes_nothing]

    @property
    def dose(self) -> float | None:
        """The strength of the protection, stated or not; None without one."""
        return None if self.protect == "none" else self.strength or STRENGTHS[self.protect][1]

    @property
    def looked(self) -> tuple[int, ...]:
        """After which steps the outcome is measured, the last one among them.

        >>> TuneSpec(steps=10, looks=4).looked
        (2, 5, 8, 10)
        """
        return tuple(dict.fromkeys(max(1, round(self.steps * (i + 1) / self.looks)) for i in range(self.looks)))

    @property
    def way(self) -> str:
        """Short text for what it is apart from its learning rate: one of these is chosen by validation."""
        words: list[str] = [self.arm]
        words += [f"{self.fraction:g}"] if self.arm != "full" else []
        words += [self.score] if "score" in self.content() else []
        words += [f"draw{self.draw}"] if self.draw else []
        words += [f"{self.protect}{self.dose:g}"] if self.protect != "none" else []
        words += [f"rescore{self.rescore}"] if self.rescore else []
        words += [f"{self.damage.label}-of{self.damaged}"] if self.damage else []
        return "-".join(words)

    @property
    def label(self) -> str:
        """Short text for people and file names; what is as usual goes without saying."""
        first, *rest = self.way.split("-", 1) if self.arm == "full" else (self.way,)
        return "-".join([first, f"lr{self.learning_rate:g}", *rest])

    def _default_of(self, name: str) -> Any:
        if name == "strength" and self.protect != "none":
            return STRENGTHS[self.protect][1]
        return super()._default_of(name)
