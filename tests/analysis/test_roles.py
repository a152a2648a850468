"""Roles that were planted in rows are found, and no others; each number against one that is known by hand."""

import numpy as np
import polars as pl
import pytest

import analysis
from analysis.roles.assigned import assigned, counted
from analysis.roles.damages import damages
from analysis.roles.false import false_roles
from analysis.roles.goals import role_goals
from analysis.roles.mediation import mediation, share
from analysis.roles.stability import jaccard, kappa, role_stability
from analysis.roles.table import leading, weight_roles
from esa_ray.interpret.analysing import RoleAnalysis
from esa_ray.spec import RoleSpec
from tests.analysis.roled import STRONG, TENSORS, mediation_row, planted, role_row, subject, written

HOLDERS = {1: {"spike": 0.9, "sink": 0.8}, 2: {"sink": 0.7}, 3: {"frequency": 0.95}, 4: {"spike": 0.2}}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return written(tmp_path_factory.mktemp("roles"), **planted(HOLDERS))


def held(study):
    return set(leading(study).filter("holds").select("rank", "role").iter_rows())


def test_planted_roles_are_found_and_no_others(study):
    assert held(study) == {(1, "spike"), (1, "sink"), (2, "sink"), (3, "frequency")}


def test_a_role_that_is_necessary_but_not_mediated_does_not_hold(study):
    row = leading(study).filter((pl.col("rank") == 4) & (pl.col("role") == "spike")).row(0, named=True)
    assert (row["necessary"], row["holds"]) == (True, False)
    assert row["mediated"] == pytest.approx(0.2)


def test_a_change_is_told_against_the_geometric_mean_of_its_tensors_matched_weights(study):
    row = leading(study).filter((pl.col("rank") == 1) & (pl.col("role") == "spike")).row(0, named=True)
    matched = study.roles.filter((pl.col("group") == "matched_k") & (pl.col("role") == "spike")
                                 & (pl.col("tensor") == row["tensor"]))["change"].to_numpy()  # fmt: skip
    assert (row["matched"], len(matched)) == (5, 5)
    assert row["times"] == pytest.approx(abs(row["change"]) / np.exp(np.log(np.abs(matched)).mean()))


def test_p_is_corrected_over_all_leading_weights_and_roles(study):
    table = leading(study)
    p = np.sort(table["p"].to_numpy())
    steps = p * len(p) / np.arange(1, len(p) + 1)
    by_hand = np.minimum.accumulate(steps[::-1])[::-1]
    assert np.sort(table["q"].to_numpy()) == pytest.approx(np.minimum(by_hand, 1))
    assert len(p) == 40 * 3


@pytest.mark.parametrize(("leak", "specific"), [(1.0, False), (0.6, False), (0.25, True)])
def test_a_mediator_that_carries_any_weights_damage_is_not_specific(tmp_path, leak, specific):
    # matched weights lose 0.0001 nats, ten thousand times less than the leading weight, and holding gives a share back
    table = leading(written(tmp_path, **planted({1: {"spike": 0.9}}, leak=leak))).filter("necessary")
    assert table["others_share"].to_list() == pytest.approx([leak], rel=1e-6)
    assert table["others_high"].to_list() == pytest.approx([leak], rel=0.2)
    assert (table["specific"].to_list(), table["holds"].to_list()) == ([specific], [specific])


def test_of_matched_weights_that_cost_nothing_it_cannot_be_told_and_that_is_counted(tmp_path):
    found = planted({1: {"spike": 0.9, "bigram": 0.9}}, roles=("spike", "bigram"), leak=1.0)
    for row in found["mediations"]:
        if row["group"] == "matched_k":
            row["delta_nll"] = [x * (-1) ** i for i, x in enumerate(row["delta_nll"])]
    study = written(tmp_path, **found)
    table = leading(study).filter("necessary").sort("role")
    assert table["role"].to_list() == ["bigram", "spike"]
    assert table["specific"].to_list() == [None, None]
    assert table["others"].to_list() == [0, 0]
    assert table["others_held"].to_list() == [3, 3]
    # a bottleneck's role isn't held by necessity alone
    assert table["holds"].to_list() == [False, True]
    rows = {r["role"]: r["untold"] for r in assigned(study).to_dicts()}
    assert (rows["spike"], rows["bigram"], rows["any role"]) == (1, 0, 1)


