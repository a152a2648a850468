"""Nothing of a model runs or is unpickled unless the user names it, and what then runs is fingerprinted."""

import contextlib
import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import ValidationError
from transformers import LlamaForCausalLM

from esa_ray.errors import EsaError
from esa_ray.models import sources
from esa_ray.models.load import ensure_directory, load_model, load_tokenizer, resolve_dtype
from esa_ray.models.sources import Source, file_sha256, find, weight_bytes
from esa_ray.spec import ModelSpec
from tests.models.gguf_files import write_gguf
from tests.tiny import byte_tokenizer, random_windows, tiny

WINDOW = torch.as_tensor(random_windows(1, seed=3))


class Bomb:
    """Unpickled, it makes a directory: a hostile pickle could call anything else."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


def plain(directory: Path) -> Path:
    """A tiny Llama with its tokenizer, as safetensors."""
    tiny().save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def as_pickles(directory: Path, *, shards: int = 1) -> Path:
    """The same weights in pickles alone."""
    state = tiny().state_dict()
    next(directory.glob("*.safetensors")).unlink()
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin")
        return directory
    where = {name: f"pytorch_model-{1 + i % shards:05d}-of-{shards:05d}.bin" for i, name in enumerate(state)}
    for file in set(where.values()):
        torch.save({name: state[name] for name in state if where[name] == file}, directory / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return directory


def bomb(path: Path, marker: Path) -> None:
    """A file that torch.load takes for a checkpoint, and that fires if it is really unpickled."""
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(1)}, buffer)
    with zipfile.ZipFile(buffer) as inner, zipfile.ZipFile(path, "w") as outer:
        for name in inner.namelist():
            content = (
                pickle.dumps({"model.norm.weight": Bomb(marker)}, protocol=2) if name.endswith("data.pkl") else None
            )
            outer.writestr(name, content or inner.read(name))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "it-ran"


def everything(spec: ModelSpec) -> None:
    """Every way in which a model's files are read."""
    source = find(spec)
    resolve_dtype(source, "auto", "cuda")
    load_tokenizer(source)
    load_model(source, "fp32", "cpu")


# -- trust is a field like any other


def test_trust_is_sorted_and_distinct_and_knows_its_names():
    assert ModelSpec(source="m", trust=("remote_code", "pickle", "pickle")).trust == ("pickle", "remote_code")
    assert ModelSpec(source="m").model_dump()["trust"] == ()
    with pytest.raises(ValidationError, match="remote_code"):
        ModelSpec(source="m", trust=("everything",))


def test_trust_that_nothing_needs_changes_nothing(tmp_path):
    directory = str(plain(tmp_path / "m"))
    bare, trusting = (find(ModelSpec(source=directory, trust=t)) for t in ((), ("pickle", "remote_code")))
    assert trusting.fingerprint == bare.fingerprint
    assert not trusting.pickled
    assert weight_bytes(trusting, "fp32", on_gpu=False) == weight_bytes(bare, "fp32", on_gpu=False)


# -- code


def with_code(directory: Path, marker: Path | None, file: str = "config.json", auto_map=None) -> Path:
    """A model that brings a Llama of its own: the same, but it says so in a file when it is imported."""
    plain(directory)
    says = f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n" if marker else ""
    (directory / "modeling_own.py").write_text(
        f"{says}from transformers import LlamaForCausalLM, LlamaConfig, PreTrainedTokenizerFast\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    if file == "tokenizer_config.json":
        edit(directory / file, auto_map=auto_map or {"AutoTokenizer": [None, "modeling_own.OwnTokenizer"]})
    else:
        own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
        edit(directory / file, auto_map=auto_map or own, model_type="own")
    return directory


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Trusted code is copied here, and not to the user's cache."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    def forget():
        for module in [m for m in sys.modules if m.startswith("transformers_modules")]:
            del sys.modules[module]

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {**CONFIG_MAPPING._extra_content})
    forget()
    yield
    forget()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused_in_one_sentence_and_not_run(tmp_path, marker, file):
    directory = with_code(tmp_path / "m", marker, file)
    with pytest.raises(EsaError, match=rf"--model .*auto_map in {file}.*--trust remote_code$") as refused:
        find(ModelSpec(source=str(directory), trust=("pickle",)))
    assert "\n" not in str(refused.value)
    assert not marker.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_the_loaders_by_themselves_run_no_code_and_ask_nothing(tmp_path, marker, file, monkeypatch):
    # A source that nobody checked, on a terminal where transformers would ask and take "y" for an answer.
    directory = str(with_code(tmp_path / "m", marker, file))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    source = Source("m", "directory", directory, "0" * 64)
    for load in (
        lambda: load_tokenizer(source),
        lambda: load_model(source, "fp32", "cpu"),
        lambda: resolve_dtype(source, "auto", "cuda"),
    ):
        with contextlib.suppress(EsaError, ValueError):
            load()
        assert not marker.exists()


