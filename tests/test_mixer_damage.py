"""Damage of models with mixers: measured from the damaged block on and by full forwards, taken back bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from esa_ray.evaluation import continued, evaluate
from esa_ray.evaluation.damaging import Damaging
from esa_ray.evaluation.sublayers import LAST, observed, silenced, sublayers
from esa_ray.models.addressing import catalogue
from esa_ray.models.load import load_model
from esa_ray.models.sources import find
from esa_ray.perturb.edit import perturbed
from esa_ray.spec import BLOCK_COMPONENTS, ModelSpec, PerturbSpec
from tests.tiny import random_windows, state_bits
from tests.tiny_mixers import MIXERS, tiny_mixer

WINDOWS = random_windows(4, 10)
# ZAYA's blocks hand router states and a residual of their own to the next, beside the hidden state.
NOT_RESUMED = {"zaya"}


def damaging(model, windows=WINDOWS) -> Damaging:
    return Damaging(
        model, catalogue(model), SimpleNamespace(evaluation=windows), SimpleNamespace(batch_size=3, prompts=0)
    )


@pytest.mark.parametrize("kind", MIXERS)
def test_damage_of_every_component_is_that_of_a_full_forward_and_is_taken_back(kind):
    model = tiny_mixer(kind)
    bench, before = damaging(model), state_bits(model)
    resumed = set()
    for tensor in bench.catalogue.select((*BLOCK_COMPONENTS, "decay")):
        sites = {tensor.name: np.arange(0, tensor.size, 3)}
        start = bench.prepared([tensor])
        assert bench.intact
        with perturbed(bench.catalogue, sites, PerturbSpec(kind="zero"), 0):
            found, whole = bench.outcome(start), evaluate(model, WINDOWS)
        assert found.nll == pytest.approx(whole.nll, abs=1e-4)
        resumed.add(start)
        assert state_bits(model) == before
    assert resumed == ({None} if kind in NOT_RESUMED else resumed - {0})


@pytest.mark.parametrize("kind", MIXERS)
def test_evaluation_is_the_same_again_and_whatever_windows_stand_beside(kind):
    model = tiny_mixer(kind)
    first = evaluate(model, WINDOWS)
    assert evaluate(model, WINDOWS).nll == first.nll
    alone = [evaluate(model, WINDOWS[n : n + 1]).nll[0] for n in (3, 1, 0, 2)]
    assert [alone[2], alone[1], alone[3], alone[0]] == pytest.approx(first.nll, rel=1e-6)


@pytest.mark.parametrize("kind", MIXERS)
def test_no_window_sees_a_later_token_or_another_window(kind):
    model = tiny_mixer(kind)
    with torch.no_grad():
        intact = model(torch.as_tensor(WINDOWS), use_cache=False).logits
        changed = WINDOWS.copy()
        changed[0, 6:] = 7
        logits = model(torch.as_tensor(changed), use_cache=False).logits
    torch.testing.assert_close(logits[0, :6], intact[0, :6], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1:], intact[1:], atol=1e-5, rtol=1e-4)
    assert (logits[0, 6:] - intact[0, 6:]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", MIXERS)  # xLSTM by full forwards alone: its cache is at odds with its code
def test_a_continuation_is_the_likeliest_token_of_full_forwards_each(kind):
    model, text = tiny_mixer(kind), torch.as_tensor(WINDOWS[:2, :5])
    found = continued(model, WINDOWS[:2, :5], 4)
    for _ in range(4):
        with torch.no_grad():
            text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    for mine, wanted in zip(found, text[:, 5:].numpy(), strict=True):
        end = (*np.flatnonzero(wanted == model.config.eos_token_id), 4)[0]
        assert mine.tolist() == [*wanted[:end], *[-1] * (4 - end)]


@pytest.mark.parametrize("kind", MIXERS)
def test_a_silenced_sublayer_is_one_with_zeroed_weights(kind):
    for layer in range(catalogue(tiny_mixer(kind)).layers):
        for number, sublayer in enumerate(sublayers(catalogue(tiny_mixer(kind)), layer)):
            if sublayer.part == "expert":
                continue
            model, twin = tiny_mixer(kind), tiny_mixer(kind)
            sublayer, same = (sublayers(catalogue(m), layer)[number] for m in (model, twin))
            for tensor in same.tensors:
                with torch.no_grad():
                    tensor.parameter.zero_()
                    for slot in tensor.slots:
                        if getattr(slot.owner, "bias", None) is not None:
                            slot.owner.bias.zero_()
            intact = evaluate(model, WINDOWS).nll
            with silenced(sublayer):
                found = evaluate(model, WINDOWS).nll
            assert found == pytest.approx(evaluate(twin, WINDOWS).nll, rel=1e-6), sublayer.part
            assert found != pytest.approx(intact, rel=1e-7), sublayer.part


def test_mixers_are_sublayers_beside_attention_and_ffn():
    parts = {kind: [[s.part for s in sublayers(catalogue(tiny_mixer(kind)), n)] for n in (0, 1)]
             for kind in ("mamba", "bamba", "falcon_h1", "rwkv")}  # fmt: skip
    assert parts == {
        "mamba": [["mixer"], ["mixer"]],
        "bamba": [["mixer", "ffn"], ["attention", "ffn"]],
        "falcon_h1": [["attention", "mixer", "ffn"]] * 2,
        "rwkv": [["mixer", "ffn"]] * 2,
    }
    assert list(LAST) == ["attention", "mixer", "ffn"]


def test_peaks_of_a_mixer_are_its_largest_outputs():
    model = tiny_mixer("mamba")
    seen: list[float] = []
    mixer = model.backbone.layers[1].mixer
    hook = mixer.register_forward_hook(lambda _, __, out: seen.append(float(out.abs().max())))
    with torch.no_grad(), observed(model, sublayers(catalogue(model), 1), WINDOWS) as found:
        model(torch.as_tensor(WINDOWS), use_cache=False)
    hook.remove()
    assert found[0].peaks["mixer", None] == pytest.approx(seen[0])


def test_rwkv_rescales_its_weights_when_it_is_loaded_and_never_again(tmp_path):
    saved = tiny_mixer("rwkv")
    saved.rwkv.layers_are_rescaled = True
    saved.train()
    saved.rwkv._rescale_layers()
    saved.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = plain(torch.as_tensor(WINDOWS), use_cache=False).logits
    model = load_model(find(ModelSpec(source=str(tmp_path))), "fp32", "cpu")
    before = state_bits(model)
    with torch.no_grad():
        assert torch.equal(model(torch.as_tensor(WINDOWS), use_cache=False).logits, wanted)
    assert state_bits(model) == before == state_bits(plain)
    assert not torch.equal(saved.rwkv.blocks[1].attention.output.weight, model.rwkv.blocks[1].attention.output.weight)