@pytest.mark.parametrize(("share", "holds"), [(0.45, False), (0.55, True), (1.45, True), (1.55, False), (6.3, False)])
def test_holding_that_undoes_far_more_or_less_than_there_is_tells_no_role(tmp_path, share, holds):
    row = leading(written(tmp_path, **planted({1: {"spike": share}}))).filter("necessary").row(0, named=True)
    assert (row["holds"], row["overshoots"]) == (holds, share > 1.5)


def test_a_weight_that_has_no_such_mediator_is_told_so_and_not_missing(tmp_path):
    found = planted({1: {"bigram": 0.9}}, roles=("bigram",))
    for row in found["mediations"]:
        if row["rank"] == 1 and row["group"] == "super":
            row |= {"status": "empty", "error": "block 0 is before it", "delta_nll": None, "held_nll": None}
    row = leading(written(tmp_path, **found)).filter("necessary").row(0, named=True)
    assert (row["why_unmediated"], row["holds"], row["missing"]) == ("block 0 is before it", False, False)


def test_without_mediations_nothing_holds_and_that_is_said(tmp_path):
    study = written(tmp_path, **planted(HOLDERS, mediate=False))
    assert not held(study)
    assert leading(study)["missing"].sum() == 5
    none = assigned(study).filter(role="unassigned").row(0, named=True)
    assert (none["weights"] + none["missing"], none["missing"]) == (none["of"], 4)  # of those nothing can be said
    goals = {r["goal"]: r for r in role_goals(study).to_dicts()}
    assert goals["weights"]["status"] == "open"
    assert "weren't held" in goals["weights"]["why_not"]


def test_confidence_needs_the_order_of_the_predictions_kept(tmp_path):
    found = planted({1: {"confidence": 0.9}, 2: {"confidence": 0.9}}, roles=("confidence",))
    for row in found["roles"]:
        row["condition"] = 0.5 if row["rank"] == 2 else 0.97
    table = leading(written(tmp_path, **found)).filter(pl.col("rank") <= 2).sort("rank")
    assert table["holds"].to_list() == [True, False]
    assert table["unmet"].to_list() == [False, True]


def wrong_way(found, groups, edit="zero"):
    for row in found["roles"]:
        if row["group"] in groups:
            row["change"] = abs(row["change"])
        row["edit"] = edit
    for row in found["mediations"]:
        row["edit"] = edit
    return found


@pytest.mark.parametrize("edit", ["zero", "sign_flip-1", "set_mean", "scale-0.8"])
def test_a_weight_whose_damage_raises_the_spike_is_not_its_maker(tmp_path, edit):
    found = planted({1: {"spike": 0.9}, 2: {"position": 0.9}}, roles=("spike", "position"))
    study = written(tmp_path, **wrong_way(found, {"super"}, edit))
    assert held(study) == {(2, "position")}  # whose sign says nothing
    row = leading(study).filter((pl.col("rank") == 1) & (pl.col("role") == "spike")).row(0, named=True)
    assert (row["p"], row["necessary"], row["mediated"]) == (1.0, False, pytest.approx(0.9))


def test_damage_that_may_make_a_weight_stronger_has_no_side(tmp_path):
    found = planted({1: {"spike": 0.9}}, roles=("spike",))
    assert held(written(tmp_path, **wrong_way(found, {"super"}, "scale-1.5"))) == {(1, "spike")}


def test_a_matched_weight_that_changes_a_metric_the_wrong_way_is_no_false_role(tmp_path):
    found = planted(HOLDERS)
    row = next(r for r in found["roles"] if r["group"] == "matched_k" and r["role"] == "spike" and r["row"] == 1)
    row |= {"change": 1e6 * abs(row["change"]), "delta_nll": [0.01 + i * 1e-4 for i in range(8)]}
    found["mediations"] = [r for r in found["mediations"] if r["subject"] != row["subject"]]
    told = {r["role"]: r for r in false_roles(written(tmp_path, **found)).to_dicts()}["spike"]
    assert (told["necessary"], told["false"]) == (0, 0)


def test_tensors_without_matched_weights_have_no_p_and_say_why(tmp_path):
    found = planted({})
    found["roles"] = [r for r in found["roles"] if r["group"] == "super" or r["tensor"] != TENSORS[1]]
    table = leading(written(tmp_path, **found)).filter(pl.col("tensor") == TENSORS[1])
    assert table["p"].null_count() == len(table) > 0
    assert set(table["why_not"]) == {"no matched weight of its tensor was damaged"}


