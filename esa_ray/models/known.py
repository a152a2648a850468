"""Models known by name, in series of sizes: what each is, and what it takes of a machine, without its weights.

Parameters are counted from the config alone: transformers builds the model with no memory behind it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from esa_ray.errors import EsaError, first_line, unreadable
from esa_ray.host.footprint import BARE_SET, PROCESS, WORKING_SET
from esa_ray.models.config_faults import CHOSEN
from esa_ray.models.experts import EXPERTS
from esa_ray.models.sources import PACKAGED, Source, own_dtype
from esa_ray.models.zoo.recipes import PREFIX, recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: What is done with a model → bytes an actor needs per byte of weights.
TASKS = {"damage": 1.0, "score in block ranges": BARE_SET, "score": WORKING_SET}


#: Fields that models read though not every config class lists them.
UNLISTED = frozenset({"head_dim"})


class Series(BaseModel):
    """Models of one family: the config they share, and by hub id what is each one's own.

    ``kind`` says whether each token passes all weights ("dense") or a router chooses experts ("moe"); ``tuning``
    whether a model was trained on text alone ("base") or also on instructions ("instruct"). ``dtype`` is that of the
    published weights, and ``config`` are fields of transformers' config of that ``model_type``.
    """

    model_config = ConfigDict(extra="forbid")

    family: str
    kind: Literal["dense", "moe"]
    tuning: Literal["base", "instruct"] = "base"
    model_type: str
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    config: dict[str, Any] = {}
    models: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, tied ones once.

    ``body`` leaves out the embedding and the output head, whose size is the vocabulary's and not the network's
    (Kaplan et al. 2020, arXiv:2001.08361); ``active`` are those that one token passes.
    """

    total: int
    body: int
    active: int


@dataclass(frozen=True)
class Known:
    """A model that is known by name.

    Example
    -------
    >>> pythia = next(m for m in known() if m.name == "EleutherAI/pythia-70m")
    >>> pythia.parameters.total, pythia.parameters.body
    (70426624, 18915328)
    """

    name: str
    family: str
    kind: str
    tuning: str
    model_type: str
    dtype: str
    config: dict[str, Any]

    @cached_property
    def parameters(self) -> Parameters:
        """How many it has, without loading any.

        Raises
        ------
        EsaError
            If transformers makes no causal language model of its config.
        """
        return counted(self.hollow())

    def hollow(self, dtype: str = "fp32") -> PreTrainedModel:
        """The model with no memory behind its weights.

        Raises
        ------
        EsaError
            If transformers makes no causal language model of its config.
        """
        from transformers import AutoConfig

        try:
            usual = AutoConfig.for_model(self.model_type)
            if strange := [key for key in self.config if not hasattr(usual, key) and key not in UNLISTED]:
                raise EsaError(f"{self.name}: configs of {self.model_type} have no {', '.join(strange)}")
            return _hollow(AutoConfig.for_model(self.model_type, **self.config), dtype)
        except EsaError:
            raise
        except Exception as error:  # whatever a config can be wrong in
            raise EsaError(
                f"{self.name}: transformers makes no model of its config ({' '.join(str(error).split())[:240]}); see "
                "that model_type and config are right"
            ) from None

    def memory(self, width: int) -> dict[str, int]:
        """Bytes that an actor needs for each task, with so many bytes a weight; the placement's own estimates."""
        return {task: int(self.parameters.total * width * factor) + PROCESS for task, factor in TASKS.items()}


def _hollow(config: Any, dtype: str) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    from esa_ray.models.load import DTYPES

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])


def hollow(source: str, dtype: str) -> PreTrainedModel:
    """A model with no memory behind its weights, from its name alone: one of :func:`known`, of the zoo, or a directory.

    Raises
    ------
    EsaError
        If nothing here tells its config; no hub is asked.
    """
    from transformers import AutoConfig

    if match := _named(source):
        return match.hollow(dtype)
    if source.startswith(PREFIX):
        from esa_ray.models.zoo.training import architecture

        return _hollow(architecture(recipe(source.removeprefix(PREFIX))), dtype)
    directory = Path(source).expanduser()
    if (directory / "config.json").is_file():
        try:
            return _hollow(AutoConfig.from_pretrained(directory, trust_remote_code=False), dtype)
        except Exception as error:  # whatever a config can be wrong in
            raise EsaError(
                f"--model {source}: transformers makes no model of its config ({first_line(error)})"
            ) from None
    raise EsaError(
        f"--on needs the sizes of {source}, which nothing here tells; name a model as `esa models` does, or a "
        "directory with its config.json"
    )


