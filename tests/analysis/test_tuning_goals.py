"""Verdicts on tuning turn at their thresholds, and the report tells what was planted."""

import numpy as np
import pytest
from rich.console import Console

import analysis
from analysis.report.figures import charts
from analysis.report.sections import answered
from esa_ray.spec import PerturbSpec, ScoreSpec
from esa_ray.spec.tuning import TuneSpec
from tests.analysis.test_figures import PHONE, drawn, labels
from tests.analysis.tuned import arms, tuned

GAIN, FORGETS = 1.0, 0.4
CRITICAL, RANDOM = TuneSpec(arm="critical-target"), TuneSpec(arm="random")
EWC = TuneSpec(protect="ewc")


def judged(study):
    return {v.id: v for v in analysis.verdicts(study)}


def found(directory, specs, lost=0.0, keeps=0.25, random=0.5, *, jitter=0.0, full=FORGETS, seeds=(1, 2, 3)):
    """Full tuning gains GAIN and forgets ``full``; random masks gain ``random``.

    What is in question gains ``lost`` less, less or more by a ``jitter`` in the outer of seeds 1, 2, 3, and forgets a
    share ``keeps``. ``lost`` and ``keeps`` may be dicts by way.
    """

    def change(spec, seed, text, step):
        share = step / spec.steps
        if spec.arm == "full" and spec.protect == "none":
            return share * (-GAIN if text == "target" else full)
        if spec.arm == "random":
            return share * (-random if text == "target" else 0.1)
        less, kept = (of.get(spec.way, 0.0) if isinstance(of, dict) else of for of in (lost, keeps))
        return share * (less + jitter * (seed - 2) - GAIN if text == "target" else kept * FORGETS)

    return tuned(directory, [TuneSpec(), *specs], change, seeds=seeds)


@pytest.mark.parametrize(("specs", "number"), [((CRITICAL, RANDOM), "P5.4d"), ((EWC,), "P5.4e")])
def test_both_goals_turn_at_002_nats_and_at_half_of_the_forgetting(tmp_path, specs, number):
    held = judged(found(tmp_path / "held", specs, 0.019, 0.49))[number]
    assert held.status == "holds"
    assert "+0.0190 [+0.0190, +0.0190] nats of target loss against full tuning" in held.evidence
    assert "−0.004" in held.evidence  # 0.49 · 0.4 − 0.5 · 0.4
    assert judged(found(tmp_path / "loss", specs, 0.021, 0.49))[number].status == "fails"
    half = judged(found(tmp_path / "half", specs, 0.019, 0.51))[number]
    assert half.status == "fails"
    assert "of forgetting against half of its" in half.evidence


def test_few_weights_must_beat_random_masks_too(tmp_path):
    assert judged(found(tmp_path / "more", (CRITICAL, RANDOM), 0.01, random=0.98))["P5.4d"].status == "holds"
    less = judged(found(tmp_path / "less", (CRITICAL, RANDOM), 0.01, random=0.995))["P5.4d"]
    assert less.status == "fails"
    assert "+0.00500 [+0.00500, +0.00500] (fails) of target loss against random masks" in less.evidence


def test_an_interval_that_holds_the_threshold_leaves_it_open(tmp_path):
    # Student's t of 2 degrees: ± 4.3 · 0.01/√3 = 0.025.
    verdict = judged(found(tmp_path, (EWC,), 0.01, jitter=0.01))["P5.4e"]
    assert verdict.status == "open"
    assert "+0.0100 [−0.0148, +0.0348]" in verdict.evidence
    assert "not told apart from a loss of 0.02" in verdict.evidence
    surely = judged(found(tmp_path / "sure", (EWC,), 0.05, jitter=0.01))["P5.4e"]
    assert surely.status == "fails"


def test_one_way_is_enough_and_all_must_fail(tmp_path):
    specs = (CRITICAL, TuneSpec(arm="magnitude"), RANDOM)
    lost = {"critical-target-0.01": 0.01, "magnitude-0.01": 0.3}
    verdict = judged(found(tmp_path / "one", specs, lost))["P5.4d"]
    assert verdict.status == "holds"
    assert "magnitude" not in verdict.evidence
    assert judged(found(tmp_path / "none", specs, dict.fromkeys(lost, 0.3)))["P5.4d"].status == "fails"


def test_what_is_sure_alone_but_not_with_the_choice_of_ways_is_open(tmp_path):
    # Half width 4.3 · 0.003/√3 = 0.0074 at 95%, 0.015 with four candidates.
    more = tuple(TuneSpec(protect="ewc", strength=s) for s in (2.0, 3.0, 4.0))
    alone = judged(found(tmp_path / "alone", (EWC,), 0.01, jitter=0.003))["P5.4e"]
    assert alone.status == "holds"
    chosen = judged(found(tmp_path / "four", (EWC, *more), {EWC.way: 0.01, **{m.way: 0.5 for m in more}},
                          jitter=0.003))["P5.4e"]  # fmt: skip
    assert chosen.status == "open"
    assert "not sure with the choice of 4 ways" in chosen.evidence


def test_adapters_random_masks_and_more_than_one_percent_are_not_few_weights(tmp_path):
    others = (TuneSpec(arm="lora"), RANDOM, TuneSpec(arm="magnitude", fraction=0.02))
    assert not judged(found(tmp_path, others))


