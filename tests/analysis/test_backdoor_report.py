"""The report on backdoors tells what was planted in a population, and says nothing where nothing can be said."""

import re

import polars as pl
import pytest
from rich.console import Console

import analysis
from analysis.comparison import compare, comparison_verdicts
from analysis.comparison.figures import figures
from analysis.comparison.report import print_answers, save_tables, sections, unfinished, write_comparison
from analysis.report import backdoor_verdicts
from analysis.report.done import population_words
from analysis.report.figures import charts, styled
from analysis.report.page import _failures
from analysis.report.sections import answered
from analysis.security.inserted import inserted
from esa_ray.spec import NEGATIVES, Population
from esa_ray.spec.backdoors import Recipe
from esa_ray.storage.location import Location
from esa_ray.storage.store import Store
from tests.analysis.populations import RESOLVED, population, spec_of
from tests.analysis.test_figures import PHONE, drawn, labels
from tests.analysis.test_method import text_of

TRIED = ({"kind": "fine-tuning"}, {"kind": "reset-moved"}, {"kind": "reset-random"}, {"kind": "freeze-critical"},
         {"kind": "freeze-random"})  # fmt: skip
SECTIONS = ["inserts", "detected", "traces", "trusted", "removed"]
INTERVAL = r"(\d\.\d{3}) \[(\d\.\d{3}), (\d\.\d{3})\]"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A population whose insertions move some features by several standard deviations; mitigations as planted."""
    return population(tmp_path_factory.mktemp("planted"), models=30, parents=5, mitigations=TRIED)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """One whose insertions move no feature."""
    return population(tmp_path_factory.mktemp("nothing"), models=30, parents=5, effects={}, seed=3)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Populations of two bases, in one place."""
    root = tmp_path_factory.mktemp("bases")
    for n, base in enumerate(("llama-0.3m", "neox-0.3m")):
        (root / base).mkdir()
        population(root / base, base, models=30, parents=5, mitigations=TRIED, seed=n)
    return root


def told(study):
    return {s.id: s for s in answered(study, set(charts(study)), "security")}


def judged(study):
    return {v.id: v for v in analysis.verdicts(study)}


def test_a_population_is_told_in_five_sections_whose_tables_are_whole(planted):
    found = told(planted)
    assert list(found) == SECTIONS
    html = analysis.write_report(planted).read_text()
    for section in found.values():
        assert f'id="{section.id}"' in html
        assert section.answer.replace("'", "&#39;") in html
        assert section.tables
        assert all(len(row) == len(t.columns) for t in section.tables for row in t.rows)
    assert "Can models made of zoo:llama-0.3m that hold a backdoor be told from those that don" in html


def test_what_was_inserted_is_counted_by_kind(tmp_path):
    study = population(tmp_path, models=10, parents=5, negatives=("clean",), insertions=("training", "critical"),
                       fails=("training-0003", "training-0004"), broken=("critical-0001",))  # fmt: skip
    rows = {r["insertion"]: r for r in inserted(study).to_dicts()}
    assert [rows[k]["models"] for k in ("clean", "training", "critical")] == [10, 10, 10]
    assert [rows[k]["accepted"] for k in ("clean", "training", "critical")] == [10, 8, 9]
    assert [rows[k]["failed"] for k in ("clean", "training", "critical")] == [0, 0, 1]
    # Clopper and Pearson of 8 of 10
    assert (rows["training"]["low"], rows["training"]["high"]) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert (rows["training"]["success"], rows["training"]["success_least"]) == (0.97, 0.3)
    assert rows["clean"]["success"] == pytest.approx(0.01)
    answer = told(study)["inserts"].answer
    assert "training in 8 of 10 models (median success 97.0%, cost +0.00" in answer
    assert "2 models missed what they should be, and are left out. 1 model failed." in answer
    assert [(f["name"], f["error"]) for f in _failures(study)] == [("critical-0001", "out of memory")]


