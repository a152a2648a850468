"""Sections on models as wholes: what tells them apart, and which are robust."""

from __future__ import annotations

from analysis.comparison.fingerprints import Grouping, Told, features, grouped, matrix, robustness, told_apart
from analysis.comparison.laws import named
from analysis.comparison.loading import Comparison
from analysis.comparison.sections.words import Columns, listed, number, text
from analysis.report import wording
from analysis.report.parts import Figure, Section, Table


def fingerprints(comparison: Comparison) -> Section | None:
    """Groups and classes."""
    x, names = matrix(features(comparison))
    series = comparison.models.select(s=named())["s"].to_list()
    found = grouped(x, comparison.models["model"].to_list(), series)
    if found is None:
        return None
    told = told_apart(x, names, series)
    words, tables = (f"Classes can't be learnt: {told}.", []) if isinstance(told, str) else _told(told, names)
    return Section(
        "fingerprints", "What tells architectures apart?", f"{_groups(found, len(names))} {words}",
        "Features don't depend on how text is cut into tokens. Support: share of resamples of the features in which "
        "exactly these models are a group. Accuracy is balanced, each model judged by the others; sizes of one series "
        "resemble each other by construction, and importance says what the classifier leans on, not what causes the "
        "difference.",
        [Figure("tree", "Tree of models by their features; supports in percent",
                "Models grouped by Ward's method; numbers are supports in percent.")],
        tables,
    )  # fmt: skip


def _groups(found: Grouping, features: int) -> str:
    kept = wording.percent(found.cophenetic)
    words = f"By {features} features, the tree of models keeps {kept} of their distances (cophenetic correlation)."
    if found.agreement is None:
        return f"{words} Groups and families: {found.why_not}."
    return (
        f"{words} Cut into as many groups as there are series, it agrees with them to an adjusted Rand index of "
        f"{found.agreement:.2f} (p {wording.p_value(found.p)})."
    )


def _told(told: list[Told], names: list[str]) -> tuple[str, list[Table]]:
    """How well series are told apart, in words and tables."""
    best = max(told, key=lambda t: t.accuracy)
    words = (
        f"A model's series is told from its features right in {wording.percent(best.accuracy)} of models left out "
        f"({best.classifier}; chance {wording.percent(best.chance)}, p {wording.p_value(best.p)})."
    )
    rows = [
        [t.classifier, ", ".join(f"{n} {c}" for c, n in t.classes.items()), wording.percent(t.accuracy),
         wording.percent(t.chance), wording.p_value(t.p)]
        for t in told
    ]  # fmt: skip
    by = sorted(names, key=lambda name: -max(t.importance[name] for t in told))
    importance = [[name, *(wording.percent(t.importance[name]) for t in told)] for name in by]
    return words, [
        Table(["<classifier", "~classes", "accuracy", "chance", "p"], rows, "Telling series apart"),
        Table(["<feature", *(t.classifier for t in told)], importance,
              "What it leans on: loss of accuracy when a feature is shuffled"),
    ]  # fmt: skip


RANKS: Columns = {
    "<model": text("model"),
    "<family": text("family"),
    "fraction": lambda r: f"{r['beyond'] or ''} {number(r['value'])}".strip(),
    "rank": text("rank"),
    "<95% of ranks": lambda r: f"{r['rank_low']:.0f} to {r['rank_high']:.0f}",
}


def ranks(comparison: Comparison) -> Section | None:
    """Robustness."""
    table = robustness(comparison)
    if table.is_empty():
        return None
    (first, first_is), (last, last_is) = ((r, "is" if r["rank"] else "may be") for r in table[[0, -1]].to_dicts())
    left = len(comparison.studies) - len(table)
    most, least = (f"{r['beyond'] or ''} {wording.significant(100 * r['value'], 2)}%".strip() for r in (first, last))
    answer = (
        f"{first['model']} {first_is} the most robust: a tenth of a collapse takes {most} of its scored weights; "
        f"{last['model']} {last_is} the least, {least}."
        + (
            f" {left} models can't be ranked: no damage common to all, or a vocabulary that isn't known."
            if left
            else ""
        )
    )
    return Section(
        "ranking", "Which models are robust?", answer,
        "The fraction of scored weights, the most sensitive first, that has to be damaged to lose a tenth of the way "
        "from the intact loss to a uniform guess. Ranks hold 95% of those found when values are drawn from their "
        "intervals. “Less than”: already the smallest set does more; “more than”: not even the largest does as much, "
        "so that a rank may stay open.",
        [Figure("ranking", "Fraction of weights at a tenth of a collapse, by model; numbers in the table below",
                "Models from the most robust to the least.")],
        [listed(table.iter_rows(named=True), RANKS)],
    )  # fmt: skip
