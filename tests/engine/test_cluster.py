"""How many actors of what size: by hand-counted memory and cores."""

import json

import pytest
import ray
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory
from transformers import LlamaConfig, LlamaForCausalLM

from esa_ray.engine import cluster
from esa_ray.engine.cluster import Card, Model, computed_in, with_cards
from esa_ray.engine.dispatch import GIVE_UP, Actors, Scheduler
from esa_ray.engine.placement import Node, Size, place
from esa_ray.engine.work import Work
from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints
from esa_ray.host.footprint import PROCESS, TRAINING_SET, WORKING_SET
from esa_ray.models.sources import Source
from esa_ray.spec import DataSpec, ModelSpec, StudySpec, TuneSpec
from esa_ray.storage.store import Store

GPU = 80 * 10**9


def box(cpus=16, memory=64e9, gpus=1, name="", card=GPU, **more):
    """A node with GPUs of which each has 80 GB free."""
    return Node(cpus, memory, gpus, name, card, **more)


def alone(nodes, weights, pieces=90, **more):
    (placement,) = place(nodes, [Size(weights, pieces, **more)]).values()
    return placement


def only(placement, field):
    """What all actors of a placement get alike."""
    (value,) = {getattr(seat, field) for seat in placement.seats}
    return value


def test_two_cores_and_a_small_model_take_two_actors_of_one_thread():
    found = alone([Node(2, 20e9)], 540_000_000)
    assert (found.actors, only(found, "threads"), found.gpus, found.device) == (2, 1, 0, "cpu")


def test_memory_limits_actors_and_the_cores_go_into_threads():
    need = 8e9 * WORKING_SET + PROCESS
    found = alone([Node(16, 2.5 * need / 0.7)], 8_000_000_000)
    assert (found.actors, only(found, "threads")) == (2, 8)
    assert found.memory == int(need)


def test_training_all_weights_takes_masters_gradients_and_two_moments_of_each(tmp_path):
    parameters = 10**9
    in_fp32 = 4 * parameters * (1 + 1 + 2 + 1)  # weights, gradients, Adam's moments, Fisher information
    in_bf16 = 2 * parameters + 4 * parameters * (1 + 1 + 2 + 1)  # and masters
    assert in_fp32 < 4 * parameters * TRAINING_SET["fp32"] < 1.3 * in_fp32
    assert in_bf16 < 2 * parameters * TRAINING_SET["bf16"] < 1.3 * in_bf16
    need = TRAINING_SET["fp32"] * 4 * parameters + PROCESS
    found = alone([Node(8, 2.1 * need / 0.7)], 4 * parameters, working=TRAINING_SET["fp32"])
    assert (found.actors, found.memory) == (2, int(need))
    full, few = TuneSpec(), TuneSpec(arm="random")
    for tunings, trains in (((), False), ((few,), False), ((few, full), True)):
        spec = StudySpec(name="x", model=ModelSpec(source="m"), tunings=tunings, target=DataSpec() if tunings else None)
        assert Work(spec, Store(tmp_path), Source("m", "directory", "m", "0")).model.trains == trains


def test_an_actor_is_never_larger_than_its_node():
    need = 8e9 * WORKING_SET + PROCESS
    found = alone([Node(8, 1.5 * need / 0.7)] * 4, 8_000_000_000)
    assert (found.actors, only(found, "threads")) == (4, 8)
    large = alone([box(4)] * 4, 100 * 10**9)
    assert (large.actors, large.gpus, large.device) == (4, 1, "auto")


def test_no_more_actors_than_work():
    assert alone([Node(16, 1e12)], 1, pieces=3).actors == 3


def test_a_model_too_large_for_a_node_gets_one_to_itself_and_reserves_no_more_than_there_is():
    found = alone([Node(8, 16e9), Node(8, 4e9)], 8 * 10**9)
    assert (found.actors, only(found, "threads"), found.memory) == (1, 8, int(16e9 * 0.7))
    assert only(found, "budget") == int(16e9 * 0.7) - 8 * 10**9 - PROCESS


