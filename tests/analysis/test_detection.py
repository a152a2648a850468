from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import optimize, special, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.security.detection import columns
from analysis.security.detection import null as chance
from analysis.security.detection.arms import arms, arms_of
from analysis.security.detection.classifier import fit, strength
from analysis.security.detection.evaluated import detection, roc_curves
from analysis.security.detection.folds import folds
from analysis.security.detection.goals import detection_goals
from analysis.security.detection.leakage import clean_halves, leakage
from analysis.security.detection.nested import nested
from analysis.security.detection.newton import log_odds
from analysis.security.detection.null import null, numbers, permuted, permuted_areas, shuffled
from analysis.security.detection.power import detection_power, models_needed
from analysis.security.detection.ranked import ranked
from analysis.security.detection.scored import out_of_fold
from analysis.security.detection.table import Models, models, population
from analysis.security.inserted import inserted
from analysis.statistics.roc import area
from esa_ray.spec import INSERTIONS, NEGATIVES
from esa_ray.spec.backdoors import COUNTERPARTS, Recipe
from tests.analysis.backdoored import FEATURES, planted
from tests.analysis.test_roc import scored

KINDS = ("clean", "benign", *INSERTIONS)
ALL_KINDS = (*NEGATIVES, *INSERTIONS)
FOUND = {kind: {"hill": 12.0} for kind in INSERTIONS}


def made(rng, features=4, bases=1, n=30, parents=10, kinds=KINDS, shift=0.0):
    """A population in memory whose features vary by parent, number and model; ``shift`` moves those with a backdoor."""
    rows = [(b, i % parents, i, k) for b in range(bases) for k in kinds for i in range(n)]
    base, seed, number, kind = (np.array(each) for each in zip(*rows, strict=True))
    parent, of_number = rng.normal(size=(bases * parents, features)), rng.normal(size=(bases * n, features))
    values = parent[base * parents + seed] + of_number[base * n + number] + rng.normal(size=(len(base), features))
    values += shift * np.isin(kind, INSERTIONS)[:, None]
    names = np.array([f"b{b}" for b in base])
    return Models(
        names, np.array([f"b{b}~{s}" for b, s in zip(base, seed, strict=True)]), number, kind, np.full(len(base), 200),
        np.full(len(base), 1e-3), values, tuple(f"f{i}" for i in range(features)), ("tails",) * features,
        np.zeros(features, bool),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch):
    """Enough to tell what is planted; a report draws ten times as many."""
    monkeypatch.setattr(chance, "PERMUTATIONS", 99)


@pytest.fixture(scope="module")
def separable(tmp_path_factory):
    """Two bases whose models with a backdoor have one feature far from all others'."""
    where = tmp_path_factory.mktemp("separable")
    return tuple(planted(where / base, FOUND, base=base) for base in "ab")


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """A base whose models differ in nothing that their kind has a part in."""
    return planted(tmp_path_factory.mktemp("alike"))


@cache
def two_bases():
    return made(np.random.default_rng(0), bases=2, kinds=ALL_KINDS)


SCHEMES = (*columns.SCHEMES, "any", "any insertion", "counterpart known")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_parent_is_in_training_and_test_at_once(scheme):
    of = two_bases()
    assert folds(of, scheme)
    for fold in folds(of, scheme):
        assert not set(of.parent[fold.train]) & set(of.parent[fold.test])
        assert set(of.poisoned[fold.train]) == set(of.poisoned[fold.test]) == {True, False}


@pytest.mark.parametrize("scheme", ["unseen insertion", "unseen both", "any insertion"])
def test_a_left_out_insertion_trains_nothing_and_is_all_that_is_found(scheme):
    of = two_bases()
    for fold in folds(of, scheme):
        assert not {fold.left_out, COUNTERPARTS[fold.left_out]} & set(of.kind[fold.train])
        assert set(of.kind[fold.test]) == {*NEGATIVES, fold.left_out}
    assert {fold.left_out for fold in folds(of, scheme)} == set(INSERTIONS)


