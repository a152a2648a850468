"""A kind of damage and a score that no file of the package knows: registered here, run, and gone afterwards."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from analysis.names import label as printed
from esa_ray import cli
from esa_ray.cli.parsing import perturbations
from esa_ray.errors import EsaError
from esa_ray.grid import Cell, cell_id, cells
from esa_ray.measurements.plan import plan
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.spec import (
    DATA_FREE,
    KINDS,
    PROBED,
    RANDOM_KINDS,
    SCALED,
    SCORES,
    Kind,
    ModelSpec,
    PerturbSpec,
    Score,
    ScoreSpec,
    StudySpec,
    direction,
    dose,
    draws,
    has_magnitude,
    is_data_free,
)
from tests.measuring import measure, run
from tests.tiny import state_bits

ROOT = Path(__file__).parents[2]


class Halve(Kind):
    """w → w/2, n times over."""

    name, default = "halve", 1.0
    formula, strengths = "w → w/2ⁿ", "n > 0"
    unchangeable = "every one is 0"

    def dose(self, strength):
        return 1 - 2**-strength

    def step(self, spec):
        return self.dose(spec.amount)

    def fixed(self, target, spec):
        return target.values == 0

    def apply(self, target, spec):
        return target.made(target.old * 2**-spec.amount)


class WeightTimesGradientNorm(Score):
    """|w|·√Σ_n g_n²."""

    name, needs = "weight_gradient", ("gradient_square",)
    formula, unit = "|w|·‖g‖", "nats"

    def at(self, places):
        return places.weight.abs() * places["gradient_square"].sqrt()


@pytest.fixture
def extended():
    KINDS.add(Halve)
    SCORES.add(WeightTimesGradientNorm)
    yield
    KINDS.remove("halve")
    SCORES.remove("weight_gradient")


def _gradient_norms(model, windows) -> dict[str, np.ndarray]:
    """√Σ_n g_n² of every matrix of the blocks, by autograd, a window at a time in float64."""
    squares = {}
    for window in torch.as_tensor(windows):
        model.zero_grad()
        cross_entropy(model(window[None]).logits[0, :-1], window[1:], reduction="sum").backward()
        for name, p in model.named_parameters():
            if ".layers." in name and p.dim() == 2:
                squares[name] = squares.get(name, 0) + p.grad.double().numpy() ** 2
    return {name: np.sqrt(square) for name, square in squares.items()}


@pytest.mark.usefixtures("extended")
def test_a_kind_and_a_score_from_outside_choose_and_damage_as_their_formulas_say(tiny_study, tmp_path):
    spec = tiny_study.replace(
        scores=(ScoreSpec(metric="weight_gradient"), ScoreSpec(metric="weight_gradient+magnitude")), topk=(3,),
        seeds=(7,), groups=("super",),
        perturbations=(PerturbSpec(kind="halve"), PerturbSpec.parse("progressive-halve-2-0.5")),
    )  # fmt: skip
    worker = Worker(spec, find(spec.model), str(tmp_path))
    before = state_bits(worker.model)
    measure(worker, "rankings", 7)
    rows = {cell.perturbation.label: run_one(worker, cell) for cell in cells(spec)[:2]}
    assert state_bits(worker.model) == before

    twin = Worker(spec, find(spec.model), str(tmp_path / "twin")).model.double().requires_grad_(True)
    parameters = dict(twin.named_parameters())
    norms = _gradient_norms(twin, worker.windows.calibration(7))
    wanted = {n: np.abs(parameters[n].detach().numpy()) * norm for n, norm in norms.items()}
    ranking = worker.store.read("rankings", "weight_gradient-per_layer-s7").to_pylist()
    assert len(ranking) == 2 * 3
    for row in ranking:
        mine = np.concatenate([w.ravel() for n, w in wanted.items() if f".layers.{row['layer']}." in n])
        assert row["score"] == pytest.approx(wanted[row["tensor"]][row["row"], row["col"]], rel=1e-4)
        assert row["score"] == pytest.approx(np.sort(mine)[-row["rank"]], rel=1e-4)

    for label, left in (("halve-1", 0.5), ("progressive-halve-2-0.5", 1 - 0.5 * 0.75)):
        with torch.no_grad():
            old = [float(parameters[r["tensor"]][r["row"], r["col"]]) for r in ranking]
            for r, w in zip(ranking, old, strict=True):
                parameters[r["tensor"]][r["row"], r["col"]] = left * w
            for got, window in zip(rows[label]["nll"], torch.as_tensor(worker.windows.evaluation), strict=True):
                nll = cross_entropy(twin(window[None]).logits[0, :-1], window[1:], reduction="sum")
                assert got == pytest.approx(float(nll), rel=1e-5)
            for r, w in zip(ranking, old, strict=True):
                parameters[r["tensor"]][r["row"], r["col"]] = w
        assert rows[label]["delta_norm"] == pytest.approx((1 - left) * math.hypot(*old), rel=1e-6)
        assert (rows[label]["status"], rows[label]["n_changed"]) == ("ok", 6)


def run_one(worker, cell):
    run(worker, cell)
    name = f"{cell.label}-{cell_id(cell, worker.spec.data, worker.resolved)}"
    return worker.store.read("cells", name).to_pylist()[0]


@pytest.mark.usefixtures("extended")
def test_a_kind_from_outside_that_can_change_nothing_says_so(tiny_study, tmp_path):
    with pytest.raises(ValueError, match=r"halve-1e-09 can never change a weight"):
        PerturbSpec(kind="halve", strength=1e-9)
    spec = tiny_study.replace(
        perturbations=(PerturbSpec(kind="halve"),), scores=(ScoreSpec(metric="magnitude"),), groups=("super",)
    )
    worker = Worker(spec, find(spec.model), str(tmp_path))
    with torch.no_grad():
        for parameter in worker.model.model.layers.parameters():
            parameter.zero_()
    measure(worker, "rankings", 7)
    row = run_one(worker, cells(spec)[0])
    assert row["status"] == "empty"
    assert row["error"] == "halve-1 can't change any of the 6 weights, as every one is 0"


@pytest.mark.usefixtures("extended")
def test_labels_of_a_kind_from_outside_read_back_and_reports_print_what_the_command_line_takes():
    for spec in (PerturbSpec(kind="halve"), PerturbSpec(kind="halve", strength=3.5)):
        assert PerturbSpec.parse(spec.label) == spec
        row = Cell(score=ScoreSpec(metric="weight_gradient"), k=1, seed=1, group="super", perturbation=spec).columns
        assert perturbations(printed(row), None, None, None, None) == [spec]
    assert [p.label for p in perturbations("halve,zero", "1,2", None, None, None)] == ["halve-1", "halve-2", "zero"]
    assert PerturbSpec(kind="halve", strength=2).dose == 0.75
    with pytest.raises(EsaError, match=r"--perturb halve--1: strength must be above 0, not -1"):
        perturbations("halve--1", None, None, None, None)


@pytest.mark.usefixtures("extended")
def test_the_command_line_plans_with_them(monkeypatch, capsys):
    line = "esa run --model m --metric weight_gradient,magnitude+weight_gradient --perturb halve --perturb-scale 1,2"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--max-samples", "10", "--plan"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    facts = {text[:18].strip(): text[18:] for text in capsys.readouterr().out.splitlines()}
    assert (facts["cells"], facts["backward passes"]) == ("4", "10")
    assert facts["scores"] == "weight_gradient per_layer, magnitude+weight_gradient per_layer"  # built-in ones first
    free = StudySpec(name="x", model=ModelSpec(source="m"), scores=(ScoreSpec(metric="magnitude"),))
    assert plan(free).backward_passes == 0


def test_what_is_derived_of_kinds_and_scores_knows_of_others_while_they_are_there(extended):
    assert "halve" in SCALED
    assert not {"halve"} & RANDOM_KINDS
    assert not {"weight_gradient"} & (DATA_FREE | PROBED)

    class Rough(Halve):
        name, random, option = "rough", True, None

    class Peculiar(WeightTimesGradientNorm):
        name, needs, magnitude = "peculiar", ("curvature",), False

    KINDS.add(Rough)
    SCORES.add(Peculiar)
    try:
        assert ("rough" in RANDOM_KINDS, "rough" in SCALED) == (True, False)
        assert PerturbSpec.parse("progressive-rough-1-0.5").random
        assert ScoreSpec(metric="peculiar").probes == 8
        assert ({"peculiar"} & PROBED, has_magnitude("peculiar")) == ({"peculiar"}, False)
    finally:
        KINDS.remove("rough")
        SCORES.remove("peculiar")
    assert "rough" not in RANDOM_KINDS
    assert has_magnitude("peculiar"), "of a score that isn't known here nothing is known against it"


def test_a_name_belongs_to_one_class_and_can_stand_in_a_label(extended):
    assert KINDS.add(Halve) is Halve  # the same again
    for registry, base, taken in ((KINDS, Halve, "zero"), (SCORES, WeightTimesGradientNorm, "magnitude")):
        known = registry[taken]
        with pytest.raises(ValueError, match=f"{taken} is registered already, by esa_ray"):
            registry.add(type("Other", (base,), {"name": taken}))
        assert registry[taken] is known
        for name in ("Halve", "a-b", "a+b", "a,b", "2x", "", None):
            with pytest.raises(ValueError, match="lower-case letters"):
                registry.add(type("Odd", (base,), {"name": name}))


def test_a_process_without_what_a_study_was_run_with_says_so_and_still_reports_its_rows():
    with pytest.raises(EsaError, match="no kind 'halve' is known here; install the package that adds it") as caught:
        KINDS["halve"]
    assert isinstance(caught.value, KeyError)
    row = {"perturbation": "halve", "strength": 0.5, "variant": "row"}
    assert printed(row) == "halve-row-0.5"
    assert (dose("halve", 0.5), direction("halve", 0.5), draws("halve")) == (0.5, None, False)
    assert (has_magnitude("weight_gradient"), is_data_free("weight_gradient")) == (True, False)


@pytest.mark.parametrize(
    ("registry", "base", "wrong", "sentence"),
    [
        (KINDS, Halve, {"variants": {"colour": ("red",)}}, "colour is not one of the variants bits, relative_to"),
        (KINDS, Halve, {"default": -1.0}, "its default: strength must be above 0, not -1.0"),
        (SCORES, WeightTimesGradientNorm, {"needs": ("luck",)}, "luck is not one of the statistics gradient"),
    ],
)
def test_a_definition_that_can_not_work_is_refused_when_it_is_registered(registry, base, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        registry.add(type("Wrong", (base,), {"name": "wrong", **wrong}))
    assert "wrong" not in registry


def _python(code: str, *paths: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.parametrize("first", ["esa_ray.perturb.kinds.noise", "esa_ray.scoring.metrics", "esa_ray.spec.metrics"])
def test_built_in_kinds_and_scores_stand_in_one_order_whatever_is_imported_first(first):
    done = _python(f"import {first}; from esa_ray.spec import KINDS, SCORES; print([*KINDS], [*SCORES])")
    assert done.stdout.strip() == f"{[*KINDS]} {[*SCORES]}", done.stderr


EXTENSION = """
from esa_ray.spec import KINDS, Kind
@KINDS.add
class Third(Kind):
    name, formula = "third", "w → w/3"
    def apply(self, target, spec):
        return target.made(target.old / 3)
"""


@pytest.mark.parametrize(
    ("module", "code", "words"),
    [(EXTENSION, 0, "cells             1\n"), ("import missing_entirely", 2, "thirds (thirds) fails: No module named")],
)
def test_an_installed_package_is_found_by_its_entry_point_in_any_process(tmp_path, module, code, words):
    (tmp_path / "thirds.py").write_text(module)
    (tmp_path / "thirds-1.dist-info").mkdir()
    (tmp_path / "thirds-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: thirds\nVersion: 1\n")
    (tmp_path / "thirds-1.dist-info" / "entry_points.txt").write_text("[esa_ray]\nthirds = thirds\n")
    line = ["esa", "run", "--model", "m", "--perturb", "third", "--plan"]
    done = _python(f"import sys; from esa_ray import cli; sys.argv = {line}; cli.main()", tmp_path)
    assert done.returncode == code, done.stderr
    assert words in (done.stdout if code == 0 else done.stderr)
    assert done.stderr.count("\n") == (code == 2)
