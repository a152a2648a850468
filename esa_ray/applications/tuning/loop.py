"""A model tuned in place."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.tuning.course import CHECKPOINT, Course, asked
from esa_ray.applications.tuning.outcome import Look, Tuned
from esa_ray.errors import EsaError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from esa_ray.applications.kept import Kept
    from esa_ray.applications.tuning.choosing import Places
    from esa_ray.models.addressing import Catalogue
    from esa_ray.spec.tuning import TuneSpec

__all__ = ["CHECKPOINT", "tune"]


def tune(
    model: PreTrainedModel,
    catalogue: Catalogue,
    spec: TuneSpec,
    seed: int,
    train: np.ndarray,
    *,
    source: Calibrated,
    target: Calibrated,
    kept: Kept,
    look: Callable[[Look], None] = lambda look: None,
    state: bytes | None = None,
    checkpoint: Callable[[Callable[[], bytes]], None] | None = None,
    learning: Places | None = None,
    worn: Places | None = None,
) -> Tuned:
    """Tune the model in hand through ``kept``, which can take it back; the model must be intact.

    What isn't trained stays bit for bit; so do dropout (off), the parameters' flags and their gradients.

    Parameters
    ----------
    train
        Training windows, integers of shape (N, T); never evaluation windows.
    source, target
        The text whose knowledge is to be kept, and the one that is learnt, each with its calibration windows: they
        give the scores that choose weights, and the source's Fisher information.
    look
        Called after each step of ``spec.looked``, the model standing as it is tuned by then, and ``kept`` knowing how
        far it moved. It must leave the weights as they are.
    state
        What an interrupted tuning stored last: the rest of it gives the bits that it would have given.
    checkpoint
        Called after each look but the last and every :data:`CHECKPOINT` steps with a function that makes the state.
    learning
        The weights that are trained, in place of those that ``spec`` chooses.
    worn
        The weights that are damaged on the way, in place of those that ``spec`` chooses.

    Raises
    ------
    EsaError
        If the arm trains nothing, the model can't be trained, or the state is another tuning's.

    Example
    -------
    >>> import numpy as np
    >>> from esa_ray.applications.kept import replacing
    >>> from esa_ray.models.addressing import catalogue
    >>> from esa_ray.spec import TuneSpec
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> weights, windows = catalogue(model), np.arange(32).reshape(4, 8) % 16
    >>> text = Calibrated(model, weights, windows)
    >>> spec = TuneSpec(arm="magnitude", fraction=0.1, steps=2, looks=1, learning_rate=1e-3)
    >>> with replacing() as kept:
    ...     tuned = tune(model, weights, spec, 0, windows, source=text, target=text, kept=kept)
    >>> tuned.n_weights, tuned.trainable, tuned.n_changed <= tuned.trainable
    (1536, 153, True)
    """
    tuning = Course(model, catalogue, spec, seed, train, source, target, kept, _read(state, spec, seed), learning, worn)
    tuning.go(look, checkpoint)
    return tuning.outcome()


def _read(state: bytes | None, spec: TuneSpec, seed: int) -> dict[str, Any] | None:
    if state is None:
        return None
    found = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
    if found["asked"] != asked(spec, seed):
        raise EsaError("the checkpoint to go on from is another tuning's; remove it to begin anew")
    return found
