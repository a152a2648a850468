"""Gradients of a model with weights away between forwards are those of the whole, and cost no more memory."""

from contextlib import ExitStack

import accelerate
import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from esa_ray.evaluation import evaluate
from esa_ray.models import offload
from esa_ray.models.addressing import catalogue
from esa_ray.models.load import load_model
from esa_ray.models.offload import on_gradient, reloading, watch
from esa_ray.models.slots import values
from esa_ray.models.sources import find
from esa_ray.perturb.edit import perturbed
from esa_ray.spec import PerturbSpec
from tests.models.conftest import WINDOWS, all_hooks, load_offloaded, save
from tests.tiny import summed_nll


def gradient_statistics(model, windows=WINDOWS) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Σ g and Σ g² over windows of every matrix: the second is wrong where a tied weight's two gradients come apart."""
    tensors = [t for t in catalogue(model).tensors if len(t.shape) > 1]
    found = {t.name: (torch.zeros(t.shape), torch.zeros(t.shape)) for t in tensors}

    def fold(name):
        def add(parameter):
            found[name][0].add_(parameter.grad)
            found[name][1].addcmul_(parameter.grad, parameter.grad)
            parameter.grad = None

        return add

    with reloading(model), ExitStack() as stack:
        for tensor in tensors:
            stack.enter_context(on_gradient(tensor, fold(tensor.name)))
        for window in windows:
            summed_nll(model, window).backward()
    return found


def assert_same_gradients(whole, away):
    wanted, found = gradient_statistics(whole), gradient_statistics(away)
    assert wanted.keys() == found.keys()
    for name, (total, square) in wanted.items():
        assert torch.equal(found[name][0], total), name
        assert torch.equal(found[name][1], square), name
        assert total.abs().max() > 0


def test_gradients_are_bit_for_bit_those_of_the_whole_model(pair):
    assert_same_gradients(*pair)


def test_gradients_of_experts_that_are_used_one_by_one_are_those_of_the_whole_model(tmp_path):
    spec = save(tmp_path / "model", "mixtral", False)
    models = load_model(find(spec), "fp32", "cpu"), load_offloaded(spec, "disk", 0.2, tmp_path / "off")
    for model in models:
        model.config._experts_implementation = "eager"  # each expert is a view into the middle of one weight
    assert_same_gradients(*models)


def test_gradients_after_an_evaluation_and_under_an_edit_are_those_of_the_whole_model(pair):
    with ExitStack() as stack:
        for model in pair:
            evaluate(model, WINDOWS)
            chosen = {t.name: np.arange(5) for t in catalogue(model).tensors}
            stack.enter_context(perturbed(catalogue(model), chosen, PerturbSpec(kind="sign_flip"), seed=0))
        assert_same_gradients(*pair)


def test_afterwards_nothing_requires_a_gradient_and_every_hook_is_what_it_was(pair):
    _, away = pair
    before = all_hooks(away)
    gradient_statistics(away)
    assert not any(p.requires_grad for p in away.parameters())
    assert all_hooks(away) == before


def test_two_forwards_before_one_backward_add_up(pair):
    found = []
    for model in pair:
        tensor = catalogue(model).tensors[0]
        with reloading(model), on_gradient(tensor, lambda p: found.append(p.grad.clone())):
            (summed_nll(model, WINDOWS[0]) + summed_nll(model, WINDOWS[1])).backward()
    whole, away = found
    torch.testing.assert_close(away, whole, rtol=1e-6, atol=1e-6)


def test_watch_hands_over_the_real_parameter_before_each_of_its_uses(pair):
    whole, away = pair
    wanted = {t.name: t.parameter for t in catalogue(whole).tensors}
    seen: list[tuple[str, bool]] = []
    with ExitStack() as stack:
        for tensor in catalogue(away).tensors:

            def placed(parameter, name=tensor.name):
                assert isinstance(parameter, torch.nn.Parameter)
                seen.append((name, torch.equal(parameter, wanted[name])))

            stack.enter_context(watch(tensor, placed))
        resident = [t.name for t in catalogue(away).tensors if not t.offloaded]
        assert [name for name, _ in seen] == resident
        for _ in range(2):
            evaluate(away, WINDOWS[:1])
    assert all(same for _, same in seen)
    for tensor in catalogue(away).tensors:
        count = sum(name == tensor.name for name, _ in seen)
        assert count == (2 * len(tensor.slots) if tensor.offloaded else 1)


