"""How many model actors of what size a cluster carries: arithmetic alone, from what its nodes and GPUs have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from esa_ray.host.footprint import (
    BARE_SET,
    GPU_SHARE,
    HOST_THREADS,
    MEMORY_SHARE,
    OFFLOAD_SHARE,
    PROCESS,
    SPREAD_PLAN,
    SPREAD_SHARE,
    WORKING_SET,
)  # fmt: skip

#: Parts of a GPU that an actor may take: a small model shares one with others.
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
#: Actors of one model on one GPU: a second hides the first's pauses, a third brings nothing.
ACTORS_A_GPU = 2


@dataclass(frozen=True)
class Node:
    """What a node of the cluster has: cores, bytes that Ray may give away, GPUs; ``name`` is its id in Ray.

    ``card`` are the free bytes of the GPU that has the fewest (Ray chooses which an actor gets), 0 where none is to be
    used; ``bf16`` whether all its GPUs compute in bf16.
    """

    cpus: int
    memory: float
    gpus: int = 0
    name: str = ""
    card: float = 0.0
    bf16: bool = True

    @property
    def room(self) -> int:
        """Bytes of each GPU that actors may fill."""
        return int(self.card * GPU_SHARE) if self.gpus else 0


@dataclass(frozen=True)
class Size:
    """Bytes of a model's weights, and independent pieces of work; more actors than that would idle.

    ``bf16``: it is computed in bf16 and on no GPU that hasn't that. ``working`` are the bytes that an actor needs per
    byte of weights.
    """

    weights: int
    pieces: int
    bf16: bool = False
    working: float = WORKING_SET

    @property
    def need(self) -> float:
        """Bytes of an actor that scores, or trains, with everything at once."""
        return self.weights * self.working + PROCESS

    @property
    def bare(self) -> float:
        """Bytes of an actor that scores a block range at a time."""
        return self.weights * BARE_SET + PROCESS


@dataclass(frozen=True)
class Seat:
    """What one actor of a study gets on its node.

    ``budget`` are the bytes above the weights that scoring may take on any one device, at least; ``cpus`` what is
    reserved for its ``threads``; ``card`` and ``host`` the bytes of weights that each GPU and the main memory may hold
    (0: all), of which scoring also has what weights leave.
    """

    home: str
    threads: int
    cpus: float
    budget: int
    card: int = 0
    host: int = 0


@dataclass(frozen=True)
class Placement:
    """How many model actors of a study, and what each one gets.

    All have as many ``gpus`` and compute in one ``dtype``; ``memory`` is what each reserves of its node's, in bytes.
    """

    seats: tuple[Seat, ...]
    gpus: float
    device: str
    memory: int = 0
    dtype: str = "auto"

    @property
    def actors(self) -> int:
        """How many."""
        return len(self.seats)

    @property
    def homes(self) -> tuple[str, ...]:
        """The node of each."""
        return tuple(seat.home for seat in self.seats)

    def options(self, actor: int) -> dict:
        """Ray's options for an actor.

        It is sent to the node that was counted on, since elsewhere it may take the room of another; once that node is
        gone, to any.
        """
        seat = self.seats[actor]
        reserved: dict = {"memory": self.memory} if self.memory else {}
        if seat.home:
            reserved["scheduling_strategy"] = NodeAffinitySchedulingStrategy(seat.home, soft=True)
        return {"num_cpus": seat.cpus, "num_gpus": self.gpus, **reserved}

    def arguments(self, actor: int) -> dict:
        """What an actor's worker is told of its place: arguments of :class:`esa_ray.measurements.worker.Worker`."""
        seat = self.seats[actor]
        told: dict = {"device": self.device, "threads": seat.threads}
        if 0 < self.gpus < 1:
            told["gpu_share"] = self.gpus
        if not seat.card:
            told["memory_budget"] = seat.budget
        else:
            told["room"] = seat.budget + seat.card
            told["max_memory"] = {**dict.fromkeys(range(int(self.gpus)), seat.card), "cpu": seat.host}
        return told


def place(nodes: Sequence[Node], sizes: Sequence[Size]) -> dict[int, Placement]:
    """Choose the actors of as many studies as fit the cluster together: number → placement, the first one always.

    On CPUs as many one-thread actors as memory carries (``benchmarks/study.py`` compares the two layouts); what
    memory forbids in actors goes into threads. On GPUs a part of one for a small model, one each for larger ones,
    several with a device map where a model fits no single one; what doesn't fit them is offloaded. GPUs that are too
    small for a model are left to others where larger ones hold it.

    Parameters
    ----------
    sizes
        The studies' models, in the order of their turn.

    >>> place([Node(cpus=2, memory=20e9)], [Size(540_000_000, pieces=90)])[0].actors
    2
    """
    if any(node.room for node in nodes):
        return _on_gpus(nodes, sizes)
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
        names = [node.name for node, mine in zip(nodes, seats, strict=True) for j in mine if j == i]
        # Slightly less than its threads is reserved, so that nothing else starves.
        found[i] = Placement(tuple(Seat(name, threads, threads - 0.1, budget) for name in names), 0, "cpu", int(memory))
    return found


