"""Connect to Ray, and decide how many model actors of what size the cluster carries."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Tune's new console output can't be silenced; its loggers would write three files a trial.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# Tune answers Ctrl-C by returning as if all were done.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# A cluster of one's own would serve its metrics to the whole network; a standing one has its own settings.
os.environ.setdefault("RAY_enable_metrics_collection", "0")

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from esa_ray.errors import EsaError, first_line
from esa_ray.models.sources import Source, weight_bytes
from esa_ray.sizes import BARE_SET, GPU_SHARE, MEMORY_SHARE, OBJECT_STORE, PROCESS, WORKING_SET

#: Parts of a GPU that an actor may take: a small model shares one with others.
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
#: Actors of one model on one GPU: a second hides the first's pauses, a third brings nothing.
ACTORS_A_GPU = 2
#: Seconds to wait for GPUs that a cluster was asked to start.
GPU_PATIENCE = 1200
#: Seconds of waiting after which it is said what for.
PATIENCE = 30


@dataclass(frozen=True)
class Node:
    """What a node of the cluster has: cores, bytes that Ray may give away, GPUs; ``name`` is its id in Ray."""

    cpus: int
    memory: float
    gpus: int = 0
    name: str = ""


@dataclass(frozen=True)
class Model:
    """What the placement has to know of a study: its model, its dtype, and into how many pieces its work falls."""

    source: Source
    dtype: str
    pieces: int


@dataclass(frozen=True)
class Size:
    """Bytes of a model's weights, and independent pieces of work; more actors than that would idle."""

    weights: int
    pieces: int

    @property
    def need(self) -> float:
        """Bytes of an actor that scores with everything at once."""
        return self.weights * WORKING_SET + PROCESS


