"""What faults do and what protection buys, where every injection is planted."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

import analysis
from analysis.report.sections.flips import covered
from analysis.security.goals import foretold
from analysis.security.injections import injections
from esa_ray.spec import FaultSpec
from tests.analysis.attacked import BASE, RATE, VOCABULARY, WINDOWS, flipped, injected, written
from tests.analysis.cells import the

SEEDS = (1, 2)
NONE, SECDED = FaultSpec(rate=1e-5, repeats=10), FaultSpec(rate=1e-5, protect="secded", repeats=10)
CRITICAL = FaultSpec(rate=1e-5, protect="secded-critical", critical=0.01, repeats=10)
CLAMP = FaultSpec(rate=1e-5, protect="clamp", repeats=10)


def study_of(directory, planted, **spec):
    """A study whose faults broke the model so often: spec → breaks."""
    rows = [row for each, breaks in planted.items() for row in injected(each, SEEDS, breaks)]
    return written(directory, faults=planted, rows=rows, seeds=SEEDS, **spec)


def test_the_chance_of_breaking_is_the_planted_one_with_scipys_exact_interval(tmp_path):
    table = analysis.break_rates(study_of(tmp_path, {NONE: 13, SECDED: 0}))
    assert table["protection"].to_list() == ["none", "secded"]
    for row, k in zip(table.to_dicts(), (13, 0), strict=True):
        exact = stats.binomtest(k, 20).proportion_ci(method="exact")
        assert (row["injections"], row["breaks"], row["seeds"], row["dose"]) == (20, k, 2, "1e-05")
        assert (row["low"], row["high"]) == pytest.approx((exact.low, exact.high))
        assert row["stored_cost"] == pytest.approx(0.02)
    assert the(table, protection="secded")["overhead"] == 0.125


def test_what_breaks_is_more_than_a_tenth_of_a_nat_or_divergence(tmp_path):
    doses = {1e-5: 0.099, 1e-4: 0.101, 1e-3: None, 1e-2: -0.5}
    specs = [FaultSpec(rate=rate, repeats=1) for rate in doses]
    rows = [row for s in specs for row in injected(s, (1,), 1, delta=doses[s.rate])]
    found = injections(written(tmp_path, specs, rows=rows, seeds=(1,)))
    assert found["broke"].to_list() == [False, True, True, False]
    assert found["delta"].to_list() == [pytest.approx(0.099), pytest.approx(0.101), None, pytest.approx(-0.5)]


def test_a_loss_of_a_uniform_guess_is_a_collapse(tmp_path):
    most = math.log(VOCABULARY) - RATE
    specs = [FaultSpec(rate=rate, repeats=1) for rate in (1e-5, 1e-4)]
    rows = [
        row for s, d in zip(specs, (most - 1e-6, most + 1e-6), strict=True) for row in injected(s, (1,), 1, delta=d)
    ]
    study = written(tmp_path, specs, rows=rows, seeds=(1,))
    assert injections(study)["collapsed"].to_list() == [False, True]
    del study.resolved["vocabulary"]
    untold = analysis.load(tmp_path)
    del untold.resolved["vocabulary"]
    assert injections(untold)["collapsed"].to_list() == [False, False]


def test_a_cell_that_stopped_early_is_held_against_the_windows_that_it_saw(tmp_path):
    rows = injected(FaultSpec(rate=1e-5, repeats=1), (1,), 1, delta=0.2)
    for name in ("nll", "tokens", "hits"):
        rows[0][name] = rows[0][name][:3]
    found = injections(written(tmp_path, [NONE], rows=rows, seeds=(1,)))
    assert found["delta"].to_list() == [pytest.approx(0.2)]
    assert sum(BASE[:3]) != pytest.approx(3 / WINDOWS * sum(BASE))


def test_what_changed_nothing_broke_nothing_and_what_failed_is_left_out(tmp_path):
    rows = injected(NONE, SEEDS, 20, changed=False)
    rows[0] |= {"status": "error", "error": "out of memory", "nll": None, "tokens": None}
    rows[1] |= {"nll": None, "tokens": None}
    study = written(tmp_path, [NONE], rows=rows, seeds=SEEDS)
    (row,) = analysis.break_rates(study).to_dicts()
    assert (row["injections"], row["breaks"], row["typical"]) == (19, 0, 0.0)


def test_doses_are_told_by_what_surely_withstands_and_surely_breaks(tmp_path):
    rates = {1e-8: 0, 1e-7: 0, 1e-6: 2, 1e-5: 14, 1e-4: 20}
    study = study_of(tmp_path, {FaultSpec(rate=r, repeats=20): k * 2 for r, k in rates.items()})
    (row,) = analysis.tolerated(study).to_dicts()
    assert row["withstood"] == 1e-7  # 0 of 40: at most 8.8%; 4 of 40: up to 23.7%
    assert row["broken_from"] == 1e-5  # 28 of 40: at least 53.5%
    few = analysis.tolerated(study_of(tmp_path / "few", {FaultSpec(rate=1e-8, repeats=10): 0}))
    assert the(few)["withstood"] is None  # 0 of 20: up to 16.8%


def test_protections_are_held_against_none_and_the_best_that_is_free(tmp_path):
    parity = FaultSpec(rate=1e-5, protect="parity-zero", repeats=10)
    table = analysis.protected_against(study_of(tmp_path, {NONE: 20, CLAMP: 18, parity: 4, CRITICAL: 19, SECDED: 0}))
    assert set(zip(table["protection"], table["rival"], strict=True)) == {
        ("clamp", "none"), ("parity-zero", "none"), ("secded-critical0.01", "none"), ("secded", "none"),
        ("secded-critical0.01", "parity-zero"), ("secded", "parity-zero"),
    }  # fmt: skip
    critical = the(table, protection="secded-critical0.01", rival="none")
    assert (critical["ratio"], critical["halves"]) == (pytest.approx(0.95), "fails")
    assert the(table, protection="secded", rival="none")["halves"] == "holds"
    assert the(table, protection="clamp", rival="none")["halves"] == "fails"
    against_none = table.filter(pl.col("rival") == "none")
    assert (against_none["p_half_holm"] >= against_none["p_half"]).all()
    smallest = against_none.sort("p_half").row(0, named=True)
    assert smallest["p_half_holm"] == pytest.approx(min(1.0, 4 * smallest["p_half"]))


def test_what_few_injections_cannot_tell_is_open(tmp_path):
    none, critical = (s.model_copy(update={"repeats": 2}) for s in (NONE, CRITICAL))
    assert the(analysis.protected_against(study_of(tmp_path, {none: 2, critical: 1})))["halves"] == "open"


def test_the_front_has_what_no_other_beats_in_bits_and_breaks(tmp_path):
    table = analysis.protection_front(study_of(tmp_path, {NONE: 20, CLAMP: 8, CRITICAL: 18, SECDED: 0}))
    on = dict(table.select("protection", "front").iter_rows())
    assert on == {"none": False, "clamp": True, "secded-critical0.01": False, "secded": True}
    assert the(table, protection="none")["beaten_by"] == "clamp"
    assert the(table, protection="secded-critical0.01")["beaten_by"] == "clamp"
    assert the(table, protection="secded")["probability"] > 0.99
    assert the(table, protection="secded-critical0.01")["probability"] < 0.01


def test_equal_protections_share_the_front_in_half_of_the_draws(tmp_path):
    parity = FaultSpec(rate=1e-5, protect="parity-zero", repeats=10)
    table = analysis.protection_front(study_of(tmp_path, {CLAMP: 10, parity: 10}))
    assert table["probability"].to_list() == pytest.approx([0.5, 0.5], abs=0.05)
    assert table["front"].to_list() == [True, True]


def top_bit(component, stratum, bit, number):
    """Only bit 14 breaks, always in down and in half of q's highest scores; the gradient knows the lower bits."""
    breaks = bit == 14 and (component == "down" or (stratum == "0.999-1.00" and number % 2 == 0))
    small = 0.001 * (bit + 1) * (1 if number % 2 else -1)
    return (1.0 if breaks else small), (1e30 if bit == 14 else small), (1e38 if bit == 14 else 0.01)


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    rows = flipped("bf16", top_bit)
    for repeat, seed in ((r, s) for r in range(10) for s in (1, 2)):
        for spec, broke in ((NONE, True), (CLAMP, False)):
            rows += injected(spec.model_copy(update={"repeats": 1}), (seed,), int(broke), **{"repeat": repeat})
    spec = FaultSpec(fault="single", repeats=4)
    return written(tmp_path_factory.mktemp("singles"), [spec, NONE, CLAMP], rows=rows, seeds=(1, 2))


