"""What a study of roles damages: leading weights by rank, at most so many matched ones a tensor, sets once."""

import pytest
from pydantic import ValidationError

from esa_ray.interpret.subjects import Subject, expected, subjects
from esa_ray.schema import TABLES
from esa_ray.spec import PerturbSpec, StudySpec, WeightList, WeightName
from esa_ray.storage.store import Store
from tests.interpret.ranked import DOWN, UP, ranked, study, weight


def matched(tensor, n, draws=1):
    return [
        weight("matched_k", rank, tensor, row=10 + draw, col=rank, draw=draw)
        for draw in range(draws)
        for rank in range(1, n + 1)
    ]


def supers(tensor, n, first=1):
    return [weight("super", rank, tensor, row=1, col=rank, score=1 / rank) for rank in range(first, first + n)]


def test_leading_weights_come_by_rank_with_the_columns_that_rows_have(tmp_path):
    spec = study(k=2)
    rows = [*reversed(supers(DOWN, 2)), weight("random_k", 1, row=9), *matched(DOWN, 1)]
    first, second, null = subjects(spec, ranked(tmp_path, spec, rows))
    assert [(s.rank, s.col, s.score, s.group) for s in (first, second)] == [(1, 1, 1.0, "super"), (2, 2, 0.5, "super")]
    assert (null.group, null.draw, null.score) == ("matched_k", 0, None)
    told = first.columns()
    assert told["subject"] == "model.layers.0.mlp.down_proj-1-1"
    assert (told["edit"], told["metric"], told["seed"]) == ("zero", "grad_x_weight_abs", 7)
    assert told.keys() <= {*TABLES["roles"].names} & {*TABLES["mediations"].names} & {*TABLES["attention"].names}


def test_a_ranking_that_is_deeper_than_the_study_gives_its_first_ranks_alone(tmp_path):
    spec = study(k=2)
    assert len(subjects(spec, ranked(tmp_path, spec, supers(DOWN, 5)))) == 2


def test_without_a_ranking_nothing_is_known_to_be_damaged(tmp_path):
    assert subjects(study(), Store(tmp_path)) == []


def test_the_null_of_each_tensor_is_spread_over_the_ranks_of_its_leading_weights(tmp_path):
    spec = study(k=12, null_weights=5)
    rows = [*supers(DOWN, 10), *supers(UP, 2, 11), *matched(DOWN, 10), *matched(UP, 2)]
    null = [s for s in subjects(spec, ranked(tmp_path, spec, rows)) if s.group == "matched_k"]
    assert [s.rank for s in null if s.tensor == DOWN] == [1, 3, 5, 7, 9]
    assert [s.rank for s in null if s.tensor == UP] == [1, 2]  # there are no more


def test_a_tensor_with_one_leading_weight_has_a_null_of_further_draws(tmp_path):
    spec = study(k=1, null_weights=3, draws=5)
    store = ranked(tmp_path, spec, [*supers(DOWN, 1), *matched(DOWN, 1, draws=5)])
    assert [(s.draw, s.rank) for s in subjects(spec, store) if s.group == "matched_k"] == [(0, 1), (1, 1), (2, 1)]


def test_a_weight_that_two_draws_have_in_common_is_damaged_once(tmp_path):
    spec = study(k=1, null_weights=3, draws=3)
    rows = [*supers(DOWN, 1), *(weight("matched_k", 1, row=4, col=4, draw=draw) for draw in range(3))]
    assert len(subjects(spec, ranked(tmp_path, spec, rows))) == 2


def test_weights_of_one_row_have_one_set_and_no_set_of_theirs_is_in_the_null(tmp_path):
    spec = study(k=2, sets=("row", "neuron"))
    rows = [
        *supers(DOWN, 2),
        weight("matched_k", 1, row=1, col=8, draw=0),
        weight("matched_k", 2, row=6, col=2, draw=0),
    ]
    found = subjects(spec, ranked(tmp_path, spec, rows))
    sets = [(s.unit, s.group, s.row, s.col) for s in found if s.unit != "weight"]
    assert sets == [
        ("row", "super", 1, 1),  # both leading weights and the first matched one are of row 1
        ("row", "matched_k", 6, 2),
        ("neuron", "super", 1, 1), ("neuron", "super", 1, 2),  # of a down-projection a neuron is a column
        ("neuron", "matched_k", 1, 8),
    ]  # fmt: skip
    assert all(s.weight is None and s.score is None for s in found if s.unit != "weight")


def test_every_edit_repeats_all_subjects_under_names_of_their_own(tmp_path):
    spec = study(k=2, edits=("zero", "scale-0.8"), seeds=(7, 8))
    ranked(tmp_path, spec, supers(DOWN, 2))
    found = subjects(spec, ranked(tmp_path, spec, supers(DOWN, 2), seed=8))
    assert [s.edit.label for s in found] == ["zero"] * 4 + ["scale-0.8"] * 4
    assert len({s.label for s in found}) == len(found) == 8


def test_given_weights_lead_by_their_place_in_the_list(tmp_path):
    given = WeightList(name="two", weights=(WeightName(tensor="a", row=1, col=2), WeightName(tensor="a", row=3, col=4)))
    spec = study(k=1).replace(scores=(), lists=(given,))
    places = (("listed", 1, 1, 2), ("listed", 2, 3, 4), ("matched_k", 2, 9, 0))
    rows = [weight(g, n, row=row, col=col, draw=0, metric="listed") for g, n, row, col in places]
    store = Store(tmp_path)
    store.write("rankings", "listed-two-s7", [dict.fromkeys(TABLES["rankings"].names) | row for row in rows])
    found = subjects(spec, store)
    assert [(s.group, s.rank, s.metric) for s in found] == [
        ("super", 1, "listed"), ("super", 2, "listed"), ("matched_k", 2, "listed")
    ]  # fmt: skip


def test_there_are_never_more_subjects_than_a_plan_says(tmp_path):
    spec = study(k=3, null_weights=2, draws=2, edits=("zero", "sign_flip"), sets=("row",))
    rows = [*supers(DOWN, 3), *matched(DOWN, 3, draws=2)]
    assert len(subjects(spec, ranked(tmp_path, spec, rows))) <= expected(spec) == (3 + 6) * 2 * 2


def test_how_a_weight_was_chosen_changes_nothing_of_what_its_damage_does():
    one = Subject(group="super", rank=1, tensor="t", component="q", row=1, col=2, seed=3, score=0.5, metric="a")
    other = one.model_copy(update={"group": "matched_k", "rank": 9, "draw": 2, "score": None, "metric": "b"})
    assert one.content() == other.content()
    assert one.content() != one.model_copy(update={"edit": PerturbSpec(kind="sign_flip")}).content()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"groups": ("super",), "control_draws": 1}, "against matched_k"),
        ({"scores": ()}, "--metric is empty"),
        ({"topk": (1, 2)}, "of one score, or of one list"),
        ({"scores": ({"metric": "magnitude"},)}, "by --mode global"),
        ({"data": {"evaluation_windows": 4}}, "raise --eval-windows"),
        ({"roles": {"edits": ("gradient_aligned",)}}, "needs the gradient of each weight"),
        ({"roles": {"edits": ("adaptive-score",)}}, "needs a score of each weight"),
        ({"roles": {"edits": ("zro",)}}, "'zro' is not one of"),
    ],
)
def test_roles_that_no_study_can_test_are_refused(changes, told):
    with pytest.raises(ValidationError, match=told):
        StudySpec.model_validate(study().model_dump() | changes)
