"""What a study is foreseen to take on a card: closed forms, and what passes of real models hold."""

from pathlib import Path

import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.measurements.forecast import DOUBLE, Memory, Passes, activations, passes, span, study_lines
from esa_ray.measurements.plan import plan
from esa_ray.models.addressing import catalogue
from esa_ray.models.cards import ASSUMED, Card, card, cards
from esa_ray.models.known import counted, hollow, stored_dtype
from esa_ray.models.sources import compute_dtype, find
from esa_ray.scoring.memory import activation_bytes
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, PruneSpec, ScoreSpec, StudySpec
from tests.tiny import random_windows, tiny
from tests.tiny_layouts import tiny_layout

#: A card with round numbers: 10¹² operations a second in 16 bits, of which 0.4 are taken to be reached.
PLAIN = Card("plain", "Plain", 10**9, 1e12, 1e11, 1e15, True)


def test_cards_have_a_plausible_order():
    known = cards()
    assert {"h100", "h200", "b200", "a100-40", "a100-80", "l40s", "l4", "a10g", "v100", "t4", "rtx4090"} <= known.keys()
    for each in known.values():
        assert each.half > each.single > 1e12
        assert 1e11 < each.bandwidth < 1e13
        assert 14 * 2**30 < each.memory < 200 * 2**30
        assert each.measured is None  # nothing here ran on a card yet
    assert {name for name, each in known.items() if not each.bf16} == {"v100", "v100-32", "t4"}  # before Ampere


def test_the_page_on_gpus_names_every_card():
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    assert f"`--on` takes `{', '.join(cards())}`" in page


@pytest.mark.parametrize(("asked", "near"), [("H-100", "h100"), ("a100", "a100-80"), ("rtx 4090", "rtx4090")])
def test_an_unknown_card_is_told_the_nearest(asked, near):
    with pytest.raises(EsaError, match=near):
        card(asked)


def test_a_measured_card_goes_by_what_was_measured_and_says_so():
    measured = Card("x", "X", 10**9, 1e12, 1e11, 1e12, True, measured=0.5)
    assert (PLAIN.rate("bf16"), measured.rate("bf16")) == (ASSUMED * 1e12, 0.5e12)
    assert measured.basis("bf16") == "goes by 50% of 1 TFLOP/s, as measured"
    assert measured.basis("fp32").endswith("not measured")
    assert PLAIN.basis("bf16") == "assumes 40% of 1 TFLOP/s; not measured"


@pytest.mark.parametrize(
    ("on", "own", "wanted"),
    [
        ("l4", "bf16", "bf16"), ("l4", "fp32", "fp32"), ("l4", "fp16", "fp16"),
        ("t4", "bf16", "fp32"), ("t4", "fp32", "fp32"), ("t4", "fp16", "fp16"),
    ],
)  # fmt: skip
def test_auto_is_the_weights_own_dtype_and_fp32_for_bf16_on_a_card_without_it(on, own, wanted):
    assert card(on).dtype("auto", own) == wanted
    assert card(on).dtype("fp16", own) == "fp16"


def test_bf16_is_refused_by_a_card_without_it():
    assert card("l4").dtype("bf16", "fp32") == "bf16"
    with pytest.raises(EsaError, match="fp16"):
        card("t4").dtype("bf16", "bf16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_directory_is_foreseen_in_the_dtype_that_a_run_on_a_card_computes_in(tmp_path, dtype):
    tiny("llama", dtype=dtype).save_pretrained(tmp_path)
    source = find(ModelSpec(source=str(tmp_path)))
    for on in ("h100", "t4"):
        run = compute_dtype(source, "auto", on_gpu=True, bf16=card(on).bf16)
        assert card(on).dtype("auto", stored_dtype(str(tmp_path))) == run


def test_the_dtype_of_weights_is_known_by_name():
    assert stored_dtype("meta-llama/Llama-3.1-8B") == stored_dtype("Qwen2.5-7B") == "bf16"
    assert stored_dtype("pythia-70m") == "fp16"
    assert stored_dtype("allenai/OLMo-1B-hf") == stored_dtype("SmolLM2-135M-Instruct") == "fp32"


def test_passes_take_their_operations():
    found = Passes(PLAIN, "bf16", total=1000, active=800, width=2)
    forward = 2 * 800 * 100 * 7 / 4e11
    assert found.forward(7, 100) == pytest.approx(forward)
    assert found.backward(7, 100, 1, 500) == pytest.approx(3 * forward)
    assert found.double(7, 100) == pytest.approx(DOUBLE * forward)


def test_passes_of_few_tokens_take_as_long_as_reading_the_weights():
    slow = Passes(Card("x", "X", 10**9, 1e15, 1e15, 1e6, True), "bf16", total=1000, active=1000, width=2)
    assert slow.forward(8, 1, batch=4) == pytest.approx(2 * 2000 / 1e6)
    assert slow.generation(5) == pytest.approx(5 * 2000 / 1e6)
    # A batch of 4: weights twice, and of 500 scored ones two statistics (4 bytes) read and written.
    assert slow.backward(8, 1, 2, 500, batch=4) == pytest.approx(2 * (2 * 2000 + 500 * 16) / 1e6)


def test_of_a_mixture_only_what_a_token_passes_is_computed():
    model = hollow("mistralai/Mixtral-8x7B-v0.1", "bf16")
    found = passes(model, PLAIN, "bf16")
    assert found.active == pytest.approx(12.9e9, rel=0.01)  # as its card says
    assert found.total == 46_702_792_704


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_neox", "gemma", "phi3"])
def test_activations_are_about_what_a_real_pass_holds(family, dtype):
    model, windows = tiny(family, dtype=dtype), torch.as_tensor(random_windows(4, 32))
    tensors = catalogue(model).select(("q", "k", "v", "o", "gate", "up", "down"))
    assert activations(model, 32, 4) == pytest.approx(activation_bytes(model, tensors, windows), rel=0.5)


@pytest.mark.parametrize("source", ["zoo:llama-0.1m", "EleutherAI/pythia-70m", "pythia-70m"])
def test_a_hollow_model_has_sizes_and_no_memory(source):
    model = hollow(source, "bf16")
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    if "pythia" in source:
        assert counted(model).total == 70_426_624


def test_a_directory_is_known_by_its_config(tmp_path):
    model = tiny("llama")
    model.config.save_pretrained(tmp_path)
    assert counted(hollow(str(tmp_path), "fp32")) == counted(model)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EsaError, match="config"):
        hollow(str(tmp_path), "fp32")


