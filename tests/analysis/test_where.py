"""Where scores are high: planted depth, hot blocks, shares, spreads and structure, against brute force."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

import analysis
from analysis.scores.clusters import cut
from analysis.scores.depth import silent_blocks
from analysis.scores.pools import effective_number
from analysis.scores.residual import channel_layers, concentration, least_count, poisson_binomial_tail, shapes
from tests.analysis.brute import mean_jaccard, sets
from tests.analysis.conftest import with_tables
from tests.analysis.synthetic import HOT_CHANNEL, LAYERS, SHAPES


def test_depth_falls_as_planted_in_every_seed(synthetic):
    found = analysis.depth_pattern(synthetic[0])
    grad = found.filter(pl.col("metric") == "grad_x_weight")
    assert set(grad["component"]) == set(SHAPES)
    assert (grad["rho"] < -0.8).all()
    assert (grad["low"] <= grad["rho"]).all()
    assert (grad["low"] >= -1).all()
    profile = analysis.depth_profile(synthetic[0]).filter(pl.col("component") == "q")
    assert profile.filter(pl.col("metric") == "act_mag")["depth"].to_list() == pytest.approx(
        [i / (LAYERS - 1) for i in range(LAYERS)]
    )


def test_scores_without_a_magnitude_are_left_out(synthetic):
    for table in (analysis.hotspot_ranks, analysis.depth_pattern, analysis.sides, analysis.tail_summary):
        assert not table(synthetic[0])["metric"].str.contains("+", literal=True).any()


def test_hot_blocks_are_hot_in_every_seed(synthetic):
    found = analysis.hotspot_ranks(synthetic[0]).filter(pl.col("metric") == "grad_x_weight")
    assert set(found.filter("hot")["layer"]) == {0}
    assert found["rank_max"].max() == len(SHAPES) * LAYERS
    assert found["by_chance"][0] == pytest.approx(24 * (5 / 24) ** 4)


def stats_row(seed, layer, component, mean, n):
    return {"metric": "grad_x_weight", "seed": seed, "tensor": f"{layer}.{component}", "layer": layer,
            "component": component, "n": n, "mean": mean}  # fmt: skip


def test_attention_against_ffn_is_the_ratio_of_means(tmp_path):
    score_stats = [stats_row(s, 0, c, m * s, n) for s in (1, 2) for c, m, n in (("q", 6.0, 10), ("up", 2.0, 30))]
    chosen = [{"metric": "grad_x_weight", "mode": "global", "seed": s, "group": "super", "rank": r, "tensor": f"0.{c}",
               "layer": 0, "component": c, "flat": r} for s in (1, 2) for r, c in ((1, "q"), (2, "q"), (3, "q"), (4, "up"))]  # fmt: skip # noqa: E501
    row = analysis.sides(with_tables(tmp_path / "s", rankings=chosen, score_stats=score_stats)).row(0, named=True)
    assert row["ratio"] == pytest.approx(3)
    assert (row["weight_share"], row["mass_share"], row["set_share"]) == pytest.approx((0.25, 0.5, 0.75))
    assert (row["low"], row["high"]) == pytest.approx((3, 3))


def test_rows_of_a_component_within_a_stack_are_counted_as_if_it_stood_alone():
    alone, owner, lengths = np.array([0, 0, 1, 3]), np.array([0, 0, 0, 1]), np.array([4, 4])
    assert concentration(alone + 8, owner, lengths) == pytest.approx(concentration(alone, owner, lengths))


def test_mixers_are_a_side_of_their_own(tmp_path):
    parts = (("q", 6.0, 10), ("mixer_in", 8.0, 20), ("mixer_conv", 2.0, 10), ("up", 2.0, 30), ("decay", 99.0, 99))
    score_stats = [stats_row(s, 0, c, m * s, n) for s in (1, 2) for c, m, n in parts]
    chosen = [{"metric": "grad_x_weight", "mode": "global", "seed": s, "group": "super", "rank": r, "tensor": f"0.{c}",
               "layer": 0, "component": c, "flat": r} for s in (1, 2) for r, c in enumerate(["q", "mixer_in", "up", "up"], 1)]  # fmt: skip # noqa: E501
    found = analysis.sides(with_tables(tmp_path / "s", rankings=chosen, score_stats=score_stats))
    attention, mixer = found.iter_rows(named=True)
    assert (attention["side"], mixer["side"]) == ("attention", "mixer")
    assert (attention["ratio"], mixer["ratio"]) == pytest.approx((3, 3))  # (8·20 + 2·10)/30 over 2
    assert (attention["weight_share"], mixer["weight_share"]) == pytest.approx((10 / 70, 30 / 70))
    assert (attention["mass_share"], mixer["mass_share"]) == pytest.approx((60 / 300, 180 / 300))
    assert (attention["set_share"], mixer["set_share"]) == (0.25, 0.25)


def test_blocks_that_score_zero_throughout_are_told(tmp_path):
    score_stats = [stats_row(s, n, c, m, 10) | {"max": m * 9} for s in (1, 2) for n, c, m in
                   ((0, "q", 1.0), (1, "q", 0.0), (1, "up", 0.0), (2, "q", 0.0), (2, "up", s - 1.0))]  # fmt: skip
    assert silent_blocks(with_tables(tmp_path / "s", score_stats=score_stats)) == {"grad_x_weight": [1]}


def test_a_model_of_mixers_alone_has_no_sides_and_its_report_none(tmp_path):
    score_stats = [stats_row(1, n, "mixer_in", 1.0, 10) for n in (0, 1)]
    chosen = [{"metric": "grad_x_weight", "mode": "global", "seed": 1, "group": "super", "rank": 1,
               "tensor": "0.mixer_in", "layer": 0, "component": "mixer_in", "flat": 1}]  # fmt: skip
    assert analysis.sides(with_tables(tmp_path / "s", rankings=chosen, score_stats=score_stats)).is_empty()


def test_tails_average_seeds_and_leave_nulls_null(synthetic, made):
    table = analysis.tail_summary(synthetic[0])
    assert table.filter(pl.col("metric") == "grad_squared")["tail_index"].max() < 1.5
    assert (table["tail_index_min"] <= table["tail_index"]).all()
    old = analysis.tail_summary(analysis.load(made))
    assert old["tail_index"].to_list() == [None]
    assert old["top1pct_over_median"].to_list() == [20.0]


def test_the_effective_number_is_exp_of_the_entropy():
    assert effective_number(np.full(7, 1 / 7)) == pytest.approx(7)
    p = np.array([0.7, 0.2, 0.1, 0.0])
    assert effective_number(p) == pytest.approx(np.exp(stats.entropy(p)))


def test_spread_of_a_set_counts_layers(synthetic):
    study = synthetic[0]
    row = analysis.spread(study).filter(
        (pl.col("metric") == "grad_x_weight") & (pl.col("mode") == "global") & (pl.col("k") == 40)
    ).row(0, named=True)  # fmt: skip
    chosen = study.rankings.filter((pl.col("metric") == "grad_x_weight") & (pl.col("mode") == "global"))
    values = [np.exp(stats.entropy(m["layer"].value_counts()["count"])) for _, m in chosen.group_by("seed")]
    assert row["effective_layers"] == pytest.approx(np.mean(values))
    assert row["top_layer"] == 0
    shares = analysis.layer_shares(study).group_by("metric", "mode", "k").agg(pl.col("share").sum())
    assert shares["share"].to_numpy() == pytest.approx(1)
    per_layer = analysis.spread(study).filter(pl.col("mode") == "per_layer")
    assert per_layer["effective_layers"].to_numpy() == pytest.approx(LAYERS)


def test_modes_are_compared_at_equal_numbers_of_weights(synthetic):
    study = synthetic[0]
    row = analysis.mode_comparison(study).filter(pl.col("metric") == "grad_x_weight").row(0, named=True)
    assert (row["k"], row["n_weights"]) == (6, 36)  # 6 in each of 6 layers is the most that fits into 40
    whole = sets(study.rankings, 36, metric="grad_x_weight", mode="global")
    other = sets(study.rankings, 6, metric="grad_x_weight", mode="per_layer")
    assert row["shared"] == pytest.approx(np.mean([len(whole[s] & other[s]) / len(whole[s] | other[s]) for s in whole]))
    assert row["global_jaccard"] == pytest.approx(mean_jaccard(whole))
    assert row["difference"] == pytest.approx(mean_jaccard(whole) - mean_jaccard(other))


def test_costs_divide_by_the_weights_damaged(synthetic):
    found = {(r["mode"], r["k"]): r for r in analysis.mode_costs(synthetic[0]).iter_rows(named=True)}
    assert found["global", 40]["per_weight"] == pytest.approx(1.0 / 40)
    assert found["per_layer", 40]["per_weight"] == pytest.approx(2.0 / 240)


def test_shapes_are_worked_out_from_addresses(synthetic, tmp_path):
    assert set(shapes(synthetic[0]).values()) == set(SHAPES.values())
    rows, score_stats = [], []
    # "fused" holds q (8 rows) and then k (4) over 5 columns; "turned" is stored (in, out); "woven" alternates rows.
    for tensor, component, n, place in (
        ("fused", "q", 40, lambda r, c: r * 5 + c),
        ("fused", "k", 20, lambda r, c: (8 + r) * 5 + c),
        ("turned", "q", 40, lambda r, c: c * 12 + r),
        ("turned", "k", 20, lambda r, c: c * 12 + 8 + r),
        ("woven", "v", 40, lambda r, c: (r + 2 * (r // 3)) * 5 + c),
        ("lonely", "v", 40, lambda r, c: 0),
    ):
        score_stats.append(stats_row(1, 0, component, 1.0, n) | {"tensor": tensor})
        for r, c in ((0, 0), (1, 3), (3, 1), (2, 4)) if tensor != "lonely" else ((0, 0),):
            rows.append({
                "metric": "grad_x_weight", "mode": "global", "seed": 1, "group": "super", "rank": 1, "layer": 0,
                "tensor": tensor, "component": component, "row": r, "col": c, "flat": place(r, c),
            })  # fmt: skip
    found = shapes(with_tables(tmp_path / "s", rankings=rows, score_stats=score_stats))
    assert found == {
        ("fused", "q", None): (8, 5), ("fused", "k", None): (4, 5),
        ("turned", "q", None): (8, 5), ("turned", "k", None): (4, 5),
    }  # fmt: skip


def test_what_reads_a_latent_is_on_no_residual_channel(tmp_path):
    places = {"q": (1, 3), "v": (1, 4), "q_latent": (1, 5), "kv_latent": (2, 5), "attn_gate": (1, 6), "down": (7, 1)}
    for case, components, wanted in (("latent", places, {5, 6, 7}), ("plain", ("q", "v", "down"), {3, 4, 7})):
        rows = [{"metric": "grad_x_weight", "mode": "global", "seed": 1, "group": "super", "rank": 1, "layer": 0,
                 "tensor": c, "component": c, "row": places[c][0], "col": places[c][1], "flat": 0}
                for c in components]  # fmt: skip
        score_stats = [stats_row(1, 0, c, 1.0, 64) | {"tensor": c} for c in components]
        study = with_tables(tmp_path / case, rankings=rows, score_stats=score_stats)
        assert set(channel_layers(study)["channel"]) == wanted


def test_concentration_is_what_counting_gives():
    rng = np.random.default_rng(0)
    lengths = np.array([6, 40])
    owner = np.repeat([0, 1], [30, 20])
    index = np.concatenate([rng.integers(0, 6, 30), rng.integers(0, 40, 20)])
    counts = [np.bincount(index[owner == t], minlength=lengths[t]) for t in (0, 1)]

    def gini(x):
        return np.abs(np.subtract.outer(x, x)).sum() / (2 * len(x) ** 2 * x.mean())

    top, distinct, found = concentration(index, owner, lengths)
    assert top == pytest.approx(sum(c.max() for c in counts) / 50)
    assert distinct == pytest.approx(sum((c > 0).sum() for c in counts) / 50)
    assert found == pytest.approx((30 * gini(counts[0]) + 20 * gini(counts[1])) / 50)


def test_the_planted_channel_recurs_and_rows_and_columns_concentrate(synthetic):
    study = synthetic[0]
    channels = analysis.residual_channels(study).filter(
        (pl.col("metric") == "grad_x_weight") & (pl.col("mode") == "per_layer")
    )
    top = channels.row(0, named=True)
    assert (top["channel"], top["layers"], top["seeds"]) == (HOT_CHANNEL, LAYERS, 4)
    assert top["p_holm"] < 1e-4
    chance = stats.binom.sf(least_count(40, 32) - 1, 40, 1 / 32)
    assert top["expected"] == pytest.approx(LAYERS * chance)
    assert top["p"] == pytest.approx(chance**LAYERS)
    chosen = study.rankings.filter((pl.col("metric") == "grad_x_weight") & (pl.col("mode") == "per_layer"))
    writes = pl.col("component").is_in(["o", "down"])
    on_it = (writes & (pl.col("row") == HOT_CHANNEL)) | (~writes & (pl.col("col") == HOT_CHANNEL))
    assert top["weights"] == chosen.filter(on_it).height / 4
    assert (channels["p_holm"][1:] > 0.05).all()
    lines = analysis.line_concentration(study)
    grad = lines.filter((pl.col("metric") == "grad_x_weight") & (pl.col("mode") == "per_layer"))
    assert (grad["top_share"] > 2 * grad["top_share_uniform"]).all()
    assert (grad["top_share_p"] <= 0.01).all()
    assert (grad["left_out"] == 0).all()


def uniform_study(directory, seed, layers=6, m=30, width=32):
    """A set drawn uniformly from one 64 × 32 tensor of each layer."""
    rng, rows = np.random.default_rng(seed), []
    for layer in range(layers):
        for rank, flat in enumerate(rng.choice(64 * width, m, replace=False)):
            rows.append({"metric": "grad_x_weight", "mode": "per_layer", "seed": 1, "group": "super", "rank": rank + 1,
                         "tensor": f"{layer}.up", "layer": layer, "component": "up", "row": int(flat) // width,
                         "col": int(flat) % width, "flat": int(flat)})  # fmt: skip
    stats_rows = [stats_row(1, layer, "up", 1.0, 64 * width) for layer in range(layers)]
    return with_tables(directory, rankings=rows, score_stats=stats_rows, topk=[m])


def test_uniform_sets_have_no_structure(tmp_path):
    lines, channels, runs = 0, 0, 40
    for seed in range(runs):
        study = uniform_study(tmp_path / f"{seed}", seed)
        found = analysis.line_concentration(study)
        lines += (found["top_share_p"] < 0.05).sum()
        channels += (analysis.residual_channels(study)["p_holm"] < 0.05).any()
        assert found["top_share"].to_numpy() == pytest.approx(found["top_share_uniform"].to_numpy(), abs=0.04)
    assert lines <= stats.binom.ppf(0.999, 2 * runs, 0.05)
    assert channels <= stats.binom.ppf(0.999, runs, 0.05)


def test_the_poisson_binomial_tail_is_the_binomial_where_all_are_equal():
    for x in range(6):
        assert poisson_binomial_tail(np.full(5, 0.3), x) == pytest.approx(stats.binom.sf(x - 1, 5, 0.3))
    assert stats.binom.sf(least_count(100, 576) - 1, 100, 1 / 576) <= 0.05 < stats.binom.sf(0, 100, 1 / 576)


def test_silhouette_is_its_definition_and_the_cut_finds_planted_groups():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 25)
    z = rng.normal(0, 0.3, (75, 5)) + 3 * np.eye(5)[truth]
    labels, score = cut(z)
    assert len(set(zip(truth, labels, strict=True))) == 3
    distances = np.linalg.norm(z[:, None] - z[None], axis=2)
    values = []
    for i in range(75):
        means = [distances[i][(labels == c) & (np.arange(75) != i)].mean() for c in range(3)]
        a, b = means[labels[i]], min(m for c, m in enumerate(means) if c != labels[i])
        values.append((b - a) / max(a, b))
    assert score == pytest.approx(np.mean(values))
    assert cut(rng.normal(size=(100, 6)))[1] < 0.25


def test_clusters_tell_gradient_from_magnitude(synthetic):
    found = analysis.clusters(synthetic[0]).filter(pl.col("mode") == "global")
    assert found["weights"].sum() == found["of"][0]
    assert any("act_mag" in (r["high_in"] or "") and "grad_x_weight" in (r["low_in"] or "")
               for r in found.iter_rows(named=True))  # fmt: skip


def test_one_score_alone_makes_no_clusters(made):
    assert analysis.clusters(analysis.load(made)).is_empty()
