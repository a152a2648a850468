"""New values of damaged weights, tensor by tensor, in float64 numpy on the host: slow, and by the formulas."""

import math

import numpy as np
import torch

from esa_ray.perturb.bits import bit_positions
from esa_ray.randomness import normal, stream_key, uniform


def whole(tensor) -> np.ndarray:
    return tensor.flat_weights().double().numpy()


def spread(tensor, flat, relative_to):
    if relative_to != "tensor":
        return np.abs(whole(tensor)[flat])
    return math.sqrt(float(torch.from_numpy((whole(tensor) - mean(tensor)) ** 2).sum()) / tensor.size)


def mean(tensor) -> float:
    return float(torch.from_numpy(whole(tensor)).sum()) / tensor.size  # torch's order of summation, not numpy's


def rows(tensor, flat) -> list[np.ndarray]:
    """The whole output row of each weight."""
    values, place = whole(tensor).reshape(tensor.shape), tensor.locate(flat)
    if len(tensor.shape) == 1:
        return [values[[r]] for r in place["row"]]
    matrices = values.reshape(-1, *tensor.shape[-2:])
    matrices = matrices.swapaxes(1, 2) if tensor.transposed else matrices
    experts = place["expert"] if tensor.experts else [0] * len(flat)
    return [matrices[e, r] for e, r in zip(experts, place["row"], strict=True)]


def noise(spec, tensor, flat, draw) -> np.ndarray:
    if spec.kind != "correlated":
        return normal(stream_key(*draw, "gauss_noise", tensor.name), flat)
    place = tensor.locate(flat)
    if spec.shared == "row":
        experts = np.array(place["expert"]) if tensor.experts else 0
        return normal(stream_key(*draw, "correlated row", tensor.name), experts * tensor.rows + place["row"])
    layer = tensor.name if tensor.layer is None else tensor.layer
    units = place["component"] if spec.shared == "component" else [layer] * len(flat)
    return np.array([normal(stream_key(*draw, f"correlated {spec.shared}", u), np.zeros(1))[0] for u in units])


def flipped(spec, tensor, flat, draw) -> torch.Tensor:
    old = tensor.flat_weights()[torch.from_numpy(flat)]
    width = 8 * old.element_size()
    integers = old.view({32: torch.int32, 16: torch.int16}[width]).numpy().view(f"u{width // 8}").copy()
    for position in bit_positions(old.dtype, spec.bits):
        hit = uniform(stream_key(*draw, "bit_flip", tensor.name, position), flat) < spec.strength
        integers[hit] ^= integers.dtype.type(1 << position)
    return torch.from_numpy(integers.view(f"i{width // 8}")).view(old.dtype)


def weight_per_score(catalogue, chosen, known) -> float:
    weight = math.fsum(float(x) ** 2 for name, flat in chosen.items() for x in whole(catalogue[name])[flat])
    return math.sqrt(weight / math.fsum(float(s) ** 2 for k in known.values() for s in k.score))


def new_values(spec, catalogue, name, chosen, draw, known) -> torch.Tensor:
    """What a kind makes of one tensor's chosen weights, in their own dtype."""
    tensor, flat, s = catalogue[name], np.asarray(chosen[name]), spec.strength
    old = whole(tensor)[flat]
    if spec.kind == "progressive":
        end = new_values(spec.toward, catalogue, name, chosen, draw, known).double().numpy()
        new = old + s * (end - old)
    elif spec.kind == "bit_flip":
        return flipped(spec, tensor, flat, draw)
    elif spec.kind == "dropout":
        new = np.where(uniform(stream_key(*draw, "dropout", name), flat) < s, 0.0, old)
    elif spec.kind in ("gauss_noise", "correlated"):
        new = old + s * spread(tensor, flat, spec.relative_to) * noise(spec, tensor, flat, draw)
    elif spec.kind == "adaptive":
        a = [math.sqrt(float((torch.from_numpy(r.copy()) ** 2).mean())) for r in rows(tensor, flat)]
        if spec.adapt != "row":
            a = known[name].score * weight_per_score(catalogue, chosen, known)
        new = old + s * np.array(a) * noise(spec, tensor, flat, draw)
    elif spec.kind == "quantize":
        most = np.array([np.abs(r).max() for r in rows(tensor, flat)])
        step = (most if spec.per != "tensor" else np.abs(whole(tensor)).max()) / (2 ** (int(s) - 1) - 1)
        step = np.broadcast_to(step, old.shape)
        new = np.zeros(len(old))
        new[step > 0] = np.round(old[step > 0] / step[step > 0]) * step[step > 0]
    else:
        new = {
            "sign_flip": lambda: -old if s == 1 else (1 - 2 * s) * old,
            "zero": lambda: 0 * np.abs(old),
            "set_mean": lambda: np.full(len(old), mean(tensor)),
            "scale": lambda: s * old,
            "gradient_aligned": lambda: old + s * np.abs(old) * np.sign(known[name].gradient),
            "gradient_opposed": lambda: old - s * np.abs(old) * np.sign(known[name].gradient),
        }[spec.kind]()
    return torch.from_numpy(new).to(tensor.dtype)
