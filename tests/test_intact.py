"""KL to the intact model, loops in generated text, the sequential test, and outcomes from the damaged block on."""

import copy
import math

import accelerate
import numpy as np
import pytest
import torch
from scipy import stats

from esa_ray.evaluation import Intact, SignTest, continued, evaluate, log_sign_e_value, loops
from esa_ray.evaluation import intact as intact_module
from esa_ray.evaluation import tokens as tokens_module
from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import perturbed
from esa_ray.resume import Resumable
from esa_ray.spec import PerturbSpec
from tests.families import CAPPED, MODELS, _patched, build
from tests.tiny import random_windows, tiny

WINDOWS = random_windows(5, 10)
NOISE = PerturbSpec(kind="gauss_noise", strength=0.5)


def log_p(model, window) -> np.ndarray:
    """Next-token log-probabilities of the scored positions, float64 from the model's own logits."""
    with torch.no_grad():
        logits = model(torch.as_tensor(window)[None]).logits[0, :-1].double()
    return (logits - logits.logsumexp(-1, keepdim=True)).numpy()


def true_kl(intact, damaged) -> list[float]:
    pairs = [(log_p(intact, w), log_p(damaged, w)) for w in WINDOWS]
    return [float((np.exp(p) * (p - q)).sum()) for p, q in pairs]


def where(model, component="down"):
    tensor = catalogue(model).select((component,))[-1]
    return {tensor.name: np.arange(0, tensor.size, 3)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [2, 8])
