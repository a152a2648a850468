"""Verdicts on faults and attacks turn at their thresholds, and the report tells what was planted."""

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import analysis
from analysis.comparison import compare
from analysis.report.figures import charts
from analysis.report.page import _failures
from analysis.report.sections import answered
from analysis.report.sections.faults import broken
from analysis.report.verdicts import verdicts
from esa_ray.spec import AttackSpec, FaultSpec
from tests.analysis.attacked import attack, flipped, injected, written
from tests.analysis.test_figures import PHONE, drawn, labels

SEEDS = (1, 2, 3, 4, 5, 6)
PROTECTED = ("none", "clamp", "secded-critical", "secded")


def judged(study):
    return {v.id: v for v in analysis.verdicts(study)}


def arms(directory, quick, slow, anywhere, dtypes=("int8",), budget=40):
    """Attacks of six seeds, two draws of the random arms: flips to collapse, None where the budget is withstood."""
    specs, rows = [], []
    for dtype in dtypes:
        for name, counts in (("guided-super", quick), ("random-super", slow), ("random", anywhere)):
            for draw in (0, 1) if name.startswith("random") else (0,):
                spec = AttackSpec(arm=name, dtype=dtype, budget=budget, draw=draw)
                specs.append(spec)
                for seed, n in zip(SEEDS, counts, strict=True):
                    rows += attack(spec, seed, n or budget, collapses=n is not None)
    return written(directory, attacks=specs, attacked=rows, seeds=SEEDS)


NEVER = (None,) * 6


def test_fewer_guided_flips_hold_where_the_ratio_surely_lies_above_1(tmp_path):
    verdict = judged(arms(tmp_path, (2, 3, 2, 3, 2, 3), (20, 21, 19, 25, 22, 24), NEVER))["P5.4g"]
    assert verdict.status == "holds"
    assert "int8 unrestricted, random-super: 7.33 times [" in verdict.evidence
    # 2 · 3⁻⁶
    assert "random: 13.3 times [13.3, …; the point is a lower bound] (log-rank, Holm p 0.0027)" in verdict.evidence


def test_more_guided_flips_fail_and_as_many_are_open(tmp_path):
    same = (4, 9, 3, 8, 5, 7)
    assert judged(arms(tmp_path / "a", (30, 33, 31, 32, 30, 31), (2, 3, 2, 2, 2, 3), NEVER))["P5.4g"].status == "fails"
    assert judged(arms(tmp_path / "b", same, same[::-1], NEVER))["P5.4g"].status == "open"
    nobody = judged(arms(tmp_path / "c", NEVER, NEVER, NEVER))["P5.4g"]
    assert nobody.status == "open"
    assert "no ratio, as neither collapses the model within its budget" in nobody.evidence


def test_few_seeds_are_said_to_allow_little(tmp_path):
    specs = [AttackSpec(arm=name, dtype="int8", budget=9) for name in ("guided-super", "random")]
    rows = [row for s, n in zip(specs, (2, 8), strict=True) for seed in (1, 2, 3) for row in attack(s, seed, n)]
    verdict = judged(written(tmp_path, attacks=specs, attacked=rows, seeds=(1, 2, 3)))["P5.4g"]
    assert verdict.status == "open"  # p can't be below 2/2³
    assert verdict.evidence.endswith("3 seeds, whose interval for a median is at most 75.0% sure")


def protecting(directory, chances, dtypes=("bf16",), repeats=20):
    """Uniform faults in 40 injections behind each protection, of which a share breaks the model."""
    specs = [FaultSpec(rate=1e-5, dtype=dtype, protect=p, repeats=repeats) for dtype in dtypes for p in chances]
    rows = [row for s in specs for row in injected(s, (1, 2), round(2 * repeats * chances[s.protect]))]
    return written(directory, specs, rows=rows, seeds=(1, 2))


