"""Many models at once, against the laws, families and experts that were planted in them."""

import json
import re

import numpy as np
import polars as pl
import pytest

import analysis
from analysis.comparison import (
    compare,
    comparison_verdicts,
    expert_use,
    experts,
    families,
    features,
    grouped,
    kinds_compared,
    matrix,
    over_families,
    predictions,
    quantities,
    robustness,
    scaling,
    told_apart,
    within_models,
)  # fmt: skip
from analysis.comparison import report as reports
from analysis.comparison.growth import (
    DIVERGING,
    HARMLESS,
    Curve,
    Measured,
    collapse,
    curve,
    draws,
    resampled,
    shared_damage,
)
from analysis.comparison.laws import ALL
from analysis.study import StudyError
from esa_ray.storage.location import Location
from esa_ray.storage.store import Store
from tests.analysis.many import INTACT, KS, SIZES, VOCABULARY, study

# One process makes the studies and writes their report for all.
ONE_PROCESS = True  # read by tests/conftest.py

EXPONENT, HEIGHT = -0.5, {"alpha": 0.3, "beta": 0.6, "gamma": 0.3}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Three families of five sizes whose half-collapse fraction is h N^-0.5, one of them of experts."""
    root, draw = tmp_path_factory.mktemp("many"), np.random.default_rng(7)
    for family, height in HEIGHT.items():
        for size in SIZES:
            study(
                root / f"{family}-{size}", f"{family}-{size}", family=family, size=size,
                half=height * size ** (1 + EXPONENT) * np.exp(0.05 * draw.normal()), draw=draw,
                gini={"alpha": 0.6, "beta": 0.7, "gamma": 0.8}[family], attention={"alpha": 0.2, "beta": 0.5,
                "gamma": 0.4}[family],
                kind="moe" if family == "gamma" else "dense", experts=6 if family == "gamma" else 0,
                super_expert=(2, 1) if (family, size) == ("gamma", SIZES[-1]) else None,
                architecture=f"{family.title()}ForCausalLM", depth={"alpha": 0.0, "beta": 0.3, "gamma": 0.9}[family],
            )  # fmt: skip
    return compare([root])


def test_models_come_with_what_they_are(many):
    assert many.models["family"].to_list() == [f for f in HEIGHT for _ in SIZES]
    assert many.models["body"].to_list() == list(SIZES) * 3
    assert set(many.models.filter(pl.col("kind") == "moe")["family"]) == {"gamma"}


def test_quantities_are_what_was_planted(many):
    table = quantities(many).filter(pl.col("model") == "alpha-1000000")
    value = dict(table.select("quantity", "value").iter_rows())
    assert value["intact_nll"] == pytest.approx(INTACT, rel=0.1)
    assert value["gini"] == pytest.approx(0.6, abs=0.01)
    assert value["attention_share"] == pytest.approx(0.2, abs=0.01)
    # Between tested sizes, a factor four apart, a straight line in log–log is up to some percent off the curve.
    assert value["half_collapse"] == pytest.approx(0.3 * 1e6**0.5, rel=0.2)
    assert value["half_collapse_fraction"] == pytest.approx(value["half_collapse"] / 1e6)
    # k/(k + half) = 1/10.
    assert value["tenth_collapse"] == pytest.approx(0.3 * 1e6**0.5 / 9, rel=0.2)
    half = 0.3 * 1e6**0.5
    assert value["first_damage"] == pytest.approx((np.log(VOCABULARY) - INTACT) / (1 + half), rel=0.2)
    row = table.filter(pl.col("quantity") == "half_collapse").row(0, named=True)
    assert row["low"] < row["value"] < row["high"]


def test_the_law_and_its_exponent_are_found(many):
    table = scaling(many).filter(pl.col("quantity") == "half_collapse_fraction")
    assert set(table["series"]) == {*HEIGHT, ALL}
    for row in table.filter(pl.col("series") != ALL).iter_rows(named=True):
        assert row["law"] == "power"
        assert row["exponent_low"] < EXPONENT < row["exponent_high"]
        assert row["exponent"] == pytest.approx(EXPONENT, abs=0.1)
        assert row["r2"] > 0.97
        assert row["break_p"] is None  # five sizes
    gini = scaling(many).filter((pl.col("quantity") == "gini") & (pl.col("series") == "alpha")).row(0, named=True)
    assert gini["exponent_low"] < 0 < gini["exponent_high"]


def test_families_of_one_exponent_and_different_heights(many):
    table = families(many).filter(pl.col("quantity") == "half_collapse_fraction").row(0, named=True)
    assert table["families"] == list(HEIGHT)
    assert table["p_exponent"] > 0.05
    assert table["p_height_holm"] < 0.001


def test_a_planted_super_expert_is_found_and_no_other(many):
    found = {m: experts(many.by_name(m)) for m in many.models.filter(pl.col("kind") == "moe")["model"]}
    supers = [(m, r["layer"], r["expert"]) for m, t in found.items() for r in t.filter(pl.col("super")).to_dicts()]
    assert supers == [(f"gamma-{SIZES[-1]}", 2, 1)]


def test_use_of_experts_goes_with_what_they_cost(many):
    row = expert_use(many).row(0, named=True)
    shares = np.arange(1, 7) / 21
    assert row["balance"] == pytest.approx(-(shares * np.log(shares)).sum() / np.log(6), abs=1e-6)
    assert row["rho"] > 0.9
    assert row["rho_low"] <= row["rho"] <= row["rho_high"]
    # Five sixths of the weights, six times (1 − 0.4) against 0.4 in seven tensors of one size.
    assert row["expert_weights"] == pytest.approx(6 / 7, abs=0.01)
    assert row["expert_score"] / row["shared_score"] == pytest.approx(0.6 / 0.4, rel=0.05)


def test_silenced_ffns_cost_what_was_planted(many):
    table = within_models(many)
    assert table["attention"].to_list() == pytest.approx([0.1] * 15, rel=0.15)
    assert table["ffn"].to_list() == pytest.approx([0.4] * 15, rel=0.15)
    assert (table["p_holm"] < 0.05).all()
    row = over_families(many).row(0, named=True)
    assert np.exp(row["mean"]) == pytest.approx(0.25, rel=0.1)
    # Three families: fifteen models of three recipes are no fifteen models.
    assert (row["families"], row["p"]) == (3, None)
    assert "3 families" in row["why_not"]


def test_dense_and_mixture_are_compared_size_by_size(many):
    table = kinds_compared(many, quantities(many))
    pairs = set(table.select("first", "second").unique().iter_rows())
    assert pairs == {("alpha", "gamma"), ("beta", "gamma")}
    row = table.filter((pl.col("quantity") == "gini") & (pl.col("first") == "alpha")).row(0, named=True)
    assert row["pairs"] == 5
    assert row["low"] < 0.8 / 0.6 < row["high"]
    assert row["p_holm"] < 0.01


def test_planted_families_are_groups_and_told_apart(many):
    x, names = matrix(features(many))
    series = many.models["family"].to_list()
    found = grouped(x, many.models["model"].to_list(), series)
    assert found.agreement == 1.0
    assert found.p < 0.05
    assert max(found.support[:-1]) > 0.7
    told = told_apart(x, names, series)
    assert all(t.accuracy == 1.0 and t.p < 0.05 and t.chance < 0.6 for t in told)


def test_under_no_difference_groups_agree_with_families_no_more_than_by_chance():
    draw, low = np.random.default_rng(3), 0
    for _ in range(60):
        found = grouped(draw.normal(size=(12, 5)), [str(i) for i in range(12)], ["a"] * 6 + ["b"] * 6)
        low += found.p < 0.05
    # 5% of 60 is 3; P(more than 9) is 0.001.
    assert low <= 9


def test_models_are_ranked_by_what_it_takes_to_break_them(many):
    table = robustness(many, 0.5)
    assert table["rank"].to_list() == list(range(1, len(table) + 1))
    planted = [HEIGHT[r["family"]] * r["body"] ** EXPONENT for r in table.to_dicts()]
    assert np.corrcoef(np.log(planted), np.log(table["value"].to_numpy()))[0, 1] > 0.99
    assert ((table["rank_low"] <= table["rank"]) & (table["rank"] <= table["rank_high"])).all()


def test_verdicts_say_what_holds_and_what_cant_be_said(many):
    found = {v.id: v for v in comparison_verdicts(many)}
    # Of the planted variance of log y, size has EXPONENT² Var(log N), heights the rest but for 5% of noise.
    size = EXPONENT**2 * np.log(SIZES).var()
    r2 = size / (size + np.log([*HEIGHT.values()]).var() + 0.05**2)
    assert found["P4.7a"].status == "holds"
    assert float(re.search(r"R² ([\d.]+)", found["P4.7a"].evidence)[1]) == pytest.approx(r2, abs=0.03)
    assert found["P4.7b"].status == "open"  # five sizes
    assert found["P3.7e"].status == "open"
    assert "sign flips" in found["P3.7e"].evidence


def test_each_of_the_largest_models_is_predicted_by_a_line_through_the_smaller_ones(many):
    mine = quantities(many).filter(pl.col("quantity") == "tenth_collapse_fraction")
    smaller, largest = mine.filter(pl.col("body") < SIZES[-1]), mine.filter(pl.col("body") == SIZES[-1])
    line = np.polyfit(np.log(smaller["body"].to_numpy()), np.log(smaller["value"].to_numpy()), 1)
    off = np.abs(np.exp(np.polyval(line, np.log(SIZES[-1]))) / largest["value"].to_numpy() - 1).max()
    verdict = {v.id: v for v in comparison_verdicts(many)}["P4.7c"]
    assert float(re.search(r"([\d.]+)% off", verdict.evidence)[1]) / 100 == pytest.approx(off, abs=0.03)
    assert verdict.status == ("holds" if off < 0.2 else "fails")


def test_where_size_explains_nothing_no_law_does(tmp_path):
    draw = np.random.default_rng(5)
    for size, half in zip(SIZES, (3e3, 3e4, 1e4, 4e3, 3e4), strict=True):
        study(tmp_path / str(size), f"m{size}", family="one", size=size, half=half, draw=draw)
    assert comparison_verdicts(compare([tmp_path]))[0].status == "fails"


def test_sign_flips_in_four_architectures_settle_generality(tmp_path):
    for n, name in enumerate("abcd"):
        study(
            tmp_path / name, name, family=name, size=100_000, half=5.0, perturbation="sign_flip",
            draw=np.random.default_rng(n), architecture=f"{name}LM",
        )  # fmt: skip
    verdict = {v.id: v for v in comparison_verdicts(compare([tmp_path]))}["P3.7e"]
    assert verdict.status == "holds"


def test_one_model_alone_is_told_that_it_is_one(tmp_path):
    study(tmp_path / "a", "a", family="one", size=1000, half=5.0)
    alone = compare([tmp_path / "a"])
    assert scaling(alone).is_empty()
    assert told_apart(*matrix(features(alone)), ["one"]).startswith("needs 2 classes")
    assert "needs" in {v.id: v for v in comparison_verdicts(alone)}["P4.7a"].evidence
    reports.write_comparison(alone, Location(tmp_path))
    assert "1 models of 1 series" in (tmp_path / "compare.html").read_text()


@pytest.fixture(scope="module")
def written(many, tmp_path_factory):
    """The report of all models, and its tables."""
    directory = tmp_path_factory.mktemp("written")
    reports.write_comparison(many, Location(directory))
    reports.save_tables(many, Location(directory))
    return directory


def test_the_report_is_whole_and_its_tables_are_latex(written):
    html = (written / "compare.html").read_text()
    for name in ("laws", "families", "ranking", "sublayers", "kinds", "experts", "fingerprints", "models"):
        assert f'<h2 id="{name}">' in html
    for chart in ("scaling-tenth_collapse_fraction", "depth", "experts", "tree", "ranking"):
        assert f'id="chart-{chart}"' in html
    tables = sorted((written / "tables").iterdir())
    assert any(path.name.startswith("laws-laws") for path in tables)
    for path in tables:
        text = path.read_text()
        assert text.startswith("\\begin{tabular}")
        assert text.count("\\toprule") == text.count("\\bottomrule") == 1


def test_names_from_a_store_dont_become_markup(tmp_path):
    for n, name in enumerate(("<script>alert(1)</script>", "b$x_y%&")):
        study(tmp_path / str(n), name, family="f", size=1000 * (n + 1), half=5.0)
    place = Location(tmp_path / "out")
    found = compare([tmp_path])
    reports.write_comparison(found, place)
    html = (tmp_path / "out" / "compare.html").read_text()
    # In a script's JSON the tag is a text, as long as nothing there ends the script.
    assert "<script>alert(1)" not in re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert "alert(1)</script>" not in html
    reports.save_tables(found, place)
    assert "b\\$x\\_y\\%\\&" in (tmp_path / "out" / "tables" / "models-1.tex").read_text()


def test_what_cant_be_compared_is_one_sentence(tmp_path):
    with pytest.raises(StudyError, match="no study"):
        compare([tmp_path])
    study(tmp_path / "a", "same", family="f", size=1000)
    study(tmp_path / "b", "same", family="f", size=1000)
    with pytest.raises(StudyError, match="two studies"):
        compare([tmp_path])
    assert len(compare([tmp_path / "a"]).studies) == 1
    assert isinstance(analysis.load(tmp_path / "a"), analysis.Study)


def test_a_model_that_wasnt_measured_is_predicted(many, tmp_path):
    table = predictions(many, sizes=[30_000_000])
    row = table.filter((pl.col("quantity") == "half_collapse_fraction") & (pl.col("series") == "alpha")).row(
        0, named=True
    )
    assert row["beyond"] == 3.0
    assert row["law"] == "power"
    assert row["low"] < HEIGHT["alpha"] * 3e7**EXPONENT < row["high"]
    assert predictions(many).is_empty()  # every model is in a series
    for size in SIZES:
        study(tmp_path / str(size), f"a{size}", family="a", size=size, half=0.3 * size**0.5)
    study(tmp_path / "other", "other", family="b", size=50_000_000, half=0.3 * 5e7**0.5)
    beside = predictions(compare([tmp_path])).filter(pl.col("quantity") == "half_collapse_fraction")
    assert beside.select("model", "inside").rows() == [("other", True)]


def test_a_model_that_its_smallest_set_breaks_is_the_least_robust(tmp_path):
    for n, (name, half) in enumerate((("fragile", 0.5), ("plain", 50.0), ("firm", 1e7))):
        study(tmp_path / name, name, family="f", size=100_000 * (n + 1), half=half, draw=np.random.default_rng(n))
    table = robustness(compare([tmp_path]))
    assert table.select("model", "beyond").rows() == [("firm", "more than"), ("plain", None), ("fragile", "less than")]


def test_where_a_censored_model_leaves_ranks_open_none_is_told(tmp_path):
    study(tmp_path / "small", "small", family="f", size=100_000, half=600.0)
    study(tmp_path / "big", "big", family="f", size=10_000_000, half=1e12)
    table = robustness(compare([tmp_path])).sort("model")
    # The big model's bound, 4096 of 10 million weights, lies below the small one's value.
    assert table.select("model", "beyond", "rank", "rank_low", "rank_high").rows() == [
        ("big", "more than", None, 1.0, 2.0), ("small", None, None, 1.0, 2.0),
    ]  # fmt: skip
    answers = {s.id: s.answer for s in reports.sections(compare([tmp_path]), set())}
    assert "may be the most robust" in answers["ranking"]


def test_no_law_is_fitted_to_survivors(tmp_path):
    for size in SIZES:
        half = 1e9 if size == SIZES[-1] else 0.3 * size**0.5  # nothing breaks the largest
        study(tmp_path / str(size), f"a{size}", family="a", size=size, half=half, draw=np.random.default_rng(size))
    found = compare([tmp_path])
    rows = {r["quantity"]: r for r in scaling(found).iter_rows(named=True)}
    assert rows["half_collapse_fraction"]["law"] is None
    assert "1 of 5 models" in rows["half_collapse_fraction"]["why_not"]
    assert "the largest set doesn't do as much" in rows["half_collapse_fraction"]["why_not"]
    assert rows["gini"]["why_not"] is None
    assert {v.id: v.status for v in comparison_verdicts(found)}["P4.7a"] == "open"


def test_sets_that_do_no_damage_have_no_place_on_a_logarithmic_axis(tmp_path):
    study(tmp_path / "a", "a", family="f", size=100_000, half=1e12)
    (one,) = compare([tmp_path]).studies
    assert curve(one, shared_damage([one])).at(100.0) == HARMLESS


def test_sizes_that_are_nearly_the_same_are_one(tmp_path):
    for n, size in enumerate((100_000, 101_000, 102_000, 300_000, 305_000)):
        study(tmp_path / str(n), f"a{n}", family="a", size=size, half=0.3 * size**0.5)
    assert set(scaling(compare([tmp_path]))["why_not"]) == {"2 sizes, and 5 are needed"}


def test_several_models_of_a_size_count_as_one_pair(tmp_path):
    draw = np.random.default_rng(2)
    for n in range(3):
        for family, kind in (("dense", "dense"), ("moe", "moe")):
            for size in SIZES[:3]:
                study(tmp_path / f"{family}{size}{n}", f"{family}{size}{n}", family=family, size=size + n, kind=kind,
                      half=0.3 * size**0.5 * np.exp(0.3 * draw.normal()), draw=draw)  # fmt: skip
    found = compare([tmp_path])
    assert set(kinds_compared(found, quantities(found))["pairs"]) == {3}


def test_what_is_the_same_in_all_models_is_no_difference_between_families(tmp_path):
    for family, offset in (("a", 0), ("b", 1)):
        for size in SIZES[:3]:
            study(tmp_path / f"{family}{size}", f"{family}{size}", family=family, size=size + offset, half=50.0)
    table = families(compare([tmp_path])).filter(pl.col("quantity") == "tail_index")  # planted as 2 everywhere
    assert table.select("p_exponent", "why_not").rows() == [(None, "it is the same for every model of a family")]


def test_a_study_that_has_only_begun_and_sizes_that_cant_be_predicted_are_told(tmp_path):
    study(tmp_path / "a", "a", family="f", size=1000)
    study(tmp_path / "b", "b", family="f", size=2000)
    (tmp_path / "b" / "baselines" / "baseline.parquet").unlink()
    found = compare([tmp_path], sizes=[70_000])
    assert reports.unfinished(found) == [str(tmp_path / "b")]
    told = {s.id: s.answer for s in reports.sections(found, set())}
    assert told["foreseen"].startswith("Nothing can be predicted")


def test_a_longer_list_beside_the_sets_doesnt_hide_them(tmp_path):
    for n, size in enumerate(SIZES[:4]):
        study(tmp_path / f"m{n}", f"m{n}", family=f"f{n}", size=size, half=1.0, architecture=f"A{n}",
              perturbation="sign_flip")  # fmt: skip
        cells = Store(tmp_path / f"m{n}").read("cells", "all").to_pylist()
        rows = [r | {"metric": "listed", "mode": "given", "k": 99_999, "cell_id": f"{i}"} for i, r in enumerate(cells)]
        Store(tmp_path / f"m{n}").write("cells", "given", [r for r in rows if r["group"] == "super"])
    assert {v.id: v for v in comparison_verdicts(compare([tmp_path]))}["P3.7e"].status == "holds"


def test_a_set_that_diverges_has_reached_any_level_and_is_compared_with_none(tmp_path):
    study(tmp_path / "a", "a", family="f", size=100_000, half=60.0, diverged=256)
    found = compare([tmp_path])
    (one,) = found.studies
    bent = curve(one, shared_damage([one]))
    assert bent.diverged.tolist() == [k >= 256 for k in KS]
    reached = bent.reaching(0.5 * collapse(one))
    assert 16 < reached[0] <= 256
    assert bent.at(100.0) == DIVERGING
    assert bent.at(10.0) is not None


@pytest.mark.filterwarnings("error")
def test_a_level_that_resampling_takes_below_zero_is_reached_by_the_smallest_set():
    rising = np.tile([1.0, 2.0, 4.0], (4, 1))
    found = Curve(np.array([10.0, 100.0, 1000.0]), 10**6, rising, np.zeros(3, bool), 3)
    # Between 100 and 1000 the damage doubles: half of the way, on logarithmic axes, is a factor of √2.
    assert found.reaching(np.array([2.0, 0.0, -1.0, 2 * 2**0.5])) == pytest.approx([100, 10, 10, 1000 / 10**0.5])


def test_intervals_hold_the_mean_as_often_as_they_say_with_three_seeds():
    draw, inside, runs = np.random.default_rng(0), 0, 400
    for _ in range(runs):
        d = 1 + 0.2 * draw.normal(size=(3, 1)) + 0.1 * draw.normal(size=(3, 16))
        values = resampled(d)
        found = Measured(float(values[0]), values[1:], 3)
        inside += found.low < 1 < found.high
    assert inside / runs > 0.93  # seeds alone: 95%; plain percentiles hold it in 74%


def test_the_intact_loss_and_damage_are_resampled_by_the_same_windows():
    assert np.array_equal(draws(1, 12)[1], draws(3, 12)[1])


def test_studies_of_another_score_or_text_are_refused(tmp_path):
    study(tmp_path / "a", "a", family="f", size=1000)
    study(tmp_path / "b", "b", family="f", size=2000, text="other")
    (tmp_path / "notes.txt").write_text("not a study")
    with pytest.raises(StudyError, match="text"):
        compare([tmp_path])
    study(tmp_path / "b", "b", family="f", size=2000, windows=5)
    with pytest.raises(StudyError, match="evaluation windows"):
        compare([tmp_path])


def test_far_beyond_the_largest_model_a_linear_law_isnt_followed(tmp_path):
    for size in SIZES:
        study(tmp_path / str(size), f"a{size}", family="a", size=size, half=100 * (1 - 0.8 * size / 1e7), noise=0.001)
    table = predictions(compare([tmp_path]), sizes=[70_000_000_000])
    assert set(table["law"]) <= {"power", "constant", "broken power"}
    assert np.isfinite(table["value"].to_numpy()).all()


def test_so_few_windows_that_nothing_can_be_sure_are_told(tmp_path):
    for n in range(6):
        study(tmp_path / str(n), f"m{n}", family="f", size=1000 * (n + 1), windows=6)
    answers = {s.id: s.answer for s in reports.sections(compare([tmp_path]), set())}
    assert "no p of 6 models can be below 0.19" in answers["sublayers"]  # 6 · 2 / 2⁶


def test_lines_of_intervals_carry_no_symbols(written):
    page = (written / "compare.html").read_text()
    drawn = json.loads(re.search(r"^const charts = (.*);$", page, re.M)[1])
    rules = [layer for chart in drawn.values() for layer in chart.get("layer", []) if layer["mark"]["type"] == "rule"]
    assert rules
    assert not any("shape" in rule["encoding"] for rule in rules)
