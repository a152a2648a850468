"""Weights by the names that papers and checkpoints use, found in a model that may hold them under others.

Taken are, beside the model's own parameter names: names without ``.weight``, without or with another prefix before
the blocks (``transformer.h.1`` for ``model.layers.1``), and in other case; a matrix of one expert where the model holds
all in one tensor; and a projection that the model keeps inside a fused one. Rows are then those of the named matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.errors import EsaError

if TYPE_CHECKING:
    from esa_ray.models.addressing import Catalogue, WeightTensor
    from esa_ray.spec import WeightName

#: A name inside a block: the block's number, and what it is called there.
IN_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|encoder_layers?|decoder_layers?)\.(\d+)\.(.+)$")
#: The matrix of one expert: where its module stands, its number, and what it is called there.
OF_EXPERT = re.compile(r"^(?:.*\.)?experts\.(\d+)\.(?:\w+\.)?(\w+)$")
#: Last word of a projection's name → its component.
PROJECTIONS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "wq": "q", "wk": "k", "wv": "v", "wo": "o",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down",
}  # fmt: skip
#: The same outside of the blocks.
EDGES = {
    "embed_tokens": "embed", "wte": "embed", "embed_in": "embed", "word_embeddings": "embed",
    "tok_embeddings": "embed", "lm_head": "head", "embed_out": "head", "output": "head",
}  # fmt: skip
#: Prefixes before the names outside of the blocks.
PREFIXES = re.compile(r"^(model\.|transformer\.|language_model\.|text_model\.|decoder\.|gpt_neox\.|backbone\.)+")


@dataclass(frozen=True)
class Matrix:
    """A matrix that a name means: a tensor, which of its rows are the matrix' (None: all), and which expert."""

    tensor: WeightTensor
    rows: np.ndarray | None = None
    expert: int | None = None


def find_weight(catalogue: Catalogue, weight: WeightName) -> tuple[WeightTensor, int]:
    """The tensor that holds a weight, and its flat index there; of a whole row or column that of its first weight.

    Raises
    ------
    EsaError
        If the model has no weights of that name (the sentence tells the nearest), or that matrix no such row, column
        or expert.

    Example
    -------
    >>> from transformers import Phi3Config, Phi3ForCausalLM
    >>> from esa_ray.models.addressing import catalogue
    >>> from esa_ray.spec import WeightName
    >>> sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}
    >>> model = Phi3ForCausalLM(Phi3Config(**sizes, vocab_size=16, pad_token_id=0))
    >>> tensor, flat = find_weight(catalogue(model), WeightName(tensor="model.layers.0.mlp.up_proj", row=2, col=5))
    >>> tensor.name, divmod(flat, 8)
    ('model.layers.0.mlp.gate_up_proj.weight', (14, 5))
    """
    found = _matrix(catalogue, weight.tensor)
    if found is None:
        raise EsaError(_unknown(catalogue, weight.tensor))
    tensor, expert = found.tensor, found.expert
    if weight.expert is not None:
        if expert not in (None, weight.expert) or not (tensor.experts or tensor.expert == weight.expert):
            raise EsaError(f"{weight.tensor} and expert {weight.expert} contradict each other; leave one out")
        expert = weight.expert
    if tensor.experts and expert is None:
        raise EsaError(f"{tensor.name} holds {tensor.shape[0]} experts; say which one of them")
    rows = tensor.rows if found.rows is None else len(found.rows)
    _check(weight, tensor, rows, expert)
    if weight.unit == "col" and found.rows is None and len(tensor.parts) > 1:
        stacked = " and ".join(dict.fromkeys(part.component for part in tensor.parts))
        raise EsaError(f"{weight.tensor} holds {stacked}, each with columns of its own; name one of them")
    row = weight.row or 0
    row = row if found.rows is None else int(found.rows[row])
    return tensor, tensor.index(row, weight.col or 0, expert if tensor.experts else None)