@dataclass(frozen=True)
class _Demand:
    """What every actor of a study asks for: so many GPUs of one node, or a part of one, with so much room each.

    ``share`` of that room may be filled with weights where they lie on several devices; None where one holds them all.
    """

    gpus: float
    room: int
    bf16: bool
    share: float | None = None

    def met_by(self, node: Node) -> bool:
        return node.room >= self.room > 0 and (node.bf16 or not self.bf16)


def _demand(nodes: Sequence[Node], size: Size, smallest: float) -> _Demand:
    """The smallest GPUs that hold a model, each by itself or a few together; else all of the node that has most."""
    able = [node for node in nodes if node.room and (node.bf16 or not size.bf16)]
    rooms = sorted({node.room for node in able})
    if holding := [room for room in rooms if size.bare <= room]:
        part = next((f for f in FRACTIONS if f >= smallest and size.need <= holding[0] * f), 1.0)
        return _Demand(part, holding[0], size.bf16)
    for room in reversed(rooms):
        several = math.ceil(size.weights / (SPREAD_PLAN * room))
        if any(node.room >= room and node.gpus >= several for node in able):
            return _Demand(several, room, size.bf16, SPREAD_SHARE)
    most = max(able, key=lambda node: node.gpus * node.room)
    # What all GPUs of a node can't hold waits in its main memory, or on its disk.
    share = SPREAD_SHARE if size.bare <= most.gpus * most.room else OFFLOAD_SHARE
    return _Demand(most.gpus, most.room, size.bf16, share)


def _taken(free: list[list[float]], demand: _Demand, nodes: Sequence[Node]) -> int | None:
    """Take some GPUs of one node, or a part of one, as Ray does: where the least is left over; the node's number."""
    able, part = [n for n, node in enumerate(nodes) if demand.met_by(node)], demand.gpus
    if part < 1:
        fitting = [(left, n, g) for n in able for g, left in enumerate(free[n]) if left >= part]
        if not fitting:
            return None
        _, n, g = min(fitting)
        free[n][g] -= part
        return n
    whole = [(free[n].count(1.0), n) for n in able if free[n].count(1.0) >= part]
    if not whole:
        return None
    _, n = min(whole)
    for _ in range(int(part)):
        free[n][free[n].index(1.0)] = 0.0
    return n


def _on_gpus(nodes: Sequence[Node], sizes: Sequence[Size]) -> dict[int, Placement]:
    free = [[1.0] * node.gpus for node in nodes]
    smallest = 1 / ACTORS_A_GPU if len(sizes) == 1 else FRACTIONS[0]
    demands = [_demand(nodes, size, smallest) for size in sizes]
    homes: dict[int, list[int]] = {}
    for i, demand in enumerate(demands):
        if (home := _taken(free, demand, nodes)) is not None:
            homes[i] = [home]
    growing = list(homes)
    while growing:
        poorest = min(growing, key=lambda i: len(homes[i]) / sizes[i].pieces)
        most = min(sizes[poorest].pieces, max(1, sum(node.gpus for node in nodes) * ACTORS_A_GPU))
        home = _taken(free, demands[poorest], nodes) if len(homes[poorest]) < most else None
        if home is None:
            growing.remove(poorest)
        else:
            homes[poorest].append(home)
    actors = Counter(n for mine in homes.values() for n in mine)
    return {i: _seated_on_gpus(nodes, sizes[i], demands[i], mine, actors) for i, mine in homes.items()}


def _seated_on_gpus(
    nodes: Sequence[Node], size: Size, demand: _Demand, homes: list[int], actors: Counter[int]
) -> Placement:
    def seat(n: int) -> Seat:
        node, host = nodes[n], max(int(nodes[n].memory * MEMORY_SHARE / actors[n]) - PROCESS, 1)
        threads = min(max(1, node.cpus // actors[n]), HOST_THREADS)
        # A node may have fewer cores than actors, and a GPU that waits for a core is worse than a core shared.
        common: dict = {"home": node.name, "threads": threads, "cpus": min(threads - 0.1, 0.9 * node.cpus / actors[n])}
        if demand.share is None:
            return Seat(budget=max(int(node.room * demand.gpus) - size.weights - PROCESS, 1), **common)
        card = int(node.room * demand.share)
        return Seat(budget=max(node.room - card - PROCESS, 1), card=card, host=host, **common)

    seats = tuple(seat(n) for n in homes)
    memory = min(seat.host for seat in seats) + PROCESS if demand.share == OFFLOAD_SHARE else 0
    gpus = demand.gpus if demand.gpus < 1 else int(demand.gpus)
    return Placement(seats, gpus, "cuda" if demand.share is None else "auto", memory)