def test_vulnerability_weighs_strata_by_their_weights(singles):
    table = analysis.vulnerability(singles)
    whole = the(table, axis="all")
    # 16 bits, of which one breaks: always in down, one half of the weights; of q half of a thousandth.
    assert whole["probability"] == pytest.approx((0.5 + 0.5 * 0.001 * 0.5) / 16)
    assert the(table, axis="bit", bit=14)["share"] == pytest.approx(1.0)
    assert the(table, axis="bit class", bit_class="mantissa")["breaks"] == 0
    assert the(table, axis="component", component="down")["probability"] == pytest.approx(1 / 16)
    assert the(table, axis="component", component="q")["probability"] == pytest.approx(0.0005 / 16)
    sign = the(table, axis="component and bit", component="down", bit=15)
    assert (sign["probability"], sign["flips"]) == (0, 4 * 8)
    assert sign["high"] == pytest.approx(1 - 0.025 ** (1 / sign["effective"]))
    assert whole["low"] <= whole["probability"] <= whole["high"]


def test_strata_say_how_many_flips_they_are_of_and_what_these_cost(singles):
    row = the(analysis.strata(singles), component="q", stratum="0.999-1.00", bit=14)
    exact = stats.binomtest(4, 8).proportion_ci(method="exact")
    assert (row["flips"], row["breaks"], row["seeds"], row["population"]) == (8, 4, 2, 5)
    assert (row["low"], row["high"]) == pytest.approx((exact.low, exact.high))
    assert row["harm"] == pytest.approx((4 * 1.0 + 4 * 0.015) / 8)


