"""Compressed models taken home."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from esa_ray.applications import saving
from esa_ray.applications.compress import compressed
from esa_ray.applications.records import Calibration, of_compressed
from esa_ray.applications.saving import STALE, save
from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.models.edited import origin
from esa_ray.models.load import load_model
from esa_ray.models.sources import find
from esa_ray.spec import ModelSpec
from esa_ray.spec.compression import PruneSpec, QuantizeSpec
from tests.tiny import byte_tokenizer, random_windows, summed_nll, tiny

CAL, EVAL = random_windows(4, seed=1), random_windows(3, seed=2)
SPEC = PruneSpec(sparsity=0.5, update="refit")
MADE_BY = Calibration("notes.txt", "f" * 64, *CAL.shape)


@pytest.fixture
def parent(tmp_path, request):
    directory = tmp_path / "parent"
    tiny(getattr(request, "param", "llama")).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return find(ModelSpec(source=str(directory)))


def saved(parent, target, spec=SPEC, seed=5):
    """The fingerprint of what was saved, and the loss of the model that was."""
    model = load_model(parent, "fp32", "cpu")
    with compressed(model, catalogue(model), CAL, spec, seed) as found:
        return save(model, parent, of_compressed(parent, found, spec, seed, MADE_BY), target), evaluate(model, EVAL).nll


@pytest.mark.parametrize("parent", ["llama", "gpt2", "mixtral", "phi3"], indirect=True)
@pytest.mark.parametrize("spec", [SPEC, QuantizeSpec(bits=3, kept=0.01)])
def test_plain_transformers_and_esa_load_it_with_the_same_loss(parent, tmp_path, spec):
    print_of_it, nll = saved(parent, tmp_path / "home", spec)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "home").eval()
    plain.requires_grad_(False)
    assert [float(summed_nll(plain, w)) for w in EVAL] == pytest.approx(nll, abs=1e-4)
    found = find(ModelSpec(source=str(tmp_path / "home")))
    assert found.fingerprint == print_of_it
    assert evaluate(load_model(found, "fp32", "cpu"), EVAL).nll == nll
    words = AutoTokenizer.from_pretrained(tmp_path / "home")("some text").input_ids
    assert words == byte_tokenizer()("some text").input_ids


def test_what_it_was_made_of_stands_beside_it(parent, tmp_path):
    saved(parent, tmp_path / "home")
    record = json.loads((tmp_path / "home" / "esa_edit.json").read_text())
    assert record["parent"] == {"name": "parent", "fingerprint": parent.fingerprint}
    assert record["edit"] == SPEC.content()
    assert record["seed"] == 5
    assert record["calibration"] == {
        "text": "notes.txt", "fingerprint": "f" * 64, "windows": 4, "tokens": CAL.shape[1], "spared": None, "seed": 5,
    }  # fmt: skip
    whole = {"kind": "prune", "score": "act_mag", "group": "row", "pattern": "unstructured", "sparsity": 0.5,
             "allocation": "uniform", "update": "refit", "damping": 0.01, "sequential": True,
             "components": ["attention", "gate", "up", "down"]}  # fmt: skip
    assert record["compression"] == whole
    with safe_open(tmp_path / "home" / "model.safetensors", "pt") as file:
        weights = file.get_tensor("model.layers.0.mlp.up_proj.weight")
    assert (weights == 0).sum(1).tolist() == [weights.shape[1] // 2] * len(weights)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "home")
    mine = [p for n, p in plain.named_parameters() if n.startswith("model.layers") and p.dim() > 1]
    gone, size = sum(int((p == 0).sum()) for p in mine), sum(p.numel() for p in mine)
    assert (record["result"]["n_pruned"], record["result"]["n_weights"]) == (gone, size)
    assert record["summary"] == (
        f"parent, prune-act_mag-row-0.5-refit: {gone:,} of {size:,} weights are zero, by 4 windows of {CAL.shape[1]} "
        "tokens of notes.txt (seed 5)"
    )


def test_a_record_of_an_older_version_means_the_same_model(parent, tmp_path):
    now, _ = saved(parent, tmp_path / "home")
    file = tmp_path / "home" / "esa_edit.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({k: record[k] for k in ("parent", "edit", "seed", "masks", "version", "files")}))
    assert find(ModelSpec(source=str(tmp_path / "home"))).fingerprint == now
    assert saved(parent, tmp_path / "home")[0] == now  # which stays as it is


def test_its_fingerprint_is_parent_and_edit_until_somebody_writes_to_it(parent, tmp_path):
    first, _ = saved(parent, tmp_path / "one")
    assert saved(parent, tmp_path / "two")[0] == first
    others = {
        saved(parent, tmp_path / "three", seed=6)[0],
        saved(parent, tmp_path / "four", PruneSpec(sparsity=0.4))[0],
    }
    assert len({first, *others}) == 3
    plain = tmp_path / "plain"
    shutil.copytree(tmp_path / "one", plain)
    (plain / "esa_edit.json").unlink()
    content = find(ModelSpec(source=str(plain))).fingerprint
    assert content != first
    for directory in (tmp_path / "one", plain):
        config = json.loads((directory / "config.json").read_text()) | {"rms_norm_eps": 1e-4}
        (directory / "config.json").write_text(json.dumps(config))
    written = find(ModelSpec(source=str(tmp_path / "one"))).fingerprint
    assert written == find(ModelSpec(source=str(plain))).fingerprint
    assert written not in (first, content)


def test_its_origin_is_told_until_somebody_writes_to_it(parent, tmp_path):
    saved(parent, home := tmp_path / "home")
    made = {"parent": {"name": "parent", "fingerprint": parent.fingerprint}, "edit": SPEC.content(), "seed": 5}
    assert origin(home, find(ModelSpec(source=str(home))).fingerprint) == made
    config = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps(config | {"note": "changed"}))
    assert origin(home, find(ModelSpec(source=str(home))).fingerprint) is None
    assert origin(tmp_path / "parent", parent.fingerprint) is None


def test_saving_the_same_again_changes_nothing_and_another_is_refused(parent, tmp_path):
    first, _ = saved(parent, tmp_path / "home")
    written = (tmp_path / "home" / "model.safetensors").stat().st_mtime_ns
    assert saved(parent, tmp_path / "home")[0] == first
    assert (tmp_path / "home" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(EsaError, match="holds another saved model"):
        saved(parent, tmp_path / "home", PruneSpec(sparsity=0.3))


def test_a_save_that_ends_on_the_way_leaves_nothing(parent, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "load_tokenizer", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        saved(parent, tmp_path / "new" / "home")
    assert list((tmp_path / "new").iterdir()) == []


def killed(parent, target, monkeypatch):
    """What a process leaves that is killed while it saves."""
    with monkeypatch.context() as dying:
        dying.setattr(saving, "load_tokenizer", lambda _: 1 / 0)
        dying.setattr(saving.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(ZeroDivisionError):
            saved(parent, target)
    (left,) = target.parent.glob(f".saving-{target.name}-*")
    return left


def renamed(left, *, machine=None, born="1"):
    """The same of another process: this pid had another birth, or another machine."""
    head, own, pid, _, tail = left.name.rsplit("-", 4)
    return left.rename(left.parent / "-".join([head, machine or own, pid, born, tail]))


def test_what_a_killed_save_left_is_cleared_by_the_next_of_its_name(parent, tmp_path, monkeypatch):
    left = renamed(killed(parent, tmp_path / "homes" / "one", monkeypatch))
    saved(parent, tmp_path / "homes" / "two")
    assert left.is_dir()
    saved(parent, tmp_path / "homes" / "one")
    assert {file.name for file in (tmp_path / "homes").iterdir()} == {"one", "two"}


def test_what_somebody_may_still_be_saving_is_left_alone(parent, tmp_path, monkeypatch):
    mine = killed(parent, tmp_path / "homes" / "one", monkeypatch)  # this process lives
    saved(parent, tmp_path / "homes" / "one")
    assert mine.is_dir()
    theirs = renamed(mine, machine="0123abcd")
    saved(parent, tmp_path / "homes" / "one")
    assert theirs.is_dir()
    for path in (theirs, *theirs.iterdir()):
        os.utime(path, (0, path.stat().st_mtime - 2 * STALE))
    saved(parent, tmp_path / "homes" / "one")
    assert not theirs.exists()


def test_a_directory_with_other_files_is_left_alone(parent, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(EsaError, match="holds something else"):
        saved(parent, tmp_path / "full")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_a_pruned_model_is_a_parent_like_any_other(parent, tmp_path):
    saved(parent, tmp_path / "pruned", PruneSpec(sparsity=0.5))
    child = find(ModelSpec(source=str(tmp_path / "pruned")))
    saved(child, tmp_path / "rounded", QuantizeSpec(bits=4))
    record = json.loads((tmp_path / "rounded" / "esa_edit.json").read_text())
    assert record["parent"]["fingerprint"] == child.fingerprint
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded")
    weights = model.model.layers[0].mlp.up_proj.weight
    assert (weights == 0).sum() >= weights.numel() // 2  # zero stays zero
    assert len(torch.unique(weights[0])) <= 16


def test_bf16_models_are_saved_in_bf16(parent, tmp_path):
    model = load_model(parent, "bf16", "cpu")
    with compressed(model, catalogue(model), CAL, SPEC) as found:
        save(model, parent, of_compressed(parent, found, SPEC, 0, MADE_BY), tmp_path / "home")
        nll = evaluate(model, EVAL).nll
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "home", dtype="auto").eval()
    assert plain.dtype == torch.bfloat16
    assert np.array_equal(evaluate(plain, EVAL).nll, nll)


@pytest.mark.parametrize("parent", ["llama", "mixtral"], indirect=True)
def test_a_model_that_waits_on_disk_is_saved_as_it_was_compressed(parent, tmp_path):
    size = sum(p.nbytes for p in load_model(parent, "fp32", "cpu").parameters())
    away = load_model(parent, "fp32", "auto", {"cpu": int(0.7 * size)}, str(tmp_path / "off"))
    assert any(p.is_meta for p in away.parameters())
    with compressed(away, catalogue(away), CAL, SPEC, 5) as found:
        save(away, parent, of_compressed(parent, found, SPEC, 5, MADE_BY), tmp_path / "home")
        nll = evaluate(away, EVAL).nll
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "home").eval()
    assert evaluate(plain, EVAL).nll == pytest.approx(nll, abs=1e-4)
    assert all(int(bitmap.count) * 2 == bitmap.mask.numel() for bitmap in found.masks.values())
    weights = plain.get_parameter("model.layers.1.self_attn.q_proj.weight")
    assert not weights[found.masks["model.layers.1.self_attn.q_proj.weight"].mask].any()
