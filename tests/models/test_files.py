"""What lies in a directory: which files load and are fingerprinted, and a sentence for what isn't a model."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from esa_ray.errors import EsaError
from esa_ray.models.dry import check_fit
from esa_ray.models.load import load_model
from esa_ray.models.sources import find, weight_bytes
from tests.models.checkpoints import edit, saved, sharded, spec
from tests.tiny import byte_tokenizer, random_windows, tiny

WINDOW = torch.as_tensor(random_windows(1, seed=3))
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"


def same(directory) -> None:
    """This directory holds the tiny Llama."""
    source = find(spec(directory))
    check_fit(source)
    assert torch.equal(load_model(source, "fp32", "cpu")(WINDOW).logits, tiny()(WINDOW).logits)


def touch(directory: Path, *files: str) -> Path:
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"\x80\x02}q\x00.")
    return directory


def without_weights(directory: Path) -> Path:
    (saved(directory) / "model.safetensors").unlink()
    return directory


def fingerprint(directory, *names) -> str:
    """Spelled out: name and SHA-256 of each file, on a line."""
    lines = "".join(f"{name}:{hashlib.sha256((directory / name).read_bytes()).hexdigest()}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


# -- which files load


def test_of_shards_those_of_the_index_load_and_are_fingerprinted_and_no_stale_ones(tmp_path):
    directory = sharded(tmp_path / "m", 2)
    shards = sorted(p.name for p in directory.glob("*.safetensors"))
    assert len(shards) > 1
    words = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    wanted = fingerprint(directory, *words, *shards)
    size = weight_bytes(find(spec(directory)), "fp32", on_gpu=False)
    assert size == 4 * sum(p.numel() for p in tiny().parameters())
    save_file({"model.norm.weight": torch.zeros(16)}, directory / "model-00009-of-00009.safetensors")
    touch(directory, "consolidated.safetensors")
    source = find(spec(directory))
    assert source.fingerprint == wanted
    assert weight_bytes(source, "fp32", on_gpu=False) == size
    same(directory)


def test_a_whole_file_and_an_index_of_others_that_are_there_are_two_models(tmp_path):
    directory = sharded(tmp_path / "m", 2)
    save_file(load_file(next(directory.glob("*.safetensors"))), directory / "model.safetensors")
    with pytest.raises(EsaError, match="holds two models"):
        find(spec(directory))


def test_an_index_left_beside_a_whole_file_is_no_second_model(tmp_path):
    index = sharded(tmp_path / "parts", 2) / "model.safetensors.index.json"
    directory = saved(tmp_path / "m")
    shutil.copy(index, directory)
    same(directory)


def test_a_missing_shard_is_named(tmp_path):
    directory = sharded(tmp_path / "m", 3)
    lost = sorted(directory.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(EsaError, match=rf"lacks 1 of the \d files .*\({lost.name}\)"):
        find(spec(directory))


def test_shards_without_their_index_are_told(tmp_path):
    directory = sharded(tmp_path / "m", 2)
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(EsaError, match=r"no model\.safetensors\.index\.json"):
        find(spec(directory))


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    directory = sharded(tmp_path / "m", 2)
    first, second, *_ = sorted(directory.glob("*.safetensors"))
    state = load_file(first)
    save_file(load_file(second) | dict([next(iter(state.items()))]), second)
    with pytest.raises(EsaError, match="another of the model's files does, too"):
        find(spec(directory))


def test_a_whole_model_under_another_name_is_told_its_name(tmp_path):
    directory = saved(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / "model.fp16.safetensors")
    with pytest.raises(EsaError, match=r"model\.fp16\.safetensors; if that is the whole model, name it model\.s"):
        find(spec(directory))
    (directory / "model.fp16.safetensors").rename(directory / "model.safetensors")
    same(directory)


def test_parts_of_single_processes_which_transformers_would_prefer_are_refused(tmp_path):
    directory = touch(saved(tmp_path / "m"), "shard-00000-model-00001-of-00002.safetensors")
    with pytest.raises(EsaError, match="single processes"):
        find(spec(directory))


# -- the fingerprint


def test_a_fingerprint_of_a_model_that_is_known_stays_what_it_was(tmp_path):
    """Bytes that no library writes, and their digest as version 0.1 computed it."""
    directory = tmp_path / "golden"
    directory.mkdir()
    for name, content in GOLDEN.items():
        (directory / name).write_bytes(content)
    assert find(spec(directory)).fingerprint == "2457ef4c9b08dec4724788ebc0fd347f35f95c7eb5ecb2cbf29be9023ed4a2ec"


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
GOLDEN = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b"{}",
    "chat_template.jinja": b"x",
    "vocab.json": b"{}",
    "merges.txt": b"",
    "model.safetensors": len(HEADER).to_bytes(8, "little") + HEADER + bytes(8),
}


def test_a_vocabulary_that_stands_under_a_name_of_its_own_is_fingerprinted(tmp_path):
    directory = saved(tmp_path / "m")
    (directory / "tokenizer.json").unlink()
    (directory / "spiece.model").write_bytes(b"one")
    before = find(spec(directory)).fingerprint
    assert before == fingerprint(directory, "config.json", "spiece.model", "tokenizer_config.json", "model.safetensors")
    (directory / "spiece.model").write_bytes(b"two")
    assert find(spec(directory)).fingerprint != before


# -- files that aren't what they should be


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_told_with_the_command_that_mends_it(tmp_path, name):
    directory = saved(tmp_path / "m")
    (directory / name).write_text(LFS)
    with pytest.raises(EsaError, match=rf"{re.escape(name)} is git-lfs's pointer .*git -C {directory} lfs pull"):
        find(spec(directory))


def test_a_pointer_in_place_of_a_gguf_is_told(tmp_path):
    (tmp_path / "m.gguf").write_text(LFS)
    with pytest.raises(EsaError, match="git-lfs"):
        find(spec(tmp_path / "m.gguf"))
    (tmp_path / "m.GGUF").write_bytes(b"no such thing")
    with pytest.raises(EsaError, match="is no GGUF file"):
        find(spec(tmp_path / "m.GGUF"))
    (tmp_path / "m-00001-of-00003.gguf").write_bytes(b"GGUF" + bytes(99))
    with pytest.raises(EsaError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        find(spec(tmp_path / "m-00001-of-00003.gguf"))


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_a_download_that_broke_off_is_told(tmp_path, keep):
    directory = saved(tmp_path / "m")
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with pytest.raises(EsaError, match=r"model\.safetensors .*fetch it again"):
        find(spec(directory))


def test_a_web_page_in_place_of_a_file_is_told(tmp_path):
    directory = saved(tmp_path / "m")
    (directory / "tokenizer.json").write_text("<!DOCTYPE html><html>Log in</html>")
    with pytest.raises(EsaError, match=r"tokenizer\.json is a web page"):
        find(spec(directory))


# -- what stands there instead of a model


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["tf_model.h5"], "TensorFlow alone"),
        (["flax_model.msgpack"], "Flax alone"),
        (["model.onnx"], "ONNX alone"),
        (["onnx/model.onnx"], "ONNX alone"),
        (["consolidated.00.pth", "params.json"], "layout of Mistral's or Meta's"),
        (["consolidated.safetensors"], "layout of Mistral's or Meta's"),
        (["last.ckpt"], "last.ckpt"),
        (["model.pt"], "model.pt"),
        (["global_step500/mp_rank_00_model_states.pt", "zero_to_fp32.py"], "DeepSpeed's parts.*zero_to_fp32"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "FSDP's parts.*merge-weights .*pytorch_model_fsdp_0"),
        (["pytorch_model_fsdp.bin"], "FSDP's pytorch_model_fsdp.bin"),
        (["adapter_model.safetensors"], "holds an adapter of a model"),
        (["model.Q4_K_M.gguf"], r"--model .*model\.Q4_K_M\.gguf$"),
        (["blob.incomplete"], "half downloaded"),
        (["README.md"], "no weights"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_every_other_form_has_a_sentence(tmp_path, files, words, config):
    directory = touch(without_weights(tmp_path / "m"), *files)
    if not config:
        (directory / "config.json").unlink()
        words = words if words != "no weights" else "no config.json"
        words = words.replace("holds an adapter of a model", "no config.json")  # PEFT always writes its own config
    with pytest.raises(EsaError, match=words) as error:
        find(spec(directory))
    assert "\n" not in str(error.value)


def test_an_adapter_alone_names_its_base_and_the_merge(tmp_path):
    directory = touch(tmp_path, "adapter_model.safetensors")
    edit(directory / "adapter_config.json", base_model_name_or_path="meta-llama/Llama-3.2-1B")
    with pytest.raises(EsaError, match=r"adapter of meta-llama/Llama-3\.2-1B .*merge_and_unload"):
        find(spec(directory))


def test_a_directory_of_checkpoints_names_the_newest_by_number(tmp_path):
    for step in (500, 1000, 9):
        saved(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-best").mkdir()
    with pytest.raises(EsaError, match=rf"--model {tmp_path}/checkpoint-1000$"):
        find(spec(tmp_path))
    same(touch(tmp_path / "checkpoint-1000", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"))


def test_the_hubs_cache_is_opened_at_its_snapshot_whose_files_are_links(tmp_path):
    made, root = saved(tmp_path / "made"), tmp_path / "models--org--name"
    snapshot = root / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for file in made.iterdir():
        shutil.move(file, root / "blobs" / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob-{file.name}")
    with pytest.raises(EsaError, match=rf"--model {re.escape(str(snapshot))}$"):
        find(spec(root))
    same(snapshot)


@pytest.mark.parametrize("make", [saved, sharded])
@pytest.mark.parametrize("pattern", ["config.json", "model*.safetensors"])
def test_a_link_whose_file_was_not_copied_along_is_told(tmp_path, make, pattern):
    file = max((directory := make(tmp_path / "m")).glob(pattern))
    file.unlink()
    file.symlink_to("../../blobs/1234")
    with pytest.raises(
        EsaError, match=rf"{file.name} is a link to \.\./\.\./blobs/1234, which is not there; copy with"
    ):
        find(spec(directory))


# -- how people write a path


@pytest.mark.parametrize("name", ["with space", "ünïcode-模型", "trailing.dot.", "model.safetensors"])
def test_a_directory_may_have_any_name(tmp_path, name):
    same(saved(tmp_path / name))


def test_a_slash_at_the_end_and_a_link_are_the_same_model(tmp_path):
    directory = saved(tmp_path / "m")
    (tmp_path / "link").symlink_to(directory)
    found = {find(spec(f"{path}")).fingerprint for path in (directory, f"{directory}/", tmp_path / "link")}
    assert len(found) == 1


def test_a_read_only_directory_is_read(tmp_path):
    directory = saved(tmp_path / "m")
    for path in (*directory.iterdir(), directory):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        same(directory)
    finally:
        directory.chmod(0o755)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_file_of_the_model_names_its_directory(tmp_path, file):
    directory = saved(tmp_path / "m")
    with pytest.raises(EsaError, match=rf"is a file; .*--model {re.escape(str(directory))}$"):
        find(spec(directory / file))


def test_a_hub_id_without_a_network_says_how_to_bring_it(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(EsaError, match="hf download some/model --local-dir DIR"):
        find(spec("some/model"))


def test_a_cached_hub_model_is_sized_without_a_network(tmp_path, monkeypatch):
    commit = "c" * 40
    repository = tmp_path / "hub" / "models--some--model"
    saved(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from esa_ray.models.sources import Source

    source = Source("some/model", "hub", "some/model", commit)
    wanted = 4 * sum(p.numel() for p in tiny().parameters())
    assert weight_bytes(source, "fp32", on_gpu=False) == wanted


def test_byte_tokenizers_are_written_as_one_file(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    assert {"tokenizer.json", "tokenizer_config.json"} == set(os.listdir(tmp_path))
