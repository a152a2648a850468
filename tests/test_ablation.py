"""Silenced sub-layers against models without them, and experts' use against routers recomputed by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.comparison.experts import by_peak, standing_out
from esa_ray.evaluation import evaluate
from esa_ray.evaluation.damaging import Damaging
from esa_ray.evaluation.sublayers import LAST, observed, silenced, sublayers, uses
from esa_ray.models.addressing import catalogue
from tests.tiny import EXPERTS, FAMILIES, INNER, random_windows, state_bits, tiny
from tests.tiny_layouts import tiny_layout


def zeroed(family, part, layer, expert=None):
    """A copy of the model whose sub-layer's last matrices, and their biases, are zero."""
    model = tiny(family)
    for tensor in catalogue(model).tensors:
        if tensor.layer == layer and any(p.component == LAST[part] for p in tensor.parts):
            with torch.no_grad():
                owner = tensor.slots[0].owner
                weight = tensor.parameter
                (weight if expert is None else weight[expert]).zero_()
                if getattr(owner, "bias", None) is not None:
                    owner.bias.zero_()
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["attention", "ffn"])
def test_a_silenced_sublayer_is_one_with_zeroed_weights(family, part):
    model, windows = tiny(family), random_windows(3)
    before = state_bits(model)
    (sublayer,) = (s for s in sublayers(catalogue(model), 1) if s.part == part)
    with silenced(sublayer):
        found = evaluate(model, windows).nll
    wanted = evaluate(zeroed(family, part, 1), windows).nll
    assert found == pytest.approx(wanted, rel=1e-6)
    assert found != pytest.approx(evaluate(model, windows).nll, rel=1e-6)
    assert state_bits(model) == before


@pytest.mark.parametrize("expert", range(EXPERTS))
def test_a_silenced_expert_is_one_with_zeroed_weights(expert):
    model, windows = tiny("mixtral"), random_windows(3)
    (sublayer,) = (s for s in sublayers(catalogue(model), 0) if s.expert == expert)
    with silenced(sublayer):
        found = evaluate(model, windows).nll
    assert found == pytest.approx(evaluate(zeroed("mixtral", "ffn", 0, expert), windows).nll, rel=1e-6)


@pytest.mark.parametrize("case", ["llama4_text", "dbrx", "gpt_oss", "jetmoe", "bart", "deepseek_v3"])
def test_every_sublayer_of_any_layout_is_watched_and_silenced(case):
    model, windows = tiny_layout(case), random_windows(2)
    parts = sublayers(catalogue(model), 1)
    intact = evaluate(model, windows).nll
    with observed(model, parts, windows) as seen:  # experts run one by one: some machines round that differently
        assert evaluate(model, windows).nll == pytest.approx(intact, rel=1e-6)
    assert set(seen[0].peaks) == {(part.part, part.expert) for part in parts}
    assert {part.part for part in parts} >= {"attention", "ffn"}
    assert any(part.part == "expert" for part in parts) == (case in ("gpt_oss", "deepseek_v3"))
    for part in parts:
        with silenced(part):
            assert evaluate(model, windows).nll != pytest.approx(intact, rel=1e-6)
    assert evaluate(model, windows).nll == intact


def test_what_gives_more_than_its_last_matrix_makes_is_not_silenced():
    # XLNet's attention adds the residual stream itself; without its output nothing would be left.
    assert [s.part for s in sublayers(catalogue(tiny_layout("xlnet")), 0)] == ["ffn"]


def test_resuming_from_the_block_gives_the_same_as_the_whole_model():
    model, windows = tiny("mixtral"), random_windows(4)
    found = catalogue(model)
    damaging = Damaging(model, found, SimpleNamespace(evaluation=windows), SimpleNamespace(batch_size=3, prompts=0))
    for part in sublayers(found, 1):
        start = damaging.prepared(list(part.tensors))
        assert start == 1
        assert damaging.intact
        with silenced(part):
            resumed, whole = damaging.outcome(start), evaluate(model, windows)
        assert resumed.nll == pytest.approx(whole.nll, rel=1e-6)


def test_use_of_experts_is_what_their_router_says():
    model, windows = tiny("mixtral"), random_windows(5, 10)
    found = catalogue(model)
    parts = sublayers(found, 0)
    hidden = []
    block = model.model.layers[0]
    hook = block.mlp.register_forward_pre_hook(lambda _, args: hidden.append(args[0].double()))
    with torch.no_grad(), observed(model, parts, windows) as seen:
        for batch in np.array_split(windows, 2):
            model(torch.from_numpy(batch))
    hook.remove()
    x = torch.cat(hidden)
    router = (x @ block.mlp.gate.weight.double().T).softmax(-1)
    top = router.topk(2, dim=-1)
    weights = top.values / top.values.sum(-1, keepdim=True)
    for expert in range(EXPERTS):
        mine = top.indices == expert
        use = seen[0].uses[expert]
        assert use.positions == mine.sum((1, 2)).tolist()
        assert use.routed == pytest.approx((weights * mine).sum((1, 2)).tolist(), rel=1e-5)
    assert sum(sum(seen[0].uses[e].positions) for e in range(EXPERTS)) == 2 * windows.size


