"""A compressed or tuned model taken home: a directory that transformers and ``--model`` load, with its provenance."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa_ray import __version__
from esa_ray.errors import EsaError
from esa_ray.models.edited import EDIT, OTHER, Edit, check_free, content, fingerprint
from esa_ray.models.load import load_tokenizer
from esa_ray.models.sources import Source, find
from esa_ray.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.applications.compress import Compressed

#: Of an offloaded model so much is in memory at once.
SHARD = "4GB"


def save(
    model: PreTrainedModel,
    source: Source,
    compressed: Compressed | None,
    edit: Edit,
    seed: int,
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Mapping[str, str] | None = None,
) -> str:
    """Save a model that is compressed or tuned right now; gives its fingerprint.

    Weights are safetensors in the dtype that the model has in memory, with zeros where weights left; a GGUF's are
    saved as the numbers that it was read as. ``esa_edit.json`` beside them says what they were made of. The directory
    appears under its name when it is whole. One that holds the same model already stays.

    Parameters
    ----------
    source
        What the model was before.
    compressed
        What was compressed; None of a tuned model, which has no masks.
    edit
        What was done.
    tokenizer
        The tokenizer to save with it; None takes the source's own.
    texts
        What the texts are called that it was made by, for who reads the record.

    Raises
    ------
    EsaError
        If the directory holds something else, or can't be written.
    """
    target = Path(directory).expanduser()
    record: dict[str, Any] = {
        "parent": {"name": source.name, "fingerprint": source.fingerprint}, "edit": content(edit), "seed": seed,
        "version": __version__, **({"masks": compressed.digest} if compressed else {}),
        **({"texts": dict(texts)} if texts else {}),
    }  # fmt: skip
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


def _found(directory: Path, source: Source) -> Source:
    return find(ModelSpec.model_validate({"source": str(directory), "trust": source.trust}))


def _beside(target: Path) -> Path:
    check_free(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".saving-"))
        scratch.chmod(0o755)  # what is taken home is for others, too
        return scratch
    except OSError as error:
        raise EsaError(f"{target.parent} can't be written: {error.strerror}; name another directory") from None


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