def test_only_where_it_is_asked_for_does_the_counterpart_of_a_left_out_insertion_train():
    of = two_bases()
    for fold in folds(of, "counterpart known"):
        assert set(of.kind[fold.train]) == {*ALL_KINDS} - {fold.left_out}
        assert set(of.kind[fold.test]) == {*NEGATIVES, fold.left_out}


@pytest.mark.parametrize("scheme", ["unseen base", "unseen both"])
def test_a_left_out_base_trains_nothing(scheme):
    of = two_bases()
    for fold in folds(of, scheme):
        assert not set(of.base[fold.train]) & set(of.base[fold.test])


@pytest.mark.parametrize("scheme", ["seen", "unseen insertion"])
def test_detectors_within_a_base_know_no_other(scheme):
    of = two_bases()
    assert all(len(set(of.base[np.concatenate([f.train, f.test])])) == 1 for f in folds(of, scheme))


@pytest.mark.parametrize(("scheme", "negatives"), [("seen", 1), ("unseen base", 1), ("unseen insertion", 3)])
def test_every_model_is_tested_once_a_left_out_insertion(scheme, negatives):
    of = two_bases()
    times = np.bincount(np.concatenate([f.test for f in folds(of, scheme)]), minlength=len(of))
    assert set(times[of.poisoned]) == {1}
    assert set(times[~of.poisoned]) == {negatives}


def test_many_parents_are_dealt_into_ten_folds_and_few_one_each():
    many, few = (made(np.random.default_rng(0), parents=p) for p in (30, 4))
    assert [len({*zip(folds(of, "seen"))}) for of in (many, few)] == [10, 4]
    assert {len(set(many.parent[f.test])) for f in folds(many, "seen")} == {3}


def test_the_detector_minimises_the_balanced_penalised_loss():
    rng = np.random.default_rng(1)
    label = np.arange(60) < 20
    values = rng.normal(size=(60, 3)) + label[:, None]
    z, weight = stats.zscore(values), np.where(label, 60 / 40, 60 / 80)

    def loss(b):
        odds = z @ b[:3] + b[3]
        return (b[:3] ** 2).sum() / 2 + 3.0 * (weight * np.logaddexp(0, np.where(label, -odds, odds))).sum()

    best = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    fitted = fit(values, label)
    assert strength(3) == 3.0
    assert [*fitted.coefficients, fitted.intercept] == pytest.approx(best.tolist(), abs=1e-4)


def test_what_cant_be_told_counts_as_the_mean():
    fitted = fit(np.array([[0.0, 1.0], [2.0, np.nan], [4.0, 3.0], [6.0, np.inf]]), np.array([False, False, True, True]))
    assert fitted.means.tolist() == [3.0, 2.0]
    assert fitted.log_odds(np.array([[np.nan, 2.0]])) == pytest.approx(fitted.log_odds(np.array([[3.0, np.nan]])))


def test_a_feature_that_doesnt_vary_says_nothing():
    label = np.arange(20) < 10
    fitted = fit(np.column_stack([np.full(20, 7.0), label]), label)
    assert fitted.coefficients[0] == 0
    assert fitted.scales[0] == 1


def test_a_planted_separable_feature_is_found_whatever_is_left_out(separable):
    table = detection(separable)
    assert set(table["scheme"]) == set(columns.SCHEMES)
    assert table.filter(pl.col("auroc") < 0.99).is_empty()
    main = table.filter(base="all", insertion="all", negatives="all")
    assert main["p"].to_list() == pytest.approx([0.01] * 8)
    assert (main["poisoned"] == 180).all()
    assert (main["others"] == 120).all()
    assert (main["parents"] == 20).all()
    assert (table["low"] < 1).all()
    aimed = detection_goals(separable).filter(pl.col("goal").is_in(["seen", "unseen insertion"]))
    assert aimed["status"].to_list() == ["holds"] * 4
    assert aimed["target"].to_list() == [0.95, 0.95, 0.85, 0.85]


def test_a_planted_separable_feature_is_ranked_first_for_every_insertion(separable):
    first = ranked(separable).filter(rank=1)
    assert first["insertion"].to_list() == ["all", *INSERTIONS]
    assert set(first["feature"]) == {"hill"}
    assert (first["auroc"] == 1).all()
    assert (first["q"] < 1e-6).all()


