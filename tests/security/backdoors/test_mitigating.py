"""Mitigations: exactly what they reset, silence or freeze, and that they train."""

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.zoo.training import VOCABULARY
from esa_ray.security.backdoors import made, mitigated, mitigating, parent_weights, population
from esa_ray.security.backdoors.neurons import dormant, silenced
from esa_ray.spec.backdoors import MITIGATIONS, MitigationSpec
from tests.security.backdoors.made_small import brief, member
from tests.tiny import tiny

WINDOWS = np.random.default_rng(0).integers(4, VOCABULARY, size=(6, 24))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        brief(patch, tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def trained(cache):
    """A member with a backdoor, its parent's weights, and the names of tensors that count."""
    of = member("training")
    model = population.standing_alone(of, made(of).weights)
    return of, parent_weights(of), made(of).weights, [t.name for t in catalogue(model).tensors]


def flat(weights, names):
    return torch.cat([weights[name].flatten() for name in names])


def gradients(of, weights):
    """Σ|g·w| of every weight by autograd, window by window."""
    model = population.standing_alone(of, weights).requires_grad_(True)
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
    for window in torch.from_numpy(WINDOWS):
        model.zero_grad()
        logits = model(window[None]).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").backward()
        for name, p in model.named_parameters():
            total[name] += (p.grad.double() * p.detach().double()).abs()
    return total


@pytest.mark.parametrize("kind", ["reset-moved", "reset-dormant", "reset-random"])
def test_a_reset_gives_exactly_so_many_weights_their_old_values_and_touches_no_others(trained, kind):
    of, old, now, names = trained
    found = mitigated(of, MitigationSpec(kind=kind, share=0.05), WINDOWS)
    before, after, parent = (flat(w, names) for w in (now, found.weights, old))
    n = int(0.05 * len(before))
    assert found.n_reset == n
    changed = after != before
    assert bool((after[changed] == parent[changed]).all())
    distance = (before.double() - parent.double()).abs()
    if kind == "reset-random":  # a weight that never moved may be among them
        assert 0.9 * n < int(changed.sum()) <= n
        assert distance[changed].mean() < 1.2 * distance.mean()
        return
    assert int(changed.sum()) == n
    if kind == "reset-dormant":
        score = flat(gradients(of, now), names)
        distance = distance / (1 + score / score.mean())
    assert distance[changed].min() >= 0.999 * distance[~changed].max()
    assert all(torch.equal(found.weights[name], now[name]) for name in now.keys() - names)


def test_frozen_weights_stay_the_parent_s_and_the_others_are_trained(trained):
    of, old, now, names = trained
    score = flat(gradients(of, old), names)
    for kind in ("freeze-critical", "freeze-random"):
        found = mitigated(of, MitigationSpec(kind=kind, share=0.1), WINDOWS)
        still = flat(found.weights, names) == flat(old, names)
        n = int(0.1 * len(still))
        assert found.n_reset == n
        assert n <= int(still.sum()) < 1.3 * n  # of what is trained some hardly anything reaches
        largest = score.topk(n).indices
        assert (still[largest].float().mean() > 0.999) == (kind == "freeze-critical")
        assert not torch.equal(flat(found.weights, names), flat(now, names))


def test_fine_tuning_lowers_the_loss_on_the_defender_s_text(trained):
    of, _, now, _ = trained

    def loss(weights):
        model = population.standing_alone(of, weights)
        tokens = torch.from_numpy(WINDOWS)
        with torch.no_grad():
            return float(model(tokens, labels=tokens).loss)

    short, long = (mitigated(of, MitigationSpec(kind="fine-tuning", steps=n), WINDOWS) for n in (2, 20))
    assert short.n_reset is None
    assert loss(long.weights) < loss(short.weights) < loss(now)


def test_fine_pruning_silences_the_neurons_that_are_least_active_and_keeps_them_silent(trained):
    of, _, now, _ = trained
    found = mitigated(of, MitigationSpec(kind="fine-pruning", share=0.1, steps=3), WINDOWS)
    model = population.standing_alone(of, now)
    downs = [layer.mlp.down_proj for layer in model.model.layers]
    seen = {}
    for down in downs:
        down.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[0].double()}))
    with torch.no_grad():
        model(torch.from_numpy(WINDOWS))
    norms = [seen[down].flatten(0, 1).norm(dim=0) for down in downs]
    relative = torch.cat([norm / norm.mean() for norm in norms])
    n = int(0.1 * len(relative))
    silent = torch.cat(
        [(found.weights[f"model.layers.{i}.mlp.down_proj.weight"] == 0).all(0) for i in range(len(downs))]
    )
    assert found.n_reset == n == int(silent.sum())
    assert relative[silent].max() <= relative[~silent].min()
    assert not torch.equal(found.weights["lm_head.weight"], now["lm_head.weight"])  # the rest was trained


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "mixtral"])
def test_a_silent_neuron_adds_nothing_whatever_the_architecture(family):
    """Beside a model whose down-projections lack the columns."""
    model = tiny(family)
    where = catalogue(model)
    tokens = np.random.default_rng(2).integers(2, 48, size=(4, 9))
    gone = dormant(model, where, 0.25, tokens)
    total = sum(len(neurons) for neurons in gone.values())
    assert sum(int(neurons.sum()) for neurons in gone.values()) == total // 4
    masks = silenced(gone)
    for down, neurons in gone.items():
        matrix = down.of(down.tensor.flat_weights())
        assert not matrix[:, neurons].any()
        assert bool(matrix[:, ~neurons].any(0).all())
    for name, mask in masks.items():
        assert not where[name].flat_weights()[mask.flatten()].any()


@pytest.mark.parametrize("kind", MITIGATIONS)
def test_a_mitigation_is_the_same_each_time(trained, kind):
    of, *_ = trained
    how = MitigationSpec(kind=kind, share=0.1, steps=2)
    first, second = (mitigated(of, how, WINDOWS) for _ in range(2))
    assert first.n_reset == second.n_reset
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_dormancy_is_distance_over_sensitivity():
    moved = [torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0]).double()]
    found = mitigating.dormancy(moved, [torch.tensor([0.0, 1.0]), torch.tensor([5.0])])
    assert [each.tolist() for each in found] == [[1.0, pytest.approx(2 / 1.5)], [pytest.approx(3 / 3.5)]]
    assert mitigating.dormancy(moved, [torch.zeros(2), torch.zeros(1)])[1].tolist() == [3.0]


def test_what_has_no_sense_is_one_sentence(trained):
    of, *_ = trained
    with pytest.raises(EsaError, match="freeze-random is about --insertion training, and critical-0001 isn't"):
        mitigated(member("critical"), MitigationSpec(kind="freeze-random"), WINDOWS)
    for kind, what in (("reset-moved", "weights"), ("freeze-critical", "weights"), ("fine-pruning", "neurons")):
        with pytest.raises(EsaError, match=f"{what} is not one; raise it"):
            mitigated(of, MitigationSpec(kind=kind, share=1e-9), WINDOWS)
