"""Faults and attacks from Python: how likely chance breaks a model in hand, and how many flips an adversary needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import ValidationError
from scipy.stats import binomtest

from esa_ray import data
from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.guided import SEED, opened
from esa_ray.errors import EsaError
from esa_ray.evaluation.resuming import Resuming
from esa_ray.models.addressing import catalogue
from esa_ray.models.sources import order_of
from esa_ray.security.assault import attacked
from esa_ray.security.bench import Bench
from esa_ray.security.campaign import flipped, injected
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec import STORED, AttackSpec, DataSpec, FaultSpec, explain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: ΔNLL in nats a token beyond which a model counts as broken.
BROKEN = 0.1

S = TypeVar("S", FaultSpec, AttackSpec)


@dataclass(frozen=True)
class FaultTolerance:
    """What injections came to.

    Parameters
    ----------
    rows
        One an injection, as the table ``faults/`` has them.
    damage
        ΔNLL in nats per token, against the model as it is stored, beyond which an injection broke the model; so does
        a loss that isn't finite.
    """

    spec: FaultSpec
    rows: list[dict[str, Any]]
    damage: float = BROKEN

    @cached_property
    def broken(self) -> int:
        """How many injections broke the model."""
        return sum(not self._delta(row) <= self.damage for row in self.rows)

    @property
    def probability(self) -> float:
        """The share of them."""
        return self.broken / len(self.rows)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Clopper and Pearson's interval for the probability that an injection breaks the model.

        >>> rows = [{"nll": [1.0], "tokens": [1], "stored_nll": [1.0]}] * 100
        >>> low, high = FaultTolerance(FaultSpec(rate=1e-6), rows).interval()
        >>> low, round(high, 3)
        (0.0, 0.036)
        """
        found = binomtest(self.broken, len(self.rows)).proportion_ci(level, method="exact")
        return float(found.low), float(found.high)

    @staticmethod
    def _delta(row: dict[str, Any]) -> float:
        n = len(row["nll"])  # an evaluation that stopped early is compared on the windows that it saw
        return (sum(row["nll"]) - sum(row["stored_nll"][:n])) / sum(row["tokens"])


@dataclass(frozen=True)
class Vulnerability:
    """What an attack came to; ``rows`` are those of the table ``attacks/``: the stored model's, and one a flip."""

    spec: AttackSpec
    rows: list[dict[str, Any]]

    @property
    def collapsed(self) -> bool:
        """Whether the loss became that of guessing, or not finite."""
        return bool(self.rows[-1]["collapsed"])

    @property
    def flips(self) -> int | None:
        """Flips of weights to collapse; None if it survived the budget, which is then a lower bound."""
        return self.rows[-1]["step"] if self.collapsed else None

    @property
    def bits(self) -> int | None:
        """The same in bits of memory, those that get past a protection included."""
        return self.rows[-1]["bits_spent"] if self.collapsed else None


def fault_tolerance_analysis(
    model: PreTrainedModel | str,
    *,
    windows: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: DataSpec | None = None,
    seed: int | None = None,
    damage: float = BROKEN,
    early_stop: float | None = None,
    **how: Any,
) -> FaultTolerance:
    """How often faults in stored weights break a model: ``repeats`` injections, each taken back bit for bit.

    Parameters
    ----------
    model
        A transformers model, or a name, directory or file as ``--model`` takes it.
    windows
        Evaluation windows, integers of shape (N, T). None cuts them out of ``text`` with the tokenizer.
    calibration
        Calibration windows (M, T), for protections of critical weights and for ``fault="single"``; beside ``windows``.
    tokenizer
        Of a model in hand; a model by its name brings its own.
    text
        The text to evaluate and calibrate on; None is the default of ``esa run``.
    seed
        Draws the calibration windows and the faults; None is 1337.
    damage
        ΔNLL in nats per token beyond which an injection broke the model.
    early_stop
        The error rate at which an evaluation may stop before its last window; None: never.
    **how
        As :class:`esa_ray.spec.security.FaultSpec` has them: ``fault``, ``rate``, ``dtype``, ``protect``, ``repeats``

    Raises
    ------
    EsaError
        If the fault can't be, or nothing says which text to measure on.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> windows = np.arange(32).reshape(4, 8) % 16
    >>> found = fault_tolerance_analysis(model, windows=windows, rate=1e-2, protect="zero-exponent-bit", repeats=5)
    >>> len(found.rows), 0 <= found.probability <= 1
    (5, True)
    """
    spec = _spec(FaultSpec, how)
    bench = _bench(model, spec, seed, windows, calibration, tokenizer, text)
    repeats = range(spec.repeats)
    if spec.fault == "single":
        bits = range(STORED[spec.dtype])
        return FaultTolerance(spec, [row for bit in bits for row in flipped(bench, bit, repeats, early_stop)], damage)
    return FaultTolerance(spec, injected(bench, repeats, early_stop), damage)