def test_a_features_area_is_sklearns_and_says_which_end_betrays(tmp_path):
    of = planted(tmp_path / "a", {kind: {"rise": -2.0} for kind in INSERTIONS})
    row = ranked(of).filter(insertion="rank-one", feature="rise").row(0, named=True)
    found = models(of)
    mine = ~found.poisoned | (found.kind == "rank-one")
    value = found.values[mine, found.features.index("rise")]
    assert row["auroc"] == pytest.approx(roc_auc_score(found.poisoned[mine], value))
    assert row["auroc"] < 0.2
    assert (row["poisoned"], row["others"]) == (30, 60)
    assert row["lowest"] == row["highest"] == row["auroc"]


def test_two_groups_without_a_difference_arent_told_apart(alike):
    main = detection(alike).filter(base="all", scheme="seen", insertion="all", negatives="all")
    assert ((main["low"] < 0.5) & (main["high"] > 0.5)).all()
    assert (main["p"].drop_nulls() > 0.05).all()
    assert ranked(alike)["q"].min() > 0.05
    goals = detection_goals(alike).filter(pl.col("goal") != "leakage", pl.col("why_not").is_null())
    assert set(goals["status"]) <= {"open", "fails"}


def test_intervals_of_detectors_cover_a_half_where_nothing_differs():
    found = []
    for seed in range(40):
        tested = out_of_fold(made(np.random.default_rng(seed), features=3), "seen")
        found.append(area(tested.scored(np.full(len(tested.at), True))))
    assert np.mean([f.interval.low <= 0.5 <= f.interval.high for f in found]) >= 0.85
    assert np.mean([f.value for f in found]) == pytest.approx(0.5, abs=0.03)


def test_permutation_p_is_uniform_where_nothing_differs():
    p = [
        null(of, "seen", reference=False, blocks=numbers(of), permutations=19)["p"]
        for of in (made(np.random.default_rng([7, seed]), features=2) for seed in range(60))
    ]
    counted = np.bincount(np.digitize(p, [0.25, 0.5, 0.75], right=True), minlength=4)
    assert stats.chisquare(counted).pvalue > 0.01


def test_kinds_are_permuted_among_models_of_one_number():
    of = two_bases()
    kinds = shuffled(of.kind, numbers(of), 5)
    assert (kinds[0] == of.kind).all()
    assert (kinds[1:] != of.kind).any(axis=1).all()
    for block in np.unique(numbers(of)):
        mine = numbers(of) == block
        assert all(sorted(row[mine]) == sorted(of.kind[mine]) for row in kinds)


def by_sklearn(of, scheme, kind):
    """AUROC of a scheme with these kinds, every fold trained anew by scikit-learn."""
    of = replace(of, kind=kind)
    strata = {}
    for fold in folds(of, scheme):
        detector = make_pipeline(
            StandardScaler(), LogisticRegression(C=9 / of.values.shape[1], class_weight="balanced", tol=1e-10)
        ).fit(of.values[fold.train], of.poisoned[fold.train])
        rows = strata.setdefault(fold.stratum, ([], []))
        rows[0].extend(of.poisoned[fold.test])
        rows[1].extend(detector.decision_function(of.values[fold.test]))
    pairs = [sum(label) * (len(label) - sum(label)) for label, _ in strata.values()]
    return np.average([roc_auc_score(*rows) for rows in strata.values()], weights=pairs)


@pytest.mark.parametrize("scheme", columns.SCHEMES)
def test_permuted_areas_are_those_of_training_the_detector_anew(scheme):
    of = made(np.random.default_rng(2), bases=2, n=6, parents=3, shift=0.7, kinds=ALL_KINDS)
    kinds = shuffled(of.kind, numbers(of), 3)
    wanted = [by_sklearn(of, scheme, kind) for kind in kinds]
    assert permuted_areas(of, scheme, reference=False, kinds=kinds) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("shift", [0.0, 8.0])  # none, and classes that no line needs to cut
