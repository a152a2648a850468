"""A model with weights on the CPU or on disk between forwards does and suffers what it does as a whole."""

import accelerate
import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.models import load, tensors
from esa_ray.models.addressing import catalogue
from esa_ray.models.load import load_model
from esa_ray.models.offload import watch
from esa_ray.models.slots import input_device, is_offloaded, values, weight_slots, write
from esa_ray.models.sources import find
from esa_ray.perturb.edit import NotRestoredError, perturbed
from esa_ray.perturb.fixed import UnchangeableError
from esa_ray.spec import ModelSpec, PerturbSpec
from tests.models.conftest import (
    WINDOWS,
    all_bits,
    all_hooks,
    checksums,
    load_mostly_away,
    load_offloaded,
    save,
)


class Boom(Exception):
    pass


def test_evaluation_is_that_of_the_whole_model_also_again(pair):
    whole, away = pair
    wanted = evaluate(whole, WINDOWS, batch_size=2)
    assert evaluate(away, WINDOWS, batch_size=2) == wanted
    assert evaluate(away, WINDOWS, batch_size=2) == wanted
    assert input_device(away) == torch.device("cpu")


def test_the_catalogue_is_that_of_the_whole_model_before_and_after_a_forward(pair):
    whole, away = pair
    described = [(t.name, t.shape, t.parts, t.layer, t.dtype) for t in catalogue(whole).tensors]
    for _ in range(2):
        assert [(t.name, t.shape, t.parts, t.layer, t.dtype) for t in catalogue(away).tensors] == described
        assert all_bits(away) == all_bits(whole)
        evaluate(away, WINDOWS)
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert len(weight_slots(away)) == len(list(whole.parameters()))
    assert max(len(t.slots) for t in catalogue(away).tensors) == 1 + tied


@pytest.mark.parametrize(
    "spec", [PerturbSpec(kind="zero"), PerturbSpec(kind="bit_flip", strength=0.3, bits="exponent")]
)
def test_an_edit_does_what_it_does_to_the_whole_model_and_is_taken_back_bit_for_bit(pair, spec, tmp_path):
    whole, away = pair
    files, bits, hooks, intact = checksums(tmp_path), all_bits(away), all_hooks(away), evaluate(away, WINDOWS)
    outcomes, applied, inside = [], [], []
    for model in pair:
        found = catalogue(model)
        chosen = {t.name: np.arange(0, t.size, 7) for t in found.tensors if t.layer != 1}
        with perturbed(found, chosen, spec, seed=4) as edit:
            applied.append(edit)
            outcomes.append(evaluate(model, WINDOWS))
            inside.append(all_bits(model))
    np.testing.assert_equal(outcomes[1].__dict__, outcomes[0].__dict__)
    np.testing.assert_equal(applied[1].__dict__, applied[0].__dict__)
    assert inside[1] == inside[0] != bits
    assert outcomes[1] != intact
    assert all_bits(away) == bits == all_bits(whole)
    assert all_hooks(away) == hooks
    assert evaluate(away, WINDOWS) == intact
    assert checksums(tmp_path) == files


@pytest.mark.parametrize("failure", [Boom, KeyboardInterrupt])
def test_an_edit_is_taken_back_after_an_exception_also_one_from_within_a_forward(pair, failure):
    _, away = pair
    bits, hooks, intact = all_bits(away), all_hooks(away), evaluate(away, WINDOWS)
    last = away.get_output_embeddings()

    inside = []

    def broken_forward(*_):
        inside.append(all_bits(away))
        raise failure

    handle = last.register_forward_hook(broken_forward)
    chosen = {t.name: np.arange(3) for t in catalogue(away).tensors}
    with pytest.raises(failure), perturbed(catalogue(away), chosen, PerturbSpec(kind="zero"), seed=0):
        evaluate(away, WINDOWS)
    handle.remove()
    assert inside[0] != bits
    assert all_bits(away) == bits
    assert all_hooks(away) == hooks
    assert evaluate(away, WINDOWS) == intact


