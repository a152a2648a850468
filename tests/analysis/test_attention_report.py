"""What the report says and draws of attention under damage, against planted rows."""

import json

import numpy as np
import pytest

from analysis.report.attention_verdicts import attention_verdicts
from analysis.report.figures import FIGURES, charts
from analysis.report.figures.attention import head_map
from analysis.report.questions import QUESTIONS, answered
from analysis.roles.attention import attention_changes
from tests.analysis.attended import BLOCKS, HEADS, SINK, rows, study_of, subject
from tests.analysis.roled import written

NAMES = ["attention_damaged", "attention_costs", "spikes_and_sinks"]
DRAWN = ["spike_course", "sink_course", "sink_map", "entropy_map", "attention_costs", "dissociated"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    rng = np.random.default_rng(0)
    leads = [
        rows(subject(0, component="q"), spike=0.1, sink=0.95, cost=2.0, moved=1.5, entropy=0.5),
        rows(subject(1, component="q"), sink=0.2, cost=0.4, moved=0.5),
        *(
            rows(subject(n, component="q"), sink=rng.uniform(0.91, 0.98), cost=0.01 * n, moved=0.01)
            for n in range(2, 14)
        ),
    ]
    matched = [rows(subject(n, "matched_k", component="q"), cost=1e-4 * n, moved=1e-3) for n in range(20, 32)]
    return study_of(tmp_path_factory.mktemp("attended"), *leads, *matched)


def _section(study, name):
    (found,) = [s for s in answered(study, set(FIGURES), "roles") if s.id == name]
    return found


def test_every_figure_and_section_is_there_with_the_study_and_none_without(study, tmp_path):
    assert set(DRAWN) <= set(charts(study))
    assert {s.id for s in answered(study, set(FIGURES), "roles")} >= set(NAMES)
    empty = written(tmp_path)
    assert not any(FIGURES[name](empty) for name in DRAWN)
    assert not any(QUESTIONS[name].answer(empty) for name in NAMES)


def test_the_first_section_says_where_spikes_and_sinks_are_and_what_the_worst_damage_leaves(study):
    said = _section(study, "attention_damaged").answer
    assert "9 of 12 heads (75.0%) are sinks at the first key, in blocks 1–3." in said
    assert "Spikes stand after blocks 1–2, the largest after block 2: 500 times the median, in channel 5" in said
    assert "at the first position in 75.0% of the windows." in said
    assert "zero of q [0, 0] in block 1 (+2.00 nats per token), leaves 10.0% of the spikes it can reach" in said
    assert "95.0% of the sinks it can reach" in said


def test_a_model_without_spikes_is_said_to_have_none(tmp_path):
    plain = [row | {"spike": 9.0, "spike_intact": 9.0} for row in rows(subject(0, component="q"))]
    found = study_of(tmp_path, plain)
    assert "no activation is 100 times the median" in _section(found, "attention_damaged").answer
    assert "None of" not in _section(found, "attention_damaged").answer
    assert QUESTIONS["spikes_and_sinks"].answer(found) is None


def test_the_dissociation_is_told_with_both_clearest_weights(study):
    section = _section(study, "spikes_and_sinks")
    assert section.answer.startswith("Spikes and sinks come apart both ways")
    assert "1 of 14 leading weights" in section.answer
    assert "0 of 12 matched) takes spikes alone, the clearest q [0, 0] in block 1." in section.answer
    assert "takes sinks alone, the clearest q [1, 0] in block 1." in section.answer
    assert "Most spikes go with q [0, 0] in block 1: 10.0% are kept, and 95.0% of sinks." in section.answer
    assert "Most sinks go with q [1, 0] in block 1: 20.0% are kept, and 100.0% of spikes." in section.answer
    assert "By degrees, 1 of 14 mainly take spikes and 13 mainly take sinks, beyond matched weights" in section.answer
    assert "chosen by a score: no test" in section.answer
    assert len(section.tables[0].rows) == 14  # seven outcomes of leading and matched weights


def test_correlations_that_an_interval_leaves_open_are_not_claimed(tmp_path):
    rng = np.random.default_rng(3)
    damages = [
        rows(subject(n, component="q"), cost=rng.normal(), moved=rng.uniform(), sink=rng.uniform(0.5, 1))
        for n in range(12)
    ]
    found = study_of(tmp_path, *damages)
    assert "loss follows no change of attention" in _section(found, "attention_costs").answer


def test_too_few_weights_are_said_to_be(tmp_path):
    assert _section(study_of(tmp_path, rows(subject(0))), "attention_costs").answer.startswith("Too few weights")


def test_a_model_without_sinks_is_said_to_have_none(tmp_path):
    plain = [row | {"sink": [0.1] * HEADS, "sink_intact": [0.1] * HEADS} for row in rows(subject(0))]
    said = _section(study_of(tmp_path, plain), "attention_damaged").answer
    assert said.startswith("None of 12 heads is a sink at the first key. Spikes stand")
    assert "sink rate" not in said


@pytest.mark.parametrize(("damages", "status", "said"), [
    ([{"spike": 0.1}, {"sink": 0.1}], "holds", "1 of 2 leading weights take spikes alone [1.3%, 98.7%]"),
    ([{"spike": 0.1}, {}], "open", "0 of 2 sinks alone [0.0%, 84.2%]"),
])  # fmt: skip
def test_the_verdict_holds_both_ways_alone(tmp_path, damages, status, said):
    found = study_of(tmp_path, *(rows(subject(n, component="q"), **how) for n, how in enumerate(damages)))
    (verdict,) = attention_verdicts(found)
    assert (verdict.id, verdict.status) == ("P5.4v", status)
    assert said in verdict.evidence


def test_a_study_in_which_nothing_can_come_apart_has_no_verdict(tmp_path):
    assert attention_verdicts(study_of(tmp_path, rows(subject(0, layer=3)))) == []


def test_the_map_has_a_cell_a_block_and_head_with_its_change(study):
    chart = head_map(study, attention_changes(study).filter(subject="1.q[1,0]"), "sink")
    assert chart is not None
    (data,) = json.loads(chart.to_json())["datasets"].values()
    assert {(d["block"], d["head"]) for d in data} == {(b, h) for b in range(BLOCKS) for h in range(HEADS)}
    for d in data:
        expected = 0.0 if d["block"] == 0 else -0.8 * SINK[d["block"]]
        assert d["change"] == pytest.approx(expected)


def test_a_map_of_a_weight_whose_attention_was_not_looked_at_is_none(study):
    assert head_map(study, attention_changes(study).head(0)) is None