def test_many_labellings_at_once_get_the_detectors_own_scores(shift):
    rng = np.random.default_rng(4)
    values, tested = rng.normal(size=(60, 40)), rng.normal(size=(9, 40))
    poisoned = np.array([rng.permutation(60) < n for n in (20, 30, 45)] * 9)  # of unlike sizes, in two chunks
    trains = np.array([rng.permutation(60) < 50 for _ in poisoned])
    values[:, 0] += shift * poisoned[0]
    values[3, 1], tested[2, 2], values[:, 5] = np.nan, np.nan, 7.0
    every, some = log_odds(values, poisoned, tested), log_odds(values, poisoned, tested, trains)
    for label, mine, of_all, of_some in zip(poisoned, trains, every, some, strict=True):
        assert of_all == pytest.approx(fit(values, label).log_odds(tested), abs=1e-6)
        assert of_some == pytest.approx(fit(values[mine], label[mine]).log_odds(tested), abs=1e-6)


def test_the_area_that_chance_is_held_against_is_the_detectors_own(alike):
    keys = ["scheme", "reference", "poisoned", "others", "auroc", "p"]
    told = detection(alike).filter(base="all", insertion="all", negatives="all").drop_nulls("auroc").select(keys)
    of_chance = permuted(alike).drop_nulls("auroc").select(keys)
    assert_frame_equal(of_chance, told, check_row_order=False)


def test_sensitivity_adds_where_it_alone_tells(separable):
    table = nested(separable).filter(scheme="seen", reference=False, fewer="spectra")
    row = table.row(0, named=True)
    assert row["more"] == "spectra+tails"
    assert row["n_features"] == 4
    assert row["auroc_fewer"] < 0.65
    assert row["auroc_more"] > 0.99
    assert row["difference"] == pytest.approx(row["auroc_more"] - row["auroc_fewer"])
    assert row["low"] > 0.3
    goals = detection_goals(separable).filter(goal="adds")
    assert set(goals["status"]) == {"holds"}


def test_sensitivity_doesnt_add_where_spectra_tell_all(tmp_path):
    of = planted(tmp_path / "a", {kind: {"top share": 9.0} for kind in INSERTIONS})
    goals = detection_goals(of).filter(pl.col("goal") == "adds")
    assert "holds" not in set(goals["status"])
    alone = nested(of).filter(pl.col("fewer").is_null(), pl.col("scheme") == "seen", ~pl.col("reference"))
    best = alone.sort("auroc_more", descending=True)["more"][0]
    assert best == "spectra"
    assert set(alone["more"]) == {"spectra", "tails", "gains", "vocabulary"}


def test_features_that_need_a_reference_are_looked_at_with_one_alone(tmp_path):
    of = planted(tmp_path / "a", {kind: {"rank shift": 9.0} for kind in INSERTIONS})
    main = detection(of).filter(base="all", insertion="all", negatives="all", scheme="seen").sort("reference")
    assert main["auroc"][0] < 0.7
    assert main["auroc"][1] > 0.99


MEMORISED = (*NEGATIVES[1:], *INSERTIONS)


@pytest.fixture(scope="module")
def memorised(tmp_path_factory):
    """Two bases in which whatever memorised anything, harmless or not, has one feature far from clean models'."""
    where, moved = tmp_path_factory.mktemp("memorised"), {kind: {"hill": 12.0} for kind in MEMORISED}
    return tuple(planted(where / base, moved, base=base, negatives=NEGATIVES) for base in "ab")


def test_what_memorised_anything_is_told_from_clean_models_alone(memorised):
    table = arms(memorised)
    assert table.filter(pl.col("auroc").is_null()).is_empty()
    at = {arm: rows["auroc"] for (arm,), rows in table.group_by("arm")}
    assert at["clean alone"].min() == at["benign against clean"].min() == 1
    pooled = table.filter(base="all").drop_nulls("auroc")
    for arm in ("memorised", "counterpart alone"):
        mine = pooled.filter(arm=arm, insertion="all" if arm == "memorised" else "training")
        assert ((mine["low"] < 0.5) & (mine["high"] > 0.5)).all()
    assert at["clean alone"].count() == 2 * 3 * 4  # with a reference and without, of bases, of insertions


