"""Learn what the nodes and GPUs of the connected cluster have, and give each study its turn."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from esa_ray.engine.connection import connected
from esa_ray.engine.placement import Node, Placement, Size, place
from esa_ray.errors import EsaError, first_line
from esa_ray.host.footprint import TRAINING_SET, WORKING_SET
from esa_ray.models.sources import Source, compute_dtype, own_dtype, weight_bytes

__all__ = ["Card", "Model", "at_head", "await_gpus", "computed_in", "connected", "nodes_alive", "waves", "with_cards"]

#: Seconds to wait for GPUs that a cluster was asked to start.
GPU_PATIENCE = 1200
#: Seconds of waiting after which it is said what for, and that the first GPU to answer waits for the others.
PATIENCE = 30


@dataclass(frozen=True)
class Model:
    """What the placement has to know of a study: its model, its dtype, and into how many pieces its work falls.

    ``asked`` is the dtype of the spec, and ``resolved`` the one that an earlier run of the study came to, which stays.
    ``trains``: all of it is trained.
    """

    source: Source
    asked: str
    pieces: int
    resolved: str | None = None
    trains: bool = False


@dataclass(frozen=True)
class Card:
    """One GPU: its name, its free bytes, and whether it computes in bf16."""

    name: str
    free: int
    bf16: bool


@ray.remote(num_cpus=0, num_gpus=1, max_retries=0)  # all cores may be others'
def _card() -> Card:
    """The GPU that Ray gives this task, as it stands without this study."""
    import torch

    from esa_ray.models.device import has_bf16

    return Card(torch.cuda.get_device_name(0), torch.cuda.mem_get_info(0)[0], has_bf16())


def _cards(nodes: Sequence[Node], say: Callable[[str], None]) -> dict[str, list[Card]]:
    """Node → its GPUs, each asked; those that others hold don't answer.

    Raises
    ------
    EsaError
        If torch finds no GPU on a node that has one.
    """
    asked = _ask(nodes, 1.0)
    ready = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)[0]
    if not ready:  # a part of one may still be free
        _cancel(asked)
        say("all GPUs are taken; waiting for one (or compute on CPUs: --gpus 0)")
        asked = _ask(nodes, 0.01)
        ray.wait(list(asked), num_returns=1)
        ready = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)[0]
    found: dict[str, list[Card]] = {}
    try:
        for answer in ready:
            found.setdefault(asked[answer], []).append(ray.get(answer))
    except ray.exceptions.RayError as error:
        raise EsaError(
            f"torch finds no GPU on a node that has one ({first_line(error)[:160]}); install its CUDA build there, or "
            "compute on CPUs: --gpus 0"
        ) from None
    finally:
        _cancel(set(asked) - set(ready))
    _say_of_silent(nodes, found, say)
    return found


def _say_of_silent(nodes: Sequence[Node], found: Mapping[str, Sequence[Card]], say: Callable[[str], None]) -> None:
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    silent = {node.name: node.gpus - len(found.get(node.name, ())) for node in nodes}
    words = [f"{n} of {hosts.get(name, name)}" for name, n in silent.items() if n]
    if words:
        say(f"GPUs that others hold are left out: {', '.join(words)}")


def _ask(nodes: Sequence[Node], part: float) -> dict[ray.ObjectRef, str]:
    return {
        _card.options(
            num_gpus=part, scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False)
        ).remote(): node.name
        for node in nodes
        for _ in range(node.gpus if part == 1 else min(node.gpus, 1))
    }


def _cancel(answers: Iterable[ray.ObjectRef]) -> None:
    for answer in answers:
        ray.cancel(answer, force=True)


def with_cards(nodes: Sequence[Node], cards: Mapping[str, Sequence[Card]]) -> list[Node]:
    """The nodes with the GPUs that answered and what is known of them; all others are taken, and none of theirs."""

    def known(node: Node, mine: Sequence[Card]) -> Node:
        if not mine:
            return dataclasses.replace(node, gpus=0)
        free = min(c.free for c in mine)
        return dataclasses.replace(node, gpus=len(mine), card=free, bf16=all(c.bf16 for c in mine))

    return [known(node, cards.get(node.name, ())) for node in nodes]


def nodes_alive() -> list[Node]:
    """The nodes of the connected cluster."""
    found = [(node["Resources"], node["NodeID"]) for node in ray.nodes() if node["Alive"]]
    return [Node(int(r.get("CPU", 0)), r.get("memory", 8e9), int(r.get("GPU", 0)), name) for r, name in found]


def at_head() -> NodeAffinitySchedulingStrategy | None:
    """Where what must outlive every other node runs: without the head nothing does."""
    heads = [n["NodeID"] for n in ray.nodes() if n["Alive"] and "node:__internal_head__" in n["Resources"]]
    return NodeAffinitySchedulingStrategy(heads[0], soft=False) if heads else None


def await_gpus(wanted: int, say: Callable[[str], None]) -> None:
    """Ask a cluster that scales for so many GPUs, and wait until they are there.

    Raises
    ------
    EsaError
        If they don't come.
    """
    have = sum(node.gpus for node in nodes_alive())
    if have >= wanted:
        return
    from ray.autoscaler.sdk import request_resources

    say(f"waiting for {wanted} GPUs, of which the cluster has {have}; it is asked to start more")
    until = time.monotonic() + GPU_PATIENCE
    try:
        request_resources(bundles=[{"GPU": 1}] * wanted)
        while (have := sum(node.gpus for node in nodes_alive())) < wanted:
            if time.monotonic() > until:
                raise EsaError(f"the cluster has {have} GPUs and {wanted} are asked for; lower --gpus, or let it grow")
            time.sleep(5)
    finally:
        request_resources(bundles=[])  # what is asked for and not taken back is kept, and paid for


def waves(
    models: Sequence[Model], alone: Sequence[bool], *, gpus: int | None = None, say: Callable[[str], None] = print
) -> Iterator[dict[int, Placement]]:
    """Which studies run side by side, one group after the other; each group as the cluster stands when its turn comes.

    Parameters
    ----------
    alone
        Which of them share the cluster with no other (a search).
    gpus
        GPUs to wait for; 0 uses none that are there, None what there is.
    """
    left = list(range(len(models)))
    while left:
        if gpus:
            await_gpus(gpus, say)
        nodes = nodes_alive()
        cards = _cards(nodes, say) if gpus != 0 and any(node.gpus for node in nodes) else {}
        nodes = with_cards(nodes, cards)
        first = left[:1] if alone[left[0]] else [i for i in left if not alone[i]]
        dtypes = {i: computed_in(models[i], nodes) for i in first}
        _say_of_bf16({models[i]: dtypes[i] for i in first}, nodes, cards, say)
        sizes = [
            Size(
                weight_bytes(models[i].source, dtypes[i], on_gpu=bool(cards)), models[i].pieces,
                bf16=dtypes[i] == "bf16" != models[i].asked and _bf16_is_there(nodes),
                working=TRAINING_SET[dtypes[i]] if models[i].trains else WORKING_SET,
            )
            for i in first
        ]  # fmt: skip
        wave = {first[n]: dataclasses.replace(p, dtype=dtypes[first[n]]) for n, p in place(nodes, sizes).items()}
        yield wave
        left = [i for i in left if i not in wave]


def computed_in(model: Model, nodes: Sequence[Node]) -> str:
    """The dtype of all of a study's actors: its own, or what "auto" means on these nodes.

    One node with bf16 is enough: a model of that dtype then runs there alone.
    """
    on_gpu = any(node.room for node in nodes)
    return compute_dtype(model.source, model.resolved or model.asked, on_gpu=on_gpu, bf16=_bf16_is_there(nodes))


def _bf16_is_there(nodes: Sequence[Node]) -> bool:
    return any(node.room and node.bf16 for node in nodes)


def _say_of_bf16(
    dtypes: Mapping[Model, str], nodes: Sequence[Node], cards: Mapping[str, Sequence[Card]], say: Callable[[str], None]
) -> None:
    without = sorted({card.name for mine in cards.values() for card in mine if not card.bf16})
    concerned = [m for m in dtypes if m.asked == "auto" and own_dtype(m.source) == "bf16"] if without else []
    there = _bf16_is_there(nodes)
    if alone := [m.source.name for m in concerned if dtypes[m] == "bf16" and there]:
        say(f"{', '.join(without)} can't compute in bf16; {', '.join(alone)} runs on the other GPUs alone")
    if begun := [m.source.name for m in concerned if dtypes[m] == "bf16" and not there]:
        say(f"{', '.join(without)} can't compute in bf16; {', '.join(begun)} began in it and goes on, slowly")
    if wider := [m.source.name for m in concerned if dtypes[m] == "fp32" and not there]:
        say(
            f"{', '.join(without)} can't compute in bf16; {', '.join(wider)} is computed in fp32, which holds all "
            "numbers of bf16 (--dtype fp16 takes half the memory, and overflows beyond 65,504)"
        )
