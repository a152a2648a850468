"""The norm between a model's last block and its head: what it divides by, seen or changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from esa_ray.errors import EsaError
from esa_ray.models.blocks import reads_text, stack
from esa_ray.models.forwards import hidden
from esa_ray.models.hooks import entering, leaving
from esa_ray.models.modes import eval_mode
from esa_ray.models.slots import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.attending import Act


@dataclass(frozen=True, eq=False)
class FinalNorm:
    """A norm y = g·(h − μ)/d + b with d = √(mean (h − μ)² + ε), where μ is 0 or the mean of h."""

    module: nn.Module
    centred: bool
    eps: float
    _acts: list[Act] = field(default_factory=list)

    def denominator(self, hidden: Tensor) -> Tensor:
        """What hidden states (…, H) are divided by: (…), float32 or more."""
        hidden = _exact(hidden)
        if self.centred:
            hidden = hidden - hidden.mean(-1, keepdim=True)
        return (hidden.square().mean(-1) + self.eps).sqrt()

    @contextmanager
    def dividing(self, act: Act) -> Iterator[None]:
        """Let ``act`` see what is divided by, (B, T), and say something else; those that came first are called first.

        One hook serves all: what a later one sees is what an earlier one says, which the output alone doesn't tell.
        """
        self._acts.append(act)
        try:
            with leaving(self.module, self._divide) if len(self._acts) == 1 else nullcontext():
                yield
        finally:
            self._acts.remove(act)

    def _divide(self, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        inputs = hidden(args, kwargs)
        own = held = self.denominator(inputs)
        for act in self._acts:
            held = held if (said := act(held)) is None else said
        if held is own:
            return output
        bias, ratio = _exact(self.module.forward(torch.zeros_like(inputs[:1, :1]))), (own / held)[..., None]
        return torch.where(ratio == 1, output, ((_exact(output) - bias) * ratio + bias).to(output.dtype))


def _exact(numbers: Tensor) -> Tensor:
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def final_norm(model: PreTrainedModel) -> FinalNorm:
    """Find the norm between the last block and the head, and what it divides by.

    Raises
    ------
    EsaError
        If there is none, or it divides by something else.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> final_norm(model).centred
    True
    """
    norm = _last_norm(model)
    eps = next((float(v) for n in ("variance_epsilon", "eps", "epsilon") if (v := getattr(norm, n, None))), 0.0)
    probe = torch.linspace(-1, 2, _width(model, norm), device=input_device(model)).square()[None, None]
    probe = probe.to(next(model.parameters()).dtype)
    for centred in (False, True):
        found = FinalNorm(norm, centred, eps)
        if _divides(found, probe):
            return found
    raise EsaError(
        f"{type(model).__name__}'s final norm ({type(norm).__name__}) divides by neither a root mean square nor a "
        "standard deviation, so it can't be held; leave the role confidence out"
    )


def _width(model: PreTrainedModel, norm: nn.Module) -> int:
    """How many channels go into a norm: as many as it has gains, or a norm without any those of the head."""
    gains = next(norm.parameters(), None)
    owner: Any = model.get_output_embeddings() or model.get_input_embeddings()
    return int((owner.weight if gains is None else gains).shape[-1])


@torch.no_grad()
def _divides(norm: FinalNorm, probe: Tensor) -> bool:
    """Whether the norm's outputs, times what it is said to divide by, are linear in what goes in."""
    bias = norm.module.forward(torch.zeros_like(probe)).float()
    inputs = [probe, 0.01 * probe, probe + 1, torch.ones_like(probe)]
    made = [(norm.module.forward(x).float() - bias) * norm.denominator(x)[..., None] for x in inputs]
    near = 1e-4 if probe.dtype in (torch.float32, torch.float64) else 0.05
    scale = near * float(made[0].abs().max())
    linear = torch.allclose(100 * made[1], made[0], near, scale)
    return linear and torch.allclose(made[2], made[0] + made[3], near, 2 * scale)


def _last_norm(model: PreTrainedModel) -> nn.Module:
    """The one norm outside of the blocks, or of several the last that is called after them."""
    prefix, blocks = stack(model)
    there = [
        module
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not name.startswith(prefix) and reads_text(name)
    ]
    if len(there) != 1:
        called = _called(model, there, blocks[-1])
        there = called[-1:]
    if not there:
        raise EsaError(
            f"{type(model).__name__} has no norm after its last block, so no denominator; leave the role confidence out"
        )
    return there[0]


@torch.no_grad()
def _called(model: PreTrainedModel, modules: list[nn.Module], last: nn.Module) -> list[nn.Module]:
    """Which of some modules are called after the last block, in that order, found by a pass over two tokens."""
    calls: list[nn.Module] = []
    with ExitStack() as hooks:
        for module in (*modules, last):
            hooks.enter_context(entering(module, lambda *_, module=module: calls.append(module)))
        with eval_mode(model):
            model(torch.zeros(1, 2, dtype=torch.long, device=input_device(model)), use_cache=False)
    return calls[calls.index(last) + 1 :] if last in calls else []
