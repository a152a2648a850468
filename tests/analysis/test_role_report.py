"""The report on roles tells what was planted: the answer first, a card for each weight, and evidence behind it."""

import io
import re

import polars as pl
import pytest
from rich.console import Console

import analysis
from analysis.documents import roles as document
from analysis.documents.pages import write_studies
from analysis.names import about
from analysis.report.figures import charts
from analysis.report.sections import answered
from analysis.report.sections.role_cards import shown
from tests.analysis import attended
from tests.analysis.roled import TENSORS, planted, subject, traced_facts, written
from tests.analysis.test_figures import PHONE, drawn, groups, labels

HOLDERS = {1: {"spike": 0.9, "sink": 0.7}, 2: {"sink": 0.6}, 3: {"frequency": 0.3}}
SECTIONS = ["roles_held", "role_cards", "necessity", "mediated", "false_positives", "stable_roles", "foretold_roles"]
TEXT = {"hurt": [" the", "\n"], "hurt_share": [0.25, 0.125], "prompt": "The list of", "before": " the names.",
        "after": " the the <b>"}  # fmt: skip


def tables(**changes):
    """Rows of roles and mediations with what the costliest weight does to text, and what it does to attention."""
    found = planted(
        HOLDERS, leading=30, roles=("spike", "sink", "frequency", "token-specific"), costs={1: 2.0}, **changes
    )
    for row in found["roles"]:
        if row["role"] == "token-specific" and row["rank"] == 1 and row["group"] == "super":
            row |= TEXT
    weight = subject("super", 1, TENSORS[1], 0)
    found["attention"] = attended.rows({k: weight[k] for k in weight}, cost=2.0, spike=0.1, sink=0.5)
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return written(tmp_path_factory.mktemp("report"), seeds=(1, 2), **tables(seeds=(1, 2)))


@pytest.fixture(scope="module")
def told(study):
    return {s.id: s for s in answered(study, set(charts(study)), "roles")}


def test_roles_are_told_in_their_sections_whose_tables_are_whole(study, told):
    assert [name for name in told if name in SECTIONS] == SECTIONS
    for section in told.values():
        assert all(
            len(row) == len(t.columns) for part in (section, *section.cards) for t in part.tables for row in t.rows
        )
    html = analysis.write_report(study).read_text()
    assert "What do the weights do that made-up hangs on?" in html
    assert about(study) == "roles"


def test_the_answer_counts_roles_and_names_what_is_unassigned(told):
    answer = told["roles_held"].answer
    assert answer.startswith("2 of 30 leading weights hold a role (6.7% [0.8%, 22.1%])")
    assert "2 sink makers, 1 spike maker. 28 are unassigned." in answer


def test_a_card_says_what_a_weight_is_costs_and_does(told):
    card = told["role_cards"].cards[0]
    assert (card.title, card.badges) == ("down [0, 1] in block 0", ["spike maker", "sink maker"])
    assert "Set to zero, the loss rises by +2.00 [" in card.answer
    assert "a spike maker: holding the mediator of spike undoes 90.0% [90.0%, 90.0%] of the damage" in card.answer
    assert "and a sink maker: holding the mediator of sink undoes 70.0%" in card.answer
    facts = dict(card.facts)
    assert facts["tokens it hurts most"] == "“␣the” 25.0%, “⏎” 12.5%"
    assert card.texts == [("the text begins", "The list of"), ("the model goes on", " the names."),
                          ("without the weight", " the the <b>")]  # fmt: skip
    assert [f.chart for f in card.figures] == ["attention_of_1"]
    assert "by zero, seed 2" in facts


def test_cards_stand_by_cost_and_say_why_a_weight_is_unassigned(told):
    cards = {c.id: c for c in told["role_cards"].cards}
    assert [c.id for c in told["role_cards"].cards][:3] == ["weight-1", "weight-2", "weight-3"]
    assert len(cards) == 30
    third = cards["weight-3"]
    assert third.badges == ["unassigned"]
    assert "it changes frequency more than matched weights do, but holding the mediator of frequency undoes 30.0%" in (
        third.answer
    )
    assert "none of 4 metrics changes more than by damage to matched weights" in cards["weight-9"].answer


def test_a_bigram_weights_card_says_that_its_mediator_carries_all_damage_of_block_0(tmp_path):
    study = written(tmp_path, **planted({1: {"bigram": 1.0}}, roles=("bigram",), leak=1.0))
    told = {s.id: s for s in answered(study, set(), "roles")}
    card = told["role_cards"].cards[0]
    assert card.badges == ["unassigned"]
    assert "of the damage, as it does of any weight in block 0" in card.answer
    assert "by mediation bigram isn't told from acting in block 0" in " ".join(told["mediated"].caveat.split())


def test_a_card_warns_where_holding_undoes_more_than_there_is_or_might_undo_any_damage(tmp_path):
    found = planted({1: {"spike": 1.3}, 2: {"sink": 2.3}}, roles=("spike", "sink"))
    for row in found["mediations"]:
        if row["group"] == "matched_k":
            row["delta_nll"] = [x * (-1) ** i for i, x in enumerate(row["delta_nll"])]
    told = {s.id: s for s in answered(written(tmp_path, **found), set(), "roles")}
    cards = {c.id: c for c in told["role_cards"].cards}
    assert "more than there is: the mediator does something of its own, too" in cards["weight-1"].answer
    assert "whether it would of any weight can't be told" in cards["weight-1"].answer
    assert cards["weight-2"].badges == ["unassigned"]
    assert "230.0% [230.0%, 230.0%], more than there is" in cards["weight-2"].answer


