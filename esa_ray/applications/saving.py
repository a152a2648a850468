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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa_ray import __version__
from esa_ray.errors import EsaError
from esa_ray.host.machine import born, this_machine
from esa_ray.models.edited import EDIT, OTHER, check_free, fingerprint
from esa_ray.models.load import load_tokenizer
from esa_ray.models.sources import Source, find
from esa_ray.spec import ModelSpec, grouped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.applications.compress import Compressed
    from esa_ray.spec.compression import PruneSpec, QuantizeSpec

#: Seconds after which what a process of another machine was saving, or one of this machine before it was started
#: anew, is taken for left behind: no file of it was written to for so long.
STALE = 3600.0
#: Of an offloaded model so much is in memory at once.
SHARD = "4GB"


@dataclass(frozen=True)
class Calibration:
    """What a model was compressed by: windows of a text, or windows that were given as they are.

    ``text`` is the text as ``--data`` names it and ``fingerprint`` that of its documents; None where only the windows
    are known. There are ``windows`` of ``tokens`` each. ``spared`` names the study whose super weights left last.
    """

    text: str | None
    fingerprint: str | None
    windows: int
    tokens: int
    spared: str | None = None

    @property
    def words(self) -> str:
        """The same for people."""
        text = f" of {self.text}" if self.text else ""
        spared = f", sparing the super weights of {self.spared}" if self.spared else ""
        return f"{self.windows} windows of {self.tokens} tokens{text}{spared}"


def save(
    model: PreTrainedModel,
    source: Source,
    compressed: Compressed,
    spec: PruneSpec | QuantizeSpec,
    seed: int,
    directory: str | Path,
    *,
    calibration: Calibration,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """Save a model that is compressed right now; gives its fingerprint.

    Weights are safetensors in the dtype that the model has in memory, with zeros where weights left; a GGUF's are
    saved as the numbers that it was read as. ``esa_edit.json`` beside them says what they were made of, how and by
    which text, in full and in a sentence. The directory appears under its name when it is whole. One that holds the
    same model already stays.

    Parameters
    ----------
    source
        What the model was before.
    calibration
        What it was compressed by.
    tokenizer
        The tokenizer to save with it; None takes the source's own.

    Raises
    ------
    EsaError
        If the directory holds something else, or can't be written.
    """
    target = Path(directory).expanduser()
    record = _record(source, compressed, spec, seed, calibration)
    scratch = _beside(target)
    try:
        with _plain(model), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")
            model.save_pretrained(scratch, max_shard_size=SHARD)
        (tokenizer or load_tokenizer(source)).save_pretrained(scratch)
        record["files"] = _found(scratch, source).fingerprint
        (scratch / EDIT).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if not _holds(target, record, source):
            os.replace(scratch, target)
    except OSError as error:
        raise EsaError(f"{target} can't be written: {error.strerror or error}; name another directory") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return fingerprint(record)


def _record(
    source: Source, compressed: Compressed, spec: PruneSpec | QuantizeSpec, seed: int, calibration: Calibration
) -> dict[str, Any]:
    """What ``esa_edit.json`` says, but for the digest of the files; ``edit`` is what of it differs from defaults."""
    result = {name: getattr(compressed, name) for name in ("n_weights", "n_pruned", "n_kept", "n_changed")}
    done = f"{compressed.n_pruned:,} of {compressed.n_weights:,} weights are zero"
    if spec.kind == "quantize":
        done = f"{compressed.n_weights:,} weights at {spec.bits} bits, {compressed.n_kept:,} of them kept in 16"
    return {
        "summary": f"{source.name}, {spec.label}: {done}, by {calibration.words} (seed {seed})",
        "parent": {"name": source.name, "fingerprint": source.fingerprint},
        "compression": spec.model_dump(mode="json") | {"components": grouped(spec.components)},
        "calibration": asdict(calibration) | {"seed": seed},
        "result": result | {"bits_per_weight": compressed.bits_per_weight},
        "edit": spec.content(), "seed": seed, "masks": compressed.digest, "version": __version__,
    }  # fmt: skip


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
