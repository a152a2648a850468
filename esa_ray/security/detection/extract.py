"""Features of a model that are measured without knowing a trigger: what a detector of backdoors goes by."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.applications.threads import single_threaded
from esa_ray.errors import EsaError
from esa_ray.models.modes import eval_mode
from esa_ray.security.backdoors.standing import standing
from esa_ray.security.detection import gains, shift, spectra, tails, vocabulary
from esa_ray.security.detection.predictions import mean_prediction
from esa_ray.security.detection.reference import aligned
from esa_ray.security.detection.scan import Plan
from esa_ray.security.detection.sensitivity import Sensitivity

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue

FAMILIES = {"tails": tails, "shift": shift, "gains": gains, "spectra": spectra, "vocabulary": vocabulary}
#: Clean tokens at most, for sensitivity and for gains, and tokens of the scan of the vocabulary.
TOKENS, FEWER, SCAN = 8192, 1024, 1 << 18
#: Tokens × weights of each of them at most: larger models see fewer.
WORK = 1 << 38
#: Models of fewer weights are looked at by one thread, which gives the same bits whatever the machine.
SMALL = 1 << 24


@dataclass(frozen=True)
class Feature:
    """One number that says something of a model; NaN where it can't be told."""

    name: str
    family: str
    value: float
    with_reference: bool


def feature_names(with_reference: bool) -> tuple[str, ...]:
    """The names of all features, in a fixed order: those of a model alone, and with a reference those beside it, too.

    >>> feature_names(False)[0], len(set(feature_names(True))) == len(feature_names(True))
    ('tails.gxw.model.hill', True)
    """
    alone = [name for family in FAMILIES.values() for name in family.ALONE]
    beside = [name for family in FAMILIES.values() for name in family.COMPARED]
    return (*alone, *beside) if with_reference else tuple(alone)


def meaning(name: str) -> str:
    """What a feature is, in words.

    >>> meaning("tails.gxw.model.gini")
    'the Gini coefficient of Σ|g·w| over clean text, model'
    """
    return next(of[name] for family in FAMILIES.values() for of in (family.ALONE, family.COMPARED) if name in of)


def features(
    model: PreTrainedModel,
    catalogue: Catalogue,
    windows: np.ndarray,
    *,
    reference: Mapping[str, Tensor] | None = None,
    batch_size: int = 8,
) -> list[Feature]:
    """Every feature of a model, by :func:`feature_names`; the same names for every architecture.

    Effort is bounded by fixed rules: of larger models fewer of the windows, of the vocabulary's tokens, of the
    matrices and of the weights are looked at; of a vocabulary of 50,000 the scan sees a few dozen tokens, and mostly
    misses a trigger. So features of models of one architecture can be compared, on as many windows of one size. The
    model, whatever mode it is in, is left bit for bit as it was.

    Parameters
    ----------
    windows
        Clean windows, integers of shape (N, T).
    reference
        The model before whoever trained it: parameter → its values, of all parameters. None: features of the model
        alone.

    Raises
    ------
    EsaError
        If the reference is of another architecture, the model overflows, or has no backward pass as it is evaluated.
    NotRestoredError
        If weights don't stand again as they did.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> found = features(model, catalogue(model), np.arange(32).reshape(4, 8) % 16)
    >>> [feature.name for feature in found] == list(feature_names(False))
    True
    """
    windows = np.asarray(windows)
    if windows.ndim != 2 or not len(windows) or windows.shape[1] < 2:
        raise EsaError("features are measured on windows of two tokens or more; give an array of shape (N, T)")
    if reference is not None:
        reference = aligned(model, catalogue, reference)
    n = sum(tensor.size for tensor in catalogue.tensors)
    with ExitStack() as around:
        around.enter_context(eval_mode(model))
        if n < SMALL:
            around.enter_context(single_threaded())
        found = _found(model, catalogue, windows, reference, batch_size, n)
    names, beside = feature_names(reference is not None), set(feature_names(True)) - set(feature_names(False))
    return [Feature(name, name.partition(".")[0], float(found[name]), name in beside) for name in names]


def _found(
    model: PreTrainedModel, catalogue: Catalogue, windows: np.ndarray, reference: Mapping[str, Tensor] | None,
    batch_size: int, n: int,
) -> dict[str, float]:  # fmt: skip
    some, fewer = few(windows, min(TOKENS, WORK // n)), few(windows, min(FEWER, WORK // n // 8))
    now, expected = Sensitivity.of(model, catalogue, some, batch_size), mean_prediction(model, some, batch_size)
    seen = vocabulary.scanned(model, Plan.of(model, windows, expected, min(SCAN, 4 * WORK // n)))
    found = tails.alone(now) | spectra.alone(catalogue) | vocabulary.alone(catalogue, seen)
    found |= gains.alone(model, catalogue, fewer, batch_size)
    if reference is None:
        return found
    with standing(model, catalogue, reference):
        before, expected = Sensitivity.of(model, catalogue, some, batch_size), mean_prediction(model, some, batch_size)
        again = vocabulary.rescanned(model, seen, expected)
    found |= tails.compared(now, before) | shift.compared(catalogue, now, before, reference)
    return found | spectra.compared(catalogue, reference) | vocabulary.compared(catalogue, seen, again, reference)


def few(windows: np.ndarray, tokens: int) -> np.ndarray:
    """The first windows, up to so many tokens, but two at least.

    >>> few(np.zeros((9, 4)), 13).shape, few(np.zeros((9, 4)), 1).shape
    ((3, 4), (2, 4))
    """
    return windows[: max(2, tokens // windows.shape[1])]
