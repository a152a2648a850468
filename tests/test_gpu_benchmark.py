"""The benchmark for a GPU: all of it runs on the CPU without ray and polars; one that ends early leaves what it has."""

import json
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import run as benchmark
from benchmarks.gpu.bench import Bench, OutOfTimeError, within
from benchmarks.gpu.cells import drawn, synchronisations
from benchmarks.gpu.models import BODY, LLAMA, MIXTRAL, PYTHIA, fitting_layers, random_model
from benchmarks.gpu.scarcity import Rationed
from benchmarks.gpu.scoring import GRADIENTS, foreseen
from esa_ray.models.addressing import catalogue
from tests.tiny import tiny

ROOT = Path(__file__).parents[1]
WITHOUT = """
import runpy, sys
for name in ("ray", "polars", "altair", "vl_convert", "moto", "optuna", "datasets", "gguf"):
    sys.modules[name] = None
from benchmarks.gpu import run
run.SECONDS = run.run.__kwdefaults__["seconds"] = 1e6  # a busy machine is slow
sys.argv = ["benchmarks", "gpu", "--quick", "--out", sys.argv[1]]
runpy.run_module("benchmarks", run_name="__main__")
"""


def test_every_part_runs_to_its_end_on_the_cpu_without_ray_and_polars(tmp_path):
    command = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [part["name"] for part in found["parts"]] == list(benchmark.PARTS)
    assert {part["status"] for part in found["parts"]} == {"done"}
    assert all(part["figures"] for part in found["parts"])
    assert found["environment"]["device"] == "cpu"
    figures = [f for part in found["parts"] for f in part["figures"]]
    assert not [f for f in figures if f["value"] == "failed"]
    # A CPU neither meets nor misses a goal that is a card's.
    assert all(f["met"] is None for f in figures if "of bare" in f["unit"])


@pytest.fixture
def parts(monkeypatch):
    """Parts of a test's own in place of the real ones."""
    monkeypatch.setattr(benchmark, "PARTS", found := {})
    return lambda **works: found.update({name: (name, work, 10.0) for name, work in works.items()})


def test_what_a_part_found_is_written_before_the_next_begins_and_a_failure_is_its_own(parts, tmp_path):
    path, seen = tmp_path / "gpu.json", []

    def first(bench):
        bench.note("a figure", 1.5, "s")

    def second(bench):
        seen.append(json.loads(path.read_text()))
        bench.note("another", 2.0)
        raise ValueError("broken\nin two lines")

    def third(bench):
        bench.note("the last", None)

    parts(first=first, second=second, third=third)
    found = benchmark.run(path, device="cpu", parts=tuple(benchmark.PARTS))
    assert [f["value"] for part in seen[0]["parts"] for f in part["figures"]] == [1.5]
    assert [part["status"] for part in found["parts"]] == ["done", "failed", "done"]
    assert found["parts"][1]["error"].startswith("ValueError: broken")
    assert found["parts"][1]["figures"][0]["value"] == 2.0
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))


def test_parts_without_time_are_skipped_and_say_so(parts, tmp_path):
    parts(first=lambda _: pytest.fail("was begun"))
    found = benchmark.run(tmp_path / "gpu.json", device="cpu", seconds=1, parts=tuple(benchmark.PARTS))
    assert found["parts"][0]["status"] == "skipped"
    assert found["parts"][0]["error"].endswith("s were left")


def test_a_part_that_takes_longer_than_its_time_is_ended():
    def endless():
        while True:
            pass

    with pytest.raises(OutOfTimeError), within(0.05):
        endless()


def test_a_cpu_leaves_goals_of_speed_open_and_judges_the_others():
    bench = Bench(torch.device("cpu"))
    bench.note("speed", 0.1, "of bare", goal="≥ 0.7", met=False)
    bench.note("bits", "differ", goal="the same bits", met=False)
    assert [f["met"] for f in bench.figures] == [None, False]
    assert benchmark.missed({"parts": [{"figures": bench.figures}]}) == "bits"


