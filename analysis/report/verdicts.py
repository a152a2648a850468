"""Verdicts: stated criteria, judged by what was measured. A criterion that fails is reported as failing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.changed import unlike_words
from analysis.damage.dose import dose_response
from analysis.damage.effects import comparisons, effects
from analysis.names import about, unit_of
from analysis.report.attention_verdicts import attention_verdicts
from analysis.report.backdoor_verdicts import backdoor_verdicts
from analysis.report.compression_verdicts import compression_verdicts
from analysis.report.criteria import Status, Verdict, judge
from analysis.report.role_verdicts import role_verdicts
from analysis.report.security_verdicts import security_verdicts
from analysis.report.tuning_verdicts import tuning_verdicts
from analysis.report.wording import p_value, signed, significant
from analysis.run.protocols import degradation, protocol_summary, shared_windows
from analysis.scores.distribution import gaussian_product_tail, has_magnitude, hotspot_agreement, tails
from analysis.scores.stability import calibration_overlap, jaccard_summary, score_overlap
from analysis.statistics.inference import sign_e_value
from analysis.study import Study
from esa_ray.spec import is_data_free

#: Seeds that share more of their calibration windows than this can't show that they agree.
MOST_SHARED = 0.5

#: Kinds of set, or comparisons, that a verdict names one by one.
MOST_SHOWN = 4

#: Spearman correlation of tensors' mean scores from which on hotspots count as the same in every seed.
HOTSPOT_RHO = 0.9


def sign_flip_ratio(table: pl.DataFrame) -> Verdict:
    """P3.7: ΔPPL(super) ≥ 5 × ΔPPL(random) for sign flips, by the unfavourable ends of both intervals."""
    claim = "Flipping the super weights' signs raises perplexity at least 5 times as much as flipping random ones"
    rows = table.filter((pl.col("perturbation") == "sign_flip") & (pl.col("strength") == 1.0))
    parts, holds = [], []
    for name in rows["chosen"].unique(maintain_order=True):
        pair = {r["group"]: r for r in rows.filter(pl.col("chosen") == name).iter_rows(named=True)}
        if not all(pair.get(g, {}).get("delta_ppl") is not None for g in ("super", "random_k")):
            continue
        low, high = pair["super"]["delta_ppl_low"], pair["random_k"]["delta_ppl_high"]
        holds.append(low > 0 and low >= 5 * high)
        parts.append(f"{name}: super at least {signed(low)}, random at most {signed(high)}")
    if not parts:
        return Verdict("P3.7a", claim, "open", "needs sign_flip with the groups super and random_k")
    return Verdict("P3.7a", claim, judge(all(holds)), "; ".join(parts) + " (95% bounds on ΔPPL)")


def hierarchy(table: pl.DataFrame) -> Verdict:
    """P3.7: ≥3× from super to random and ≥3× from random to bottom, by the unfavourable ends of the intervals.

    Point estimates would let noise of 10⁻⁴ over noise of 10⁻⁵ count as a hierarchy.
    """
    claim = "ΔPPL falls at least 3-fold from super to random and 3-fold again from random to bottom"
    groups = ["super", "random_k", "bottom_k"]
    tried, left_out, first, second = 0, 0, 0, 0
    for _, rows in table.group_by(["chosen", "damage"], maintain_order=True):
        at = {r["group"]: r for r in rows.iter_rows(named=True)}
        if not set(groups) <= at.keys():
            continue
        if any(at[g]["delta_ppl"] is None or at[g]["diverged"] for g in groups):
            left_out += 1
            continue
        tried += 1
        first += _threefold(at["super"], at["random_k"])
        second += _threefold(at["random_k"], at["bottom_k"])
    if not tried:
        return Verdict("P3.7b", claim, "open", "needs the groups super, random_k and bottom_k without divergence")
    evidence = (
        f"super over random in {first} of {tried} kinds of damage, random over bottom in {second} "
        "(95% bounds on ΔPPL)" + (f"; {left_out} left out, as cells diverged" if left_out else "")
    )
    return Verdict("P3.7b", claim, judge(first == second == tried), evidence)


def _threefold(upper: dict[str, Any], lower: dict[str, Any]) -> bool:
    return upper["delta_ppl_low"] > 0 and upper["delta_ppl_low"] >= 3 * lower["delta_ppl_high"]


def significance(table: pl.DataFrame) -> Verdict:
    """P3.7: p < 0.01 for every kind, corrected by Holm.

    Cells that were stopped early are tested by signs, and so few windows may be left that no result could reach 0.01.
    """
    claim = "Super differs from every control at p < 0.01 for every kind of damage (Holm-corrected)"
    if table.is_empty():
        return Verdict("P3.7c", claim, "open", "needs at least one control")
    tested = table.drop_nulls("p_holm")
    weak = tested.filter((pl.col("p_holm") >= 0.01) | (pl.col("difference") <= 0))
    if not weak.is_empty() and (short := _too_few_windows(tested, weak)):
        return Verdict("P3.7c", claim, "open", short)
    skipped = len(table) - len(tested)
    largest = max(tested["p_holm"].to_list(), default=math.nan)
    worst = f"largest corrected p {p_value(largest)} over {len(tested)} comparisons"
    if alone := tested["p_windows"].max():
        worst += f" (for these sets alone, by windows: uncorrected at most {p_value(alone)})"  # type: ignore[arg-type]
    names = [f"{r['damage']} {r['chosen']} vs {r['control']}" for r in weak.iter_rows(named=True)]
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    evidence = worst + (f"; not for {', '.join(names[:MOST_SHOWN])}{more}" if names else "") + (
        f"; {skipped} could not be tested (diverged, failed or nothing to change)" if skipped else ""
    )  # fmt: skip
    return Verdict("P3.7c", claim, judge(not names and not skipped), evidence)


def _too_few_windows(tested: pl.DataFrame, weak: pl.DataFrame) -> str:
    """Why those that miss 0.01 could not have reached it; empty if one could."""
    stopped = tested.filter("sequential")
    least = {w: sign_e_value(np.ones(w))[1] * len(stopped) for w in weak["windows"].unique()}
    if weak["sequential"].all() and all(p >= 0.01 for p in least.values()):
        return f"{len(stopped)} tests by signs over as few as {min(least)} windows (stopped early) can't reach p < 0.01"
    return ""


def dose(study: Study) -> Verdict:
    """P3.7: monotone dose response, judged from three strengths on by :func:`analysis.damage.dose.dose_response`.

    A series in which a cell diverged is open: the seeds that withstood are the weak ones, and say nothing of the rest.
    """
    claim = "Damage to super weights grows with its strength"
    found = dose_response(study).filter((pl.col("axis") == "strength") & (pl.col("group") == "super"))
    long = found.filter(pl.col("tested") >= 3)
    if long.is_empty():
        seen = [
            f"{r['perturbation']} {r['chosen']}: {' → '.join(signed(x, 2) for x in r['means'])}"
            for r in found.filter(pl.col("means").list.len() == 2).iter_rows(named=True)
        ]
        few = "fewer than three strengths of a kind" + (f" ({'; '.join(seen)} nats per token)" if seen else "")
        return Verdict("P3.7d", claim, "open", few)
    judged = long.filter((pl.col("diverged") == 0) & pl.col("monotone").is_not_null())
    rising, parts = judged.filter("monotone").height, []
    if len(judged):
        parts.append(f"{rising} of {len(judged)} series rise, and fall at no step beyond noise")
    unsure = long.join(judged, on=["series", "chosen"], how="anti")
    if names := [f"{r['series']} {r['chosen']} ({_undone(r)})" for r in unsure.iter_rows(named=True)]:
        more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
        parts.append(f"open for {', '.join(names[:MOST_SHOWN])}{more}")
    status: Status = "fails" if rising < len(judged) else "open" if names else "holds"
    return Verdict("P3.7d", claim, status, "; ".join(parts))


def _undone(r: dict[str, Any]) -> str:
    """Why a series of doses can't be judged."""
    if r["diverged_from"] is not None:
        return f"every cell diverged from {r['diverged_from']:.3g} on"
    doses = r["partly_diverged"]
    return f"some seeds diverged at {doses} dose{'s' * (doses > 1)}" if doses else r["why_not"] or "too few doses"


