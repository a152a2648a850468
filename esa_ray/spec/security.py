"""What is done to stored weights: faults of memory, protection against them, and flips that an adversary chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from esa_ray.spec.base import Spec
from esa_ray.spec.metrics import PROBED, SCORES, members
from esa_ray.spec.scores import check_components, check_metric, grouped

Stored = Literal["fp32", "fp16", "bf16", "int8"]
#: dtype of storage → bits of a weight.
STORED: dict[str, int] = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8}
Fault = Literal["uniform", "burst", "row", "column", "stuck", "single"]
FAULTS: tuple[str, ...] = get_args(Fault)
Protection = Literal[
    "none", "secded", "secded-critical", "tmr-critical", "zero-exponent-bit", "clamp", "parity-zero", "rotation"
]
DEFENCES: tuple[str, ...] = get_args(Protection)
#: Protections of a share of the weights, which a score chooses.
OF_CRITICAL = ("secded-critical", "tmr-critical")
#: Protections under which weights read otherwise than in the same dtype without one, even without a fault.
READ_OTHERWISE = ("parity-zero", "rotation")
#: Protections by SECDED words, which detect what they can't correct.
BY_WORDS = ("secded", "secded-critical")
Policy = Literal["zero", "reload", "stop"]
Code = Literal["hsiao", "hamming"]
Arm = Literal["guided", "guided-super", "guided-random", "guided-matched", "random-super", "random", "data-free"]
ATTACKS: tuple[str, ...] = get_args(Arm)
Threat = Literal["unrestricted", "stealthy"]
THREATS: tuple[str, ...] = get_args(Threat)
#: Arms whose flips a score's set confines, and that set's controls.
CONFINED = ("guided-super", "guided-random", "guided-matched", "random-super")
#: Arms that search by gradients.
GUIDED = tuple(arm for arm in ATTACKS if arm.startswith("guided"))
#: Arms of which there is more than one draw.
DRAWN = ("guided-random", "guided-matched", "random-super", "random")
#: What is stored where nothing is said: every matrix of the blocks, and what stands before and after them.
IN_MEMORY = check_components(("attention", "ffn", "mixer", "embed", "head", "norm"))
#: Bits of data in a word of memory.
WORD = 64


class _Memory(Spec):
    """What faults and attacks share: how weights are stored, and what protects them."""

    dtype: Stored = "bf16"
    protect: Protection = "none"
    critical: float = Field(default=0.001, gt=0, lt=1)
    score: str = "grad_x_weight_abs"
    policy: Policy = "zero"
    code: Code = "hsiao"
    components: tuple[str, ...] = Field(default=IN_MEMORY, min_length=1)

    @field_validator("components")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_components(value)

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
    def _meant(self) -> _Memory:
        if self.protect == "zero-exponent-bit" and self.dtype == "int8":
            raise ValueError("--protect zero-exponent-bit holds a float's top exponent bit, and int8 has none")
        for name in self.unused():  # what changes nothing isn't asked
            object.__setattr__(self, name, type(self).model_fields[name].default)
        return self

    def _differing(self, inner: Callable[[Spec], dict[str, Any]]) -> dict[str, Any]:
        # A group by its name may grow by components that nobody knew.
        found = super()._differing(inner)
        return found | {"components": grouped(self.components)} if "components" in found else found

    def unused(self) -> list[str]:
        """Fields that change nothing here."""
        unused = {
            "critical": self.protect not in OF_CRITICAL, "policy": self.protect not in BY_WORDS,
            "code": self.protect not in BY_WORDS, "score": not self.by_score,
        }  # fmt: skip
        return [name for name, changes_nothing in unused.items() if changes_nothing]

    @property
    def by_score(self) -> bool:
        """Whether a score chooses anything."""
        return self.protect in OF_CRITICAL

    @property
    def protection(self) -> str:
        """Short text for the protection, e.g. ``secded-critical0.001``."""
        words = [f"{self.protect}{self.critical:g}" if self.protect in OF_CRITICAL else self.protect]
        words += [name for name in (self.policy, self.code) if name not in ("zero", "hsiao")]
        return "-".join([*words, *(self._scored() if self.protect in OF_CRITICAL else [])])

    @property
    def _last(self) -> list[str]:
        """What ends a label: a score that chooses no protected weights, which the protection doesn't name."""
        return [] if self.protect in OF_CRITICAL else self._scored()

    def _scored(self) -> list[str]:
        return [self.score] if "score" in self.content() else []


