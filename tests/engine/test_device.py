"""What a process makes of its GPUs, with torch's own questions about them answered by hand."""

import warnings
from importlib import metadata

import numpy
import pytest
import torch
from typer.testing import CliRunner

from esa_ray import __version__
from esa_ray.cli.app import app
from esa_ray.engine import actor
from esa_ray.measurements.worker import Worker, versions
from esa_ray.models import device
from esa_ray.models.load import load_model, resolve_dtype
from esa_ray.models.sources import Source, find
from tests.models.conftest import save

MATMUL = torch.backends.cuda.matmul


def gpus(monkeypatch, *found):
    """GPUs by (name, compute capability)."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda n=0: found[n][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda n=0: found[n][1])


@pytest.fixture
def flags():
    """Torch's flags as they are, put back afterwards."""
    names = ("allow_tf32", "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = {name: getattr(MATMUL, name) for name in names}, torch.backends.cudnn.allow_tf32
    yield
    for name, value in before[0].items():
        setattr(MATMUL, name, value)
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("capabilities", "wanted"), [([(9, 0)], "bf16"), ([(7, 5)], "fp32"), ([(8, 0), (7, 0)], "fp32"), ([(8, 9)], "bf16")]
)
def test_auto_is_bf16_where_all_gpus_of_a_process_have_it(monkeypatch, tmp_path, capabilities, wanted):
    gpus(monkeypatch, *(("card", c) for c in capabilities))
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    source = Source("m", "directory", str(tmp_path), "0")
    assert resolve_dtype(source, "auto", "cuda") == wanted
    assert resolve_dtype(source, "bf16", "cuda") == "bf16"
    assert resolve_dtype(source, "auto", "cpu") == "fp32"


def test_a_config_within_a_config_names_the_dtype_where_the_outer_one_does_not(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"dtype": "float16"}}')
    assert resolve_dtype(Source("m", "directory", str(tmp_path), "0"), "auto", "cuda") == "fp16"


def test_no_gpu_rounds_more_than_the_dtype_says_and_nothing_warns_or_raises_afterwards(flags):
    MATMUL.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    MATMUL.allow_bf16_reduced_precision_reduction = True
    assert {"tf32", "cudnn-tf32", "bf16-sums"} <= set(device.arithmetic().split(","))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        device.pin_arithmetic()
        assert device.arithmetic() == "exact"
        assert torch.get_float32_matmul_precision() == "highest"
        with torch.backends.cudnn.flags():  # it reads the flags, and raises where two ways of setting them were mixed
            pass
    assert not MATMUL.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not MATMUL.allow_bf16_reduced_precision_reduction
    assert not MATMUL.allow_fp16_reduced_precision_reduction


def test_a_worker_pins_how_gpus_round_before_it_computes_anything(tiny_study, tmp_path, flags):
    MATMUL.allow_tf32 = True
    MATMUL.allow_fp16_reduced_precision_reduction = True
    Worker(tiny_study, find(tiny_study.model), str(tmp_path))
    assert device.arithmetic() == "exact"


def test_what_rounds_stands_among_the_versions_of_a_process_on_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build  (dvs)\n")
    monkeypatch.setattr(device, "DRIVER", driver)
    device.pin_arithmetic()
    found = versions("cuda")
    assert {k: found[k] for k in ("cuda", "driver", "arithmetic")} == {
        "cuda": "12.8", "driver": "570.124.06", "arithmetic": "exact",
    }  # fmt: skip
    assert found["fold"] == device.folds_by()
    assert not {"cuda", "driver", "arithmetic", "fold"} & versions().keys()


def test_code_that_runs_without_being_installed_tells_its_own_version(monkeypatch):
    installed = metadata.Distribution.from_name

    def all_but_this(name):
        if name == "esa-ray":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", all_but_this)
    found = versions()
    assert (found["esa-ray"], found["numpy"]) == (__version__, numpy.__version__)
    assert CliRunner().invoke(app, ["--version"]).output == f"esa-ray {__version__}\n"


AMPERE, TURING = ("A100", (8, 0)), ("T4", (7, 5))


@pytest.mark.parametrize(
    ("cards", "installed", "environment", "wanted"),
    [
        ([AMPERE], True, None, "triton-3.6.0"), ([AMPERE], True, "1", "triton-3.6.0"), ([AMPERE], True, "0", "torch"),
        ([AMPERE], False, None, "torch"), ([TURING], True, None, "torch"),
        ([AMPERE, TURING], True, None, "torch+triton-3.6.0"),
    ],
)  # fmt: skip
def test_what_folds_gradients_is_told_without_compiling(monkeypatch, cards, installed, environment, wanted):
    gpus(monkeypatch, *cards)
    monkeypatch.setattr(device, "find_spec", lambda name: name if installed else None)
    monkeypatch.setattr(device, "version", lambda _: "3.6.0")
    if environment is None:
        monkeypatch.delenv("ESA_TRITON", raising=False)
    else:
        monkeypatch.setenv("ESA_TRITON", environment)
    assert device.folds_by() == wanted


