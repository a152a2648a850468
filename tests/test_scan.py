"""``esa scan``: a verdict with what it rests on, in words and as JSON, and exit statuses."""

import importlib
import json
import math
import shlex
import sys

import pytest

from esa_ray import cli
from esa_ray.security.detecting import backdoor_detection
from esa_ray.spec import DataSpec, ModelSpec, StudySpec
from esa_ray.storage.store import Store
from tests.engine.conftest import TEXT, save_model
from tests.security.test_detecting import detector

NAMES = ("tails.gxw.model.gini", "tails.gxw.model.hill")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    home = tmp_path_factory.mktemp("scan")
    (home / "text.txt").write_text(TEXT)
    save_model(home / "suspect", seed=1)
    save_model(home / "before", seed=2)
    return home


@pytest.fixture
def scan(place, monkeypatch, capsys):
    """Run ``esa scan`` on the suspect, on four windows of the text: (exit status, stdout, stderr)."""
    monkeypatch.chdir(place)

    def of(line, cut="--data text.txt --window 24 --max-samples 4"):
        monkeypatch.setattr(sys, "argv", shlex.split(f"esa scan --model suspect {cut} {line}"))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr()
        return ended.value.code, out.out, out.err

    return of


@pytest.fixture
def values(place, monkeypatch):
    """What is measured of the suspect, as Python says."""
    monkeypatch.chdir(place)
    text = DataSpec(source="text.txt", window=24, calibration_windows=4)
    return backdoor_detection("suspect", text=text).values


def judging(values, log_odds):
    """A detector that gives the suspect these log-odds, and p above its threshold of 0.6 where that is above."""
    return detector(
        features=NAMES, means=[values[name] for name in NAMES], scales=(1.0, 1.0), coefficients=(2.0, 1.0),
        intercept=log_odds,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("log_odds", "code", "words"), [(3.0, 1, "suspicious: above"), (-3.0, 0, "nothing suspicious")]
)
def test_a_verdict_is_told_with_its_calibration_base_rates_and_blind_spots(
    scan, values, tmp_path, log_odds, code, words
):
    (tmp_path / "d.json").write_text(judging(values, log_odds).model_dump_json())
    status, out, err = scan(f"--detector {tmp_path / 'd.json'} --prior 0.01")
    assert (status, err) == (code, "")
    facts = {line[:18].strip(): line[18:] for line in out.splitlines()}
    assert facts["verdict"].startswith(words)
    assert f"p = {1 / (1 + math.exp(-log_odds)):.3g}, threshold 0.6" in facts["verdict"]
    assert facts["text"] == "4 windows of 24 tokens of text.txt"
    assert facts["calibrated on"] == (
        "30 models with a backdoor (training) and 30 without (clean) of llama-0.3m, "
        "by 32 windows of 128 tokens of pydoc"
    )
    assert "AUROC 0.90 [0.80, 0.97]; it flags 80% of the models with a backdoor and 5% of the others" in out
    chance = 0.01 * 0.8 / (0.01 * 0.8 + 0.99 * 0.05) if code else 0.01 * 0.2 / (0.01 * 0.2 + 0.99 * 0.95)
    assert facts["base rate 1%"] == f"{100 * chance:.2g}% of the models with this verdict hold a backdoor"
    assert "No verdict clears a model" in facts["can't see"]
    assert "beyond its ken" not in facts


def test_json_says_the_same_and_more(scan, values, tmp_path):
    judge = judging(values, 3.0).model_copy(update={"means": (values[NAMES[0]] + 9.0, values[NAMES[1]])})
    (tmp_path / "d.json").write_text(judge.model_dump_json())
    status, out, _ = scan(f"--detector {tmp_path / 'd.json'} --json")
    told = json.loads(out)
    verdict = told["verdict"]
    assert (status, verdict["flagged"], verdict["unlike"]) == (0, False, [NAMES[0]])
    assert verdict["probability"] == pytest.approx(1 / (1 + math.exp(15)))  # 3 − 2·9
    assert verdict["contributions"] == {NAMES[0]: pytest.approx(-18), NAMES[1]: pytest.approx(0)}
    assert told["features"] == {name: value if math.isfinite(value) else None for name, value in values.items()}
    assert (told["windows"], told["tokens"], told["reference"]) == (4, 24, None)
    assert [each["prior"] for each in verdict["chances"]] == [0.001, 0.01, 0.1]


def test_without_a_detector_features_stand_alone(scan, values):
    status, out, err = scan("")
    assert (status, err) == (0, "")
    assert "verdict           none; give a detector by --detector, of esa backdoors" in out
    assert all(f"  {name} " in out for name in values)


def test_a_detector_brings_its_text_and_its_seed_unless_another_text_is_named(scan, place, values, tmp_path):
    judge, data = judging(values, 3.0), DataSpec(source="text.txt", window=24, calibration_windows=4)
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    for seed, alike in ((1337, True), (1, False)):
        of = judge.calibration.model_copy(update={"data": data, "seed": seed})
        (tmp_path / "d.json").write_text(judge.model_copy(update={"calibration": of}).model_dump_json())
        _, out, _ = scan(f"--detector {tmp_path / 'd.json'} --json", cut="")
        assert (json.loads(out)["features"] == finite) == alike
    _, out, _ = scan(f"--detector {tmp_path / 'd.json'}", cut="--max-samples 3")
    assert "text              3 windows of 24 tokens of text.txt" in out
    assert "by 4 windows of 24 tokens of text.txt" in out


def test_studies_give_a_detector_that_compares_where_there_is_a_reference(scan, values, monkeypatch):
    asked = []

    def judged(place, *, with_reference):
        asked.append((place, with_reference))
        return judging(values, 3.0).model_copy(update={"with_reference": with_reference})

    monkeypatch.setattr(importlib.import_module("analysis.security.detection.detector"), "detector", judged)
    scan("--detector both")
    _, out, _ = scan("--detector both --reference before")
    assert "reference         before" in out
    assert asked == [("both", False), ("both", True)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--detector nowhere", "nowhere"),
        ("--detector before", "holds no study"),
        ("--detector d.json --reference before", "the detector judges a model by itself; leave the reference out"),
        ("--detector text.txt", "--detector text.txt is no detector; give results of esa backdoors"),
        ("--prior 0.1", "--prior is about a detector's verdict; add --detector"),
        ("--detector d.json --prior 1", "--prior takes shares between 0 and 1, not 1"),
        ("--detector d.json --prior much", "--prior takes numbers"),
        ("--reference nowhere/at/all", "--reference nowhere/at/all"),
    ],
)
def test_what_cannot_be_scanned_is_one_sentence(scan, values, place, line, said):
    (place / "d.json").write_text(judging(values, 0.0).model_dump_json())
    code, out, err = scan(line)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_study_without_a_population_is_no_detector(scan, tmp_path):
    spec = StudySpec(name="s", model=ModelSpec(source="m"))
    Store(tmp_path).save_study(spec, {"model": "m", "dtype": "fp32", "text": "t"}, {})
    code, _, err = scan(f"--detector {tmp_path}")
    assert code == 2
    assert "holds no study of esa backdoors; name the --out-dir of one" in err
