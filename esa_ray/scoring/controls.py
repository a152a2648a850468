"""Control groups: weights that share everything with the super weights but their score.

Each control gives one weight for each super weight, in the same tensor and component and at the same rank,
and never a super weight itself. So for every k the control has the same counts as the set that it controls
for. It does depend on the depth of the ranking, the largest k that it was drawn for: which weights are super
weights, and so left out, follows from it. The depth is therefore part of a control cell's identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.randomness import stream_key, uniform
from esa_ray.scoring.histogram import PATTERNS, bin_of
from esa_ray.scoring.pools import some_of
from esa_ray.scoring.scores import Scores
from esa_ray.scoring.streaming import Stretch, in_order, stretches

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor

#: A matched weight's magnitude lies among this many nearest by rank, unless these are taken.
MATCH_NEIGHBOURS = 64


@dataclass(frozen=True)
class Members:
    """The weights of one component of a tensor, ascending, by arithmetic: none is listed.

    >>> from esa_ray.models.addressing import Part, WeightTensor
    >>> halves = (Part("gate", 0, 1, 2), Part("up", 1, 1, 2))
    >>> tensor = WeightTensor("w", 0, (2, 3), halves, False, False, None, ())
    >>> len(Members(tensor, 1)), Members(tensor, 1)[np.array([0, 2])].tolist()
    (3, [3, 5])
    """

    tensor: WeightTensor
    part: int | None = None

    @property
    def outputs(self) -> np.ndarray | None:
        """For every output of the tensor, whether its weights are members; None if all are."""
        return None if self.part is None else some_of(self.tensor.row_part == self.part)

    def __len__(self) -> int:
        outputs = self.outputs
        return self.tensor.size // self.tensor.rows * (self.tensor.rows if outputs is None else int(outputs.sum()))

    def __getitem__(self, at: np.ndarray) -> np.ndarray:
        """The flat indices of the members with these numbers."""
        tensor, outputs = self.tensor, self.outputs
        if outputs is None:
            return at
        mine = np.flatnonzero(outputs)
        if tensor.transposed:  # every row of storage holds all outputs of one input
            return at // len(mine) * tensor.rows + mine[at % len(mine)]
        output, col = np.divmod(at, tensor.cols)
        return (output // len(mine) * tensor.rows + mine[output % len(mine)]) * tensor.cols + col


def _check_enough(tensor: WeightTensor, n: int, wanted: int) -> None:
    if n < 2 * wanted:
        raise EsaError(
            f"{tensor.name} holds {n} weights of a component, too few for {wanted} super weights and as many "
            "controls; lower --topk"
        )


def random_k(tensor: WeightTensor, supers: np.ndarray, eligible: Members | None, seed: int) -> np.ndarray:
    """One uniformly drawn other weight for each super weight, without replacement.

    ``supers`` are flat indices by rank, ``eligible`` the weights to draw from (None: the whole tensor).
    """
    among = Members(tensor) if eligible is None else eligible
    _check_enough(tensor, len(among), len(supers))
    first = int(among[np.array([0])][0])
    draws = _draws(among, stream_key(seed, "random_k", tensor.name, first), 2 * len(supers))
    taken: set[int] = set(supers.tolist())
    chosen: list[int] = []
    for draw in draws:
        if len(chosen) == len(supers):
            break
        if draw not in taken:
            taken.add(draw)
            chosen.append(draw)
    return np.array(chosen, dtype=np.int64)


def _draws(among: Members, key: int, at_once: int) -> Iterator[int]:
    """Uniform draws with replacement, without end."""
    counter = np.arange(max(1, at_once))
    while True:
        yield from among[(uniform(key, counter) * len(among)).astype(np.int64)].tolist()
        counter += len(counter)


def matched_k(tensor: WeightTensor, supers: np.ndarray, eligible: Members | None, seed: int) -> np.ndarray:
    """For each super weight a random other one of similar magnitude: among its nearest neighbours in rank of |w|.

    Where the set is the very largest weights of a tensor nothing larger is left, so a match can be smaller. Of
    equal magnitudes the lower flat index ranks lower.
    """
    among = Members(tensor) if eligible is None else eligible
    _check_enough(tensor, len(among), len(supers))
    magnitude = tensor.flat_weights()[torch.as_tensor(supers)].abs().float().cpu().numpy()
    ordered, candidates = _near(tensor, among.outputs, magnitude)
    place = np.searchsorted(ordered, magnitude)
    pick = uniform(stream_key(seed, "matched_k", tensor.name), supers)
    taken: set[int] = set(supers.tolist())
    chosen: list[int] = []
    for centre, u in zip(place.tolist(), pick.tolist(), strict=True):
        width = MATCH_NEIGHBOURS // 2
        near: list[int] = []
        while not near:
            near = [i for i in candidates[max(0, centre - width) : centre + width].tolist() if i not in taken]
            width *= 2
        chosen.append(near[int(u * len(near))])
        taken.add(chosen[-1])
    return np.array(chosen, dtype=np.int64)


def _near(tensor: WeightTensor, outputs: np.ndarray | None, magnitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes and flat indices, in order of magnitude, of all weights that could be a match for some.

    Only the bins of a histogram are sorted that hold them, so this costs two passes over the weights instead of an
    order of all. What lies between two runs of such bins is left out, beyond every match's reach.
    """
    stretched = list(stretches(Scores([tensor], {}, 0), "magnitude", [part.component for part in tensor.parts]))
    counts = sum(_counts(stretched, outputs), start=np.zeros(PATTERNS, np.int64))
    bins = _bins_near(counts, np.unique(bin_of(torch.from_numpy(magnitudes)).numpy()), _reach(len(magnitudes)))

    def found(stretch: Stretch) -> tuple[np.ndarray, np.ndarray]:
        return _in_bins(stretch, outputs, bins)

    bits, flat = (np.concatenate(parts) for parts in zip(*in_order(found, stretched), strict=True))
    # Numpy's vectorised sort of integers isn't stable, and needn't be with the place in the lower half.
    keys = np.sort(bits << 32 | np.arange(len(bits)))
    return (keys >> 32).astype(np.int32).view(np.float32), flat[keys & 0xFFFFFFFF]


