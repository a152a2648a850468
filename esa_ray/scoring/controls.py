"""Control groups: weights that share everything with the super weights but their score.

Each control gives one weight for each super weight, in the same tensor and part and at the same rank. So
for every k the control has the same count per tensor as the set it controls for.
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


def random_k(tensor: WeightTensor, supers: np.ndarray, eligible: np.ndarray | None, seed: int) -> np.ndarray:
    """One uniformly drawn other weight for each super weight, without replacement.

    ``supers`` are flat indices; ``eligible`` is the flat mask of weights that compete (None: all).
    """
    taken = set(supers.tolist())
    available = tensor.size if eligible is None else int(eligible.sum())
    if available < 2 * len(supers):
        raise EsaError(
            f"{tensor.name} holds {available} weights, too few for {len(supers)} super weights and as many controls; "
            "lower --topk"
        )
    key, counter = stream_key(seed, "random_k", tensor.name), 0
    chosen: list[int] = []
    while len(chosen) < len(supers):
        draws = (uniform(key, np.arange(counter, counter + 4 * len(supers))) * tensor.size).astype(np.int64)
        counter += len(draws)
        for flat in draws.tolist():
            if flat not in taken and (eligible is None or eligible[flat]) and len(chosen) < len(supers):
                taken.add(flat)
                chosen.append(flat)
    return np.array(chosen, dtype=np.int64)


def matched_k(tensor: WeightTensor, supers: np.ndarray, eligible: np.ndarray | None, seed: int) -> np.ndarray:
    """For each super weight a random other one of similar magnitude: among its nearest neighbours in rank of |w|.

    Where the set is the very largest weights of a tensor nothing larger is left, so a match can be smaller.
    """
    magnitude = tensor.flat_weights().abs().float().cpu()
    if eligible is not None:
        magnitude = torch.where(torch.as_tensor(eligible), magnitude, torch.nan)
    order = torch.sort(magnitude, stable=True).indices.numpy()  # NaN sorts last
    order = order[: tensor.size if eligible is None else int(eligible.sum())]
    ordered = magnitude.numpy()[order]
    taken, chosen = set(supers.tolist()), []
    pick = uniform(stream_key(seed, "matched_k", tensor.name), supers)
    for flat, u in zip(supers.tolist(), pick, strict=True):
        centre, width = int(np.searchsorted(ordered, magnitude[flat].item())), MATCH_NEIGHBOURS // 2
        while True:
            near = [i for i in order[max(0, centre - width) : centre + width].tolist() if i not in taken]
            if near:
                break
            if width > len(order):
                raise EsaError(f"{tensor.name} has too few weights to match {len(supers)} by magnitude; lower --topk")
            width *= 2
        chosen.append(near[int(u * len(near))])
        taken.add(chosen[-1])
    return np.array(chosen, dtype=np.int64)