def test_kl_is_that_of_the_full_distributions(name, batch_size):
    model = build(name)
    twin, intact = copy.deepcopy(model), Intact(model, WINDOWS, batch_size)
    assert intact.compact == (name not in CAPPED)
    with perturbed(catalogue(model), where(model), NOISE, 0):
        found = evaluate(model, WINDOWS, batch_size, intact=intact).kl
        wanted = true_kl(twin, model)
    assert min(wanted) > 1e-4
    assert found == pytest.approx(wanted, rel=1e-4, abs=5e-6)
    assert evaluate(model, WINDOWS, batch_size, intact=intact).kl == pytest.approx([0] * 5, abs=5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kl_of_a_16_bit_model_is_taken_from_its_own_logits(dtype):
    model = tiny("llama", dtype=dtype)
    twin, intact = copy.deepcopy(model), Intact(model, WINDOWS)
    assert not intact.compact
    with perturbed(catalogue(model), where(model), NOISE, 0):
        found, wanted = evaluate(model, WINDOWS, intact=intact).kl, true_kl(twin, model)
    assert found == pytest.approx(wanted, rel=1e-4, abs=5e-6)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Logits are made again wherever that is right, as where memory for them is dear."""
    monkeypatch.setattr(intact_module, "KEEPS_LOGITS", frozenset())


#: Models whose intact logits are needed: capped or scaled, or in 16 bits; and one whose blocks return tuples.
NEEDED = [*((name, torch.float32) for name in sorted(CAPPED)), ("llama", torch.bfloat16), ("bloom", torch.float16)]


def held(intact) -> str:
    return type(intact._predictions).__name__


@pytest.mark.parametrize(("name", "dtype"), NEEDED)
@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_logits_that_are_made_again_are_the_ones_that_would_be_kept(as_on_a_gpu, name, dtype, batch_size):
    model = build(name).to(dtype)
    again, kept = (Intact(model, WINDOWS, 2, tail_stays=stays) for stays in (True, False))
    assert (held(again), held(kept)) == ("States", "Logits")
    assert again.nbytes < 0.6 * kept.nbytes  # 16 numbers a token instead of 48, its number, and the log-sum-exp
    assert again.outcome == kept.outcome
    twin, blocks = copy.deepcopy(model), [t for t in catalogue(model).tensors if t.layer is not None]
    where_blocks = {t.name: np.arange(0, t.size, 3) for t in blocks if t.flat_weights().any()}
    with perturbed(catalogue(model), where_blocks, NOISE, 0):
        found, wanted = (evaluate(model, WINDOWS, batch_size, intact=i) for i in (again, kept))
        truth = true_kl(twin, model)
    assert found == wanted
    assert found.kl == pytest.approx(truth, rel=1e-4, abs=5e-6)
    assert not _patched(model)


@pytest.mark.parametrize("promise", [{"head_stays": False, "tail_stays": True}, {"tail_stays": False}, {}])
def test_logits_are_kept_where_what_makes_them_may_be_damaged(as_on_a_gpu, promise):
    model = tiny("llama", dtype=torch.bfloat16)
    twin, intact = copy.deepcopy(model), Intact(model, WINDOWS, **promise)
    assert held(intact) == "Logits"
    chosen = {"model.norm.weight": np.arange(0, 16, 2), "lm_head.weight": np.arange(0, 768, 3)}
    with perturbed(catalogue(model), chosen, NOISE, 0):
        found, wanted = evaluate(model, WINDOWS, intact=intact).kl, true_kl(twin, model)
    assert found == pytest.approx(wanted, rel=1e-4, abs=5e-6)


def reads_an_earlier_block(model) -> None:
    seen = []
    model.model.layers[0].register_forward_hook(lambda _, __, output: seen.append(output))
    model.model.norm.register_forward_pre_hook(lambda _, args: (args[0] + seen.pop(),))


def rounds_anew(model) -> None:
    calls = []
    model.lm_head.register_forward_hook(
        lambda _, __, output: output * (1 + 2.0**-6 * (calls.append(1) or len(calls) % 2))
    )


@pytest.mark.parametrize("strange", [reads_an_earlier_block, rounds_anew])
def test_logits_are_kept_where_the_tail_does_not_make_them_again_to_the_bit(as_on_a_gpu, strange):
    model = tiny("llama", dtype=torch.bfloat16)
    strange(model)
    assert held(Intact(model, WINDOWS, tail_stays=True)) == "Logits"
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_logits_are_kept_where_the_head_is_offloaded(as_on_a_gpu):
    model = tiny("llama", dtype=torch.bfloat16)
    accelerate.cpu_offload(model.lm_head, execution_device="cpu")
    assert held(Intact(model, WINDOWS, tail_stays=True)) == "Logits"


def test_a_plain_head_keeps_no_states_and_on_a_cpu_logits_are_kept(monkeypatch):
    assert held(Intact(tiny("llama", dtype=torch.bfloat16), WINDOWS, tail_stays=True)) == "Logits"
    monkeypatch.setattr(intact_module, "KEEPS_LOGITS", frozenset())
    assert held(Intact(tiny("llama"), WINDOWS, tail_stays=True)) == "Expectations"


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("chunk", [1, 48 * 13, 1 << 19])
def test_divergence_doesn_t_depend_on_how_many_tokens_are_looked_at_together(name, chunk, monkeypatch):
    model = build(name)
    intact, wanted = Intact(model, WINDOWS, 2), None
    with perturbed(catalogue(model), where(model), NOISE, 0):
        whole = evaluate(model, WINDOWS, 2, intact=intact)
        monkeypatch.setattr(tokens_module, "ON_CPU", chunk)
        wanted = evaluate(model, WINDOWS, 2, intact=intact)
    assert whole == wanted


def test_a_batch_of_another_size_than_the_intact_one_has_its_own_windows(as_on_a_gpu):
    model = tiny("llama")
    intact = Intact(model, WINDOWS, 2)
    with perturbed(catalogue(model), where(model), NOISE, 0):
        apart = [evaluate(model, WINDOWS, n, intact=intact).kl for n in (1, 2, 3, 5)]
    for kl in apart[1:]:
        assert kl == pytest.approx(apart[0], rel=1e-4, abs=5e-6)


@pytest.mark.parametrize("large", [False, True])
def test_kl_of_a_damaged_head_needs_and_uses_the_intact_logits(large, monkeypatch):
    monkeypatch.setattr(intact_module, "KEPT_BYTES", 0 if large else 1 << 30)
    model = tiny("llama")
    twin, intact = copy.deepcopy(model), Intact(model, WINDOWS, head_stays=False)
    with perturbed(catalogue(model), where(model, "head"), NOISE, 0):
        found, wanted = evaluate(model, WINDOWS, intact=intact).kl, true_kl(twin, model)
    assert found == pytest.approx(wanted, rel=1e-4, abs=5e-6)


def test_a_head_with_a_bias_counts_it():
    model = tiny("llama")
    model.lm_head = torch.nn.Linear(16, 48, bias=True)
    twin, intact = copy.deepcopy(model), Intact(model, WINDOWS)
    assert intact.compact
    with perturbed(catalogue(model), where(model), NOISE, 0):
        found, wanted = evaluate(model, WINDOWS, intact=intact).kl, true_kl(twin, model)
    assert found == pytest.approx(wanted, rel=1e-4, abs=5e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("hold", [None, 1])
def test_outcomes_from_the_damaged_block_on_are_those_of_full_forward_passes(name, hold):
    model = build(name)
    resumable, intact, found = Resumable(model, WINDOWS, 2, hold=hold), Intact(model, WINDOWS, 2), catalogue(model)
    for tensor in found.tensors:
        layer = resumable.starts_at(tensor)
        if not layer or not tensor.flat_weights().any():  # relative noise leaves zeros as they are
            continue
        resumable.prepare(layer)
        with perturbed(found, {tensor.name: np.arange(0, tensor.size, 2)}, NOISE, 0):
            whole = evaluate(model, WINDOWS, 2, intact=intact)
            resumed = evaluate(
                model, WINDOWS, 2, intact=intact, forward=lambda number, _, layer=layer: resumable.logits(layer, number)
            )
        assert resumed.nll == pytest.approx(whole.nll, rel=2e-6)
        assert resumed.hits == whole.hits
        assert resumed.kl == pytest.approx(whole.kl, rel=1e-4, abs=5e-6)


def test_with_few_states_held_an_unprepared_block_is_refused_and_a_prepared_one_replaces_the_oldest():
    model = build("llama")
    resumable = Resumable(model, WINDOWS, 2, hold=1)
    resumable.prepare(1)
    intact = resumable.logits(1, 0)
    with pytest.raises(ValueError, match="prepare"):
        resumable.logits(0, 0)
    resumable.prepare(0)
    assert torch.equal(resumable.logits(0, 0), intact)
    with pytest.raises(ValueError, match="prepare"):
        resumable.logits(1, 0)
    resumable.logits(resumable.depth, 0)


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ([7] * 12, True),
        ([1, 2, 3, 4, 5, 6, 9, 9, 9, 9, 9, 9], True),
        ([1, 2, 3, 4, 5, 6, 7, 9, 9, 9, 9, 9], False),  # not yet half of it
        ([1, 2, 3, 4] * 3, True),
        ([5, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2], True),  # a block broken off at the end
        ([1, 2, 3, 4, 5, 6] * 2, False),  # twice is no loop
        (list(range(12)), False),
        ([7] * 8 + [-1] * 4, False),  # ended by itself
    ],
)
def test_a_loop_is_a_block_three_times_in_a_row_over_half_the_text(text, looping):
    assert loops(np.array(text)) is looping


@pytest.mark.parametrize("setting", [{}, {"repetition_penalty": 1.5}, {"suppress_tokens": [0, 1, 2, 3, 4, 5]}])
def test_continuations_are_greedy_whatever_the_model_ships_for_sampling(setting):
    model, prompts = tiny("llama"), random_windows(3, 5)
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
    found = continued(model, prompts, 4)
    for prompt, text in zip(prompts, found, strict=True):
        tokens = list(prompt)
        for _ in range(4):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert text.tolist() == tokens[5:]


@pytest.mark.parametrize("wrong", ["tokens", "raises"])
def test_a_cache_that_leads_a_model_elsewhere_is_left_alone(wrong, monkeypatch):
    model, prompts = tiny("llama"), random_windows(2, 5)
    wanted = continued(model, prompts, 4)
    own, asked = type(model).generate, []

    def elsewhere(model, prompts_PT, **how):
        asked.append(len(prompts_PT))
        if wrong == "raises":
            raise ValueError("position_ids are incorrect")
        made_PT = own(model, prompts_PT, **how)
        made_PT[1, -2] = (made_PT[1, -2] + 1) % 48
        return made_PT

    monkeypatch.setattr(type(model), "generate", elsewhere)
    np.testing.assert_array_equal(continued(model, prompts, 4), wanted)
    assert asked


def test_a_model_that_says_one_thing_for_ever_loops_and_one_that_ends_does_not():
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every logit is 0: token 0 for ever
    model.generation_config.eos_token_id = None
    assert loops(continued(model, random_windows(1, 4), 9)[0])
    model.generation_config.eos_token_id = 0
    assert continued(model, random_windows(1, 4), 9)[0].tolist() == [-1] * 9


def test_the_e_value_is_the_likelihood_of_the_signs_under_jeffreys_mixture_over_that_of_a_coin():
    for positive, negative in ((8, 0), (3, 5), (0, 1), (20, 6)):
        grid = (np.arange(200_000) + 0.5) / 200_000
        mixture = (stats.beta(0.5, 0.5).pdf(grid) * grid**positive * (1 - grid) ** negative).mean()
        wanted = math.log(mixture * 2 ** (positive + negative))
        assert log_sign_e_value(positive, negative) == pytest.approx(wanted, abs=5e-3)


@pytest.mark.parametrize("error_rate", [0.05, 0.2])
def test_with_a_look_after_every_window_the_test_errs_no_more_often_than_it_says(error_rate):
    rng, studies, wrong = np.random.default_rng(0), 600, 0
    for _ in range(studies):
        differences, test = rng.standard_t(2, size=60), SignTest(error_rate)
        wrong += any(test.decides(differences[:n]) for n in range(1, 61))
    assert wrong <= stats.binom.ppf(0.999, studies, error_rate)
    assert wrong > 0


def test_a_clear_difference_stops_early_and_a_loss_that_is_not_finite_at_once():
    model = tiny("llama")
    model.generation_config.eos_token_id = None
    starts = random_windows(24, 3)
    windows = np.concatenate([starts, continued(model, starts, 7)], axis=1)  # what it says itself, damage makes worse
    intact = Intact(model, windows, 2)
    with perturbed(catalogue(model), where(model), PerturbSpec(kind="scale", strength=30), 0):
        stopped = evaluate(model, windows, 2, intact=intact, error_rate=0.05)
        full = evaluate(model, windows, 2, intact=intact)
    n = len(stopped.nll)
    assert 6 <= n < 24
    assert (stopped.nll, stopped.hits, stopped.kl, stopped.tokens) == (
        full.nll[:n], full.hits[:n], full.kl[:n], full.tokens[:n],
    )  # fmt: skip
    with perturbed(catalogue(model), where(model), PerturbSpec(kind="scale", strength=1e42), 0):
        assert len(evaluate(model, windows, 2, intact=intact, error_rate=0.05).nll) == 2
    assert len(evaluate(model, windows, 2, intact=intact, error_rate=0.05).nll) == 24
