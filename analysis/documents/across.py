"""The part of the document on security that puts models side by side: flips to collapse, protection, vulnerability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from analysis.comparison.loading import model_name
from analysis.report import wording
from analysis.report.parts import Section, Table
from analysis.report.security_verdicts import times
from analysis.security.attacks import attacks_against, survival
from analysis.security.coverage import COVERED, FEW, coverage, smallest
from analysis.security.goals import ARM, ARMS_RIVALS, ROUNDED, critical_share
from analysis.security.injections import NONE
from analysis.security.vulnerability import vulnerability
from analysis.study import Study
from esa_ray.spec import ATTACKS


def across_models(studies: Mapping[str, Study]) -> Iterator[Section]:
    """A section for each question that two models or more were asked."""
    named = [(model_name(study), study) for study in studies.values()]
    for section in (_flips(named), _protection(named), _vulnerability(named)):
        if section is not None:
            yield section


def _with(named: list[tuple[str, Study]], table: Any) -> list[tuple[str, pl.DataFrame]]:
    """The models that have rows of a table, if there are two of them."""
    told = [(name, rows) for name, study in named if len(rows := table(study))]
    return told if len({name for name, _ in told}) > 1 else []


def _flips(named: list[tuple[str, Study]]) -> Section | None:
    told = _with(named, survival)
    if not told:
        return None
    arms = [arm for arm in ATTACKS if any(arm in rows["arm"] for _, rows in told)]
    rows = [[model, *place, *(_median(mine, arm) for arm in arms)] for model, table in told
            for place, mine in _places(table)]  # fmt: skip
    ratios = [r | {"model": model} for model, study in named for r in _asked(study).iter_rows(named=True)]
    against = [[r["model"], r["dtype"], r["threat"], r["rival"], times(r), wording.p_value(r["p"])] for r in ratios]
    held = sum(r["low"] is not None and r["low"] > 1 for r in ratios)
    return Section(
        "across_flips", "All models: how many flips does an adversary need?",
        f"Guided flips among the super weights are fewer than random ones, there or anywhere, in {held} of "
        f"{len(ratios)} comparisons on {len({r['model'] for r in ratios})} models (the interval of the ratio lies "
        "above 1).",
        "Medians of flips to collapse by Kaplan and Meier, of the unprotected model, with 95% intervals for further "
        "seeds and draws; > where more than half of the runs withstood so many. p is that of the log-rank test, dealt "
        "anew within seeds, of each comparison alone.",
        tables=[Table(["<model", "<dtype", "<threat", *arms], rows, "Flips to collapse"),
                Table(["<model", "<dtype", "<threat", "<against", "<how many times as many flips", "p"], against,
                      "Guided flips among the super weights against random ones")],
    )  # fmt: skip


def _places(table: pl.DataFrame) -> Iterator[tuple[tuple[str, str], pl.DataFrame]]:
    flips = table.filter((pl.col("counted") == "flips") & (pl.col("protection") == NONE))
    for (dtype, threat), mine in flips.group_by(["dtype", "threat"], maintain_order=True):
        yield (str(dtype), str(threat)), mine


def _median(mine: pl.DataFrame, arm: str) -> str:
    told = mine.filter((pl.col("arm") == arm) & (pl.col("runs") > 0)).to_dicts()
    if not told:
        return ""
    r = told[0]
    low, high = ("…" if r[end] is None else f"{r[end]:g}" for end in ("low", "high"))
    return f"> {r['longest']:g}" if r["median"] is None else f"{r['median']:g} [{low}, {high}]"


def _asked(study: Study) -> pl.DataFrame:
    return attacks_against(study).filter(
        (pl.col("arm") == ARM) & pl.col("rival").is_in(ARMS_RIVALS) & (pl.col("counted") == "flips")
        & (pl.col("protection") == NONE)
    )  # fmt: skip


def _protection(named: list[tuple[str, Study]]) -> Section | None:
    told = _with(named, critical_share)
    if not told:
        return None
    rows = [
        [model, r["fault"], r["dtype"], r["dose"], r["protection"],
         f"{wording.significant(r['ratio'])} [{wording.significant(r['low'])}, {wording.significant(r['high'])}]",
         {"holds": "yes", "fails": "no", "open": "can't be told"}[r["status"]],
         "–" if r["free"] is None else f"{r['free']}, {wording.significant(r['free_ratio'])}"]
        for model, table in told for r in table.iter_rows(named=True)
    ]  # fmt: skip
    table = pl.concat([t for _, t in told])
    worked = table.group_by("fault", "dtype", maintain_order=True).agg(
        (pl.col("status") == "fails").sum().alias("fails"), (pl.col("status") == "holds").sum().alias("holds"),
        pl.len().alias("of"),
    )  # fmt: skip
    said = [f"{r['fault']} {r['dtype']}: fails in {r['fails']}, holds in {r['holds']} of {r['of']}"
            for r in worked.iter_rows(named=True)]  # fmt: skip
    return Section(
        "across_protection", "All models: where does protecting the critical share fail?", "; ".join(said) + ".",
        "The best protection of the critical share at each fault and dose that surely breaks the unprotected model: "
        "the chance of breaking over the unprotected one's with a 95% interval, and whether it surely at most halves "
        "it. Last the best protection that adds no bits, and its chance over the unprotected one's.",
        tables=[Table(["<model", "<fault", "<dtype", "dose", "<protection", "<times the breaks", "<halves them",
                       "<best without bits"], rows)],
    )  # fmt: skip


def _vulnerability(named: list[tuple[str, Study]]) -> Section | None:
    told = _with(named, vulnerability)
    if not told:
        return None
    rows = [row for model, study in named for row in _vulnerable(model, study)]
    return Section(
        "across_vulnerability", "All models: how few weights hold the vulnerability?", _few(named),
        "The chance that a flip of a bit drawn anywhere breaks the model, the share of the breaking bits that its "
        f"worst bit holds, and what {FEW:.0%} of the weights by score hold, with 95% intervals. Harm counts every rise "
        f"of the loss, also such as break nothing: how much of it {FEW:.0%} of the weights hold, and the smallest "
        f"share tried that holds {COVERED:.0%} of it.",
        tables=[Table(["<model", "<dtype", "breaks", "flips", "<chance", "<worst bit", f"<in {FEW:.0%} of the weights",
                       f"harm in {FEW:.0%}", f"weights with {COVERED:.0%} of the harm"], rows)],
    )  # fmt: skip


def _vulnerable(model: str, study: Study) -> Iterator[list[str]]:
    table, covered = vulnerability(study).filter(pl.col("protection") == NONE), coverage(study)
    for r in table.filter(pl.col("axis") == "all").iter_rows(named=True):
        bits = table.filter((pl.col("axis") == "bit") & (pl.col("dtype") == r["dtype"])).drop_nulls("share")
        top = bits.sort("share", descending=True).head(1).to_dicts()
        few = covered.filter((pl.col("dtype") == r["dtype"]) & (pl.col("share") <= ROUNDED * FEW)).sort("share")
        last = few.drop_nulls("covered").tail(1).to_dicts()
        yield [
            model, r["dtype"], str(r["breaks"]), str(r["flips"]), _share(r["probability"], r["low"], r["high"]),
            f"{top[0]['bit']}: {wording.percent(top[0]['share'])}" if top else "–",
            _share(last[0]["covered"], last[0]["low"], last[0]["high"]) if last else "–",
            *_harm(covered.filter(pl.col("dtype") == r["dtype"]), few),
        ]  # fmt: skip


def _harm(covered: pl.DataFrame, few: pl.DataFrame) -> list[str]:
    """What few weights hold of the harm, and how many hold most of it."""
    last, most = few.drop_nulls("harm").tail(1).to_dicts(), smallest(covered, "harm")
    return [wording.percent(last[0]["harm"]) if last else "–", wording.percent(most["share"]) if most else "–"]


def _share(x: float, low: float, high: float) -> str:
    return f"{wording.percent(x)} [{wording.percent(low)}, {wording.percent(high)}]"


def _few(named: list[tuple[str, Study]]) -> str:
    tables = [coverage(study).filter(pl.col("dtype") == "int8") for _, study in named]
    told = [t for t in tables if len(t)]
    sure = sum("holds" in set(t.filter(pl.col("share") <= ROUNDED * FEW)["status"]) for t in told)
    by_estimate = sum(len(t.filter((pl.col("share") <= ROUNDED * FEW) & (pl.col("covered") >= COVERED))) > 0
                      for t in told)  # fmt: skip
    return (
        f"{FEW:.0%} of the weights hold {COVERED:.0%} of the vulnerability in int8 surely in {sure} of {len(told)} "
        f"studies, and by estimate in {by_estimate}."
    )