def test_text_of_a_model_is_escaped_in_the_page(study):
    html = analysis.write_report(study).read_text()
    assert "the the &lt;b&gt;" in html
    assert "the the <b>" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


def test_tokens_show_their_white_space():
    assert [shown(t) for t in (" a", "\n", "")] == ["␣a", "⏎", "(empty)"]


def test_verdicts_judge_roles_by_their_intervals(study):
    found = {v.id: v for v in analysis.verdicts(study)}
    assert [found[f"P5.4{x}"].status for x in "pqrs"] == ["fails", "fails", "holds", "open"]
    assert found["P5.4p"].evidence == "6.7% [0.8%, 22.1%] (2 of 30)"
    assert found["P5.4r"].evidence == "0.0% [0.0%, 3.6%] (0 of 100 that hurt, of 100)"


def test_a_change_stands_beside_its_share_of_the_intact_metric(study, told):
    change = study.roles.filter(
        (pl.col("rank") == 3) & (pl.col("group") == "super") & (pl.col("role") == "frequency") & (pl.col("seed") == 1)
    )["change"].item()
    necessary, card = told["necessity"].tables[0], told["role_cards"].cards[2].tables[0]
    rows = [next(r for r in t.rows if "frequency" in r) for t in (necessary, card)]
    assert [r[t.columns.index("change/intact")] for r, t in zip(rows, (necessary, card), strict=True)] == (
        [f"{change / 10:.1%}"] * 2)  # intact is 10  # fmt: skip


def test_tables_are_written_as_latex(study):
    files = {f.name: f.read_text() for f in analysis.save_tables(study).glob("*.tex")}
    assert "role_cards-all-leading-weights.tex" in files
    assert all(t.startswith(r"\begin{tabular}") and t.isascii() for t in files.values())


@pytest.mark.parametrize("name", ["role_counts", "necessary_changes", "mediated_shares", "role_agreement"])
def test_axes_of_roles_have_labels_on_a_phone(study, name):
    assert all(len(axis) > 1 for axis in labels(drawn(charts(study)[name], PHONE)))


def test_the_matrix_of_roles_has_a_mark_for_each_necessary_pair(study):
    svg = drawn(charts(study)["role_matrix"], PHONE)
    marks = [p for g in groups(svg, "mark") for p in g.iter() if "holds:" in (p.get("aria-label") or "")]
    assert sorted(("true" in p.get("aria-label")) for p in marks) == [False, True, True, True]


def test_a_card_has_a_picture_of_every_head_of_every_block(study):
    svg = drawn(charts(study)["attention_of_1"], PHONE)
    cells = [
        p
        for p in svg.iter()
        if "change of attention" in (p.get("aria-label") or "") and "block:" in p.get("aria-label")
    ]
    assert len(cells) == attended.BLOCKS * attended.HEADS


def test_the_terminal_says_who_holds_what_at_80_columns(study):
    out = io.StringIO()
    analysis.print_summary(study, Console(file=out, width=80))
    text = out.getvalue()
    assert "What the weights do that the model hangs on" in text
    assert re.search(r"sink +2/30", text)
    assert max(map(len, text.splitlines())) <= 80


def test_a_study_of_sensitivity_says_nothing_of_roles(synthetic):
    study, _ = synthetic
    assert answered(study, set(), "roles") == []
    assert not [v for v in analysis.verdicts(study) if v.id in ("P5.4p", "P5.4t")]


def test_the_document_puts_models_and_texts_side_by_side(tmp_path):
    for name, holders, source in (("a", HOLDERS, "pydoc"), ("a-pysource", {1: {"spike": 0.9}}, "pysource")):
        place = tmp_path / "roles" / name
        place.mkdir(parents=True)
        written(place, source=source, model="zoo:a", **planted(holders, leading=30))
    (tmp_path / "roles" / "b").mkdir()
    written(tmp_path / "roles" / "b", model="zoo:b", **planted(HOLDERS, leading=20))
    (tmp_path / "facts" / "a").mkdir(parents=True)
    written(tmp_path / "facts" / "a", model="zoo:a", facts=traced_facts(lambda *_: 1.0, lambda b, _: b + 1.0))
    studies = document.there(tmp_path)
    assert list(studies) == ["roles/a", "roles/a-pysource", "roles/b", "facts/a"]
    assert [len(s) for s in document.repeated(studies).values()] == [2, 1]
    text = write_studies(studies, tmp_path / "docs", "roles").read_text()
    assert "## All models: what do the weights do that they hang on?" in text
    assert "### down [0, 1] in block 0: spike maker, sink maker" in text
    assert "| zoo:a | text | pydoc | pysource | roles |" in text
    assert "P5.4s, zoo:a" in text
    assert "Facts, a: Where do facts come back?" in text
    pictures = set(re.findall(r"\]\((.*?\.svg)\)", text))
    assert pictures
    assert all((tmp_path / "docs" / picture).is_file() for picture in pictures)
    assert write_studies({}, tmp_path / "docs", "roles").read_text() == text