def adversarial_vulnerability_assessment(
    model: PreTrainedModel | str,
    *,
    windows: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: DataSpec | None = None,
    seed: int | None = None,
    **how: Any,
) -> Vulnerability:
    """How many flips of stored bits an adversary needs until a model collapses; all are taken back bit for bit.

    For models that you hold: what a memory without integrity would cost, and what a protection buys.

    Parameters
    ----------
    model, tokenizer, text, seed
        As :func:`fault_tolerance_analysis` takes them.
    windows
        Evaluation windows (N, T), which no choice of a flip has seen.
    calibration
        Calibration windows (M, T), on which guided arms search and select, and scores choose; beside ``windows``.
    **how
        As :class:`esa_ray.spec.security.AttackSpec` has them: ``arm``, ``threat``, ``dtype``, ``budget``, ``protect``

    Raises
    ------
    EsaError
        If the attack can't be, or there are fewer windows than it looks at.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> windows = np.arange(32).reshape(4, 8) % 16
    >>> found = adversarial_vulnerability_assessment(model, windows=windows, arm="random", dtype="int8", budget=3)
    >>> found.rows[0]["step"], len(found.rows) <= 4
    (0, True)
    """
    spec = _spec(AttackSpec, how)
    bench = _bench(model, spec, seed, windows, calibration, tokenizer, text)
    given = bench.resuming.windows.calibration(bench.seed)
    if spec.windows > len(given):
        raise EsaError(
            f"search_windows and selection_windows are {spec.windows} of {len(given)} calibration windows; give more "
            "as calibration=, or lower them"
        )
    return Vulnerability(spec, attacked(bench, given))


def _spec(kind: type[S], how: dict[str, Any]) -> S:
    try:
        return kind.model_validate(how)
    except ValidationError as error:
        raise explain(error) from None


def _bench(
    model: PreTrainedModel | str, spec: FaultSpec | AttackSpec, seed: int | None, windows: np.ndarray | None,
    calibration: np.ndarray | None, tokenizer: PreTrainedTokenizerBase | None, text: DataSpec | None,
) -> Bench:  # fmt: skip
    model, tokenizer, source = opened(model, tokenizer, None)
    seed, asked = SEED if seed is None else seed, text or DataSpec(calibration_windows=32)
    if windows is None:
        if tokenizer is None:
            raise EsaError("a model in hand needs windows=, or a tokenizer= that cuts them out of a text; give one")
        cut = data.windows(asked, tokenizer, (seed,), data.read_documents(asked, tokenizer))
    else:
        cut = _given(np.asarray(windows), calibration, seed)
    weights = catalogue(model)
    text_of = Calibrated(model, weights, cut.calibration(seed), batch_size=asked.batch_size)

    def calibrated() -> Calibrated:
        if not len(text_of.windows):
            raise EsaError("a score chooses weights here; give the windows that it is taken on, as calibration=")
        return text_of

    memory = Memory(model, weights, spec, order=order_of(source) if source else None, scores=calibrated)
    resuming = Resuming(model, weights, cut, asked)
    return Bench(spec, seed, memory, Protection(memory), resuming, calibrated)


def _given(windows: np.ndarray, calibration: np.ndarray | None, seed: int) -> data.Windows:
    """Windows in hand, as a text's."""
    more = np.empty((0, windows.shape[1]), dtype=windows.dtype) if calibration is None else np.asarray(calibration)
    index = np.arange(len(windows) + len(more))
    first, rest = index[: len(windows)], index[len(windows) :]
    return data.Windows(
        np.concatenate([windows, more]), first, rest, len(more), (), len(index), len(rest), draws={seed: rest}
    )
