"""The report holds every number, needs no network, escapes what it is given, and judges honestly."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from itertools import product

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import analysis
from analysis.report import wording
from analysis.report.figures import FIGURES
from analysis.report.figures.style import named_scales
from analysis.report.sections import answered
from esa_ray.spec import SCORES, STORED, THREATS, Score
from esa_ray.storage.store import Store
from tests.analysis.cells import cell as stored
from tests.analysis.cells import study_of
from tests.analysis.conftest import write_study
from tests.analysis.synthetic import write_synthetic


class Page(HTMLParser):
    """Text outside scripts and styles, and every attribute that could fetch something."""

    def __init__(self, html):
        super().__init__()
        self.text, self.fetches, self._inside = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._inside.append(tag)
        self.fetches += [(tag, k, v) for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._inside):
            self.text.append(data)


@pytest.fixture
def page(made):
    study = analysis.load(made)
    return study, Page(analysis.write_report(study).read_text())


def test_every_effect_and_test_stands_in_the_report(page):
    study, html = page
    text = unescape(" ".join(html.text))
    for row in analysis.effects(study).iter_rows(named=True):
        for value in (wording.signed(row["delta_nll"]), wording.interval(row["low"], row["high"]),
                      wording.significant(row["perplexity"], 4)):  # fmt: skip
            assert value in text
        for seed in row["by_seed"]:
            assert wording.signed(seed) in text
    for row in analysis.comparisons(study).iter_rows(named=True):
        assert wording.p_value(row["p_holm"]) in text
        assert wording.significant(row["g"]) in text
    for row in analysis.jaccard(study).iter_rows(named=True):
        assert f"{row['jaccard']:.3f}" in text
    for verdict in analysis.verdicts(study):
        assert verdict.claim in text
        assert verdict.evidence in text


def test_nothing_is_fetched(page):
    _, html = page
    assert all(value.startswith("#") for _, _, value in html.fetches), html.fetches


def test_styles_import_nothing(made):
    html = analysis.write_report(analysis.load(made)).read_text()
    style = re.search(r"<style>(.*?)</style>", html, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_names_from_input_are_escaped(made):
    html = analysis.write_report(analysis.load(made)).read_text()
    assert "<script>alert(1)" not in html
    assert "a<b>model" not in html
    assert "a&lt;b&gt;model" in html


def test_verdicts_follow_the_planted_effect(made, tmp_path_factory):
    at = {v.id: v for v in analysis.verdicts(analysis.load(made))}
    assert at["P3.7a"].status == "holds"
    assert at["P3.7c"].status == "holds"
    assert at["P2.7a"].status == "fails"  # Jaccard is 1/3
    assert at["P3.7e"].status == "open"
    none = tmp_path_factory.mktemp("null")
    write_study(none, shift={"super": 0.0, "random_k": 0.0, "bottom_k": 0.0}, noise=0.01, windows=12)
    at = {v.id: v for v in analysis.verdicts(analysis.load(none))}
    assert at["P3.7a"].status == "fails"
    assert at["P3.7c"].status == "fails"


def test_an_unfinished_study_says_so(made):
    (made / "cells" / "super1.parquet").unlink()
    assert (
        "This study is unfinished: 1 of 9 cells are missing" in analysis.write_report(analysis.load(made)).read_text()
    )


def test_the_summary_fits_80_columns(made):
    console = Console(width=80, record=True, force_terminal=False)
    analysis.print_summary(analysis.load(made), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("sign_flip-1" in line and "+2.00" in line for line in lines)


def test_figures_are_written_as_files(made):
    folder = analysis.save_figures(analysis.load(made))
    assert {f.name for f in folder.iterdir()} == {
        f"{name}.{kind}" for name in ("damage", "stability", "hotspots", "tail") for kind in ("svg", "png")
    }


def test_a_corrupt_file_is_named(made):
    broken = made / "cells" / "super1.parquet"
    broken.write_bytes(b"no")
    with pytest.raises(analysis.StudyError, match=re.escape(str(broken))):
        analysis.effects(analysis.load(made))


def test_frames_come_from_polars(made):
    assert isinstance(analysis.load(made).cells, pl.DataFrame)


def test_scores_and_pools_are_never_mixed(made):
    # The same damage under a second score, with the effect reversed: its rows must not touch the first's.
    study = analysis.load(made)
    record = json.loads((made / "study.json").read_text())
    record["spec"]["scores"].append({**record["spec"]["scores"][0], "metric": "grad_squared"})
    (made / "study.json").write_text(json.dumps(record))
    store = Store(made)
    for cell in study.cells.to_dicts():
        swapped = {"super": "random_k", "random_k": "super"}.get(cell["group"], cell["group"])
        other = cell | {"metric": "grad_squared", "group": swapped, "cell_id": "other" + cell["cell_id"]}
        store.write("cells", other["cell_id"], [other])
    rows = {(r["chosen"], r["group"]): r["delta_nll"] for r in analysis.effects(analysis.load(made)).to_dicts()}
    assert rows["grad_x_weight per_layer k=2", "super"] == pytest.approx(2, abs=0.01)
    assert rows["grad_squared per_layer k=2", "super"] == pytest.approx(0.01, abs=0.01)
    at = {v.id: v for v in analysis.verdicts(analysis.load(made))}
    assert at["P3.7a"].status == "fails"
    console = Console(width=120, record=True)
    analysis.print_summary(analysis.load(made), console)
    assert len([x for x in console.export_text().splitlines() if "sign_flip-1" in x]) == 2


def test_a_partial_study_and_a_lone_group_can_be_reported(made, tmp_path_factory):
    for seed in (1, 2, 3):
        (made / "cells" / f"bottom_k{seed}.parquet").unlink()
    analysis.write_report(analysis.load(made))
    analysis.print_summary(analysis.load(made), Console(quiet=True))
    at = {v.id: v.status for v in analysis.verdicts(analysis.load(made))}
    assert at["P3.7"] == "open"
    alone = write_study(tmp_path_factory.mktemp("alone"), shift={"super": 1.0}, seeds=(1,))
    html = analysis.write_report(analysis.load(alone)).read_text()
    assert "What do other weights cost" not in html
    analysis.print_summary(analysis.load(alone), Console(quiet=True))


SECTIONS = ["stable", "scores", "patterns", "pools", "structure", "fidelity"]


def test_the_method_says_what_is_addressed_and_what_is_not(made):
    record = json.loads((made / "study.json").read_text())
    record["resolved"]["addressed"] = {
        "components": {"q": 1200, "other": 34}, "other": {"layers.*.laurel.<b>": 34}, "biases": 56,
        "left_out": [{"name": "layers.*.sinks_bias", "weights": 78, "why": "a bias"}],
    }  # fmt: skip
    (made / "study.json").write_text(json.dumps(record))
    text = " ".join(" ".join(Page(analysis.write_report(analysis.load(made)).read_text()).text).split())
    assert "q 1,200, other 34" in text
    assert "asked for: layers.*.laurel.<b> (34)" in unescape(text)
    assert "Not addressed: layers.*.sinks_bias (78, a bias)" in text
    assert "Biases (56) are neither scored nor damaged" in text


def test_every_section_stands_in_a_full_report_with_its_numbers(synthetic):
    study, _ = synthetic
    html = analysis.write_report(study).read_text()
    text = unescape(" ".join(Page(html).text))
    drawn = analysis.charts(study)
    made = answered(study, set(drawn))
    assert [s.id for s in made] == SECTIONS
    for section in made:
        assert f'id="{section.id}"' in html
        assert section.answer in text
        assert section.caveat in text
        assert section.figures
        for table in section.tables:
            assert all(len(row) == len(table.columns) for row in table.rows)
            assert all(cell in text for row in table.rows for cell in row)
        for figure in section.figures:
            assert f'id="chart-{figure.chart}"' in html
    assert set(re.findall(r'id="chart-(\w+)"', html)) == set(drawn)


def test_answers_name_what_was_planted(synthetic):
    at = {s.id: s.answer for s in answered(synthetic[0], set())}
    assert "layer 0" in at["patterns"]
    assert "7 (6 of 6 layers)" in at["structure"]
    assert "grad_x_weight ranks single weights best" in at["fidelity"]
    assert "from k = 1 on" in at["stable"]


def test_long_tables_are_folded_after_ten_rows(synthetic):
    tables = [t for s in answered(synthetic[0], set()) for t in s.tables]
    assert all(len(t.head) <= 10 for t in tables)
    assert any(t.rest for t in tables)
    html = analysis.write_report(synthetic[0]).read_text()
    assert html.count("<details>") == html.count("</details>") > 5


def test_older_studies_have_no_sections_that_they_lack_data_for(made):
    study = analysis.load(made)
    assert {s.id for s in answered(study, set())} == {"stable", "patterns"}
    html = analysis.write_report(study).read_text()
    assert 'id="fidelity"' not in html
    assert "What a single weight does by itself is not measured here" in html


def test_a_study_that_only_scored_can_be_reported(tmp_path):
    write_synthetic(tmp_path / "s", seeds=(1, 2))
    for table in ("cells", "baselines", "fidelity", "samples", "sample_sizes"):
        (tmp_path / "s" / table / "all.parquet").unlink()
    study = analysis.load(tmp_path / "s")
    html = analysis.write_report(study).read_text()
    assert 'id="stable"' in html
    assert 'id="chart-hotspots"' in html
    console = Console(width=80, record=True)
    analysis.print_summary(study, console)
    assert "Jaccard between seeds" in console.export_text()


def test_the_summary_of_many_scores_fits_80_columns(synthetic):
    console = Console(width=80, record=True, force_terminal=False)
    analysis.print_summary(synthetic[0], console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("single weights: grad_x_weight" in line for line in lines)
    assert any("from k = 1 on" in line for line in lines)


def test_verdicts_leave_out_scores_that_are_no_magnitudes(synthetic):
    at = {v.id: v for v in analysis.verdicts(synthetic[0])}
    for verdict in ("P2.7c", "P2.7d"):
        assert "+" not in at[verdict].evidence
        assert "magnitude" not in at[verdict].evidence
        assert "grad_squared" in at[verdict].evidence
    assert at["P2.7c"].status == "fails"  # act_mag's tail is light
    assert "16 kinds of set" in at["P2.7a"].evidence  # four scores that look at text, two modes, two k
    assert at["P2.7a"].status == "fails"


def test_figures_of_a_full_study_are_written_as_files(synthetic):
    study, _ = synthetic
    drawn = {
        "damage", "stability", "stability_by_k", "stability_by_windows", "scores", "hotspots", "depth", "tail",
        "survival", "spread", "channels", "fidelity", "calibration",
    }  # fmt: skip
    assert set(analysis.charts(study)) == drawn
    of_faults = product(("break_curves", "protection_costs", "protections", "vulnerable_bits"), STORED)
    withstood = product(("withstood",), STORED, THREATS)
    # What needs kinds of damage, doses, parts of sets, protocols or what is applied to a model, this study lacks.
    assert set(FIGURES) - drawn == {*map("_".join, (*of_faults, *withstood))} | {
        "attack_ratios", "vulnerable_scores", "covered_shares", "foretold_chances", "gradient_bits",
        "dose", "kinds", "together", "pairs", "layers", "recovery", "timeline", "reliability", "excess", "excess_bits",
        "savings", "savings_bits", "front_sparsity", "front_bits", "factors", "block_errors", "tuning_front",
        "target_curves", "source_curves", "tuning_rates", "moved_blocks", "moved_components", "inserted_models",
        "roc_with_reference", "roc_without_reference", "detection_schemes", "ranked_features", "mitigations",
        "role_matrix", "role_counts", "necessary_changes", "mediated_shares", "role_agreement", "tracing_subject",
        "tracing_noise", "traced_places", "spike_course", "sink_course", "sink_map", "entropy_map", "attention_costs",
        "dissociated", *(f"attention_of_{n}" for n in range(1, 7)),
    }  # fmt: skip
    assert len(list(analysis.save_figures(study).glob("*.svg"))) == len(drawn)


def test_the_figure_of_damage_says_whose_it_is(tmp_path):
    even, norm = np.linspace(0.1, 0.2, 8), {"delta_norm": 1.0}
    cells = [stored(even, metric="listed", mode="mine", group="listed", k=2, **norm)]
    cells += [stored(even, seed=seed, **norm) for seed in (1, 2)]
    study = study_of(tmp_path, cells, lists=[{"name": "mine", "weights": []}])
    html = analysis.write_report(study).read_text()
    assert "<figcaption>Damage to list mine. Points are" in html


@pytest.mark.parametrize("n", [3, 8, 11, 26, 56])
def test_no_two_names_look_alike(n):
    encoding = named_scales("name", [f"n{i}" for i in range(n)])
    looks = [encoding[channel].to_dict()["scale"]["range"] for channel in ("color", "shape")]
    assert len(set(zip(*looks, strict=True))) == n


@pytest.mark.parametrize(
    ("opening", "words"),
    [(None, "each beginning with BOS, "), (["[gMASK]", "<sop>"], "each beginning with BOS ([gMASK]<sop>), ")],
)
def test_what_windows_begin_with_is_said_where_the_study_knows(made, opening, words):
    content = json.loads((made / "study.json").read_text())
    content["resolved"] |= {"opening": opening} if opening else {}
    (made / "study.json").write_text(json.dumps(content))
    assert words in " ".join(Page(analysis.write_report(analysis.load(made)).read_text()).text)


class Loudest(Score):
    """A score of another package, of a name that says nothing."""

    name, formula, unit, needs = "loudest", "max |X_j|", "x", ("input_peak",)

    def at(self, places):
        return places["input_peak"]


@pytest.fixture
def loudest():
    SCORES.add(Loudest)
    yield
    SCORES.remove("loudest")


@pytest.mark.usefixtures("loudest")
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ([], None), (["magnitude"], None), (["hutchinson_diag"], None), (["gone_with_its_package"], None),
        (["loudest"], "loudest"), (["super_activation", "act_mag"], "act_mag, super_activation"),
        (["magnitude+loudest"], "magnitude+loudest"),
    ],
)  # fmt: skip
def test_scores_that_see_activations_are_named_as_no_replication(made, more, named):
    content = json.loads((made / "study.json").read_text())
    content["spec"]["scores"] += [content["spec"]["scores"][0] | {"metric": metric} for metric in more]
    (made / "study.json").write_text(json.dumps(content))
    text = " ".join(Page(analysis.write_report(analysis.load(made)).read_text()).text)
    said = re.findall(r"Scores of activations \(here ([^)]*)\) that live on that position", text)
    assert said == ([named] if named else [])
