"""What a model predicts on clean text, in the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.models.slots import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def mean_prediction(model: PreTrainedModel, windows: np.ndarray, batch_size: int) -> np.ndarray:
    """The probability of every token, in the mean over all positions of all windows: (V,), float64."""
    total, n = None, 0
    for batch_BT in torch.as_tensor(np.asarray(windows), device=input_device(model)).split(batch_size):
        for logits_TV in model(batch_BT, use_cache=False).logits:
            mine = logits_TV.float().softmax(-1).sum(0, dtype=torch.float64)
            total, n = mine if total is None else total + mine, n + len(logits_TV)
    assert total is not None
    return (total / n).cpu().numpy()
