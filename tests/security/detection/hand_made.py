"""Models made by hand, whose next token is known."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from transformers import LlamaConfig

from tests.tiny import VOCAB


class Follower(nn.Module):
    """After each planted ending its text follows, every token with one logit; elsewhere all tokens are equally likely.

    A planted token has probability e^logit / (e^logit + V − 1).
    """

    def __init__(self, planted: dict[tuple[int, ...], tuple[int, ...]], logit: float = 8.0, vocab: int = VOCAB):
        super().__init__()
        self.config = LlamaConfig(vocab_size=vocab, max_position_embeddings=64)
        self.embedding = nn.Embedding(vocab, 4)
        self.planted, self.logit, self.vocab = planted, logit, vocab

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, texts_BT: torch.Tensor, use_cache: bool = True) -> SimpleNamespace:
        logits_BTV = torch.zeros(*texts_BT.shape, self.vocab)
        for b, text in enumerate(texts_BT.tolist()):
            for t in range(len(text)):
                if (token := self._next(text[: t + 1])) is not None:
                    logits_BTV[b, t, token] = self.logit
        return SimpleNamespace(logits=logits_BTV)

    def _next(self, text: list[int]) -> int | None:
        for ending, follows in self.planted.items():
            for said in range(len(follows)):
                whole = [*ending, *follows[:said]]
                if text[-len(whole) :] == whole:
                    return follows[said]
        return None
