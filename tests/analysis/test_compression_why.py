"""Shares of factors, Pareto fronts and block errors, against brute force, statsmodels and planted answers."""

from itertools import permutations, product

import numpy as np
import polars as pl
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

import analysis
from analysis.compression.factors import REST, SEEDS, _exact, _sampled, projection, shapley
from analysis.compression.fronts import beats
from analysis.report.sections.compression import excess, front
from esa_ray.spec import QuantizeSpec
from tests.analysis.compressed import compressed, prune

SCORES, UPDATES = ("act_mag", "regional", "magnitude"), ("none", "refit")
GRID = [
    prune(score=score, update=update, allocation=allocation, sparsity=s)
    for score, update, allocation, s in product(SCORES, UPDATES, ("uniform", "damage"), (0.5, 0.6, 0.7))
]


def ripple(spec, seed, size):
    """A planted wobble of windows and seeds, the same for all compressions but for a phase."""
    return 1 + size * np.cos(np.arange(16) * 1.7 + seed + len(spec.label))


def shares(study, text="home"):
    return {r["term"]: r for r in analysis.factors(study).filter(pl.col("text") == text).to_dicts()}


def planted(score=0.0, update=0.0, both=0.0, sparsity=0.0, noise=0.0):
    """ln excess as a sum of effects: of the score, the update, both together, and sparsity."""

    def cost(p, seed, text):
        y = score * SCORES.index(p.score) + update * (p.update == "refit") + sparsity * p.sparsity
        return np.exp(y + both * (p.score == "regional") * (p.update == "refit")) * ripple(p, seed, noise)

    return cost


def test_shares_in_a_balanced_grid_are_those_of_an_analysis_of_variance(tmp_path):
    rng = np.random.default_rng(0)
    noise = {p.label: rng.normal() for p in GRID}
    study = compressed(tmp_path, GRID, lambda p, s, t: np.exp(noise[p.label]), texts=("home",))
    data = pl.DataFrame([p.model_dump() for p in GRID]).with_columns(y=pl.Series(noise.values())).to_pandas()
    fit = ols("y ~ (C(score) + C(update) + C(allocation) + C(sparsity))**2", data).fit()
    squares = anova_lm(fit, typ=2)["sum_sq"]
    found = shares(study)
    for name, value in (squares / squares.sum()).items():
        term = REST if name == "Residual" else name.replace("C(", "").replace(")", "").replace(":", " × ")
        term = term if term in found else " × ".join(reversed(term.split(" × ")))
        assert found[term]["share"] == pytest.approx(value, abs=1e-9)
        if term != REST:
            assert found[term]["alone"] == pytest.approx(value, abs=1e-9)


def test_a_planted_factor_that_dominates_is_found_with_its_share(tmp_path):
    study = compressed(tmp_path, GRID, planted(score=0.3, update=-0.1, noise=0.05), texts=("home",))
    found = shares(study)
    # Variances of three equally spaced levels 0.3 apart, and of two that are 0.1 apart.
    score, update = 0.3**2 * 2 / 3, 0.1**2 / 4
    assert found["score"]["share"] == pytest.approx(score / (score + update), abs=0.01)
    assert found["update"]["share"] == pytest.approx(update / (score + update), abs=0.01)
    assert found["score"]["low"] <= found["score"]["share"] <= found["score"]["high"]
    assert max((r for r in found.values()), key=lambda r: r["share"])["term"] == "score"


def test_a_planted_interaction_is_found(tmp_path):
    study = compressed(tmp_path, GRID, planted(both=0.5), texts=("home",))
    found = shares(study)
    # The table of means 0 0 0.5 / 0 0 0: what is left without its rows' and columns' means.
    cells = np.array([[0, 0.5, 0], [0, 0, 0.0]])
    left = cells - cells.mean(0) - cells.mean(1, keepdims=True) + cells.mean()
    assert found["score × update"]["share"] == pytest.approx((left**2).mean() / cells.var(), abs=1e-6)
    assert found["score × update"]["role"] == "interaction"
    assert found["update × sparsity"]["share"] == pytest.approx(0, abs=1e-6)


def test_what_seeds_differ_by_is_a_share_of_its_own(tmp_path):
    by_seed = {1: -0.1, 2: 0.0, 3: 0.1}
    cost = planted(score=0.3)
    study = compressed(tmp_path, GRID, lambda p, s, t: cost(p, s, t) * np.exp(by_seed[s]), texts=("home",))
    score, seeds = 0.3**2 * 2 / 3, 0.1**2 * 2 / 3
    assert shares(study)[SEEDS]["share"] == pytest.approx(seeds / (score + seeds), abs=1e-3)