def test_nested_edits_come_undone_in_turn(pair):
    _, away = pair
    bits, tensor = all_bits(away), catalogue(away).tensors[-3]
    assert tensor.offloaded
    first = tensor.flat_weights()[:4]
    flip, zero = PerturbSpec(kind="sign_flip"), PerturbSpec(kind="zero")
    with perturbed(catalogue(away), {tensor.name: np.arange(4)}, flip, seed=0):
        with perturbed(catalogue(away), {tensor.name: np.array([0, 5])}, zero, seed=0):
            assert tensor.flat_weights()[[0, 5]].tolist() == [0, 0]
            assert torch.equal(tensor.flat_weights()[1:4], -first[1:])
        assert torch.equal(tensor.flat_weights()[:4], -first)
    assert all_bits(away) == bits


def test_an_edit_that_can_change_nothing_is_refused_on_disk_as_well(on_disk):
    tensor = catalogue(on_disk)["model.layers.3.mlp.down_proj.weight"]
    with perturbed(catalogue(on_disk), {tensor.name: np.arange(4)}, PerturbSpec(kind="zero"), seed=0):
        again = perturbed(catalogue(on_disk), {tensor.name: np.arange(4)}, PerturbSpec(kind="zero"), seed=0)
        with pytest.raises(UnchangeableError), again:
            pass
        assert tensor.flat_weights()[:4].tolist() == [0.0] * 4


def test_awkward_bits_laid_over_a_file_are_loaded_as_they_are(tmp_path):
    spec, name = save(tmp_path / "model", "llama", False), "model.layers.3.mlp.down_proj.weight"
    whole = load_model(find(spec), "fp32", "cpu")
    catalogue(whole)[name].flat_weights()[:5] = 0.0
    whole.save_pretrained(tmp_path / "zeros")
    model = load_offloaded(ModelSpec(source=str(tmp_path / "zeros")), "disk", 0.2, tmp_path / "off")
    tensor, hooks, at, seen = catalogue(model)[name], all_hooks(model), torch.arange(5), []
    # NaNs with payloads, a subnormal, −0 and 0: −0 over 0 is an edit, although they are equal.
    bits = torch.tensor([0x7FC00001, -1, 1, -(2**31), 0], dtype=torch.int32)
    tensor.write(at, bits.view(torch.float32))
    with watch(tensor, lambda p: seen.append(p.detach().flatten()[at].view(torch.int32))):
        evaluate(model, WINDOWS[:1])
    assert torch.equal(seen[0], bits)
    tensor.write(at, torch.zeros(5))
    assert tensor.flat_weights()[at].view(torch.int32).tolist() == [0] * 5
    assert all_hooks(model) == hooks


def test_flat_weights_of_an_offloaded_tensor_is_a_copy(pair):
    _, away = pair
    bits = all_bits(away)
    for tensor in catalogue(away).tensors:
        if tensor.offloaded:
            assert tensor.flat_weights().device == torch.device("cpu")
            tensor.flat_weights()[0] = 77.0
    assert all_bits(away) == bits


def test_a_weight_that_two_modules_share_on_the_cpu_is_edited_in_both(tmp_path):
    model = load_offloaded(save(tmp_path / "model", "llama", True), "cpu", 0.0, tmp_path)
    chosen = {"model.embed_tokens.weight": np.arange(6)}
    with perturbed(catalogue(model), chosen, PerturbSpec(kind="zero"), seed=0):
        for slots in weight_slots(model):
            for slot in slots:
                if "layers" not in slot.name and "norm" not in slot.name:
                    assert values(slot).flatten()[:6].tolist() == [0.0] * 6


def test_a_tied_weight_of_which_only_one_place_is_offloaded_is_refused(tmp_path):
    model = load_model(find(save(tmp_path / "model", "llama", True)), "fp32", "cpu")
    accelerate.cpu_offload(model.lm_head, execution_device="cpu")
    with pytest.raises(EsaError, match=r"lm_head\.weight.*tied"):
        catalogue(model)