def _check(weight: WeightName, tensor: WeightTensor, rows: int, expert: int | None) -> None:
    limits = [("row", weight.row, rows), ("col", weight.col, tensor.cols)]
    if tensor.experts and expert is not None:
        limits.append(("expert", expert, tensor.shape[0]))
    for name, value, limit in limits:
        if value is not None and value >= limit:
            of = f"{tensor.shape[0]} experts of " if tensor.experts else ""
            raise EsaError(
                f"{weight.tensor} has no {name} {value}: they go from 0 to {limit - 1}, as it is {of}{rows} × "
                f"{tensor.cols} (outputs × inputs)"
            )


def _plain(name: str) -> str:
    return name.strip().lower().removesuffix(".weight").replace("block_sparse_moe.", "mlp.")


def _key(name: str) -> tuple[int | None, str]:
    """What two spellings of one name share: the block, and the name there or without its prefix."""
    plain = _plain(name)
    inside = IN_BLOCK.search(plain)
    return (int(inside[1]), inside[2]) if inside else (None, PREFIXES.sub("", plain))


def _matrix(catalogue: Catalogue, name: str) -> Matrix | None:
    if name in catalogue.by_name:
        return Matrix(catalogue[name])
    # Tied weights are one tensor under several names.
    names = [(slot.name, tensor) for tensor in catalogue.tensors for slot in tensor.slots]
    alike = {id(tensor): tensor for own, tensor in names if _key(own) == _key(name)}
    if len(alike) == 1:
        return Matrix(next(iter(alike.values())))
    layer, stem = _key(name)
    if alike:
        return None
    return _edge(catalogue, stem) if layer is None else _projection(catalogue, layer, stem)


def _edge(catalogue: Catalogue, stem: str) -> Matrix | None:
    """The embedding or the head."""
    component = EDGES.get(stem.rpartition(".")[2])
    mine = [t for t in catalogue.tensors if t.layer is None and component and _holds(t, component)]
    return Matrix(mine[0]) if len(mine) == 1 else None


def _projection(catalogue: Catalogue, layer: int, stem: str) -> Matrix | None:
    """A projection of a block by its component: of one expert, or of none."""
    of_expert = OF_EXPERT.match(stem)
    component = PROJECTIONS.get(of_expert[2] if of_expert else stem.rpartition(".")[2])
    if component is None:
        return None
    inside = [t for t in catalogue.tensors if t.layer == layer and _holds(t, component)]
    mine = [t for t in inside if ("shared" in stem) == ("shared" in t.name)]
    if of_expert:
        number = int(of_expert[1])
        mine = [t for t in mine if t.experts or t.expert == number]
        return Matrix(mine[0], _rows(mine[0], component), number) if len(mine) == 1 else None
    mine = [t for t in mine if not t.experts and t.expert is None]
    return Matrix(mine[0], _rows(mine[0], component)) if len(mine) == 1 else None


def _holds(tensor: WeightTensor, component: str) -> bool:
    return len(tensor.shape) > 1 and any(part.component == component for part in tensor.parts)


def _rows(tensor: WeightTensor, component: str) -> np.ndarray | None:
    """The rows of a component in a fused tensor, in order; None where it has the tensor to itself."""
    mine = [i for i, part in enumerate(tensor.parts) if part.component == component]
    rows = np.flatnonzero(np.isin(tensor.row_part, mine))
    return None if len(rows) == tensor.rows else rows


def _unknown(catalogue: Catalogue, name: str) -> str:
    layer, _ = _key(name)
    own = [t.name for t in catalogue.tensors]
    layers = sorted({t.layer for t in catalogue.tensors if t.layer is not None})
    if layer is not None and layers and layer not in layers:
        return f"the model has no weights named {name}: its blocks are {layers[0]} to {layers[-1]}"
    return f"the model has no weights named {name}; the nearest are {', '.join(_nearest(name, own))}"


def _nearest(name: str, own: Iterable[str], n: int = 3) -> list[str]:
    spelled = {_plain(each): each for each in own}
    return [spelled[plain] for plain in get_close_matches(_plain(name), spelled, n, cutoff=0.0)]