def test_harm_goes_no_further_than_a_uniform_guess(tmp_path):
    rows = flipped("int8", lambda c, s, b, n: (None if n % 2 else 50.0, None, 1.0), bits=(7,), components=("q",))
    found = analysis.strata(written(tmp_path, [FaultSpec(fault="single", dtype="int8")], rows=rows, seeds=(1, 2)))
    assert found["harm"].to_list() == pytest.approx([math.log(VOCABULARY) - RATE] * 4)


def int8(share_at_top, *, repeats=50, seeds=(1, 2)):
    """Single flips in int8 whose breaks are all among the top hundredth of scores, but for a planted share below."""

    def outcome(component, stratum, bit, number):
        high = stratum in ("0.99-0.999", "0.999-1.00")
        return (1.0 if bit == 7 and (high or number < share_at_top) else 0.0), None, 0.1

    return flipped("int8", outcome, components=("down",), bits=(6, 7), seeds=seeds, repeats=repeats)


def test_the_smallest_share_that_covers_the_vulnerability_is_the_planted_one(tmp_path):
    spec = FaultSpec(fault="single", dtype="int8")
    table = analysis.coverage(written(tmp_path, [spec], rows=int8(0), seeds=(1, 2)))
    assert table["share"].to_list() == pytest.approx([0.001, 0.01, 0.1])
    assert table["covered"].to_list() == pytest.approx([0.1, 1.0, 1.0])
    assert table["weights"].to_list() == pytest.approx([10, 100, 1000])
    assert table["status"].to_list()[0] == "fails"
    assert (table["low"] <= table["covered"]).all()
    assert (table["high"] >= table["covered"]).all()
    # 2 of 100 flips break in the lower ranges: 9900 · 2% against 100.
    more = analysis.coverage(written(tmp_path / "more", [spec], rows=int8(2), seeds=(1, 2)))
    assert more["covered"][1] == pytest.approx(100 / (100 + 9900 * 0.02))
    assert more["status"].to_list()[:2] == ["fails", "fails"]


