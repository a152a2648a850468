"""What keeps what the source needs: closed forms, and loops that are spelled out."""

import numpy as np
import pytest
import torch

from esa_ray.applications.tuning import course
from esa_ray.applications.tuning.protecting import Freeze, Penalty, Scale, over_mean
from esa_ray.errors import EsaError
from tests.applications.tuning.loops import (
    SOURCE,
    TRAIN,
    asked,
    close,
    looked,
    matrices,
    parameters,
    spelled_out,
    tuned,
    whole,
)
from tests.tiny import state_bits, tiny, window_gradients


def fisher(model) -> dict[str, torch.Tensor]:
    """Σ_n g_n² of the source's windows over its mean over all weights."""
    names = matrices(model)
    squares = [(each**2).sum(0) for each in window_gradients(model, names, SOURCE)]
    mean = np.concatenate([each.ravel() for each in squares]).mean()
    return {name: torch.from_numpy(each / mean) for name, each in zip(names, squares, strict=True)}


def test_ewc_ends_at_the_weighted_mean_of_a_quadratic_loss_and_where_it_began():
    """½Σ a(w − t)² + λ/2·Σ F(w − w₀)² is least at (a·t + λF·w₀)/(a + λF)."""
    a, t, w0, f = (torch.rand(20, generator=torch.Generator().manual_seed(i)) + 0.5 for i in range(4))
    f[:3], strength = 0.0, 3.0
    master = w0.clone()
    guard = Penalty([master], [w0], strength)
    guard.measure([f])
    descent = torch.optim.SGD([master], lr=0.1)
    for _ in range(500):
        master.grad = a * (master - t)
        guard.pull()
        with guard.holding():
            descent.step()
    assert torch.allclose(master, (a * t + strength * f * w0) / (a + strength * f), atol=1e-6)
    assert torch.allclose(master[:3], t[:3], atol=1e-6)


def test_ewc_pulls_where_the_text_gives_no_gradient_at_all():
    master, w0 = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0])
    guard = Penalty([master], [w0], 0.5)
    guard.measure([torch.tensor([4.0, 4.0])])
    guard.pull()
    assert master.grad.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("strength", [1.0, 30.0])
def test_ewc_is_a_penalty_on_the_loss_with_the_measured_fisher_information(family, strength):
    model, spec = tiny(family), asked(protect="ewc", strength=strength)
    information, before = fisher(model), parameters(model)

    def penalty(twin):
        moves = (information[n] * (twin.get_parameter(n) - before[n]).square() for n in information)
        return strength / 2 * sum(each.sum() for each in moves)

    _, weights = looked(model, spec)
    wanted, _ = spelled_out(model, spec, whole(model), penalty=penalty)
    close(weights[-1], wanted, at=1e-4)
    plain, _ = spelled_out(model, spec, whole(model))
    assert max(float((plain[n] - wanted[n]).abs().max()) for n in information) > 1e-2


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])
def test_freezing_is_plain_training_of_the_rest(family):
    model, spec = tiny(family), asked(protect="freeze", strength=0.1)
    information = fisher(model)
    every = np.sort(np.concatenate([each.numpy().ravel() for each in information.values()]))[::-1]
    n = int(0.1 * len(every))
    masks = {name: each < every[n - 1] for name, each in information.items()}
    before = parameters(model)
    with tuned(model, spec) as found:
        after = parameters(model)
        assert found.trainable == len(every) - n
    close(after, spelled_out(model, spec, masks)[0])
    for name, mask in masks.items():
        assert torch.equal(after[name][~mask].view(torch.int32), before[name][~mask].view(torch.int32))