def test_a_small_model_shares_a_gpu_and_a_large_one_spans_several():
    small = alone([box(gpus=2)], 300_000_000)
    assert (small.actors, small.gpus, small.device) == (4, 0.5, "cuda")
    large = alone([box(gpus=4)], 100 * 10**9)
    assert (large.actors, large.gpus, large.device) == (2, 2, "auto")


def test_a_model_that_fits_a_gpu_without_its_accumulators_stays_on_one_and_says_what_is_left():
    found = alone([box()], 40 * 10**9)
    assert (found.actors, found.gpus, found.device) == (1, 1, "cuda")
    assert only(found, "budget") == 72 * 10**9 - 40 * 10**9 - PROCESS


def test_a_model_too_large_for_all_gpus_takes_them_all_and_offloads_the_rest():
    found = alone([box()], 94 * 10**9)
    assert (found.actors, found.gpus, found.device) == (1, 1, "auto")
    # Of the 72 GB that may be filled half is for the weights that stay, and the other half for scoring.
    assert found.arguments(0)["max_memory"] == {0: 36 * 10**9, "cpu": int(64e9 * 0.7) - PROCESS}
    assert only(found, "budget") == 36 * 10**9 - PROCESS
    assert found.memory == int(64e9 * 0.7)


def test_a_model_over_several_gpus_leaves_room_for_scoring_on_each_of_them():
    found = alone([box(gpus=8)], 170 * 10**9)
    # 0.7 of 72 GB each, so that whole blocks fit into the 0.85 that may be filled.
    assert (found.actors, found.gpus, found.device) == (2, 4, "auto")
    each = int(72e9 * 0.85)
    told = found.arguments(0)
    assert told["max_memory"] == {**dict.fromkeys(range(4), each), "cpu": int(64e9 * 0.7 / 2) - PROCESS}
    # Accumulators of a block range lie on one GPU: the budget is what one has left, not what all have together.
    assert only(found, "budget") == 72 * 10**9 - each - PROCESS
    assert told["room"] == 72 * 10**9 - PROCESS
    assert "memory_budget" not in told
    assert found.memory == 0  # what main memory could take is not reserved, since nothing goes there


@pytest.mark.parametrize("gpus", [2, 5, 8])
def test_accelerate_puts_a_model_where_the_placement_counted_on(gpus):
    """A Llama of 16 GB on GPUs that are just large enough, by accelerate's own map: none of it in main memory."""
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16()
    weights = sum(p.nbytes for p in model.parameters())
    found = alone([box(gpus=gpus, card=weights / (0.7 * 0.9 * gpus) * 1.001)], weights)
    assert found.gpus == gpus
    limits, whole = found.arguments(0)["max_memory"], model._no_split_modules
    limits = get_balanced_memory(model, dict(limits), no_split_module_classes=whole, dtype=torch.bfloat16)
    mapped = infer_auto_device_map(model, limits, no_split_module_classes=whole, dtype=torch.bfloat16)
    assert set(mapped.values()) <= set(range(gpus))


def test_an_actor_on_a_gpu_has_its_part_of_the_cores_at_most_eight_and_at_least_one():
    assert only(alone([box(cpus=16, gpus=8)], 40 * 10**9), "threads") == 2
    assert only(alone([box(cpus=64)], 40 * 10**9), "threads") == 8
    few = alone([box(cpus=2, gpus=4)], 300_000_000)
    assert (few.actors, only(few, "threads")) == (8, 1)
    assert sum(few.options(n)["num_cpus"] for n in range(8)) <= 2