def test_code_in_a_config_inside_a_config_is_seen(tmp_path, marker):
    directory = plain(tmp_path / "m")
    edit(
        directory / "config.json", text_config={"auto_map": {"AutoConfig": "modeling_own.OwnConfig"}}, model_type="own"
    )
    with pytest.raises(EsaError, match="remote_code"):
        find(ModelSpec(source=str(directory)))


def test_a_known_architecture_that_still_carries_code_is_loaded_without_it(tmp_path, marker):
    # As Phi-3 does: transformers has the architecture, and the config still names the code of before.
    directory = with_code(tmp_path / "m", marker)
    edit(directory / "config.json", model_type="llama")
    model = load_model(find(ModelSpec(source=str(directory))), "fp32", "cpu")
    assert type(model).__module__.startswith("transformers.models.llama")
    assert torch.equal(model(WINDOW).logits, tiny()(WINDOW).logits)
    assert not marker.exists()


def test_trusted_code_runs_and_its_model_computes(tmp_path, marker, modules):
    spec = ModelSpec(source=str(with_code(tmp_path / "m", marker)), trust=("remote_code",))
    source = find(spec)
    assert not marker.exists()  # finding runs nothing, trusted or not
    model = load_model(source, "fp32", "cpu")
    assert marker.read_text() == "ran"
    assert type(model).__name__ == "Own"
    assert torch.equal(model(WINDOW).logits, tiny()(WINDOW).logits)


def test_buffers_that_trusted_code_computes_are_what_it_computes(tmp_path, modules):
    """No file holds them, and their class says nothing of them to transformers."""
    directory = with_code(tmp_path / "m", None)
    code = directory / "modeling_own.py"
    code.write_text(
        code.read_text().replace(
            "    config_class = OwnConfig\n",
            "    config_class = OwnConfig\n"
            "    def __init__(self, config):\n"
            "        super().__init__(config)\n"
            "        self.register_buffer('table', torch.arange(4096.0), persistent=False)\n",
        )
    )
    code.write_text(f"import torch\n{code.read_text()}")
    torch.full((4096,), torch.pi)  # what memory that nobody writes may hold
    model = load_model(find(ModelSpec(source=str(directory), trust=("remote_code",))), "fp32", "cpu")
    assert torch.equal(model.table, torch.arange(4096.0))
    assert torch.equal(model.model.rotary_emb.inv_freq, tiny().model.rotary_emb.inv_freq)
    assert torch.equal(model(WINDOW).logits, tiny()(WINDOW).logits)


def test_a_trusted_tokenizer_is_the_models_own(tmp_path, modules):
    directory = with_code(tmp_path / "m", None, "tokenizer_config.json")
    found = load_tokenizer(find(ModelSpec(source=str(directory), trust=("remote_code",))))
    assert type(found).__name__ == "OwnTokenizer"


def test_trusted_code_is_part_of_the_fingerprint(tmp_path):
    spec = ModelSpec(source=str(with_code(tmp_path / "m", None)), trust=("remote_code",))
    before = find(spec).fingerprint
    code = tmp_path / "m" / "modeling_own.py"
    code.write_text(code.read_text() + "# another\n")
    assert find(spec).fingerprint != before


def test_code_from_another_repository_is_refused_even_when_trusted(tmp_path, marker):
    directory = with_code(tmp_path / "m", marker, auto_map={"AutoConfig": "someone/else--modeling_own.OwnConfig"})
    with pytest.raises(EsaError, match=r"another repository \(someone/else\)"):
        find(ModelSpec(source=str(directory), trust=("remote_code",)))


# -- pickles


@pytest.mark.parametrize("shards", [1, 3])
def test_pickles_are_refused_unless_named_and_then_hold_the_same_model(tmp_path, shards):
    directory = as_pickles(plain(tmp_path / "m"), shards=shards)
    with pytest.raises(EsaError, match=r"--trust pickle$"):
        find(ModelSpec(source=str(directory), trust=("remote_code",)))
    source = find(ModelSpec(source=str(directory), trust=("pickle",)))
    assert source.pickled
    assert torch.equal(load_model(source, "fp32", "cpu")(WINDOW).logits, tiny()(WINDOW).logits)


