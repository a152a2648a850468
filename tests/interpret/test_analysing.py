"""Roles, attention and facts of a model in hand: what is damaged, and how tables are made of rows that are planted."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch.nn.functional import cross_entropy

import esa_ray
from esa_ray.errors import EsaError
from esa_ray.interpret.analysing import AttentionCorrelation, RoleAnalysis
from esa_ray.interpret.localizing import Localization
from esa_ray.spec import FactSpec, RoleSpec, WeightName
from tests.tiny import byte_tokenizer, random_windows, state_bits, tiny

DOWN = "model.layers.1.mlp.down_proj.weight"
WINDOWS, CALIBRATION = random_windows(3), random_windows(6, seed=1)


def analysed(weights, model=None, **how):
    return esa_ray.weight_role_analysis(
        model or tiny(), weights, windows=WINDOWS, calibration=CALIBRATION, null_weights=2,
        roles=("frequency", "token-specific"), **how,
    )  # fmt: skip


def test_named_weights_are_damaged_beside_matched_ones_and_the_model_is_as_it_was():
    model = tiny()
    bits = state_bits(model)
    found = analysed([(DOWN, 3, 5), WeightName(tensor=DOWN, row=1, col=2)], model)
    assert state_bits(model) == bits
    leading = [row for row in found.rows if row["group"] == "super" and row["role"] == "token-specific"]
    assert [(row["rank"], row["row"], row["col"]) for row in leading] == [(1, 3, 5), (2, 1, 2)]
    assert len({row["subject"] for row in found.rows if row["group"] == "matched_k"}) == 2
    windows = torch.as_tensor(WINDOWS)
    double = model.double()
    intact = np.array([float(cross_entropy(double(w[None]).logits[0, :-1], w[1:])) for w in windows])
    double.get_parameter(DOWN).data[3, 5] = 0.0
    damaged = np.array([float(cross_entropy(double(w[None]).logits[0, :-1], w[1:])) for w in windows])
    assert leading[0]["delta_nll"] == pytest.approx((damaged - intact).tolist(), abs=2e-6)


def test_a_number_of_weights_takes_those_that_gradients_rank_first():
    found = analysed(3)
    model = tiny().requires_grad_()
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters() if "proj" in name}
    for window in torch.as_tensor(CALIBRATION):
        model.zero_grad()
        cross_entropy(model(window[None]).logits[0, :-1], window[1:], reduction="sum").backward()
        for name in total:
            weight = model.get_parameter(name)
            total[name] += (weight.grad * weight.detach()).abs()
    every = [(float(v), n, *np.unravel_index(i, t.shape)) for n, t in total.items() for i, v in enumerate(t.flatten())]
    best = {(name, int(row), int(col)) for _, name, row, col in sorted(every)[-3:]}
    assert {(r["tensor"], r["row"], r["col"]) for r in found.rows if r["group"] == "super"} == best


def test_two_weights_of_one_head_or_neuron_damage_it_once():
    q, o = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qo")
    up = "model.layers.1.mlp.up_proj.weight"
    width = tiny().config.hidden_size // tiny().config.num_attention_heads
    weights = [(q, 0, 5), (q, width - 1, 2), (o, 3, 1), (q, width, 0), (DOWN, 2, 4), (up, 4, 1)]
    found = analysed(weights, sets=("head", "neuron"))
    mine = {unit: {r["rank"] for r in found.rows if r["group"] == "super" and r["unit"] == unit} for unit in
            ("weight", "head", "neuron")}  # fmt: skip
    assert mine == {"weight": {1, 2, 3, 4, 5, 6}, "head": {1, 4}, "neuron": {5}}


def test_a_weight_that_is_zero_has_rows_that_say_so():
    model = tiny()
    model.get_parameter(DOWN).data[3, 5] = 0.0
    found = analysed([(DOWN, 3, 5), (DOWN, 1, 2)], model)
    mine = [row for row in found.rows if (row["row"], row["col"], row["group"]) == (3, 5, "super")]
    assert [(row["role"], row["status"]) for row in mine] == [("frequency", "empty"), ("token-specific", "empty")]


@pytest.mark.parametrize(
    ("weights", "how", "told"),
    [
        ([("nothing.weight", 0, 0)], {}, "no weights named nothing.weight"),
        ([(DOWN, -1, 0)], {}, "at least 0"),
        ([(DOWN, 0, 0)], {"edits": ("smash",)}, "'smash' is not one of"),
        ("nowhere.csv", {}, "nowhere.csv"),
    ],
)
def test_what_cannot_be_analysed_is_one_sentence(weights, how, told):
    with pytest.raises(EsaError, match=told):
        analysed(weights, **how)


def test_a_model_in_hand_needs_windows_of_both_kinds():
    with pytest.raises(EsaError, match="needs windows="):
        esa_ray.weight_role_analysis(tiny(), 2)
    with pytest.raises(EsaError, match="give them as calibration="):
        esa_ray.attention_pattern_correlation(tiny(), 2, windows=WINDOWS)


def row(group, change, tensor="t", rank=1, **more):
    return {
        "subject": f"{group}-{rank}", "unit": "weight", "edit": "zero", "role": "sink", "status": "ok", "group": group,
        "change": change, "tensor": tensor, "rank": rank, **more,
    }  # fmt: skip


def test_p_counts_matched_weights_that_exceed_their_tensors_mean_as_far():
    null = [row("matched_k", float(np.exp(x)), rank=i) for i, x in enumerate((-1, 0, 1))]
    null += [row("matched_k", float(np.exp(10 + x)), "other", rank=9 + i) for i, x in enumerate((-2, 2))]
    held = row("super", 1.0) | {"delta_nll": [0.5, 1.5], "held_nll": [0.1, 0.3]}
    leading = [row("super", -float(np.exp(1.5))), row("super", -float(np.exp(9.0)), "other", rank=2)]
    wrong = row("super", float(np.exp(5.0)), rank=3)  # a sink's maker can't add to it by being taken away
    first, second, third = RoleAnalysis(RoleSpec(), [*leading, wrong, *null], [held]).table
    # Residuals are −1, 0, 1 over √(2/3), and −2, 2 over √(1/2); the first weight lies 1.5 over √(4/3) above its
    # tensor's mean, the second 1 over √(3/2) below.
    assert first["times"] == pytest.approx(np.exp(1.5))
    assert (first["p"], second["p"]) == pytest.approx((2 / 6, 4 / 6))
    assert third["p"] == 1
    assert first["mediated"] == pytest.approx(1 - 0.4 / 2.0)
    assert second["mediated"] is None


def test_correlation_is_spearmans_and_partial_of_what_ranks_leave():
    rng = np.random.default_rng(0)
    cost, sink, shift = rng.normal(size=(3, 20))
    cost, sink = cost + 2 * shift, sink + 2 * shift
    rows = [
        {
            "subject": str(i), "unit": "weight", "group": "super", "rank": i, "edit": "zero", "status": "ok",
            "block": block,
            "delta_nll": [cost[i] - 1, cost[i] + 1], "delta_z": shift[i],
            **{f"{n}{end}": [0.5] for n in ("entropy", "previous") for end in ("", "_intact")},
            "spike": 3.0, "spike_intact": 3.0, "sink": [sink[i] + block, sink[i]], "sink_intact": [float(block), 0.0],
        }
        for i in range(20)
        for block in (0, 1)
    ]  # fmt: skip
    found = AttentionCorrelation(rows)
    told = found.correlation("sink")
    assert told.n == 20
    assert told.rho == pytest.approx(spearmanr(cost, sink).statistic)
    x, y, z = (rankdata(v) - 10.5 for v in (cost, sink, shift))
    left = [v - z * (v @ z) / (z @ z) for v in (x, y)]
    assert told.partial == pytest.approx(np.corrcoef(*left)[0, 1])
    assert told.interval.low < told.partial < told.interval.high
    assert np.isnan(found.correlation("spike").partial)  # which doesn't vary
    assert found.correlation("sink", "matched_k").n == 0  # there are none
    again = [row | {"edit": "sign_flip-1", "delta_nll": [-x for x in row["delta_nll"]]} for row in rows]
    both = AttentionCorrelation([*rows, *again])  # kinds of damage stay apart
    assert both.correlation("sink").rho == pytest.approx(told.rho)
    assert both.correlation("sink", edit="sign_flip-1").rho == pytest.approx(-told.rho)


def test_places_of_facts_are_means_over_facts_and_go_with_sensitivity_by_rank():
    def place(fact, block, effect):
        return {
            "fact": fact, "status": "ok", "known": True, "corruption": "subject", "restored": 1, "sublayer": "ffn",
            "position": "subject-last", "block": block, "effect": effect, "sensitivity": [3.0, 1.0, 2.0][block],
        }  # fmt: skip

    rows = [place(f, b, e) for f, effects in (("a", (9.0, 1.0, 2.0)), ("b", (7.0, 1.0, 4.0))) for b, e in
            enumerate(effects)]  # fmt: skip
    rows.append({"fact": "c", "status": "empty", "known": False})
    found = Localization(FactSpec(), rows)
    assert found.known == ["a", "b"]
    assert [(each["block"], each["effect"], each["facts"]) for each in found.places] == [
        (0, 8.0, 2),
        (2, 3.0, 2),
        (1, 1.0, 2),
    ]
    assert found.correlation() == pytest.approx(1.0)
    assert np.isnan(found.correlation("noise"))


def test_facts_of_a_file_are_asked_of_a_model_in_hand(tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,subject,answer,alternative\nThe colour of grass is,grass,green,blue\n")
    model = tiny()
    model.resize_token_embeddings(258)
    how = {"calibration": CALIBRATION, "draws": 2, "restored": (1,)}
    found = esa_ray.knowledge_localization(model, str(tmp_path / "mine.csv"), tokenizer=byte_tokenizer(), **how)
    assert {each["subject"] for each in found.rows} == {"grass"}
    with pytest.raises(EsaError, match="give the model's tokenizer"):
        esa_ray.knowledge_localization(model, str(tmp_path / "mine.csv"), **how)
    with pytest.raises(EsaError, match="limit= stands in the spec"):
        esa_ray.knowledge_localization(model, FactSpec(), tokenizer=byte_tokenizer(), limit=3)