def stored_dtype(source: str) -> str:
    """The dtype of a model's weights, of one that :func:`hollow` takes; fp32 where nothing tells it.

    >>> stored_dtype("EleutherAI/pythia-70m"), stored_dtype("zoo:llama-1m")
    ('fp16', 'fp32')
    """
    directory = Path(source).expanduser()
    if source in PACKAGED or source.startswith(PREFIX):  # what comes as GGUF is unpacked to fp32
        return "fp32"
    if match := _named(source):
        return match.dtype
    if (directory / "config.json").is_file():
        return own_dtype(Source(source, "directory", str(directory), ""))
    return "fp32"


def _named(source: str) -> Known | None:
    return next((m for m in known() if source in (m.name, m.name.rpartition("/")[2])), None)


def counted(model: PreTrainedModel) -> Parameters:
    """The parameters of a model, wherever its weights are."""
    ends: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {id(end.weight): end.weight.numel() for end in ends if end is not None}
    total = sum(p.numel() for p in model.parameters())
    inside = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    chosen, of = routed(model)
    return Parameters(total, total - sum(outside.values()), total - inside + inside * chosen // of)


def routed(model: PreTrainedModel) -> tuple[int, int]:
    """Experts that a token passes in a block, and how many there are; (1, 1) in a dense model."""
    from esa_ray.models.blocks import text_config

    config = text_config(model.config)
    parts = (config, getattr(config, "ffn_config", None))

    def first(names: tuple[str, ...]) -> int:
        return next((n for part in parts for name in names if (n := getattr(part, name, None))), 1)

    of = first(EXPERTS)
    return (first(CHOSEN) if of > 1 else 1), of


#: Where a model that was made here says in its config what it is: a family and a tuning.
ORIGIN = "esa_ray"


def facts(name: str, model: PreTrainedModel) -> dict[str, Any]:
    """What a comparison has to know of a loaded model: its family, kind and tuning, and its sizes.

    Family and tuning are those of the model of that name in :func:`known` (a directory may have the last part of it),
    or what the model's own config says of its origin, else its type and null.
    """
    match = _named(name)
    from esa_ray.models.blocks import width

    parameters, (chosen, experts) = counted(model), routed(model)
    own = getattr(model.config, ORIGIN, None) or {}
    return {
        "family": match.family if match else own.get("family", model.config.model_type),
        "tuning": match.tuning if match else own.get("tuning"),
        "kind": "moe" if experts > 1 else "dense",
        "parameters": parameters.total,
        "body": parameters.body,
        "active": parameters.active,
        "width": width(model),
        "experts": experts if experts > 1 else None,
        "experts_per_token": chosen if experts > 1 else None,
    }


def known(file: str | Path | None = None) -> list[Known]:
    """The models of esa-ray's own list, and those of a file in its format, which win over ours of the same name.

    Parameters
    ----------
    file
        JSON: a list of series, each with the fields of :class:`Series`.

    Raises
    ------
    EsaError
        If the file isn't there, or says something else.
    """
    ours = (files("esa_ray.models") / "known.json").read_text(encoding="utf-8")
    found = {model.name: model for model in _models(ours, "known.json")}
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable(f"--models-file {file}", error) from None
        found |= {model.name: model for model in _models(text, str(file))}
    return list(found.values())


def _models(text: str, name: str) -> list[Known]:
    try:
        series = TypeAdapter(list[Series]).validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise EsaError(
            f"{name}, {where}: {first['msg'].lower()}; it is a list of series, as in esa_ray/models/known.json"
        ) from None
    except ValueError as error:
        raise EsaError(f"{name} is no JSON: {first_line(error)}") from None
    return [
        Known(
            model, each.family, each.kind, own.get("tuning", each.tuning), each.model_type, each.dtype,
            each.config | {k: v for k, v in own.items() if k != "tuning"},
        )
        for each in series
        for model, own in each.models.items()
    ]  # fmt: skip