def test_pickles_are_fingerprinted_by_their_content(tmp_path):
    directory = as_pickles(plain(tmp_path / "m"), shards=3)
    spec = ModelSpec(source=str(directory), trust=("pickle",))
    before = find(spec).fingerprint
    last = sorted(directory.glob("*.bin"))[-1]
    last.write_bytes(last.read_bytes() + b"\0")
    assert find(spec).fingerprint != before


def test_pickles_are_estimated_by_the_size_of_their_files(tmp_path):
    directory = as_pickles(plain(tmp_path / "m"))
    source = find(ModelSpec(source=str(directory), trust=("pickle",)))
    size = (directory / "pytorch_model.bin").stat().st_size
    assert size > 4 * sum(p.numel() for p in tiny().parameters())
    assert weight_bytes(source, "fp32", on_gpu=False) == size // 4 * 4
    assert weight_bytes(source, "bf16", on_gpu=False) == size // 4 * 2
    edit(directory / "config.json", dtype="bfloat16")  # then the same bytes are twice as many weights
    assert weight_bytes(source, "fp32", on_gpu=False) == size // 2 * 4


def test_safetensors_are_preferred_to_trusted_pickles(tmp_path, marker):
    directory = plain(tmp_path / "m")
    alone = find(ModelSpec(source=str(directory)))
    bomb(directory / "pytorch_model.bin", marker)
    source = find(ModelSpec(source=str(directory), trust=("pickle",)))
    assert (source.pickled, source.fingerprint) == (False, alone.fingerprint)
    load_model(source, "fp32", "cpu")
    assert not marker.exists()


def test_the_bomb_is_live(tmp_path, marker):
    bomb(tmp_path / "x.bin", marker)
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("trust", [(), ("remote_code",), ("pickle",)])
def test_a_hostile_pickle_never_fires(tmp_path, marker, trust):
    # With trust, too: torch's weights-only unpickler takes no calls.
    directory = plain(tmp_path / "m")
    next(directory.glob("*.safetensors")).unlink()
    bomb(directory / "pytorch_model.bin", marker)
    with pytest.raises(EsaError, match=r"can't be loaded|--trust pickle"):
        everything(ModelSpec(source=str(directory), trust=trust))
    assert not marker.exists()


# -- what leads from safetensors to other files