def test_without_a_rival_it_is_open_and_says_what_it_needs(tmp_path):
    verdict = judged(found(tmp_path, (CRITICAL,)))["P5.4d"]
    assert (verdict.status, "needs random masks of the same share" in verdict.evidence) == ("open", True)
    study = tuned(tmp_path / "b", [CRITICAL, RANDOM], lambda *_: -0.1)
    assert "needs full tuning" in judged(study)["P5.4d"].evidence


def test_half_of_nothing_is_nothing_to_stay_below(tmp_path):
    verdict = judged(found(tmp_path, (EWC,), full=0.0, keeps=-0.5))["P5.4e"]
    assert verdict.status == "open"
    assert "full tuning doesn't surely forget" in verdict.evidence


def test_a_way_that_diverges_at_every_rate_fails(tmp_path):
    def change(spec, seed, text, step):
        return None if spec.protect == "ewc" and seed == 1 else 0.5 if text == "source" else -0.5

    verdict = judged(tuned(tmp_path, [TuneSpec(), EWC], change))["P5.4e"]
    assert (verdict.status, verdict.evidence) == ("fails", "full-ewc1: a seed diverged at every learning rate")


def test_one_seed_is_said_to_speak_of_windows_alone(tmp_path):
    assert "one seed" in judged(found(tmp_path, (EWC,), seeds=(1,)))["P5.4e"].evidence


def test_a_study_is_asked_only_what_it_tunes(tmp_path, made):
    assert set(judged(found(tmp_path / "ewc", (EWC,)))) == {"P5.4e"}
    assert not judged(tuned(tmp_path / "full", [TuneSpec()], lambda *_: -0.1))
    assert not {v for v in judged(analysis.load(made)) if v in ("P5.4d", "P5.4e")}


def rich(directory, **spec):
    """Every arm at three rates, one of which diverges for full tuning; EWC; norms of what moved."""
    gains = {"full": 1.0, "lora": 0.9, "critical-source": 0.6, "critical-target": 0.8, "magnitude": 0.5,
             "bottom": 0.1, "random": 0.4}  # fmt: skip

    def change(spec, seed, text, step):
        rate = {1e-4: 0.5, 1e-3: 1.0, 1e-2: 0.7}[spec.learning_rate]
        if spec.arm == "full" and rate == 0.7 and seed == 2:
            return None
        waves = 0.01 * np.cos(np.arange(16 if text == "target" else 12) * 1.3 + seed + len(spec.way))
        if spec.protect == "ewc":
            rate = 0.9
        return step / spec.steps * rate * (-gains[spec.arm] if text == "target" else gains[spec.arm] / 2) + waves

    specs = [each for rate in (1e-4, 1e-3, 1e-2) for each in arms(rate)]
    return tuned(directory, [*specs, TuneSpec(protect="ewc", learning_rate=1e-3)], change,
                 moves=lambda spec, seed: ([1.0, 2.0, 3.0 + seed], [1.0, 2.0]), **spec)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return rich(tmp_path_factory.mktemp("tuned"))


def test_the_report_answers_with_what_was_planted(study):
    sections = {s.id: s for s in answered(study, set(charts(study)), "tuning")}
    assert list(sections) == ["tuned", "tuned_against", "tuning_course", "moved_where"]
    assert sections["tuned"].title == "What does tuning to away gain, and what is forgotten of home?"
    assert sections["tuned"].answer.startswith("Of 8 ways full gains most: +0.999 nats per token")
    assert "bottom-0.01 forgets least: +0.0" in sections["tuned"].answer
    assert "Against random masks, of 5 ways 4 surely learn more" in sections["tuned_against"].answer
    assert "Against full tuning, of 6 ways that aren't random masks " in sections["tuned_against"].answer
    assert "1 of 22 combinations of way and learning rate diverged" in sections["tuning_course"].answer
    assert "Block 2 has " in sections["moved_where"].answer
    html = analysis.write_report(study).read_text()
    for section in sections.values():
        assert f'id="{section.id}"' in html
        assert section.answer.replace("'", "&#39;") in html
        assert all(len(row) == len(t.columns) for t in section.tables for row in t.rows)
    assert "What is tuning made-up worth?" in html


def test_every_figure_of_tunings_is_labelled_and_no_wider_than_a_phone(study):
    made = charts(study)
    assert set(made) == {"tuning_front", "target_curves", "source_curves", "tuning_rates", "moved_blocks",
                         "moved_components"}  # fmt: skip
    for name, chart in made.items():
        assert all(len(axis) >= 2 for axis in labels(drawn(chart))), name
        assert float(drawn(chart, 100).get("width")) <= PHONE, name


def test_the_terminal_tells_each_way_in_80_columns(study):
    console = Console(width=80, record=True)
    analysis.print_summary(study, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line.split() for line in lines if "critical-source-0.01" in line)
    assert row[1:3] == ["1.0%", "0.001"]
    assert any("P5.4d" in line and "fails" in line for line in lines)


def test_tables_are_written_as_latex(study):
    written = {file.name: file.read_text() for file in analysis.save_tables(study).glob("*.tex")}
    sections = {"tuned", "tuned_against", "tuning_course", "moved_where"}
    assert {name.split("-")[0] for name in written} >= sections
    assert all(text.startswith(r"\begin{tabular}") for text in written.values())
    assert any("full-ewc1" in text for text in written.values())


def test_a_study_that_also_scores_is_asked_about_its_weights_too(tmp_path):
    study = rich(tmp_path)
    study.record["spec"]["scores"] = [ScoreSpec().model_dump()]
    study.record["spec"]["perturbations"] = [PerturbSpec(kind="zero").model_dump()]
    assert {"P2.7a", "P3.7", "P5.4d"} <= set(judged(study))
