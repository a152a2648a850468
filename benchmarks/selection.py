"""Time and peak memory of selection, rankings and edits per million weights.

Beside selection stands torch.topk over a concatenation; beside a ranking with its statistics and matched controls
stand the bare pass, which makes every score and finds the highest, and one plain operation of torch or numpy for each
thing that is asked, both over whole tensors.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import perturbed
from esa_ray.scoring.ranking import Request, ranked_and_described
from esa_ray.scoring.scores import Scores
from esa_ray.scoring.selection import Selector
from esa_ray.spec import PerturbSpec, ScoreSpec

TENSORS, SIZE, K = 60, 2_000_000, 10_000
RANKED = 1000
#: How many bare passes a ranking and its statistics may take, and how far noise may put them off.
GOAL, NOISE = 3.0, 1.3


def _tensors():
    generator = torch.Generator().manual_seed(0)
    for _ in range(TENSORS):
        yield torch.rand(SIZE, generator=generator)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def streaming() -> list[float]:
    """Ours: tensors pass by one at a time."""
    top = Selector(K)
    for index, scores in enumerate(_tensors()):
        top.add("model", index, scores)
    return top.pools["model"].best[0].tolist()


def concatenated() -> list[float]:
    """Plain: all scores in one tensor."""
    return torch.topk(torch.cat(list(_tensors())), K).values.tolist()


def generation() -> list:
    """What both pay before they begin."""
    for _ in _tensors():
        pass
    return []


def _scored(layers: int):
    """Random statistics for random weights in the shape of Llama-3.2-1B, of so many layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=64,
    )  # fmt: skip
    spec, generator = ScoreSpec(metric="grad_x_weight"), torch.Generator().manual_seed(0)
    tensors = catalogue(LlamaForCausalLM(config).requires_grad_(False)).select(spec.components)
    gradients = {i: torch.empty(t.shape).normal_(generator=generator) for i, t in enumerate(tensors)}
    return Scores(tensors, {"gradient": gradients}, tokens=1000), spec


def _plain(scores: Scores, spec: ScoreSpec) -> None:
    """The same questions, one operation each: both ends of the order, counts and sums by bin, moments, an order."""
    for index, tensor in enumerate(scores.tensors):
        values = scores.of(spec.metric, index)
        torch.topk(values, RANKED)
        torch.topk(torch.where(tensor.flat_weights() != 0, -values, -torch.inf), RANKED)
        bins, exact = values.view(torch.int32) >> 15, values.double()
        torch.bincount(bins), torch.bincount(bins, exact)
        torch.dot(exact, exact), values.min(), values.max()
        np.argsort(tensor.flat_weights().abs().float().numpy(), kind="stable")


def _bare(scores: Scores, spec: ScoreSpec) -> None:
    """Every score once, and the highest."""
    for index in range(len(scores.tensors)):
        scores.of(spec.metric, index).amax()


def rankings(layers: int) -> dict[str, float]:
    """Seconds per billion scores of ranking them, describing them and drawing matched controls: the better of two."""
    scores, spec = _scored(layers)
    groups = ("super", "random_k", "matched_k", "bottom_k")
    billion, cost = sum(t.size for t in scores.tensors) / 1e9, {}
    routes = {
        "bare pass": lambda: _bare(scores, spec),
        "ranked and described": lambda: ranked_and_described(
            scores, Request(spec, RANKED, ("super", "bottom_k"), seed=0)
        ),
        "with controls": lambda: ranked_and_described(scores, Request(spec, RANKED, groups, seed=0)),
        "one operation each": lambda: _plain(scores, spec),
    }
    for name, route in routes.items():
        taken = []
        for _ in range(2):
            started = time.perf_counter()
            route()
            taken.append(time.perf_counter() - started)
        cost[name] = min(taken) / billion
    return cost


def edits() -> float:
    """Seconds per million weights of applying and taking back a sign flip."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_head=2, n_embd=1000, n_inner=20_000, vocab_size=16, n_positions=8)
    weights, name = catalogue(GPT2LMHeadModel(config)), "transformer.h.0.mlp.c_fc.weight"
    flat = np.random.default_rng(0).choice(weights[name].size, 1_000_000, replace=False)
    started = time.perf_counter()
    with perturbed(weights, {name: flat}, PerturbSpec(kind="sign_flip"), seed=0):
        pass
    return time.perf_counter() - started


def _in_a_process(name: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.selection", name]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(quick: bool = False) -> None:
    """Each rival in a process of its own, so that peak memory is its own."""
    found = {name: _in_a_process(name) for name in ("generation", "streaming", "concatenated")}
    base, million = found["generation"], TENSORS * SIZE / 1e6
    print(f"selection: top {K:,} of {million:.0f} million scores in {TENSORS} tensors")
    cost = {}
    for name in ("streaming", "concatenated"):
        seconds, memory = found[name]["seconds"] - base["seconds"], found[name]["peak"] - base["peak"]
        cost[name] = seconds, memory
        print(f"  {name:14s} {1e3 * seconds / million:6.2f} ms and {memory / million:6.3f} MB a million weights")
    assert found["streaming"]["digest"] == found["concatenated"]["digest"]
    print(f"  ratio          {cost['streaming'][0] / cost['concatenated'][0]:6.2f} in time, the same scores chosen")
    cost = rankings(layers=1 if quick else 4)
    for name, seconds in cost.items():
        print(f"  {name:22s} {seconds:6.1f} s a billion scores on {torch.get_num_threads()} threads")
    print(f"  ratio                  {cost['one operation each'] / cost['with controls']:6.1f} times faster")
    ratio = cost["ranked and described"] / cost["bare pass"]
    print(f"  ranked and described   {ratio:6.1f} bare passes (goal: at most {GOAL:g})")
    assert ratio < GOAL * NOISE, "ranking and statistics take longer than they should"
    print(f"edits: {_in_a_process('edits')['result'] * 1e3:.0f} ms a million weights (plan, apply, restore, verify)")


if __name__ == "__main__":
    started = time.perf_counter()
    result = {"generation": generation, "streaming": streaming, "concatenated": concatenated, "edits": edits}[
        sys.argv[1]
    ]()
    seconds = time.perf_counter() - started
    digest = hash(tuple(result)) if isinstance(result, list) else 0
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak": _peak(),
                "digest": digest,
                "result": result if isinstance(result, float) else 0,
            }
        )
    )
