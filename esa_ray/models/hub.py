"""A model's files on the hub, or in the hub's cache here. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from esa_ray.errors import EsaError
from esa_ray.models.files import INDEX, PICKLES, WHOLE, read_json, weight_files
from esa_ray.models.headers import Entry, headers


def config_file(name: str, revision: str | None) -> Path:
    """A repository's config, in the snapshot of one commit.

    Raises
    ------
    EsaError
        If the hub doesn't give it; the sentence says why.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except GatedRepoError:
        raise EsaError(
            f"--model {name} is given to those alone who accept its terms; do that on https://huggingface.co/{name}, "
            "then run: hf auth login"
        ) from None
    except LocalEntryNotFoundError:
        raise EsaError(
            f"--model {name}: neither a directory here nor in the hub's cache, and the hub isn't reached; where it is, "
            f"run: hf download {name} --local-dir DIR, and give that directory"
        ) from None
    except EntryNotFoundError:
        raise EsaError(f"--model {name} {_without_config(name, revision)}") from None
    except Exception as error:  # the hub's client has a dozen kinds for "not found" and "not reachable"
        raise EsaError(
            f"--model {name}: neither a directory here nor a model the hub gave "
            f"({type(error).__name__}); check the name and the network, or give a local directory or GGUF file"
        ) from None


def _without_config(name: str, revision: str | None) -> str:
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(name, revision=revision)
    except Exception:
        files = []
    if "adapter_config.json" in files:
        return (
            f"is an adapter and not a model; merge the two: AutoPeftModelForCausalLM.from_pretrained({name!r})"
            ".merge_and_unload().save_pretrained(NEW), with the tokenizer beside"
        )
    if packed := [file for file in files if file.endswith(".gguf")]:
        return (
            f"holds GGUF files; run: hf download {name} {packed[0]} --local-dir DIR, and give --model DIR/{packed[0]}"
        )
    return "has no config.json, so it holds no transformers model"


def small_file(name: str, file: str, commit: str) -> Path | None:
    """A small file of a hub repository; None if it has none of that name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, revision=commit))
    except EntryNotFoundError:  # or no network and no copy here, and then transformers has none either
        return None
    except Exception as error:
        raise EsaError(
            f"--model {name}: the hub gave its config and not {file} ({type(error).__name__}); try again"
        ) from None


def is_pickled(name: str, config: Path) -> bool:
    """Whether a hub repository has pickled weights alone; without a network, whether the cached snapshot has."""
    from huggingface_hub import list_repo_files

    try:
        files = list_repo_files(name, revision=config.parent.name)
    except Exception:
        files = [p.name for p in config.parent.iterdir()]
    return not any(Path(f).name == f and f.endswith(".safetensors") for f in files)


def config(name: str, commit: str) -> dict[str, Any]:
    """The config of a commit."""
    from huggingface_hub import hf_hub_download

    try:
        return read_json(Path(hf_hub_download(name, "config.json", revision=commit)))
    except EsaError:
        raise
    except Exception as error:
        raise EsaError(f"--model {name}: the hub gives no config of it ({type(error).__name__})") from None


def tensors(name: str, commit: str) -> dict[str, Entry]:
    """What stands in a repository's safetensors: of the copy here where that is whole, else as the hub tells it.

    Raises
    ------
    EsaError
        If there are none.
    """
    from huggingface_hub import get_safetensors_metadata, try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(name, "config.json", revision=commit), str):
        snapshot = Path(cached).parent
        if (snapshot / WHOLE).is_file() or (snapshot / INDEX).is_file():
            try:
                return headers(weight_files(snapshot, read_json(Path(cached)), pickled=False))
            except EsaError:  # not all of it is here yet
                pass
    try:
        told = get_safetensors_metadata(name, revision=commit).files_metadata.values()
        return {k: Entry(str(v.dtype), tuple(v.shape)) for file in told for k, v in file.tensors.items()}
    except Exception as error:
        raise EsaError(
            f"--model {name}: the hub has no safetensors of it ({type(error).__name__}); if you trust its "
            "pickled weights add --trust pickle"
        ) from None


def pickled_bytes(name: str, commit: str) -> int:
    """Bytes of a repository's pickled weights."""
    from huggingface_hub import model_info

    try:
        files = model_info(name, revision=commit, files_metadata=True).siblings or []
    except Exception as error:
        raise EsaError(f"--model {name}: the hub gives no list of its files ({type(error).__name__})") from None
    return sum(f.size or 0 for f in files if Path(f.rfilename).match(PICKLES))