@pytest.mark.parametrize(("critical", "status"), [(0.9, "fails"), (0.5, "open"), (0.05, "holds")])
def test_protecting_the_critical_share_must_halve_the_breaks(tmp_path, critical, status):
    study = protecting(tmp_path, {"none": 1.0, "clamp": 0.1, "secded-critical": critical})
    verdict = judged(study)["P5.4h"]
    assert verdict.status == status
    assert f"{status} at 1 of 1: uniform bf16 1e-05 (secded-critical0.001 " in verdict.evidence
    assert "clamp, free, 0.100" in verdict.evidence


def test_one_of_two_protections_of_the_critical_share_is_enough(tmp_path):
    study = protecting(tmp_path, {"none": 1.0, "secded-critical": 1.0, "tmr-critical": 0.0})
    assert judged(study)["P5.4h"].status == "holds"


def test_where_hardly_anything_breaks_there_is_nothing_to_halve(tmp_path):
    assert "P5.4h" not in judged(protecting(tmp_path, {"none": 0.1, "secded-critical": 0.1}))


def int8(directory, top, rest, repeats=200):
    """Single flips of bit 7, of which so many of every 400 break among the top hundredth and below."""

    def outcome(component, stratum, bit, number):
        most = top if stratum in ("0.99-0.999", "0.999-1.00") else rest
        return (1.0 if number < most else 0.0), None, 0.1

    rows = flipped("int8", outcome, components=("down",), bits=(7,), repeats=repeats)
    return written(directory, [FaultSpec(fault="single", dtype="int8")], rows=rows, seeds=(1, 2))


def test_few_weights_cover_the_vulnerability_only_where_that_is_sure(tmp_path):
    fails = judged(int8(tmp_path / "a", 400, 40))["P5.4i"]
    assert fails.status == "fails"  # 100 against 990
    assert "no share tried holds 90%" in fails.evidence
    opened = judged(int8(tmp_path / "b", 400, 0))["P5.4i"]
    assert opened.status == "open"  # 0 of 800 below still leaves room for some tens
    assert "1.0% of the weights hold 100.0% [" in opened.evidence
    assert "the smallest share tried that holds 90% is 1.0% (100.0%)" in opened.evidence
    nothing = judged(int8(tmp_path / "c", 0, 0))["P5.4i"]
    assert (nothing.status, "measure more" in nothing.evidence) == ("open", True)


def test_few_weights_cover_it_where_enough_was_measured(tmp_path):
    def outcome(component, stratum, bit, number):
        return (1.0 if stratum in ("0.99-0.999", "0.999-1.00") else 0.0), None, 0.1

    rows = flipped("int8", outcome, components=("down",), bits=(7,), seeds=(1,), repeats=1)
    many = pl.DataFrame(rows, infer_schema_length=None)
    study = written(tmp_path, [FaultSpec(fault="single", dtype="int8")], rows=many.sample(
        16_000, with_replacement=True, seed=0), seeds=(1,))  # fmt: skip
    assert judged(study)["P5.4i"].status == "holds"


def ordered(directory, chances):
    rows = flipped("bf16", lambda c, s, b, n: (1.0 if b == 14 else 0.0, None, 1e30 if b == 14 else 0.01))
    specs = [FaultSpec(rate=1e-5, protect=p, repeats=20) for p in chances]
    rows += [row for s in specs for row in injected(s, (1, 2), round(40 * chances[s.protect]))]
    return judged(written(directory, [FaultSpec(fault="single"), *specs], rows=rows, seeds=(1, 2)))["P5.4j"]


def test_the_order_of_protections_is_as_foretold_or_not(tmp_path):
    held = ordered(tmp_path / "a", {"none": 0.9, "clamp": 0.0, "secded-critical": 0.8})
    assert held.status == "holds"
    assert held.evidence == "of 3 pairs of protections 2 are surely told apart, 2 of them as foretold"
    wrong = ordered(tmp_path / "b", {"none": 0.0, "clamp": 0.9})
    assert (wrong.status, "none over clamp (bf16 1e-05)" in wrong.evidence) == ("fails", True)
    assert ordered(tmp_path / "c", {"none": 0.5, "clamp": 0.5}).status == "open"


