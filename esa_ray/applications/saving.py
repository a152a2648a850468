"""A compressed model taken home: a directory that plain transformers and ``--model`` load, with its provenance."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError
from esa_ray.host.machine import born, this_machine
from esa_ray.models.edited import EDIT, OTHER, check_free, fingerprint
from esa_ray.models.load import load_tokenizer
from esa_ray.models.sources import Source, find
from esa_ray.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Seconds after which what a process of another machine was saving, or one of this machine before it was started
#: anew, is taken for left behind: no file of it was written to for so long.
STALE = 3600.0
#: Of an offloaded model so much is in memory at once.
SHARD = "4GB"


def save(
    model: PreTrainedModel,
    source: Source,
    record: Mapping[str, Any],
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """Save a model that is compressed or tuned right now; gives its fingerprint.

    Weights are safetensors in the dtype that the model has in memory, with zeros where weights left; a GGUF's are
    saved as the numbers that it was read as. ``esa_edit.json`` beside them says what they were made of, how and by
    which text, in full and in a sentence. The directory appears under its name when it is whole. One that holds the
    same model already stays.

    Parameters
    ----------
    source
        What the model was before.
    record
        What was done, by which text, and what came of it (:mod:`esa_ray.applications.records`).
    tokenizer
        The tokenizer to save with it; None takes the source's own.

    Raises
    ------
    EsaError
        If the directory holds something else, or can't be written.
    """
    target = Path(directory).expanduser()
    told = dict(record)
    scratch = _beside(target)
    try:
        with _plain(model), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
            model.save_pretrained(scratch, max_shard_size=SHARD)
        (tokenizer or load_tokenizer(source)).save_pretrained(scratch)
        told["files"] = _found(scratch, source).fingerprint
        (scratch / EDIT).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if not _holds(target, told, source):
            os.replace(scratch, target)
    except OSError as error:
        raise EsaError(f"{target} can't be written: {error.strerror or error}; name another directory") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return fingerprint(told)


def _found(directory: Path, source: Source) -> Source:
    return find(ModelSpec.model_validate({"source": str(directory), "trust": source.trust}))


def _beside(target: Path) -> Path:
    check_free(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target)
        machine, pid = _machine(), os.getpid()
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{_prefix(target)}{machine}-{pid}-{born(pid)}-"))
        scratch.chmod(0o755)  # what is taken home is for others, too
        return scratch
    except OSError as error:
        raise EsaError(f"{target.parent} can't be written: {error.strerror}; name another directory") from None


def _prefix(target: Path) -> str:
    return f".saving-{target.name[:100]}-"


def _machine() -> str:
    return hashlib.sha256(this_machine().encode()).hexdigest()[:8]


def _clear(target: Path) -> None:
    """Delete what saves under this name left that were killed."""
    for old in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        named = re.fullmatch(r"([0-9a-f]{8})-(\d+)-([\d.]+)-\w+", old.name.removeprefix(_prefix(target)))
        if not named:
            continue
        machine, pid, began = named.groups()
        with suppress(OSError):  # another process may clear it, or end its save, at the same moment
            if born(int(pid)) != began if machine == _machine() else time.time() - _touched(old) > STALE:
                shutil.rmtree(old, ignore_errors=True)


def _touched(directory: Path) -> float:
    """When a file in a directory, or the directory itself, was last written to."""
    times = [directory.stat().st_mtime]
    for file in directory.iterdir():
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return max(times)


def _holds(target: Path, record: dict[str, Any], source: Source) -> bool:
    """Whether a directory is this very model already.

    Raises
    ------
    EsaError
        If it is another one.
    """
    if not target.is_dir() or not any(target.iterdir()):
        return False
    if _found(target, source).fingerprint == fingerprint(record):
        return True
    raise EsaError(OTHER.format(target))


@contextmanager
def _plain(model: PreTrainedModel) -> Iterator[None]:
    """A model that was read from quantized weights says nothing of that: what it holds are plain numbers."""
    quantizer, config = getattr(model, "hf_quantizer", None), getattr(model.config, "quantization_config", None)
    try:
        if config is not None:
            del model.config.quantization_config
        if quantizer is not None:
            setattr(model, "hf_quantizer", None)  # noqa: B010
        yield
    finally:
        if config is not None:
            model.config.quantization_config = config
        if quantizer is not None:
            setattr(model, "hf_quantizer", quantizer)  # noqa: B010