def test_each_node_is_filled_by_the_memory_that_its_own_gpus_have_free():
    nodes = [box(name="large"), box(name="small", card=40e9)]
    found = alone(nodes, 20 * 10**9)
    assert sorted(found.homes) == ["large", "small"]
    budgets = {seat.home: seat.budget for seat in found.seats}
    assert budgets == {"large": 52 * 10**9 - PROCESS, "small": 16 * 10**9 - PROCESS}
    # The small one can't hold this model, the large one can: nothing is offloaded.
    larger = alone(nodes, 50 * 10**9)
    assert (larger.homes, larger.gpus, larger.device) == (("large",), 1, "cuda")
    # 180 GB: four of 80 GB rather than more of 40 GB, and of two nodes that hold none of it the one with most.
    several = alone([box(gpus=4, name="large"), box(gpus=8, card=40e9, name="many")], 180 * 10**9)
    assert (several.homes, several.gpus) == (("large",), 4)
    offloaded = alone([box(gpus=1, name="one"), box(gpus=4, card=40e9, name="four")], 180 * 10**9)
    assert (offloaded.homes, offloaded.gpus, offloaded.device) == (("four",), 4, "auto")
    assert offloaded.arguments(0)["max_memory"][3] == 18 * 10**9


def test_a_gpu_that_something_else_fills_is_taken_for_what_it_has_left():
    cards = {"a": [Card("H100", 80 * 10**9, True), Card("H100", 10 * 10**9, True)], "b": []}
    nodes = with_cards([Node(8, 64e9, 2, "a"), Node(8, 64e9, 1, "b"), Node(8, 64e9, 0, "c")], cards)
    assert [(n.gpus, n.card, n.room) for n in nodes] == [(2, 10**10, 9 * 10**9), (0, 0, 0), (0, 0, 0)]
    assert alone(nodes, 6 * 10**9).homes == ("a", "a")


class Answering:
    """What ``_cards`` needs of Ray, with GPUs of which some answer: to the first question, and to the second."""

    exceptions = ray.exceptions

    def __init__(self, monkeypatch, whole: dict[str, int], parts: dict[str, int]):
        self.answers, self.waits, self.cancelled = {1.0: whole, 0.01: parts}, [], []
        monkeypatch.setattr(cluster, "ray", self)
        monkeypatch.setattr(cluster, "_ask", self.ask)

    def ask(self, nodes, part):
        asked = {n.name: n.gpus if part == 1 else 1 for n in nodes}
        return {(name, i, part): name for name, gpus in asked.items() for i in range(gpus)}

    def wait(self, refs, num_returns, timeout=None):
        assert timeout is not None or num_returns == 1  # whoever waits for all does so for a while
        self.waits.append(timeout)
        ready = [ref for ref in refs if ref[1] < self.answers[ref[2]].get(ref[0], 0)]
        return ready[:num_returns], [ref for ref in refs if ref not in ready[:num_returns]]

    def get(self, ref):
        return Card("H100", GPU, True)

    def cancel(self, ref, force):
        self.cancelled.append(ref)

    def nodes(self):
        return [{"NodeID": name, "NodeManagerHostname": f"host-{name}"} for name in "abc"]


@pytest.mark.parametrize(
    ("whole", "parts", "gpus", "words"),
    [
        ({"a": 4, "b": 4, "c": 4}, {}, [4, 4, 4], None),
        ({"a": 1, "b": 4}, {}, [1, 4, 0], "3 of host-a, 4 of host-c"),
        ({}, {"a": 1, "b": 1, "c": 1}, [1, 1, 1], "3 of host-a, 3 of host-b, 3 of host-c"),
        ({}, {"b": 1}, [0, 1, 0], "4 of host-a, 3 of host-b, 4 of host-c"),
    ],
)  # fmt: skip
def test_gpus_count_that_answer_and_it_is_said_which_do_not(monkeypatch, whole, parts, gpus, words):
    nodes, said = [box(gpus=4, name=name) for name in "abc"], []
    ray_ = Answering(monkeypatch, whole, parts)
    found = with_cards(nodes, cluster._cards(nodes, said.append))
    assert [node.gpus for node in found] == gpus
    assert said[1 - bool(whole) :] == ([f"GPUs that others hold are left out: {words}"] if words else [])
    assert ray_.waits == ([cluster.PATIENCE] if whole else [cluster.PATIENCE, None, cluster.PATIENCE])
    assert len(alone(found, 40 * 10**9).seats) == sum(gpus)  # a whole GPU each
    asked = 12 if whole else 12 + 3  # what doesn't answer is not left behind to take a GPU later
    assert len(ray_.cancelled) == asked - sum((whole or parts).values())


