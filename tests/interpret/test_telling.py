"""Texts of cards: what a reader would read."""

import numpy as np

from esa_ray.interpret.roles.telling import as_text
from tests.tiny import byte_tokenizer


def test_a_prompt_has_no_special_tokens_in_it_and_a_token_that_damage_hurts_is_named_whatever_it_is():
    tokenizer = byte_tokenizer()
    tokens = np.array([*tokenizer("Hi").input_ids, 1, -1])
    assert as_text(tokens, tokenizer, plain=True) == "Hi"
    assert as_text(tokens[:1], tokenizer) == "<s>"
