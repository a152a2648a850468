"""Each test here runs on the CPU everywhere, and as ``-m gpu`` on a card: the same body, the same truth.

Neither ray nor polars is needed, so that a machine with a card needs no more than torch and transformers.
"""

import pytest
import torch

CARD = pytest.param(
    "cuda:0", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)


@pytest.fixture(params=["cpu", CARD])
def device(request) -> torch.device:
    return torch.device(request.param)
