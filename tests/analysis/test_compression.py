"""What compressing costs, and against what, where every number is planted."""

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

import analysis
from analysis.compression.against import _row
from analysis.compression.points import IDENTITY, USUAL, Point, points, published, together
from analysis.report.page import _failures, context
from analysis.report.sections import answered
from analysis.statistics.inference import holm_within
from esa_ray.spec import METHODS, PRUNING_SCORES, PruneSpec, QuantizeSpec
from tests.analysis.compressed import RATE, compressed, crossed, prune
from tests.analysis.synthetic import save_table

COSTS = {"magnitude": 1.0, "act_mag": 0.5, "obs": 0.4, "regional": 0.3}


def flat(spec, seed, text):
    """The same cost in every window and seed; half as much out of domain."""
    return COSTS[spec.score] * spec.sparsity * (1 if text == "home" else 0.5)


def waves(seed, size=0.02):
    return size * np.cos(np.arange(16) + seed)


def of(table, **values):
    return table.filter(*(pl.col(k) == v for k, v in values.items())).to_dicts()


def point(name, excess, spec=None):
    """A compression in memory, of which only its excess is known."""
    what = {n: (spec or prune(name)).model_dump().get(n) for n in IDENTITY} | {"components": USUAL}
    rows = pl.DataFrame({"status": ["ok"] * len(excess), "bits_per_weight": [16.0] * len(excess)})
    return Point(what, name, "home", "in", excess, rows, {})


def test_excess_is_the_planted_one_on_every_text(tmp_path):
    study = compressed(tmp_path, [prune("wanda", sparsity=0.6), prune("magnitude")], flat)
    (home,), (away,) = (of(analysis.excess(study), method="wanda", text=text) for text in ("home", "away"))
    assert (home["excess"], away["excess"]) == pytest.approx((0.3, 0.15))
    assert (home["low"], home["high"]) == pytest.approx((0.3, 0.3))
    assert home["perplexity"] == pytest.approx(math.exp(RATE["home"] + 0.3))
    assert home["perplexity_ratio"] == pytest.approx(math.exp(0.3))
    assert (home["setting"], home["true_sparsity"], home["seconds"]) == ("60%", 0.6, 2.0)
    assert (home["accuracy"], home["dense_accuracy"]) == pytest.approx((0.4, 0.5))
    assert analysis.excess(study)["domain"].to_list() == ["in", "in", "out", "out"]


def test_windows_count_by_their_tokens(tmp_path):
    tokens = [50] * 8 + [150] * 8
    costs = [0.1] * 12 + [0.3] * 4
    study = compressed(tmp_path, [prune("wanda")], lambda *_: costs, tokens=tokens, texts=("home",))
    assert analysis.excess(study)["excess"][0] == pytest.approx(np.average(costs, weights=tokens))


def test_the_interval_of_seeds_that_differ_is_students(tmp_path):
    by_seed = {1: 0.4, 2: 0.5, 3: 0.75}
    study = compressed(tmp_path, [prune("wanda")], lambda _, seed, __: by_seed[seed], texts=("home",))
    row = analysis.excess(study).row(0, named=True)
    low, high = stats.t.interval(0.95, 2, np.mean(list(by_seed.values())), stats.sem(list(by_seed.values())))
    assert row["by_seed"] == pytest.approx(list(by_seed.values()))
    assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_a_seed_that_diverged_is_counted_and_in_no_mean(tmp_path):
    study = compressed(
        tmp_path, [prune("wanda"), prune("magnitude")],
        lambda spec, seed, _: None if seed == 2 or spec.score == "magnitude" else 0.1 * seed, texts=("home",),
    )  # fmt: skip
    (some,), (none,) = (of(analysis.excess(study), method=m) for m in ("wanda", "magnitude"))
    assert (some["seeds"], some["diverged"], some["excess"]) == (2, 1, pytest.approx(0.2))
    assert (none["seeds"], none["diverged"], none["excess"]) == (0, 3, None)


def test_seeds_that_failed_are_counted_on_every_text(tmp_path):
    study = compressed(tmp_path, [prune("wanda"), prune("sparsegpt")], flat)
    failed = (pl.col("label") != "dense") & ((pl.col("seed") == 2) | (pl.col("score") == "obs"))
    table = study.compressions.filter(~failed | (pl.col("text") == "home"))
    lost = {"status": "error", "error": "out of memory", "text": None, "domain": None, "nll": None}
    table = table.with_columns(
        pl.when(failed).then(pl.lit(v, table[k].dtype)).otherwise(k).alias(k) for k, v in lost.items()
    )
    object.__setattr__(study, "compressions", table)
    told = [(r["method"], r["text"], r["seeds"], r["errors"]) for r in analysis.excess(study).to_dicts()]
    assert told == [("sparsegpt", "home", 0, 3), ("wanda", "home", 2, 1), ("sparsegpt", "away", 0, 3),
                    ("wanda", "away", 2, 1)]  # fmt: skip