def test_without_a_break_no_share_can_be_told(tmp_path):
    rows = flipped("int8", lambda *_: (0.0, None, 0.1), bits=(7,))
    table = analysis.coverage(written(tmp_path, [FaultSpec(fault="single", dtype="int8")], rows=rows, seeds=(1, 2)))
    assert table["covered"].null_count() == len(table)
    assert set(table["status"]) == {"open"}


def test_where_nothing_breaks_it_is_said_how_few_weights_hold_the_harm(tmp_path):
    # Of a harm of 0.01 each in 9% of the weights, and of 0.001 in the other 91%, the highest tenth holds half.
    rows = flipped("int8", lambda c, s, b, n: (0.001 if s == "0.00-0.90" else 0.01, None, 0.1), bits=(7,))
    study = written(tmp_path, [FaultSpec(fault="single", dtype="int8")], rows=rows, seeds=(1, 2))
    held = dict(analysis.coverage(study).select(pl.col("share").round(4), "harm").iter_rows())
    assert held[0.1] == pytest.approx(0.1 * 0.01 / (0.1 * 0.01 + 0.9 * 0.001))
    assert "so no share can be told." in covered(study).answer
    rows = flipped("int8", lambda c, s, b, n: (1e-6 if s == "0.00-0.90" else 0.01, None, 0.1), bits=(7,))
    study = written(tmp_path / "few", [FaultSpec(fault="single", dtype="int8")], rows=rows, seeds=(1, 2))
    assert "90% of the harm that flips do short of that take 10.0% of the weights" in covered(study).answer


def test_coverage_covers_what_it_says_by_simulation(tmp_path):
    rng, hits = np.random.default_rng(0), []
    chances = {"0.00-0.90": 0.02, "0.90-0.99": 0.05, "0.99-0.999": 0.5, "0.999-1.00": 0.9}
    truth = (0.009 * 0.5 + 0.001 * 0.9) / (0.9 * 0.02 + 0.09 * 0.05 + 0.009 * 0.5 + 0.001 * 0.9)
    spec = FaultSpec(fault="single", dtype="int8")
    for number in range(30):
        rows = flipped("int8", lambda c, s, b, n: (float(rng.random() < chances[s]), None, 0.1), bits=(7,),
                       components=("q",), seeds=(1,), repeats=60)  # fmt: skip
        table = analysis.coverage(written(tmp_path / str(number), [spec], rows=rows, seeds=(1,)))
        row = table.row(1, named=True)
        hits.append(row["low"] <= truth <= row["high"])
    assert np.mean(hits) >= 0.93


def test_single_flips_foretell_what_uniform_faults_do(singles):
    table = analysis.predicted(singles)
    none, clamp = (the(table, protection=name) for name in ("none", "clamp"))
    bits = 10_000 * (0.5 + 0.5 * 0.001 * 0.5)
    assert none["expected"] == pytest.approx(1e-5 * bits)
    assert none["predicted"] == pytest.approx(1 - math.exp(-1e-5 * bits))
    assert clamp["predicted"] == 0  # whatever breaks reads 10³⁸
    assert (none["measured"], none["inside"], clamp["inside"]) == (1.0, False, True)
    (row,) = analysis.order_agrees(singles).to_dicts()
    assert (row["protections"], row["pairs"], row["told_apart"], row["agree"]) == (2, 1, 1, 1)
    assert row["tau"] == pytest.approx(1.0)
    assert row["contradicted"] is None


