"""Rows, columns, neurons and attention heads: units of many weights, as lines of a model's matrices.

Every unit is some whole rows and columns of logical matrices, whatever the storage (fused, interleaved, of experts,
transposed):

- ``row``: one output row of one component, of one expert;
- ``col``: one input column of one component, of one expert;
- ``neuron``: its gate row where there are gates, its up row and its down column, of one expert;
- ``head``: a *query* head: its rows of q, and of the gates of its output, and its columns of o; its rows of k and v
  too, unless it shares them with other query heads (grouped and multi-query attention): these stay.

So zeroing a neuron or a head is removing it. Biases aren't weights here, and stay.

Legend: a *line* is a row or column of a tensor by one number: ``expert · rows + row``, and ``(expert · parts + part) ·
cols + col`` for the column of one part (:class:`~esa_ray.models.components.FusedPart`) of the tensor's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from esa_ray.errors import EsaError
from esa_ray.models.blocks import text_config
from esa_ray.models.layouts import Sizes
from esa_ray.spec import PLURALS, asks_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue, WeightTensor

Axis = Literal["row", "col"]


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines of one tensor, as many for every unit of a family: ``at`` has shape (units, lines)."""

    tensor: WeightTensor
    axis: Axis
    at: np.ndarray

    @cached_property
    def width(self) -> int:
        """Weights of each line."""
        return len(self.flat(0)) // self.at.shape[1]

    def flat(self, unit: int) -> np.ndarray:
        """The flat indices of a unit's lines, line by line."""
        return np.concatenate([_flat(self.tensor, self.axis, int(line)) for line in self.at[unit]])

    def of_weight(self, flat: int) -> int:
        """The line that a weight of the tensor lies on."""
        tensor, place = self.tensor, self.tensor.locate(np.array([flat]))
        expert, row, col = flat // (tensor.size // _experts(tensor)), int(place["row"][0]), int(place["col"][0])
        if self.axis == "row":
            return expert * tensor.rows + row
        return (expert * len(tensor.parts) + int(tensor.row_part[row])) * tensor.cols + col

    @property
    def first(self) -> np.ndarray:
        """The flat index of each unit's first weight in this tensor."""
        tensor, line = self.tensor, self.at[:, 0]
        each, stride = tensor.size // _experts(tensor), (1 if tensor.transposed else tensor.cols)
        if self.axis == "row":
            return line // tensor.rows * each + line % tensor.rows * stride
        over, col = np.divmod(line, tensor.cols)
        expert, part = np.divmod(over, len(tensor.parts))
        tops = np.array([np.argmax(tensor.row_part == p) for p in range(len(tensor.parts))])
        return expert * each + tops[part] * stride + col * (tensor.rows if tensor.transposed else 1)


def _experts(tensor: WeightTensor) -> int:
    return tensor.shape[0] if tensor.experts else 1


