import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.gradients import WindowGradients, window_nll, zeros
from tests.tiny import FAMILIES, random_windows, state_bits, summed_nll, tiny, window_gradients

# The definitions on exact gradients g (N, ...) and weights w, all float64.
DEFINITIONS = {
    "grad_x_weight": lambda g, w, tokens: np.abs(g.sum(0) * w) / tokens,
    "grad_x_weight_abs": lambda g, w, tokens: np.abs(g * w).sum(0) / tokens,
    "grad_squared": lambda g, w, tokens: (g**2).sum(0) / tokens,
    "magnitude": lambda g, w, tokens: np.abs(w),
}


def scored(model, windows, metrics=tuple(DEFINITIONS), components=None):
    found = catalogue(model)
    tensors = found.select(components) if components else found.tensors
    return tensors, score_tensors(model, tensors, windows, metrics)


def close(found: torch.Tensor, wanted: np.ndarray, *, rtol: float = 1e-3, relative_to_max: float = 2e-5) -> None:
    wanted = wanted.ravel()
    assert found.dtype == torch.float32
    assert wanted.max() > 0
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=rtol, atol=relative_to_max * wanted.max())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_exact_per_window_gradients(family, tied):
    model, windows = tiny(family, tied=tied), random_windows(4, 9)
    tensors, scores = scored(model, windows)
    gradients = window_gradients(model, [t.name for t in tensors], windows)
    for index, (tensor, g) in enumerate(zip(tensors, gradients, strict=True)):
        w = tensor.parameter.double().numpy()
        for metric, definition in DEFINITIONS.items():
            wanted = definition(g, w, 4 * 8)
            if family == "gemma" and "norm" in tensor.name and metric != "grad_squared":
                assert (scores.of(metric, index) == 0).all()  # Gemma stores norms as their distance from 1
                continue
            close(scores.of(metric, index), wanted)


def test_one_metric_alone_scores_as_it_does_in_company():
    model, windows = tiny("llama"), random_windows(3)
    tensors, together = scored(model, windows)
    for metric in DEFINITIONS:
        _, alone = scored(model, windows, (metric,))
        for index in range(len(tensors)):
            assert torch.equal(alone.of(metric, index), together.of(metric, index))


def test_scoring_few_tensors_gives_the_scores_they_have_among_all():
    model, windows = tiny("gpt_neox"), random_windows(3)
    tensors, everything = scored(model, windows)
    some, few = scored(model, windows, components=("down",))
    assert 0 < len(some) < len(tensors)
    names = [t.name for t in tensors]
    for index, tensor in enumerate(some):
        whole = everything.of("grad_squared", names.index(tensor.name))
        torch.testing.assert_close(few.of("grad_squared", index), whole, rtol=1e-5, atol=0)


def test_a_tied_weight_is_scored_once_with_the_gradients_of_both_its_uses():
    tied, apart, windows = tiny("llama", tied=True), tiny("llama", tied=False), random_windows(4)
    apart.load_state_dict(tied.state_dict())
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    as_embedding, as_head = window_gradients(apart, names, windows)
    tensors, scores = scored(tied, windows, components=("embed",))
    assert [t.name for t in tensors] == names[:1]
    w = tied.lm_head.weight.double().numpy()
    close(scores.of("grad_squared", 0), ((as_embedding + as_head) ** 2).sum(0) / (4 * 9))
    close(scores.of("grad_x_weight", 0), np.abs((as_embedding + as_head).sum(0) * w) / (4 * 9))


def test_grad_x_weight_is_the_first_order_change_of_the_loss_when_a_weight_goes():
    model, windows = tiny("llama").double(), random_windows(3)
    tensors, scores = scored(model.float(), windows, ("grad_x_weight",), ("down",))
    twin = tiny("llama").double()
    weight = twin.model.layers[0].mlp.down_proj.weight

    def loss() -> float:
        with torch.no_grad():
            return sum(float(summed_nll(twin, window)) for window in windows) / (3 * 9)

    for flat in (0, 100, 383):
        row, col = divmod(flat, 24)
        w, step = float(weight[row, col]), 0.03  # norms inside compute in fp32
        around = []
        for factor in (1 + step, 1 - step):
            with torch.no_grad():
                weight[row, col] = w * factor
            around.append(loss())
        with torch.no_grad():
            weight[row, col] = w
        slope = abs(around[0] - around[1]) / (2 * step)
        assert tensors[0].name == "model.layers.0.mlp.down_proj.weight"
        assert float(scores.at("grad_x_weight", 0, torch.tensor([flat]))) == pytest.approx(slope, rel=1e-2, abs=1e-6)


def test_window_nll_is_the_summed_loss_of_its_next_tokens():
    model, windows = tiny("gpt2"), random_windows(1, 12)
    twin = tiny("gpt2").double()
    assert float(window_nll(model, torch.as_tensor(windows))) == pytest.approx(
        float(summed_nll(twin, windows[0])), rel=1e-5
    )