def _reach(supers: int) -> int:
    """How many ranks away a match can be: in twice as many as there are supers and matches, one is free."""
    reach = MATCH_NEIGHBOURS // 2
    while reach < 2 * supers:
        reach *= 2
    return reach


def _counts(stretched: list[Stretch], outputs: np.ndarray | None) -> Iterator[np.ndarray]:
    """How many magnitudes every bin holds, stretch by stretch."""

    def counted(stretch: Stretch) -> Tensor:
        counts = torch.zeros(PATTERNS, dtype=torch.int64, device=stretch.reading.weights.device)
        for chunk in stretch.chunks():
            bins = bin_of(chunk.of(outputs))
            counts.index_add_(0, bins, torch.ones_like(bins, dtype=torch.int64))
        return counts

    return (counts.cpu().numpy() for counts in in_order(counted, stretched))


def _bins_near(counts: np.ndarray, bins: np.ndarray, reach: int) -> np.ndarray:
    """Which bins hold a rank that is at most so many away from a rank in some bins."""
    upto = counts.cumsum()
    first = np.searchsorted(upto, np.maximum(upto[bins] - counts[bins] - reach, 0), side="right")
    last = np.searchsorted(upto, np.minimum(upto[bins] + reach, upto[-1] - 1), side="right")
    borders = np.zeros(PATTERNS + 1, np.int64)
    np.add.at(borders, first, 1)
    np.add.at(borders, last + 1, -1)
    return borders.cumsum()[:-1] > 0


def _in_bins(stretch: Stretch, outputs: np.ndarray | None, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bit patterns (as int64) and flat indices of a stretch's magnitudes that lie in some bins."""
    wanted = torch.as_tensor(bins, device=stretch.reading.weights.device)
    bits, flat = [], []
    for chunk in stretch.chunks():
        mask, inside = chunk.mask(outputs), wanted[bin_of(chunk.scores)]
        at = torch.nonzero(inside if mask is None else inside & mask).flatten()
        bits.append(chunk.scores[at].view(torch.int32).long().cpu().numpy())
        flat.append(at.cpu().numpy() + chunk.flat.start)
    return np.concatenate(bits), np.concatenate(flat)