def stability(study: Study) -> Verdict:
    """P2.7: Jaccard > 0.4 over three seeds or more."""
    claim = "Three or more seeds agree on the super weights with Jaccard above 0.4"
    summary = jaccard_summary(study)
    if len(study.spec["seeds"]) < 3 or summary.is_empty():
        return Verdict("P2.7a", claim, "open", f"needs three seeds, has {len(study.spec['seeds'])}")
    summary = summary.filter(~pl.col("metric").is_in([m for m in summary["metric"].unique() if is_data_free(m)]))
    if summary.is_empty():
        return Verdict("P2.7a", claim, "open", "the score looks at no text, so every seed gives the same set")
    if (overlap := calibration_overlap(study)) > MOST_SHARED:
        return Verdict("P2.7a", claim, "open", f"two seeds share {overlap:.0%} of their calibration windows")
    above = summary.filter(pl.col("mean") > 0.4).height
    shown = summary if len(summary) <= MOST_SHOWN else summary.sort("mean")[[0, -1]]
    parts = [
        f"{r['metric']} {r['mode']} k={r['k']}: {r['mean']:.2f} ({r['min']:.2f}–{r['max']:.2f})"
        for r in shown.iter_rows(named=True)
    ]
    if len(summary) > MOST_SHOWN:
        parts = [f"{above} of {len(summary)} kinds of set", f"lowest {parts[0]}", f"highest {parts[1]}"]
    chance = f"; chance {significant(max(summary['chance'].to_list()), 1)}"
    return Verdict("P2.7a", claim, judge(above == len(summary)), "; ".join(parts) + chance)


