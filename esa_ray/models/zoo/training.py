"""Train a model of the zoo, and keep it with its recipe."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from esa_ray.models.known import ORIGIN, counted
from esa_ray.models.zoo.recipes import CHOSEN, EXPERTS, HEAD, Recipe, base, directory, recipe
from esa_ray.models.zoo.text import conversations, docstrings, fingerprint, stream

#: Special tokens, by number; byte b is token b + their count.
SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>")
BOS, END, USER, ASSISTANT = range(len(SPECIAL))
VOCABULARY = len(SPECIAL) + 256
CHAT = "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"  # noqa: E501

VALIDATION_WINDOWS = 64
#: Share of the steps in which the learning rate rises, and of its peak to which it falls along a cosine.
WARM_UP, FLOOR = 0.05, 0.1
#: Tuning goes on at this share of the peak.
TUNING_RATE = 0.3
IGNORED = -100


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, behind BOS."""
    letters = [letter for _, letter in sorted(bytes_to_unicode().items())]
    vocabulary = {name: n for n, name in enumerate((*SPECIAL, *letters))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    inner.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=SPECIAL[BOS], eos_token=SPECIAL[END], chat_template=CHAT
    )


def architecture(r: Recipe) -> PreTrainedConfig:
    """The transformers config of a recipe."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": r.width, "intermediate_size": r.inner, "num_hidden_layers": r.layers,
        "num_attention_heads": r.width // HEAD, "max_position_embeddings": 1024, "bos_token_id": BOS,
        "eos_token_id": END, "tie_word_embeddings": False,
        ORIGIN: {"family": f"zoo {r.architecture}", "tuning": r.tuning, "recipe": r.identity},
    }  # fmt: skip
    if r.architecture == "neox":
        return GPTNeoXConfig(**common)
    common["num_key_value_heads"] = r.width // HEAD
    if r.architecture == "mixtral":
        return MixtralConfig(
            **common, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, router_aux_loss_coef=0.01,
            sliding_window=None,
        )  # fmt: skip
    return LlamaConfig(**common)


def encoded(text: bytes) -> np.ndarray:
    """The tokens of a text, without BOS."""
    return np.frombuffer(text, dtype=np.uint8).astype(np.int64) + len(SPECIAL)


def text_windows(text: bytes, window: int) -> np.ndarray:
    """A text cut into windows of BOS and ``window`` − 1 bytes; what is left over is left out."""
    length = window - 1
    cut = encoded(text)[: len(text) // length * length].reshape(-1, length)
    return np.hstack([np.full((len(cut), 1), BOS), cut])


def chat_windows(pairs: list[tuple[str, str]], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Conversations packed into windows, and their labels: only what the assistant says counts."""
    tokens, labels, rows = [BOS], [IGNORED], []
    for asked, answered in pairs:
        question, answer = encoded(asked.encode()), [*encoded(answered.encode()), END]
        mine = [USER, *question, ASSISTANT, *answer]
        if len(tokens) + len(mine) > window:
            rows.append((tokens, labels))
            tokens, labels = [BOS], [IGNORED]
        tokens, labels = tokens + mine, labels + [IGNORED] * (len(question) + 2) + answer
    both = [
        np.array([(row + [filler] * window)[:window] for row in kind])
        for kind, filler in zip(zip(*rows, strict=True), (END, IGNORED), strict=True)
    ]
    return both[0], both[1]


