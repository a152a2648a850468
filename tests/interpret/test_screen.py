"""The screen: what stands out of the null by its tensor, raises the loss, and the matched weights held beside it."""

import numpy as np
import pytest

from esa_ray.interpret.screen import SPECIFICITY, screened
from esa_ray.interpret.subjects import subjects
from esa_ray.schema import TABLES
from tests.interpret.ranked import DOWN, UP, ranked, study, weight

HURT, IDLE = [0.3, 0.4, 0.5, 0.4], [0.4, -0.4, 0.3, -0.3]


@pytest.fixture
def planted(tmp_path):
    """A study with 40 matched weights, half in each tensor, whose changes are planted, and leading ones given."""

    def of(changes, role="position", losses=None, scale=(1.0, 1.0), null=20, hurting=None, **roles):
        leading = [weight("super", i + 1, tensor, row=1, col=i) for i, (tensor, _) in enumerate(changes)]
        rng = np.random.default_rng(0)
        rows = [
            weight("matched_k", i + 1, tensor, row=2, col=i, draw=0) for tensor in (DOWN, UP) for i in range(null)
        ]  # fmt: skip
        spec = study(k=100, null_weights=max(1, null), **roles)
        store = ranked(tmp_path, spec, [*leading, *rows])
        sizes = {DOWN: scale[0], UP: scale[1]}
        for subject in subjects(spec, store):
            matched = subject.group == "matched_k"
            mine = sizes[subject.tensor] * np.exp(rng.normal()) if matched else changes[subject.rank - 1][1]
            row = {"role": role, "status": "ok", "change": mine, "delta_nll": HURT}
            if losses and not matched:
                row["delta_nll"] = losses[subject.rank - 1]
            if matched and hurting is not None:
                row["delta_nll"] = HURT if (subject.tensor, subject.rank) in hurting else IDLE
            full = dict.fromkeys(TABLES["roles"].names) | subject.columns() | row | {"role_id": subject.label}
            store.write("roles", subject.label, [full])
        return spec, store

    return of


def of_group(found, group):
    return [(subject.rank, subject.edit.label) for subject, _ in found if subject.group == group]


def test_leading_weights_pass_by_how_far_they_exceed_the_null(planted):
    found = screened(*planted([(DOWN, 1.0), (DOWN, -40.0), (UP, 20.0)]))
    assert of_group(found, "super") == [(2, "zero"), (3, "zero")]
    assert {role for _, role in found} == {"position"}


def test_a_change_of_the_sign_that_the_role_cannot_have_does_not_pass(planted):
    found = screened(*planted([(DOWN, 50.0), (DOWN, -50.0)], role="sink"))
    assert of_group(found, "super") == [(2, "zero")]


def test_a_change_counts_by_what_the_null_of_its_own_tensor_has(planted):
    found = screened(*planted([(DOWN, 30.0), (UP, 30.0)], scale=(1.0, 30.0)))
    assert of_group(found, "super") == [(1, "zero")]


def test_what_raises_no_loss_has_none_to_undo(planted):
    found = screened(*planted([(DOWN, 50.0), (DOWN, 50.0)], losses=[IDLE, HURT]))
    assert of_group(found, "super") == [(2, "zero")]


def test_a_few_matched_weights_of_the_same_tensors_are_held_too(planted):
    found = screened(*planted([(UP, 50.0)]))
    null = [subject for subject, _ in found if subject.group == "matched_k"]
    assert len(null) == SPECIFICITY
    assert {subject.tensor for subject in null} == {UP}


def test_of_matched_weights_those_that_hurt_are_held_first_those_of_the_same_tensors_before_others(planted):
    hurting = {(UP, 3), (UP, 17), (DOWN, 4)}
    found = screened(*planted([(UP, 50.0)], hurting=hurting))
    null = [(subject.tensor, subject.rank) for subject, _ in found if subject.group == "matched_k"]
    assert null[:3] == [(UP, 3), (UP, 17), (DOWN, 4)]
    assert len(null) == SPECIFICITY
    assert {tensor for tensor, _ in null[3:]} == {UP}


def test_where_nothing_passes_nothing_is_held(planted):
    assert screened(*planted([(DOWN, 1.0)])) == []


def test_without_a_null_nothing_is_screened(planted):
    assert screened(*planted([(DOWN, 50.0)], null=0)) == []


def test_kinds_of_damage_are_screened_apart(planted):
    found = screened(*planted([(DOWN, 50.0)], edits=("zero", "sign_flip")))
    assert sorted(of_group(found, "super")) == [(1, "sign_flip-1"), (1, "zero")]


def test_five_percent_of_matched_weights_would_pass_as_leading_ones(planted):
    rng = np.random.default_rng(1)
    spec, store = planted([(DOWN, float(np.exp(rng.normal()))) for _ in range(80)], null=60)
    assert len(of_group(screened(spec, store), "super")) <= 0.15 * 80  # mean 5%, of 80 above 12 once in 1,000


def test_a_null_that_changes_nothing_at_all_lets_a_change_pass_and_no_change_not(planted):
    found = screened(*planted([(DOWN, 0.2), (DOWN, 0.0)], scale=(0.0, 0.0)))
    assert of_group(found, "super") == [(1, "zero")]