def test_peaks_are_the_largest_outputs():
    model, windows = tiny("llama"), random_windows(3)
    outputs = {}
    block = model.model.layers[1]
    hooks = [
        m.register_forward_hook(lambda _, __, out, name=name: outputs.__setitem__(name, float(out.abs().max())))
        for name, m in (("attention", block.self_attn.o_proj), ("ffn", block.mlp.down_proj))
    ]
    with torch.no_grad(), observed(model, sublayers(catalogue(model), 1), windows) as seen:
        model(torch.from_numpy(windows))
    for hook in hooks:
        hook.remove()
    assert {part: peak for (part, _), peak in seen[0].peaks.items()} == pytest.approx(outputs)


def test_information_is_that_of_planted_routing():
    # Expert 0 sees only token 3, expert 1 everything else, evenly; token 3 is a quarter of the text.
    tokens = np.random.default_rng(0).choice([3, 5, 6, 7], size=(50, 40))
    chosen = torch.from_numpy((tokens != 3).astype(np.int64)).reshape(-1, 1)
    found = uses([(chosen, torch.ones_like(chosen, dtype=torch.float32))], tokens, experts=3)
    assert found[0].information == pytest.approx(np.log(1 / (tokens == 3).mean()), abs=1e-9)
    assert found[1].information == pytest.approx(np.log(1 / (tokens != 3).mean()), abs=0.01)
    assert found[2].information is None
    assert found[0].positions == (tokens == 3).sum(1).tolist()


def test_information_of_an_expert_that_draws_blindly_is_none_on_average():
    draw = np.random.default_rng(1)
    found = []
    for _ in range(60):
        tokens = draw.integers(0, 20, size=(10, 30))
        chosen = torch.from_numpy(draw.integers(0, 4, size=(tokens.size, 1)))
        used = uses([(chosen, torch.ones(len(chosen), 1))], tokens, experts=4)
        found += [u.information for u in used]
    # Without its correction it would be 19/(2·75) = 0.127 too high (less what the expert shares with all).
    assert abs(np.mean(found)) < 0.04


def with_planted_super_expert(expert=1):
    """A tiny mixture in which one expert of block 0 alone says that tokens are below 24, as they all are."""
    model = tiny("mixtral")
    block = model.model.layers[0].mlp
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.1)
        model.model.embed_tokens.weight[:, :4] = 0.5
        block.gate.weight[expert, :4] = 3.0  # every token goes there, and to one other
        experts = block.experts
        experts.gate_up_proj[expert, 0] = 0.0
        experts.gate_up_proj[expert, INNER] = 0.0
        for row in (0, INNER):
            experts.gate_up_proj[expert, row, :4] = 0.5
        experts.down_proj[expert, 9, 0] = 2.0
        model.lm_head.weight[:, 9] = -0.5
        model.lm_head.weight[:24, 9] = 0.5
    return model, random_windows(12, 16, vocab=24)


def test_a_planted_super_expert_is_found_by_silencing_each():
    model, windows = with_planted_super_expert()
    intact = np.array(evaluate(model, windows).nll)
    costs, names = [], []
    for layer in range(2):
        for part in sublayers(catalogue(model), layer):
            if part.part == "expert":
                with silenced(part):
                    costs.append((np.array(evaluate(model, windows).nll) - intact) / 15)
                names.append((layer, part.expert))
    _, holm = standing_out(np.array(costs))
    assert [name for name, p in zip(names, holm, strict=True) if p is not None and p < 0.05] == [(0, 1)]
    assert np.mean(costs[names.index((0, 1))]) > 0.3


def test_among_experts_that_cost_alike_or_nothing_none_is_super():
    draw = np.random.default_rng(0)
    alike = 0.1 * np.exp(0.5 * draw.normal(size=(32, 1))) + 0.01 * draw.normal(size=(32, 12))
    nothing = np.where(np.arange(32)[:, None] < 28, 0.0, 0.01 + 0.001 * draw.normal(size=(32, 12)))
    for d in (alike, nothing):
        assert all(p is None for p in standing_out(d)[1])


def test_a_super_expert_stands_out_though_silencing_half_of_the_others_helps():
    draw = np.random.default_rng(4)
    d = 0.05 * draw.normal(size=(16, 1)) + 0.01 * draw.normal(size=(16, 24))
    d[5] += 2.0
    assert np.flatnonzero([p is not None and p < 0.05 for p in standing_out(d)[1]]).tolist() == [5]


def test_an_expert_whose_silencing_diverges_stands_out_among_any():
    d = np.abs(np.random.default_rng(5).normal(size=(16, 1))) + np.zeros((16, 24))
    d[3] = np.inf
    z, holm = standing_out(d)
    assert z[3] == np.inf
    assert holm[3] == 0.0


def test_experts_by_their_peaks_are_told_of_200_and_more():
    peaks = np.ones(256)
    peaks[7], peaks[8] = 50.0, 4.0  # the second is above the quantile, and not a tenth of the first
    assert np.flatnonzero(by_peak(peaks)).tolist() == [7]
    assert by_peak(peaks[:100]) == [None] * 100
