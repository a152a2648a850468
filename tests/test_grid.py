import itertools

import pytest

from esa_ray.grid import Fingerprints, cell_id, cells, chunks
from esa_ray.measurements.plan import plan
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec

SCORES = (ScoreSpec(), ScoreSpec(metric="magnitude"))
PERTURBATIONS = (PerturbSpec(kind="zero"), PerturbSpec(kind="sign_flip"), PerturbSpec(kind="bit_flip", bits="sign"))
DATA = DataSpec(calibration_windows=11, evaluation_windows=5)


def study(**changes) -> StudySpec:
    base = {
        "name": "s",
        "model": ModelSpec(source="m"),
        "data": DATA,
        "scores": SCORES,
        "topk": (1, 2, 4),
        "seeds": (5, 6),
        "perturbations": PERTURBATIONS,
        "groups": ("super", "random_k"),
    }
    return StudySpec(**(base | changes))


def test_cells_are_the_whole_product_each_once():
    found = cells(study())
    wanted = set(itertools.product(SCORES, (1, 2, 4), (5, 6), ("super", "random_k"), PERTURBATIONS))
    assert {(c.score, c.k, c.seed, c.group, c.perturbation) for c in found} == wanted
    assert len(found) == len(wanted) == 2 * 3 * 2 * 2 * 3


def test_every_cell_has_its_own_id_and_its_own_label():
    found, resolved = cells(study()), Fingerprints("a", "fp32", "b")
    assert len({cell_id(c, DATA, resolved) for c in found}) == len(found)
    assert len({c.label for c in found}) == len(found)


def test_cells_that_share_a_ranking_stand_together():
    keys = [(c.score, c.seed) for c in cells(study())]
    assert len(list(itertools.groupby(keys))) == len(set(keys)) == 4


def test_zeroing_asked_for_twice_is_one_cell():
    spec = study(perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="zero", strength=None)))
    assert len(cells(spec)) == 2 * 3 * 2 * 2


def test_a_study_without_perturbations_has_no_cells():
    assert cells(study(perturbations=())) == []


@pytest.mark.parametrize(("scores", "gradients"), [(SCORES, True), (SCORES[1:], False)])
def test_the_plan_counts_shared_work_once(scores, gradients):
    found = plan(study(scores=scores))
    n = len(scores) * 3 * 2 * 2 * 3
    backward = 2 * 11 * gradients
    assert (found.cells, found.rankings, found.baselines) == (n, 2 * len(scores), 1)
    assert found.backward_passes == backward
    assert found.forward_passes == backward + (n + 1) * 5


def test_the_plan_knows_which_pass_each_score_needs():
    scores = tuple(ScoreSpec(metric=m) for m in ("act_mag", "hutchinson_abs", "magnitude"))
    found = plan(study(scores=scores, perturbations=(), fidelity=20))
    assert found.backward_passes == 0
    assert found.forward_passes == 2 * 11 + 5
    assert found.double_backward_passes == 2 * 11 * scores[1].probes
    assert found.single_edits == 45


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 100])
def test_chunks_keep_every_item_in_order_and_none_is_too_long_or_empty(size):
    pieces = chunks(list(range(8)), size)
    assert list(itertools.chain(*pieces)) == list(range(8))
    assert {len(p) for p in pieces[:-1]} <= {size}
    assert 1 <= len(pieces[-1]) <= size
    assert chunks([], size) == []


def test_the_depth_of_the_ranking_is_part_of_a_drawn_controls_identity_alone():
    resolved = Fingerprints("m", "fp32", "t")
    ids = []
    for topk in ((1, 2), (1, 50)):
        spec = study(topk=topk, groups=("super", "random_k", "matched_k", "bottom_k"))
        ids.append({c.group: cell_id(c, DATA, resolved) for c in cells(spec) if c.k == 1 and c.seed == 5})
    same = {group for group in ids[0] if ids[0][group] == ids[1][group]}
    assert same == {"super", "bottom_k"}


def test_several_control_sets_are_cells_of_their_own_and_move_no_id_of_the_first():
    groups, resolved = ("super", "random_k", "bottom_k"), Fingerprints("a", "fp32", "b")
    one, three = (cells(study(groups=groups, control_draws=n)) for n in (1, 3))
    ids = [{cell_id(c, DATA, resolved) for c in found} for found in (one, three)]
    assert len(ids[1]) == len(three)
    assert ids[0] < ids[1]
    more = [c for c in three if c.control_draw]
    assert {c.group for c in more} == {"random_k"}
    assert len(more) == 2 * sum(c.group == "random_k" for c in one)
    assert len({c.label for c in three}) == len(three)


@pytest.mark.parametrize("changes", [{"groups": ("super", "bottom_k")}, {"perturbations": ()}])
def test_several_control_sets_need_a_control_that_is_drawn(changes):
    with pytest.raises(ValueError, match="control-draws"):
        study(control_draws=2, **changes)
