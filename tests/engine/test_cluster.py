"""How many actors of what size: by hand-counted memory and cores."""

import pytest

from esa_ray.engine.actor import Seats
from esa_ray.engine.cluster import PROCESS, WORKING_SET, place
from esa_ray.errors import EsaError


def test_two_cores_and_a_small_model_take_two_actors_of_one_thread():
    found = place({"CPU": 2, "memory": 20e9}, model_bytes=540_000_000, gpu_bytes=0, work=90)
    assert (found.actors, found.threads, found.gpus, found.device) == (2, 1, 0, "cpu")


def test_memory_limits_actors_and_the_cores_go_into_threads():
    need = 8e9 * WORKING_SET + PROCESS
    found = place({"CPU": 16, "memory": 2.5 * need / 0.7}, model_bytes=8_000_000_000, gpu_bytes=0, work=90)
    assert (found.actors, found.threads) == (2, 8)


def test_an_actor_is_never_larger_than_its_node():
    need = 8e9 * WORKING_SET + PROCESS
    found = place({"CPU": 32, "memory": 4 * 1.5 * need / 0.7}, 8_000_000_000, 0, work=90, nodes=4)
    assert (found.actors, found.threads) == (4, 8)
    with pytest.raises(EsaError, match="add GPUs"):
        place({"CPU": 32, "GPU": 4}, 40_000_000_000, 80 * 10**9, work=90, nodes=4)


def test_no_more_actors_than_work():
    assert place({"CPU": 16, "memory": 1e12}, model_bytes=1, gpu_bytes=0, work=3).actors == 3


def test_a_small_model_shares_a_gpu_and_a_large_one_spans_several():
    gpu = 80 * 10**9
    small = place({"CPU": 16, "GPU": 2}, model_bytes=300_000_000, gpu_bytes=gpu, work=90)
    assert (small.actors, small.gpus, small.device) == (4, 0.5, "cuda")
    large = place({"CPU": 16, "GPU": 4}, model_bytes=40_000_000_000, gpu_bytes=gpu, work=90)
    assert (large.actors, large.gpus, large.device) == (2, 2, "auto")


def test_a_model_too_large_for_all_gpus_is_refused():
    with pytest.raises(EsaError, match="add GPUs"):
        place({"CPU": 16, "GPU": 1}, model_bytes=94_000_000_000, gpu_bytes=80 * 10**9, work=90)


def test_a_chunk_goes_to_the_actor_with_the_fewest_trials_and_a_retry_takes_its_own_place():
    seats = Seats(2)
    assert [seats.take("a"), seats.take("b"), seats.take("c")] == [0, 1, 0]
    assert seats.take("c") == 0  # killed and tried again: it is counted once
    seats.leave("a")
    seats.leave("c")
    assert seats.take("d") == 0
    assert seats.take("e") in (0, 1)