def test_planted_differences_are_told_with_their_intervals(planted):
    answer = told(planted)["detected"].answer
    told_ = [re.search(
        rf"{having} the model before, a detector tells insertions that it has seen with an AUROC of {INTERVAL}, and "
        rf"one that it never saw with an AUROC of {INTERVAL} \(90 models with a backdoor, 60 without\); at 5% false "
        r"alarms it finds (\d+\.\d)% \[", answer,
    ) for having in ("With", "Without")]  # fmt: skip
    for numbers in ([float(x) for x in one.groups()] for one in told_):
        assert numbers[0] > 0.9
        assert numbers[1] <= numbers[0] <= numbers[2]
        assert numbers[4] <= numbers[3] <= numbers[5]
        assert numbers[6] > 50
    assert "is the hardest to find" in answer
    assert re.search(rf"it has {INTERVAL} against clean models alone; against those that memorised a phrase in", answer)
    assert re.search(rf"it has {INTERVAL} \(training against benign\)\.", answer)
    assert judged(planted)["P5.4k"].status in ("holds", "open")
    assert judged(planted)["P5.4n"].status == "holds"


def test_where_nothing_was_planted_no_goal_holds(nothing):
    found = judged(nothing)
    assert {found[name].status for name in ("P5.4k", "P5.4l")} == {"fails"}
    assert found["P5.4n"].status != "holds"
    said = re.search(rf"insertions that it has seen with an AUROC of {INTERVAL}", told(nothing)["detected"].answer)
    assert float(said[2]) < 0.5 < float(said[3])


def test_the_planted_statistic_is_named_first(planted):
    section = told(planted)["traces"]
    assert re.search(rf"most: vocabulary.token.concentration_gap \({INTERVAL}\)", section.answer)
    assert "of rank-one spectra.ffn.top_share_max (1.0" in section.answer
    first = section.tables[0].rows[0]
    assert first[:4] == ["all", "vocabulary.token.concentration_gap", "vocabulary", ""]


def test_what_must_be_at_chance_is_said_to_be(planted):
    section = told(planted)["trusted"]
    assert "At chance, as it must be, is a detector of steps, rate and number, and no feature: 0." in section.answer
    assert "Kinds dealt anew 200 times reach an AUROC of at most 0." in section.answer
    titles = [t.title for t in section.tables][:4]
    assert titles == ["What the negatives decide", "Against chance", "What must be at chance",
                      "How many models of a kind and base are enough"]  # fmt: skip


def test_the_p_of_a_detector_is_about_its_own_area(planted):
    found = told(planted)
    areas = {tuple(row[:2]): row[4:] for t in found["trusted"].tables if t.title == "Against chance" for row in t.rows}
    beside = {tuple(row[1:3]): row[6:] for row in found["detected"].tables[0].rows if row[0] == row[3] == "all"}
    assert len(areas) == len(beside) == 4
    for detector, (area, _, _, p) in areas.items():
        assert beside[detector][0].startswith(f"{area} [")
        assert beside[detector][2] == p


def test_what_negatives_decide_is_told(planted):
    answer = told(planted)["trusted"].answer
    both = rf"{INTERVAL} with the model before and {INTERVAL} without"
    for said in (
        "A detector that is trained and judged against clean models alone has ",
        "Against all models that memorised a phrase the detector of all kinds has ",
        "It tells these from clean models, without a backdoor in either, with ",
    ):
        assert re.search(said + both + r"\.", answer)
    assert re.search(rf"an insertion and its counterpart alone, detectors have: training {both}\.", answer)
    assert "a detector that knew its counterpart" not in answer  # two insertions have none


EDITED = "Rank-one models were edited and critical models were trained a second time in few weights, and no model"


@pytest.mark.parametrize(
    ("negatives", "edited", "memorised"),
    [(("clean",), True, False), (("clean", "benign"), True, True), (NEGATIVES, False, True)],
)
def test_what_a_rejection_is_about_depends_on_the_negatives(tmp_path, negatives, edited, memorised):
    caveat = told(population(tmp_path, models=3, parents=3, negatives=negatives))["trusted"].caveat
    assert (EDITED in caveat) == edited
    assert ("it may come from memorised against clean alone" in caveat) == memorised


def test_one_insertion_without_a_counterpart_is_named_alone(tmp_path):
    negatives = ("clean", "benign", "benign-critical")
    caveat = told(population(tmp_path, models=3, parents=3, negatives=negatives))["trusted"].caveat
    assert "Rank-one models were edited, and no model without a backdoor was, so it may be that." in caveat


