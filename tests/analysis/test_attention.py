"""What the analysis says of attention under damage, against planted rows."""

import numpy as np
import pytest

from analysis.roles.attention import (
    LEADING,
    MATCHED,
    attention_changes,
    attention_partials,
    intact_attention,
    worst,
)
from analysis.roles.dissociation import dissociation, separable, taken
from tests.analysis.attended import ENTROPY, SINK, SPIKE, rows, study_of, subject


def _only(table):
    (row,) = table.iter_rows(named=True)
    return row


def test_changes_are_means_over_all_heads_and_rates_count_heads_above_the_threshold(tmp_path):
    found = _only(attention_changes(study_of(tmp_path, rows(subject(0, layer=2), sink=0.5, entropy=0.3, cost=0.2))))
    assert found["rate_intact"] == pytest.approx(3 / 4)
    assert found["rate"] == pytest.approx(2 / 4)  # 0.6 and 0.8/2 stay above 0.3, 0.5/2 doesn't
    assert found["d_sink"] == pytest.approx(-(SINK[2] + SINK[3]) / 2 / 4)
    assert found["d_entropy"] == pytest.approx(0.3 * 2 / 4)
    assert (found["delta_nll"], found["delta_z"], found["which"]) == (pytest.approx(0.2), 0.1, LEADING)


def test_what_is_kept_is_of_spikes_and_sinks_that_damage_can_reach(tmp_path):
    what = rows(subject(0, layer=1), sink=[1, 0.1, 0.5, 0.5], spike=[1, 0.2, 0.4, 0.1])
    found = _only(attention_changes(study_of(tmp_path, what)))
    # A down projection of block 1 leaves that block's own patterns; block 3 has no spike.
    assert found["sink_kept"] == pytest.approx(0.5)
    assert found["spike_kept"] == pytest.approx((0.2 + 0.4) / 2)
    assert (found["sinks"], found["spikes"]) == (6, 2)


def test_damage_of_keys_reaches_its_own_blocks_patterns(tmp_path):
    what = rows(subject(0, layer=1, component="k"), sink=[1, 0.1, 1, 1])
    assert _only(attention_changes(study_of(tmp_path, what)))["sink_kept"] == pytest.approx((0.1 + 1 + 1) / 3)


def test_what_one_head_gains_does_not_hide_what_another_loses(tmp_path):
    what = rows(subject(0, layer=1, component="q"), sink=[1, 1.6, 0.4, 0.4], spike=[1, 3.0, 0.5, 1])
    found = _only(attention_changes(study_of(tmp_path, what)))
    assert found["sink_kept"] == pytest.approx((1 + 0.4 + 0.4) / 3)
    assert found["spike_kept"] == pytest.approx((1 + 0.5) / 2)


def test_a_damage_behind_all_sinks_has_nothing_to_keep(tmp_path):
    found = _only(attention_changes(study_of(tmp_path, rows(subject(0, layer=3)))))
    assert (found["sink_kept"], found["spike_kept"]) == (None, None)


def test_a_weight_of_several_seeds_counts_once_and_leads_where_it_leads_at_all(tmp_path):
    both = rows(subject(0, seed=1, group="matched_k")) + rows(subject(0, seed=2)) + rows(subject(0, seed=3))
    found = attention_changes(study_of(tmp_path, both, rows(subject(1, group="matched_k"))))
    assert found.select("subject", "which").rows() == [("1.down[0,0]", LEADING), ("1.down[1,0]", MATCHED)]


def test_what_diverged_or_could_not_be_seen_is_left_out(tmp_path):
    lost = rows(subject(1), cost=float("nan"), status="diverged")
    assert len(attention_changes(study_of(tmp_path, rows(subject(0)), lost))) == 1


def test_the_intact_model_is_told_block_by_block(tmp_path):
    table = intact_attention(study_of(tmp_path, rows(subject(0), sink=0.1, spike=0.1)))
    assert table["rate"].to_list() == [0.0, 1.0, 1.0, 1.0]
    assert table["spike"].to_list() == SPIKE
    assert table["entropy"].to_list() == pytest.approx(ENTROPY)


def _costing(rng, group, by, n=60):
    """Damages whose cost follows the change of the logits, and by ``by`` that of sinks."""
    found = []
    for number in range(n):
        moved, kept = rng.lognormal(), rng.uniform(0.1, 1.0)
        cost = moved * np.exp(by * (1 - kept) + 0.1 * rng.normal())
        what = subject(number, group=group, component="q", layer=1)
        found.append(rows(what, sink=kept, moved=moved, cost=cost, entropy=rng.normal()))
    return found


def test_loss_follows_sinks_of_leading_weights_with_the_change_of_logits_held_fixed(tmp_path):
    rng = np.random.default_rng(0)
    study = study_of(tmp_path, *_costing(rng, "super", by=2.0), *[
        [r | {"subject": f"m{r['subject']}"} for r in damage] for damage in _costing(rng, "matched_k", by=0.0)
    ])  # fmt: skip
    table = {(r["which"], r["change"]): r for r in attention_partials(study).iter_rows(named=True)}
    sink = table[LEADING, "d_sink"]
    assert sink["n"] == 60
    assert sink["high"] < -0.7  # attention that is lost costs
    assert sink["rho"] > sink["partial"] + 0.2  # which the size of the change hid
    for which, change in ((MATCHED, "d_sink"), (LEADING, "d_entropy"), (MATCHED, "d_entropy")):
        r = table[which, change]
        assert r["low"] < 0 < r["high"], (which, change)


