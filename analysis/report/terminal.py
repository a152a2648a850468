"""The answer in a terminal, at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.compression.excess import excess
from analysis.damage.changed import empty_words, unchanged_words, unlike_words
from analysis.damage.effects import comparisons, effects
from analysis.damage.windows import baseline
from analysis.fidelity.single_weights import ORDERS
from analysis.fidelity.tables import fidelity_correlations
from analysis.names import GROUP_ORDER, about, first_score, unit_of, units
from analysis.report import wording
from analysis.report.sections.faults import chance_of, unhit_words
from analysis.report.terminal_backdoors import backdoor_tables
from analysis.report.terminal_roles import role_tables
from analysis.report.verdicts import verdicts
from analysis.run.applied import GRIDS
from analysis.run.protocols import protocol_summary
from analysis.scores.convergence import CRITERION, stable_from
from analysis.scores.stability import consensus, jaccard_summary
from analysis.security.attacks import survival
from analysis.security.rates import break_rates
from analysis.security.vulnerability import vulnerability
from analysis.study import Study
from analysis.tuning.points import chosen as chosen_rates

#: Settings or methods of compressions that fit into 80 columns.
MOST_COLUMNS = 6
MARKS = {"holds": "[green]holds[/]", "fails": "[red]fails[/]", "open": "[dim]open[/]"}


def _damage(study: Study) -> Table:
    """One row per kind of damage: ΔNLL of each group, and the weaker of its tests."""
    table = Table(title="What damage costs: ΔNLL, nats per token", title_justify="left", box=box.SIMPLE_HEAD)
    effect, tests = effects(study), comparisons(study)
    if len(study.spec["scores"]) > 1:
        effect = effect.filter((pl.col("k") == max(study.spec["topk"])) | (pl.col("metric") == "listed"))
    groups = [g for g in GROUP_ORDER if g in effect["group"].to_list()]
    table.add_column("damage", min_width=16, overflow="fold")
    several = effect["chosen"].n_unique() > 1
    if not several:
        table.title = f"What damage to {effect['chosen'][0]} costs: ΔNLL, nats per token"
    for name in (*(["set"] if several else []), *groups, *([] if tests.is_empty() else ["p"])):
        table.add_column(name, justify="left" if name == "set" else "right")
    for (damage, chosen), rows in effect.group_by("damage", "chosen", maintain_order=True):
        by_group = {r["group"]: r for r in rows.iter_rows(named=True)}
        cells = [_outcome(by_group[g]) if g in by_group else "–" for g in groups]
        if not tests.is_empty():
            p = tests.filter((pl.col("damage") == damage) & (pl.col("chosen") == chosen))["p_holm"].max()
            cells.append(wording.p_value(p))  # type: ignore[arg-type]
        table.add_row(escape(str(damage)), *([escape(str(chosen))] if several else []), *cells)
    return table


def _intact(study: Study) -> Table:
    table = Table(title="The intact model under protocols", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("protocol", "tokens", "perplexity", "spread", "accuracy", "ECE", "NaN", "tok/s", "GB"):
        table.add_column(name, justify="left" if name == "protocol" else "right", no_wrap=True)
    for r in protocol_summary(study).iter_rows(named=True):
        if r["why_not"]:
            table.add_row(r["protocol"], str(r["context"]), "–")
            table.caption = escape(f"– {r['why_not']}")
            continue
        table.add_row(
            r["protocol"], str(r["context"]), wording.significant(r["perplexity"], 4), wording.percent(r["spread"]),
            wording.percent(r["accuracy"]), wording.percent(r["ece"]), str(r["nonfinite"]),
            wording.significant(r["tokens_per_second"]), f"{r['peak_memory'] / 1e9:.1f}",
        )  # fmt: skip
    return table


def _outcome(row: dict[str, Any]) -> str:
    delta = row["delta_nll"]
    lost = f" ({row['diverged']} NaN)" if row["diverged"] else ""
    if delta is not None:
        return wording.signed(delta) + lost
    return "diverged" if row["diverged"] else "failed" if row["errors"] else "nothing to change"


def _weights(study: Study) -> Table:
    title, size = f"The {units(study)} that most seeds agree on", "weight" if unit_of(study) == "weight" else "norm"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    places = {"weight": ("row", "col"), "row": ("row",), "col": ("col",)}.get(unit_of(study), ("number",))
    for name in ("layer", "component", *places, size, "score", "seeds"):
        table.add_column(name, justify="left" if name == "component" else "right")
    for r in consensus(study, limit=5).iter_rows(named=True):
        layer = "–" if r["layer"] is None else str(r["layer"])
        table.add_row(
            layer, r["component"], *(str(r[name]) for name in places),
            wording.significant(r["weight"]), wording.significant(r["score"]),
            f"{r['seeds']}/{len(study.spec['seeds'])}",
        )  # fmt: skip
    return table


def _agreement(study: Study, console: Console) -> None:
    """Jaccard between seeds: a line per k for one score, the largest k of each in a table for several."""
    rows = jaccard_summary(study)
    if len(study.spec["scores"]) == 1:
        for r in rows.iter_rows(named=True):
            console.print(
                f"Jaccard between seeds {r['mean']:.2f} ({r['min']:.2f}–{r['max']:.2f}), chance "
                f"{wording.significant(r['chance'], 1)}: {r['metric']} {r['mode']} k={r['k']}",
                soft_wrap=True,
            )
        return
    rows = rows.filter(pl.col("k") == max(study.spec["topk"]))
    if rows.is_empty():
        return
    table = Table(title=f"Jaccard between seeds, k={rows['k'][0]}", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("score", "pool", "mean", "range", "chance"):
        table.add_column(name, justify="left" if name in ("score", "pool") else "right")
    for r in rows.iter_rows(named=True):
        span = f"{r['min']:.2f}–{r['max']:.2f}"
        table.add_row(r["metric"], r["mode"], f"{r['mean']:.2f}", span, wording.significant(r["chance"], 1))
    console.print(table)


def _stable(study: Study) -> str:
    """From which k and how many windows on the first score's sets agree."""
    metric, mode = first_score(study)
    rows = stable_from(study).filter((pl.col("metric") == metric) & (pl.col("mode") == mode))
    rows = rows.filter((pl.col("axis") == "k") | (pl.col("k") == max(study.spec["topk"])))
    words = {"k": ("from k = {} on", "at no k"), "windows": ("from {} windows on", "at no number of windows")}
    parts = [
        words[axis][0].format(size) if size else words[axis][1]
        for axis, size in rows.select("axis", "criterion").iter_rows()
    ]
    return f"{metric}: seeds agree to {CRITERION} or more {', '.join(parts)}" if parts else ""


