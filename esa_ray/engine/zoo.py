"""Train models of the zoo as Ray tasks in parallel."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from esa_ray.engine.cluster import nodes_alive
from esa_ray.errors import EsaError, first_line
from esa_ray.host.machine import cache_dir
from esa_ray.models.zoo.recipes import base, directory, recipe
from esa_ray.progress import Reporter

#: Tokens of training between two signs of life.
SIGN_OF_LIFE = 20_000


@ray.remote(num_cpus=1, max_retries=2, num_returns="streaming")
def _train(name: str, cache: str) -> Iterator[int | dict[str, Any]]:
    """Train one model on one core; yields tokens as they are trained on, and in the end what became of it."""
    os.environ["ESA_CACHE"] = cache  # of the driver: a standing cluster's processes have an environment of their own
    import torch

    from esa_ray.models.zoo.training import ensure

    torch.set_num_threads(1)
    steps, done = ensure(name), 0
    while True:
        try:
            done += next(steps)
        except StopIteration as end:
            yield done
            yield end.value
            return
        if done >= SIGN_OF_LIFE:
            yield done
            done = 0


def missing(names: Sequence[str]) -> list[str]:
    """Models that aren't trained here, in the order in which they are to be trained: the most costly first, and before
    each tuned one the model that it starts from.
    """
    wanted = dict.fromkeys(each for name in names for each in (base(name), name) if each)
    lacking = [name for name in wanted if not (directory(name) / "zoo.json").is_file()]

    def cost(name: str) -> tuple[bool, float]:
        r = recipe(name)
        return bool(base(name)), -(r.layers * r.width**2 * (r.tuning_tokens or r.tokens))

    return sorted(lacking, key=cost)


def train(names: Sequence[str], reporter: Reporter) -> None:
    """Train those models that aren't there, one core each, on this machine's cores side by side.

    They lie in this machine's cache afterwards, so the tasks stay on the node of the driver.

    Raises
    ------
    EsaError
        If one can't be trained, or this node has no cores for Ray's tasks.
    """
    home = ray.get_runtime_context().get_node_id()
    if not any(node.name == home and node.cpus for node in nodes_alive()):
        raise EsaError(
            "this cluster runs nothing on the node of the command, where the zoo's models are to lie; train them in a "
            "cluster of this machine's own: esa zoo train --address local"
        )
    todo = missing(names)
    tokens = {name: recipe(name).tuning_tokens or recipe(name).tokens for name in todo}
    reporter.phase("zoo", sum(tokens.values()))
    here = NodeAffinitySchedulingStrategy(home, soft=False)
    # A tuned model waits for its base to be there: in a first round all bases, in a second what starts from them.
    for tuned in (False, True):
        running = {
            _train.options(scheduling_strategy=here).remote(name, str(cache_dir())): name
            for name in todo
            if bool(base(name)) == tuned
        }
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            for stream in ready:
                _listen(stream, running, reporter)


def _listen(stream: Any, running: dict[Any, str], reporter: Reporter) -> None:
    name = running[stream]
    try:
        told = ray.get(next(stream))
    except StopIteration:
        del running[stream]
        return
    except ray.exceptions.RayError as error:
        raise EsaError(f"{name} can't be trained: {first_line(error)[:200]}; run the same command again") from None
    if isinstance(told, int):
        reporter.advance(told, name)
    else:
        reporter.say(f"{name}: {told['validation_nll']:.3f} nats per byte on held-out text, {told['seconds']:.0f} s")