def test_hollow_weights_that_nothing_loads_are_an_error_with_their_name(tmp_path):
    model = load_model(find(save(tmp_path / "model", "llama", False)), "fp32", "cpu")
    name = "model.layers.1.mlp.down_proj"
    model.get_submodule(name).to("meta")
    assert not is_offloaded(model.get_submodule(name), "weight")
    with pytest.raises(EsaError, match=name):
        catalogue(model)[f"{name}.weight"].flat_weights()


def test_a_stored_dtype_that_is_not_the_models_is_not_edited_in_the_store(tmp_path):
    model = load_model(find(save(tmp_path / "model", "llama", False)), "fp32", "cpu")
    store = {n: p.detach().bfloat16() for n, p in model.named_parameters()}
    accelerate.cpu_offload(model, execution_device="cpu", state_dict=dict(store))
    tensor = catalogue(model)["model.layers.0.mlp.down_proj.weight"]
    before = store[tensor.name].clone()
    write(tensor.slots, torch.tensor([3]), torch.tensor([1 / 3]))
    assert tensor.flat_weights()[3] == torch.tensor(1 / 3)
    assert torch.equal(store[tensor.name], before)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.3.mlp.up_proj.weight"])
def test_a_weight_that_is_not_a_number_is_found_wherever_it_waits(name, tmp_path):
    spec = save(tmp_path / "model", "llama", False)
    broken = load_model(find(spec), "fp32", "cpu")
    catalogue(broken)[name].flat_weights()[5] = float("nan")
    broken.save_pretrained(tmp_path / "model")
    for share in (0.2, 0.7):
        with pytest.raises(EsaError, match=f"{name} holds NaN"):
            load_mostly_away(spec, share, tmp_path / "off")


def test_the_finite_check_holds_one_offloaded_weight_at_a_time(tmp_path, monkeypatch):
    spec, alive, most = save(tmp_path / "model", "llama", False), [], []

    def counted(slot):
        found = values(slot)
        if slot.offloaded:
            alive.append(StorageWeakRef(found.untyped_storage()))
            most.append(sum(not s.expired() for s in alive))
        return found

    monkeypatch.setattr(load, "values", counted)
    load_mostly_away(spec, 0.2, tmp_path / "off")
    assert len(most) > 30
    assert max(most) <= 1


def test_a_mixture_without_a_folder_for_its_experts_is_an_error(tmp_path):
    spec = save(tmp_path / "model", "mixtral", False)
    with pytest.raises(EsaError, match="can't be loaded"):
        load_model(find(spec), "fp32", "auto", {"cpu": 20000})


class OutOfMemoryAt(TorchFunctionMode):
    """Lets the n-th copy of what a mask picks fail, counted from 0."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__ and getattr(args[1], "dtype", None) == torch.bool:
            self.left -= 1
            if self.left < 0:
                raise MemoryError
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n", range(4))
def test_what_is_laid_over_a_file_stays_where_memory_runs_out_while_more_is_laid(on_disk, n):
    tensor, at = catalogue(on_disk)["model.layers.3.mlp.down_proj.weight"], torch.arange(3)
    stored = tensor.flat_weights()[:5]
    tensor.write(at, torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(MemoryError), OutOfMemoryAt(n):
        tensor.write(torch.tensor([2, 4]), torch.tensor([8.0, 9.0]))
    assert tensor.flat_weights()[:5].tolist() == [1.0, 2.0, 3.0, *stored[3:].tolist()]
    tensor.write(at, stored[:3])


def test_an_edit_of_offloaded_weights_that_cannot_be_written_back_is_not_restored(on_disk, monkeypatch):
    tensor, error = catalogue(on_disk)["model.layers.3.mlp.down_proj.weight"], MemoryError()

    def write(*_):
        raise error

    with (
        pytest.raises(NotRestoredError) as raised,
        perturbed(catalogue(on_disk), {tensor.name: np.arange(4)}, PerturbSpec(kind="zero"), seed=0),
    ):
        monkeypatch.setattr(tensors, "write", write)
    assert raised.value.__cause__ is error
