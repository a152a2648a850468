"""What the intact model predicts, kept as compactly as its head allows, to measure how far damage moves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from esa_ray.evaluation.outcome import Outcome, evaluate
from esa_ray.scratch import in_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Intact logits beyond this many bytes lie in a file that the page cache serves.
KEPT_BYTES = 1 << 30


class Intact:
    r"""The intact model's next-token distributions p on fixed windows, for KL(p ‖ q) of the damaged model's q.

    With a head that is a linear map in float32, logits z = W h + b, only 2H + 1 numbers a token are kept instead of V:

        KL(p ‖ q) = E_p[W]·(h − h′) + log Σ_v exp z′_v − log Σ_v exp z_v,

    with h′ and z′ the damaged model's; what is small comes out of small differences, and so without cancellation.
    Keeping (SmolLM2-135M: 1,153 numbers instead of 49,152) beats recomputing p, which takes the head a second time
    for every cell. Any other head (16 bits, capped or scaled logits, or one that
    is itself damaged) needs the intact logits; these are kept in the dtype they come in, beyond 1 GiB in a file
    without a name under ``$TMPDIR``.

    Parameters
    ----------
    windows
        Token windows, integers of shape (N, T).
    head_stays
        Promise that no damage touches the head's weights.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> windows = np.zeros((3, 8), dtype=np.int64)
    >>> intact = Intact(model, windows)
    >>> max(evaluate(model, windows, intact=intact).kl) < 1e-4
    True
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, windows: np.ndarray, batch_size: int = 8, *, head_stays: bool = True):
        head = model.get_output_embeddings()
        plain = type(head) is nn.Linear and head.weight.dtype == torch.float32 and not head.weight.is_meta
        #: Whether a few numbers a token are enough.
        self.compact = plain and head_stays
        self._windows = np.asarray(windows)
        #: For each window E_p[W] and h, both (T−1, H), and the log-sum-exp of the logits.
        self._expected: list[tuple[Tensor, Tensor, Tensor]] = []
        self._logits: list[Tensor] = []
        #: Loss of the intact model; its ``kl`` is None.
        self.outcome = self._gather(model, batch_size)
        if self.compact and not self._expected:  # its logits are not what its head makes
            self.compact = False
            self.outcome = self._gather(model, batch_size)

    def _gather(self, model: PreTrainedModel, batch_size: int) -> Outcome:
        def forward(number: int, batch_BT: Tensor) -> Tensor:
            with self.watching(model) as seen:
                logits_BTV = model(batch_BT, use_cache=False).logits
            self._keep(model, logits_BTV, seen)
            return logits_BTV

        return evaluate(model, self._windows, batch_size, forward=forward)

    def _keep(self, model: PreTrainedModel, logits_BTV: Tensor, seen: list[Tensor]) -> None:
        if not self.compact:
            n, t = self._windows.shape
            large = n * t * logits_BTV.shape[-1] * logits_BTV.element_size() > KEPT_BYTES
            for logits_TV in logits_BTV[:, :-1]:
                self._logits.append(in_file(logits_TV) if large else logits_TV.cpu().clone())
            return
        head = model.get_output_embeddings()
        if len(seen) != 1 or not torch.equal(head(seen[0]), logits_BTV):
            return
        for logits_TV, hidden_TH in zip(logits_BTV[:, :-1], seen[0][:, :-1], strict=True):
            p_TV = logits_TV.softmax(-1)
            # In float32 the softmax of a large vocabulary sums to 1 + 10⁻⁵ or so.
            expected_TH = (p_TV @ head.weight).double() / p_TV.sum(-1, keepdim=True, dtype=torch.float64)
            self._expected.append((expected_TH.float(), hidden_TH.clone(), logits_TV.logsumexp(-1).double()))

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[list[Tensor]]:
        """Collects what enters the head, for the length of a ``with`` block; nothing where logits are kept."""
        seen: list[Tensor] = []
        if not self.compact:
            yield seen
            return
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            yield seen
        finally:
            hook.remove()

    def kl(self, window: int, logits_TV: Tensor, partition_T: Tensor, hidden_TH: Tensor | None) -> float:
        """KL(intact ‖ damaged) summed over a window's scored tokens, nats; rounding can make it slightly negative.

        ``logits_TV`` are the damaged model's, ``partition_T`` their log-sum-exp, ``hidden_TH`` what entered the head.
        """
        if self.compact:
            assert hidden_TH is not None
            here = logits_TV.device  # inputs of a head on another device are seen before they are moved to it
            expected_TH, intact_TH, intact_T = (x.to(here) for x in self._expected[window])
            hidden_TH = hidden_TH.to(here)
            shift_T = (expected_TH.double() * (intact_TH.double() - hidden_TH.double())).sum(-1)
            return float((shift_T + partition_T - intact_T).sum())
        before_TV = self._logits[window].to(logits_TV.device).float()
        p_TV = before_TV.softmax(-1)
        shift_T = (p_TV * (before_TV - logits_TV)).sum(-1, dtype=torch.float64) / p_TV.sum(-1, dtype=torch.float64)
        return float((shift_T + partition_T - before_TV.logsumexp(-1).double()).sum())
