"""A model's tokenizer, and whether the model has an embedding of every token that it makes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.errors import EsaError, first_line
from esa_ray.models.files import has_vocabulary
from esa_ray.models.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: File of a vocabulary → the package that reads it.
READERS = {"*.tiktoken": "tiktoken", "tekken.json": "mistral-common", "*.model": "sentencepiece protobuf"}


def opened(source: Source, directory: str) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises
    ------
    EsaError
        If there is none that transformers can load.
    """
    from transformers import AutoTokenizer

    from esa_ray.models.architecture import configured

    try:
        found = AutoTokenizer.from_pretrained(directory, revision=source.revision, trust_remote_code=source.runs_code)
    except Exception as error:  # transformers raises a dozen kinds here
        path = Path(directory)
        if source.kind != "gguf" and (has_vocabulary(path) or not path.is_dir()):
            configured(source, directory)  # a config that can't be read isn't the tokenizer's fault
        raise _none(source, directory, f"{first_line(error)[:160]}; fetch its tokenizer.json again") from None
    if source.kind == "directory" and _made_of_nothing(found, Path(directory)):
        raise _none(source, directory, f"a {type(found).__name__} finds no file of its own; fetch its tokenizer.json")
    return found


def _made_of_nothing(tokenizer: PreTrainedTokenizerBase, path: Path) -> bool:
    """Without its files transformers makes an empty tokenizer, which finds in any text no token, or the unknown one."""
    if any((path / file).is_file() for file in {*tokenizer.vocab_files_names.values(), "tokenizer.json"}):
        return False
    found = tokenizer("Some words in 1 line.", add_special_tokens=False).input_ids
    return set(found) <= {tokenizer.unk_token_id}


def _none(source: Source, directory: str, otherwise: str) -> EsaError:
    path = Path(directory)
    if path.is_dir() and not has_vocabulary(path):
        return EsaError(f"--model {source.name} has no tokenizer; {_elsewhere(path)}")
    why = _unread(path) or otherwise
    return EsaError(f"--model {source.name} has no tokenizer that can be loaded: {why}")


def _unread(path: Path) -> str | None:
    for pattern, packages in READERS.items():
        files = [] if (path / "tokenizer.json").is_file() else sorted(path.glob(pattern))
        if files and not _installed(packages.split()[0]):
            return f"{files[0].name} is read by a package that isn't installed; run: pip install {packages}"
    return None


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package.replace("-", "_")) is not None


def _elsewhere(path: Path) -> str:
    where = f"in {path.parent}" if has_vocabulary(path.parent) else "of the model that it was trained from"
    return f"copy the tokenizer's files {where} (tokenizer.json, tokenizer_config.json) beside its config.json"


def embedded(model: PreTrainedModel) -> int:
    """How many tokens a model has an embedding of: 0 to this number less one."""
    return int(next(model.get_input_embeddings().parameters()).shape[0])


def check_tokens(name: str, windows: Iterable[np.ndarray], rows: int) -> None:
    """Refuse windows with a token that the model has no embedding of.

    Parameters
    ----------
    name
        The model's name.
    windows
        What the model is to read: tokens, each array (N, T).
    rows
        How many tokens it has an embedding of (:func:`embedded`).

    Raises
    ------
    EsaError
        If there is such a token: the tokenizer is another model's.

    Example
    -------
    >>> check_tokens("m", [np.array([[0, 3], [2, 1]])], 4)
    """
    largest = max((int(np.max(part)) for part in windows if part.size), default=0)
    if largest >= rows:
        raise EsaError(
            f"--model {name}: the tokenizer makes token {largest} of this text, and the model has embeddings of 0 to "
            f"{rows - 1} alone; put the model's own tokenizer beside it"
        )
