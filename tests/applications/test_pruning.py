"""Pruning through the model, against compressions that are spelled out on hooked inputs."""

import copy

import numpy as np
import pytest
import torch

from esa_ray.applications.allocation import owl
from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.choosing import pruned_matrices
from esa_ray.applications.compress import compressed
from esa_ray.applications.curves import WINDOWS
from esa_ray.applications.refit import refit
from esa_ray.applications.sharing import damages
from esa_ray.applications.sparsegpt import sparsegpt
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.spec.compression import PruneSpec
from tests.applications.hooked import CAL, block_names, compressible, inputs_of, matrix, pruned, same, smallest, wanda
from tests.tiny import (
    HIDDEN,
    INNER,
    state_bits,
    summed_nll,
    tiny,
    window_gradients,
)

FAMILIES = ["llama", "gpt2", "mixtral", "phi3", "gpt_neox"]


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_is_the_one_that_is_spelled_out_on_hooked_inputs(family, sequential):
    model = tiny(family)
    found, masks, made = pruned(model, PruneSpec(sparsity=0.5, sequential=sequential))
    expected = wanda(reference := copy.deepcopy(model), CAL, 0.5, sequential=sequential)
    assert same(masks, expected)
    assert state_bits(made) == state_bits(reference)
    assert found.n_pruned * 2 == found.n_weights == sum(mask.numel() for mask in expected.values())