def test_pairs_whose_damage_cannot_reach_the_metric_are_no_tests(tmp_path):
    found = planted({1: {"spike": 0.9}})
    for row in found["roles"]:
        if row["role"] == "sink" and row["tensor"] == TENSORS[2]:
            row["change"] = 0.0
    table = leading(written(tmp_path, **found))
    untold = table.filter(pl.col("p").is_null())
    assert set(untold.select("tensor", "role", "why_not").iter_rows()) == {
        (TENSORS[2], "sink", "damage of its tensor can't reach it")}  # fmt: skip
    assert table.filter(pl.col("role") == "sink")["null"].unique().to_list() == [95]
    assert table.drop_nulls("p")["q"].null_count() == 0
    assert len(table.drop_nulls("q")) == 120 - len(untold) == 118


def test_rows_that_are_empty_are_told_and_never_count_as_zero(tmp_path):
    found = planted({1: {"sink": 0.9}}, roles=("sink",))
    rng = np.random.default_rng(0)
    for rank in (1, 2):
        told = subject("super", rank, TENSORS[rank], 0)
        nothing = {"change": None, "changes": None, "delta_nll": None}
        found["roles"].append(role_row(told, "spike", 1.0, 1.0, rng) | nothing | {
            "status": "empty", "error": "no position has a spike"})  # fmt: skip
    table = leading(written(tmp_path, **found)).filter(pl.col("role") == "spike")
    assert table["p"].null_count() == 2
    assert table["why_not"].to_list() == ["no position has a spike"] * 2


def test_the_functions_for_models_in_hand_and_the_report_tell_the_same(study):
    rows = [study.roles.to_dicts(), study.mediations.to_dicts()]
    told = {(r["subject"], r["role"]): r for r in RoleAnalysis(RoleSpec(), *rows).table}
    for r in leading(study).iter_rows(named=True):
        for name in ("times", "p", "mediated"):
            mine = told[r["subject"], r["role"]][name]
            assert mine == (None if r[name] is None else pytest.approx(r[name], rel=1e-12)), (r["subject"], name)


# mediation ----------------------------------------------------------------------------------------------------------
def test_a_share_of_the_damage_is_a_ratio_of_sums_over_windows():
    damage, part = np.array([1.0, 3.0, 2.0, 2.0]), np.array([0.5, 1.5, 1.1, 0.9])
    told = share(part, damage)
    assert told["share"] == pytest.approx(4.0 / 8.0)
    assert told["low"] < 0.5 < told["high"]


def test_a_share_of_damage_that_cannot_be_told_from_nothing_is_none():
    assert share(np.array([0.1, 0.2, 0.1]), np.array([1.0, -1.0, 0.1]))["share"] is None


def test_the_interval_of_a_mediated_share_covers_the_truth():
    rng, inside = np.random.default_rng(3), 0
    for _ in range(200):
        damage = 1 + 0.3 * rng.normal(size=8)
        told = share(0.6 * damage + 0.1 * rng.normal(size=8), damage)
        inside += told["low"] <= 0.6 <= told["high"]
    assert 180 <= inside <= 200  # 95% of 200, ± three standard errors


def test_mediation_is_one_where_the_mediator_is_the_only_path(tmp_path):
    row = leading(written(tmp_path, **planted({1: {"spike": 1.0}}))).filter("holds").row(0, named=True)
    assert (row["mediated"], row["mediated_low"], row["converse"]) == pytest.approx((1.0, 1.0, 1.0))


# counting -----------------------------------------------------------------------------------------------------------
def test_shares_of_weights_and_of_damage_are_counted_by_hand(study):
    rows = {r["role"]: r for r in assigned(study).to_dicts()}
    mass = np.array([1 / rank for rank in range(1, 41)])
    assert (rows["any role"]["weights"], rows["any role"]["of"], rows["unassigned"]["weights"]) == (3, 40, 37)
    assert rows["any role"]["mass"] == pytest.approx(mass[:3].sum() / mass.sum())
    assert rows["sink"]["mass"] == pytest.approx(mass[:2].sum() / mass.sum())
    assert (rows["spike"]["necessary"], rows["spike"]["mediated"], rows["spike"]["weights"]) == (2, 1, 1)
    # Clopper and Pearson of 3 of 40
    assert (rows["any role"]["low"], rows["any role"]["high"]) == pytest.approx((0.0157, 0.2039), abs=1e-4)
    assert rows["any role"]["mass_low"] < rows["any role"]["mass"] < rows["any role"]["mass_high"]
    assert rows["any role"]["mass_high"] - rows["any role"]["mass_low"] < 0.1  # windows differ by 5%


