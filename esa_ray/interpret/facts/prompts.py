"""What the role "fact" is measured on: prompts of facts that a model knows, and controls that need none of them.

Legend: F facts, P prompts (F of facts, then F controls), T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.spec.roles import FactSpec


@dataclass(frozen=True, eq=False)
class FactPrompts:
    """Prompts of facts that the intact model knows, and of each fact a control with the same two answers.

    A control says the answer of another subject before it asks for it ("The capital of X is A. The capital of X is"), so
    that it is read off the text and no fact is needed; damage that spoils all answers alike spoils it, too.

    Parameters
    ----------
    windows
        Tokens (P, T), int64: F prompts of facts, then their F controls, filled up on the right (nothing reads what is
        behind a prompt's end).
    ends
        Where each prompt ends (P,): the logits there tell the answer.
    subject
        Mask (P, T), bool: the subject's last token.
    answers, alternatives
        Tokens (P,) that are compared at the end.
    intact
        z(answer) − z(alternative) of the intact model (P,), logits.
    names
        The facts in short, F.
    why
        Why there are none; None where there are some.
    """

    windows: np.ndarray
    ends: np.ndarray
    subject: np.ndarray
    answers: np.ndarray
    alternatives: np.ndarray
    intact: np.ndarray
    names: tuple[str, ...]
    why: str | None = None

    def __len__(self) -> int:
        """How many facts there are."""
        return len(self.names)

    def differences(self, logits_PTV: Tensor) -> Tensor:
        """z(answer) − z(alternative) at the end of each prompt (P,), with its gradient."""
        raise NotImplementedError

    def metric(self, logits_PTV: Tensor) -> Tensor:
        """The metric R of the role (F,), logits: d(fact) − κ·d(control), κ the ratio of their means in the intact model.

        Its mean in the intact model is 0 by the choice of κ: what a damage changes of it is what facts lose beyond what
        the same answers lose where they can be read off.
        """
        raise NotImplementedError

    def nll(self, logits_PTV: Tensor) -> Tensor:
        """−log p(answer) at the end of each fact's prompt (F,), nats."""
        raise NotImplementedError


def fact_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: FactSpec, *, limit: int, seed: int = 0,
    opening: Sequence[int] | None = None,
) -> FactPrompts:  # fmt: skip
    """At most ``limit`` facts that the model knows, each by one way of asking, with their controls.

    Parameters
    ----------
    spec
        Where facts come from (``sources``, ``limit``, ``paraphrases``).
    opening
        Tokens that every prompt begins with; None: those that the tokenizer puts first.

    Returns
    -------
    FactPrompts
        Empty, and saying why, where the model knows none or a source's package isn't installed.
    """
    raise NotImplementedError
