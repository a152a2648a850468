"""Low-rank adapters and sparse deltas, with peft itself as the oracle."""

import copy
import warnings
from itertools import pairwise

import numpy as np
import peft
import pytest
import torch

from esa_ray.applications.kept import replacing
from esa_ray.applications.tuning.protecting import Guard
from esa_ray.applications.tuning.run import Run
from esa_ray.applications.tuning.trained import Weights
from esa_ray.models.addressing import catalogue
from tests.applications.tuning.loops import SEED, TRAIN, asked, close, looked, mean_loss, order, parameters, rate, tuned
from tests.tiny import FAMILIES, tiny
from tests.tiny_layouts import CASES as LAYOUTS
from tests.tiny_layouts import tiny_layout
from tests.tiny_mixers import MIXERS, tiny_mixer

#: A model, a fraction, and what peft is to adapt for it: modules, parameters, rank.
CASES = [
    ("llama", 0.3, "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj", "", 2),
    ("llama", 0.05, "q_proj v_proj", "", 2),
    ("gpt2", 0.3, "attn.c_attn attn.c_proj c_fc mlp.c_proj", "", 3),
    ("phi3", 0.3, "qkv_proj o_proj gate_up_proj down_proj", "", 3),
    ("gpt_neox", 0.05, "query_key_value", "", 1),
    ("gpt_oss", 0.3, "q_proj k_proj v_proj o_proj",
     "mlp.router.weight mlp.experts.gate_up_proj mlp.experts.down_proj", 3),
]  # fmt: skip


def model_of(family, dtype=torch.float32):
    return tiny_layout(family) if family in LAYOUTS and family not in FAMILIES else tiny(family, dtype=dtype)


def by_peft(model, modules, others, rank, spec, seed=SEED):
    """The losses of each step and the merged weights of peft's own model under a loop that is spelled out."""
    twin = copy.deepcopy(model)
    if getattr(twin.config, "_experts_implementation", None):
        twin.config._experts_implementation = "eager"
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=modules.split(), target_parameters=others.split() or None
    )
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        twin = peft.get_peft_model(twin, config)
    mine = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    adam, losses = torch.optim.Adam(mine, lr=spec.learning_rate), []
    for step in range(spec.steps):
        adam.zero_grad()
        loss = mean_loss(twin, TRAIN[order(seed, step, spec.batch, len(TRAIN))])
        loss.backward()
        losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(mine, 1.0)
        adam.param_groups[0]["lr"] = rate(spec, step)
        adam.step()
    count = sum(parameter.numel() for parameter in mine)
    return losses, parameters(twin.merge_and_unload()), count


@pytest.mark.parametrize(("family", "fraction", "modules", "others", "rank"), CASES)
def test_adapters_train_as_peft_and_adam_do(family, fraction, modules, others, rank):
    model, spec = model_of(family), asked(arm="lora", fraction=fraction)
    looks, weights = looked(model, spec)
    losses, wanted, count = by_peft(model, modules, others, rank, spec)
    assert [look.train_nll for look in looks] == pytest.approx(
        [np.mean(losses[i : i + 4]) for i in (0, 4, 8)], abs=1e-5
    )
    close(weights[-1], wanted, at=1e-4)
    with tuned(model, spec) as found:
        assert (found.rank, found.trainable) == (rank, count)


#: Models whose attention, experts or mixers could read a weight without calling the module that holds it.
OTHERS = ["llama", "mixtral", "gpt_oss", "deepseek_v3", "qwen2_moe", "llama4_text", "mamba2", "kimi_linear", "jamba"]


@pytest.mark.parametrize("family", OTHERS)
def test_what_stands_at_a_look_is_what_training_goes_on_with(family):
    """The mean loss between two looks begins at the loss of the model that the first one saw."""
    model, seen = tiny_mixer(family) if family in MIXERS else model_of(family), []
    spec = asked(arm="lora", fraction=0.4, steps=4, looks=4, batch=7, learning_rate=3e-2)

    def look(found):
        with torch.no_grad():
            seen.append((found.train_nll, float(mean_loss(model, TRAIN))))

    with tuned(model, spec, look=look):
        pass
    for (_, standing), (trained, _) in pairwise(seen):
        assert trained == pytest.approx(standing, abs=1e-4)
    assert abs(seen[0][0] - seen[-1][1]) > 1e-2


def test_adapters_begin_by_the_seed_alone():
    made = []
    for generator, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(generator)
        made.append(looked(tiny("llama"), asked(arm="lora", fraction=0.3, steps=2, looks=1), seed=seed)[1][-1])
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(made[0][name], made[1][name])
    assert not torch.equal(made[0][name], made[2][name])


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_beside_16_bit_weights_adapters_are_fp32_and_what_they_add_is_rounded_once(family):
    model = tiny(family, dtype=torch.bfloat16)
    before = parameters(model)
    _, weights = looked(model, asked(arm="lora", fraction=0.3, learning_rate=1e-4))
    _, single = looked(tiny(family).to(torch.bfloat16).float(), asked(arm="lora", fraction=0.3, learning_rate=1e-4))
    moved = torch.cat([(single[-1][n] - before[n].float()).flatten() for n in before])
    error = torch.cat([(weights[-1][n].float() - single[-1][n]).flatten() for n in before])
    stood = torch.cat([before[n].float().flatten() for n in before])
    rounding = torch.maximum(stood.abs(), (stood + moved).abs()) * 2**-8
    assert bool((error.abs() <= rounding + 0.5 * float(moved.abs().max())).all())
    assert any(not torch.equal(weights[-1][n], before[n]) for n in before)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_sparse_delta_trains_as_pefts_own_does_with_a_mask_that_it_can_express():
    """SHiRA takes r·(inputs + outputs) weights of a plain Linear, and trains what is added to them."""
    model, spec = tiny("llama"), asked()
    weights, generator = catalogue(model), torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.mlp.{leaf}_proj.weight" for i in (0, 1) for leaf in ("up", "down")]
    places = {weights[n]: torch.randperm(384, generator=generator)[:80].sort().values for n in names}  # 2·(16 + 24)
    masks = {
        model.get_submodule(tensor.name.removesuffix(".weight")): torch.zeros(384)
        .scatter(0, at, 1.0)
        .view(tensor.shape)
        for tensor, at in places.items()
    }
    twin = copy.deepcopy(model)
    known = {id(twin.get_submodule(n)): masks[m] for n, m in model.named_modules() if m in masks}
    config = peft.ShiraConfig(r=2, target_modules=["up_proj", "down_proj"])
    config.mask_fn = lambda base_layer, r, **_: known[id(base_layer)]
    theirs = peft.get_peft_model(twin, config)
    mine = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(mine, lr=spec.learning_rate)
    for step in range(spec.steps):
        adam.zero_grad()
        mean_loss(theirs, TRAIN[order(SEED, step, spec.batch, len(TRAIN))]).backward()
        torch.nn.utils.clip_grad_norm_(mine, 1.0)
        adam.param_groups[0]["lr"] = rate(spec, step)
        adam.step()
    with replacing() as kept, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = Weights(places, kept)
        Run(model, spec, SEED, TRAIN, trained, Guard(trained.masters), None).until(spec.steps)
        assert trained.count == sum(parameter.numel() for parameter in mine) == 320
        close(parameters(model), parameters(theirs.merge_and_unload()))
