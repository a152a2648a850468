"""The search: its ladder and its settling against planted answers, and one on Ray against the whole grid."""

import json
import math

import pytest
from pydantic import ValidationError

import analysis
from esa_ray.engine import search
from esa_ray.engine.search import Candidate
from esa_ray.engine.sweep import run_study
from esa_ray.errors import EsaError
from esa_ray.grid import cells
from esa_ray.spec import ModelSpec, PerturbSpec, ScoreSpec, Search, StudySpec
from tests.measuring import by_one_worker


def made(length, branch="b"):
    return {branch: [Candidate(branch, i, i + 1, "zero", ()) for i in range(length)]}


@pytest.mark.parametrize("answer", [0, 1, 7, 18, 19, None])
@pytest.mark.parametrize("proposed", [[19], [19, 5], [0, 10, 19], list(range(20))])
def test_settling_finds_the_planted_answer_wherever_the_proposals_fell(answer, proposed):
    def damage(place):
        return 2.0 if answer is not None and place >= answer else 0.1

    ladders, known, asked = made(20), {("b", p): damage(p) for p in proposed}, []

    def measure(candidates):
        asked.extend(c.place for c in candidates)
        return [damage(c.place) for c in candidates]

    search.settle(ladders, 1.0, known, measure)
    assert search.smallest("b", 1.0, known) == answer
    assert len(asked) <= 5  # halving, not one by one
    found = search.answer(ladders, 1.0, known)["branches"][0]
    assert found["reached"] == (answer is not None)
    if answer:
        assert found["damage_below"] == 0.1


def test_a_model_that_overflows_is_damaged_enough_and_a_failed_cell_is_no_damage():
    assert search.cost(4, 9, math.nan, 1.0) == 0.5
    rows = [{"status": "ok", "nll": [30.0, 10.0], "tokens": [10, 10]}, {"status": "ok", "nll": [40.0], "tokens": [10]}]
    assert search.mean_damage(rows, 1.0) == pytest.approx((2.0 + 4.0) / 2 - 1.0)
    assert math.isnan(search.mean_damage([*rows, {"status": "diverged"}], 1.0))
    with pytest.raises(EsaError, match="boom"):
        search.mean_damage([{"status": "error", "error": "boom"}], 1.0)


def test_a_ladder_holds_all_seeds_of_each_candidate_from_small_to_large():
    spec = StudySpec(
        name="s", model=ModelSpec(source="m"), topk=(8, 2, 4), seeds=(1, 2), search=Search(damage=1.0),
        perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="scale", strength=0.5)),
    )  # fmt: skip
    ladders = search.ladder(spec)
    assert len(ladders) == 2
    for steps in ladders.values():
        assert [c.k for c in steps] == [2, 4, 8]
        assert all({cell.seed for cell in c.cells} == {1, 2} and len(c.cells) == 2 for c in steps)
    by_strength = spec.replace(
        topk=(3,), search=Search(damage=1.0, smallest="strength"),
        perturbations=tuple(PerturbSpec(kind="gauss_noise", strength=s) for s in (0.5, 0.1)),
    )  # fmt: skip
    (steps,) = search.ladder(by_strength).values()
    assert [c.perturbation for c in steps] == ["gauss_noise-0.1", "gauss_noise-0.5"]
    fewer_bits = by_strength.replace(
        perturbations=tuple(PerturbSpec.parse(p) for p in ("quantize-2", "quantize-8", "quantize-4"))
    )
    assert [c.perturbation for c in next(iter(search.ladder(fewer_bits).values()))] == [
        "quantize-8", "quantize-4", "quantize-2",
    ]  # fmt: skip
    scaled = by_strength.replace(
        perturbations=tuple(PerturbSpec(kind="scale", strength=a) for a in (0.5, 0.9, 1.5, 1.1, -1.0))
    )
    assert [[c.perturbation for c in steps] for steps in search.ladder(scaled).values()] == [
        ["scale-0.9", "scale-0.5", "scale--1"], ["scale-1.1", "scale-1.5"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"topk": (3,)}, "needs a ladder"),
        ({"search": Search(damage=1.0, smallest="strength")}, "zero has no strength"),
        ({"groups": ("random_k",)}, "leave --controls out"),
        ({"early_stop": 0.05}, "over all windows"),
        ({"repeats": 2}, "over all windows"),
    ],
)
def test_a_search_refuses_what_it_would_ignore(changes, words):
    base = {
        "name": "s", "model": ModelSpec(source="m"), "topk": (2, 4), "search": Search(damage=1.0),
        "perturbations": (PerturbSpec(kind="zero"),),
    }  # fmt: skip
    with pytest.raises(ValidationError, match=words):
        StudySpec(**base | changes)


def test_what_changed_no_weight_counts_as_no_damage_in_a_mean_over_seeds():
    nothing = {"status": "ok", "nll": [10.0], "tokens": [10], "n_changed": 0}
    unchangeable = {"status": "empty", "nll": None, "error": "zero can't change any of the 1 weights"}
    ok = {"status": "ok", "nll": [30.0], "tokens": [10], "error": None}
    for none in (nothing, unchangeable):
        assert search.mean_damage([none], 1.0) == 0.0
        assert search.mean_damage([none, ok], 1.0) == pytest.approx((0 + 2.0) / 2)
        assert math.isnan(search.mean_damage([none, {"status": "diverged"}], 1.0))


@pytest.mark.ray
def test_a_search_ends_where_the_whole_grid_says_and_runs_less_of_it(ray_cluster, tiny_study, tmp_path):
    ladder = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128)
    spec = tiny_study.replace(
        scores=(ScoreSpec(mode="global"),), topk=ladder, seeds=(7,), groups=("super",),
        perturbations=(PerturbSpec(kind="scale", strength=-3.0),),
    )  # fmt: skip
    study = analysis.load(by_one_worker(spec, tmp_path / "grid").directory)
    damage = {r["k"]: r["delta_nll"] for r in analysis.effects(study).iter_rows(named=True)}
    target = 0.5 * damage[128]
    assert target > 0
    wanted = Search(damage=target, trials=4)
    done = run_study(spec.replace(search=wanted), tmp_path / "search")
    assert done.complete
    assert done.cells < len(cells(spec))
    found = json.loads((tmp_path / "search" / "search.json").read_text())
    (branch,) = found["branches"]
    assert branch["damage"] == pytest.approx(damage[branch["k"]], rel=1e-9)
    assert branch["damage"] >= target
    below = [k for k in ladder if k < branch["k"]]
    assert not below or damage[below[-1]] < target
    assert branch["damage_below"] is None or branch["damage_below"] == pytest.approx(damage[below[-1]], rel=1e-9)
    assert run_study(spec.replace(search=wanted), tmp_path / "search").computed == 0
    assert analysis.progress(analysis.load(tmp_path / "search"))["missing"] == 0