@dataclass(frozen=True)
class Placement:
    """How many model actors of a study, and what each one gets.

    ``budget`` is the memory beside weights and process, ``memory`` what is reserved on its node, in bytes; ``homes``
    are the nodes of its actors.
    """

    actors: int
    threads: int
    gpus: float
    device: str
    budget: int | None = None
    memory: int = 0
    homes: tuple[str, ...] = ()

    def options(self, actor: int) -> dict:
        """Ray's options for an actor. On CPUs it reserves slightly less than its threads, so that nothing else starves.

        It is sent to the node that was counted on, since elsewhere it may take the room of another; once that node is
        gone, to any.
        """
        reserved: dict = {"memory": self.memory} if self.memory else {}
        if actor < len(self.homes) and self.homes[actor]:
            reserved["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self.homes[actor], soft=True)
        return {"num_cpus": max(0.5, self.threads - 0.1), "num_gpus": self.gpus, **reserved}


def place(nodes: Sequence[Node], sizes: Sequence[Size], gpu_bytes: int = 0) -> dict[int, Placement]:
    """Choose the actors of as many studies as fit the cluster together: number → placement, the first one always.

    On CPUs as many one-thread actors as memory carries (``benchmarks/study.py`` compares the two layouts); what
    memory forbids in actors goes into threads. On GPUs a part of one for a small model, one each for larger ones,
    several with a device map where a model fits no single one; what doesn't fit them is offloaded.

    Parameters
    ----------
    sizes
        The studies' models, in the order of their turn.
    gpu_bytes
        Memory of one GPU; 0 without any.

    >>> place([Node(cpus=2, memory=20e9)], [Size(540_000_000, pieces=90)])[0].actors
    2
    """
    if gpu_bytes and any(node.gpus for node in nodes):
        return _on_gpus(nodes, sizes, int(gpu_bytes * GPU_SHARE))
    return _on_cpus(nodes, sizes)


def _on_cpus(nodes: Sequence[Node], sizes: Sequence[Size]) -> dict[int, Placement]:
    nodes = [node for node in nodes if node.cpus] or [Node(1, nodes[0].memory if nodes else 8e9)]
    seats: list[list[int]] = [[] for _ in nodes]

    def carries(n: int, study: int) -> bool:
        used = sum(sizes[i].need for i in seats[n])
        return len(seats[n]) < nodes[n].cpus and used + sizes[study].need <= nodes[n].memory * MEMORY_SHARE

    def seat(study: int) -> bool:
        able = [n for n in range(len(nodes)) if carries(n, study)]
        if able:  # the emptiest node
            seats[min(able, key=lambda n: len(seats[n]) / nodes[n].cpus)].append(study)
        return bool(able)

    if not seat(0):  # it gets a node to itself, however little that has: scoring then takes a block range at a time
        roomy = max(node.memory for node in nodes)
        for n, node in enumerate(nodes):
            if node.memory >= roomy * 0.9 and sum(map(len, seats)) < sizes[0].pieces:
                seats[n].append(0)
        return _seated(nodes, sizes, seats)
    wave = [0, *(i for i in range(1, len(sizes)) if seat(i))]
    growing = list(wave)
    while growing:  # what is left goes to whoever has the fewest actors for its work
        counts = {i: sum(mine.count(i) for mine in seats) for i in growing}
        poorest = min(growing, key=lambda i: counts[i] / sizes[i].pieces)
        if counts[poorest] >= sizes[poorest].pieces or not seat(poorest):
            growing.remove(poorest)
    return _seated(nodes, sizes, seats)


def _seated(nodes: Sequence[Node], sizes: Sequence[Size], seats: list[list[int]]) -> dict[int, Placement]:
    found = {}
    for i in sorted({i for mine in seats for i in mine}):
        homes = [n for n, mine in enumerate(seats) if i in mine]
        # All actors of a study are alike, so the tightest of its nodes decides.
        threads = min(max(1, nodes[n].cpus // len(seats[n])) for n in homes)
        room = min(
            (nodes[n].memory * MEMORY_SHARE - sum(sizes[j].weights + PROCESS for j in seats[n])) / len(seats[n])
            for n in homes
        )
        budget = max(int(room), sizes[i].weights // 4)
        memory = min(sizes[i].need, *(nodes[n].memory * MEMORY_SHARE for n in homes))
        names = tuple(node.name for node, mine in zip(nodes, seats, strict=True) for j in mine if j == i)
        found[i] = Placement(len(names), threads, 0, "cpu", budget, int(memory), names)
    return found


def _taken(free: list[list[float]], part: float) -> int | None:
    """Take some GPUs of one node, or a part of one, as Ray does: where the least is left over; the node's number."""
    if part < 1:
        fitting = [(left, n, g) for n, gpus in enumerate(free) for g, left in enumerate(gpus) if left >= part]
        if not fitting:
            return None
        _, n, g = min(fitting)
        free[n][g] -= part
        return n
    whole = [(gpus.count(1.0), n) for n, gpus in enumerate(free) if gpus.count(1.0) >= part]
    if not whole:
        return None
    _, n = min(whole)
    for _ in range(int(part)):
        free[n][free[n].index(1.0)] = 0.0
    return n


def _on_gpus(nodes: Sequence[Node], sizes: Sequence[Size], room: int) -> dict[int, Placement]:
    """Actors on GPUs with ``room`` bytes each."""
    largest = max(node.gpus for node in nodes)
    free = [[1.0] * node.gpus for node in nodes]

    def share(size: Size, smallest: float) -> float:
        bare = size.weights * BARE_SET + PROCESS
        if bare > room:  # what all GPUs of a node can't hold waits in its main memory, or on its disk
            return float(min(math.ceil(bare / room), largest))
        return next((f for f in FRACTIONS if f >= smallest and size.need <= room * f), 1.0)

    parts = [share(size, 1 / ACTORS_A_GPU if len(sizes) == 1 else FRACTIONS[0]) for size in sizes]
    homes: dict[int, list[int]] = {}
    for i, part in enumerate(parts):
        if (home := _taken(free, part)) is not None:
            homes[i] = [home]
    growing = list(homes)
    while growing:
        poorest = min(growing, key=lambda i: len(homes[i]) / sizes[i].pieces)
        most = min(sizes[poorest].pieces, max(1, sum(node.gpus for node in nodes) * ACTORS_A_GPU))
        home = _taken(free, parts[poorest]) if len(homes[poorest]) < most else None
        if home is None:
            growing.remove(poorest)
        else:
            homes[poorest].append(home)
    return {i: _seated_on_gpus(nodes, sizes[i], parts[i], mine, room) for i, mine in homes.items()}


def _seated_on_gpus(nodes: Sequence[Node], size: Size, part: float, homes: list[int], room: int) -> Placement:
    device = "auto" if size.weights * BARE_SET + PROCESS > room else "cuda"
    budget = max(int(room * part) - size.weights - PROCESS, 1)
    gpus = part if part < 1 else int(part)
    return Placement(len(homes), 1, gpus, device, budget, homes=tuple(nodes[n].name for n in homes))


@ray.remote(num_gpus=0.01, max_retries=0)
def _gpu_bytes() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def _memory_of_a_gpu(say: Callable[[str], None]) -> int:
    """Bytes of one GPU, asked where there is one.

    Raises
    ------
    EsaError
        If torch finds no GPU on a node that has one.
    """
    answer = _gpu_bytes.remote()
    if not ray.wait([answer], timeout=PATIENCE)[0]:
        say("all GPUs are taken; waiting for one (or compute on CPUs: --gpus 0)")
    try:
        return ray.get(answer)
    except ray.exceptions.RayError as error:
        raise EsaError(
            f"torch finds no GPU on a node that has one ({first_line(error)[:160]}); install its CUDA build there, or "
            "compute on CPUs: --gpus 0"
        ) from None


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
        on_gpus = gpus != 0 and any(node.gpus for node in nodes)
        gpu_bytes = _memory_of_a_gpu(say) if on_gpus else 0
        first = left[:1] if alone[left[0]] else [i for i in left if not alone[i]]
        sizes = [
            Size(weight_bytes(models[i].source, models[i].dtype, on_gpu=bool(gpu_bytes)), models[i].pieces)
            for i in first
        ]
        wave = {first[i]: placement for i, placement in place(nodes, sizes, gpu_bytes).items()}
        yield wave
        left = [i for i in left if i not in wave]


def _private_token(address: str | None) -> None:
    """Make the token of a cluster of one's own before Ray does, which would let everyone on the machine read it."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):
        if path.is_file():
            path.chmod(0o600)
        elif not address and "RAY_AUTH_TOKEN" not in os.environ and os.environ.get("RAY_AUTH_MODE", "token") == "token":
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """Make SIGTERM (`ray job stop`, a scheduler) end the block as Ctrl-C does, so that what it holds is let go.

    Ray installs a handler of its own when it connects.
    """

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: letting go takes a second
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def connected(address: str | None = None, *, verbose: bool = False) -> Iterator[None]:
    """Use the cluster at hand (``$RAY_ADDRESS``, or ``address``), or start one here and stop it afterwards."""
    if ray.is_initialized():
        yield
        return
    level = logging.INFO if verbose else logging.ERROR
    options: dict = {"log_to_driver": verbose, "logging_level": level}
    if address := address or os.environ.get("RAY_ADDRESS"):
        options["address"] = address
    else:
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    _private_token(address)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise EsaError(f"no Ray cluster at {address or 'this machine'}: {first_line(error)}") from None
    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with _told_to_end():
            yield
    finally:
        ray.shutdown()