@pytest.mark.parametrize(
    ("mapped", "wanted"),
    [
        ({"": 1}, "B"), ({"a": 0, "b": 1}, "A + B"), ({"a": 1, "b": 2}, "2 × B"), ({"": torch.device("cuda:2")}, "B"),
        ({"a": 0, "b": "cpu", "c": "disk"}, "A"),
    ],
)  # fmt: skip
def test_the_cards_that_a_model_uses_are_named(monkeypatch, mapped, wanted):
    gpus(monkeypatch, ("A", (9, 0)), ("B", (8, 0)), ("B", (8, 0)))
    model = torch.nn.Linear(2, 2, device="meta")
    model.hf_device_map = mapped
    assert device.cards(model) == wanted


def test_a_process_that_shares_a_gpu_keeps_to_its_part(tiny_study, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, n: told.append((part, n)))
    Worker(tiny_study, find(tiny_study.model), str(tmp_path / "a"))
    assert told == []
    Worker(tiny_study, find(tiny_study.model), str(tmp_path / "b"), gpu_share=0.25)
    assert told == [(0.225, 0)]  # four processes allocate 0.9 of the card, and their contexts have the rest


@pytest.mark.parametrize(
    ("torch_version", "name"), [("2.8.1", "PYTORCH_CUDA_ALLOC_CONF"), ("2.13.0", "PYTORCH_ALLOC_CONF")]
)
def test_segments_grow_unless_the_user_has_settings_of_their_own(monkeypatch, torch_version, name):
    monkeypatch.setattr("os.environ", {})
    monkeypatch.setattr(actor, "version", lambda package: torch_version)
    actor.expand_segments()
    assert actor.os.environ == {name: "expandable_segments:True"}
    for theirs in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setattr("os.environ", {theirs: "max_split_size_mb:64"})
        actor.expand_segments()
        assert actor.os.environ == {theirs: "max_split_size_mb:64"}


def test_a_model_is_loaded_straight_to_its_device_and_moved_by_no_hooks(tmp_path, monkeypatch):
    from esa_ray.models import load

    maps, real = [], load.AutoModelForCausalLM.from_pretrained

    def onto_the_cpu(*arguments, device_map, **options):
        maps.append(device_map)
        return real(*arguments, device_map={"": "cpu"} if device_map else None, **options)

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", onto_the_cpu)
    source = find(save(tmp_path / "m", "llama", False))
    whole = load_model(source, "fp32", "cpu")
    for name, index in (("cuda", 0), ("cuda:1", 1)):
        placed = load_model(source, "fp32", name)
        assert maps[-1] == {"": torch.device("cuda", index)}
        assert not any(hasattr(module, "_hf_hook") for module in placed.modules())
        for (n, a), (m, b) in zip(whole.named_parameters(), placed.named_parameters(), strict=True):
            assert n == m
            assert torch.equal(a, b)
    assert maps[0] is None


def test_the_memory_that_each_device_may_hold_reaches_the_device_map(tmp_path, tiny_study, monkeypatch):
    """Without a GPU: main memory may hold a part, so the rest waits on disk."""
    source = find(tiny_study.model)
    part = int(0.6 * sum(p.nbytes for p in load_model(source, "fp32", "cpu").parameters()))
    monkeypatch.setattr(device, "cards", lambda model: "card")
    worker = Worker(tiny_study, source, str(tmp_path), device="auto", max_memory={"cpu": part})
    held = [p.nbytes for p in worker.model.parameters() if not p.is_meta]
    assert 0 < sum(held) <= part


def test_what_weights_leave_of_the_fullest_gpu_is_the_budget():
    model = torch.nn.ModuleList([torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 4, bias=False, device="meta")])
    assert device.heaviest(model[0], 10**9, kind="cpu") == 4 * 64
    assert device.heaviest(model[0], 10**9) == 0  # nothing on a GPU
    assert device.heaviest(model, 10**9, kind="cpu") == 10**9  # offloaded weights come and go


def test_a_worker_without_a_budget_takes_what_weights_leave_and_a_budget_of_the_users_stands(
    tiny_study, tmp_path, monkeypatch
):
    source, rooms = find(tiny_study.model), {"room": 10**7, "max_memory": {0: 6 * 10**6, "cpu": 10**9}}
    monkeypatch.setattr(device, "heaviest", lambda model, most: most - 1_000_000)
    assert Worker(tiny_study, source, str(tmp_path / "a"), **rooms).memory_budget == 5_000_000
    assert Worker(tiny_study, source, str(tmp_path / "b"), memory_budget=7, **rooms).memory_budget == 7