def test_a_bf16_model_is_accumulated_in_fp32():
    model, windows = tiny("llama", dtype=torch.bfloat16), random_windows(48, 8)
    tensors, scores = scored(model, windows, ("grad_squared", "grad_x_weight_abs"), ("gate", "down"))
    gradients = window_gradients(model, [t.name for t in tensors], windows, double=False)
    for index, (tensor, g) in enumerate(zip(tensors, gradients, strict=True)):
        found, wanted = scores.of("grad_squared", index), (g**2).sum(0) / (48 * 7)
        close(found, wanted, rtol=1e-2, relative_to_max=1e-3)
        # The whole is nearly exact, which a bf16 accumulator is not even on average.
        assert float(found.double().sum()) == pytest.approx(wanted.sum(), rel=5e-4)
        w = tensor.parameter.double().numpy()
        close(scores.of("grad_x_weight_abs", index), np.abs(g * w).sum(0) / (48 * 7), rtol=1e-2, relative_to_max=1e-3)


def test_a_thousand_equal_gradients_add_up_where_bf16_would_stop_at_256():
    model = tiny("llama", dtype=torch.bfloat16)
    tensor = catalogue(model)["model.layers.0.mlp.down_proj.weight"]
    accumulators = WindowGradients(model, [tensor], zeros([tensor], ["gradient", "gradient_abs", "gradient_square"]))
    with accumulators:
        for i in range(1000):
            sign = 1 if i % 4 else -1  # 750 ups and 250 downs of exactly 1.5
            (tensor.parameter * (1.5 * sign)).sum().backward()
    assert {t.dtype for totals in accumulators.totals.values() for t in totals} == {torch.float32}
    assert (accumulators.totals["gradient"][0] == 500 * 1.5).all()
    assert (accumulators.totals["gradient_abs"][0] == 1000 * 1.5).all()
    assert (accumulators.totals["gradient_square"][0] == 1000 * 2.25).all()


def test_an_expert_that_no_token_meets_scores_zero():
    model = tiny("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()  # all routers tie: experts 0 and 1 take every token, or fixed two
    windows = random_windows(2)
    tensors, scores = scored(model, windows, ("grad_squared",))
    names = [t.name for t in tensors]
    total = scores.of("grad_squared", names.index("model.layers.0.mlp.experts.down_proj")).view(3, -1).sum(1)
    assert sorted((total == 0).tolist()) == [False, False, True]


def test_scores_of_some_weights_are_those_of_all_at_their_places():
    model, windows = tiny("phi3"), random_windows(2)
    tensors, scores = scored(model, windows)
    at = torch.tensor([7, 0, 100, 7])
    for metric in DEFINITIONS:
        assert torch.equal(scores.at(metric, 1, at), scores.of(metric, 1)[at])
        assert scores.of(metric, 1).shape == (tensors[1].size,)


def test_magnitude_needs_no_backward_pass():
    model = tiny("llama")
    model.forward = None  # would fail if called
    tensors, scores = scored(model, random_windows(2), ("magnitude",))
    assert torch.equal(scores.of("magnitude", 3), tensors[3].parameter.abs().flatten())


def test_an_overflow_is_said_and_not_ranked():
    model, windows = tiny("llama"), random_windows(2)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    _, scores = scored(model, windows, ("grad_x_weight",), ("down",))
    with pytest.raises(EsaError, match="NaN or infinite"):
        scores.of("grad_x_weight", 0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_scoring_changes_no_weight_and_leaves_neither_gradients_nor_hooks(family):
    model, windows = tiny(family), random_windows(2)
    before = state_bits(model)
    scored(model, windows)
    assert state_bits(model) == before
    for name, parameter in model.named_parameters():
        assert parameter.grad is None, name
        assert not parameter.requires_grad, name
        assert not parameter._post_accumulate_grad_hooks, name


def test_hooks_and_gradients_are_gone_after_an_exception_too():
    model, windows = tiny("llama"), random_windows(2)
    windows[1, 3] = 10_000  # no such token
    with pytest.raises(IndexError):
        scored(model, windows)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None, name
        assert not parameter.requires_grad, name
        assert not parameter._post_accumulate_grad_hooks, name


def test_requires_grad_is_undone_as_it_was_found():
    model = tiny("llama").requires_grad_(True)
    scored(model, random_windows(2), components=("down",))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is None, name


def test_gradients_left_over_from_something_else_are_not_scored():
    model, windows = tiny("llama"), random_windows(2)
    _, wanted = scored(model, windows, components=("down",))
    for parameter in model.requires_grad_(True).parameters():
        parameter.grad = torch.ones_like(parameter)
    _, found = scored(model, windows, components=("down",))
    torch.testing.assert_close(found.of("grad_squared", 0), wanted.of("grad_squared", 0))


def test_a_model_left_in_training_mode_is_scored_without_dropout_or_refused():
    model, windows = tiny("gpt2"), random_windows(2)
    _, wanted = scored(model, windows, ("grad_squared",), ("down",))
    torch.manual_seed(0)
    try:
        _, found = scored(model.train(), windows, ("grad_squared",), ("down",))
    except (EsaError, ValueError):
        return
    torch.testing.assert_close(found.of("grad_squared", 0), wanted.of("grad_squared", 0))