def test_what_failed_is_named_in_the_report_the_dense_model_too(tmp_path):
    study = compressed(tmp_path, [prune("wanda"), prune("magnitude"), prune("owl")], flat, texts=("home", "away"))
    lost = {"status": "error", "error": "no heads", "text": None, "domain": None, "nll": None, "block_error": None}
    failed = (pl.col("allocation") == "owl") | ((pl.col("label") == "dense") & (pl.col("text") == "away"))
    table = study.compressions.with_columns(
        pl.when(failed.fill_null(value=False)).then(pl.lit(v, study.compressions[k].dtype)).otherwise(k).alias(k)
        for k, v in lost.items()
    )
    object.__setattr__(study, "compressions", table)
    assert {each["name"] for each in _failures(study)} == {
        "dense",
        *(f"prune-act_mag-row-0.5-owl-s{s}" for s in (1, 2, 3)),
    }
    page = analysis.write_report(study).read_text()
    assert "prune-act_mag-row-0.5-owl-s1" in page


def test_a_text_without_a_dense_row_is_not_told(tmp_path):
    study = compressed(tmp_path, [prune("wanda")], flat)
    kept = study.compressions.filter(~((pl.col("kind") == "dense") & (pl.col("text") == "away")))
    object.__setattr__(study, "compressions", kept)
    assert analysis.excess(study)["text"].to_list() == ["home"]


def test_a_study_that_compresses_nothing_has_empty_tables(made):
    study = analysis.load(made)
    for table in (analysis.excess, analysis.against, analysis.factors, analysis.fronts, analysis.block_errors):
        assert table(study).is_empty()


@pytest.mark.parametrize("name", METHODS)
def test_published_methods_are_known_by_name_at_every_sparsity_and_pattern(name):
    for changes in ({"sparsity": 0.65}, *([{"pattern": "2:4"}] if "owl" not in name else [])):
        assert published(prune(name, **changes).model_dump()) == name


@pytest.mark.parametrize(
    "spec",
    [PruneSpec(update="refit"), PruneSpec(group="tensor"), PruneSpec(sequential=False), PruneSpec(pattern="neuron"),
     PruneSpec(allocation="damage"), QuantizeSpec(), PruneSpec(score="magnitude")],
    ids=lambda spec: spec.label,
)  # fmt: skip
def test_what_differs_from_a_published_method_in_one_thing_has_no_name(spec):
    assert published(spec.model_dump()) is None


def test_magnitude_sees_no_activations_so_the_order_of_blocks_is_nothing_to_it():
    assert published(prune("magnitude", sequential=True).model_dump()) == "magnitude"
    assert all(point("x", {}, prune(score=s)).seeded for s in PRUNING_SCORES)
    assert not point("magnitude", {}).seeded
    assert point("x", {}, prune("magnitude", update="refit")).seeded


def test_a_published_method_stays_one_at_any_damping_which_its_name_says():
    assert published(prune("owl+sparsegpt", damping=0.1).model_dump()) == "owl+sparsegpt-d0.1"
    assert published(prune("wanda", damping=0.1).model_dump()) == "wanda"
    assert point("x", {}, prune(score="regional", update="refit", damping=0.1)).method == "regional-row-refit-d0.1"


def test_studies_older_than_damping_had_its_default(tmp_path):
    specs = [prune("sparsegpt"), prune("wanda"), QuantizeSpec()]
    study = compressed(tmp_path, specs, lambda p, s, t: 0.1, texts=("home",))
    save_table(tmp_path, "compressions", study.compressions.with_columns(pl.lit(None, pl.Float64).alias("damping")))
    found = points(analysis.load(tmp_path))
    assert {p.label: p.what["damping"] for p in found} == {
        "prune-obs-tensor-0.5-sparsegpt": 0.01, "prune-act_mag-row-0.5": 0.01, "quantize-4-g64": None,
    }  # fmt: skip
    assert {p.method for p in found} == {"sparsegpt", "wanda", "nothing kept"}


def test_excess_is_over_the_dense_model_of_the_same_hardware_where_a_row_has_it(tmp_path):
    study = compressed(tmp_path, [prune("wanda"), prune("sparsegpt")], lambda p, s, t: 0.5, texts=("home",))
    # All of SparseGPT's machine is 0.1 nats per token (of 100 a window) worse than the dense row's.
    here = pl.when(pl.col("score") == "obs").then(pl.col("nll").list.eval(pl.element() - 40.0))
    save_table(tmp_path, "compressions", study.compressions.with_columns(here.alias("intact_nll")))
    table = {r["method"]: r["excess"] for r in analysis.excess(analysis.load(tmp_path)).to_dicts()}
    assert table == pytest.approx({"wanda": 0.5, "sparsegpt": 0.4})


