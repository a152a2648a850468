"""Detection from Python: what a model in hand looks like to a detector of backdoors that knows no trigger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from esa_ray.applications.guided import SEED, opened, windows_of
from esa_ray.errors import EsaError, unreadable
from esa_ray.models.addressing import catalogue
from esa_ray.security.detection import Feature, features
from esa_ray.spec import DataSpec
from esa_ray.spec.detector import Detector

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Clean windows that features are measured on where nothing is said; those of ``esa backdoors``.
WINDOWS = 32
#: Standard deviations of its population beyond which a detector has seen nothing like a value.
FAR = 5.0


@dataclass(frozen=True)
class Detection:
    """What a model is like, and what a detector makes of it; without one there is no verdict.

    ``features`` were measured on ``windows`` (N, T) of clean text.
    """

    features: list[Feature]
    windows: tuple[int, int]
    detector: Detector | None = None

    @cached_property
    def values(self) -> dict[str, float]:
        """Feature → its value."""
        return {feature.name: feature.value for feature in self.features}

    @property
    def probability(self) -> float | None:
        """The detector's p, of a population of equal halves; see :meth:`chances` for other base rates."""
        return self.detector.probability(self.values) if self.detector else None

    @property
    def flagged(self) -> bool | None:
        """Whether p lies above the detector's threshold."""
        judge = self.detector
        return None if judge is None else judge.probability(self.values) > judge.threshold

    @property
    def verdict(self) -> str | None:
        """The same in words: suspicious, or nothing suspicious."""
        return None if self.detector is None else "suspicious" if self.flagged else "nothing suspicious"

    @property
    def contributions(self) -> dict[str, float]:
        """Feature → what it adds to the log-odds, the largest first, whatever its sign."""
        found = self.detector.contributions(self.values) if self.detector else {}
        return dict(sorted(found.items(), key=lambda item: -abs(item[1])))

    @property
    def unlike(self) -> list[str]:
        """Features of the detector that aren't finite, or over 5 standard deviations from its population's mean.

        A verdict that rests on them is about models that the detector has seen nothing like.
        """
        if self.detector is None:
            return []
        known = zip(self.detector.features, self.detector.means, self.detector.scales, strict=True)
        return [name for name, mean, scale in known if not abs(self.values[name] - mean) <= FAR * scale]

    def chances(self, priors: Sequence[float]) -> list[tuple[float, float]]:
        """For each share of models that hold a backdoor, that share among those with the verdict of this one (Bayes).

        Of a model below the threshold, P(backdoor | not flagged) = π(1−r)/(π(1−r) + (1−π)(1−f)), with the detector's
        recall r and false alarms f.
        """
        if self.detector is None:
            return []
        if self.flagged:
            return [(prior, self.detector.posterior(prior)) for prior in priors]
        told = self.detector.calibration
        missed = [(prior, prior * (1 - told.recall), (1 - prior) * (1 - told.false_alarms)) for prior in priors]
        return [(prior, held / (held + rest) if held + rest else math.nan) for prior, held, rest in missed]


def backdoor_detection(
    model: PreTrainedModel | str,
    sensitivity_baseline: PreTrainedModel | str | None = None,
    *,
    detector: Detector | str | Path | None = None,
    windows: np.ndarray | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: DataSpec | None = None,
    seed: int | None = None,
) -> Detection:
    """Measure a model without knowing a trigger, and let a detector judge it; the model is left as it was.

    A detector knows the insertions and the models that it was calibrated on. No verdict clears a model: what was
    inserted otherwise, or into another architecture, may look like nothing that it has seen.

    Parameters
    ----------
    model
        A transformers model, or a name, directory or file as ``--model`` takes it.
    sensitivity_baseline
        The reference: the model before whoever trained it, in hand or by its name; None judges the model alone.
    detector
        A trained detector, or its file (JSON); ``analysis.security.detection`` makes one of a study. None
        measures features alone.
    windows
        Clean windows, integers of shape (N, T), as many and as long as those that the detector was calibrated on. None
        cuts them out of ``text`` with the tokenizer.
    tokenizer
        Of a model in hand; a model by its name brings its own.
    text
        The text; None is the detector's, and without one the default of ``esa backdoors``.
    seed
        Draws the windows; None is the detector's, and without one 1337.

    Raises
    ------
    EsaError
        If the reference has other parameters, or the detector goes by what isn't measured here.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> found = backdoor_detection(model, windows=np.arange(32).reshape(4, 8) % 16)
    >>> found.flagged is None, "tails.gxw.model.gini" in found.values
    (True, True)
    """
    judge = detector if isinstance(detector, Detector | None) else read(detector)
    if sensitivity_baseline == model:
        raise EsaError("sensitivity_baseline is the model itself; give the one before, or leave it out")
    check_reference(judge, sensitivity_baseline is not None)
    model, tokenizer, _ = opened(model, tokenizer, None)
    known, drawn_by = _known(judge)
    asked = text or known
    if windows is None:
        windows, _ = windows_of(asked, tokenizer, drawn_by if seed is None else seed)
    reference = _reference(sensitivity_baseline)
    found = features(model, catalogue(model), windows, reference=reference, batch_size=asked.batch_size or 1)
    if judge and (lacking := [name for name in judge.features if name not in {f.name for f in found}]):
        raise EsaError(f"the detector goes by {lacking[0]}, which isn't measured here; train one by esa backdoors anew")
    return Detection(found, (len(windows), windows.shape[1]), judge)


def check_reference(detector: Detector | None, given: bool) -> None:
    """Refuse a detector that compares, where there is no reference, and one that doesn't, where there is.

    Raises
    ------
    EsaError
        If so.
    """
    if detector and detector.with_reference and not given:
        raise EsaError("the detector compares a model with the one before it was trained on; give that as --reference")
    if detector and given and not detector.with_reference:
        raise EsaError("the detector judges a model by itself; leave the reference out, or give one that compares")


def read(path: str | Path) -> Detector:
    """A detector of a file (JSON, as ``Detector.model_dump_json`` gives it).

    Raises
    ------
    EsaError
        If there is no such file, or it is none.
    """
    try:
        return Detector.model_validate_json(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise unreadable(f"--detector {path}", error) from None
    except ValidationError:
        raise EsaError(
            f"--detector {path} is no detector; give results of esa backdoors, or a detector that was made of some"
        ) from None


def _known(judge: Detector | None) -> tuple[DataSpec, int]:
    """The text that a detector was calibrated on and the seed that drew its windows, or the usual ones."""
    return (judge.calibration.data, judge.calibration.seed) if judge else (DataSpec(calibration_windows=WINDOWS), SEED)


def _reference(baseline: PreTrainedModel | str | None) -> dict[str, Tensor] | None:
    if baseline is None:
        return None
    model, _, _ = opened(baseline, None, None)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