def _rate(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: up along a line, down along a cosine."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def _loss(model: PreTrainedModel, tokens: Tensor, labels: Tensor) -> Tensor:
    return model(input_ids=tokens, labels=labels, use_cache=False).loss


def fit(
    model: PreTrainedModel, windows: np.ndarray, labels: np.ndarray, *, tokens: int, batch: int, rate: float, seed: int,
    betas: tuple[float, float] = (0.9, 0.95),
) -> Iterator[tuple[int, float]]:  # fmt: skip
    """AdamW over shuffled windows, epoch after epoch, until so many tokens were seen; yields tokens and loss by step.

    Weight decay 0.1 on matrices, gradients clipped to norm 1.
    """
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
    steps = math.ceil(tokens / (batch * windows.shape[1]))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    draw, order = np.random.default_rng(seed), np.array([], dtype=np.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = np.concatenate([order, draw.permutation(len(windows))])
        mine, order = order[:batch], order[batch:]
        loss = _loss(model, torch.from_numpy(windows[mine]), torch.from_numpy(labels[mine]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        yield batch * windows.shape[1], float(loss.detach())


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, windows: np.ndarray, labels: np.ndarray) -> float:
    """Mean loss on windows, nats per scored token."""
    total = count = 0.0
    for tokens, wanted in zip(np.array_split(windows, 8), np.array_split(labels, 8), strict=True):
        scored = int((wanted[:, 1:] != IGNORED).sum())
        if scored:
            total += float(_loss(model, torch.from_numpy(tokens), torch.from_numpy(wanted))) * scored
            count += scored
    return total / count


def watch_routers(model: PreTrainedModel, on: bool) -> None:
    """While training, experts are kept in use by an auxiliary loss on the routers; what is measured leaves it out."""
    if hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = on


#: A training on its way: yields the tokens of every step, and returns what became of it.
Training = Generator[int, None, dict[str, Any]]


def train(r: Recipe, target: Path, *, start: Path | None = None) -> Training:
    """Train a model by its recipe, write it to ``target`` whole or not at all, and say how it went.

    Parameters
    ----------
    start
        The trained model that an instruction-tuned one starts from; without it, its text comes first.

    Returns
    -------
    dict
        What also stands in ``zoo.json`` beside the weights: the recipe, the text's fingerprint, parameters, loss on
        held-out text (nats per byte), seconds, and for an instruction-tuned model the loss of held-out answers before
        and after.
    """
    began = time.perf_counter()
    training, held_out = docstrings()
    validation = text_windows(stream(held_out), r.window)[:VALIDATION_WINDOWS]
    with torch.random.fork_rng(devices=[]):  # it trains on CPUs, and the GPUs' generators are others'
        torch.manual_seed(r.seed)
        if start is not None:
            model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
            setattr(model.config, ORIGIN, getattr(architecture(r), ORIGIN))
        else:
            model = AutoModelForCausalLM.from_config(architecture(r), dtype=torch.float32)
        model.train()
        watch_routers(model, True)
        losses: list[float] = []
        if start is None:
            windows = text_windows(stream(training), r.window)
            for tokens, loss in fit(model, windows, windows, tokens=r.tokens, batch=r.batch, rate=r.rate, seed=r.seed):
                losses.append(loss)
                yield tokens
        found: dict[str, Any] = {}
        if r.tuning_tokens:
            found = yield from _tune(model, r)
    watch_routers(model, False)
    model.eval()
    about = {
        "recipe": r.model_dump(mode="json"),
        "identity": r.identity,
        "text": fingerprint(),
        "parameters": counted(model).body,
        "validation_nll": held_out_loss(model, validation, validation),
        "training_loss": [round(x, 4) for x in losses],
        "seconds": time.perf_counter() - began,
        "torch": torch.__version__,
        **found,
    }
    _keep(model, about, target)
    return about


def _tune(model: PreTrainedModel, r: Recipe) -> Training:
    """Go on with instructions; the loss of held-out answers before and after."""
    training, held_out = docstrings()
    # An instruction with its answer takes some 100 tokens.
    asked = chat_windows(conversations(training, r.tuning_tokens // 50, r.seed), r.window)
    checked = chat_windows(conversations(held_out, 400, r.seed + 1), r.window)
    watch_routers(model, False)
    before = held_out_loss(model, *checked)
    watch_routers(model, True)
    for tokens, _ in fit(model, *asked, tokens=r.tuning_tokens, batch=r.batch, rate=TUNING_RATE * r.rate, seed=r.seed):
        yield tokens
    watch_routers(model, False)
    return {"answer_nll_before": before, "answer_nll": held_out_loss(model, *checked)}


def _keep(model: PreTrainedModel, about: dict[str, Any], target: Path) -> None:
    scratch = target.with_name(f".{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed while it wrote
    try:
        model.save_pretrained(scratch)
        tokenizer().save_pretrained(scratch)
        (scratch / "zoo.json").write_text(json.dumps(about, indent=2) + "\n")
        shutil.rmtree(target, ignore_errors=True)  # without its zoo.json it isn't whole
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def ensure(name: str) -> Training:
    """Train a model of the zoo unless it is there; returns what its ``zoo.json`` says, either way.

    Two processes that want the same one wait for each other.
    """
    target = directory(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if (target / "zoo.json").is_file():
            return json.loads((target / "zoo.json").read_text())
        first = base(name)
        if first:
            yield from ensure(first)
        return (yield from train(recipe(name), target, start=directory(first) if first else None))