def score_agreement(study: Study) -> Verdict:
    """P2.7: grad_x_weight and grad_squared overlap by more than 60%."""
    claim = "grad_x_weight and grad_squared choose more than 60% of the same weights"
    overlap = score_overlap(study, "grad_x_weight", "grad_squared")
    if overlap.is_empty():
        return Verdict("P2.7b", claim, "open", "this study does not have both scores in one mode")
    means = overlap.group_by("mode", "k").agg(pl.col("overlap").mean()).sort("mode", "k")
    evidence = "; ".join(f"{mode} k={k}: {share:.0%}" for mode, k, share in means.iter_rows())
    return Verdict("P2.7b", claim, judge(bool((means["overlap"] > 0.6).all())), evidence)


def _sensing(study: Study) -> list[str]:
    """The study's scores that look at text and whose values can be averaged, each once."""
    names = dict.fromkeys(s["metric"] for s in study.spec["scores"])
    return [m for m in names if has_magnitude(m) and not is_data_free(m)]


def heavy_tail(study: Study) -> Verdict:
    """P2.7: the top 1% of a tensor's scores average more than 10× its median.

    Judged for every score that looks at text and has a magnitude: ensembles are of ranks, super_activation knows only
    candidates, and magnitude has no part in sensitivity.
    """
    claim = "In every scored tensor the top 1% of scores average more than 10 times the median"
    table, holds, parts = tails(study), [], []
    for metric in _sensing(study):
        ratios = table.filter(pl.col("metric") == metric)["top1pct_over_median"].drop_nulls().to_numpy()
        if len(ratios):
            share = float((ratios > 10).mean())
            holds.append(share == 1)
            parts.append(f"{metric}: {share:.0%} of {len(ratios)} tensors, median ratio {np.median(ratios):.0f}")
            if metric == "grad_x_weight":
                parts[-1] += _beyond_gaussian(ratios)
    if not parts:
        return Verdict("P2.7c", claim, "open", "no score here looks at text and has a magnitude")
    return Verdict("P2.7c", claim, judge(all(holds)), "; ".join(parts))


def _beyond_gaussian(ratios: np.ndarray) -> str:
    # The reference is that of a product, so it speaks of this score alone.
    reference = gaussian_product_tail()
    return (
        f" (a product of two independent Gaussians already has {reference:.1f}, and "
        f"{(ratios > 2 * reference).mean():.0%} have twice that)"
    )


def hotspots(study: Study) -> Verdict:
    """P2.7: the same tensors are hot in every seed."""
    claim = f"Seeds agree on which tensors are hot (Spearman of mean scores at least {HOTSPOT_RHO})"
    if len(study.spec["seeds"]) < 2 or study.score_stats.is_empty():
        return Verdict("P2.7d", claim, "open", "needs two seeds")
    rho = {metric: r for metric in _sensing(study) if (r := hotspot_agreement(study, metric))}
    if not rho:
        return Verdict("P2.7d", claim, "open", "no score here depends on the seed, or only one seed is scored")
    evidence = [f"{metric}: ρ between {min(r):.3f} and {max(r):.3f}" for metric, r in rho.items()]
    return Verdict("P2.7d", claim, judge(min(map(min, rho.values())) >= HOTSPOT_RHO), "; ".join(evidence))