def test_sequential_and_one_shot_differ_from_the_second_block_on():
    masks = [pruned(tiny(), PruneSpec(sparsity=0.5, sequential=each))[1] for each in (True, False)]
    differ = {key[0].split(".")[2] for key in masks[0] if not torch.equal(masks[0][key], masks[1][key])}
    assert differ == {"1"}


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_model_that_cant_be_resumed_is_pruned_alike_by_whole_passes(family, sequential):
    model, spec = tiny(family), PruneSpec(sequential=sequential, update="refit")
    _, expected, made = pruned(model, spec)
    calibrated = Calibrated(model, catalogue(model), CAL, batch_size=4)
    calibrated.stepwise = False
    _, masks, whole = pruned(model, spec, calibrated=calibrated)
    assert same(masks, expected)
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter, whole.get_parameter(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_sparsegpt_through_the_model_is_the_function_on_hooked_inputs(family):
    model = tiny(family)
    _, masks, made = pruned(model, PruneSpec(score="obs", group="tensor", update="sparsegpt", sparsity=0.5))
    reference = copy.deepcopy(model)
    for block in block_names(model):
        seen = {k: x for k, x in inputs_of(reference, CAL, block).items() if compressible(k[0])}
        for (name, expert), x in seen.items():
            weights_OI = matrix(reference, name, expert)
            new_OI, mask = sparsegpt(weights_OI, 2 / len(x) * x.T @ x, 0.5)
            assert torch.equal(masks[name, expert], mask)
            weights_OI.copy_(new_OI)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(made.get_parameter(name), parameter, rtol=2e-3, atol=2e-4)


def test_a_refit_of_obs_within_a_tensor_is_of_the_mask_that_sparsegpt_chooses():
    model = tiny()
    _, masks, made = pruned(model, PruneSpec(score="obs", group="tensor", update="refit", sparsity=0.5))
    x = inputs_of(model, CAL, "model.layers.0.")["model.layers.0.mlp.up_proj.weight", None]
    weights_OI, hessian_II = model.model.layers[0].mlp.up_proj.weight.data, 2 / len(x) * x.T @ x
    _, mask = sparsegpt(weights_OI, hessian_II, 0.5)
    assert torch.equal(masks["model.layers.0.mlp.up_proj.weight", None], mask)
    found = made.model.layers[0].mlp.up_proj.weight.data
    torch.testing.assert_close(found, refit(weights_OI, mask, hessian_II), rtol=1e-3, atol=1e-4)


def test_refit_and_sparsegpt_update_around_the_masks_that_a_score_gives():
    model = tiny()
    for update, function in (("refit", refit), ("sparsegpt", lambda w, m, h: sparsegpt(w, h, mask=m)[0])):
        _, masks, made = pruned(model, PruneSpec(sparsity=0.5, update=update))
        x = inputs_of(model, CAL, "model.layers.0.")["model.layers.0.mlp.up_proj.weight", None]
        weights_OI = model.model.layers[0].mlp.up_proj.weight.data
        mask = smallest(weights_OI.double().abs() * x.norm(dim=0), HIDDEN // 2)
        assert torch.equal(masks["model.layers.0.mlp.up_proj.weight", None], mask)
        expected = function(weights_OI, mask, 2 / len(x) * x.T @ x)
        torch.testing.assert_close(made.model.layers[0].mlp.up_proj.weight.data, expected, rtol=1e-3, atol=1e-4)


def test_block_errors_are_those_of_the_outputs():
    model = tiny("mixtral")
    found, _, made = pruned(model, PruneSpec(sparsity=0.5, sequential=False))
    seen = {k: x for k, x in inputs_of(model, CAL, "").items() if "layers.1" in k[0] and compressible(k[0])}
    wrong = sum(float((x @ (matrix(made, *k) - matrix(model, *k)).double().T).square().sum()) for k, x in seen.items())
    whole = sum(float((x @ matrix(model, *k).double().T).square().sum()) for k, x in seen.items())
    assert found.block_error[1] == pytest.approx(wrong / whole, rel=1e-4)


def regional(model, block: str, windows) -> dict[str, torch.Tensor]:
    """G of every matrix of a block by autograd, a window at a time."""
    names = [n for n, p in model.named_parameters() if n.startswith(block) and p.dim() > 1 and compressible(n)]
    outputs: list[torch.Tensor] = []
    module = model.get_submodule(block.removesuffix("."))
    hook = module.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    squares = dict.fromkeys(names, 0.0)
    weights = [model.get_parameter(name).requires_grad_(True) for name in names]
    for window in windows:
        outputs.clear()
        model(torch.as_tensor(window)[None], use_cache=False)
        for name, gradient in zip(names, torch.autograd.grad(outputs[0].norm(), weights), strict=True):
            squares[name] = squares[name] + gradient.double().square()
    hook.remove()
    model.requires_grad_(False)
    return {name: (each / len(windows)).sqrt() for name, each in squares.items()}


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_wanda_plus_plus_adds_the_blocks_own_gradients(family):
    model = tiny(family)
    _, masks, _ = pruned(model, PruneSpec(score="regional", sparsity=0.5))
    reference = copy.deepcopy(model)
    if getattr(reference.config, "_experts_implementation", None):
        reference.config._experts_implementation = "eager"
    for block in block_names(model):
        gradients = regional(reference, block, CAL)
        for (name, expert), x in inputs_of(reference, CAL, block).items():
            if not compressible(name):
                continue
            g = gradients[name] if expert is None else gradients[name][expert]
            n = CAL.size / len(x) if expert is not None else 1
            weights_OI = matrix(reference, name, expert)
            scores = weights_OI.double().abs() * (100 * g + np.sqrt(n) * x.norm(dim=0))
            assert torch.equal(masks[name, expert], smallest(scores, weights_OI.shape[1] // 2)), name
        for (name, expert), mask in masks.items():
            if name.startswith(block):
                matrix(reference, name, expert)[mask] = 0.0


def test_gblm_adds_the_gradients_of_the_mean_loss():
    model = tiny()
    _, masks, _ = pruned(model, PruneSpec(score="gblm", sequential=False))
    seen = inputs_of(model, CAL, "")
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.1.self_attn.k_proj.weight"):
        (gradients,) = window_gradients(model, [name], CAL)
        norm = torch.from_numpy(np.sqrt((gradients / (CAL.shape[1] - 1)) ** 2).__pow__(2).sum(0)).sqrt()
        weights_OI = model.get_parameter(name).double().abs()
        scores = weights_OI * seen[name, None].norm(dim=0) + 100 * weights_OI * norm
        assert torch.equal(masks[name, None], smallest(scores, HIDDEN // 2))


def test_an_ensemble_is_the_mean_of_ranks_within_the_row():
    model = tiny()
    _, masks, _ = pruned(model, PruneSpec(score="act_mag+magnitude", sequential=False))
    name = "model.layers.1.mlp.down_proj.weight"
    weights = model.get_parameter(name).double().abs().numpy()
    products = weights * inputs_of(model, CAL, "")[name, None].norm(dim=0).numpy()
    for row in range(HIDDEN):
        ranks = weights[row].argsort().argsort() + products[row].argsort().argsort()
        # Of equal sums the first counts as the larger, so the last leave first.
        order = np.lexsort((-np.arange(INNER), ranks))
        assert sorted(order[: INNER // 2]) == np.flatnonzero(masks[name, None][row].numpy()).tolist()


@pytest.mark.parametrize("score", ["act_mag", "grad_x_weight_abs", "obs"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_every_group_loses_exactly_its_floor(family, score):
    model, s = tiny(family), 0.3
    for group in ("row", "tensor", "block", "model"):
        found, masks, _ = pruned(model, PruneSpec(score=score, group=group, sparsity=s), CAL[:2])
        blocks = [sum(int(m.sum()) for k, m in masks.items() if k[0].startswith(b)) for b in block_names(model)]
        sizes = [sum(m.numel() for k, m in masks.items() if k[0].startswith(b)) for b in block_names(model)]
        if group == "row":
            assert all((m.sum(1) == int(s * m.shape[1])).all() for m in masks.values())
        elif group == "tensor":
            assert all(int(m.sum()) == int(s * m.numel()) for m in masks.values())
        elif group == "block":
            assert blocks == [int(s * size) for size in sizes]
        else:
            assert sum(blocks) == int(s * sum(sizes))
        assert found.n_pruned == sum(blocks)
        assert found.block_sparsity == [gone / size for gone, size in zip(blocks, sizes, strict=True)]


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
@pytest.mark.parametrize("update", ["none", "sparsegpt", "refit"])
def test_n_of_every_m_inputs_are_zero(pattern, n, m, update):
    model = tiny("gpt2")
    score = "obs" if update == "sparsegpt" else "act_mag"
    found, masks, made = pruned(model, PruneSpec(score=score, pattern=pattern, update=update))
    for (name, expert), mask in masks.items():
        assert (mask.reshape(len(mask), -1, m).sum(2) == n).all()
        assert not matrix(made, name, expert)[mask].any()
    assert found.n_pruned == found.n_weights * n // m


@pytest.mark.parametrize("group", ["tensor", "block", "model"])
def test_n_of_m_inputs_are_a_group_of_their_own_whatever_is_said(group):
    assert PruneSpec(pattern="2:4", group=group) == PruneSpec(pattern="2:4")
    assert PruneSpec(pattern="2:4", group=group).content() == {"kind": "prune", "pattern": "2:4"}


def test_the_whole_models_smallest_scores_leave_one_shot():
    model = tiny("phi3")
    _, masks, _ = pruned(model, PruneSpec(score="magnitude", group="model", sparsity=0.4, sequential=False))
    pool = torch.cat([matrix(model, *key).abs().flatten() for key in masks])
    threshold = pool.sort().values[int(0.4 * len(pool)) - 1]
    assert all(torch.equal(mask, matrix(model, *key).abs() <= threshold) for key, mask in masks.items())


def test_owl_shares_out_by_the_intact_models_outliers():
    model = tiny()
    _, masks, _ = pruned(model, PruneSpec(allocation="owl", sparsity=0.5))
    seen, shares, sizes = inputs_of(model, CAL, ""), [], []
    for block in block_names(model):
        scores = [matrix(model, *k).double().abs() * x.norm(dim=0) for k, x in seen.items() if k[0].startswith(block)]
        pool = torch.cat([each.flatten() for each in scores])
        shares.append(float((pool > 5 * pool.mean()).double().mean()))
        sizes.append(len(pool))
    for block, sparsity in zip(block_names(model), owl(shares, sizes, 0.5), strict=True):
        mine = [m for k, m in masks.items() if k[0].startswith(block)]
        assert all((m.sum(1) == int(sparsity * m.shape[1])).all() for m in mine)


def test_damage_of_a_block_is_that_of_pruning_it_alone():
    model = tiny(seed=3)
    spec = PruneSpec(allocation="damage", sparsity=0.5, sequential=False)
    calibrated = Calibrated(model, catalogue(model), CAL, batch_size=4)
    curves = damages(spec, calibrated, pruned_matrices(spec, calibrated))
    seen, windows = inputs_of(model, CAL, ""), CAL[:WINDOWS]
    intact = sum(float(summed_nll(model, w)) for w in windows)
    for block, curve in zip(block_names(model), curves, strict=True):
        for sparsity, damage in curve.items():
            twin = copy.deepcopy(model)
            for (name, expert), x in seen.items():
                if name.startswith(block):
                    weights_OI = matrix(twin, name, expert)
                    scores = weights_OI.double().abs() * x.norm(dim=0)
                    weights_OI[smallest(scores, int(sparsity * weights_OI.shape[1]))] = 0.0
            expected = (sum(float(summed_nll(twin, w)) for w in windows) - intact) / windows[:, 1:].size
            assert damage == pytest.approx(expected, abs=1e-5)


UP = "model.layers.0.mlp.up_proj.weight"


def damped_by_hand(x: torch.Tensor, damping: float) -> torch.Tensor:
    hessian_II = 2 / len(x) * x.double().T @ x.double()
    return hessian_II + damping * hessian_II.diagonal().mean() * torch.eye(len(hessian_II), dtype=torch.float64)


@pytest.mark.parametrize("update", ["sparsegpt", "refit"])
@pytest.mark.parametrize("damping", [0.001, 0.3])
def test_damping_is_of_the_choice_and_of_the_update_alike(update, damping):
    model = tiny()
    spec = PruneSpec(score="obs", group="tensor", update=update, damping=damping)
    _, masks, made = pruned(model, spec)
    weights_OI = model.get_parameter(UP).data
    hessian_II = damped_by_hand(inputs_of(model, CAL, "model.layers.0.")[UP, None], damping)
    new_OI, mask = sparsegpt(weights_OI, hessian_II, 0.5, damping=0.0)
    if update == "refit":
        new_OI = refit(weights_OI, mask, hessian_II, damping=0.0)
    assert torch.equal(masks[UP, None], mask)
    torch.testing.assert_close(made.get_parameter(UP).data, new_OI, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("update", ["sparsegpt", "refit"])
def test_damping_is_of_an_update_around_another_scores_mask(update):
    model = tiny()
    _, masks, made = pruned(model, PruneSpec(update=update, damping=0.3))
    hessian_II = damped_by_hand(inputs_of(model, CAL, "model.layers.0.")[UP, None], 0.3)
    weights_OI, mask = model.get_parameter(UP).data, masks[UP, None]
    wanted = refit(weights_OI, mask, hessian_II, 0.0) if update == "refit" else sparsegpt(
        weights_OI, hessian_II, mask=mask, damping=0.0)[0]  # fmt: skip
    torch.testing.assert_close(made.get_parameter(UP).data, wanted, rtol=1e-3, atol=1e-4)


def test_damping_is_of_obs_where_nothing_is_updated():
    model = tiny()
    _, masks, _ = pruned(model, PruneSpec(score="obs", damping=0.3))
    inverse_II = np.linalg.inv(damped_by_hand(inputs_of(model, CAL, "model.layers.0.")[UP, None], 0.3).numpy())
    scores = model.get_parameter(UP).data.double() ** 2 / torch.tensor(np.diag(inverse_II))
    assert torch.equal(masks[UP, None], smallest(scores, HIDDEN // 2))


def test_damage_of_blocks_is_measured_anew_only_where_damping_chooses():
    model = tiny()
    calibrated = Calibrated(model, catalogue(model), CAL, batch_size=4)

    def curves(**how):
        spec = PruneSpec(allocation="damage", **how)
        return damages(spec, calibrated, pruned_matrices(spec, calibrated))

    assert curves(update="refit", damping=0.3) is curves(update="refit")
    assert curves(score="obs", damping=10.0) != curves(score="obs")


@pytest.mark.parametrize("score", ["act_mag", "obs", "regional", "gblm", "grad_x_weight_abs", "magnitude"])
def test_an_expert_that_no_token_reaches_is_pruned_by_magnitude_and_counted(score):
    model = tiny("mixtral")
    same_token = np.zeros((3, 8), dtype=np.int64)  # all positions have one state, which two experts of three see
    found, masks, made = pruned(model, PruneSpec(score=score, sparsity=0.5, update="refit"), same_token)
    seen = inputs_of(model, same_token, "model.layers.0.")
    (blind,) = {expert for (_, expert), x in seen.items() if expert is not None and not len(x)}
    for name in ("gate_up_proj", "down_proj"):
        key = (f"model.layers.0.mlp.experts.{name}", blind)
        weights_OI = matrix(model, *key)
        assert torch.equal(masks[key], smallest(weights_OI.abs(), weights_OI.shape[1] // 2))
        assert torch.equal(matrix(made, *key), weights_OI.masked_fill(masks[key], 0.0))
    assert found.blind == 4


def test_a_failure_on_the_way_leaves_the_model_as_it_was(monkeypatch):
    model = tiny()
    before = state_bits(model)
    monkeypatch.setattr("esa_ray.applications.pruning.refit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), compressed(model, catalogue(model), CAL, PruneSpec(update="refit")):
        pass
    assert state_bits(model) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models_are_pruned_in_their_own_dtype_and_restored(dtype):
    model = tiny(dtype=dtype)
    _, masks, made = pruned(model, PruneSpec(update="refit"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert made.get_parameter(name).dtype == dtype
    assert not made.get_parameter(name)[masks[name, None]].any()


@pytest.mark.parametrize("how", [{}, {"group": "model"}, {"pattern": "neuron"}])
def test_prunings_own_scores_that_are_nan_are_refused_whatever_they_compete_within(how):
    model = tiny()
    model.model.layers[1].mlp.up_proj.weight.data[2, 3] = torch.nan
    with pytest.raises(EsaError, match="holds NaN"):
        pruned(model, PruneSpec(score="regional", **how))


@pytest.mark.parametrize("how", [{"pattern": "kv", "sparsity": 0.3}, {"sparsity": 0.01}])
def test_a_sparsity_that_takes_nothing_is_refused_and_the_model_stays(how):
    model = tiny()
    before = state_bits(model)
    with pytest.raises(EsaError, match="takes nothing"):
        pruned(model, PruneSpec(**how))
    assert state_bits(model) == before


def test_a_score_of_one_component_prunes_that():
    _, masks, _ = pruned(tiny(), PruneSpec(score="super_activation", components=("down",)))
    assert all("down_proj" in name for name, _ in masks)


def test_a_pattern_that_doesnt_divide_the_inputs_is_refused_by_name():
    with pytest.raises(EsaError, match=r"groups of 7, and model\.layers\.0\.self_attn\.q_proj\.weight has 16"):
        pruned(tiny(), PruneSpec(pattern="3:7"))


def test_a_budget_that_is_too_small_for_a_blocks_hessians_is_refused():
    with pytest.raises(EsaError, match="raise --memory-budget"):
        pruned(tiny(), PruneSpec(), memory_budget=1000)


def test_among_the_whole_model_blocks_lose_what_the_intact_one_says_and_choose_by_what_they_see():
    model = tiny()
    _, masks, _ = pruned(model, PruneSpec(group="model", sparsity=0.5))
    blocks, intact, reference = block_names(model), inputs_of(model, CAL, ""), copy.deepcopy(model)
    products = {k: matrix(model, *k).double().abs() * x.norm(dim=0) for k, x in intact.items() if k in masks}
    pool = torch.cat([each.flatten() for each in products.values()]).sort().values
    threshold = pool[len(pool) // 2 - 1]
    for block in blocks:
        seen = {k: x for k, x in inputs_of(reference, CAL, block).items() if k in masks}
        count = sum(int((products[k] <= threshold).sum()) for k in seen)
        scores = {k: matrix(reference, *k).double().abs() * x.norm(dim=0) for k, x in seen.items()}
        last = torch.cat([each.flatten() for each in scores.values()]).sort().values[count - 1]
        for key, each in scores.items():
            assert torch.equal(masks[key], each <= last)
            matrix(reference, *key)[each <= last] = 0.0