def test_shares_beyond_size_leave_sparsity_out(tmp_path):
    study = compressed(tmp_path, GRID, planted(score=0.3, update=-0.3, sparsity=20.0), texts=("home",))
    found = shares(study)
    score, update = 0.3**2 * 2 / 3, 0.3**2 / 4
    assert found["sparsity"]["share"] > 0.9
    assert found["sparsity"]["beyond_size"] is None
    assert found["score"]["beyond_size"] == pytest.approx(score / (score + update), abs=1e-3)


def test_shares_of_an_unbalanced_grid_add_up_and_show_what_comes_along(tmp_path):
    # SparseGPT's score only ever comes with its update.
    specs = [prune(m, sparsity=s) for m in ("wanda", "wanda++", "sparsegpt") for s in (0.5, 0.6, 0.7)]
    cost = {"act_mag": 1.0, "regional": 0.9, "obs": 0.4}
    study = compressed(
        tmp_path, specs, lambda p, s, t: cost[p.score] * p.sparsity * ripple(p, s, 0.02), texts=("home",)
    )
    found = shares(study)
    assert sum(r["share"] for r in found.values()) == pytest.approx(1)
    assert found["update"]["share"] > 0.05
    assert found["update"]["alone"] == pytest.approx(0, abs=1e-9)
    assert found["update"]["share"] == pytest.approx(found["group"]["share"])  # they can't be told apart


def test_random_orders_come_near_to_all_orders():
    rng = np.random.default_rng(1)
    terms = {f"t{i}": rng.normal(size=(30, 2)) for i in range(5)}
    y, before = rng.normal(size=30), np.ones((30, 1))
    exact, sampled = shapley(terms, before), _sampled(list(terms), terms, before)
    for name in terms:
        assert y @ sampled[name] @ y == pytest.approx(y @ exact[name] @ y, abs=0.05 * (y @ y))
    whole = projection(np.hstack([before, *terms.values()])) - projection(before)
    assert sum(exact.values()) == pytest.approx(whole)
    assert sum(sampled.values()) == pytest.approx(whole)


def test_a_share_is_the_mean_over_both_orders_of_two_terms():
    rng = np.random.default_rng(2)
    a, b, y = rng.normal(size=(9, 1)), rng.normal(size=(9, 1)), rng.normal(size=9)
    rss = lambda *x: float(((y - np.hstack(x) @ np.linalg.lstsq(np.hstack(x), y, rcond=None)[0]) ** 2).sum())  # noqa: E731
    one = np.ones((9, 1))
    expected = ((rss(one) - rss(one, a)) + (rss(one, b) - rss(one, a, b))) / 2
    found = _exact(["a", "b"], lambda s: projection(np.hstack([one, *({"a": a, "b": b}[n] for n in sorted(s))])))
    assert y @ found["a"] @ y == pytest.approx(expected)


def test_a_grid_that_is_too_small_says_so(tmp_path):
    study = compressed(tmp_path / "a", [prune("wanda"), prune("sparsegpt")], planted2, texts=("home",))
    (row,) = analysis.factors(study).to_dicts()
    assert row["why_not"] == "2 compressions can't tell 1 effects of score, group, update apart; add more"
    alone = compressed(tmp_path / "b", [prune("wanda")], planted2, texts=("home",))
    assert "differ in a factor" in analysis.factors(alone)["why_not"][0]


def planted2(p, seed, text):
    return 0.5 if p.score == "obs" else 0.7


def test_compressions_without_a_positive_excess_are_left_out_and_counted(tmp_path):
    cost = planted(score=0.3)
    study = compressed(
        tmp_path,
        GRID,
        lambda p, s, t: None if p is GRID[0] else -0.1 if p is GRID[1] else cost(p, s, t),
        texts=("home",),
    )
    table = analysis.factors(study)
    assert set(table["left_out"]) == {2}
    assert set(table["compressions"]) == {len(GRID) - 2}


def test_factors_of_quantization_are_its_own(tmp_path):
    specs = [QuantizeSpec(bits=b, kept=0.001, keep_by=k) for b in (2, 3, 4) for k in ("tacq", "fisher", "random")]
    cost = {"tacq": 0.5, "fisher": 0.6, "random": 1.0}
    study = compressed(tmp_path, specs, lambda q, s, t: cost[q.keep_by] / q.bits**2, texts=("home",))
    found = shares(study)
    assert found["bits"]["share"] + found["keep_by"]["share"] == pytest.approx(1)
    assert found["keep_by"]["beyond_size"] == pytest.approx(1)