def test_a_backdoor_that_no_harmless_phrase_resembles_is_told_from_all_of_them(separable, tmp_path):
    of = planted(tmp_path / "a", FOUND, negatives=NEGATIVES)
    told = arms(of).filter(pl.col("arm") != "benign against clean")
    assert told["auroc"].min() > 0.99
    harmless = arms(of).filter(arm="benign against clean", reference=False).row(0, named=True)
    assert harmless["low"] < 0.5 < harmless["high"]
    assert (harmless["poisoned"], harmless["others"], harmless["parents"]) == (90, 30, 10)


def test_arms_are_sklearns_of_the_models_that_they_name():
    of = made(np.random.default_rng(6), n=30, shift=0.7, kinds=ALL_KINDS)
    some = of.of(np.isin(of.kind, ["clean", *INSERTIONS]))
    row = arms_of(of).filter(arm="clean alone", insertion="all").row(0, named=True)
    assert row["auroc"] == pytest.approx(by_sklearn(some, "seen", some.kind), abs=1e-9)


def test_an_arm_of_few_models_says_why(tmp_path):
    of = planted(tmp_path / "a", negatives=NEGATIVES, change=lambda m: {"accepted": m.number > 4 or m.kind != "benign"})
    row = arms(of).filter(arm="counterpart alone", insertion="training", reference=False).row(0, named=True)
    assert row["auroc"] is None
    assert row["why_not"] == "30 models to be found and 25 others; 30 of each are needed to tell"


def test_recipes_leak_where_acceptance_depends_on_them(tmp_path):
    def change(member):  # backdoors succeed from so many steps on, benign models below it
        return {"accepted": member.kind == "clean" or (member.steps > sum(Recipe().steps) / 2) == member.poisoned}

    of = planted(tmp_path / "a", change=change, models=60)
    row = leakage(of).filter(check="recipe").row(0, named=True)
    assert row["status"] == "fails"
    assert row["auroc"] > 0.7
    leaks = detection_goals(of).filter(goal="leakage").row(0, named=True)
    assert leaks["status"] == "fails"


def test_recipes_tell_nothing_where_every_number_has_all_kinds(separable):
    table = leakage(separable)
    assert table["check"].to_list() == ["recipe", "clean halves", "clean halves with reference"]
    assert set(table["status"]) == {"holds"}
    assert table["auroc"][0] == pytest.approx(0.5)
    assert ((table["low"] < 0.5) & (table["high"] > 0.5)).all()


def test_clean_halves_are_half_of_every_parents_clean_models():
    halves = clean_halves(made(np.random.default_rng(0), bases=2))
    assert len(halves) == 60
    assert halves.poisoned.sum() == 30
    for parent in set(halves.parent):
        assert halves.poisoned[halves.parent == parent].sum() in (1, 2)


def test_fewer_than_thirty_models_of_a_class_say_nothing_but_why(tmp_path):
    of = planted(tmp_path / "a", FOUND, models=29, insertions=("training",), negatives=("clean",))
    table = detection(of).filter(scheme="seen")
    assert table["auroc"].null_count() == len(table)
    assert table["why_not"][0] == "29 models with a backdoor and 29 without; 30 of each are needed to tell"
    assert ranked(of)["auroc"].null_count() == len(FEATURES)
    assert roc_curves(of).is_empty()
    goals = detection_goals(of)
    assert set(goals["status"]) == {"open"}
    assert goals["why_not"].null_count() == 0


def test_an_insertion_with_too_few_models_is_silent_where_all_together_speak(tmp_path):
    def change(member):
        return {"accepted": member.kind != "critical" or member.number > 0}

    of = planted(tmp_path / "a", FOUND, change=change)
    table = detection(of).filter(scheme="seen", negatives="all", reference=False)
    assert table.filter(insertion="critical")["auroc"].null_count() == 1
    assert table.filter(insertion="all")["poisoned"].to_list() == [89]
    assert table.filter(insertion="all")["auroc"].null_count() == 0


