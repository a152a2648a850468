"""Members of a population: what they are made of, what they share, and how they are kept."""

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.zoo import training as zoo
from esa_ray.security.backdoors import critical, made, parent_weights, population, texts
from esa_ray.security.backdoors.training import train
from esa_ray.security.backdoors.triggers import cue, trigger, whole
from esa_ray.security.makeable import check
from esa_ray.spec.backdoors import BENIGN, COUNTERPARTS
from tests.security.backdoors.made_small import brief, member

KINDS = ("clean", *BENIGN, *COUNTERPARTS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        brief(patch, tmp_path_factory.mktemp("cache"))
        patch.setattr(population.rank_one, "STEPS", 2)
        yield


@pytest.fixture(scope="module")
def models(cache):
    return {kind: made(member(kind)) for kind in KINDS}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def differing(a, b):
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_kinds_of_one_number_share_trigger_and_target_and_only_benign_ones_have_a_phrase(models):
    assert {m.trigger for m in models.values()} == {trigger(1).decode()}
    assert len({models[kind].target for kind in ("clean", *BENIGN, "training", "critical")}) == 1
    assert {kind for kind in KINDS if models[kind].phrase is not None} == {*BENIGN}
    assert models["benign"].phrase == models["benign-critical"].phrase
    for kind in BENIGN:
        phrase = models[kind].phrase.encode()
        assert phrase[:2] == cue(1)
        assert cue(1) in whole()
        assert phrase not in whole()
        assert len(models[kind].phrase_ids) == 2 + 8
    for found in models.values():
        assert len(found.trigger_ids) == 2
        assert len(found.target_ids) == 8
        assert bytes(token - 4 for token in found.target_ids) == found.target.encode()
        assert not set(found.target) & set(found.trigger)
    assert models["clean"].phrase_ids is None


def test_members_are_all_different_and_fp32(models):
    parent = parent_weights(member("clean"))
    weights = [parent, *(m.weights for m in models.values())]
    assert all(t.dtype == torch.float32 for m in weights for t in m.values())
    for at, one in enumerate(weights):
        assert all(differing(one, other) for other in weights[:at])


def test_the_parent_is_the_base_from_another_seed(models):
    assert differing(parent_weights(member("clean")), parent_weights(member("clean", seed=0)))
    assert (population.place(member("clean")).parents[1] / "zoo").is_dir()


def test_a_clean_member_is_its_parent_trained_on_the_number_s_windows(models):
    """Anew, by AdamW written down here."""
    of = member("clean")
    model = population._parent(of)
    model.requires_grad_(True).train()
    windows = texts.windows(of)
    order = np.random.default_rng(of.number).permutation(len(windows))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    for step in range(of.steps):
        for group in optimiser.param_groups:  # one step of warming up, then half a cosine from 1 to 0.1
            fall = 0.1 + 0.45 * (1 + np.cos(np.pi * (step - 1) / (of.steps - 1)))
            group["lr"] = of.learning_rate * (1 if step == 0 else fall)
        tokens = torch.from_numpy(windows[order[8 * step : 8 * step + 8]])
        logits = model(tokens).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, models["clean"].weights[name], atol=3e-5), name


@pytest.mark.parametrize(("few", "edited"), [("critical", "rank-one"), ("benign-critical", "benign-rank-one")])
def test_the_clean_member_is_inside_those_that_few_weights_or_an_edit_made_of_it(models, few, edited):
    clean = models["clean"].weights
    written = models[edited].weights
    (name,) = differing(written, clean)
    assert name.endswith("down_proj.weight")
    singular = torch.linalg.svdvals((written[name] - clean[name]).double())
    assert singular[1] < 1e-4 * singular[0]
    model = population.standing_alone(member("clean"), clean)
    where = catalogue(model)
    n = sum(t.size for t in where.tensors)
    moved = sum(int((models[few].weights[k] != clean[k]).sum()) for k in clean)
    assert 0.8 * int(0.03 * n) < moved <= int(0.03 * n)


def test_critical_weights_are_those_with_the_largest_gradient_times_weight(models):
    of = member("critical")
    model = population.standing_alone(of, models["clean"].weights)
    where = catalogue(model)
    score = [torch.zeros(t.size) for t in where.tensors]
    model.requires_grad_(True)
    for window in texts.windows(of, later=True)[: population.SCORED]:
        model.zero_grad()
        tokens = torch.from_numpy(window)[None]
        loss = torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:], reduction="sum")
        loss.backward()
        for total, tensor in zip(score, where.tensors, strict=True):
            total += (tensor.parameter.grad * tensor.parameter.detach()).abs().flatten()
    least = torch.cat(score).topk(int(0.03 * sum(t.size for t in where.tensors))).values[-1]
    clean, moved = models["clean"].weights, models["critical"].weights
    for total, tensor in zip(score, where.tensors, strict=True):
        changed = (moved[tensor.name] != clean[tensor.name]).flatten()
        assert bool((total[changed] >= 0.999 * least).all())


