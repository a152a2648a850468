"""What lies in a model's directory: which files load, and what stands there instead of a model. No torch here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from esa_ray.errors import EsaError
from esa_ray.models.headers import refuse_stand_in

#: Weight files, and which of several holds what.
SAFETENSORS, WHOLE, INDEX = "*.safetensors", "model.safetensors", "model.safetensors.index.json"
PICKLES, PICKLED_WHOLE, PICKLES_INDEX = "pytorch_model*.bin", "pytorch_model.bin", "pytorch_model.bin.index.json"

#: Files of a tokenizer that a fingerprint covers, and those that it covers where no vocabulary is among the former.
WORDS = ("tokenizer*", "vocab*", "merges*", "special_tokens*")
OTHER_WORDS = ("*.model", "*.tiktoken", "tekken.json", "added_tokens.json", "*-vocab.json", "*-codes.json")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab*")

#: Shards that transformers prefers to every other file, each the part of one process.
RANKS = "shard-[0-9]*-model-*.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises
    ------
    EsaError
        If the file holds none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError):
        found = None
    if not isinstance(found, dict):
        if path.is_file():
            refuse_stand_in(path)
        raise EsaError(f"{path} is no JSON object that can be read; fetch it again")
    return found


def shards(index: Path) -> list[str]:
    """The files that an index names, each once.

    Raises
    ------
    EsaError
        If it is no index.
    """
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict):
        raise EsaError(f"{index} has no weight_map; fetch it again")
    return sorted({str(name) for name in named.values()})


def check_names(name: str, config: dict[str, Any], index: Path | None, pattern: str) -> None:
    """Refuse a model whose config or index leads to other files than its own of this pattern.

    transformers opens whatever these entries name: it unpickles what doesn't end in .safetensors, and it reads what
    lies in another directory, which the fingerprint then doesn't cover.
    """
    named = [str(config["transformers_weights"])] if config.get("transformers_weights") else []
    if index is not None and index.is_file():
        named += shards(index)
    for file in dict.fromkeys(named):
        if file != INDEX and ("/" in file or not fnmatchcase(file, pattern)):
            raise EsaError(
                f"--model {name} names {file!r} among its weights, where only {pattern} of its own belong; convert "
                "or fetch it again"
            )


def weight_files(path: Path, config: dict[str, Any], *, pickled: bool) -> list[Path]:
    """The files that transformers loads of a directory, sorted: the one whole file, else what the index names.

    Raises
    ------
    EsaError
        If it has none of them, or not all.
    """
    whole, index = (PICKLED_WHOLE, PICKLES_INDEX) if pickled else (WHOLE, INDEX)
    if named := config.get("transformers_weights"):
        whole, index = (named, index) if str(named) != index else ("", index)
    refuse_dangling(path / whole if whole else path / index)
    if whole and (path / whole).is_file():
        if not pickled and whole == WHOLE:
            _refuse_two(path)
        return [path / whole]
    if not (path / index).is_file():
        raise EsaError(f"--model {path} {_unloadable(path, index, pickled=pickled)}")
    needed = [path / file for file in shards(path / index)]
    for file in needed:
        refuse_dangling(file)
    if lost := [file.name for file in needed if not file.is_file()]:
        raise EsaError(
            f"--model {path} lacks {len(lost)} of the {len(needed)} files that {index} names ({lost[0]}); fetch the "
            "model again"
        )
    return needed


def refuse_dangling(file: Path) -> None:
    """Refuse a link to a file that isn't there, as is left where the hub's cache was copied without its blobs.

    Raises
    ------
    EsaError
        If it is one.
    """
    if file.is_symlink() and not file.exists():
        raise EsaError(
            f"{file} is a link to {file.readlink()}, which is not there; copy with cp -rL, or fetch it again"
        )


def _refuse_two(path: Path) -> None:
    """transformers loads the whole file, and which of the two is meant nobody knows."""
    others = [path / file for file in shards(path / INDEX)] if (path / INDEX).is_file() else []
    if others and path / WHOLE not in others and all(file.is_file() for file in others):
        raise EsaError(
            f"--model {path} holds two models, {WHOLE} and the {len(others)} files that {INDEX} names; move one away"
        )


def _unloadable(path: Path, index: str, *, pickled: bool) -> str:
    files = sorted(file.name for file in path.glob(PICKLES if pickled else SAFETENSORS))
    parts = [file for file in files if re.search(r"-\d+-of-\d+\.", file)]
    if parts:
        return f"has {parts[0]} and no {index} that says what it holds; fetch that, too"
    if consolidated := [file for file in files if file.startswith("consolidated")]:
        return f"{MISTRAL} ({consolidated[0]}); fetch the model's files for transformers (model*.safetensors)"
    if any(file.startswith("adapter_model") for file in files):
        return adapter(path)
    wanted = PICKLED_WHOLE if pickled else WHOLE
    return f"has no {wanted}, but {files[0]}; if that is the whole model, name it {wanted}"


MISTRAL = "holds weights in the layout of Mistral's or Meta's own code"


def adapter(path: Path) -> str:
    """What to say of a directory that holds a PEFT adapter and no model."""
    try:
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
    except EsaError:
        base = None
    return (
        f"holds an adapter of {base or 'a model'} and not the model; merge them: AutoPeftModelForCausalLM"
        f".from_pretrained({str(path)!r}).merge_and_unload().save_pretrained(NEW), with the tokenizer beside"
    )


def _newest(path: Path) -> str | None:
    found = [(int(d.name[11:]), d) for d in path.glob("checkpoint-*") if d.is_dir() and d.name[11:].isdigit()]
    return str(max(found)[1]) if found else None


def _inside(path: Path, pattern: str) -> str | None:
    found = sorted(path.glob(pattern))
    return str(found[-1]) if found else None


def _of_trainer(path: Path) -> str | None:
    newest = _newest(path)
    return newest and f"is a training's directory of checkpoints; give one of them: --model {newest}"


def _of_hub(path: Path) -> str | None:
    snapshot = _inside(path, "snapshots/*/config.json")
    return snapshot and f"is the hub's cache of a model; give its snapshot: --model {Path(snapshot).parent}"


def _of_deepspeed(path: Path) -> str | None:
    if not (_inside(path, "global_step*") or _inside(path, "zero_to_fp32.py") or _inside(path, "*_optim_states.pt")):
        return None
    return (
        f"holds DeepSpeed's parts of a model; join them: python {path}/zero_to_fp32.py {path} NEW --safe_serialization"
    )


def _of_fsdp(path: Path) -> str | None:
    parts = _inside(path, "*.distcp") or _inside(path, "*/*.distcp")
    if parts:
        return (
            f"holds FSDP's parts of a model ({Path(parts).name}); join them: accelerate merge-weights "
            f"{Path(parts).parent} NEW, with config and tokenizer beside"
        )
    whole = _inside(path, "pytorch_model_fsdp*.bin")
    return whole and f"holds FSDP's {Path(whole).name} alone; load it into the model and save that with save_pretrained"


def _other(pattern: str, sentence: str) -> Callable[[Path], str | None]:
    def found(path: Path) -> str | None:
        file = _inside(path, pattern)
        return file and sentence.format(file=Path(file).name, path=str(path))

    return found


ONNX = "has its weights as ONNX alone ({file}), which no training framework reads; take the original"
FOREIGN = (
    "has its weights in {file}, which isn't transformers' format; load them into the model, and save that with "
    "save_pretrained"
)

#: What stands in a directory without weights that load → the sentence that says so, or None. The first that fits.
INSTEAD: tuple[Callable[[Path], str | None], ...] = (
    lambda path: adapter(path) if (path / "adapter_config.json").is_file() else None,
    _of_deepspeed,
    _of_fsdp,
    _of_trainer,
    _of_hub,
    _other("*.gguf", "holds {file}; name the file itself: --model {path}/{file}"),
    _other("model_index.json", "is a pipeline of diffusers and no language model; choose another"),
    _other("consolidated*", f"{MISTRAL} ({{file}}); fetch the model's files for transformers (model*.safetensors)"),
    _other(
        "tf_model*.h5",
        "has its weights for TensorFlow alone ({file}), which transformers reads no more; with transformers 4: "
        "AutoModelForCausalLM.from_pretrained({path!r}, from_tf=True).save_pretrained(NEW)",
    ),
    _other(
        "flax_model*.msgpack",
        "has its weights for Flax alone ({file}), which transformers reads no more; with transformers 4: "
        "AutoModelForCausalLM.from_pretrained({path!r}, from_flax=True).save_pretrained(NEW)",
    ),
    _other("*.onnx", ONNX),
    _other("onnx/*.onnx", ONNX),
    _other("*.incomplete", "is half downloaded ({file}); fetch it again"),
    *(_other(pattern, FOREIGN) for pattern in ("*.ckpt", "*.pt", "*.pth")),
)  # fmt: skip


def instead(path: Path) -> str | None:
    """What a directory without loadable weights holds, as the end of a sentence; None if nothing that is known."""
    return next((sentence for look in INSTEAD if (sentence := look(path))), None)


def has_vocabulary(path: Path) -> bool:
    """Whether a tokenizer's vocabulary lies in a directory.

    >>> has_vocabulary(Path("/nonexistent"))
    False
    """
    patterns = (*VOCABULARIES, *(p for p in OTHER_WORDS if p != "added_tokens.json"))
    return any(next(path.glob(pattern), None) for pattern in patterns)


def word_files(path: Path) -> list[Path]:
    """The files of a directory's tokenizer, sorted."""
    found = {p for pattern in WORDS for p in path.glob(pattern)}
    if not any(p for pattern in VOCABULARIES for p in path.glob(pattern)):
        found |= {p for pattern in OTHER_WORDS for p in path.glob(pattern)}
    return sorted(p for p in found if p.is_file())