def test_a_change_that_never_varies_has_no_correlation(tmp_path):
    study = study_of(tmp_path, *_costing(np.random.default_rng(1), "super", by=0.0, n=12))
    (row,) = attention_partials(study).filter(change="d_previous").iter_rows(named=True)
    assert (row["rho"], row["partial"], row["low"]) == (None, None, None)


def _q(number, group="super"):
    return subject(number, group=group, component="q", layer=1)


def test_a_double_dissociation_is_counted_both_ways(tmp_path):
    study = study_of(
        tmp_path, rows(_q(0), spike=0.1, sink=0.95), rows(_q(1), sink=0.2), rows(_q(2), spike=0.3, sink=0.3),
        rows(_q(3)), rows(_q(4), spike=0.7), *[rows(_q(n, "matched_k")) for n in range(5, 10)],
    )  # fmt: skip
    table = dissociation(study)
    lead = {r["outcome"]: r for r in table.filter(which=LEADING).iter_rows(named=True)}
    strict = ("spike", "sink", "both", "neither", "between")
    assert {name: lead[name]["count"] for name in strict} == dict.fromkeys(strict, 1)
    assert lead["spike"]["best"] == "1.q[0,0]"
    # Clopper and Pearson of 1 in 5: 1 − 0.975^(1/5), and the other end by their tables.
    assert lead["spike"]["low"] == pytest.approx(1 - 0.975 ** (1 / 5))
    assert lead["spike"]["high"] == pytest.approx(0.7164, abs=1e-4)
    assert table.filter(which=MATCHED, outcome="neither")["count"].to_list() == [5]
    assert separable(table) == "both ways"


def test_by_degrees_a_weight_takes_more_than_matched_ones_and_five_times_the_share_of_the_other(tmp_path):
    study = study_of(
        tmp_path, rows(_q(0), spike=0.7, sink=0.99), rows(_q(1), spike=0.99, sink=0.9),
        rows(_q(2), spike=0.7, sink=0.9), rows(_q(3), spike=0.975), rows(_q(4), sink=0.99),
        *[rows(_q(20 + n, "matched_k"), spike=1 - 0.001 * n, sink=1 - 0.002 * n) for n in range(21)],
    )  # fmt: skip
    # 95% of matched weights take at most 1.9% of spikes and 3.8% of sinks.
    told = dict(taken(study).filter(which=LEADING).select("subject", "mainly").iter_rows())
    assert told == {
        "1.q[0,0]": "mainly-spike", "1.q[1,0]": "mainly-sink", "1.q[2,0]": None, "1.q[3,0]": "mainly-spike",
        "1.q[4,0]": None,
    }  # fmt: skip
    counts = {r["outcome"]: r["count"] for r in dissociation(study).filter(which=LEADING).iter_rows(named=True)}
    assert (counts["mainly-spike"], counts["mainly-sink"]) == (2, 1)


def test_by_degrees_less_than_a_hundredth_is_nothing_even_where_matched_weights_take_none(tmp_path):
    study = study_of(tmp_path, rows(_q(0), spike=0.995), rows(_q(1), spike=0.98), rows(_q(2, "matched_k")))
    assert taken(study).filter(which=LEADING)["mainly"].to_list() == [None, "mainly-spike"]


def test_without_matched_weights_nothing_is_told_by_degrees(tmp_path):
    assert taken(study_of(tmp_path, rows(_q(0), spike=0.1)))["mainly"].to_list() == [None]


@pytest.mark.parametrize(("spike", "sink", "said"), [
    (0.1, 1.0, "spikes alone"), (1.0, 0.1, "sinks alone"), (0.1, 0.1, "not seen"), (1.0, 1.0, "not seen"),
])  # fmt: skip
def test_one_way_is_no_double_dissociation(tmp_path, spike, sink, said):
    assert separable(dissociation(study_of(tmp_path, rows(_q(0), spike=spike, sink=sink)))) == said


def test_matched_weights_show_no_dissociation_of_leading_ones(tmp_path):
    study = study_of(tmp_path, rows(_q(0, "matched_k"), spike=0.1), rows(_q(1, "matched_k"), sink=0.1))
    assert separable(dissociation(study)) == "untested"


def test_weights_that_can_reach_only_one_of_both_are_not_counted(tmp_path):
    study = study_of(tmp_path, rows(_q(0)), rows(subject(1, layer=3, component="q")))
    assert taken(study)["subject"].to_list() == ["1.q[0,0]"]  # behind block 2 there are no spikes


def test_the_worst_is_the_leading_weight_that_costs_most_under_the_first_damage(tmp_path):
    study = study_of(
        tmp_path, rows(subject(0), cost=0.5), rows(subject(1), cost=1.0), rows(subject(2, group="matched_k"), cost=2.0),
        rows(subject(3, edit="sign_flip"), cost=3.0),
    )  # fmt: skip
    assert _only(worst(study))["subject"] == "1.down[1,0]"