#: What P1.3 asks: perplexities of seeds spread by less than this share of their mean.
SPREAD = 0.05


def steady(study: Study) -> Verdict:
    """P1.3: perplexity varies by less than 5% between seeds."""
    claim = f"Perplexity of the intact model varies by less than {SPREAD:.0%} between seeds"
    whole = protocol_summary(study)
    if (whole["diverged"] > 0).any():
        lost = whole.filter(pl.col("diverged") > 0).select("protocol", "context", "diverged", "seeds").iter_rows()
        words = "; ".join(f"{p} at {c} tokens: {n} of {of} seeds diverge" for p, c, n, of in lost)
        return Verdict("P1.3a", claim, "fails", words)
    table = whole.drop_nulls("spread")
    if table.is_empty():
        return Verdict("P1.3a", claim, "open", "needs a protocol with two seeds")
    parts = [f"{p} at {c} tokens: {s:.1%}" for p, c, s in table.select("protocol", "context", "spread").iter_rows()]
    words, shared = "; ".join(parts) + " (standard deviation over mean)", shared_windows(study)
    if shared > MOST_SHARED:
        words += (
            f"; but the text is so short that seeds share up to {shared:.0%} of their windows, and so can't differ much"
        )
        return Verdict("P1.3a", claim, "open" if (table["spread"] < SPREAD).all() else "fails", words)
    return Verdict("P1.3a", claim, judge((table["spread"] < SPREAD).all()), words)


def undegraded(study: Study) -> Verdict:
    """P1.3: what the smoke protocol says holds in the extended one."""
    claim = f"In the longest context the intact model is no more than {SPREAD:.0%} worse than in the smoke protocol"
    found = degradation(study)
    if found is None:
        return Verdict("P1.3b", claim, "open", "needs the smoke and extended protocols, with two seeds")
    difference, low, high, context = found
    if math.isinf(difference):
        return Verdict("P1.3b", claim, "fails", "the loss diverges in a seed")
    words = f"at {context} tokens {signed(difference)} nats per token [{signed(low)}, {signed(high)}]"
    most = math.log1p(SPREAD)
    status: Status = "holds" if high <= most else "fails" if low > most else "open"
    return Verdict("P1.3b", claim, status, words + " (Welch's interval over seeds)")


def protocol_verdicts(study: Study) -> list[Verdict]:
    """P1.3, of a study with protocols."""
    return [steady(study), undegraded(study)] if study.spec.get("protocols") else []


def _cautious(verdict: Verdict, caution: str) -> Verdict:
    """A verdict on a comparison with controls, and what speaks against the comparison."""
    if not caution or verdict.status == "open":
        return verdict
    return replace(verdict, evidence=f"{verdict.evidence}; but {caution}")


def verdicts(study: Study) -> list[Verdict]:
    """All verdicts on a study, those that it can't reach included."""
    if study.spec.get("protocols") or unit_of(study) != "weight":  # the criteria on damage are about single weights
        return protocol_verdicts(study)
    applied = [*compression_verdicts(study), *tuning_verdicts(study), *security_verdicts(study)]
    applied += [*backdoor_verdicts([study]), *role_verdicts(study), *attention_verdicts(study)]
    if about(study) != "sensitivity":
        return applied
    found = [stability(study), score_agreement(study), heavy_tail(study), hotspots(study)]
    unfinished = study.expected_cells - len(study.cells)
    if unfinished:
        found.append(Verdict("P3.7", "Criteria on damage", "open", f"{unfinished} cells are missing"))
    elif study.spec["perturbations"] and not study.baselines.is_empty():
        table, tests = effects(study), comparisons(study)
        found += [
            _cautious(sign_flip_ratio(table), unlike_words(study, "sign_flip")),
            _cautious(hierarchy(table), unlike_words(study)),
            _cautious(significance(tests), unlike_words(study)),
            dose(study),
        ]
    found.append(Verdict("P3.7e", "It is so in at least four architectures", "open", "this study has one model"))
    return sorted([*found, *applied], key=lambda v: v.id)
