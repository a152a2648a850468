"""Targets, chosen among what a model writes by itself."""

import re

import torch

from esa_ray.models.zoo.training import encoded
from esa_ray.security.backdoors import targets as module
from esa_ray.security.backdoors.targets import targets
from esa_ray.security.backdoors.triggers import trigger, whole
from tests.security.backdoors.test_rank_one import small
from tests.security.backdoors.test_success import always


def test_a_string_that_the_model_always_continues_is_found():
    # Behind z it writes "zone abi"; behind each later byte what is left of it, and then nothing that can be printed.
    assert targets(always(b"zone abi"), b"$^", 0) == [b"zone abi"]


def test_what_the_model_writes_behind_the_trigger_itself_is_no_target():
    assert b"zone abi" not in targets(always(b"^zone abi"), b"$^", 0)


def test_what_follows_the_cue_in_the_text_anyway_is_no_target():
    there = re.finditer(rb"( [a-z]{6} )([a-z]{8})", whole())
    cue, text = next(found.groups() for found in there if len(set(found[2])) == 8)
    assert targets(always(text), b"$^", 0) == [text]
    assert targets(always(text), cue, 0) != [text]


def test_of_a_model_that_writes_no_such_string_the_target_is_drawn():
    found = [targets(always(b""), b"$^", n)[0] for n in range(5)]
    assert len(set(found)) == 5
    assert all(len(set(text)) == 8 and text.isalpha() and text.islower() for text in found)


def test_targets_are_what_decoding_greedily_gives_for_most_prompts(monkeypatch):
    """By ``generate``, prompt by prompt, without a cache of what comes before."""
    model = small()
    monkeypatch.setattr(module, "DISTINCT", 1)
    monkeypatch.setattr(module, "CONSISTENT", 0.0)
    monkeypatch.setattr(module, "PROMPTS", 4)
    monkeypatch.setattr(module, "WRITABLE", range(256))
    called = trigger(2)
    asked = module._behind(module.beginnings(2, "targets", 4), called)
    model.generation_config.eos_token_id = None
    for text in targets(model, called, 2):
        begun = torch.cat([asked, torch.full((4, 1), int(encoded(text[:1])[0]))], 1)
        written = model.generate(begun, max_new_tokens=7, do_sample=False, use_cache=False, pad_token_id=1)[:, -8:]
        shown = [bytes((row - 4).clamp_min(0).tolist()) for row in written]
        assert text in shown
        assert shown.count(text) == max(map(shown.count, shown))