def test_two_actors_on_one_gpu_are_told_their_parts_and_one_alone_is_not():
    assert alone([box()], 300_000_000).arguments(0)["gpu_share"] == 0.5
    assert "gpu_share" not in alone([box()], 40 * 10**9).arguments(0)
    assert "max_memory" not in alone([box()], 40 * 10**9).arguments(0)


@pytest.mark.parametrize(
    ("own", "asked", "cards", "wanted"),
    [
        ("bfloat16", "auto", [True], "bf16"), ("bfloat16", "auto", [False], "fp32"), (None, "auto", [True], "fp32"),
        ("bfloat16", "auto", [False, True], "bf16"), ("bfloat16", "bf16", [False], "bf16"),
        ("bfloat16", "auto", [], "fp32"), ("float16", "auto", [False], "fp16"),
    ],
)  # fmt: skip
def test_auto_is_bf16_where_a_gpu_has_it_and_fp32_where_none_does(tmp_path, own, asked, cards, wanted):
    (tmp_path / "config.json").write_text(json.dumps({"dtype": own} if own else {}))
    nodes = [Node(8, 64e9)] + [box(bf16=bf16) for bf16 in cards]
    assert computed_in(Model(Source("m", "directory", str(tmp_path), "0"), asked, 1), nodes) == wanted


MIXED = {"old": False, "new": True}


@pytest.mark.parametrize(
    ("cards", "asked", "resolved", "dtype", "homes", "sentence"),
    [
        ({"old": False}, "auto", None, "fp32", ("old",), "T4 can't compute in bf16; m is computed in fp32"),
        (MIXED, "auto", None, "bf16", ("new",), "T4 can't compute in bf16; m runs on the other GPUs"),
        ({"old": False}, "bf16", None, "bf16", ("old",), None),
        ({"new": True}, "auto", None, "bf16", ("new",), None),
        (MIXED, "auto", "bf16", "bf16", ("new",), "T4 can't compute in bf16; m runs on the other GPUs"),
        (MIXED, "bf16", "bf16", "bf16", ("old",), None),
        (MIXED, "auto", "fp32", "fp32", ("old",), None),
        ({"old": False}, "auto", "bf16", "bf16", ("old",), "T4 can't compute in bf16; m began in it"),
    ],
)
def test_a_study_is_placed_by_the_dtype_that_its_gpus_have_and_it_is_said_where_that_is_another(
    tmp_path, monkeypatch, cards, asked, resolved, dtype, homes, sentence
):
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    model = Model(Source("m", "directory", str(tmp_path), "0"), asked, 1, resolved)
    found = {name: [Card("H100" if bf16 else "T4", GPU, bf16)] for name, bf16 in cards.items()}
    monkeypatch.setattr(cluster, "nodes_alive", lambda: [Node(8, 64e9, 1, name) for name in cards])
    monkeypatch.setattr(cluster, "_cards", lambda nodes, say: found)
    monkeypatch.setattr(cluster, "weight_bytes", lambda source, dtype, on_gpu: 10**9 * {"fp32": 4, "bf16": 2}[dtype])
    said = []
    (wave,) = cluster.waves([model], [False], say=said.append)
    assert (wave[0].dtype, wave[0].homes) == (dtype, homes)
    (seat,) = wave[0].seats
    part, weights = wave[0].gpus, 10**9 * {"fp32": 4, "bf16": 2}[dtype]
    assert seat.budget == 72 * 10**9 * part - weights - PROCESS
    assert len(said) == bool(sentence)
    assert all(sentence in words for words in said)


def test_a_study_that_goes_on_says_what_was_asked_and_what_that_came_to(tmp_path):
    spec = StudySpec(name="x", model=ModelSpec(source="m", dtype="auto"), perturbations=(), topk=(1,), seeds=(1,))
    work = Work(spec, Store(tmp_path), Source("m", "directory", "m", "0"))
    assert (work.model.asked, work.model.resolved) == ("auto", None)
    work.resolved = Fingerprints("0", "bf16", "t")
    assert (work.model.asked, work.model.resolved) == ("auto", "bf16")