def test_points_that_differ_in_damping_alone_are_told_apart(tmp_path):
    specs = [prune("sparsegpt", damping=d, sparsity=s) for d in (0.01, 0.1) for s in (0.5, 0.6, 0.7)]
    study = compressed(tmp_path, specs, lambda p, s, t: p.sparsity * (1 if p.damping == 0.1 else 2), texts=("home",))
    (row,) = of(analysis.against(study), method="sparsegpt-d0.1", rival="sparsegpt", setting="60%")
    assert row["saving"] == pytest.approx(0.5)
    assert "damping" in analysis.factors(study)["term"].to_list()


def test_savings_are_the_planted_ones_at_equal_size(tmp_path):
    specs = [prune(m, sparsity=s) for m in ("magnitude", "wanda", "sparsegpt") for s in (0.5, 0.6)]
    study = compressed(tmp_path, [*specs, prune("wanda", pattern="2:4"), prune(score="regional")], flat)
    table = analysis.against(study)
    (row,) = of(table, method="wanda", rival="magnitude", setting="60%", text="home")
    assert (row["excess"], row["rival_excess"], row["saving"]) == pytest.approx((0.3, 0.6, 0.5))
    assert row["perplexity_saving"] == pytest.approx(1 - math.exp(-0.3))
    assert (row["low"], row["high"]) == pytest.approx((0.5, 0.5))
    assert of(table, setting="2:4") == []  # nothing else is pruned so
    best = {(r["method"], r["setting"]): r["rival"] for r in of(table, best=True, text="home")}
    assert best == {
        ("wanda++", "50%"): "sparsegpt", ("wanda", "50%"): "wanda++", ("sparsegpt", "50%"): "wanda++",
        ("magnitude", "50%"): "wanda++", ("wanda", "60%"): "sparsegpt", ("sparsegpt", "60%"): "wanda",
        ("magnitude", "60%"): "sparsegpt",
    }  # fmt: skip


def test_what_is_compressed_in_part_is_a_setting_of_its_own(tmp_path):
    specs = [prune("wanda"), prune("wanda", components=("down",)), prune("sparsegpt")]
    study = compressed(tmp_path, specs, lambda p, s, t: 0.1 * len(p.components), texts=("home",))
    assert set(analysis.excess(study)["setting"]) == {"50%", "50% of down"}
    assert set(analysis.against(study)["setting"]) == {"50%"}


def test_only_what_is_published_is_a_rival(tmp_path):
    specs = [prune("magnitude"), prune("wanda"), prune(score="regional", update="refit")]
    table = analysis.against(compressed(tmp_path, specs, flat, texts=("home",)))
    assert set(table["rival"]) == {"magnitude", "wanda"}
    assert set(table["method"]) == {"magnitude", "wanda", "regional-row-refit"}


def test_p_is_corrected_over_all_methods_with_one_rival(tmp_path):
    specs = [prune("magnitude"), prune("wanda"), prune("sparsegpt"), prune(score="regional", update="refit")]
    study = compressed(tmp_path, specs, lambda p, seed, _: COSTS[p.score] + waves(seed * len(p.label)), texts=("home",))
    for _, family in analysis.against(study).group_by("rival"):
        assert len(family) == 3
        assert family["p_holm"].to_list() == pytest.approx(multipletests(family["p"], method="holm")[1])


def test_holm_within_families_is_statsmodels_family_by_family():
    rng = np.random.default_rng(0)
    table = pl.DataFrame({"f": rng.integers(0, 5, 60), "p": rng.random(60).round(2) ** 3})
    table = table.with_columns(pl.when(pl.int_range(60) % 7 > 0).then("p").alias("p"))
    table = table.with_columns(holm_within(table, ["f"]).alias("holm"))
    for _, family in table.drop_nulls("p").group_by("f"):
        assert family["holm"].to_list() == pytest.approx(multipletests(family["p"], method="holm")[1])
    assert table["holm"].is_null().to_list() == table["p"].is_null().to_list()


def test_a_method_without_seeds_stands_in_for_every_seed():
    magnitude, wanda = (
        point("magnitude", {1: np.full(8, 0.6)}),
        point("wanda", {s: np.full(8, s / 10) for s in (1, 2, 3)}),
    )
    seeds, d = together([magnitude, wanda])
    assert seeds == [1, 2, 3]
    assert d[:, :, 0].tolist() == [[0.6, 0.6, 0.6], [0.1, 0.2, 0.3]]
    assert together([point("wanda", {1: np.ones(8)}), wanda])[0] == [1]
    assert together([point("wanda", {}), wanda])[0] == []


