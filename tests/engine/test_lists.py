"""A list of weights that another study found, damaged in another model."""

from safetensors.torch import load_file, save_file

import analysis
from esa_ray.spec import ModelSpec, PerturbSpec
from esa_ray.storage.store import Store
from esa_ray.weights import read_weights
from tests.engine.conftest import save_model
from tests.measuring import by_one_worker


def test_one_models_super_weights_are_damaged_in_another_of_its_shape(tiny_study, tmp_path):
    one = tiny_study.replace(
        topk=(4,), seeds=(7, 8), perturbations=(PerturbSpec(kind="zero"),), groups=("super", "random_k")
    )
    by_one_worker(one, tmp_path / "one")
    other_model = save_model(tmp_path / "tuned")
    weights = load_file(f"{other_model}/model.safetensors")
    tuned = {name: w * (1.01 if "down_proj" in name else 1.0) for name, w in weights.items()}
    save_file(tuned, f"{other_model}/model.safetensors", metadata={"format": "pt"})
    given = read_weights(tmp_path / "one")
    two = by_one_worker(one.replace(model=ModelSpec(source=other_model), lists=(given,)), tmp_path / "two")
    (row,) = analysis.transfer(analysis.load(tmp_path / "two")).iter_rows(named=True)
    assert (row["list"], row["k"], row["own_n_weights"]) == ("one", 8, 8)
    # The models are all but the same, and so are their sets; the list is the first seed's.
    assert row["jaccard_high"] > 0.5
    assert row["listed"] != 0
    supers = {
        (r["tensor"], r["flat"])
        for r in Store(tmp_path / "one").read("rankings", "grad_x_weight-per_layer-s7").to_pylist()
        if r["group"] == "super" and r["rank"] <= 4
    }
    listed = two.read("rankings", "listed-one-s8").to_pylist()
    assert {(r["tensor"], r["flat"]) for r in listed if r["group"] == "listed"} == supers