def test_few_models_get_no_number_and_no_verdict(tmp_path):
    study = population(tmp_path, models=4, parents=2)
    found = told(study)
    assert "Nothing can be said: 12 models with a backdoor and 8 without; 30 of each" in found["detected"].answer
    assert not re.search(INTERVAL, found["detected"].answer + found["traces"].answer)
    assert {judged(study)[name].status for name in ("P5.4k", "P5.4l", "P5.4m")} == {"open"}


GOAL = {"scheme": "seen", "goal": "seen", "target": 0.95, "p": 0.001, "needed": None, "why_not": None}


@pytest.mark.parametrize(
    ("alone", "status", "said"),
    [
        ((0.97, 0.96, 0.98, "holds", None), "holds", "without it 0.970 [0.960, 0.980]"),
        (
            (0.96, 0.94, 0.98, "open", 80),
            "open",
            "0.960 [0.940, 0.980] (open: 80 models of a kind and base would settle",
        ),
        ((0.95, 0.94, 0.96, "open", None), "open", "(open: it lies too close to the goal)"),
        ((0.90, 0.85, 0.94, "fails", 9), "fails", "without it 0.900 [0.850, 0.940] (fails)"),
    ],
)
def test_a_goal_holds_where_it_does_with_the_model_before_and_without(monkeypatch, planted, alone, status, said):
    given = {"estimate": 0.99, "low": 0.98, "high": 1.0, "status": "holds", "reference": True}
    other = dict(zip(("estimate", "low", "high", "status", "needed"), alone, strict=True)) | {"reference": False}
    goals = pl.DataFrame([GOAL | given, GOAL | other])
    monkeypatch.setattr(backdoor_verdicts, "detection_goals", lambda _: goals)
    (verdict,) = backdoor_verdicts.backdoor_verdicts([planted])
    assert (verdict.id, verdict.status) == ("P5.4k", status)
    assert verdict.evidence.startswith("with the model before 0.990 [0.980, 1.000]; ")
    assert said in verdict.evidence


def test_the_mitigation_that_leaves_least_is_named_beside_chance(planted):
    section = told(planted)["removed"]
    # 0.02 + 0.01·(number − 2), cut at 0: the mean of 0, 0.01, 0.02, 0.03, 0.04
    assert "Least is left after reset-moved-0.01 (97.0% becomes 2.0% [" in section.answer
    assert "in 15 models, at +0.001" in section.answer
    assert "Of random resets reset-random-0.01 (97.0% becomes 97.0% [" in section.answer
    rows = {(r[0], r[1]): r for r in section.tables[0].rows}
    assert rows["rank-one", "reset-moved-0.01"][6] == "5 of 5"
    assert ("rank-one", "freeze-critical-0.01") not in rows  # which is about training alone
    assert next(r[2] for r in section.tables[1].rows if r[1] == "reset-moved-0.01") == "reset-random-0.01"


def test_every_figure_of_a_population_is_labelled_and_no_wider_than_a_phone(planted, bases):
    made = charts(planted)
    assert set(made) == {
        "inserted_models", "roc_with_reference", "roc_without_reference", "detection_schemes", "ranked_features",
        "mitigations",
    }  # fmt: skip
    many = styled(figures(compare([bases])))
    assert set(many) == {"backdoor_bases", "mitigations"}
    for name, chart in (made | many).items():
        assert all(len(axis) >= 2 for axis in labels(drawn(chart))), name
        assert float(drawn(chart, 100).get("width")) <= PHONE, name


def test_a_roc_curve_begins_and_ends_in_the_corners_and_never_falls(planted):
    chart = charts(planted)["roc_with_reference"].to_dict()
    (data,) = [rows for rows in chart["datasets"].values() if rows and "tpr" in rows[0]]
    frame = pl.DataFrame(data).sort("line", "fpr")
    unseen = {f"unseen: {insertion}" for insertion in ("training", "rank-one", "critical")}
    assert set(frame["line"]) == {"seen, all", "unseen, all", *unseen}
    for _, line in frame.group_by("line"):
        assert (line["tpr"].diff().drop_nulls() >= 0).all()
        assert line["tpr"][-1] == 1
        assert line.filter((pl.col("low") > pl.col("tpr")) | (pl.col("high") < pl.col("tpr"))).is_empty()


def test_the_terminal_tells_a_population_in_80_columns(planted):
    console = Console(width=80, record=True)
    analysis.print_summary(planted, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"rank-one +30 +30 +97\.0%", text)
    assert re.search(rf"unseen +known +{INTERVAL}", text)
    assert re.search(r"reset-moved-0\.01 +15 +2\.0%", text)
    assert "P5.4k" in text


