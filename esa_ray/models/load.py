"""Load a causal language model from wherever it lies, ready to be scored and damaged."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import init_empty_weights
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from esa_ray.errors import EsaError, first_line
from esa_ray.host.machine import cache_dir
from esa_ray.models.architecture import configured
from esa_ray.models.device import has_bf16
from esa_ray.models.dry import check_fit
from esa_ray.models.fitting import refuse_misfit
from esa_ray.models.slots import values, weight_slots
from esa_ray.models.sources import Source, check_unchanged, compute_dtype
from esa_ray.models.tokenizing import opened
from esa_ray.models.trial import check_causal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_dtype(source: Source, dtype: str, device: str) -> str:
    """The dtype that "auto" means on this machine (:func:`esa_ray.models.sources.compute_dtype`)."""
    return compute_dtype(source, dtype, on_gpu=device != "cpu", bf16=has_bf16())


def _loaded(directory: str, **how: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model, and what transformers says of its loading."""
    return cast("Any", AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **how))


def _convert_gguf(source: Source, target: Path) -> None:
    """Write a GGUF file as an fp32 safetensors directory, all or nothing."""
    gguf = Path(source.path)
    with tempfile.TemporaryDirectory() as alone:
        # In its own directory transformers would also read the tokenizer's config, and obey any code in it, that
        # happens to lie beside the file; and by a bare name it would prefer a file of that name in the working
        # directory. Neither is what was fingerprinted.
        link = Path(alone) / "model.gguf"
        link.symlink_to(gguf)
        model, info = _loaded(alone, gguf_file=str(link), dtype=torch.float32, trust_remote_code=False)
        refuse_misfit(str(gguf), model, info)
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=str(link), trust_remote_code=False)
    # The weights are plain fp32 by now; transformers refuses to save while it thinks them quantized.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    setattr(model, "hf_quantizer", None)  # noqa: B010
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        check_unchanged(source)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def ensure_directory(source: Source) -> str:
    """Where transformers can load the model from; a GGUF file is converted there once per machine."""
    if source.kind != "gguf":
        return source.path
    # A file name has room for 255 bytes, and a model's may fill it.
    name = source.name.encode(errors="surrogateescape")[:180].decode(errors="ignore")
    target = cache_dir() / "converted" / f"{name}-{source.fingerprint[:16]}-fp32"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EsaError(f"{target.parent} can't be made ({error.strerror}); name another place with ESA_CACHE") from None
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            try:
                _convert_gguf(source, target)
            except EsaError:
                raise
            except Exception as error:  # no GGUF after all, an unknown architecture, a full disk
                raise EsaError(f"--model {source.path} can't be converted: {first_line(error)}") from None
    return str(target)


def _quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises
    ------
    EsaError
        If there is none that transformers can load.
    """
    return opened(source, ensure_directory(source))


def _check_numbers(source: Source, model: PreTrainedModel) -> None:
    """Refuse weights that transformers left in the codes that the file holds."""
    if codes := [name for name, p in model.named_parameters() if p.element_size() == 1]:
        raise EsaError(
            f"--model {source.name} is quantized, and this transformers computes {codes[0]} not back to numbers; take "
            "the model that it was made from, or pip install -U transformers"
        )


def _check_finite(source: Source, model: PreTrainedModel) -> None:
    for place, *_ in weight_slots(model):
        # One weight at a time, so that offloaded ones never stand in memory together. A sum is finite only if
        # every term is (fp32 sums of weights don't overflow by themselves).
        if not torch.isfinite(values(place).sum(dtype=torch.float32)):
            raise EsaError(
                f"--model {source.name}: {place.name} holds NaN or infinite weights; repair or choose another"
            )


def _settle(model: PreTrainedModel) -> None:
    """Let a model do now what it does to its own weights in its first forward, so that they stay as they are.

    RWKV halves the outputs of every few blocks, and its hidden states with them. What is offloaded would stay whole.
    """
    for module in model.modules():
        rescale: Any = getattr(module, "_rescale_layers", None)
        if rescale is not None:
            if any(parameter.is_meta for parameter in module.parameters()):
                model.config.rescale_every = 0
            rescale()


def _compute_buffers(model: PreTrainedModel) -> None:
    """Compute the buffers that no file holds as the model's class does.

    transformers gives them memory that nobody wrote, and leaves their values to the class' ``_init_weights``: its own
    classes know of that, and code that comes with a model mostly doesn't.
    """
    stored = model.state_dict()
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    if not computed:
        return
    with init_empty_weights(include_buffers=False):
        twin = type(model)(model.config)
    for name, buffer in twin.named_buffers():
        if name in computed:
            computed[name].copy_(buffer)


def _device_map(device: str) -> str | dict[str, torch.device] | None:
    if device in ("cpu", "auto"):
        return None if device == "cpu" else device  # without a map the weights stay a memory map of the file
    wanted = torch.device(device)
    return {"": torch.device(wanted.type, wanted.index or 0)}


def load_model(
    source: Source,
    dtype: str,
    device: str = "auto",
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | None = None,
) -> PreTrainedModel:
    """A model in eval mode, without gradients, on ``device`` ("cpu", "cuda", "cuda:1" or "auto" for a device map).

    On a GPU it is loaded straight into that one's memory. By "auto" a model that one device can't hold is spread over
    all GPUs, then the CPU's memory, then the disk. ``max_memory`` says how much of each may be taken, in bytes or as
    text, by GPU number and "cpu" (default: what is free). What waits on disk is read from the model's own files; only
    weights that are stored there in another form (the experts of most mixtures) are written anew, to
    ``offload_folder``, which must then be given and belongs to this one process.

    Only safetensors are read and no code of the model's own is run, unless ``source.trust`` names "pickle" or
    "remote_code"; pickles then go through torch's weights-only unpickler, which takes tensors and plain containers
    and refuses every other object. Where file and compute dtype agree on a CPU the weights stay a private memory
    map: actors on one machine share its pages and an edit copies only the pages that it touches.

    Raises
    ------
    EsaError
        If the directory holds no model that transformers can load or another one than its config describes, a weight
        is NaN or infinite, a prediction depends on later tokens, or the files were written to since they were found.
    """
    _quiet()
    if source.pickled:  # or transformers asks a service on the hub to convert the repository
        os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    directory = ensure_directory(source)
    config = configured(source, directory)
    try:
        model, info = _loaded(
            directory,
            config=config,
            dtype=DTYPES[dtype],
            device_map=_device_map(device),
            max_memory=dict(max_memory) if max_memory else None,
            offload_folder=offload_folder,
            use_safetensors=not source.pickled,
            weights_only=True,
            trust_remote_code=source.runs_code,
            revision=source.revision,
        )
    except Exception as error:  # a broken file raises whatever its reader raises
        check_fit(source)
        why = first_line(error) if isinstance(error, (ValueError, OSError, RuntimeError)) else repr(error)[:160]
        raise EsaError(f"--model {source.name} can't be loaded: {why}") from None
    try:
        refuse_misfit(source.name, model, info)
    except EsaError:
        check_fit(source)  # which knows the files' own names
        raise
    _check_numbers(source, model)
    if source.runs_code:
        _compute_buffers(model)
    model.eval().requires_grad_(False)
    _settle(model)
    _check_finite(source, model)
    check_causal(source.name, model)
    check_unchanged(source)
    return model