def test_protection_leaves_the_bits_that_it_does_not_cover(tmp_path):
    def outcome(component, stratum, bit, number):
        return (1.0 if bit == 14 or (bit == 15 and stratum == "0.999-1.00") else 0.0), None, 1.0

    specs = [FaultSpec(rate=1e-5, protect=p, critical=c, repeats=5) for p, c in (
        ("none", 0.001), ("zero-exponent-bit", 0.001), ("secded-critical", 0.01), ("tmr-critical", 0.001),
        ("secded", 0.001), ("parity-zero", 0.001), ("secded-critical", 1e-5),
    )]  # fmt: skip
    rows = flipped("bf16", outcome) + [row for s in specs for row in injected(s, (1, 2), 0)]
    table = analysis.predicted(written(tmp_path, [FaultSpec(fault="single"), *specs], rows=rows, seeds=(1, 2)))
    expected = dict(table.select("protection", pl.col("expected") / 1e-5).iter_rows())
    assert expected["none"] == pytest.approx(10_000 + 10)
    assert expected["zero-exponent-bit"] == pytest.approx(10)
    assert expected["secded-critical0.01"] == pytest.approx(9_900)
    assert expected["tmr-critical0.001"] == pytest.approx(9_990)
    assert expected["secded-critical1e-05"] == pytest.approx(10_000 + 10)  # a part of the highest range is uncovered
    # two flips in one weight of 16 bits, about one of which breaks: 10⁴ · 120 · rate · 1
    assert expected["parity-zero"] == pytest.approx(10_000 * 120 * 1e-5, rel=0.01)
    # three of 72 bits in 2,500 words, 56.3% of them miscorrected, four flips with a sixteenth each
    assert expected["secded"] == pytest.approx(2500 * 59_640 * 1e-10 * 0.563 * 4 * 10_010 / 160_000)


def test_a_wrong_order_is_named(tmp_path):
    rows = flipped("bf16", top_bit) + injected(NONE, SEEDS, 0) + injected(CLAMP, SEEDS, 20)
    study = written(tmp_path, [FaultSpec(fault="single"), NONE, CLAMP], rows=rows, seeds=SEEDS)
    (row,) = analysis.order_agrees(study).to_dicts()
    assert (row["told_apart"], row["agree"], row["contradicted"]) == (1, 0, "none over clamp")
    assert row["tau"] == pytest.approx(-1.0)


def test_what_breaks_by_no_single_flip_is_foretold_in_no_order(tmp_path):
    def harmless(component, stratum, bit, number):
        return 0.0, None, 0.1

    rows = flipped("bf16", harmless) + injected(NONE, SEEDS, 20) + injected(CLAMP, SEEDS, 0)
    study = written(tmp_path, [FaultSpec(fault="single"), NONE, CLAMP], rows=rows, seeds=SEEDS)
    (row,) = analysis.order_agrees(study).to_dicts()
    assert (row["told_apart"], row["agree"], row["untold"], row["contradicted"]) == (1, 0, 1, None)
    assert foretold(study) == "open"


def test_flips_of_some_components_foretell_nothing_of_others(tmp_path):
    down = [row | {"components": "down"} for row in flipped("bf16", top_bit)]
    flips = written(tmp_path / "flips", [FaultSpec(fault="single", components=("down",))], rows=down, seeds=(1, 2))
    study = written(tmp_path / "faults", [NONE, CLAMP], rows=injected(NONE, SEEDS, 20) + injected(CLAMP, SEEDS, 0),
                    seeds=SEEDS)  # fmt: skip
    assert analysis.predicted(study, flips).is_empty()
    assert foretold(study, flips) is None


def test_first_order_is_told_by_bit_class_and_void_where_it_is_nothing(singles):
    table = analysis.first_order(singles)
    mantissa = the(table, axis="bit class", bit_class="mantissa")
    assert mantissa["spearman"] == pytest.approx(1.0)
    assert (mantissa["right"], mantissa["factor"], mantissa["void"]) == (1.0, pytest.approx(1.0), False)
    exponent = the(table, axis="bit", bit=14)
    assert exponent["void"]
    assert exponent["why"] == "no surer than chance"
    assert the(table, axis="bit", bit=15)["same_sign"] == 1.0


