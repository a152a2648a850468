"""Checkpoints whose weights are stored as codes: which of them transformers turns back into numbers. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esa_ray.errors import EsaError
from esa_ray.models.headers import Entry

#: Methods whose weights transformers computes back while it loads, on every device alike.
DEQUANTIZED = ("mxfp4", "fp8")

#: Method → how to turn such a checkpoint into one that loads.
MENDS = {
    "bitsandbytes": "AutoModelForCausalLM.from_pretrained(…).dequantize().save_pretrained(NEW), with bitsandbytes",
    "compressed-tensors": "AutoModelForCausalLM.from_pretrained(…, quantization_config=CompressedTensorsConfig("
    "dequantize=True)).save_pretrained(NEW), with compressed-tensors",
}  # fmt: skip

#: How the names end of what a quantised weight needs beside its codes.
LEFT_OVER = (
    r"(\.(qweight|qzeros|scales|g_idx|weight_scale(_inv|_2)?|input_scale|activation_scale|weight_packed|weight_shape|"
    r"weight_zero_point|weight_g_idx|absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format|qscale_weight|"
    r"quant_state\..+)|_blocks|_scales)$"
)


def method(config: Mapping[str, Any]) -> str | None:
    """How a config says that its weights are quantised; None if it doesn't.

    >>> method({"quantization_config": {"quant_method": "gptq", "bits": 4}}), method({"quantization_config": None})
    ('gptq', None)
    """
    parts = (config, config.get("text_config"))
    found = next((q for part in parts if isinstance(part, Mapping) and (q := part.get("quantization_config"))), None)
    if not isinstance(found, Mapping):
        return None
    named = found.get("quant_method")
    return str(named) if named else "bitsandbytes" if {"load_in_4bit", "load_in_8bit"} & set(found) else "unknown"


def check(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a model of quantised weights that transformers doesn't turn back into numbers.

    Raises
    ------
    EsaError
        If it is one.
    """
    found = method(config)
    if found is None or found in DEQUANTIZED:
        return
    mend = f"; or {MENDS[found]}" if found in MENDS else ""
    raise EsaError(
        f"--model {name} is quantized ({found}): its files hold codes, and no weights that can be damaged; take the "
        f"model that it was made from{mend}"
    )


def count(entries: Mapping[str, Entry]) -> int:
    """How many weights tensors stand for: of MXFP4 a byte is two, and scales are none.

    >>> count({"a_blocks": Entry("U8", (2, 16)), "a_scales": Entry("U8", (2,)), "b": Entry("BF16", (3,))})
    67
    """
    found = 0
    for name, entry in entries.items():
        of_mxfp4 = entry.dtype == "U8"
        if of_mxfp4 and name.endswith("_blocks"):
            found += 2 * entry.size
        elif not (of_mxfp4 and name.endswith("_scales")):
            found += entry.size
    return found


#: Dtypes that hold numbers as they are.
NUMBERS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


def check_dtypes(name: str, config: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    """Refuse weights that are stored as integers or as complex numbers, which transformers would take at their word.

    Raises
    ------
    EsaError
        If there are any, and the config doesn't tell how to read them.
    """
    if method(config):
        return
    odd = {k: e.dtype for k, e in entries.items() if e.dtype not in NUMBERS and k.endswith("weight")}
    if odd:
        tensor, dtype = next(iter(odd.items()))
        raise EsaError(
            f"--model {name} holds {tensor} as {dtype}: codes, and no quantization_config that tells how to read them; "
            "take the model that it was made from"
        )