def study(**changes) -> StudySpec:
    fields = {
        "name": "x", "model": ModelSpec(source="EleutherAI/pythia-1.4b"), "topk": (10,), "seeds": (1, 2),
        "data": DataSpec(window=128, calibration_windows=50, evaluation_windows=16),
        "scores": (ScoreSpec(metric="grad_x_weight"),), "perturbations": (PerturbSpec(kind="zero"),),
    }  # fmt: skip
    return StudySpec(**fields | changes)


def lines(spec: StudySpec, on: Card, dtype: str = "bf16") -> dict[str, str]:
    found = study_lines(spec, plan(spec), hollow(spec.model.source, dtype), on, dtype)
    return {line[:18].strip(): line[18:] for line in found}


def test_a_study_takes_what_its_passes_take():
    # 100 windows forward and backward, 3 × 16 forward (two cells and the baseline), of 1,414,647,808 parameters.
    operations = (100 * 3 + 48) * 2 * 1_414_647_808 * 128
    fast = Card("x", "X", 80 * 10**9, operations / 0.4, 1e12, 1e18, True)
    assert lines(study(), fast)["time"].startswith("about 1 s in one actor: scoring under 1 s, cells under 1 s")
    hour = Card("x", "X", 80 * 10**9, operations / 0.4 / 3600, 1e12, 1e18, True)
    assert lines(study(), hour)["time"].startswith("about 1 h in one actor: scoring 52 min, cells 8.3 min")


def test_blocks_that_are_pruned_alone_take_half_a_pass_each_on_average():
    asked = {"scores": (), "perturbations": (), "groups": ("super",), "compressions": (PruneSpec(allocation="damage"),)}
    # Two seeds, 4 windows and 4 sparsities for each of 24 blocks; the rest of the study's passes come to it.
    alone, rest = 2 * 4 * 4 * 24 / 2, plan(study(**asked)).forward_passes
    operations = (alone + rest) * 2 * 1_414_647_808 * 128
    hour = Card("x", "X", 80 * 10**9, operations / 0.4 / 3600, 1e12, 1e18, True)
    assert lines(study(**asked), hour)["time"].startswith("about 1 h in one actor")


def test_a_plan_says_what_nothing_tells_and_what_is_left_out(tmp_path):
    tiny_layout("gpt_oss").config.save_pretrained(tmp_path)
    found = lines(study(model=ModelSpec(source=str(tmp_path))), card("h100"), "fp32")
    assert found["not told"] == ("model.layers.*.self_attn.sinks (8 weights); scored where --components names them")
    assert "model.layers.*.mlp.experts.down_proj_bias (96 weights, a bias)" in found["left out"]
    assert "left out" not in lines(study(), card("h100"))


def test_a_study_takes_more_cards_or_ranges_where_memory_is_short():
    whole = lines(study(), card("h100"))
    assert whole["on"].startswith("1 × ")
    assert "ranges" not in whole["memory"]
    assert "ranges of blocks" in lines(study(), Card("x", "X", 6 * 10**9, 1e12, 1e12, 1e12, True))["memory"]
    small = lines(study(), Card("x", "X", 2 * 10**9, 1e12, 1e12, 1e12, True))
    assert small["on"].startswith(("3 × ", "4 × "))
    assert "one works at a time" in small["on"]


def test_gradients_for_damage_are_counted_and_a_study_without_any_needs_none():
    spec = study(scores=(ScoreSpec(metric="magnitude"),))
    plain = lines(spec, card("h100"))
    damaged = lines(
        study(scores=spec.scores, perturbations=(PerturbSpec(kind="gradient_aligned", strength=0.1),)), card("h100")
    )
    without, with_gradients = (float(found["memory"].split("scoring ")[1].split()[0]) for found in (plain, damaged))
    # 4 bytes each of 1,207,959,552 weights, and of the largest matrix for its gradient in work.
    assert with_gradients - without == pytest.approx((4 * 1_207_959_552 + 4 * 2048 * 8192) / 1e9, abs=0.02)


def test_memory_of_ranges_is_never_less_than_one_block():
    from esa_ray.models.addressing import catalogue

    tensors = catalogue(tiny("llama")).tensors
    memory = Memory(tensors, 2, 1000, probing=False)
    assert memory.least() < memory.whole()
    assert memory.ranges(10**9) == 1
    assert memory.ranges(0) > 1


@pytest.mark.parametrize(("seconds", "words"), [(59, "59 s"), (7200, "2 h"), (86400 * 200, "200 days")])
def test_times_are_said_as_people_say_them(seconds, words):
    assert span(seconds) == words