def test_seeds_in_which_either_diverged_are_left_out_and_counted(tmp_path):
    lost = {("act_mag", 1), ("obs", 3)}
    study = compressed(
        tmp_path, [prune("wanda"), prune("sparsegpt")],
        lambda p, s, _: None if (p.score, s) in lost else COSTS[p.score] + waves(s), texts=("home",),
    )  # fmt: skip
    (row,) = of(analysis.against(study), method="wanda")
    assert (row["seeds"], row["diverged"], row["rival_diverged"]) == (1, 1, 1)
    assert row["saving"] == pytest.approx(1 - (0.5 + waves(2).mean()) / (0.4 + waves(2).mean()))


def test_a_saving_of_next_to_nothing_is_not_told(tmp_path):
    study = compressed(tmp_path, [prune("wanda"), prune("sparsegpt")], lambda p, s, _: waves(s, 0.1), texts=("home",))
    assert set(analysis.against(study)["why_not"]) == {"the rival's excess isn't surely above 0"}
    assert analysis.against(study)["saving"].null_count() == 2


def test_rules_of_keeping_compete_at_equal_bits_alone(tmp_path):
    rules = [QuantizeSpec(bits=3, kept=0.0035, keep_by=k) for k in ("tacq", "random", "magnitude")]
    specs = [*rules, QuantizeSpec(bits=3), QuantizeSpec(bits=4, kept=0.0035)]
    costs = {"tacq": 0.2, "random": 0.4, "magnitude": 0.3, None: 0.5}
    study = compressed(tmp_path, specs, lambda q, s, _: costs[q.keep_by] + waves(s), texts=("home",))
    pairs = {(r["method"], r["rival"]) for r in analysis.against(study).to_dicts()}
    names = ("tacq", "random", "magnitude")
    assert pairs == {(a, b) for a in names for b in names if a != b}
    (row,) = of(analysis.against(study), method="tacq", best=True)
    assert row["rival"] == "magnitude"
    more = pl.col("bits_per_weight") + 0.1 * (pl.col("keep_by") == "random")
    heavier = analysis.load(tmp_path)
    object.__setattr__(heavier, "compressions", study.compressions.with_columns(more))
    pairs = {(r["method"], r["rival"]) for r in analysis.against(heavier).to_dicts()}
    assert pairs == {("tacq", "magnitude"), ("magnitude", "tacq")}


def test_intervals_of_savings_cover_the_truth_in_95_of_100():
    rng, covered, n = np.random.default_rng(3), 0, 150
    for _ in range(n):
        shared = rng.normal(size=16)
        a, b = (point(m, crossed(rng, mean, shared=shared)) for m, mean in (("wanda", 0.4), ("sparsegpt", 0.5)))
        row = _row(a, b)
        covered += row["low"] <= 0.2 <= row["high"]
    # At least 95%, with a chance below 0.001 to fall under the bound if it is just that.
    assert covered >= stats.binom.ppf(0.001, n, 0.95)


def test_equal_methods_are_told_apart_no_more_often_than_in_5_of_100():
    rng, found, n = np.random.default_rng(4), 0, 150
    for _ in range(n):
        shared = rng.normal(size=16)
        a, b = (point(m, crossed(rng, 0.5, shared=shared)) for m in ("wanda", "sparsegpt"))
        found += _row(a, b)["p"] < 0.05
    assert found <= stats.binom.ppf(0.999, n, 0.05)


def test_the_report_of_a_grid_that_is_not_done_says_what_is_missing(tmp_path):
    # No row has the id that the spec asks for: the dense model and two methods by three seeds are missing.
    study = compressed(tmp_path, [prune("wanda"), prune("sparsegpt")], lambda *_: 1.0, texts=("home",))
    assert "7 compressions missing" in context(study)["unfinished"]


def test_the_headline_is_about_what_loses_least_and_not_about_what_saves_most(tmp_path):
    # SparseGPT has half of Wanda's excess, and what is ours nine tenths of SparseGPT's.
    specs = [prune("wanda"), prune("sparsegpt"), prune(score="obs", group="tensor", update="refit")]
    costs = {spec.label: cost for spec, cost in zip(specs, (2.0, 1.0, 0.9), strict=True)}
    study = compressed(tmp_path, specs, lambda p, seed, _: costs[p.label] + waves(seed * len(p.label)), texts=("home",))
    (section,) = [s for s in answered(study, set(), "compression") if s.id == "against"]
    assert section.answer.startswith("At 50% obs-tensor-refit has −10%")