def test_weights_whose_loss_does_not_rise_are_in_no_denominator(tmp_path):
    study = written(tmp_path, **planted({1: {"spike": 0.9}}, leading=4, costs={3: -0.2, 4: 0.0}))
    assert counted(study)["rank"].to_list() == [1, 2]
    row = assigned(study).filter(pl.col("role") == "any role").row(0, named=True)
    assert (row["of"], row["inert"], row["weights"]) == (2, 2, 1)


def test_a_weight_that_is_inert_alone_counts_by_its_set(tmp_path):
    found = planted({1: {"spike": 0.9}}, leading=2, costs={2: 0.0})
    rng = np.random.default_rng(0)
    for role in ("spike", "sink", "frequency"):
        for rank, tensor in ((2, TENSORS[2]),):
            told = subject("super", rank, tensor, 0, unit="row")
            found["roles"].append(role_row(told, role, -STRONG * 100 if role == "sink" else 0.1, 0.4, rng))
    for tensor in TENSORS:
        for number in range(1, 6):
            told = subject("matched_k", 1, tensor, number, unit="row")
            found["roles"] += [role_row(told, role, rng.normal(), 1e-4, rng) for role in ("spike", "sink", "frequency")]
            found["mediations"].append(mediation_row(told, "sink", 1e-4, 0.0, rng))
    found["mediations"].append(mediation_row(subject("super", 2, TENSORS[2], 0, unit="row"), "sink", 0.4, 0.8, rng))
    study = written(tmp_path, **found)
    table = counted(study)
    assert table["roles"].to_list() == [["spike"], ["sink"]]
    assert table["own"].to_list() == [["spike"], []]
    assert table["cost"].to_list() == pytest.approx([1.0, 0.0])
    assert assigned(study).filter(pl.col("role") == "any role")["sets"].to_list() == [1]


def test_goals_are_judged_without_what_sets_hold(tmp_path):
    # twelve weights cost something alone, of which three hold a role; two more do by their row
    inert = {13: 0.0, 14: 0.0}
    found = planted({r: {"sink": 0.9} for r in (1, 2, 3)}, leading=14, costs=inert)
    rng = np.random.default_rng(0)
    for rank in inert:
        told = subject("super", rank, TENSORS[rank], 0, unit="row")
        found["roles"].append(role_row(told, "sink", -STRONG * 100, 0.4, rng))
        found["mediations"].append(mediation_row(told, "sink", 0.4, 0.8, rng))
    for tensor in TENSORS:
        for number in range(1, 6):
            told = subject("matched_k", 1, tensor, number, unit="row")
            found["roles"].append(role_row(told, "sink", rng.normal(), 1e-4, rng))
    study = written(tmp_path, **found)
    row = assigned(study).filter(pl.col("role") == "any role").row(0, named=True)
    assert (row["weights"], row["of"], row["sets"], row["own"], row["own_of"]) == (5, 14, 2, 3, 12)
    assert goal(study, "weights")["estimate"] == pytest.approx(3 / 12)
    assert goal(study, "weights")["evidence"] == "3 of 12; with their sets 5 of 14"
    assert goal(study, "mass")["estimate"] == pytest.approx(sum(1 / r for r in (1, 2, 3)) / sum(
        1 / r for r in range(1, 13)))  # fmt: skip


def test_a_role_that_the_model_lacks_hides_no_damage(tmp_path):
    found = planted({1: {"sink": 0.9}}, roles=("spike", "sink"))
    for row in found["roles"]:
        if row["role"] == "spike":
            row |= {"status": "empty", "delta_nll": None, "change": None, "error": "no spike"}
    study = written(tmp_path, **found)
    assert damages(study).filter(pl.col("rank") <= 2)["cost"].head(2).to_list() == pytest.approx([1.0, 0.5])
    assert held(study) == {(1, "sink")}