def test_a_model_in_bf16_runs_on_the_gpus_that_have_it_alone():
    nodes = [box(name="t4", card=15e9, bf16=False), box(name="h100")]
    assert alone(nodes, 10**9).homes == ("t4", "t4", "h100", "h100")
    assert alone(nodes, 10**9, bf16=True).homes == ("h100", "h100")


def test_the_budget_on_cpus_is_what_models_and_processes_leave():
    found = alone([Node(2, 20e9)], 540_000_000)
    assert only(found, "budget") == int((20e9 * 0.7 - 2 * (540_000_000 + PROCESS)) / 2)


def test_models_that_fit_together_run_side_by_side_and_the_others_wait():
    need = 1e9 * WORKING_SET + PROCESS
    node = Node(8, 2.2 * need / 0.7)
    together = place([node], [Size(10**9, 90)] * 3)
    assert sorted(together) == [0, 1]
    assert [p.actors for p in together.values()] == [1, 1]
    assert all(only(p, "threads") == 4 for p in together.values())
    assert sorted(place([node] * 2, [Size(10**9, 90)] * 3)) == [0, 1, 2]


def test_a_node_is_never_overrun_whatever_the_models():
    import random

    rng = random.Random(5)
    for _ in range(300):
        nodes = [Node(rng.randint(1, 16), rng.uniform(4e9, 64e9)) for _ in range(rng.randint(1, 4))]
        sizes = [Size(rng.randint(10**7, 10**10), rng.randint(1, 60)) for _ in range(rng.randint(1, 5))]
        found = place(nodes, sizes)
        assert 0 in found
        assert all(1 <= p.actors <= sizes[i].pieces for i, p in found.items())
        if len(found) > 1 or found[0].memory == int(sizes[0].need):
            reserved = sum(p.actors * p.memory for p in found.values())
            assert reserved <= sum(n.memory for n in nodes) * 0.7
        assert sum(seat.threads for p in found.values() for seat in p.seats) <= sum(n.cpus for n in nodes)


def test_work_left_over_goes_to_the_study_with_the_most_of_it():
    found = place([Node(8, 1e12)], [Size(10**6, 60), Size(10**6, 20)])
    assert (found[0].actors, found[1].actors) == (6, 2)


def test_several_small_models_share_one_gpu():
    found = place([box()], [Size(2 * 10**9, 90), Size(10**9, 90), Size(10**9, 90)])
    assert sorted(found) == [0, 1, 2]
    assert sum(p.gpus * p.actors for p in found.values()) <= 1
    assert all(p.device == "cuda" for p in found.values())
    too_many = place([box()], [Size(20 * 10**9, 90), Size(20 * 10**9, 90), Size(20 * 10**9, 90)])
    assert sorted(too_many) == [0]


def on_its_home(nodes, found):
    """Start the actors one study after the other, each on its node, and a part of a GPU where Ray puts it."""
    cpus, memory = {n.name: n.cpus for n in nodes}, {n.name: n.memory for n in nodes}
    gpus = {n.name: [1.0] * n.gpus for n in nodes}
    for placement in found.values():
        assert len(placement.homes) == placement.actors
        for actor, home in enumerate(placement.homes):
            options = placement.options(actor)
            cpus[home] -= options["num_cpus"]
            memory[home] -= options.get("memory", 0)
            if 0 < placement.gpus < 1:
                left = min(g for g in gpus[home] if g >= placement.gpus)
                gpus[home][gpus[home].index(left)] -= placement.gpus
            for _ in range(int(placement.gpus)):
                gpus[home][gpus[home].index(1.0)] = 0.0
    assert all(left >= -1e-6 for left in [*cpus.values(), *memory.values()])