def test_a_failure_is_a_figure_and_an_error_of_the_card_ends_the_part():
    bench = Bench(torch.device("cpu"))
    with bench.trying("this"):
        raise RuntimeError("no kernel")
    assert bench.figures[0]["met"] is False
    assert "no kernel" in bench.figures[0]["note"]
    for error in (RuntimeError("CUDA error: an illegal memory access was encountered"), OutOfTimeError("late")):
        with pytest.raises(type(error)), bench.trying("that"):
            raise error


def test_a_failure_has_let_go_of_its_memory_when_memory_is_given_back(monkeypatch):
    bench, held = Bench(torch.device("cpu")), []

    def work():
        large = torch.zeros(3)
        held.append(weakref.ref(large))
        try:
            raise ValueError("the first")
        except ValueError:
            raise RuntimeError("the second, raised because of it") from None

    monkeypatch.setattr("benchmarks.gpu.bench.give_back_memory", lambda: held.append(held[0]()))
    with bench.trying("this"):
        work()
    assert held[1:] == [None]


def test_what_fits_is_a_pass_of_as_many_windows_as_the_formula_takes():
    model = random_model(PYTHIA, Bench(torch.device("cpu")))
    tensors = catalogue(model).select(BODY)
    sizes, whole = foreseen(model, tensors, 4, GRADIENTS, 1 << 40)
    assert max(sizes) == 4
    assert sum(sizes) == 8
    assert len(whole.ranges) == 1
    assert len(foreseen(model, tensors, 4, GRADIENTS, whole.peak - 1)[1].ranges) > 1


@pytest.fixture
def card(monkeypatch):
    """A bench that takes this for a card of 80 GB, 71 of them free, with what torch would say of one."""
    monkeypatch.setattr(Bench, "full", True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (71 * 10**9, 80 * 10**9))
    return Bench(torch.device("cpu"))


def test_as_many_blocks_as_fit_a_card(card):
    # 46.7 billion parameters in 32 blocks, 0.26 of them outside of the blocks: 1.45 billion a block.
    assert fitting_layers(MIXTRAL, card, 8.0) == int((0.9 * 71 / 8 - 0.262) / 1.4512)
    assert fitting_layers(LLAMA, card, 2.0) == 32
    assert fitting_layers(MIXTRAL, card, 1000.0) == 1


def test_peak_memory_is_what_work_takes_above_what_was_held(card, monkeypatch):
    held = iter([300, 1000])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: next(held))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: next(held))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
    assert card.peak(lambda: None) == 700


def test_peak_memory_on_the_cpu_is_that_of_tensors():
    bench = Bench(torch.device("cpu"))

    def work():
        kept = torch.zeros(1000)
        for _ in range(3):
            torch.zeros(50_000)
        return kept

    held = torch.zeros(10_000)
    assert bench.peak(work) == pytest.approx(4 * 51_000, abs=512)  # the allocator rounds up
    assert len(held) == 10_000


def test_waits_for_a_card_are_counted_by_line_and_torchs_own_notice_is_not_one(card, monkeypatch):
    def mode(name):
        if name == "warn":
            warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all synchronizing "
                          "operations", stacklevel=2)  # fmt: skip

    def work():
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode)
    found = synchronisations(card, work)
    assert sum(found.values()) == 3
    assert next(iter(found)).startswith("tests/test_gpu_benchmark.py:")


def test_drawn_weights_are_so_many_a_block_and_none_twice():
    weights = catalogue(tiny("llama"))
    found = drawn(weights, 1, 30)
    assert {weights[name].layer for name in found} == {1}
    assert sum(len(set(flat.tolist())) for flat in found.values()) == 30


def test_a_ration_refuses_what_is_beyond_it_and_not_what_is_smaller_than_what_it_refused():
    with Rationed(1000) as ration:
        torch.zeros(200)
        assert ration.made == 800
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(100)
        torch.zeros(50)
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(100)
    with Rationed(0), pytest.raises(torch.OutOfMemoryError):
        torch.zeros(1)