def test_no_config_leads_to_a_pickle(tmp_path):
    # transformers reads an adapter_model.bin that the config names, whatever use_safetensors says.
    directory = plain(tmp_path / "m")
    torch.save(tiny(seed=1).state_dict(), directory / "adapter_model.bin")
    edit(directory / "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(EsaError, match=r"'adapter_model.bin'"):
        find(ModelSpec(source=str(directory)))


@pytest.mark.parametrize(
    "stray", ["evil.bin", "../other/model.safetensors", "/etc/model.safetensors", "sub/a.safetensors"]
)
def test_no_index_leads_to_a_pickle_or_out_of_the_directory(tmp_path, stray):
    directory = plain(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(tiny().state_dict(), "model-00001-of-00001.safetensors")
    index = directory / sources.INDEX
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert torch.equal(load_model(find(ModelSpec(source=str(directory))), "fp32")(WINDOW).logits, tiny()(WINDOW).logits)
    index.write_text(json.dumps({"metadata": {}, "weight_map": names | {"model.norm.weight": stray}}))
    with pytest.raises(EsaError, match=r"among its weights"):
        find(ModelSpec(source=str(directory)))


def test_an_adapter_beside_the_model_is_refused(tmp_path):
    # With peft installed transformers would put it in; without, not: one fingerprint, two models.
    directory = plain(tmp_path / "m")
    edit(directory / "adapter_config.json", base_model_name_or_path="x")
    with pytest.raises(EsaError, match="adapter"):
        find(ModelSpec(source=str(directory)))


# -- GGUF


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ESA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(spec: ModelSpec) -> torch.Tensor:
    return load_model(find(spec), "fp32", "cpu")(WINDOW).logits


def test_a_gguf_is_read_by_itself(tmp_path, marker, cache, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    spec = ModelSpec(source=str(write_gguf(home / "model.gguf")), trust=("remote_code", "pickle"))
    # Beside it lies code that a tokenizer's config asks for, and where we stand another file of the same name.
    with_code(tmp_path / "bait", marker, "tokenizer_config.json")
    for name in ("modeling_own.py", "tokenizer_config.json"):
        shutil.copy(tmp_path / "bait" / name, home)
    away = tmp_path / "away"
    away.mkdir()
    write_gguf(away / "model.gguf", seed=1)
    monkeypatch.chdir(away)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    torch.testing.assert_close(logits(spec), tiny()(WINDOW).logits)
    assert type(load_tokenizer(find(spec))).__name__ != "OwnTokenizer"
    assert not marker.exists()


def test_names_of_ggufs_stay_in_the_cache(tmp_path, cache):
    for stem in ("..", "a\nb", "x" * 240, "é" * 120):
        source = find(ModelSpec(source=str(write_gguf(tmp_path / f"{stem}.gguf"))))
        place = Path(ensure_directory(source))
        assert place.resolve().parent == (cache / "converted").resolve()
        assert place.name.endswith(f"-{source.fingerprint[:16]}-fp32")
    assert not list(tmp_path.rglob("escaped"))


# -- the hub, as its client would hand it over


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one repository, whose snapshot is this directory."""
    snapshot = tmp_path / "hub" / ("c" * 40)

    def download(name, file, revision=None):
        assert revision in (None, "c" * 40)
        if not (snapshot / file).is_file():
            raise LocalEntryNotFoundError(file)
        return str(snapshot / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: os.listdir(snapshot))
    return snapshot


def test_a_file_that_the_hub_fails_to_give_is_not_taken_for_one_that_is_not_there(hub, marker, monkeypatch):
    with_code(hub, marker, "tokenizer_config.json")
    import huggingface_hub

    real = huggingface_hub.hf_hub_download

    def failing(name, file, revision=None):
        if file == "tokenizer_config.json":
            raise ConnectionError("reset")
        return real(name, file, revision=revision)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", failing)
    with pytest.raises(EsaError, match=r"tokenizer_config\.json.*try again"):
        find(ModelSpec(source="some/one"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_on_the_hub_is_refused_unless_named(hub, marker, file):
    with_code(hub, marker, file)
    with pytest.raises(EsaError, match=f"--model some/one .*{file}.*--trust remote_code$"):
        find(ModelSpec(source="some/one"))
    found = find(ModelSpec(source="some/one", trust=("remote_code",)))
    assert (found.kind, found.fingerprint, found.runs_code) == ("hub", "c" * 40, True)
    assert not marker.exists()


def test_pickles_on_the_hub_are_taken_only_where_there_is_nothing_else(hub):
    plain(hub)
    assert not find(ModelSpec(source="some/one", trust=("pickle",))).pickled
    as_pickles(hub)
    assert find(ModelSpec(source="some/one", trust=("pickle",))).pickled
    assert not find(ModelSpec(source="some/one")).pickled


def test_an_adapter_beside_a_model_on_the_hub_is_refused_too(hub):
    plain(hub)
    edit(hub / "adapter_config.json", base_model_name_or_path="x")
    with pytest.raises(EsaError, match="holds an adapter beside the model"):
        find(ModelSpec(source="some/one"))


def test_an_adapter_alone_on_the_hub_tells_the_merge(hub, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    hub.mkdir(parents=True)
    edit(hub / "adapter_config.json", base_model_name_or_path="x")

    def download(name, file, revision=None):
        raise EntryNotFoundError(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(EsaError, match=r"is an adapter .*from_pretrained\('some/one'\)\.merge_and_unload"):
        find(ModelSpec(source="some/one"))


def test_no_index_on_the_hub_leads_to_a_pickle(hub):
    plain(hub)
    (hub / sources.INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "evil.bin"}}))
    with pytest.raises(EsaError, match=r"'evil.bin'"):
        find(ModelSpec(source="some/one"))


def test_a_fingerprint_covers_what_it_says(tmp_path):
    """Spelled out: name and SHA-256 of config, tokenizer and weights, each on a line."""
    import hashlib

    directory = plain(tmp_path / "m")
    assert isinstance(tiny(), LlamaForCausalLM)
    files = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    lines = "".join(f"{name}:{file_sha256(directory / name)}\n" for name in files)
    assert find(ModelSpec(source=str(directory))).fingerprint == hashlib.sha256(lines.encode()).hexdigest()
