"""Sections on how damage grows with its dose, and on which kinds of damage tell super weights from others."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.damage.discrimination import discrimination, hierarchy_ratios
from analysis.damage.dose import FEWEST_DOSES, dose_response
from analysis.damage.landmarks import dose_landmarks
from analysis.damage.power import power
from analysis.names import leading, units
from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.study import Study
from esa_ray.spec import TREATED

FORMULAS = {
    "constant": "a", "linear": "a·x", "power": "a·x^b", "exponential": "a(1 − e^(−x/c))", "hill3": "t/(1 + (x/c)^−h)",
    "hill4": "b + (t − b)/(1 + (x/c)^−h)",
}  # fmt: skip


@question("damage", figures.dose)
def dose(study: Study) -> Section | None:
    """ΔNLL against dose, the curves that describe it, and where it starts, levels off and collapses."""
    found = dose_response(study).filter(pl.col("tested") >= FEWEST_DOSES)
    treated = found.filter(pl.col("group").is_in(TREATED))
    if treated.is_empty():
        return None
    marks = dose_landmarks(study).join(treated, on=_KEY, how="semi", nulls_equal=True)
    strengths = treated.filter(pl.col("axis") == "strength")
    worst = pl.col("means").list.max()
    first = (
        (treated if strengths.is_empty() else strengths)
        .sort(worst, descending=True, nulls_last=True)
        .row(0, named=True)
    )
    at = marks.filter([pl.col(name).eq_missing(pl.lit(first[name])) for name in _KEY]).row(0, named=True)
    words = [_rise_words(treated), _diverged_words(treated), _curve_words(first), _threshold_words(at)]
    words.append(_collapse_words(at))
    return Section(
        "dose", "How does the cost grow with the dose?", " ".join(filter(None, words)),
        "Doses share their windows, their sets and, for noise, one draw that is scaled: they compare cleanly, but are "
        "not independent samples. An Akaike weight says how credible a curve is among those fitted; few doses can't "
        "tell similar curves apart, and no curve speaks beyond the tested doses. Beyond a uniform guess over the "
        "vocabulary a loss is no measure of dose. A diverged cell has no finite loss: the worst outcome, and "
        "no number. Means and curves take the seeds that have a finite loss at every dose at which any seed has one.",
        [Figure("dose", "Change of NLL against dose by kind of damage, super against random weights",
                "Means with 95% bands at the largest k. Solid: super (or listed) weights; dashed: a control. Both axes "
                "are logarithmic, the vertical one linear near zero. Dose: the strength; |1 − α| for scale; "
                "1/(2^(n−1) − 1) for n bits.")],
        [_curve_table(found), _mark_table(marks)],
    )  # fmt: skip


_KEY = ["metric", "mode", "axis", "k", "perturbation", "variant", "strength", "direction", "group"]


def _name(row: dict[str, Any]) -> str:
    return f"{row['series']}, {row['chosen']}"


def _rise_words(treated: pl.DataFrame) -> str:
    rising, falling = treated.filter("monotone"), treated.filter(pl.col("steps_down") > 0)
    text = (
        f"In {len(rising)} of {len(treated)} series damage to super or listed weights costs more the larger the dose, "
        "with no step down beyond noise"
    )
    names = [_name(r) for r in falling.head(3).iter_rows(named=True)]
    more = f" and {len(falling) - 3} more" if len(falling) > 3 else ""
    return text + (f"; it falls somewhere in {'; '.join(names)}{more}." if names else ".")


def _diverged_words(treated: pl.DataFrame) -> str:
    lost = treated.filter(pl.col("diverged") > 0)
    if lost.is_empty():
        return ""
    whole, part = lost.drop_nulls("diverged_from"), lost.filter(pl.col("partly_diverged") > 0)
    names = [f"{_name(r)} from {r['diverged_from']:.3g} on" for r in whole.head(3).iter_rows(named=True)]
    more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
    text = f"No cell has a finite loss any more in {'; '.join(names)}{more}. " if names else ""
    some = f"In {len(part)} of {len(treated)} series some seeds diverged at some dose. " if len(part) else ""
    return (text + some).strip()


def _curve_words(r: dict[str, Any]) -> str:
    if not r["means"]:
        return "No series has a seed with a finite loss at all doses."
    text = f"The costliest {'finite loss is that of' if r['diverged'] else 'is'} {_name(r)}"
    if r["model"] is None:
        return f"{text}."
    formula = f"{FORMULAS[r['model']]} with {_parameters(r)}"
    few = f"; {len(r['doses'])} doses are too few to try {', '.join(r['left_out'])}" if r["left_out"] else ""
    return f"{text}, best described by {formula} ({r['model']}, Akaike weight {r['aicc_weight']:.2f}{few})."


def _threshold_words(at: dict[str, Any]) -> str:
    if at["threshold"] is None:
        return ""
    start, below = wording.significant(at["threshold"]), at["threshold_below"]
    where = f"from its smallest dose ({start}) on" if below is None else f"from {start} on (not at {below:.3g})"
    return f"It costs more than damage to random weights {where}."


def _collapse_words(at: dict[str, Any]) -> str:
    if at["collapse"] is None and at["collapse_high"] is not None:
        low, high = at["collapse_low"], wording.significant(at["collapse_high"])
        where = f"by {high} at the latest" if low is None else f"between {wording.significant(low)} and {high}"
        return f"It leaves the model no better than a uniform guess, or without a finite loss, {where}."
    if at["collapse"] is None:
        return ""
    ends = _ends(at["collapse_low"], at["collapse_high"])
    return f"It leaves the model no better than a uniform guess at {wording.significant(at['collapse'])}{ends}."


def _parameters(row: dict[str, Any]) -> str:
    pairs = zip(row["parameter_names"], row["parameters"], strict=True)
    return ", ".join(f"{name} = {wording.significant(value, 3)}" for name, value in pairs)


def _ends(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return " [end beyond the tested doses on either side]"
    shown = [wording.significant(v, 3) if v is not None else "beyond" for v in (low, high)]
    return f" [{', '.join(shown)}]"


def _curve_table(found: pl.DataFrame) -> Table:
    rows = [
        [r["series"], r["chosen"], r["group"], r["axis"], *_span(r),
         {True: "yes", False: "no", None: "–"}[r["monotone"]], f"{r['steps_up']} up, {r['steps_down']} down",
         f"{r['model']}: {_parameters(r)}" if r["model"] else r["why_not"],
         wording.within(r["aicc_weight"], None, None), str(r["diverged"]),
         "–" if r["diverged_from"] is None else f"{r['diverged_from']:.3g}", str(r["seeds_left_out"] or "")]
        for r in found.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<series", "<set", "<group", "<dose", "<from … to", "doses", "<ΔNLL, nats/token", "<rises",
               "<steps beyond noise", "<curve", "Akaike weight", "diverged", "all from",
               "seeds left out"]  # fmt: skip
    note = (
        "Curves of the dose x: " + "; ".join(f"{name} {formula}" for name, formula in FORMULAS.items())
        + ". Fitted by least squares with each dose's error, chosen by AICc. Rises: the last dose costs more than the "
        "first and no step falls beyond noise (p < 0.05, Holm). All from: the dose from which on every cell diverged. "
        "Seeds left out: those without a finite loss at one of these doses."
    )  # fmt: skip
    return Table(columns, rows, "Curves", note)


def _span(r: dict[str, Any]) -> list[str]:
    """The doses with a finite loss from … to, how many of the tested ones, and the means from … to."""
    n = len(r["doses"])
    count = str(n) if n == r["tested"] else f"{n} of {r['tested']}"
    if not n:
        return ["–", count, "–"]
    first, last = (f"{r['doses'][i]:.3g}" for i in (0, -1))
    return [f"{first} … {last}", count, f"{wording.signed(r['means'][0])} … {wording.signed(r['means'][-1])}"]


def _mark_table(marks: pl.DataFrame) -> Table:
    rows = [
        [r["series"], r["chosen"], r["group"], _bracket(r), *(_mark(r, name) for name in ("half", "saturation",
         "half_collapse", "collapse")), r["why_not"] or ""]
        for r in marks.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<series", "<set", "<group", "<above random from", "<half of top", "<90% of top",
               "<half-way to collapse", "<collapse", "~not found"]  # fmt: skip
    note = (
        "Doses with 95% intervals. Above random: the first tested dose from which on super − random_k is above 0 (Holm "
        "over doses), in brackets the last tested one where it isn't. Collapse: as bad as a uniform guess over the "
        "vocabulary, or no finite loss: between two doses where the losses in between aren't known."
    )
    return Table(columns, rows, "Doses at which something changes", note)


def _bracket(r: dict[str, Any]) -> str:
    if r["threshold"] is None:
        return "–"
    below = "the smallest" if r["threshold_below"] is None else f"{r['threshold_below']:.3g}"
    return f"{r['threshold']:.3g} ({below})"


def _mark(r: dict[str, Any], name: str) -> str:
    if r[name] is None and r[f"{name}_high"] is not None:
        high = wording.significant(r[f"{name}_high"], 3)
        low = r[f"{name}_low"]
        return f"by {high}" if low is None else f"between {wording.significant(low, 3)} and {high}"
    if r[name] is None:
        return "–"
    return wording.significant(r[name], 3) + _ends(r[f"{name}_low"], r[f"{name}_high"])


@question("damage", figures.kinds)
def kinds(study: Study) -> Section | None:
    """Which kinds of damage tell super from control best, how far the groups lie apart, and what could be found."""
    found = discrimination(study)
    if found.is_empty() or found.select("perturbation", "variant", "direction").n_unique() < 2:
        return None
    table = power(study)
    words = [_best_words(study, found), _ratio_words(study), _power_words(table)]
    return Section(
        "discrimination", f"Which kinds of damage tell super {units(study)} from others?",
        " ".join(filter(None, words)),
        "g measures a difference by its spread over windows: it is large where damage costs every window alike, not "
        "where it costs most. It speaks of further windows for these sets. Choosing a strength and measuring it are "
        "kept apart, so each rests on half of the windows. Power takes the estimated variances as true, and "
        "means that a single 95% interval excludes 0; at the observed difference it says nothing that p doesn't.",
        [Figure("kinds", "Kinds of damage ranked by how well they tell super from control weights",
                "Cross-fitted Hedges' g with 95% intervals at the largest k, by control.")],
        [_kind_table(found), _hierarchy_table(study), _power_table(table)],
    )  # fmt: skip


def _best_words(study: Study, found: pl.DataFrame) -> str:
    first = leading(study)
    mine = found.filter((pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"])).drop_nulls("g")
    mine = mine.filter(pl.col("k") == pl.col("k").max())
    if mine.is_empty():
        return "No kind of damage has enough windows for an effect size."
    rows = mine.filter(pl.col("control") == mine["control"][0]).sort("rank")
    best, last = rows.row(0, named=True), rows.row(-1, named=True)
    at = "" if best["best_strength"] is None else f" (best at {best['best_strength']:g})"
    pair = f"{best['chosen']} from {best['control']}"
    text = f"{best['kind']}{at} tells {pair} best: g = {_size(best)}, AUC {best['auc']:.2f}"
    worst = f"; {last['kind']} worst, {_size(last)}" if len(rows) > 1 else ""
    overlap = "" if len(rows) < 2 or last["high"] < best["low"] else " (the intervals overlap)"
    return f"{text}{worst}{overlap}."


def _size(r: dict[str, Any]) -> str:
    return f"{wording.significant(r['g'])} {wording.interval(r['low'], r['high'])}"


def _ratio_words(study: Study) -> str:
    pairs = hierarchy_ratios(study)
    told, total = pairs.drop_nulls("ratio"), len(pairs)
    if told.is_empty():
        return f"No ratio is told: in none of {total} pairs of groups does the lower one cost more than 0 for sure."
    r = told.sort("low", descending=True).row(0, named=True)
    return (
        f"The largest sure ratio is {r['upper']} over {r['lower']} for {r['damage']}, {r['chosen']}: "
        f"×{wording.significant(r['ratio'])}{_ends(r['low'], r['high'])} ({len(told)} of {total} pairs have one)."
    )


def _power_words(table: pl.DataFrame) -> str:
    told = table.drop_nulls("detectable")
    if told.is_empty():
        return ""
    low, high = (wording.significant(told["detectable"].quantile(q)) for q in (0.0, 1.0))
    effect = wording.significant(told["effect"][0])
    enough = told.filter(pl.col("detectable") <= pl.col("effect")).height
    return (
        f"With 80% power the comparisons find differences of at least {low} (the best) to {high} (the worst) nats per "
        f"token; a difference of {effect} would be found in {enough} of {len(told)}."
    )


def _kind_table(found: pl.DataFrame) -> Table:
    rows = [
        [r["kind"], r["chosen"], r["control"], "–" if r["rank"] is None else str(r["rank"]),
         "–" if r["best_strength"] is None else f"{r['best_strength']:g}",
         _size(r) if r["g"] is not None else r["why_not"],
         wording.within(r["auc"], None, None), ", ".join(wording.significant(g, 2) for g in r["gs"] or []),
         str(r["left_out"])]
        for r in found.sort("metric", "mode", "k", "control", "rank", nulls_last=True).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<kind", "<set", "<control", "rank", "best strength", "<g, cross-fitted", "AUC", "<g at each strength",
               "diverged"]  # fmt: skip
    return Table(columns, rows, "Effect sizes")


def _hierarchy_table(study: Study) -> Table:
    rows = [
        [r["damage"], r["chosen"], f"{r['upper']} / {r['lower']}",
         f"×{wording.significant(r['ratio'])}{_ends(r['low'], r['high'])}" if r["ratio"] is not None else r["why_not"],
         str(r["left_out"] or "")]
        for r in hierarchy_ratios(study).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<damage", "<set", "<groups", "<ratio of ΔNLL", "seeds left out"]
    return Table(columns, rows, "How many times as much (95% intervals)")


def _power_table(table: pl.DataFrame) -> Table:
    def shown(value: float | None) -> str:
        return wording.significant(value, 2)

    rows = [
        [r["damage"], r["chosen"], r["control"], shown(r["sd_seeds"]), shown(r["sd_windows"]), shown(r["sd_residual"]),
         wording.percent(r["observed_power"]), shown(r["detectable"]), *(f"{_count(r[f'{unit}_80'])} / "
         f"{_count(r[f'{unit}_90'])}" for unit in ("windows", "seeds")), r["why_not"] or ""]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<damage", "<set", "<control", "sd, seeds", "sd, windows", "sd, residual", "power at observed",
               "found at 80%", "<windows for 80 / 90%", "<seeds for 80 / 90%", "~limits"]  # fmt: skip
    effect = wording.significant(table["effect"].first())  # type: ignore[arg-type]
    note = f"Nats per token. Windows (at the present seeds) and seeds (at the present windows) to find {effect}."
    return Table(columns, rows, "Power", note, folded=True)


def _count(n: int | None) -> str:
    return "–" if n is None else f"{n:,}"
