"""The diffs of docs/extending.md fit the files that they change, and what they add computes what the page says."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import perturbed
from esa_ray.spec import KINDS, SCORES, Kind, PerturbSpec, Score
from tests.tiny import tiny

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()


def added(path: str) -> dict:
    """What a module holds with the page's diff of it: the context stands in the file, in a row, and at its end."""
    (diff,) = re.findall(rf"```diff\n--- a/{path}\n\+\+\+ b/{path}\n@@\n(.*?)```", PAGE, re.S)
    lines = diff.splitlines()
    context = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    assert (ROOT / path).read_text().endswith(context + "\n")
    module = vars(importlib.import_module(path.removesuffix(".py").replace("/", "."))).copy()
    code = "\n".join(line[1:] for line in lines if line.startswith("+"))
    exec(f"from __future__ import annotations\n{code}", module)
    return module


@pytest.fixture
def clip():
    added("esa_ray/perturb/kinds/plain.py")
    yield
    KINDS.remove("clip")


@pytest.fixture
def fisher_pruning():
    added("esa_ray/scoring/metrics.py")
    yield
    SCORES.remove("fisher_pruning")


@pytest.mark.usefixtures("clip")
def test_the_kind_of_the_page_limits_weights_as_numpy_does():
    model, name = tiny("llama"), "model.layers.0.mlp.down_proj.weight"
    found = catalogue(model)
    old = found[name].flat_weights().double().numpy().copy()
    for label, c, part in (("clip-0.5", 0.5, 1), ("clip", 3, 1), ("progressive-clip-0.5-0.25", 0.5, 0.25)):
        limit = c * old.std()
        with perturbed(found, {name: np.arange(len(old))}, PerturbSpec.parse(label), 0) as applied:
            new = found[name].flat_weights().double().numpy()
            assert new == pytest.approx(old + part * (np.clip(old, -limit, limit) - old), rel=1e-6)
        assert applied.n_changed == (np.abs(old) > limit).sum()
    assert PerturbSpec.parse("clip-4").dose == 0.25


@pytest.mark.usefixtures("fisher_pruning")
def test_the_score_of_the_page_is_its_formula():
    class Known(dict):
        weight, tokens = torch.tensor([2.0, -3.0]), 4

    known = Known(gradient_square=torch.tensor([1.0, 8.0]))
    assert SCORES["fisher_pruning"].at(known).tolist() == [2**2 * 1 / 2 / 4, 3**2 * 8 / 2 / 4]
    assert SCORES["fisher_pruning"].passes == {"backward"}


@pytest.mark.parametrize("base", [Kind, Score])
def test_all_that_an_object_can_say_of_itself_stands_on_the_page(base):
    derived = {"check", "row", "passes", "probed", "data_free", "narrowed", "check_components", "strength_by", "fields"}
    said = set(re.findall(r"`([a-z]+)(?:\([a-z, ]*\))?`", PAGE))
    assert {name for name in (*vars(base), *base.__annotations__) if not name.startswith("_")} - derived <= said
