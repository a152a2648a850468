"""How many actors of what size: by hand-counted memory and cores."""

from esa_ray.engine.actor import Seats
from esa_ray.engine.cluster import PROCESS, WORKING_SET, place


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
    alone = place({"CPU": 32, "GPU": 4}, 100 * 10**9, 80 * 10**9, work=90, nodes=4)
    assert (alone.actors, alone.gpus, alone.device) == (4, 1, "auto")


def test_no_more_actors_than_work():
    assert place({"CPU": 16, "memory": 1e12}, model_bytes=1, gpu_bytes=0, work=3).actors == 3


def test_a_small_model_shares_a_gpu_and_a_large_one_spans_several():
    gpu = 80 * 10**9
    small = place({"CPU": 16, "GPU": 2}, model_bytes=300_000_000, gpu_bytes=gpu, work=90)
    assert (small.actors, small.gpus, small.device) == (4, 0.5, "cuda")
    large = place({"CPU": 16, "GPU": 4}, model_bytes=100 * 10**9, gpu_bytes=gpu, work=90)
    assert (large.actors, large.gpus, large.device) == (2, 2, "auto")


def test_a_model_that_fits_a_gpu_without_its_accumulators_stays_on_one_and_says_what_is_left():
    found = place({"CPU": 16, "GPU": 1}, model_bytes=40 * 10**9, gpu_bytes=80 * 10**9, work=90)
    assert (found.actors, found.gpus, found.device) == (1, 1, "cuda")
    assert found.budget == 72 * 10**9 - 40 * 10**9 - PROCESS


def test_a_model_too_large_for_all_gpus_takes_them_all_and_offloads_the_rest():
    found = place({"CPU": 16, "GPU": 1}, model_bytes=94 * 10**9, gpu_bytes=80 * 10**9, work=90)
    assert (found.actors, found.gpus, found.device) == (1, 1, "auto")
    assert found.budget == 1


def test_the_budget_on_cpus_is_what_models_and_processes_leave():
    found = place({"CPU": 2, "memory": 20e9}, model_bytes=540_000_000, gpu_bytes=0, work=90)
    assert found.budget == int(20e9 * 0.7 / 2) - 540_000_000 - PROCESS


def test_a_chunk_goes_to_the_actor_with_the_fewest_trials_and_a_retry_takes_its_own_place():
    seats = Seats(2)
    assert [seats.take("a"), seats.take("b"), seats.take("c")] == [0, 1, 0]
    assert seats.take("c") == 0  # killed and tried again: it is counted once
    seats.leave("a")
    seats.leave("c")
    assert seats.take("d") == 0
    assert seats.take("e") in (0, 1)
