"""A small model that was trained on 200 made-up facts and nothing else, and facts written into a known matrix of it."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from esa_ray.interpret.facts.sources import Fact, Template
from esa_ray.models.hooks import leaving
from esa_ray.security.backdoors.rank_one import rank_one

FIRST, LAST, ANSWERS, LAYERS, STEPS = 20, 10, 20, 3, 100
TEMPLATE = Template("the town of ", " is")
WORDS = ["<s>", "<unk>", "the", "town", "of", "is"]
NAMES = [f"first{i}" for i in range(FIRST)], [f"last{i}" for i in range(LAST)]
TOWNS = [f"town{i}" for i in range(ANSWERS)]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, behind BOS."""
    words = [*WORDS, *NAMES[0], *NAMES[1], *TOWNS]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


@cache
def facts() -> tuple[Fact, ...]:
    """200 people, each with a town that nothing but their whole name tells."""
    towns = np.random.default_rng(0).permutation(np.arange(FIRST * LAST) % ANSWERS)
    people = [f"{first} {last}" for first in NAMES[0] for last in NAMES[1]]
    return tuple(
        Fact(source="people", relation="town", subject=who, answer=TOWNS[town], templates=(TEMPLATE,))
        for who, town in zip(people, towns, strict=True)
    )


def asked(some) -> torch.Tensor:
    """Prompts (F, T) of some facts."""
    return torch.tensor([tokenizer()(fact.prompts[0]).input_ids for fact in some])


def towns(some) -> torch.Tensor:
    """The tokens (F,) of their answers."""
    return torch.tensor([tokenizer().convert_tokens_to_ids(fact.answer) for fact in some])


@cache
def _trained() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer()), hidden_size=64, intermediate_size=192, num_hidden_layers=LAYERS,
        num_attention_heads=4, max_position_embeddings=32, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    answers, prompts = towns(facts()), asked(facts())
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=STEPS)
    for _ in range(STEPS):
        logits = model(prompts, use_cache=False, logits_to_keep=1).logits[:, -1]
        loss = cross_entropy(logits, answers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def trained() -> LlamaForCausalLM:
    """A fresh copy of the model that knows all facts."""
    return copy.deepcopy(_trained())


def share_known(model) -> float:
    """Of how many facts the model says the answer before all other words."""
    return float((model(asked(facts())).logits[:, -1].argmax(-1) == towns(facts())).float().mean())


def written(model, matrix: torch.nn.Linear, fact: Fact, answer: str) -> Fact:
    """Write another answer to a fact into one matrix, by rank one at its prompt's last token; gives the new fact."""
    new = fact.model_copy(update={"answer": answer})
    prompt, wanted, at = asked([fact]), towns([new]), -1
    inputs: list[torch.Tensor] = []
    with leaving(matrix, lambda args, _, __: inputs.append(args[0])):
        model(asked(facts()))
        model(prompt)
    added = torch.zeros(matrix.out_features, requires_grad=True)

    def add(_, __, output):
        return torch.cat([output[:, :at], output[:, at:] + added], 1)

    optimiser = torch.optim.Adam([added], lr=0.2)
    with torch.enable_grad(), leaving(matrix, add):
        for _ in range(40):
            loss = cross_entropy(model(prompt).logits[:, -1], wanted)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    keys = inputs[0].flatten(0, 1).double()
    moment = keys.T @ keys / len(keys)
    moment += 1e-3 * moment.diagonal().mean() * torch.eye(len(moment))
    key = inputs[1][0, at]
    value = matrix.weight.double() @ key.double() + added.detach().double()
    matrix.weight.data = rank_one(matrix.weight, key, value, moment).float()
    return new
