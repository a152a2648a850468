"""Tracing of facts: planted places are found, paraphrases agree as they were planted, and so does sensitivity."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from analysis.report.figures import charts
from analysis.report.sections import answered
from analysis.roles.goals import fact_goals
from analysis.roles.tracing import consistency, known_facts, place_means, traced, traced_sensitivity
from tests.analysis.roled import fact_row, traced_facts, written


def at_block_two(n, position, block, sublayer):
    """All of it in the feed-forward layer of block 2, at the subject's last token."""
    return 3.0 if (position, block, sublayer) == ("subject-last", 2, "ffn") else 0.0


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    rows = traced_facts(at_block_two, lambda block, _: 1.0 if block == 2 else 0.1, corruptions=("subject", "noise"))
    return written(tmp_path_factory.mktemp("facts"), facts=rows)


def test_the_planted_place_gives_back_its_share_and_no_other(study):
    table = traced(study).filter(pl.col("corruption") == "subject").sort("share", descending=True)
    first, second = table.head(2).to_dicts()
    assert (first["position"], first["block"], first["sublayer"]) == ("subject-last", 2, "ffn")
    assert first["share"] == pytest.approx(0.75, abs=0.02)  # 3 of 4 logits
    assert first["low"] <= first["share"] <= first["high"]
    assert abs(second["share"]) < 0.02
    assert first["facts"] == 8


def test_a_share_is_a_ratio_of_sums_over_facts(tmp_path):
    rows = [fact_row("a", "last", 0, "ffn", 1.0, taken=2.0), fact_row("b", "last", 0, "ffn", 0.0, taken=6.0)]
    row = traced(written(tmp_path, facts=rows)).row(0, named=True)
    assert (row["share"], row["effect"], row["facts"]) == (pytest.approx(1 / 8), 0.5, 2)


def test_only_known_facts_are_traced_and_both_are_counted(tmp_path):
    rows = [fact_row("a", "last", 0, "ffn", 1.0), fact_row("a", "last", 0, "ffn", 9.0, paraphrase=1, known=False),
            fact_row("b", "last", 0, "ffn", 9.0, known=False)]  # fmt: skip
    study = written(tmp_path, facts=rows)
    assert traced(study)["effect"].to_list() == [1.0]
    row = known_facts(study).row(0, named=True)
    assert (row["facts"], row["known"], row["prompts"], row["known_prompts"]) == (2, 1, 3, 1)


def test_maps_of_one_fact_agree_more_than_those_of_different_facts(tmp_path):
    maps = np.random.default_rng(2).normal(size=(8, 3, 6))
    where = {"subject-first": 0, "subject-last": 1, "last": 2}
    rows = traced_facts(lambda n, p, b, _: maps[n, where[p], b], lambda *_: 1.0, noise=0.0)
    table = consistency(written(tmp_path, facts=rows))
    assert table["rho"].to_list() == pytest.approx([1.0] * 3)
    by_hand = np.mean([spearmanr(maps[i].ravel(), maps[j].ravel()).statistic for i in range(8) for j in range(i)])
    assert table["others"].to_list() == pytest.approx([by_hand] * 3)
    assert table["difference"].to_list() == pytest.approx([1 - by_hand] * 3)
    assert (table["difference_low"] > 0.5).all()
    assert table["same_peak"].to_list() == [1.0] * 3


def test_maps_that_all_prompts_share_are_no_facts_own(tmp_path):
    rows = traced_facts(lambda n, p, b, _: float(b) + 10 * (p == "last"), lambda *_: 1.0, noise=0.0)
    study = written(tmp_path, facts=rows)
    assert consistency(study)["others"].to_list() == pytest.approx([1.0] * 3)
    goal = {r["goal"]: r for r in fact_goals(study).to_dicts()}["consistent"]
    assert (goal["status"], goal["why_not"]) == ("open", "different facts agree as much")