def _flat(tensor: WeightTensor, axis: Axis, line: int) -> np.ndarray:
    """The flat indices of one line, ascending."""
    if axis == "row":
        expert, row = divmod(line, tensor.rows)
        rows, cols = np.array([row]), np.arange(tensor.cols)
    else:
        over, col = divmod(line, tensor.cols)
        expert, part = divmod(over, len(tensor.parts))
        rows, cols = np.flatnonzero(tensor.row_part == part), np.array([col])
    start = expert * (tensor.size // _experts(tensor))
    at = cols * tensor.rows + rows if tensor.transposed else rows * tensor.cols + cols
    return start + at.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Family:
    """Units of one shape that controls can be drawn among: those of one component, or of one block (and expert).

    ``lines`` begin with those of the units' first matrix, which a ranking names them by.
    """

    unit: str
    lines: tuple[Lines, ...]
    expert: int | None

    def __len__(self) -> int:
        return len(self.lines[0].at)

    @property
    def tensor(self) -> WeightTensor:
        """The first matrix."""
        return self.lines[0].tensor

    @property
    def component(self) -> str:
        """The component of the first matrix."""
        first = self.lines[0]
        if first.axis == "row":
            part = int(self.tensor.row_part[first.at[0, 0] % self.tensor.rows])
        else:
            part = int(first.at[0, 0] // self.tensor.cols % len(self.tensor.parts))
        return self.tensor.parts[part].component

    @cached_property
    def members(self) -> int:
        """How many weights each unit is."""
        return sum(lines.width * lines.at.shape[1] for lines in self.lines)

    @cached_property
    def first(self) -> np.ndarray:
        """What names each unit in the first matrix: the flat index of its first weight there."""
        return self.lines[0].first

    def weights(self, unit: int) -> dict[str, np.ndarray]:
        """A unit's weights: flat indices, ascending, by tensor."""
        found: dict[str, list[np.ndarray]] = {}
        for lines in self.lines:
            found.setdefault(lines.tensor.name, []).append(lines.flat(unit))
        return {name: np.sort(np.concatenate(flat)) for name, flat in found.items()}

    def place(self, units: np.ndarray) -> dict[str, list[int | None]]:
        """Columns ``row``, ``col`` and ``number`` of some units; a coordinate that a unit lacks is None."""
        line, nothing = self.lines[0].at[units, 0], [None] * len(units)
        row = (line % self.tensor.rows).tolist() if self.unit == "row" else nothing
        col = (line % self.tensor.cols).tolist() if self.unit == "col" else nothing
        return {"row": row, "col": col, "number": units.tolist()}


class Units:
    """All units of a kind in a model, as families in the model's order.

    Raises
    ------
    EsaError
        If the model has no such units, or attention whose heads can't be told apart.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> heads = Units(model, catalogue(model), "head")
    >>> len(heads.families[0]), heads.families[0].members  # 8 inputs × (q, k, v, o) × 4 channels
    (2, 128)
    """

    def __init__(
        self, model: PreTrainedModel, catalogue: Catalogue, unit: str, components: Sequence[str] | None = None
    ):
        self.unit = unit
        makers: dict[str, Callable[[], Iterator[Family]]] = {
            "row": lambda: _of_matrices(catalogue, "row", components),
            "col": lambda: _of_matrices(catalogue, "col", components),
            "neuron": lambda: _neurons(catalogue),
            "head": lambda: _heads(model, catalogue),
        }
        order = {tensor.name: i for i, tensor in enumerate(catalogue.tensors)}
        # Stable: families of one first matrix stay in the order of its parts and experts.
        self.families = sorted(makers[unit](), key=lambda family: order[family.tensor.name])
        if not self.families:
            raise EsaError(f"the model has no {PLURALS[unit]} of the scored components; choose another --unit")

    @cached_property
    def _by_tensor(self) -> dict[str, list[Family]]:
        found: dict[str, list[Family]] = {}
        for family in self.families:
            found.setdefault(family.tensor.name, []).append(family)
        return found

    def find(self, tensor: str, first: int) -> tuple[Family, int]:
        """The unit that a ranking names by its first matrix and the flat index of its first weight there."""
        for family in self._by_tensor.get(tensor, []):
            at = np.flatnonzero(family.first == first)
            if len(at):
                return family, int(at[0])
        raise KeyError(f"{tensor} has no {self.unit} that begins at {first}")

    def holding(self, tensor: str, flat: int) -> tuple[Family, int]:
        """The unit that a weight is of, by the flat index in its tensor.

        Raises
        ------
        KeyError
            If it is of none.
        """
        for family in self.families:
            for lines in family.lines:
                if lines.tensor.name == tensor and len(at := np.argwhere(lines.at == lines.of_weight(flat))):
                    return family, int(at[0, 0])
        raise KeyError(f"{tensor} has no {self.unit} that holds the weight at {flat}")


def _of_matrices(catalogue: Catalogue, axis: Axis, components: Sequence[str] | None) -> Iterator[Family]:
    """Rows or columns of every component of every tensor (or of those asked for) and expert."""
    for tensor in catalogue.tensors:
        for number, part in enumerate(tensor.parts):
            if components is not None and not asks_for(components, part.component, tensor.name):
                continue
            for expert in range(_experts(tensor)):
                lines = _rows(tensor, number, expert) if axis == "row" else _cols(tensor, number, expert)
                yield Family(axis, (Lines(tensor, axis, lines[:, None]),), expert if tensor.experts else tensor.expert)


def _rows(tensor: WeightTensor, part: int, expert: int) -> np.ndarray:
    return expert * tensor.rows + np.flatnonzero(tensor.row_part == part)


def _cols(tensor: WeightTensor, part: int, expert: int) -> np.ndarray:
    return (expert * len(tensor.parts) + part) * tensor.cols + np.arange(tensor.cols)


#: A tensor with the number of one of its parts.
Piece = tuple["WeightTensor", int]


def _together(catalogue: Catalogue, wanted: Sequence[str], last: str) -> Iterator[dict[str, list[Piece]]]:
    """The pieces of these components that work together, by component: those of one module, or of a whole block.

    What ends in one matrix (``last``: o, down) belongs together; of several in a block each goes with those that stand
    in the same module.
    """
    layers: dict[int, list[tuple[str, Piece]]] = {}
    for tensor in catalogue.tensors:
        for number, part in enumerate(tensor.parts):
            if tensor.layer is not None and len(tensor.shape) > 1 and part.component in wanted:
                layers.setdefault(tensor.layer, []).append((part.component, (tensor, number)))
    for _, pieces in sorted(layers.items()):
        alone = sum(component == last for component, _ in pieces) == 1
        modules: dict[str, dict[str, list[Piece]]] = {}
        for component, piece in pieces:
            module = "" if alone else _module(piece[0])
            modules.setdefault(module, {}).setdefault(component, []).append(piece)
        yield from (found for found in modules.values() if last in found)


def _module(tensor: WeightTensor) -> str:
    """The module that holds a projection; what holds all experts in one tensor is the projection itself."""
    return tensor.name.removesuffix(".weight").rpartition(".")[0]


def _neurons(catalogue: Catalogue) -> Iterator[Family]:
    for pieces in _together(catalogue, ("gate", "up", "down"), "down"):
        down, number = pieces["down"][0]
        inner = [
            p for c in ("gate", "up") for p in pieces.get(c, []) if int((p[0].row_part == p[1]).sum()) == down.cols
        ]
        if len(pieces["down"]) > 1 or not any(tensor.parts[n].component == "up" for tensor, n in inner):
            continue  # what doesn't go up and down again has no neurons
        for expert in range(_experts(down)):
            lines = [Lines(tensor, "row", _rows(tensor, n, expert)[:, None]) for tensor, n in inner]
            lines.append(Lines(down, "col", _cols(down, number, expert)[:, None]))
            yield Family("neuron", tuple(lines), expert if down.experts else down.expert)


def _heads(model: PreTrainedModel, catalogue: Catalogue) -> Iterator[Family]:
    for pieces in _together(catalogue, ("q", "k", "v", "o", "attn_gate"), "o"):
        yield _attention(model, pieces)


def _attention(model: PreTrainedModel, pieces: Mapping[str, list[Piece]]) -> Family:
    """The query heads of one attention."""
    (o, number), heads = pieces["o"][0], 0
    if len(pieces["o"]) == len(pieces.get("q", [])) == 1 and not o.experts:
        q, part = pieces["q"][0]
        heads, queries = _count(model, q), int((q.row_part == part).sum())
    if not heads or q.experts or queries % heads or o.cols % heads:
        raise EsaError(f"the heads of {o.name} can't be told apart; choose --unit row, or leave the model out")
    lines = []
    for component in ("q", "attn_gate", "k", "v"):
        for tensor, part in pieces.get(component, []):
            rows = _rows(tensor, part, 0)
            own = component == "q" or (component == "attn_gate" and len(rows) % heads == 0)
            if own or _unshared(tensor, part, heads, len(rows), {"k": queries, "v": o.cols}.get(component)):
                lines.append(Lines(tensor, "row", rows.reshape(heads, -1)))
    lines.append(Lines(o, "col", _cols(o, number, 0).reshape(heads, -1)))
    return Family("head", tuple(lines), None)


def _unshared(tensor: WeightTensor, part: int, heads: int, rows: int, full: int | None) -> bool:
    """Whether every query head has rows of its own: as many as queries have, or one run of them for each head."""
    return rows == full or (rows % heads == 0 and heads > 1 and tensor.rows // tensor.parts[part].period == heads)


def _count(model: PreTrainedModel, q: WeightTensor) -> int:
    """How many query heads the attention has that a tensor stands in."""
    path = q.name.split(".")[:-1]
    around = [model.get_submodule(".".join(path[:n])) for n in range(len(path), 0, -1)]
    sizes = Sizes(around, text_config(model.config))
    for name in ("num_attention_heads", "num_heads", "n_heads", "n_head"):
        found = getattr(sizes, name, None)
        if isinstance(found, int):
            return found
    return 0
