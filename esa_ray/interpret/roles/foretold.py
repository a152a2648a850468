"""What one backward pass a role foretells of damage: the change of its metric, to first order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from esa_ray.interpret.roles.base import Role
from esa_ray.interpret.roles.passes import Batch
from esa_ray.scoring.gradients import frozen

if TYPE_CHECKING:
    from esa_ray.interpret.roles.bench import Bench
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.spec.roles import RoleName


class Foretold:
    """Δw·∂R/∂w summed over the damaged ones of ``bench.weights``: −w·∂R/∂w of a zeroed weight; R its mean over windows.

    Made of the intact model: a forward pass a text and a backward pass a role with a gradient. Weights that are away
    between forwards (offloaded) have none.
    """

    def __init__(self, bench: Bench):
        self._bench = bench
        self._tensors = [bench.catalogue[name] for name in bench.weights if not bench.catalogue[name].offloaded]
        self._at = [torch.as_tensor(np.asarray(bench.weights[t.name]), dtype=torch.int64) for t in self._tensors]
        self._before = self._now()
        roles = [role for role in bench.there if role.differentiable]
        self._gradients: dict[RoleName, list[Tensor]] = {
            role.name: [torch.zeros(len(at), dtype=torch.float64) for at in self._at] for role in roles
        }
        if self._tensors:
            self._fill(roles)

    def _now(self) -> list[Tensor]:
        return [_gathered(tensor, at) for tensor, at in zip(self._tensors, self._at, strict=True)]

    def _fill(self, roles: list[Role]) -> None:
        with frozen(self._bench.model):
            parameters = [tensor.parameter.requires_grad_(True) for tensor in self._tensors]
            for text in self._bench.texts:
                mine = [role for role in roles if role.text == text]
                sites = list(dict.fromkeys(site for role in mine for site in role.sites()))

                def look(batch: Batch, mine: list[Role] = mine) -> None:
                    for role in mine:
                        metric = (role.values(batch)[:, 0].double() * _weights(role, batch)).sum()
                        if metric.requires_grad:
                            found = torch.autograd.grad(metric, parameters, retain_graph=True, allow_unused=True)
                            self._add(role, found)

                self._bench.of(text).text.run(look, sites=sites, gradients=True)

    def _add(self, role: Role, gradients: tuple[Tensor | None, ...]) -> None:
        for total, gradient, at in zip(self._gradients[role.name], gradients, self._at, strict=True):
            if gradient is not None:
                total += gradient.flatten()[at.to(gradient.device)].double().cpu()

    def change(self, changed: int) -> dict[RoleName, float]:
        """By role: what is foretold of the damage that the model has now; nothing if it is also of other weights.

        ``changed`` is how many weights the damage changed.
        """
        moved = [now - before for now, before in zip(self._now(), self._before, strict=True)]
        if sum(int((delta != 0).sum()) for delta in moved) != changed:
            return {}
        return {
            name: sum(float(delta @ gradient) for delta, gradient in zip(moved, mine, strict=True))
            for name, mine in self._gradients.items()
        }


def _gathered(tensor: WeightTensor, at: Tensor) -> Tensor:
    weights = tensor.flat_weights()
    return weights[at.to(weights.device)].double().cpu()


def _weights(role: Role, batch: Batch) -> Tensor:
    """What each window of a batch counts in the metric's mean over windows."""
    if role.valid is None:
        return torch.tensor(1 / len(role.bench.intact[role.name].values), dtype=torch.float64)
    share = role.valid[batch.windows] / role.valid.sum()
    return torch.from_numpy(share).to(batch.nll_BT.device)