def test_a_study_is_asked_only_what_it_measured(tmp_path):
    assert set(judged(protecting(tmp_path / "p", {"none": 1.0, "clamp": 0.1}))) == set()
    assert set(judged(arms(tmp_path / "a", NEVER, NEVER, NEVER))) == {"P5.4g"}


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """Every fault in two dtypes behind four protections, and single flips in both."""

    def bf16(component, stratum, bit, number):
        small = 0.001 * (bit + 1) * (1 if number % 2 else -1)
        return ((None if number % 3 else 2.0) if bit == 14 else small), (1e30 if bit == 14 else small), \
            (1e38 if bit == 14 else 0.01)  # fmt: skip

    def byte(component, stratum, bit, number):
        small = 0.002 * (bit + 1) * np.cos(number)
        return (0.3 if bit == 7 and stratum == "0.999-1.00" else small), small, 0.1

    doses = [{"rate": 1e-6}, {"rate": 1e-5}, {"fault": "burst", "events": 1}, {"fault": "row", "events": 1}]
    specs = [FaultSpec(dtype=dtype, protect=p, repeats=10, **dose)
             for dtype in ("bf16", "int8") for p in PROTECTED for dose in doses]  # fmt: skip
    share = {"none": 0.9, "clamp": 0.1, "secded-critical": 0.85, "secded": 0.0}
    rows = [row for s in specs for row in injected(s, (1, 2), round(20 * share[s.protect]))]
    rows += flipped("bf16", bf16) + flipped("int8", byte)
    specs += [FaultSpec(fault="single", dtype=dtype) for dtype in ("bf16", "int8")]
    return written(tmp_path_factory.mktemp("faults"), specs, rows=rows, seeds=(1, 2))


@pytest.fixture(scope="module")
def attacks(tmp_path_factory):
    return arms(tmp_path_factory.mktemp("attacks"), (2, 3, 2, 3, 2, 3), (20, 21, None, 25, 22, 24), NEVER,
                ("bf16", "int8"))  # fmt: skip


def told(study):
    return {s.id: s for s in answered(study, set(charts(study)), "security")}


def test_the_report_on_faults_answers_with_what_was_planted(faults):
    sections = told(faults)
    assert list(sections) == ["broken", "protected", "vulnerable", "covered", "foretold", "gradient_tells"]
    assert sections["broken"].answer.startswith("Without protection 144 of 160 injections broke the model. In bf16 it")
    assert "clamp in 8 of 8, secded-critical0.001 in 0 of 8, secded in 8 of 8" in sections["protected"].answer
    assert "bit 14 (exponent) holds 100.0% of the breaking bits" in sections["vulnerable"].answer
    assert "In int8 16 flips broke the model: too few to tell how few weights hold 90%" in sections["covered"].answer
    assert "and exponent (ρ 1.00 [1.00, 1.00], but void for bit 14)" in sections["gradient_tells"].answer
    html = analysis.write_report(faults).read_text()
    for section in sections.values():
        assert f'id="{section.id}"' in html
        assert section.answer.replace("'", "&#39;") in html
        assert all(len(row) == len(t.columns) for t in section.tables for row in t.rows)
    assert "What do faults do to made-up?" in html


def test_the_report_on_attacks_answers_with_what_was_planted(attacks):
    sections = told(attacks)
    assert list(sections) == ["attacked", "attack_ratios", "flipped"]
    assert (
        "In int8, unrestricted, guided-super is the quickest: 3 flips [2, 3]; half or fewer of the runs of random "
        "(0 of 12) collapsed the model within the budget." in sections["attacked"].answer
    )
    assert (
        "random takes 13.3 times [13.3, …; the point is a lower bound] in bf16 unrestricted"
        in sections["attack_ratios"].answer
    )
    assert all(len(row) == len(t.columns) for s in sections.values() for t in s.tables for row in t.rows)
    html = analysis.write_report(attacks).read_text()
    assert sections["attacked"].answer.replace("'", "&#39;") in html