def test_watch_says_when_the_values_are_gone_again(pair):
    _, away = pair
    now, most = set(), []
    with ExitStack() as stack:
        for tensor in catalogue(away).tensors:
            if tensor.offloaded:

                def placed(_, name=tensor.name):
                    now.add(name)
                    most.append(len(now))

                stack.enter_context(watch(tensor, placed, lambda name=tensor.name: now.remove(name)))
        evaluate(away, WINDOWS[:1])
    assert not now
    assert 1 <= max(most) <= 2  # the two parameters of a module of experts


def test_watches_may_be_left_in_any_order(on_disk):
    before = all_hooks(on_disk)
    tensor = catalogue(on_disk)["model.layers.3.mlp.down_proj.weight"]
    seen = []
    watches = [watch(tensor, lambda _, i=i: seen.append(i)) for i in range(3)]
    for w in watches:
        w.__enter__()
    for i in (1, 2, 0):
        watches[i].__exit__(None, None, None)
        seen.clear()
        evaluate(on_disk, WINDOWS[:1])
        assert seen == {1: [0, 2], 2: [0], 0: []}[i]
    assert all_hooks(on_disk) == before


def loaded_storages(model, tensors, run) -> list[StorageWeakRef]:
    found = []
    with ExitStack() as stack:
        for tensor in tensors:
            stack.enter_context(watch(tensor, lambda p: found.append(StorageWeakRef(p.untyped_storage()))))
        run()
    return found


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("scored", [True, False])
def test_only_with_reloading_are_weights_let_go_between_forward_and_backward(family, scored, tmp_path):
    model = load_offloaded(save(tmp_path / "model", family, family == "gpt2"), "disk", 0.2, tmp_path / "off")
    tensors = [t for t in catalogue(model).tensors if len(t.shape) > 1]
    losses = []

    def forward():
        with ExitStack() as stack:
            # Without any scored weight but the embedding autograd still needs the others for its chain.
            for tensor in tensors if scored else tensors[:1]:
                stack.enter_context(watch(tensor, lambda p: p.requires_grad_(True)))
            losses.append(summed_nll(model, WINDOWS[0]))

    kept = loaded_storages(model, tensors, forward)
    assert len(kept) == sum(len(t.slots) for t in tensors)
    assert sum(not s.expired() for s in kept) >= len(tensors) - 1  # gathering from an embedding needs no weight
    losses.clear()
    assert all(s.expired() for s in kept)
    with reloading(model):
        let_go = loaded_storages(model, tensors, forward)
        assert all(s.expired() for s in let_go)
        losses[0].backward()


def test_backward_loads_one_module_at_a_time(on_disk, monkeypatch):
    alive, most = [], []

    def counted(slot):
        found = values(slot)
        alive.append(StorageWeakRef(found.untyped_storage()))
        most.append(sum(not s.expired() for s in alive))
        return found

    monkeypatch.setattr(offload, "values", counted)
    with reloading(on_disk), on_gradient(catalogue(on_disk).tensors[0], lambda p: None):
        summed_nll(on_disk, WINDOWS[0]).backward()
    assert len(most) > 10
    assert max(most) <= 2


def test_reloading_leaves_a_resident_model_alone(tmp_path):
    model = load_model(find(save(tmp_path / "model", "llama", True)), "fp32")
    weight = model.lm_head.weight
    before = all_hooks(model)
    with reloading(model):
        assert all_hooks(model) == before
        hooked = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)  # not in torch 2.6
        assert hooked(False) is None
        assert model.lm_head.weight is weight


def test_tied_weights_that_are_stored_twice_with_equal_values_count_once(tmp_path):
    """accelerate's own folder of offloaded weights holds a file for each name."""
    model = load_model(find(save(tmp_path / "model", "llama", True)), "fp32", "cpu")
    wanted = gradient_statistics(model)
    away = accelerate.disk_offload(model, str(tmp_path / "off"), execution_device=torch.device("cpu"))
    evaluate(away, WINDOWS)
    embedding = catalogue(away)["model.embed_tokens.weight"]
    assert [p.name for p in embedding.slots] == ["model.embed_tokens.weight", "lm_head.weight"]
    found = gradient_statistics(away)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n][1], wanted[n][1]) for n in wanted)
