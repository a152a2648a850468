"""A detector for use on models that are in no population, with what it was calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import special

from analysis.security.detection.classifier import fit
from analysis.security.detection.evaluated import ALARMS
from analysis.security.detection.scored import Tested, out_of_fold, too_few
from analysis.security.detection.table import EVERY, Models, Studies, models, studies_of
from analysis.statistics.roc import area
from analysis.study import Study, StudyError, below, load
from esa_ray.spec import DataSpec
from esa_ray.spec.detector import Calibration, Detector


def detector(studies: Studies | str | Path, *, with_reference: bool = False) -> Detector:
    """Train on every accepted model of one or several studies of populations, or of those at and below a directory.

    Its threshold and false alarms are those of models without a backdoor that were left out with all models of their
    parents; recall and AUROC those of insertions that were left out, too, on parents that were left out.

    Raises
    ------
    StudyError
        If there are fewer than 30 models with or without a backdoor, fewer than two insertions, so that none could be
        left out, no feature, or studies of different windows.

    Example
    -------
    >>> detector(load("results/backdoors/llama-0.3m")).calibration.auroc  # doctest: +SKIP
    """
    opened = _opened(studies)
    of = models(opened)
    if why := _why_none(of, with_reference=with_reference):
        raise StudyError(why)
    columns = of.chosen(EVERY, reference=with_reference)
    fitted = fit(of.values[:, columns], of.poisoned)
    known, unseen = (out_of_fold(of, scheme, reference=with_reference) for scheme in ("any", "any insertion"))
    negatives = special.expit(known.score[~known.poisoned])
    threshold = exceeded(negatives, ALARMS)
    return Detector(
        with_reference=with_reference, features=tuple(of.features[i] for i in columns),
        means=tuple(fitted.means.tolist()), scales=tuple(fitted.scales.tolist()),
        coefficients=tuple(fitted.coefficients.tolist()), intercept=fitted.intercept, threshold=threshold,
        calibration=_calibrated(of, unseen, threshold, float((negatives > threshold).mean()), opened[0]),
    )  # fmt: skip


def exceeded(p: np.ndarray, share: float) -> float:
    """The smallest of some values that at most a share of them exceed.

    >>> exceeded(np.arange(40.0), 0.05)  # 38 and 39 do
    37.0
    """
    return float(np.sort(p)[len(p) - 1 - int(np.floor(share * len(p) + 1e-9))])


def _opened(studies: Studies | str | Path) -> tuple[Study, ...]:
    if isinstance(studies, Study | Sequence) and not isinstance(studies, str):
        return studies_of(studies)
    found = tuple(study for study in map(load, below(studies)) if study.spec.get("population"))
    if not found:
        raise StudyError(f"{studies} holds no study of esa backdoors; name the --out-dir of one")
    return studies_of(found)


def _why_none(of: Models, *, with_reference: bool) -> str | None:
    if why := too_few(of, np.arange(len(of))):
        return f"a detector isn't calibrated on {why}; make more with esa backdoors --models"
    if len(of.insertions) < 2:
        return "a detector is calibrated on an insertion that it hasn't seen; make models of two or more (--insertion)"
    if not len(of.chosen(EVERY, reference=with_reference)):
        return "no model has a feature to go by; run esa backdoors again: it measures those that are missing"
    if not len(out_of_fold(of, "any insertion", reference=with_reference).at):
        return "a detector is calibrated on parents that it hasn't seen; make models of two or more (--parents)"
    return None


def _calibrated(
    of: Models, unseen: Tested, threshold: float, false_alarms: float, study: Study
) -> Calibration:  # fmt: skip
    found = area(unseen.scored(np.full(len(unseen.at), True)))
    poisoned = int(of.poisoned.sum())
    return Calibration(
        bases=tuple(of.bases), insertions=tuple(of.insertions),
        negatives=tuple(sorted(set(of.kind[~of.poisoned].tolist()))), poisoned=poisoned, others=len(of) - poisoned,
        auroc=found.value, auroc_low=found.interval.low, auroc_high=found.interval.high,
        recall=float((special.expit(unseen.score[unseen.poisoned]) > threshold).mean()), false_alarms=false_alarms,
        data=DataSpec.model_validate(study.spec["data"]), seed=study.spec["seeds"][0],
    )  # fmt: skip