def test_every_figure_of_faults_and_attacks_is_labelled_and_no_wider_than_a_phone(faults, attacks):
    made = charts(faults) | charts(attacks)
    assert set(made) == {
        *(f"{name}_{dtype}" for name in ("break_curves", "protections", "protection_costs", "vulnerable_bits")
          for dtype in ("bf16", "int8")),
        "vulnerable_scores", "covered_shares", "foretold_chances", "gradient_bits", "withstood_bf16_unrestricted",
        "withstood_int8_unrestricted", "attack_ratios",
    }  # fmt: skip
    for name, chart in made.items():
        assert all(len(axis) >= 2 for axis in labels(drawn(chart))), name
        assert float(drawn(chart, 100).get("width")) <= PHONE, name


def test_the_terminal_tells_faults_and_attacks_in_80_columns(faults, attacks):
    for study, row, wanted in (
        (faults, "secded-critical0.001", ["85%", "85%"]), (attacks, "guided-super", ["6", "6", "3", "[2, 3]"])
    ):  # fmt: skip
        console = Console(width=80, record=True)
        analysis.print_summary(study, console)
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= 80
        found = next(line for line in lines if row in line)
        assert all(each in found for each in wanted), found
    assert any("P5.4g" in line and "holds" in line for line in lines)


def test_tables_are_written_as_latex(faults, attacks):
    for study in (faults, attacks):
        written_ = {file.name: file.read_text() for file in analysis.save_tables(study).glob("*.tex")}
        assert {name.split("-")[0] for name in written_} == set(told(study))
        assert all(text.startswith(r"\begin{tabular}") for text in written_.values())
        assert all(text.isascii() for text in written_.values()), [n for n, t in written_.items() if not t.isascii()]


def test_what_failed_is_named(tmp_path):
    rows = injected(FaultSpec(rate=1e-5, repeats=1), (1, 2), 0)
    rows[1] |= {"status": "error", "error": "out of memory"}
    found = _failures(written(tmp_path, [FaultSpec(rate=1e-5)], rows=rows, seeds=(1, 2)))
    assert [(each["name"], each["error"]) for each in found] == [("uniform-bf16-1e-05-none-s2", "out of memory")]


def test_a_study_without_faults_has_no_such_sections(synthetic):
    assert told(synthetic[0]) == {}


def test_many_events_are_no_single_one_and_packets_that_failed_are_counted(tmp_path):
    one, many = FaultSpec(fault="row", events=1, repeats=10), FaultSpec(fault="column", events=64, repeats=10)
    rows = injected(one, (1,), 3) + injected(many, (1,), 10) + injected(FaultSpec(rate=1e-5, repeats=2), (1,), 0)
    for row in rows[-2:]:
        row |= {"status": "error", "error": "out of memory"}
    study = written(tmp_path, [one, many], rows=rows, seeds=(1,))
    section = broken(study)
    assert "Of single events a row in bf16 is the worst: it breaks the model with a chance of 30.0%" in section.answer
    assert "2 packets of injections failed" in section.caveat


@pytest.mark.parametrize("asked", [{"faults": (FaultSpec(rate=1e-5),)}, {"attacks": (AttackSpec(),)}])
def test_a_study_that_ranks_nothing_has_no_open_verdicts_on_rankings_before_its_first_row(tmp_path, asked):
    assert verdicts(written(tmp_path, **asked)) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"faults": (FaultSpec(rate=1e-5),)},
            "a study of faults ranks no weights, .+ how likely faults break",
        ),
        ({"attacks": (AttackSpec(),)}, "a study of attacks ranks no weights, .+ how many flips an adversary needs"),
    ],
)
def test_studies_that_rank_nothing_are_not_compared_and_the_sentence_says_where_they_are_read(tmp_path, asked, said):
    written(tmp_path, **asked)
    with pytest.raises(analysis.StudyError, match=said):
        compare([str(tmp_path)])