def test_every_actor_has_room_on_the_node_that_it_was_counted_on():
    two_on_one = place([box(8, gpus=2, name="a"), box(8, name="b"), box(8, name="c")], [Size(10**11, 9)] * 2)
    assert {i: (p.gpus, p.homes) for i, p in two_on_one.items()} == {0: (2, ("a",))}
    spread = place([box(8, name=f"g{i}") for i in range(4)] + [box(8, gpus=4, name="big")], [Size(10**11, 90)])
    assert spread[0].homes == ("big", "big")


def test_nodes_are_never_overbooked():
    import random

    rng = random.Random(7)
    for _ in range(300):
        gpus = rng.random() < 0.5
        nodes = [
            Node(
                rng.randint(1, 16),
                rng.uniform(4e9, 64e9),
                rng.randint(0, 4) * gpus,
                f"{i + 1:056x}",
                rng.uniform(4e9, GPU),
            )
            for i in range(rng.randint(1, 4))
        ]
        sizes = [Size(rng.randint(10**7, 10**11), rng.randint(1, 60)) for _ in range(rng.randint(1, 5))]
        on_its_home(nodes, place(nodes, sizes))


def test_gpus_are_never_overbooked():
    import random

    rng = random.Random(7)
    for _ in range(300):
        nodes = [box(gpus=rng.randint(0, 4), card=rng.uniform(4e9, GPU)) for _ in range(rng.randint(1, 3))] + [box()]
        sizes = [Size(rng.randint(10**8, 2 * 10**11), rng.randint(1, 60)) for _ in range(rng.randint(1, 5))]
        found = place(nodes, sizes)
        assert 0 in found
        assert sum(p.gpus * p.actors for p in found.values()) <= sum(n.gpus for n in nodes)
        assert all(p.gpus <= max(n.gpus for n in nodes) for p in found.values())


class Fake:
    """An actor whose process answers when told to."""

    def __init__(self):
        self.awake = self

    def remote(self):
        return self


def test_a_chunk_goes_to_the_actor_with_the_fewest_trials_and_a_retry_takes_its_own_place():
    scheduler = Scheduler([[Fake(), Fake()], [Fake()]])
    assert [scheduler.take("a"), scheduler.take("b"), scheduler.take("c")] == [0, 1, 0]
    assert scheduler.take("other", 1) == 0  # another study's actors
    assert scheduler.take("c") == 0  # killed and tried again: it is counted once
    scheduler.leave("a")
    scheduler.leave("c")
    assert scheduler.take("d") == 0
    assert scheduler.take("e") in (0, 1)


def test_trials_begin_once_their_processes_are_there_or_have_been_waited_for(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    scheduler = Scheduler([[Fake(), Fake()]], expected=2)
    scheduler.enter()
    assert scheduler.take("a") is None
    scheduler.enter()
    assert [scheduler.take("a"), scheduler.take("b")] == [0, 1]
    slow = Scheduler([[Fake()]], expected=9)
    assert slow.take("a") is None
    slow.enter()
    assert [slow.take("a") for _ in range(4)] == [None, None, 0, 0]


def test_an_actor_whose_process_died_is_given_nothing_until_it_answers(monkeypatch):
    answered = set()
    monkeypatch.setattr("ray.wait", lambda refs, timeout: ([r for r in refs if r in answered], []))
    monkeypatch.setattr("ray.get", lambda ref: True)
    actors = [Fake(), Fake()]
    scheduler = Scheduler([actors])
    assert [scheduler.take("a"), scheduler.take("b")] == [0, 1]
    scheduler.leave("a", lost=True)
    assert [scheduler.take("a"), scheduler.take("c")] == [1, 1]
    scheduler.leave("b", lost=True)
    assert scheduler.take("d") is None
    answered.add(actors[0])
    assert scheduler.take("d") == 0


def test_actors_that_cannot_be_started_end_the_study_in_a_sentence(monkeypatch):
    def gone(reference):
        raise ray.exceptions.RayActorError(error_msg="no module named esa_ray")

    monkeypatch.setattr("ray.wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr("ray.get", gone)
    actors = Actors([Fake()], new=True)
    for _ in range(GIVE_UP - 1):
        assert actors.up() == set()
    with pytest.raises(EsaError, match="can't be started"):
        actors.up()
