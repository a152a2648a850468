"""The NLL's change from the change of final hidden states, mostly without the head.

Legend: M tokens, H hidden size, V vocabulary; W (V, H) the head, h a token's final hidden state, p its softmax, y
the token that comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from esa_ray.randomness import normal, stream_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Tokens whose second-order term is below this many nats are not sent through the head: float32 logits of size
#: 8 to 16 are 1e-6 apart, so the head could not tell it either.
HEAD_TOLERANCE = 1e-6

#: Random projections that estimate the second-order term. Its relative standard error is √(2/8).
SKETCH = 8

#: Tokens that pass through the head at once.
ROWS = 128


def token_nll(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Next-token NLL of each token in nats, float64, from fp32 logits: what ``evaluate`` sums."""
    logits_MV = logits_MV.float()
    return logits_MV.logsumexp(-1).double() - logits_MV.gather(-1, target_M[:, None])[:, 0].double()


def linear_head(model: PreTrainedModel) -> nn.Linear | None:
    """A model's head, if it is a linear map in float32 that is in memory."""
    head = model.get_output_embeddings()
    plain = type(head) is nn.Linear and head.weight.dtype == torch.float32 and not head.weight.is_meta
    return head if plain else None


class LinearHead:
    r"""The NLL's change from the change Δh of final hidden states, for a head that is a linear map.

    With δ = WΔh and expectations under the intact p,

        ΔNLL = (E_p[W] − W_y)·Δh + r,   r = log E_p[exp(δ − E_p δ)].

    The log-partition function's second derivative is a variance, its third at most the variance times the range
    of δ (Bach 2010, arXiv:0810.4209), hence r = ½Var_p(δ)·e^(±range δ), and range δ ≤ 2·‖Δh‖·max_v‖W_v − mean W‖.
    Var_p(δ) is estimated without the head as ‖SΔh‖²/8, where the 8 rows of a token's S (8, H) are
    Σ_v z_v √p_v (W_v − E_p W) with z standard normal: unbiased, distributed as χ²₈/8 times the variance. Where
    ½Var·e^range ≤ ``HEAD_TOLERANCE``, r is taken to be ½Var, off by half of that at random; all other tokens, NaN
    and infinity among them, pass through the head.

    A bound without an estimate doesn't pay: on SmolLM2-135M, Popoviciu's Var ≤ range²/4 is about 10⁴ times too
    large, and for most single weights no token in 20 would skip the head where this lets 19 in 20.

    Holds 10·M·H numbers: h, the gradient and S. Making it costs about twelve passes through the head.
    """

    def __init__(self, head: nn.Linear, hidden_MH: Tensor, target_M: Tensor):
        weight_VH = head.weight
        hidden_MH = hidden_MH.to(weight_VH.device)  # what enters a head may come from another device
        self._head, self._hidden_MH, self._target_M = head, hidden_MH, target_M.to(weight_VH.device)
        self._reach = 2 * float((weight_VH - weight_VH.mean(0)).norm(dim=1).max())
        self._gradient_MH = torch.empty_like(hidden_MH)
        self._sketch_MSH = hidden_MH.new_empty(len(hidden_MH), SKETCH, hidden_MH.shape[1])
        self._nll_M = torch.empty_like(self._target_M, dtype=torch.float64)
        # The same normals for all tokens, shifted along the vocabulary: as good as independent, and almost free.
        tokens, words = len(hidden_MH), len(weight_VH)
        drawn = normal(stream_key("head sketch"), np.arange(SKETCH * (tokens + words)))
        noise_SMV = torch.from_numpy(drawn).to(hidden_MH).view(SKETCH, -1).unfold(1, words, 1)
        for start in range(0, tokens, ROWS):
            self._expand(slice(start, start + ROWS), noise_SMV[:, :tokens])

    def _expand(self, rows: slice, noise_SMV: Tensor) -> None:
        """Gradient, sketch and intact NLL of some tokens."""
        logits_MV, target_M, weight_VH = self._head(self._hidden_MH[rows]), self._target_M[rows], self._head.weight
        self._nll_M[rows] = token_nll(logits_MV, target_M)
        p_MV = logits_MV.softmax(-1)
        mean_MH = p_MV @ weight_VH
        self._gradient_MH[rows] = mean_MH - weight_VH[target_M]
        root_MV = p_MV.sqrt_()
        for k, noise_MV in enumerate(noise_SMV[:, rows]):
            drawn_MV = noise_MV * root_MV
            self._sketch_MSH[rows, k] = drawn_MV @ weight_VH - drawn_MV.sum(-1, keepdim=True) * mean_MH

    def estimated(self, damaged_MH: Tensor) -> tuple[Tensor, Tensor]:
        """Change of each token's NLL (nats, float64) without the head, and which tokens need the head for it."""
        change_MH = damaged_MH.to(self._hidden_MH.device) - self._hidden_MH
        second_M = torch.einsum("msh,mh->ms", self._sketch_MSH, change_MH).square().sum(-1) / (2 * SKETCH)
        error_M = second_M * (self._reach * change_MH.norm(dim=1)).exp()
        delta_M = (self._gradient_MH * change_MH).sum(-1, dtype=torch.float64) + second_M
        return delta_M, ~(error_M <= HEAD_TOLERANCE)  # NaN compares false: to the head

    def measured(self, delta_M: Tensor, unsure_M: Tensor, n: int, damaged_MH: Tensor) -> Tensor:
        """The changes, with those of the ``n`` tokens that need the head put right by it."""
        damaged_MH = damaged_MH.to(delta_M.device)
        # What `nonzero` would find; but that one has to ask a GPU for their number.
        unsure = unsure_M.byte().argsort(descending=True, stable=True)[:n]
        for rows in unsure.split(ROWS):
            logits_MV = self._head(damaged_MH[rows])
            delta_M[rows] = token_nll(logits_MV, self._target_M[rows]) - self._nll_M[rows]
        return delta_M

    def delta(self, damaged_MH: Tensor) -> tuple[Tensor, int]:
        """Change of each token's NLL (nats, float64), and how many tokens passed through the head."""
        delta_M, unsure_M = self.estimated(damaged_MH)
        n = int(unsure_M.sum())
        return self.measured(delta_M, unsure_M, n, damaged_MH), n