def _single(study: Study) -> str:
    """Which score ranks the loss of single weights best."""
    rows = fidelity_correlations(study).filter(
        (pl.col("outcome") == "|ΔNLL|") & (pl.col("speaks_of") == "all weights") & ~pl.col("metric").is_in(ORDERS)
    )
    rows = rows.filter(pl.col("edit") == rows["edit"].first()).drop_nans("spearman") if len(rows) else rows
    if rows.is_empty():
        return ""
    r = rows.sort("spearman", descending=True).row(0, named=True)
    rho = wording.within(r["spearman"], r["low"], r["high"])
    return f"single weights: {r['metric']} ranks |ΔNLL| of {r['edit']} best, ρ {rho}"


def _searched(study: Study) -> list[str]:
    """What a search found, a line a branch."""
    found = study.search or {"branches": []}
    return [
        f"search: {b['branch']}: "
        + (f"{b['perturbation']} at k={b['k']} costs {wording.signed(b['damage'])}" if b["reached"] else "not reached")
        + f" (asked for {wording.significant(found['target'])} nats per token)"
        for b in found["branches"]
    ]


def _compressed(study: Study) -> Iterator[tuple[str, Table]]:
    """A title and a table per kind: excess NLL by method and setting in domain; the rarer of the two is in columns."""
    costs = excess(study).filter(pl.col("domain") == "in")
    for (kind,), rows in costs.group_by(["kind"], maintain_order=True):
        down, across = sorted(("method", "setting"), key=lambda axis: -rows[axis].n_unique())
        names = rows[across].unique(maintain_order=True).to_list()
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(down, min_width=20 if down == "method" else 10, overflow="fold")
        for name in names[:MOST_COLUMNS]:
            table.add_column(name, justify="right", min_width=7, overflow="fold")
        for (what,), mine in rows.group_by([down], maintain_order=True):
            at = {r[across]: _lost(r) for r in mine.iter_rows(named=True)}
            table.add_row(escape(str(what)), *(at.get(name, "–") for name in names[:MOST_COLUMNS]))
        if (more := len(names) - MOST_COLUMNS) > 0:
            table.caption = f"{more} more {across}s are in the report."
        yield f"What it costs to {kind}: excess NLL, nats per token, on {rows['text'][0]}", table


