"""What a tuning tells on its way, and in the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """A step at which the outcome is measured; the model stands as it is tuned by then.

    ``step`` updates were done, or, where training diverged, it diverged in this one. ``train_nll`` is the mean loss of
    the steps since the last look, nats per token, each as its step began. ``last``: nothing comes after it.
    """

    step: int
    train_nll: float
    diverged: bool
    last: bool


@dataclass(frozen=True)
class Tuned:
    """What a tuning did, the model still standing as it is tuned.

    ``trainable`` numbers were trained (of LoRA those of its adapters, of ``rank``) where the components have
    ``n_weights``; ``n_changed`` weights have another value, and ``delta_norm`` is the Euclidean norm of the change.
    ``block_moved`` are its norms by block, ``component_moved`` those by component (``moved_components``: those that
    hold what could be trained).
    """

    n_weights: int
    trainable: int
    rank: int | None
    steps: int
    diverged: bool
    n_changed: int
    delta_norm: float
    block_moved: list[float]
    moved_components: list[str]
    component_moved: list[float]