def test_a_null_of_few_weights_leaves_goals_open(tmp_path):
    found = planted({1: {"spike": 0.9}}, leading=5, per=1)
    tensors = TENSORS[:4]
    found["roles"] += [r for r in planted({}, leading=0, per=2)["roles"] if r["tensor"] in tensors and r["row"] == 2]
    found["roles"] = [r for r in found["roles"] if r["group"] == "super" or r["tensor"] in tensors]
    study = written(tmp_path, **found)
    assert set(leading(study)["null"].drop_nulls()) == {8}
    goal = {r["goal"]: r for r in role_goals(study).to_dicts()}["weights"]
    assert (goal["status"], goal["why_not"][:27]) == ("open", "8 matched weights are too f")


def test_shares_of_few_weights_that_cost_anything_are_open(tmp_path):
    goals = {r["goal"]: r for r in role_goals(written(tmp_path, **planted({}, leading=4))).to_dicts()}
    assert (goals["weights"]["status"], goals["mass"]["status"]) == ("open", "open")
    assert goals["weights"]["why_not"].startswith("4 leading weights cost more than noise")


def test_damage_that_diverged_is_above_the_noise(tmp_path):
    found = planted({}, leading=3)
    for row in found["roles"]:
        if row["rank"] == 2 and row["group"] == "super":
            row |= {"status": "diverged", "delta_nll": None, "change": None}
    row = damages(written(tmp_path, **found)).filter((pl.col("rank") == 2) & (pl.col("group") == "super"))
    assert (row["cost"][0], row["above_noise"][0]) == (float("inf"), True)


# false roles --------------------------------------------------------------------------------------------------------
def test_matched_weights_get_no_roles_where_the_null_is_right(study):
    rows = {r["role"]: r for r in false_roles(study).to_dicts()}
    assert (rows["any role"]["matched"], rows["any role"]["hurt"], rows["any role"]["false"]) == (100, 100, 0)
    assert rows["spike"]["nominal"] <= 12  # 5% of 100, and three standard errors


def test_a_matched_weight_that_holds_a_role_counts_as_false(tmp_path):
    found = planted(HOLDERS)
    rng = np.random.default_rng(1)
    wrong = next(r for r in found["roles"] if r["group"] == "matched_k" and r["role"] == "spike" and r["row"] == 1)
    wrong["change"] = -1e6 * abs(wrong["change"])
    told = {k: wrong[k] for k in subject("matched_k", 1, TENSORS[0], 1)}
    found["mediations"] = [r for r in found["mediations"] if r["subject"] != wrong["subject"]]
    found["mediations"].append(mediation_row(told, "spike", 0.01, 0.9, rng))
    row = {r["role"]: r for r in false_roles(written(tmp_path, **found)).to_dicts()}["spike"]
    assert (row["necessary"], row["held"], row["false"], row["share"]) == (1, 1, 1, 0.01)


@pytest.mark.parametrize(("cost", "false"), [(0.01, 1), (0.0, 0)])  # of a damage of 0 nothing is mediated
def test_a_matched_weight_that_hurts_counts_as_false_if_its_mediator_was_not_held(tmp_path, cost, false):
    found = planted(HOLDERS)
    row = next(r for r in found["roles"] if r["group"] == "matched_k" and r["role"] == "spike" and r["row"] == 1)
    row["change"] = -1e6 * abs(row["change"])
    row["delta_nll"] = [cost + (1e-3 if i % 2 else -1e-3) for i in range(8)]
    found["mediations"] = [r for r in found["mediations"] if r["subject"] != row["subject"]]
    told = {r["role"]: r for r in false_roles(written(tmp_path, **found)).to_dicts()}["spike"]
    assert (told["necessary"], told["held"], told["false"]) == (1, 0, false)


def no_cost(found, kept):
    """Of matched weights only ``kept`` raise the loss; the loss of the others goes up and down."""
    names = sorted({r["subject"] for r in found["roles"] if r["group"] == "matched_k"})[kept:]
    for row in found["roles"]:
        if row["subject"] in names and row["group"] == "matched_k":
            row["delta_nll"] = [x * (-1) ** i for i, x in enumerate(row["delta_nll"])]
    return found


def goal(study, name):
    return next(r for r in role_goals(study).to_dicts() if r["goal"] == name)


