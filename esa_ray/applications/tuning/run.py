"""A tuning on its way: its steps, and its state, from which another process goes on, bit for bit."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import clip_grad_norm_

from esa_ray.applications.tuning.schedule import batch_of, rate_of
from esa_ray.models.slots import input_device
from esa_ray.scoring.gradients import batch_nll, go_back

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.applications.tuning.protecting import Guard
    from esa_ray.applications.tuning.trained import Trained
    from esa_ray.applications.tuning.wearing import Wear
    from esa_ray.spec.tuning import TuneSpec

#: The gradient's largest norm over all that is trained, as fine-tuning usually has it.
LARGEST = 1.0
#: What a loss scale is divided by where gradients overflow in float16.
SMALLER = 16.0
#: It gets no smaller than this.
SMALLEST = 2.0**-20


class Run:
    """Takes the steps of a tuning.

    At most ``together`` windows of a step pass the model at a time: memory goes by these, and the gradient is that of
    the whole step's mean loss whatever they are, but for the order of its sum.

    ``step`` updates were done so far; ``losses`` are the mean losses (nats per token) since the last look. ``scale``
    multiplies the loss, a power of two: 1 but for float16, whose small gradients would vanish.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: TuneSpec,
        seed: int,
        train: np.ndarray,
        trained: Trained,
        guard: Guard,
        wear: Wear | None,
        scale: float = 1.0,
        together: int = 8,
    ):
        self.model, self.spec, self.seed, self.trained = model, spec, seed, trained
        self._guard, self._wear, self._together, self.scale = guard, wear, together, scale
        self._windows_NT = torch.as_tensor(train, device=input_device(model))
        # Tensor by tensor: all at once would take as much memory again as is trained.
        self._adam = torch.optim.Adam(trained.masters, lr=spec.learning_rate, foreach=False)
        self._half = any(tensor.dtype == torch.float16 for tensor in trained.tensors)
        self.step, self.losses, self.diverged = 0, list[float](), False

    @property
    def train_nll(self) -> float:
        """Mean loss of the steps since the last look."""
        return math.fsum(self.losses) / len(self.losses) if all(map(math.isfinite, self.losses)) else math.nan

    def until(self, stop: int) -> None:
        """Take steps up to a number of them, or until training diverges."""
        with self.trained.learning(self.model):
            while self.step < stop and not self.diverged:
                self._take()
        for master in self.trained.masters:
            master.grad = None  # what looks at the model may need the memory

    def _take(self) -> None:
        """One step: the loss of its windows, the gradient, the update."""
        with self._wear.at(self.step) if self._wear else nullcontext():
            loss = self._gradients()
        self.losses.append(loss)
        norm = math.inf
        if math.isfinite(loss):
            with torch.no_grad():
                self._guard.pull()
                norm = float(clip_grad_norm_(self.trained.masters, LARGEST, foreach=False))
        if math.isfinite(norm):
            self._update()
        self.diverged = not math.isfinite(norm)
        self.step += 1

    def _gradients(self) -> float:
        """Mean loss per token of the step's windows, its gradient left in the masters."""
        at = batch_of(self.seed, self.step, self.spec.batch, len(self._windows_NT))
        windows_BT = self._windows_NT[torch.from_numpy(at).to(self._windows_NT.device)]
        tokens = windows_BT[:, 1:].numel()
        loss = self._backward(windows_BT, tokens)
        while self._half and math.isfinite(loss) and self.scale > SMALLEST and not self._finite():
            self.scale /= SMALLER
            loss = self._backward(windows_BT, tokens)
        return loss

    def _backward(self, windows_BT: Tensor, tokens: int) -> float:
        for master in self.trained.masters:
            master.grad = None
        total = 0.0
        for part_BT in windows_BT.split(self._together):
            summed = batch_nll(self.model, part_BT, scale=self.scale)
            total += float(summed.detach())
            if not math.isfinite(total):
                return total
            go_back(self.model, summed, instead="tune another --model")
        for gradient in self._found():
            gradient /= self.scale * tokens
        return total / tokens

    def _found(self) -> list[Tensor]:
        return [master.grad for master in self.trained.masters if master.grad is not None]

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(gradient.sum())) for gradient in self._found())

    @torch.no_grad()
    def _update(self) -> None:
        for group in self._adam.param_groups:
            group["lr"] = self.spec.learning_rate * rate_of(self.step, self.spec.steps)
        with self._guard.holding():
            self._adam.step()
        self.trained.moved()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on beside the model as it was and what was asked for."""
        return {
            "step": self.step, "losses": self.losses, "scale": self.scale, "adam": self._adam.state_dict(),
            "masters": [master.detach().clone() for master in self.trained.masters],
        }  # fmt: skip

    @torch.no_grad()
    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step, self.losses, self.scale = state["step"], list(state["losses"]), state["scale"]
        self._adam.load_state_dict(state["adam"])
        for master, was in zip(self.trained.masters, state["masters"], strict=True):
            master.copy_(was)
        self.trained.moved()
