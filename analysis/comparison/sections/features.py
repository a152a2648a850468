"""Sections on models as wholes: what tells them apart, and which are robust."""

from __future__ import annotations

from analysis import wording
from analysis.comparison.fingerprints import Told, features, grouped, matrix, robustness, told_apart
from analysis.comparison.laws import named
from analysis.comparison.loading import Comparison
from analysis.comparison.sections.words import number
from analysis.sections.parts import Figure, Section, Table


def fingerprints(comparison: Comparison) -> Section | None:
    """Groups and classes."""
    x, names = matrix(features(comparison))
    series = comparison.models.select(s=named())["s"].to_list()
    found = grouped(x, comparison.models["model"].to_list(), series)
    if found is None:
        return None
    answer = (
        f"By {len(names)} features, the tree of models keeps {wording.percent(found.cophenetic)} of their distances "
        "(cophenetic correlation)."
    )
    if found.agreement is not None:
        answer += (
            " Cut into as many groups as there are series, it agrees with them to an adjusted Rand index of "
            f"{found.agreement:.2f} (p {wording.p_value(found.p)})."
        )
    else:
        answer += f" Groups and families: {found.why_not}."
    told = told_apart(x, names, series)
    tables = []
    if isinstance(told, str):
        answer += f" Classes can't be learnt: {told}."
    else:
        best = max(told, key=lambda t: t.accuracy)
        answer += (
            f" A model's series is told from its features right in {wording.percent(best.accuracy)} of models left "
            f"out ({best.classifier}; chance {wording.percent(best.chance)}, p {wording.p_value(best.p)})."
        )
        tables = _told_tables(told, names)
    return Section(
        "fingerprints", "What tells architectures apart?", answer,
        "Features don't depend on how text is cut into tokens. Support: share of resamples of the features in which "
        "exactly "
        "these models are a group. Accuracy is balanced, each model judged by the others; sizes of one series "
        "resemble each "
        "other by construction, and importance says what the classifier leans on, not what causes the difference.",
        [Figure("tree", "Tree of models by their features; supports in percent", "Models grouped by Ward's method; "
            "numbers are supports in percent.")],
        tables,
    )  # fmt: skip


def _told_tables(told: list[Told], names: list[str]) -> list[Table]:
    rows = [
        [t.classifier, ", ".join(f"{n} {c}" for c, n in t.classes.items()), wording.percent(t.accuracy),
         wording.percent(t.chance), wording.p_value(t.p)]
        for t in told
    ]  # fmt: skip
    by = sorted(names, key=lambda n: -max(t.importance[n] for t in told))
    importance = [[n, *(wording.percent(t.importance[n]) for t in told)] for n in by]
    return [
        Table(["<classifier", "~classes", "accuracy", "chance", "p"], rows, "Telling series apart"),
        Table(
            ["<feature", *(t.classifier for t in told)],
            importance,
            "What it leans on: loss of accuracy when a feature is shuffled",
        ),
    ]


def ranks(comparison: Comparison) -> Section | None:
    """Robustness."""
    table = robustness(comparison)
    if table.is_empty():
        return None
    first, last = table.row(0, named=True), table.row(-1, named=True)
    left = len(comparison.studies) - len(table)
    answer = (
        f"{first['model']} is the most robust: a tenth of a collapse takes "
        f"{wording.significant(100 * first['value'], 2)}% of its scored weights; "
        f"{last['model']} the least, {wording.significant(100 * last['value'], 2)}%."
        + (f" {left} models' sets don't reach a tenth of a collapse, and can't be ranked." if left else "")
    )
    rows = [
        [r["model"], r["family"], number(r["value"]), str(r["rank"]), f"{r['rank_low']:.0f} to {r['rank_high']:.0f}"]
        for r in table.iter_rows(named=True)
    ]
    return Section(
        "ranking", "Which models are robust?", answer,
        "The fraction of scored weights, the most sensitive first, that has to be damaged to lose a tenth of the way "
        "from the intact loss to a uniform guess. Ranks hold 95% of those found when seeds and windows are resampled.",
        [Figure("ranking", "Fraction of weights at a tenth of a collapse, by model; numbers in the table below",
                "Models from the most robust to the least.")],
        [Table(["<model", "<family", "fraction", "rank", "<95% of ranks"], rows)],
    )  # fmt: skip
