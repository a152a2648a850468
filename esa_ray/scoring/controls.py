"""Control groups: weights that share everything with the super weights but their score.

Each control gives one weight for each super weight, in the same tensor and component and at the same rank,
and never a super weight itself. So for every k the control has the same counts as the set that it controls
for. It does depend on the depth of the ranking, the largest k that it was drawn for: which weights are super
weights, and so left out, follows from it. The depth is therefore part of a control cell's identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.randomness import stream_key, uniform

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor

#: A matched weight's magnitude lies among this many nearest by rank, unless these are taken.
MATCH_NEIGHBOURS = 64


def _check_enough(tensor: WeightTensor, n: int, wanted: int) -> None:
    if n < 2 * wanted:
        raise EsaError(
            f"{tensor.name} holds {n} weights of a component, too few for {wanted} super weights and as many "
            "controls; lower --topk"
        )


def random_k(tensor: WeightTensor, supers: np.ndarray, eligible: np.ndarray | None, seed: int) -> np.ndarray:
    """One uniformly drawn other weight for each super weight, without replacement.

    ``supers`` are flat indices by rank, ``eligible`` the flat indices to draw from (None: the whole tensor).
    """
    n, first = (tensor.size, 0) if eligible is None else (len(eligible), int(eligible[0]))
    _check_enough(tensor, n, len(supers))
    key, counter = stream_key(seed, "random_k", tensor.name, first), 0
    taken: set[int] = set(supers.tolist())
    chosen: list[int] = []
    for flat in supers.tolist():
        draw = flat
        while draw in taken:
            u = uniform(key, np.array([counter]))[0]
            at, counter = int(u * n), counter + 1
            draw = at if eligible is None else int(eligible[at])
        taken.add(draw)
        chosen.append(draw)
    return np.array(chosen, dtype=np.int64)


def matched_k(tensor: WeightTensor, supers: np.ndarray, eligible: np.ndarray | None, seed: int) -> np.ndarray:
    """For each super weight a random other one of similar magnitude: among its nearest neighbours in rank of |w|.

    Where the set is the very largest weights of a tensor nothing larger is left, so a match can be smaller.
    """
    eligible = np.arange(tensor.size) if eligible is None else eligible
    _check_enough(tensor, len(eligible), len(supers))
    magnitude = tensor.flat_weights()[torch.as_tensor(eligible)].abs().float().cpu().numpy()
    order = np.argsort(magnitude, kind="stable")
    ordered, candidates = magnitude[order], eligible[order]
    place = np.searchsorted(ordered, tensor.flat_weights()[torch.as_tensor(supers)].abs().float().cpu().numpy())
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