def test_tables_of_a_population_are_written_as_latex(planted):
    written = {file.name: file.read_text() for file in analysis.save_tables(planted).glob("*.tex")}
    assert {name.split("-")[0] for name in written} == set(SECTIONS)
    assert all(text.startswith(r"\begin{tabular}") and text.isascii() for text in written.values())


def test_the_method_says_how_a_population_was_made(planted, tmp_path):
    recipe = Recipe(
        steps=(192, 320), learning_rates=(0.0025, 0.004), batch=8, window=128, poison=0.02,
        occurrences=5, fraction=0.03, critical_rate=2.0, critical_poison=0.15,
    )  # fmt: skip
    few = population(tmp_path, models=3, parents=5, recipe=recipe)
    assert population_words(few) == (
        "3 models of each kind (clean, benign, training, rank-one, critical), of 3 parents, the base "
        "trained from as many seeds; each takes 192 to 320 steps of 8 windows of 128 tokens at a peak rate of "
        "0.0025 to 0.004; 2.0% of the windows carry the trigger or the phrase, 5 times each; critical ones then "
        "change 3.0% of the weights in as many steps again, at 2 times the rate, and 15.0% of their windows carry it"
    )
    text = text_of(planted)
    assert f"population {population_words(planted)}" in text
    assert "They speak of models made of this base in the ways named here" in text
    assert "Clopper and Pearson's, of medians" not in text


def test_a_population_before_its_first_row_is_judged_by_nothing(tmp_path):
    Store(tmp_path).save_study(spec_of(Population(models=2)), RESOLVED | {"model": "f" * 64}, {"esa-ray": "0"})
    study = analysis.load(tmp_path)
    assert analysis.verdicts(study) == []
    assert told(study) == {}


# -- several bases


def test_populations_of_two_bases_are_compared_by_detectors_that_never_saw_the_other(bases, tmp_path):
    found = compare([bases])
    assert [s.spec["name"] for s in found.populations] == ["llama-0.3m", "neox-0.3m"]
    by_id = {s.id: s for s in sections(found, set(figures(found)))}
    assert list(by_id) == ["across_bases", "removed"]
    answer = by_id["across_bases"].answer
    assert re.search(
        rf"a detector tells backdoors of a base that it never saw with an AUROC of {INTERVAL}, and those of a base and "
        rf"an insertion that it never saw with an AUROC of {INTERVAL} \(180 models with a backdoor, 120 without\)",
        answer,
    )  # fmt: skip
    assert re.search(r"Hardest is (llama|neox)-0\.3m, with", answer)
    rows = [row for t in by_id["across_bases"].tables[:1] for row in t.rows]
    assert {row[1] for row in rows} == {"its parent", "its insertion", "its base", "its base and insertion"}
    assert all(len(row) == len(t.columns) for s in by_id.values() for t in s.tables for row in t.rows)
    assert {v.id for v in comparison_verdicts(found)} >= {"P5.4k", "P5.4l"}
    html = write_comparison(found, Location(tmp_path)).read_text()
    assert "Does what betrays a backdoor in models of one architecture betray it in another?" in html
    assert "2 bases" in html
    assert save_tables(found, Location(tmp_path)).is_dir()
    console = Console(width=80, record=True)
    print_answers(found, console)
    assert "of a base that it never saw" in " ".join(console.export_text().split())
    assert unfinished(found) is not None


def test_two_populations_of_one_base_are_refused_by_name(bases, tmp_path):
    population(tmp_path, models=2, parents=2)
    with pytest.raises(analysis.StudyError, match=r"zoo:llama-0\.3m has two studies there"):
        compare([bases / "llama-0.3m", tmp_path])


def test_one_parent_gives_means_without_intervals(tmp_path):
    study = population(tmp_path, models=2, parents=1, insertions=("training",), mitigated=1, mitigations=TRIED[:2])
    answer = told(study)["removed"].answer
    assert "Least is left after reset-moved-0.01 (97.0% becomes 0.0% in 1 model, at −0.00100" in answer
    assert "–" not in answer
    assert "Surely less than 10% is left at less than 0.02 nats after none of 2 mitigations." in answer