def test_the_false_rate_is_of_matched_weights_that_hurt_and_open_of_few(tmp_path):
    found = no_cost(planted(HOLDERS), 7)
    names = {r["subject"] for r in found["roles"] if r["group"] == "matched_k"}
    row = next(r for r in found["roles"] if r["subject"] == min(names) and r["role"] == "spike")
    row["change"] = -1e6 * abs(row["change"])
    found["mediations"] = [r for r in found["mediations"] if r["subject"] != row["subject"]]
    study = written(tmp_path, **found)
    told = {r["role"]: r for r in false_roles(study).to_dicts()}["any role"]
    assert (told["matched"], told["hurt"], told["false"], told["share"]) == (100, 7, 1, pytest.approx(1 / 7))
    assert goal(study, "false")["status"] == "open"
    assert "7 of 100 matched weights hurt" in goal(study, "false")["why_not"]


@pytest.mark.parametrize(("holders", "kept", "why"), [({}, 100, "no leading weight passes"), (HOLDERS, 0, "0 of 100")])
def test_where_nothing_is_tried_no_false_rate_holds(tmp_path, holders, kept, why):
    study = written(tmp_path, **no_cost(planted(holders), kept))
    assert (goal(study, "false")["status"], goal(study, "false")["estimate"]) == ("open", None)
    assert goal(study, "false")["why_not"].startswith(why)


# stability ----------------------------------------------------------------------------------------------------------
def test_agreement_of_counts_known_by_hand():
    assert jaccard(np.array([[3, 1, 2, 94]])) == pytest.approx(0.5)
    # observed 0.97; expected 0.04·0.05 + 0.96·0.95 = 0.914
    assert kappa(np.array([[3, 1, 2, 94]])) == pytest.approx((0.97 - 0.914) / (1 - 0.914))


def test_roles_that_are_common_and_rare_are_no_agreement(tmp_path):
    # of 40 weights 32 hold spike in either study, in 25.6 by chance alone; nobody holds the other nine roles
    names = ["spike", "sink", "confidence", "frequency", "bigram", "induction", "previous-token", "position",
             "token-specific", "fact"]  # fmt: skip
    spikes = {"pydoc": set(range(1, 33)), "pysource": {*range(1, 27), *range(33, 39)}}
    studies = []
    for n, (name, ranks) in enumerate(spikes.items()):
        made = planted({r: {"spike": 0.9} for r in ranks}, roles=names, noise=n)
        studies.append(written(tmp_path / name, source=name, **made))
    row = role_stability(*studies).row(0, named=True)
    assert (row["pairs"], row["both"], row["only_one"], row["only_other"]) == (400, 26, 6, 6)
    # observed disagreement 12/40; by chance 2 · 0.8 · 0.2
    assert row["kappa"] == pytest.approx(1 - (12 / 40) / 0.32)
    assert row["kappa_low"] < 0 < row["kappa_high"] < 0.7


def test_the_same_roles_by_other_seeds_and_kinds_agree_wholly(tmp_path):
    study = written(tmp_path, seeds=(1, 2), **planted(HOLDERS, seeds=(1, 2), edits=("zero", "sign_flip")))
    table = role_stability(study)
    assert sorted(table["over"]) == ["edit", "edit", "seed", "seed"]
    assert table["kappa"].to_list() == pytest.approx([1.0] * 4)
    assert set(table["of"]) == {"roles"}
    goal = {r["goal"]: r for r in role_goals(study).to_dicts()}["stability"]
    assert (goal["status"], goal["why_not"]) == ("open", "texts weren't compared")


def test_other_roles_by_another_text_disagree(tmp_path):
    studies = [written(tmp_path / name, source=name, **planted(holders, noise=n))
               for n, (name, holders) in enumerate((("pydoc", HOLDERS), ("pysource", {5: {"sink": 0.9}})))]  # fmt: skip
    assert role_stability(studies[0], studies[0]).is_empty()
    row = role_stability(*studies).row(0, named=True)
    assert (row["over"], row["both"], row["only_one"], row["only_other"]) == ("text", 0, 4, 1)
    assert row["jaccard"] == 0
    assert row["kappa_high"] < 0.1
    assert {r["goal"]: r["status"] for r in role_goals(*studies).to_dicts()}["stability"] == "fails"


def test_the_table_has_the_columns_that_are_promised(study):
    promised = {"tensor", "layer", "component", "row", "col", "seed", "role", "change", "p", "q", "mediated",
                "mediated_low", "specific", "holds"}  # fmt: skip
    assert promised <= set(weight_roles(study).columns)
    assert not analysis.load(study.directory).roles.is_empty()
    assert len(mediation(study)) == len(study.mediations)