@pytest.mark.parametrize(("times", "why"), [
    (1.0, None), (1.9, None), (30.0, "typically too large by more than a factor of 10"),
    (0.01, "typically too small by more than a factor of 10"),
])  # fmt: skip
def test_first_order_that_is_off_by_a_factor_is_void(tmp_path, times, why):
    def outcome(component, stratum, bit, number):
        delta = 0.01 * (number - 3.5) * (bit + 1)
        return delta, times * delta, 0.1

    rows = flipped("int8", outcome, bits=(3, 7))
    table = analysis.first_order(written(tmp_path, [FaultSpec(fault="single", dtype="int8")], rows=rows, seeds=(1, 2)))
    row = the(table, axis="bit", bit=7)
    assert (row["factor"], row["why"]) == (pytest.approx(times), why)
    assert row["right"] == (1.0 if 0.5 <= times <= 2 else 0.0)


def test_chance_is_void_and_flips_that_diverge_rank_highest(tmp_path):
    rng = np.random.default_rng(0)

    def outcome(component, stratum, bit, number):
        lost = bit == 6 and number % 2 == 0
        return (None if lost else float(rng.normal())), (1e3 if lost else float(rng.normal())), 0.1

    rows = flipped("int8", outcome, bits=(6, 7))
    table = analysis.first_order(written(tmp_path, [FaultSpec(fault="single", dtype="int8")], rows=rows, seeds=(1, 2)))
    assert the(table, axis="bit", bit=7)["why"] == "no surer than chance"
    lost = the(table, axis="bit", bit=6)
    assert lost["spearman"] > 0.6
    assert lost["nonfinite"] == lost["flips"] / 2


def test_flips_to_what_is_infinite_are_told_of_by_first_order_and_those_without_a_gradient_arent(tmp_path):
    def outcome(component, stratum, bit, number):
        if component == "q":
            return 0.5, None, 1.0  # no gradient
        return (None, None, math.inf) if number % 4 == 0 else (0.01 * number, 0.01 * number, 1.0)

    rows = flipped("bf16", outcome, bits=(14,))
    table = analysis.first_order(written(tmp_path, [FaultSpec(fault="single")], rows=rows, seeds=(1, 2)))
    row = the(table, axis="bit", bit=14)
    assert (row["flips"], row["nonfinite"], row["told"]) == (4 * 8, 4 * 2, 4 * 6)
    assert row["spearman"] == pytest.approx(1.0)  # the infinite ones rank highest by both


def test_a_packet_that_is_empty_holds_no_injection(tmp_path):
    rows = flipped("int8", lambda c, s, b, n: (1.0, None, 1.0), bits=(7,), components=("q",))
    rows.append({k: rows[0][k] for k in ("fault", "label", "seed", "bit", "dtype", "protection")} | {"status": "empty"})
    study = written(tmp_path, [FaultSpec(fault="single", dtype="int8")], rows=rows, seeds=(1, 2))
    assert len(injections(study)) == len(rows) - 1
    assert set(analysis.strata(study)["component"]) == {"q"}


def test_a_rival_that_was_chosen_for_its_breaks_is_allowed_for(tmp_path):
    zero, parity = (FaultSpec(rate=1e-5, protect=p, repeats=10) for p in ("zero-exponent-bit", "parity-zero"))
    one = analysis.protected_against(study_of(tmp_path / "one", {SECDED: 9, CLAMP: 2}))
    three = analysis.protected_against(study_of(tmp_path / "three", {SECDED: 9, CLAMP: 2, zero: 5, parity: 6}))
    assert one["rival"].to_list() == three["rival"].to_list() == ["clamp"]
    assert three["p"][0] == pytest.approx(3 * one["p"][0])
    assert three["ratio_low"][0] == one["ratio_low"][0]