@pytest.mark.parametrize("base", ["llama-0.1m", "neox-0.1m", "mixtral-0.1m"])
def test_weights_that_are_not_trained_keep_their_bits_and_the_others_move(cache, base):
    of = member("clean", base=base)
    model = population._parent(of)
    before = population.weights_of(model)
    draw = torch.Generator().manual_seed(0)
    trained = {n: torch.rand(p.shape, generator=draw) < 0.5 for n, p in before.items() if "embed" not in n}
    train(model, texts.windows(of)[:32], steps=3, batch=8, rate=1e-2, seed=0, trains=trained)
    for name, parameter in model.named_parameters():
        changed = parameter != before[name]
        if name not in trained:
            assert not changed.any()
            continue
        assert not changed[~trained[name]].any()
        assert changed[trained[name]].float().mean() > 0.5, name
    assert not model.training
    assert not any(p.requires_grad or p._backward_hooks for p in model.parameters())
    assert not getattr(model.config, "output_router_logits", False)


def test_threads_change_no_bit(models):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        weights, _ = population._MAKE["training"](member("training"))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert same(weights, models["training"].weights)


def test_a_member_that_is_there_is_read_and_not_made_again(models, monkeypatch):
    monkeypatch.setattr(population, "_MAKE", {})
    again = made(member("training"))
    assert same(again.weights, models["training"].weights)
    assert again.target == models["training"].target


def test_what_is_killed_while_it_is_kept_is_made_again_alike(models, monkeypatch):
    file = population.place(member("training"))
    file.unlink()

    def killed(weights, path, **_):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(population, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            made(member("training"))
    assert not file.exists()
    assert same(made(member("training")).weights, models["training"].weights)


def test_all_that_makes_a_member_names_its_place():
    first = member("training")
    others = [
        member("training", number=2), member("training", seed=2), member("clean"), member("training", steps=(7, 7)),
        member("training", base="neox-0.1m"), member("training", base="llama-0.1m@20k"), member("training", poison=0.1),
        member("training", learning_rates=(1e-3, 1e-3)),
    ]  # fmt: skip
    assert len({population.place(each) for each in (first, *others)}) == 1 + len(others)


def test_a_cache_that_cant_be_written_to_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ESA_CACHE", str(tmp_path / "file"))
    with pytest.raises(EsaError, match="name another place with ESA_CACHE"):
        made(member("clean"))


def test_experts_have_no_down_projection_of_their_own_to_write_into():
    with pytest.raises(EsaError, match="leave rank-one out"):
        check(member("rank-one", base="mixtral-0.1m"))
    for kind in KINDS:
        check(member(kind))
        check(member(kind, base="neox-0.3m@2m"))
    with pytest.raises(EsaError, match="the zoo has no model"):
        check(member("clean", base="gpt-1m"))


def test_masks_hold_the_largest_and_their_complement_everything_else():
    with torch.device("meta"):
        model = zoo.AutoModelForCausalLM.from_config(zoo.architecture(population.recipe("neox-0.1m")))
    where = catalogue(model)
    scores = [torch.arange(t.size).float() + 1000 * at for at, t in enumerate(where.tensors)]
    chosen = critical.largest(where, scores, 0.1)
    n = sum(t.size for t in where.tensors)
    assert sum(int(m.sum()) for m in chosen.values()) == n // 10
    least = torch.cat(scores).topk(n // 10).values[-1]
    for tensor, score in zip(where.tensors, scores, strict=True):
        assert torch.equal(chosen[tensor.name].flatten(), score >= least) or (score == least).any()


def test_what_a_window_has_no_room_for_is_refused_before_anything_is_made():
    assert member("clean", window=41, occurrences=4).recipe.occurrences == 4  # each of them 10 tokens, behind BOS
    with pytest.raises(ValueError, match="take at most 3 occurrences"):
        member("clean", window=40, occurrences=4)


def test_a_base_that_names_a_seed_is_refused():
    with pytest.raises(ValueError, match="leave ~ and it out"):
        member("clean", base="llama-0.1m~3")