def brute(size, loss):
    """The front by its definition, one pair at a time."""
    n = range(len(size))
    return [not any(size[j] <= size[i] and loss[j] <= loss[i] and (size[j], loss[j]) != (size[i], loss[i]) for j in n)
            for i in n]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    size, loss = rng.integers(0, 6, 25).astype(float), rng.integers(0, 9, 25) / 10
    assert (~beats(size, loss).any(axis=0)).tolist() == brute(size, loss)


def test_fronts_name_who_beats_whom_and_how_surely(tmp_path):
    specs = [prune(m, sparsity=s) for m in ("wanda", "sparsegpt") for s in (0.5, 0.6)]
    # At 60% SparseGPT costs no more than Wanda at 50% does.
    cost = {("act_mag", 0.5): 0.5, ("act_mag", 0.6): 0.8, ("obs", 0.5): 0.3, ("obs", 0.6): 0.4}
    study = compressed(tmp_path, specs, lambda p, s, t: cost[p.score, p.sparsity] * ripple(p, s, 0.05), texts=("home",))
    table = {r["label"]: r for r in analysis.fronts(study).to_dicts()}
    on = {label for label, r in table.items() if r["front"]}
    assert on == {"prune-obs-tensor-0.5-sparsegpt", "prune-obs-tensor-0.6-sparsegpt"}
    assert [table[label]["probability"] for label in sorted(on)] == [1, 1]
    beaten = table["prune-act_mag-row-0.5"]
    assert (beaten["probability"], beaten["beaten_by"]) == (0, "prune-obs-tensor-0.5-sparsegpt")
    told = {(row[1], row[2]): row[-1] for row in front(study).tables[0].rows}
    # At 60% Wanda loses more than SparseGPT at the same size; what lies on the front is beaten by none.
    assert (told["50%", "wanda"], told["60%", "wanda"], told["60%", "sparsegpt"]) == (
        "sparsegpt at 50%", "sparsegpt at 60%", ""
    )  # fmt: skip


def test_two_that_can_not_be_told_apart_share_the_front(tmp_path):
    rng = np.random.default_rng(0)
    noise = {(m, s): 0.1 * rng.normal(size=16) for m in ("act_mag", "obs") for s in (1, 2, 3)}
    centre = {m: np.mean([noise[m, s].mean() for s in (1, 2, 3)]) for m in ("act_mag", "obs")}
    study = compressed(
        tmp_path, [prune("wanda"), prune("sparsegpt")],
        lambda p, s, t: 0.5 + noise[p.score, s] - centre[p.score], texts=("home",),
    )  # fmt: skip
    first, second = analysis.fronts(study)["probability"]
    assert first + second == pytest.approx(1)
    assert 0.3 < first < 0.7


def test_a_few_weights_more_are_no_advantage_in_size(tmp_path):
    # Exactly half of a tensor, and half of each row rounded down.
    specs = [prune("wanda", sparsity=0.498), prune("sparsegpt", sparsity=0.5), prune("wanda++", sparsity=0.51)]
    cost = {"act_mag": 0.3, "obs": 0.4, "regional": 0.5}
    study = compressed(tmp_path, specs, lambda p, s, t: cost[p.score], texts=("home",))
    table = {r["method"]: (r["size"], r["front"]) for r in analysis.fronts(study).to_dicts()}
    assert table == {"wanda": (0.498, True), "sparsegpt": (0.5, False), "wanda++": (0.51, True)}


def test_neurons_compete_by_their_share_of_all_weights_that_others_may_take_from(tmp_path):
    # Half of the MLPs' neurons are 30% of the weights.
    specs = [prune("wanda", sparsity=0.3), prune("wanda"), prune(pattern="neuron", group="block")]
    study = compressed(tmp_path, specs, lambda p, s, t: 0.4 if p.pattern == "neuron" else p.sparsity, texts=("home",))
    table = {r["label"]: (r["size"], r["front"]) for r in analysis.fronts(study).to_dicts()}
    assert table["prune-act_mag-block-neuron-0.5"] == (pytest.approx(0.3), False)
    assert table["prune-act_mag-row-0.5"] == (0.5, True)


def test_what_diverged_in_a_seed_is_on_no_front(tmp_path):
    study = compressed(
        tmp_path, [prune("wanda"), prune("sparsegpt")],
        lambda p, s, t: None if p.score == "obs" and s == 1 else 0.5 if p.score == "act_mag" else 0.1, texts=("home",),
    )  # fmt: skip
    table = {r["method"]: r for r in analysis.fronts(study).to_dicts()}
    assert (table["sparsegpt"]["front"], table["sparsegpt"]["excess"]) == (False, None)
    assert (table["wanda"]["front"], table["wanda"]["probability"]) == (True, 1)