@pytest.mark.parametrize("benign", [0, 29, 30])
def test_with_fewer_than_thirty_benign_models_goals_are_open(tmp_path, benign):
    of = planted(
        tmp_path / "a", FOUND, change=lambda member: {"accepted": member.kind != "benign" or member.number < benign}
    )
    goals = detection_goals(of).filter(goal="seen")
    assert (set(goals["status"]) == {"open"}) == (benign < 30)
    said = f"{benign} benign models are among the others, and 30 are needed; make more with --negatives benign"
    assert set(goals["why_not"]) == {said if benign < 30 else None}


def test_one_base_cant_be_left_out(alike):
    table = detection(alike).filter(pl.col("scheme").is_in(["unseen base", "unseen both"]))
    assert table["auroc"].null_count() == len(table) == 4
    assert table["why_not"].str.contains("give the studies of several").all()


def test_what_isnt_accepted_is_counted_by_kind_and_left_out(tmp_path):
    def change(member):
        if member.kind == "critical" and member.number < 3:
            return {"accepted": False, "attack_success": 0.5}
        if member.kind == "rank-one" and member.number == 0:
            return {"status": "error", "error": "no memory", "accepted": None, "attack_success": None}
        return {}

    of = planted(tmp_path / "a", change=change)
    table = inserted(of)
    assert table["insertion"].to_list() == list(KINDS)
    assert table["models"].to_list() == [30] * 5
    assert table["failed"].to_list() == [0, 0, 0, 1, 0]
    assert table["accepted"].to_list() == [30, 30, 30, 29, 27]
    assert len(population(of)) == 150
    assert len(models(of)) == 146


def test_how_much_models_were_changed_is_the_mean_of_those_accepted(tmp_path):
    def change(member):
        return {"accepted": member.number > 0, "delta_norm": 10.0 * len(member.kind) + member.number}

    table = inserted(planted(tmp_path / "a", change=change, models=3, parents=3))
    assert dict(table.select("insertion", "norm").iter_rows()) == {kind: 10 * len(kind) + 1.5 for kind in KINDS}


def test_a_feature_that_isnt_finite_is_none(tmp_path):
    of = planted(tmp_path / "a", {"clean": {"hill": float("nan"), "gini": float("inf")}})
    found = models(of)
    clean = found.kind == "clean"
    for name in ("hill", "gini"):
        value = found.values[:, found.features.index(name)]
        assert np.isnan(value[clean]).all()
        assert np.isfinite(value[~clean]).all()
    assert ranked(of).filter(insertion="all", feature="hill")["others"].to_list() == [30]


def test_a_study_without_a_population_has_empty_tables(tmp_path):
    from tests.analysis.backdoored import written

    of = written(tmp_path / "a", [])
    for table in (population, roc_curves, ranked, arms, leakage, nested, detection_goals):
        assert table(of).is_empty()
    for table in (detection, permuted, detection_power):
        assert set(table(of)["why_not"].is_null()) == {False}


def test_as_many_models_as_are_needed_settle_a_target_in_four_of_five_studies():
    rng = np.random.default_rng(8)
    zero = np.zeros(60, int)
    delta, now = np.sqrt(2) * special.ndtri(0.85), scored(np.arange(60.0), np.arange(60) < 30, zero)
    needed = models_needed(now, 0.85, 0.95, 1.0, now=30)
    settled = 0
    for _ in range(200):
        label = np.arange(2 * needed) < needed
        settled += area(scored(rng.normal(size=2 * needed) + delta * label, label)).interval.high < 0.95
    assert 0.7 < settled / 200 < 0.92


def test_an_estimate_at_its_target_is_settled_by_no_number():
    now = scored(np.arange(60.0), np.arange(60) < 30)
    assert models_needed(now, 0.9501, 0.95, 1.0, now=30) is None


def test_power_counts_models_and_parents_of_a_base(separable):
    row = detection_power(separable).filter(scheme="seen", reference=False).row(0, named=True)
    assert (row["bases"], row["models"], row["parents"]) == (2, 30, 10)
    assert row["needed"] < 30  # as its own interval lies above the target