def _lost(r: dict[str, Any]) -> str:
    if r["excess"] is None:
        return "diverged" if r["diverged"] else "failed"
    return wording.significant(r["excess"]) + (f" ({r['diverged']} NaN)" if r["diverged"] else "")


def _tuned(study: Study) -> Table:
    """One row a way at its best learning rate: gain and forgetting."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("way", "trained", "rate", "gain", "forgetting", "seeds"):
        table.add_column(name, justify="left" if name == "way" else "right", overflow="fold")
    for r in chosen_rates(study).iter_rows(named=True):
        rate = "–" if r["learning_rate"] is None else f"{r['learning_rate']:g}"
        told = [wording.percent(r["share"]), rate, wording.signed(r["gain"]), wording.signed(r["forgetting"])]
        table.add_row(escape(r["way"]), *told, str(r["seeds"] or 0))
    return table


def _faulted(study: Study) -> Iterator[tuple[str, Table]]:
    """A title and a table per dtype: how often each fault breaks the model behind each protection."""
    rates = break_rates(study).with_columns(under=pl.format("{}\n{}", "fault", "dose"))
    for (dtype,), rows in rates.group_by(["dtype"], maintain_order=True):
        names = rows["under"].unique(maintain_order=True).to_list()
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("protection", min_width=20, overflow="fold")
        for name in names[:MOST_COLUMNS]:
            table.add_column(name, justify="right", min_width=6, overflow="fold")
        for (protection,), mine in rows.group_by(["protection"], maintain_order=True):
            at = {r["under"]: _chance(r) for r in mine.iter_rows(named=True)}
            table.add_row(escape(str(protection)), *(at.get(name, "–") for name in names[:MOST_COLUMNS]))
        if (more := len(names) - MOST_COLUMNS) > 0:
            table.caption = f"{more} more faults are in the report."
        yield f"How often faults break the model stored in {dtype!s}", table


def _chance(r: dict[str, Any]) -> str:
    """In whole percent where that isn't rounded to none."""
    told = r["n_flips"] != 0 and (r["probability"] == 0 or r["probability"] >= 0.005)
    return f"{r['probability']:.0%}" if told else chance_of(r)


def _vulnerable(study: Study) -> Iterator[str]:
    """A line a dtype: how often a single flip breaks the model, and which bit does most."""
    table = vulnerability(study)
    for r in table.filter(pl.col("axis") == "all").iter_rows(named=True):
        bits = table.filter(*(pl.col(c) == r[c] for c in ("dtype", "protection")), pl.col("axis") == "bit")
        top = bits.drop_nulls("share").sort("share", descending=True).head(1).to_dicts()
        most = f", above all bit {top[0]['bit']}" if top and r["breaks"] else ""
        told = f"single flips in {r['dtype']}: {r['breaks']} of {r['flips']} break it"
        yield f"{told}; of all bits {wording.percent(r['probability'])} do{most}"


