"""Where a model's transformer blocks are: lists of modules, found by what they are rather than by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from esa_ray.errors import EsaError
from esa_ray.models.layouts import NO_TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig, PreTrainedModel


#: Fields of a config that say how long a text may be.
CONTEXTS = ("max_position_embeddings", "max_target_positions", "max_seq_len")


@dataclass(frozen=True)
class Blocks:
    """The lists that a model's blocks stand in (their names), the main one first, and how many blocks there are.

    Most models have one list. XLM keeps attention and feed-forward layers in one each. A model whose blocks stand in
    no list has none, and so no layers.

    >>> Blocks(("h",), 2).place("h.1.attn.weight"), Blocks(("h",), 2).place("wte.weight")
    ((1, 'attn.weight'), (None, 'wte.weight'))
    """

    lists: tuple[str, ...]
    depth: int
    #: Name of the text decoder, with the dot; what stands elsewhere reads no text (vision towers, audio encoders).
    decoder: str = ""

    def place(self, name: str) -> tuple[int | None, str]:
        """Layer of a parameter and its name in the block; of what is in no block None and the whole name."""
        for found in self.lists:
            if match := re.match(re.escape(found) + r"\.(\d+)\.(.+)", name):
                return int(match[1]), match[2]
        return None, name


def reads_text(name: str) -> bool:
    """Whether a module's or parameter's name says nothing of images or sound.

    >>> reads_text("model.vision_tower.layers.0"), reads_text("model.layers.0")
    (False, True)
    """
    return not any(word in name.lower() for word in NO_TEXT)


def width(model: PreTrainedModel) -> int:
    """How many channels the text decoder's hidden states have."""
    embedding: Any = model.get_input_embeddings()
    return int(getattr(text_config(model.config), "hidden_size", None) or embedding.weight.shape[-1])


def vocabulary(model: PreTrainedModel) -> int:
    """How many tokens a model tells apart: its config's number, or where that has none as many as it embeds."""
    embedding: Any = model.get_input_embeddings()
    return int(getattr(text_config(model.config), "vocab_size", None) or embedding.weight.shape[0])


def context(model: PreTrainedModel) -> int | None:
    """How many tokens a window may have at most; None where nothing sets an end.

    The config says so, and the table of positions, of which RoBERTa and its kin leave out the first: up to padding's.
    ProphetNet asks it for the position after the last token, too.
    """
    config = text_config(model.config)
    further = 1 if getattr(config, "ngram", None) else 0
    told = [getattr(config, name, None) for name in CONTEXTS]
    tables = [
        module.num_embeddings - module.padding_idx - 1 - further
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None
        if reads_text(name)
    ]
    return min((int(n) for n in (*told, *tables) if isinstance(n, int) and n > 0), default=None)


def check_window(name: str, model: PreTrainedModel, window: int) -> None:
    """Refuse windows that are longer than a model reads; it may be hollow.

    Raises
    ------
    EsaError
        If they are (:func:`context`).
    """
    limit = context(model)
    if limit and window > limit:
        raise EsaError(f"--window {window} is longer than what --model {name} reads, {limit} tokens; lower it")


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a model's config that is about the text it writes."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError:  # several parts could be
        return config


def blocks(model: PreTrainedModel) -> Blocks:
    """Find a model's blocks: in its text decoder the list as long as the config says, else the longest.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> blocks(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)))
    Blocks(lists=('transformer.h',), depth=1, decoder='transformer.')
    """
    decoder, depth = _decoder(model), getattr(text_config(model.config), "num_hidden_layers", None)
    every = {name: list(found.children()) for name, found in _lists(model)}
    every = {name: found for name, found in every.items() if reads_text(name)} or every
    inside = {name: found for name, found in every.items() if name.startswith(decoder)} or every
    if not inside:
        return Blocks((), 0, decoder)

    def fitness(name: str) -> tuple[bool, int, int]:
        weights = sum(p.numel() for block in inside[name] for p in block.parameters())
        return len(inside[name]) == depth, len(inside[name]), weights

    main = max(inside, key=fitness)
    return Blocks((main, *_beside(main, inside)), len(inside[main]), decoder if inside is not every else "")


def stack(model: PreTrainedModel) -> tuple[str, list[nn.Module]]:
    """The name of a model's one list of blocks, with the dot, and the blocks.

    Raises
    ------
    EsaError
        If they stand in no list, or in several.
    """
    found = blocks(model)
    if len(found.lists) != 1:
        where = f"several lists ({', '.join(found.lists)})" if found.lists else "no list"
        raise EsaError(f"{type(model).__name__} has its blocks in {where}; it can't be resumed from one of them")
    return f"{found.lists[0]}.", list(model.get_submodule(found.lists[0]).children())


def _decoder(model: PreTrainedModel) -> str:
    """The name of the module that reads and writes text, with the dot; empty where that is the whole model."""
    try:
        found: Any = model.get_decoder()
    except Exception:  # whatever a model's own code raises
        return ""
    return next((f"{name}." for name, module in model.named_modules() if module is found and name), "")


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose children are numbered from 0 on, have weights, and are in no such module themselves."""
    for name, module in model.named_modules():
        children = [child for child, _ in module.named_children()]
        numbered = bool(children) and children == [str(n) for n in range(len(children))]
        if numbered and name and not re.search(r"\.\d+(\.|$)", name) and next(module.parameters(), None) is not None:
            yield name, module


def _beside(main: str, found: dict[str, list[nn.Module]]) -> list[str]:
    """Lists beside the main one that hold other parts of the same blocks: as long, each part norms or several matrices.

    A list of single matrices isn't: Gemma 3n's projections before its first block may be as many.
    """

    def part(module: nn.Module) -> bool:
        return sum(p.dim() > 1 for p in module.parameters()) != 1

    parent, length = main.rpartition(".")[0], len(found[main])
    return [
        name
        for name, modules in found.items()
        if name != main and name.rpartition(".")[0] == parent and len(modules) == length
        if all(map(part, modules))
    ]
