"""A model loaded without its weights: the files' names and shapes against what the config describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from esa_ray.errors import EsaError, first_line
from esa_ray.models import quantized
from esa_ray.models.architecture import configured
from esa_ray.models.blocks import text_config
from esa_ray.models.config_faults import SENSELESS, unbuilt
from esa_ray.models.fitting import refuse_gaps, refuse_misfit
from esa_ray.models.headers import Entry
from esa_ray.models.sources import Source, config_of, files_of, tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def check_fit(source: Source) -> PreTrainedModel | None:
    """Load a model without its weights, to see whether its files are those that its config describes.

    Takes a second and no memory to speak of. Returns the model, hollow; None of what only the loading itself can tell:
    a GGUF file, which is converted first, and a model with code of its own.

    Raises
    ------
    EsaError
        If they aren't (:func:`esa_ray.models.fitting.refuse_misfit`), or it is no model that transformers can load.
    """
    if not source.tells:
        return None
    config = configured(source, source.path)
    stored = _stored(source)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    made = _made(source, config)
    if made is None:
        return None
    try:
        loading: Any = type(made).from_pretrained(
            None, config=made.config, state_dict=stored, dtype=torch.float32, device_map={"": "meta"},
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
        model, info = loading
    except Exception as error:  # not every model can be made this way; then the loading itself tells
        if isinstance(error, RuntimeError) and "conversion" in str(error):
            refuse_gaps(source.name, stored, config)
        return None
    refuse_misfit(source.name, model, info, stored)
    return model


def _made(source: Source, config: PreTrainedConfig) -> PreTrainedModel | None:
    """A model as its config describes it, hollow; None if it can't be made this way."""
    try:
        with torch.device("meta"):
            return cast("PreTrainedModel", AutoModelForCausalLM.from_config(config))
    except SENSELESS as error:
        vocabulary = getattr(text_config(config), "vocab_size", None)
        raise EsaError(f"--model {source.name} {unbuilt(error, config_of(source), vocabulary)}") from None
    except Exception:  # then the loading itself tells
        return None


def _stored(source: Source) -> dict[str, torch.Tensor]:
    """The tensors of a model's files, hollow."""
    if not source.pickled:
        entries = tensors_of(source)
        quantized.check_dtypes(source.name, config_of(source), entries)
        return _hollow(entries)
    found: dict[str, torch.Tensor] = {}
    for path in files_of(source) if source.kind == "directory" else ():
        found |= _unpickled(source, path)
    return found


def _hollow(entries: Mapping[str, Entry]) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(entry.shape, dtype=_DTYPES.get(entry.dtype, torch.uint8), device="meta")
        for name, entry in entries.items()
    }


def _unpickled(source: Source, path: Path) -> dict[str, torch.Tensor]:
    try:
        found = dict(torch.load(path, map_location="meta", weights_only=True))
    except Exception as error:
        raise EsaError(
            f"--model {source.name}: {path.name} can't be loaded: it isn't tensors alone ({first_line(error)[:99]}); "
            "choose another, or save it as safetensors where it is trusted"
        ) from None
    if inside := [key for key, value in found.items() if isinstance(value, dict)]:
        raise EsaError(
            f"--model {source.name}: {path.name} is a training's checkpoint, its weights lie under {str(inside[0])!r}; "
            "load them into the model, and save that with save_pretrained"
        )
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