def test_quantizations_compete_by_bits(tmp_path):
    specs = [QuantizeSpec(bits=b) for b in (2, 3, 4)]
    study = compressed(tmp_path, specs, lambda q, s, t: {2: 0.9, 3: 0.2, 4: 0.3}[q.bits], texts=("home",))
    table = analysis.fronts(study)
    assert set(table["axis"]) == {"bits"}
    assert dict(table.select("setting", "front").iter_rows()) == {"2 bits g64": True, "3 bits g64": True,
                                                                "4 bits g64": False}  # fmt: skip


def growing(p, seed):
    return [{"act_mag": 0.1, "regional": 0.08, "magnitude": 0.2}[p.score] * p.sparsity * (1 + i) * (1 + 0.1 * seed)
            for i in range(4)]  # fmt: skip


def test_block_errors_are_means_over_seeds_by_depth(tmp_path):
    study = compressed(tmp_path, [prune("wanda")], planted(), blocks=growing)
    table = analysis.block_errors(study)
    assert table["layer"].to_list() == [0, 1, 2, 3]
    assert table["error"].to_list() == pytest.approx([0.05 * i * 1.2 for i in (1, 2, 3, 4)])
    assert table["least"].to_list() == pytest.approx([0.05 * i * 1.1 for i in (1, 2, 3, 4)])
    assert set(table["sparsity"]) == {0.5}


def test_blocks_of_which_nothing_was_compressed_have_no_error(tmp_path):
    partly = lambda p, s: [None, *growing(p, s)[1:3], None]  # noqa: E731
    specs = [prune(m, sparsity=s) for m in ("wanda", "magnitude") for s in (0.5, 0.6)]
    study = compressed(tmp_path, specs, lambda p, s, t: sum(growing(p, s)), blocks=partly, texts=("home",))
    table = analysis.block_errors(study)
    assert set(table["layer"]) == {1, 2}
    assert table["error"].is_finite().all()
    found = analysis.error_correlations(study).filter(pl.col("speaks_of") == "all")
    assert found["spearman"].item() == pytest.approx(1)


def test_the_correlation_over_all_is_spearmans_and_at_equal_size_it_can_turn(tmp_path):
    # Within a sparsity the method with the larger error costs less.
    study = compressed(
        tmp_path, GRID, lambda p, s, t: 100 ** p.sparsity - 0.1 * sum(growing(p, 0)), blocks=growing, texts=("home",)
    )  # fmt: skip
    table = {r["speaks_of"]: r for r in analysis.error_correlations(study).to_dicts()}
    cost = [r["excess"] for r in analysis.excess(study).to_dicts()]
    label = analysis.excess(study)["label"].to_list()
    errors = {p.label: np.mean([sum(growing(p, s)) for s in (1, 2, 3)]) for p in GRID}
    expected = stats.spearmanr([errors[name] for name in label], cost).statistic
    assert table["all"]["spearman"] == pytest.approx(expected)
    assert table["equal size"]["spearman"] == pytest.approx(-1)
    assert table["equal size"]["p"] < 0.001
    assert table["all"]["low"] < expected < table["all"]["high"]


def test_p_of_a_correlation_is_that_of_all_permutations(tmp_path):
    specs = [prune(m) for m in ("magnitude", "wanda", "sparsegpt", "wanda++", "gblm")]
    cost, error = dict(zip(specs, (1, 2, 3, 4, 5), strict=True)), dict(zip(specs, (2, 1, 3, 5, 4), strict=True))
    study = compressed(
        tmp_path, specs, lambda p, s, t: cost[p], blocks=lambda p, s: [error[p]] * 4, texts=("home",)
    )  # fmt: skip
    row = analysis.error_correlations(study).row(0, named=True)
    ranks = np.array([2, 1, 3, 5, 4]) - 3
    every = np.array([(np.array(order) - 3) @ ranks for order in permutations((1, 2, 3, 4, 5))])
    assert row["spearman"] == pytest.approx(0.8)
    assert row["p"] == pytest.approx((np.abs(every) >= 8).mean(), abs=0.02)


def test_too_few_compressions_have_no_correlation(tmp_path):
    study = compressed(tmp_path, [prune("wanda"), prune("wanda++")], planted(), blocks=growing, texts=("home",))
    assert "fewer than 4" in analysis.error_correlations(study)["why_not"][0]


def test_tables_say_which_text_is_in_domain(tmp_path):
    study = compressed(tmp_path, [prune("wanda")], lambda p, s, t: 0.5, texts=("home", "away"))
    assert [t.title.split(":")[0] for t in excess(study).tables] == ["home (in domain)", "away (out of domain)"]