class FaultSpec(_Memory):
    """Faults of one kind at one rate in weights that are stored and protected in one way, ``repeats`` times.

    The weights of ``components`` lie in memory one after the other in the order of the weights file, each in
    ``dtype``; int8 has a scale for each output row (a vector has one), max |w|/127, which faults spare. ``fault`` is

    - "uniform": every stored bit flips by itself with probability ``rate``;
    - "burst": ``burst`` neighbouring bits of a 64-bit word flip, which has 8 check bits more where it is protected;
    - "row": in ``row_bytes`` contiguous bytes, a row of DRAM, every bit reads 0 or 1 by chance;
    - "column": the same of one byte in every row, ``row_bytes`` apart;
    - "stuck": every bit is stuck with probability ``rate``, at 0 or 1 by chance;
    - "single": one bit flips. ``repeats`` flips of each bit are made in every component and range of the score's
      quantiles: what a flip does, by where it is.

    Of bursts, rows and columns ``rate`` is the expected share of bits that lie in one; or ``events`` is how many there
    are, to see what one does. Check bits are hit as data bits are.

    ``protect`` stands between memory and model. "secded": a code over 64-bit words that corrects one error and
    detects two, then ``policy`` zeroes the word, reloads it or stops; three or more may be miscorrected.
    "secded-critical": the same of words that hold one of the ⌊critical·N⌋ weights with the largest ``score`` on the
    seed's calibration windows. "tmr-critical": these weights three times, bitwise majority. "zero-exponent-bit": the
    top exponent bit reads 0 in tensors whose weights are all below 2. "clamp": values beyond the tensor's largest |w|
    are set to it, NaN to 0. "parity-zero": the last bit of a weight holds the parity of the others; a weight whose
    parity is wrong reads 0. "rotation": matrices are stored reflected, so that every input spreads over all weights of
    a row (:mod:`esa_ray.security.rotation`; arXiv:2603.16382 reflects outlying inputs alone).

    Example
    -------
    >>> FaultSpec(rate=1e-6, protect="secded").label
    'uniform-bf16-1e-06-secded'
    >>> FaultSpec(fault="burst", events=1, dtype="int8").label
    'burst4-int8-1x-none'
    """

    origin: ClassVar[frozenset[str]] = frozenset({"repeats"})

    fault: Fault = "uniform"
    rate: float | None = Field(default=None, gt=0, lt=1)
    events: int | None = Field(default=None, ge=1)
    burst: int = Field(default=4, ge=2, le=WORD)
    row_bytes: int = Field(default=2048, ge=WORD // 8, multiple_of=WORD // 8)
    repeats: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _one_dose(self) -> FaultSpec:
        if self.fault == "single":
            if self.rate is not None or self.events is not None:
                raise ValueError("single flips have neither a rate nor --events; leave it out")
            if self.protect not in ("none", "rotation"):
                raise ValueError("single flips tell what a flip does to what is read; leave --protect out")
            return self
        if self.fault in ("uniform", "stuck") and self.events is not None:
            raise ValueError(f"--events counts bursts, rows and columns; --fault {self.fault} has a --rate")
        if (self.rate is None) == (self.events is None):
            raise ValueError(
                f"--fault {self.fault} needs a --rate" + ("" if self.rate is None else " or --events, not both")
            )
        return self

    def unused(self) -> list[str]:
        """Fields that change nothing here."""
        return [
            *super().unused(), *(["burst"] if self.fault != "burst" else []),
            *(["row_bytes"] if self.fault not in ("row", "column") else []),
        ]  # fmt: skip

    @property
    def by_score(self) -> bool:
        """Whether a score chooses anything."""
        return super().by_score or self.fault == "single"

    @property
    def label(self) -> str:
        """Short text for people and file names; what is as usual goes without saying."""
        kind = f"{self.fault}{self.burst}" if self.fault == "burst" else self.fault
        if "row_bytes" in self.content():
            kind += str(self.row_bytes)
        words = [kind, self.dtype]
        words += [f"{self.rate:g}"] if self.rate is not None else []
        words += [f"{self.events}x"] if self.events is not None else []
        return "-".join([*words, self.protection, *self._last])


class AttackSpec(_Memory):
    """One way to flip bits of stored weights until the model collapses, or ``budget`` flips are spent.

    The adversary knows the model, how it is stored and its protection. ``arm`` is

    - "guided": progressive bit search (Rakin et al. 2019, arXiv:1903.12269) over all weights. The gradient of the
      summed loss of ``search_windows`` proposes: in each tensor the ``candidates`` weights with the largest |g| and
      their bits, by the predicted gain g·Δw. The best of each tensor is tried by a forward pass of
      ``selection_windows``, in the order of their gains; then the next ones of any tensor, ``tries`` in all (None: the
      best of each tensor alone). The one that does most harm is committed;
    - "guided-super", "guided-random", "guided-matched": the same among the ``k`` weights with the largest ``score``, or
      among as many of their controls;
    - "random-super", "random": bits by chance among those, or anywhere;
    - "data-free": the signs of the largest |w| of the first blocks, one after the other (arXiv:2502.07408).

    Search and selection windows are calibration windows of the seed; the outcome is measured on the evaluation
    windows, which no choice has seen. ``threat`` "stealthy" allows only values within the tensor's largest |w|.
    Against a protection a flip takes more bits than one, or has no effect; ``budget`` counts flips of weights.

    Example
    -------
    >>> AttackSpec(arm="guided-super", dtype="int8", threat="stealthy").label
    'guided-super-int8-stealthy-none'
    """

    arm: Arm = "guided"
    threat: Threat = "unrestricted"
    budget: int = Field(default=50, ge=1)
    k: int = Field(default=100, ge=1)
    draw: int = Field(default=0, ge=0)
    search_windows: int = Field(default=8, ge=1)
    selection_windows: int = Field(default=8, ge=1)
    candidates: int = Field(default=10, ge=1)
    tries: int | None = Field(default=None, ge=1)

    def unused(self) -> list[str]:
        """Fields that change nothing here."""
        searching = () if self.arm in GUIDED else ("search_windows", "selection_windows", "candidates", "tries")
        return [
            *super().unused(), *searching, *(["k"] if self.arm not in CONFINED else []),
            *(["draw"] if self.arm not in DRAWN else []),
        ]  # fmt: skip

    @property
    def by_score(self) -> bool:
        """Whether a score chooses anything."""
        return super().by_score or self.arm in CONFINED

    @property
    def by_seed(self) -> bool:
        """Whether it depends on what a seed draws: windows or bits."""
        return self.arm in (*GUIDED, *DRAWN) or self.by_score

    def of_seeds(self, seeds: tuple[int, ...]) -> tuple[int, ...]:
        """The seeds that it is to be made by: of equal attacks the first alone."""
        return seeds if self.by_seed else seeds[:1]

    @property
    def way(self) -> str:
        """Short text for what it is apart from its draw."""
        arm = self.arm if "k" not in self.content() else f"{self.arm}{self.k}"
        return "-".join([arm, self.dtype, self.threat, self.protection, *self._last])

    @property
    def label(self) -> str:
        """Short text for people and file names; what is as usual goes without saying."""
        return f"{self.way}-draw{self.draw}" if self.draw else self.way

    @property
    def windows(self) -> int:
        """How many calibration windows it looks at."""
        return self.search_windows + self.selection_windows if self.arm in GUIDED else 0


def stored_columns(how: FaultSpec | AttackSpec) -> dict[str, Any]:
    """What a row says of how weights are stored and protected; null is what says nothing.

    >>> stored_columns(FaultSpec(rate=1e-6, protect="secded"))["policy"]
    'zero'
    """
    unsaid = how.unused()
    fields = {name: None if name in unsaid else getattr(how, name) for name in ("critical", "score", "policy", "code")}
    return fields | {
        "dtype": how.dtype, "protect": how.protect, "protection": how.protection,
        "components": ",".join(grouped(how.components)),
    }  # fmt: skip
