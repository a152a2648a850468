"""A detector for use: what it is trained on and says of its calibration, and what none can be made of."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from analysis.security.detection.classifier import fit
from analysis.security.detection.detector import detector
from analysis.security.detection.evaluated import detection
from analysis.security.detection.table import models
from analysis.study import StudyError
from esa_ray.spec import INSERTIONS, DataSpec
from tests.analysis.backdoored import FEATURES, planted, written

FOUND = {kind: {"hill": 12.0} for kind in INSERTIONS}


@pytest.fixture(scope="module")
def separable(tmp_path_factory):
    """Two bases whose models with a backdoor have one feature far from all others'."""
    where = tmp_path_factory.mktemp("separable")
    return tuple(planted(where / base, FOUND, base=base) for base in "ab")


def test_the_detector_for_use_finds_models_of_another_population(separable, tmp_path):
    found = detector(separable)
    assert found.features == tuple(n for n in models(separable).features if not FEATURES[n][1])
    assert found.calibration.bases == ("a", "b")
    assert (found.calibration.poisoned, found.calibration.others) == (180, 120)
    assert (found.calibration.data, found.calibration.seed) == (DataSpec(source="home", evaluation_windows=4), 1337)
    assert found.calibration.false_alarms <= 0.05
    assert found.calibration.recall > 0.99
    assert found.calibration.auroc > 0.99
    other = models(planted(tmp_path / "a", FOUND, base="c", seed=5))
    p = np.array([found.probability(dict(zip(other.features, v, strict=True))) for v in other.values])
    assert (p[other.poisoned] > found.threshold).mean() > 0.99
    assert (p[~other.poisoned] > found.threshold).mean() < 0.15


def test_the_detectors_probability_is_that_of_its_logistic_regression(separable):
    of, found = models(separable), detector(separable, with_reference=True)
    assert found.with_reference
    assert set(found.features) == set(FEATURES)
    columns = of.chosen("all", reference=True)
    wanted = special.expit(fit(of.values[:, columns], of.poisoned).log_odds(of.values[:3, columns]))
    told = [found.probability(dict(zip(of.features, v, strict=True))) for v in of.values[:3]]
    assert told == pytest.approx(wanted.tolist())


def test_a_detector_is_made_of_the_studies_below_a_directory(separable):
    above = separable[0].location.path.parent
    assert detector(above) == detector(separable)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("text", {"data": {"source": "other"}}), ("window length", {"data": {"window": 64}}),
        ("calibration windows", {"data": {"calibration_windows": 8}}), ("seeds", {"seeds": [7]}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("of", [detection, detector])
def test_populations_measured_on_other_windows_are_refused(separable, of, what, changes):
    one, two = separable
    spec = two.spec | changes | {"data": two.spec["data"] | changes.get("data", {})}
    with pytest.raises(StudyError, match=f"differ in their {what} .*give those that agree"):
        of([one, replace(two, record=two.record | {"spec": spec})])


def test_what_no_detector_can_be_calibrated_on_is_said(tmp_path):
    with pytest.raises(StudyError, match="0 models with a backdoor"):
        detector(written(tmp_path / "none", []))
    few = planted(tmp_path / "few", models=5)
    with pytest.raises(StudyError, match=r"15 models with a backdoor and 10 without; .* --models"):
        detector(few)
    single = planted(tmp_path / "one", insertions=("training",))
    with pytest.raises(StudyError, match="--insertion"):
        detector(single)
    with pytest.raises(StudyError, match="--parents"):
        detector(planted(tmp_path / "parent", parents=1))