def _attacked(study: Study) -> Table:
    """One row an arm, dtype and threat: how many flips collapse the model."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("arm", "stored", "runs", "collapsed", "median", "95%"):
        table.add_column(name, justify="left" if name in ("arm", "stored") else "right", overflow="fold")
    for r in survival(study).filter(pl.col("counted") == "flips").iter_rows(named=True):
        median = f"{r['median']:g}" if r["median"] is not None else f"> {r['longest'] or 0:g}"
        low, high = ("…" if r[end] is None else f"{r[end]:g}" for end in ("low", "high"))
        stored = f"{r['dtype']}, {r['threat']}" + ("" if r["protection"] == "none" else f", {r['protection']}")
        interval = f"[{low}, {high}]" if r["seeds"] > 1 else "–"
        table.add_row(r["arm"], stored, str(r["runs"]), str(r["collapsed"]), median, escape(interval))
    return table


def print_summary(study: Study, console: Console) -> None:
    """Print which weights, how sure, and what damaging them costs."""
    if all(table.is_empty() for table in (study.baselines, study.rankings, *map(study.table, GRIDS))):
        console.print("nothing is measured yet")
        return
    if not study.baselines.is_empty():
        base = baseline(study)
        accuracy = wording.percent(base["accuracy"])
        console.print(f"\nintact perplexity {base['perplexity']:.2f}, next-token accuracy {accuracy}")
    if study.spec.get("protocols"):
        console.print(_intact(study))
    elif about(study) == "sensitivity":
        console.print(_weights(study))
        _agreement(study, console)
    words = [] if about(study) != "sensitivity" else [_stable(study), _single(study), *_searched(study)]
    for line in filter(None, words):
        console.print(line)
    if not study.cells.is_empty() and not study.baselines.is_empty():
        console.print(_damage(study))
        further = "seeds and windows" if len(study.spec["seeds"]) > 1 else "windows"
        console.print(
            f"[dim]p: the largest over the controls; for further {further}, Holm.\n"
            "Intervals, effect sizes and single seeds are in the report.[/]\n"
        )
        for line in filter(None, [unchanged_words(study), unlike_words(study), empty_words(study)]):
            console.print(escape(line))
    for title, table in _compressed(study):
        console.print(f"[italic]{escape(title)}[/italic]", soft_wrap=True, highlight=False)  # a table would fold it
        console.print(table)
    if len(chosen_rates(study)):
        title = f"What tuning to {study.spec['target']['source']} gains and forgets, nats per token"
        console.print(f"[italic]{escape(title)}[/italic]", soft_wrap=True, highlight=False)
        console.print(_tuned(study))
    for title, table in _faulted(study):
        console.print(f"[italic]{escape(title)}[/italic]", soft_wrap=True, highlight=False)
        console.print(table)
    for line in filter(None, [unhit_words(study), *_vulnerable(study)]):
        console.print(line, soft_wrap=True)
    if not study.attacks.is_empty():
        console.print("[italic]Flips of weights until the model is no better than chance[/italic]", highlight=False)
        console.print(_attacked(study))
    for title, table in (*backdoor_tables(study), *role_tables(study)):
        console.print(f"[italic]{escape(title)}[/italic]", soft_wrap=True, highlight=False)
        console.print(table)
    judged = Table.grid(padding=(0, 2))
    for v in verdicts(study):
        judged.add_row(v.id, MARKS[v.status], v.claim)
    console.print(judged)
    failing = (("cell", study.cells, "cell_id"), ("compression", study.compressions, "label"),
               ("tuning", study.tunings, "label"), ("fault", study.faults, "label"),
               ("attack", study.attacks, "label"), ("model", study.backdoors, "label"),
               ("mitigation", study.mitigations, "label"), ("damage", study.roles, "subject"),
               ("mediation", study.mediations, "subject"), ("attention", study.attention, "subject"),
               ("fact", study.facts, "fact"))  # fmt: skip
    for what, rows, name in failing:
        failed = rows.filter(pl.col("status") == "error")
        for each, error in failed.select(name, "error").unique(maintain_order=True).head(3).iter_rows():
            console.print(f"[red]{what} {escape(each)} failed: {escape(error or '')}[/]")