def test_facts_are_compared_with_others_of_their_relation_in_other_ways_of_asking(tmp_path):
    # maps go by the relation and by the way of asking, not by the fact: capitals rise over blocks, symbols fall
    rng, rows = np.random.default_rng(3), []
    ways = rng.normal(size=(2, 6))
    for n in range(8):
        for way in range(2):
            for block in range(6):
                told = fact_row(f"fact{n}", "last", block, "ffn", 3 * block * (-1) ** n + ways[way, block],
                                paraphrase=way)  # fmt: skip
                rows.append(told | {"relation": "capital" if n % 2 else "symbol"})
    row = consistency(written(tmp_path, facts=rows)).row(0, named=True)
    expected = np.mean([spearmanr(3 * np.arange(6) * s + ways[0], 3 * np.arange(6) * s + ways[1]).statistic
                        for s in (1, -1)])  # fmt: skip
    assert (row["rho"], row["others"]) == pytest.approx((expected, expected))
    assert (row["difference"], row["difference_low"] <= 0 <= row["difference_high"]) == (pytest.approx(0), True)


def test_a_relation_of_one_fact_has_nothing_to_compare_with(tmp_path):
    rows = traced_facts(lambda n, p, b, _: float(b), lambda *_: 1.0, facts=3, noise=0.0)
    rows = [r | {"relation": r["fact"]} for r in rows]
    study = written(tmp_path, facts=rows)
    assert consistency(study)["difference"].to_list() == [None] * 3
    found = {r["goal"]: r for r in fact_goals(study).to_dicts()}["consistent"]
    assert (found["status"], found["why_not"]) == ("open", "no relation has two known facts")


def test_matrices_of_different_size_say_nothing_of_where_facts_return(tmp_path):
    # feed-forward layers give back more and are larger, and within either nothing goes with the block's sensitivity
    rng = np.random.default_rng(4)
    noise = {(b, s): rng.normal() for b in range(60) for s in ("attention", "ffn")}
    rows = traced_facts(lambda n, p, b, s: (2.0 if s == "ffn" else 0.0) * (p == "last") + 0.1 * b % 1 * (p == "last"),
                        lambda b, s: float(np.exp(noise[b, s] * 0.1 + 3 * (s == "ffn"))), blocks=60, facts=4,
                        paraphrases=1, noise=0.0)  # fmt: skip
    study = written(tmp_path, facts=rows)
    both = traced_sensitivity(study).filter((pl.col("position") == "any") & (pl.col("sublayer") == "attention and ffn"))
    assert both["low"][0] > 0.3
    goal = {r["goal"]: r for r in fact_goals(study).to_dicts()}["stores"]
    assert goal["status"] != "fails"
    assert goal["high"] < both["rho"][0]
    # the section says what the verdict does
    section = {s.id: s for s in answered(study, set(), "roles")}["fact_stores"]
    assert ("can’t be told" in section.answer, "hardly" in section.answer) == (
        goal["status"] == "open", goal["status"] == "holds")  # fmt: skip


@pytest.mark.parametrize(("sign", "status"), [(1, "fails"), (-1, "holds")])
def test_sensitivity_where_facts_come_back_speaks_against_the_claim(tmp_path, sign, status):
    # 20 blocks: what comes back rises with the block, and sensitivity with it, or against it
    rows = traced_facts(lambda n, p, b, _: 0.1 * b * (p == "last"), lambda b, _: float(np.exp(sign * b / 5)),
                        blocks=20, noise=0.01)  # fmt: skip
    study = written(tmp_path, facts=rows)
    table = traced_sensitivity(study).filter(pl.col("position") == "any")
    assert table["rho"].to_list() == pytest.approx([sign] * 3, abs=0.05)
    assert {r["goal"]: r["status"] for r in fact_goals(study).to_dicts()}["stores"] == status


def test_a_place_is_drawn_once_at_the_position_that_gives_back_most(study):
    table = place_means(study)
    assert len(table) == 12
    assert table.sort("effect", descending=True).row(0, named=True)["block"] == 2


def test_the_report_has_four_sections_on_facts_and_a_map_of_each_corruption(study):
    drawn = charts(study)
    assert {"tracing_subject", "tracing_noise", "traced_places"} <= set(drawn)
    found = {s.id: s for s in answered(study, set(drawn), "roles")}
    assert list(found) == ["facts_known", "facts_traced", "facts_consistent", "fact_stores"]
    assert all(len(row) == len(t.columns) for s in found.values() for t in s.tables for row in t.rows)
    assert "of a feed-forward layer 75" in found["facts_traced"].answer
    assert "(subject, last; block 2)" in found["facts_traced"].answer
    assert all(len(s.figures) == n for s, n in zip(found.values(), (0, 2, 0, 1), strict=True))
