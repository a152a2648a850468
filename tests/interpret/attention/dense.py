"""Attention as transformers itself gives it, and everything that rows say of it, computed slowly in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Dense:
    """One eager forward pass over all windows: patterns of blocks (N, H, T, T), states after them, logits, losses."""

    patterns: list[np.ndarray]
    hidden: list[np.ndarray]
    logits: np.ndarray
    nll: np.ndarray

    @classmethod
    def of(cls, model, windows):
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        states: list[torch.Tensor] = []
        stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
        hooks = [
            block.register_forward_hook(lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out))
            for block in stack
        ]
        tokens = torch.as_tensor(windows)
        with torch.no_grad():
            out = model(tokens, output_attentions=True, use_cache=False)
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(before)
        loss = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].double().transpose(1, 2), tokens[:, 1:], reduction="none"
        )
        return cls(
            [a.double().numpy() for a in out.attentions], [s.double().numpy() for s in states],
            out.logits.double().numpy(), loss.mean(1).numpy(),
        )  # fmt: skip

    def of_block(self, name, block):
        """What a row's column says: a number a head, or of a spike one."""
        p, h = self.patterns[block], np.abs(self.hidden[block])
        queries = range(1, p.shape[-1])
        match name:
            case "sink":
                return list(np.mean([p[:, :, q, 0] for q in queries], axis=(0, 1)))
            case "previous":
                return list(np.mean([p[:, :, q, q - 1] for q in queries], axis=(0, 1)))
            case "entropy":
                logs = np.log(np.where(p > 0, p, 1.0))
                return list(np.mean([-(p * logs)[:, :, q].sum(-1) for q in queries], axis=(0, 1)))
            case "spike":
                middle = np.sort(h, -1)[..., (h.shape[-1] - 1) // 2]
                return float((h / middle[..., None]).max((1, 2)).mean())
            case "spike_channel" | "spike_first":
                ratios = h / np.sort(h, -1)[..., (h.shape[-1] - 1) // 2][..., None]
                where = [np.unravel_index(r.argmax(), r.shape) for r in ratios]
                if name == "spike_first":
                    return float(np.mean([position == 0 for position, _ in where]))
                channels = [int(channel) for _, channel in where]
                return min(sorted(set(channels)), key=lambda c: (-channels.count(c), c))
        raise KeyError(name)

    def moved(self, other):
        """RMS over scored positions and the vocabulary of how far logits are from another pass's, their mean apart."""
        change = (self.logits - other.logits)[:, :-1]
        return float(np.sqrt(np.mean((change - change.mean(-1, keepdims=True)) ** 2)))
