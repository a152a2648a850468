"""What roles measure, against their definitions spelled out, and against other libraries."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy.stats import entropy, kendalltau

from esa_ray.interpret.roles import ROLES, Bench, measured, mediated
from esa_ray.interpret.roles.base import Shown, Target
from esa_ray.interpret.roles.bigram import contrast
from esa_ray.interpret.roles.measure import _target
from esa_ray.interpret.roles.tables import Bigrams, log_unigram
from esa_ray.interpret.roles.texts import repeated
from esa_ray.interpret.roles.token_specific import TokenSpecific
from esa_ray.models.addressing import catalogue
from esa_ray.models.sites import Site
from esa_ray.perturb.edit import Applied, perturbed
from esa_ray.spec import PerturbSpec
from esa_ray.spec import roles as spec
from esa_ray.spec.roles import RoleSpec
from tests.interpret.planted import circuits
from tests.interpret.planted.claiming import Weight, bench_of, the_weight, zeroed
from tests.interpret.planted.facts import prompts
from tests.tiny import random_windows, state_bits, tiny
from tests.tiny_mixers import tiny_mixer

DOWN = "model.layers.1.mlp.down_proj.weight"
WEIGHT = Weight(DOWN, "down", 3, 5)


def bench(model=None, **more):
    model = model or tiny("llama")
    settings = {"windows": random_windows(3, 12), "calibration": random_windows(40, 12, seed=1), "spec": RoleSpec()}
    return Bench(model, catalogue(model), **settings | more)


def damage(made, weight=WEIGHT, **edit):
    where = {weight.tensor: np.array([made.catalogue[weight.tensor].index(weight.row, weight.col)])}
    return perturbed(made.catalogue, where, PerturbSpec(**edit or {"kind": "zero"}), 0)


def rows_of(made, weight=WEIGHT, **edit):
    return {row["role"]: row for row in measured(made, weight, damage(made, weight, **edit))}


@torch.no_grad()
def logits(model, windows):
    return model(torch.as_tensor(windows), use_cache=False).logits.double().numpy()


def nll(model, windows):
    z = logits(model, windows)[:, :-1]
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, windows[:, 1:, None], -1)[..., 0]


def damaged_twin(made, weight=WEIGHT, factor=0.0):
    twin = tiny("llama")
    with torch.no_grad():
        twin.get_parameter(weight.tensor)[weight.row, weight.col] *= factor
    return twin


def test_there_is_a_role_for_every_name_and_it_says_what_it_is():
    assert tuple(ROLES) == spec.ROLES == tuple(spec.SIDES)
    assert all(role.measured and role.mediator for role in ROLES.values())


def test_what_a_model_has_not_is_empty_and_says_why_and_is_never_zero():
    rows = rows_of(bench())
    for role in ("spike", "sink", "fact"):
        assert rows[role]["status"] == "empty"
        assert rows[role]["error"]
        assert not {"change", "changes", "intact", "delta_nll"} & rows[role].keys()
        row = mediated(bench(), WEIGHT, role, damage(bench()))
        assert row["status"] == "empty"
        assert "held_nll" not in row


def test_confidence_is_entropy_and_its_condition_kendalls_tau():
    made = bench()
    row, twin = rows_of(made, kind="scale", strength=-40.0)["confidence"], damaged_twin(made, factor=-40.0)
    before, after = logits(made.model, made.windows)[:, :-1], logits(twin, made.windows)[:, :-1]
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (before, after))
    assert row["changes"] == pytest.approx((entropy(q, axis=-1) - entropy(p, axis=-1)).mean(-1), abs=1e-6)
    assert row["intact"] == pytest.approx(entropy(p, axis=-1).mean(), rel=1e-6)
    pairs = zip(*(z.reshape(-1, 48) for z in (before, after)), strict=True)
    tau = np.mean([kendalltau(a, b).statistic for a, b in pairs])
    assert tau < 0.95
    assert row["condition"] == pytest.approx(tau, abs=0.03)  # of 512 pairs


def test_frequency_is_the_share_of_the_logits_change_along_the_log_unigram():
    made = bench()
    row = rows_of(made)["frequency"]
    moved = (logits(damaged_twin(made), made.windows) - logits(made.model, made.windows))[:, :-1]
    counts = np.bincount(made.calibration.ravel(), minlength=48) + 1
    u = np.log(counts) - np.log(counts).mean()
    along, all_of_it = moved @ u / np.linalg.norm(u), moved - moved.mean(-1, keepdims=True)
    assert row["change"] == pytest.approx((along**2).sum() / (all_of_it**2).sum(), rel=1e-3)
    assert np.mean(row["changes"]) == pytest.approx(row["change"])


def induction_bench():
    planted = circuits.induction()
    made = bench_of(planted)
    return made, the_weight(planted)


def test_attention_roles_are_what_the_models_own_patterns_say():
    made, weight = induction_bench()
    rows = {row["role"]: row for row in measured(made, weight, zeroed(made, weight))}
    patterns = made.model.__class__(made.model.config)
    patterns.load_state_dict(made.model.state_dict())
    patterns.set_attn_implementation("eager")

    def first_head(windows):
        with torch.no_grad():
            return (
                patterns(torch.as_tensor(windows), output_attentions=True, use_cache=False).attentions[0][:, 0].numpy()
            )

    before = first_head(made.windows)
    with torch.no_grad():
        patterns.get_parameter(weight.tensor)[weight.row, weight.col] = 0
    after = first_head(made.windows)
    assert made.role("previous-token").heads == {0: (0,)}
    assert made.role("induction").heads == {1: (0, 1)}
    expected = [np.diagonal(a - b, -1, -2, -1).mean() for a, b in zip(after, before, strict=True)]
    assert rows["previous-token"]["changes"] == pytest.approx(expected, abs=1e-5)


def test_position_and_induction_are_slopes_and_halves_of_the_loss():
    made, weight = induction_bench()
    rows = {row["role"]: row for row in measured(made, weight, zeroed(made, weight))}
    text, before = made.repeated, [nll(made.model, w) for w in (made.windows, made.repeated.windows)]
    with zeroed(made, weight):
        after = [nll(made.model, w) for w in (made.windows, text.windows)]
    rise = after[0] - before[0]
    slopes = [np.polyfit(np.arange(rise.shape[1]), window, 1)[0] for window in rise]
    assert rows["position"]["changes"] == pytest.approx(slopes, abs=1e-6)
    assert rows["position"]["delta_nll"] == pytest.approx(rise.mean(-1), abs=1e-6)
    # The second time begins with a token that nothing foretells, and which so counts with the first.
    rise, begins = after[1] - before[1], text.lead + text.period
    halves = rise[:, begins:].mean(-1) - rise[:, :begins].mean(-1)
    assert (text.windows[:, begins + 1 :] == text.windows[:, text.lead + 1 : begins]).all()
    assert rows["induction"]["changes"] == pytest.approx(halves, abs=1e-6)


def test_a_sinks_share_of_heads_is_a_count_but_for_the_steps_width():
    made = bench_of(circuits.sink())
    row = rows_of(made, Weight(DOWN, "down", 3, 5))["sink"]
    assert row["intact"] == pytest.approx(1 / 18, abs=1e-3)  # one head of six in each of three blocks


def test_a_spike_is_told_at_its_place_with_its_sign():
    planted = circuits.spike()
    made, weight = bench_of(planted), the_weight(planted)
    spike = next(found for found in made.of("evaluation").spiking if found.channel == planted.row)
    assert sorted(spike.heights) == [1, 2]
    assert bool(spike.places(1)[:, 0].all())
    flipped = rows_of(made, weight, kind="sign_flip")["spike"]
    # It stands as high on the other side, which its size alone wouldn't tell.
    assert flipped["change"] == pytest.approx(-2 * flipped["intact"], rel=0.05)


@pytest.mark.parametrize(
    ("circuit", "softened", "roles"),
    [
        ("induction", 0.8, {"previous-token", "induction", "position", "confidence"}),
        ("sink", 0.12, {"sink"}), ("spike", 1.0, {"spike"}), ("bigram", 1.0, {"bigram", "confidence"}),
        ("fact", 1.0, {"fact"}),
    ],
)  # fmt: skip
def test_the_first_order_is_what_a_small_change_does(circuit, softened, roles):
    planted = getattr(circuits, circuit)()
    planted.model.double()  # fp32 would round such changes
    # So that attention isn't all or nothing.
    planted.model.get_parameter(planted.tensor)[planted.row, planted.col] *= softened
    at = {planted.tensor: np.array([catalogue(planted.model)[planted.tensor].index(planted.row, planted.col)])}
    only = RoleSpec(roles=tuple(sorted(roles)))
    made = bench_of(planted, weights=at, facts=prompts(planted) if circuit == "fact" else None, spec=only)
    rows = rows_of(made, the_weight(planted), kind="scale", strength=0.998)
    for role in roles:
        assert abs(rows[role]["change"]) > 1e-7, role
        assert rows[role]["change"] == pytest.approx(rows[role]["first_order"], rel=0.03), role


def test_the_first_order_of_other_weights_is_null():
    made = bench(weights={DOWN: np.array([0])})
    assert rows_of(made)["confidence"]["first_order"] is None


def test_a_resumed_pass_measures_what_a_whole_one_does():
    resumed, whole = bench(), bench()
    whole.of("evaluation").text._resumable = None
    assert resumed.of("evaluation").text.start(resumed.catalogue[DOWN]) == 1
    for role, row in rows_of(resumed).items():
        if row["status"] == "ok" and role != "token-specific":
            assert row["changes"] == pytest.approx(rows_of(whole)[role]["changes"], abs=1e-6), role


def test_nothing_of_the_model_is_changed():
    made = bench(weights={DOWN: np.array([3])})
    before = state_bits(made.model)
    rows_of(made)
    mediated(made, WEIGHT, "frequency", damage(made))
    assert state_bits(made.model) == before
    assert not any(parameter.requires_grad for parameter in made.model.parameters())


def test_damage_that_leads_to_no_finite_loss_is_diverged_and_has_no_change():
    made = bench()
    weight = made.model.get_parameter(DOWN)

    @contextmanager
    def spoilt():
        before = float(weight[3, 5])
        weight[3, 5] = torch.nan
        yield Applied(1, 1, torch.nan)
        weight[3, 5] = before

    row = {row["role"]: row for row in measured(made, WEIGHT, spoilt())}["confidence"]
    assert row["status"] == "diverged"
    assert "change" not in row
    assert mediated(made, WEIGHT, "confidence", spoilt())["status"] == "diverged"


def test_a_model_without_attention_has_the_other_roles():
    made = bench(tiny_mixer("mamba"))
    tensor = next(t for t in made.catalogue.select(("mixer_out",)) if t.layer == 1)
    rows = rows_of(made, Weight(tensor.name, "mixer_out", 3, 5))
    assert {rows[role]["status"] for role in ("sink", "induction", "previous-token", "position")} == {"empty"}
    assert {rows[role]["status"] for role in ("confidence", "frequency")} == {"ok"}


def test_losses_of_facts_are_those_of_their_answers():
    planted = circuits.fact()
    asked = prompts(planted)
    made, weight = bench_of(planted, facts=asked, spec=RoleSpec(roles=("fact",))), the_weight(planted)
    with torch.no_grad():
        before = asked.nll(planted.model(torch.from_numpy(asked.windows)).logits)
        with zeroed(made, weight):
            z = planted.model(torch.from_numpy(asked.windows)).logits
    row = rows_of(made, weight)["fact"]
    assert row["delta_nll"] == pytest.approx((asked.nll(z) - before).tolist(), abs=1e-5)
    d = asked.differences(z).numpy() - asked.intact
    assert row["changes"] == pytest.approx(d[:2] - asked.ratio * d[2:], abs=1e-4)


def test_collapse_alone_is_no_bigrams():
    losses = np.random.default_rng(0).exponential(2.0, (4, 200))
    foretold = np.random.default_rng(1).random((4, 200)) < np.exp(-losses)  # what is sure is foretold more often
    weights = contrast(foretold, losses)
    collapse = np.log(50_000) - losses
    plain = np.array([c[f].mean() - c[~f].mean() for c, f in zip(collapse, foretold, strict=True)])
    assert (plain > 0.5).all()
    assert np.abs((weights * collapse).sum(-1)).max() < 0.3 * plain.min()
    assert np.where(weights > 0, weights, 0).sum(-1) == pytest.approx(1)
    assert weights.sum(-1) == pytest.approx(0, abs=1e-9)


def test_types_hit_most_bear_their_part_of_the_rise():
    windows = np.array([[0, 1, 2, 3], [0, 1, 1, 4]])
    rise = np.array([[1.0, 3.0, -5.0], [1.0, 2.0, 0.0]])  # type 1: 4, type 2: 3, types 3 and 4 nothing
    types, shares = TokenSpecific.hit(windows, rise)
    assert types.tolist() == [1, 2]
    assert shares.tolist() == pytest.approx([4 / 7, 3 / 7])


def test_a_types_neuron_is_held_where_the_type_follows():
    made = bench()
    role = made.role("token-specific")
    intact = np.zeros((3, 11))
    damaged = np.zeros((3, 11))
    damaged[1, 4] = 1.0
    (place,) = role.places(Target(1, "up", 7, 2), damaged, intact)
    assert place.site == Site("neurons", 1, index=(7,))
    follows = np.pad(made.windows[:, 1:] == made.windows[1, 5], ((0, 0), (0, 1)))
    assert (place.positions.numpy() == follows).all()
    (place,) = role.places(Target(1, "down", 7, 2), damaged, intact)
    assert place.site == Site("ffn", 1, index=(7,))


def test_rows_of_stacked_matrices_are_counted_in_their_component():
    made = bench(tiny("phi3"))
    several = (t for t in made.catalogue.tensors if [part.component for part in t.parts] == ["gate", "up"])
    stacked = next(several)
    assert _target(made, Weight(stacked.name, "up", stacked.rows // 2 + 3, 0)).row == 3


def test_random_tokens_are_repeated_and_seeded():
    windows = random_windows(4, 21)
    first, again, other = (repeated(windows, seed).windows for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert first.shape == (4, 20)
    assert all(len(np.unique(window)) == 10 for window in first)


def test_tables_count():
    windows = np.array([[1, 2, 1, 2, 1, 3]])
    assert np.exp(log_unigram(windows, 4)) == pytest.approx(np.array([1, 4, 3, 2]) / 10)
    found = Bigrams(windows).of(np.array([[1, 2, 1, 0], [3, 1, 3, 3]]))
    assert found.predicted.tolist() == [[True, True, False], [False, False, False]]
    assert found.told.tolist() == [[True, True, True], [False, True, False]]


def test_a_bench_tells_what_is_hurt_and_what_text_becomes():
    made = bench()
    row = rows_of(made)["token-specific"]
    losses = nll(damaged_twin(made), made.windows) - nll(made.model, made.windows)
    sums = np.bincount(made.windows[:, 1:].ravel(), losses.ravel(), 48)
    assert row["hurt"][0] == str(sums.argmax())
    assert len(row["before"].split()) == len(row["after"].split()) == 24
    assert row["prompt"] == " ".join(map(str, made.windows[0]))


def test_shown_of_an_intact_model_changes_nothing():
    made = bench()
    made.ready()
    for role in made.there:
        shown = made.intact[role.name]
        if role.differentiable:
            assert role.change(shown, Shown(shown.values, shown.losses)).windows == pytest.approx(0)