def test_what_is_frozen_stays_bit_for_bit_also_if_momentum_or_a_zero_of_either_sign_stands_there():
    master = torch.tensor([-0.0, 0.0, 1.0, 2.0])
    guard, adam = Freeze([master], 0.5), torch.optim.Adam([master], lr=0.1)
    guard.measure([torch.tensor([0.0, 0.0, 0.0, 0.0])])  # of equal ones the first are frozen
    adam.state[master] = {"step": torch.tensor(1.0), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    master.grad = torch.ones(4)
    guard.pull()
    assert master.grad.tolist() == [0, 0, 1, 1]
    with guard.holding():
        adam.step()
    assert master[:2].view(torch.int32).tolist() == [-(2**31), 0]
    assert bool((master[2:] < torch.tensor([1.0, 2.0])).all())


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_scaling_multiplies_each_update_by_what_its_information_leaves(family):
    model, spec = tiny(family), asked(protect="scale", strength=0.3)
    factors = {name: (1 / (1 + each / 0.3)).float() for name, each in fisher(model).items()}
    _, weights = looked(model, spec)
    close(weights[-1], spelled_out(model, spec, whole(model), factors=factors)[0], at=1e-4)


def test_scaling_by_an_endless_tau_is_no_protection_and_by_none_freezes():
    model = tiny("llama")
    before = state_bits(model)
    with tuned(model, asked()):
        free = state_bits(model)
    with tuned(model, asked(protect="scale", strength=1e30)):
        assert state_bits(model) == free
    with tuned(model, asked(protect="scale", strength=1e-37)) as found:
        assert state_bits(model) == before
        assert found.n_changed == 0


def test_a_scaled_update_is_cut_after_adam_which_divides_a_constant_factor_of_the_gradient_out():
    master = torch.zeros(2)
    guard, adam = Scale([master], 1.0), torch.optim.Adam([master], lr=0.1)
    guard.measure([torch.tensor([0.0, 3.0])])
    master.grad = torch.tensor([5.0, 5.0])
    with guard.holding():
        adam.step()
    assert master.tolist() == pytest.approx([-0.1, -0.025])


def test_rescoring_measures_the_information_anew_at_the_weights_as_they_are_then():
    model, spec = tiny("llama"), asked(protect="ewc", strength=20.0, rescore=4)
    before, now = parameters(model), {}

    def around(twin, step):
        if step % 4 == 0:
            now.update(fisher(twin))
        return lambda: None

    def penalty(twin):
        return 10 * sum((now[n] * (twin.get_parameter(n) - before[n]).square()).sum() for n in now)

    _, weights = looked(model, spec)
    close(weights[-1], spelled_out(model, spec, whole(model), penalty=penalty, around=around)[0], at=1e-4)
    once = spelled_out(model, spec, whole(model), penalty=penalty, around=lambda twin, step: lambda: None)[0]
    assert max(float((once[n] - weights[-1][n]).abs().max()) for n in now) > 1e-3


def test_a_source_that_reaches_no_weight_protects_nothing_and_says_so():
    with pytest.raises(EsaError, match=r"the source text gives no weight a gradient.*take another --data"):
        over_mean([torch.zeros(3)])


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_information_that_is_no_number_protects_nothing_and_says_so(strange):
    with pytest.raises(EsaError, match=r"Fisher information .* is NaN or infinite.*take another --data, or --dtype"):
        over_mean([torch.ones(3), torch.tensor([1.0, strange])])


def test_information_whose_sum_overflows_is_not_taken_for_none():
    large = torch.full((4,), 3e38)  # in fp32 its sum is infinite, in fp64 it isn't
    assert over_mean([large])[0].tolist() == pytest.approx([1.0] * 4)
    with pytest.raises(EsaError, match="NaN or infinite"):
        over_mean([torch.tensor([1e-45] + [0.0] * 9)])  # over its mean, which fp32 takes for 0


#: Text that trains never has this token, and text whose information is measured does.
RARE = 47


@pytest.fixture
def astray(monkeypatch):
    """Let a model in training compute infinities of the source text alone, from the sixth step on."""
    train, source = np.where(TRAIN == RARE, 3, TRAIN), SOURCE.copy()
    source[0, 4] = RARE
    real = course.Run.until

    def until(run, stop):
        real(run, stop)
        if run.step >= 6:
            with torch.no_grad():
                run.model.get_input_embeddings().weight[RARE] = float("inf")

    monkeypatch.setattr(course.Run, "until", until)
    return {"train": train, "source": source}


@pytest.mark.parametrize("protect", ["ewc", "freeze", "scale"])
def test_information_that_goes_astray_on_the_way_ends_the_training_as_diverged(astray, protect):
    model, spec = tiny("llama"), asked(protect=protect, rescore=3)
    before = parameters(model)
    looks, weights = looked(model, spec, **astray)
    assert [(look.step, look.diverged, look.last) for look in looks] == [(4, False, False), (6, True, True)]
    assert np.isfinite(looks[-1].train_nll)  # nothing else tells of it
    names = matrices(model)
    assert all(bool(torch.isfinite(weights[-1][name]).all()) for name in names)
    assert any(bool((weights[-1][name] != before[name]).any()) for name in names)


def test_information_that_is_astray_from_the_start_is_told_in_a_sentence():
    model, source = tiny("llama"), SOURCE.copy()
    source[0, 4] = RARE
    with torch.no_grad():
        model.get_input_embeddings().weight[RARE] = float("inf")
    with pytest.raises(EsaError, match="NaN or infinite"):
        looked(model, asked(protect="ewc"), source=source)


def test_a_share_of_no_weight_is_refused():
    with pytest.raises(EsaError, match=r"--strength 0.0001 of 3,840 weights freezes not one; raise it"):
        looked(tiny("llama"), asked(protect="freeze", strength=1e-4))
