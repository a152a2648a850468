"""A model's config, ready to build the model from it; what is no causal language model is refused."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from esa_ray.errors import EsaError
from esa_ray.models import quantized
from esa_ray.models.blocks import text_config
from esa_ray.models.config_faults import check_values, unread
from esa_ray.models.sources import Source, config_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Types whose tokens attend to those after them, unless their config says is_decoder.
ENCODERS = frozenset(
    {
        "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
        "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip


def configured(source: Source, directory: str) -> PreTrainedConfig:
    """The config that a model is built from: with attention as this machine has it, and quantized weights as numbers.

    Parameters
    ----------
    source
        The model.
    directory
        Where it lies: of a GGUF file the converted copy, else the source's own path.

    Raises
    ------
    EsaError
        If transformers doesn't know the config, or it is no causal language model's.
    """
    if source.kind != "gguf":
        told = config_of(source)
        _check_dtype(source.name, told)
        if not source.runs_code:
            _check_type(source.name, told)
    try:
        config = AutoConfig.from_pretrained(
            directory, revision=source.revision, trust_remote_code=source.runs_code
        )  # fmt: skip
    except Exception as error:  # whatever a config can be wrong in
        told = config_of(source) if source.kind != "gguf" else {}
        raise EsaError(f"--model {source.name} {unread(error, told)}") from None
    _check_causal(source.name, config)
    check_values(source.name, config)
    # How attention is computed is the machine's to say: the file may name a kernel that isn't here.
    if getattr(config, "_attn_implementation", None):
        config._attn_implementation = None
    if quantized.method(config.to_dict()) in quantized.DEQUANTIZED:
        _dequantized(config)
    return config


def _dequantized(config: PreTrainedConfig) -> None:
    for part in {id(c): c for c in (config, text_config(config))}.values():
        if given := getattr(part, "quantization_config", None):
            asked = given if isinstance(given, dict) else given.to_dict()
            part.quantization_config = {**asked, "dequantize": True}


def _check_type(name: str, config: dict[str, Any]) -> None:
    """Refuse what transformers has no causal language model for, by its config.json alone."""
    kind, classes = config.get("model_type"), _classes(config)
    if not kind:
        raise EsaError(
            f"--model {name} says no model_type in its config.json, so transformers can't tell what it is; add its "
            "architecture's"
        )
    if kind not in CONFIG_MAPPING_NAMES:
        raise EsaError(
            f"--model {name} is a {kind}, which transformers {version('transformers')} doesn't know; pip install -U "
            "transformers, or choose another"
        )
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or _made_known(config):
        return
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise EsaError(f"--model {name} ({classes}) is a model of images and text; {_text_model(config)}")
    raise EsaError(f"--model {name} ({classes}) is no causal language model; choose one")


def _made_known(config: dict[str, Any]) -> bool:
    """Whether transformers has the language model's class that a config names, though it lists none for such a type.

    So it is with the language models of some that also see, saved alone (Llama 3.2's): its loader is told of the class.
    """
    for name in _named(config):
        found = getattr(transformers, name, None) if name.endswith("ForCausalLM") else None
        own = getattr(found, "config_class", None)
        # Other parts of larger models read codes of sounds or images.
        if own is not None and own.model_type == config["model_type"] and own.base_config_key in ("", "text_config"):
            AutoModelForCausalLM.register(own, found, exist_ok=True)
            return True
    return False


def _check_dtype(name: str, config: dict[str, Any]) -> None:
    """Refuse a dtype that isn't written as torch calls it."""
    for key in ("dtype", "torch_dtype"):
        said = config.get(key)
        if isinstance(said, str) and not isinstance(getattr(torch, said, None), torch.dtype):
            raise EsaError(
                f'--model {name} says "{key}": "{said}" in its config.json, which torch has not; write "float32", '
                '"bfloat16" or "float16"'
            )


def _named(config: dict[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def _classes(config: dict[str, Any]) -> str:
    return ", ".join(_named(config)) or str(config.get("model_type"))


def _text_model(config: dict[str, Any]) -> str:
    text = config.get("text_config")
    if not isinstance(text, dict) or text.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "choose one of text alone"
    return (
        "take its language model out: m = AutoModelForImageTextToText.from_pretrained(…); t = AutoModelForCausalLM"
        ".from_config(m.config.text_config); t.model, t.lm_head = m.model.language_model, m.lm_head; "
        "t.save_pretrained(NEW), with the tokenizer beside"
    )


def _check_causal(name: str, config: PreTrainedConfig) -> None:
    classes = _classes(config.to_dict())
    decoder = getattr(config, "is_decoder", False)
    if config.model_type in ENCODERS and not decoder:
        raise EsaError(
            f"--model {name} ({classes}) is an encoder: its tokens see those after them, so it predicts none; choose a "
            "causal language model"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise EsaError(
            f"--model {name} ({classes}) is an encoder with a decoder; choose a causal language model, a decoder alone"
        )
