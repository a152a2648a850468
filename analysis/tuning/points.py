"""Tunings side by side: what each gained on the target and forgot of the source, by seed and window; which rate won."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.paired import bounds
from analysis.statistics.crossed import crossed_interval
from analysis.study import Study
from esa_ray.spec.tuning import ARMS

#: What the row of the model as it is is called.
INTACT = "intact"
#: Words of a text's role → the columns of its losses: what was gained is told of the target, the rest of the source.
TEXTS = {"target": ("target_nll", "target_tokens"), "source": ("source_nll", "source_tokens")}
#: What names a way of tuning, as the tables on tuning begin.
WHO: dict[str, Any] = {
    "way": pl.String, "arm": pl.String, "fraction": pl.Float64, "protect": pl.String, "strength": pl.Float64,
    "damage": pl.String,
}  # fmt: skip
CHOSEN: dict[str, Any] = WHO | {
    "learning_rate": pl.Float64, "tried": pl.Int64, "edge": pl.String, "rates_diverged": pl.Int64, "steps": pl.Int64,
    "trainable": pl.Float64, "share": pl.Float64, "rank": pl.Float64, "draws": pl.Int64, "seeds": pl.Int64,
    "errors": pl.Int64, "validation": pl.Float64, "target_windows": pl.Int64, "target_loss": pl.Float64,
    "gain": pl.Float64, "gain_low": pl.Float64, "gain_high": pl.Float64, "source_windows": pl.Int64,
    "source_loss": pl.Float64, "forgetting": pl.Float64, "forgetting_low": pl.Float64, "forgetting_high": pl.Float64,
    "seconds": pl.Float64, "why_not": pl.String,
}  # fmt: skip
Losses = dict[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class Point:
    """One way of tuning at one learning rate; random masks of one count are one way, whatever their draws.

    ``rows`` are its stored rows, ``intact`` the model's as it was.
    """

    way: str
    learning_rate: float
    rows: pl.DataFrame
    intact: dict[str, Any]

    @cached_property
    def what(self) -> dict[str, Any]:
        """Its first row."""
        return self.rows.row(0, named=True)

    @property
    def who(self) -> dict[str, Any]:
        """The columns :data:`WHO`."""
        return {"way": self.way} | {name: self.what[name] for name in WHO if name != "way"}

    @property
    def plain(self) -> bool:
        """Whether it is full tuning, nothing protected and nothing damaged."""
        return self.what["arm"] == "full" and self.what["protect"] == "none" and self.what["damage"] is None

    @property
    def draws(self) -> int:
        """How many draws of its weights there are; 1 for all but random masks."""
        return self.rows["draw"].n_unique()

    @property
    def steps(self) -> list[int]:
        """After which steps it was measured."""
        return sorted(self.rows["steps"].drop_nulls().unique())

    @cached_property
    def last(self) -> pl.DataFrame:
        """Its rows of the last step, with an outcome."""
        return self.rows.filter(pl.col("last").fill_null(value=False) & (pl.col("status") == "ok"))

    def count(self, status: str) -> int:
        """How many of its trainings have a row with a status: each is one seed and draw."""
        return self.rows.filter(pl.col("status") == status).select("seed", "draw").n_unique()

    def losses(self, text: str, step: int | None = None) -> Losses:
        """Seed → (W,): NLL less the intact model's on each window, over the mean tokens of a window, nats per token.

        ``text`` is target or source, ``step`` None the last one. Of random masks it is the mean over their draws, of
        seeds in which all have a result. The intact model's loss is that of the hardware that a row was computed on.
        """
        nll, tokens = TEXTS[text]
        rows = self.last if step is None else self.rows.filter((pl.col("steps") == step) & (pl.col("status") == "ok"))
        base, size = np.array(self.intact[nll]), float(np.mean(self.intact[tokens]))
        rows = rows.filter(pl.col(nll).list.len() == len(base)).unique(["seed", "draw"], keep="first")
        rows = rows.with_columns(pl.col(f"intact_{nll}").fill_null(pl.lit(base.tolist(), pl.List(pl.Float64))))
        return {
            int(seed): np.mean(np.array(mine[nll].to_list()) - np.array(mine[f"intact_{nll}"].to_list()), axis=0) / size
            for (seed,), mine in rows.sort("seed", "draw").group_by(["seed"], maintain_order=True)
            if len(mine) == self.draws
        }

    @cached_property
    def gained(self) -> Losses:
        """Seed → (W,): target NLL of the intact model less its own at the last step, nats per token."""
        return {seed: -d for seed, d in self.losses("target").items()}

    @cached_property
    def forgotten(self) -> Losses:
        """Seed → (W,): source NLL at the last step less the intact model's, nats per token."""
        return self.losses("source")

    @cached_property
    def validation(self) -> dict[int, float]:
        """Seed → mean validation loss at the last step, nats per token (over draws, of seeds that all have)."""
        per = self.last.select(
            "seed", loss=pl.col("validation_nll").list.sum() / pl.col("validation_tokens").list.sum()
        ).drop_nulls()
        grouped = per.group_by("seed").agg(pl.col("loss").mean(), pl.len()).filter(pl.col("len") == self.draws)
        return dict(grouped.sort("seed").select("seed", "loss").iter_rows())

    @property
    def mean_validation(self) -> float:
        """The mean of :attr:`validation` over seeds; NaN without one."""
        return float(np.mean(list(self.validation.values()))) if self.validation else float("nan")

    def mean(self, column: str) -> float | None:
        """The mean of a column over its last rows; None where it is nowhere told."""
        told = self.last[column].drop_nulls()
        return float(np.mean(told.to_numpy())) if len(told) else None

    @property
    def share(self) -> float | None:
        """Numbers that are trained over weights of the components."""
        trainable, n = self.mean("trainable"), self.mean("n_weights")
        return trainable / n if trainable is not None and n else None


@dataclass(frozen=True, eq=False)
class Way:
    """A way of tuning at all its learning rates, and the one that validation chose (None, and why)."""

    name: str
    points: tuple[Point, ...]
    best: Point | None
    why_not: str | None

    @property
    def edge(self) -> str | None:
        """Whether the best rate is the smallest or largest of those tried, beyond which a better one may lie."""
        if self.best is None:
            return None
        rates = [p.learning_rate for p in self.points]
        ends = {"only": len(rates) == 1, "smallest": self.best.learning_rate == rates[0],
                "largest": self.best.learning_rate == rates[-1]}  # fmt: skip
        return next((name for name, at in ends.items() if at), None)


@lru_cache(maxsize=8)
def ways(study: Study) -> tuple[Way, ...]:
    """Every way of tuning, in the order of arms and shares; none where the intact model has no row.

    Its best rate has the lowest mean validation loss over seeds at the last step. A rate at which a seed diverged is
    never chosen, nor is one that lacks a seed that another has: seeds differ in their validation windows.
    """
    table = study.tunings
    intact = table.filter((pl.col("label") == INTACT) & (pl.col("status") == "ok"))
    if intact.is_empty():
        return ()
    base, tuned = intact.row(0, named=True), table.filter(pl.col("label") != INTACT)
    tuned = tuned.with_columns(pl.struct("way", "draw").map_elements(_without_draw, pl.String).alias("way"))
    found = []
    for (name,), rows in tuned.sort("learning_rate", "seed", "draw", "steps").group_by(["way"], maintain_order=True):
        points = tuple(
            Point(str(name), float(rate), mine, base)
            for (rate,), mine in rows.group_by(["learning_rate"], maintain_order=True)
        )
        best, why_not = _best(points)
        found.append(Way(str(name), points, best, why_not))
    return tuple(sorted(found, key=_order))


def _without_draw(row: dict[str, Any]) -> str:
    return row["way"].replace(f"-draw{row['draw']}", "", 1) if row["draw"] else row["way"]


def _order(way: Way) -> tuple:
    first = way.points[0]
    what = first.what
    arm = ARMS.index(what["arm"]) if what["arm"] in ARMS else len(ARMS)
    return not first.plain, arm, what["fraction"] or 0, what["protect"] or "", what["strength"] or 0, way.name


def _best(points: tuple[Point, ...]) -> tuple[Point | None, str | None]:
    finite = [p for p in points if not p.count("diverged")]
    if not finite:
        return None, "a seed diverged at every learning rate"
    most = max(len(p.validation) for p in finite)
    if not most:
        return None, "no training came to its end"
    whole = [p for p in finite if len(p.validation) == most]
    return min(whole, key=lambda p: (p.mean_validation, p.learning_rate)), None


def best_points(study: Study) -> tuple[Point, ...]:
    """Every way at its best learning rate, those without one left out."""
    return tuple(way.best for way in ways(study) if way.best is not None)


@lru_cache(maxsize=8)
def chosen(study: Study) -> pl.DataFrame:
    """One row per way of tuning at its best learning rate: what it gains on the target, what it forgets of the source.

    The rate is chosen by :func:`ways` out of ``tried``, at ``rates_diverged`` of which a seed diverged. ``edge``
    smallest, largest or only: no rate was tried beyond it on one side or both, so a better one may lie there.

    ``gain`` is the intact model's target NLL less the tuned model's after ``steps``, ``forgetting`` the tuned model's
    source NLL less the intact model's, nats per token: the sum of the differences over evaluation windows over the sum
    of tokens, averaged over seeds; with 95% intervals for further seeds and windows
    (:func:`analysis.statistics.crossed.crossed_interval`; with one seed, for windows). The rate was chosen by other
    windows than these, so the choice doesn't flatter the gain. Of random masks the seeds' values are means over their
    ``draws``. ``share`` is ``trainable`` over the weights of the components. ``why_not`` says why a way has no rate.
    """
    return pl.DataFrame([_row(way) for way in ways(study)], schema=CHOSEN)


def _row(way: Way) -> dict[str, Any]:
    first = way.points[0]
    row = first.who | {
        "tried": len(way.points), "rates_diverged": sum(p.count("diverged") > 0 for p in way.points),
        "errors": sum(p.count("error") for p in way.points), "draws": first.draws, "edge": way.edge,
        "why_not": way.why_not,
    }  # fmt: skip
    return row if way.best is None else row | {"learning_rate": way.best.learning_rate} | outcome(way.best)


def outcome(p: Point) -> dict[str, Any]:
    """What a point gained and forgot at its last step, with intervals, as :func:`chosen` tells it."""
    row: dict[str, Any] = {
        "steps": max(p.steps, default=None), "trainable": p.mean("trainable"), "share": p.share, "rank": p.mean("rank"),
        "seeds": len(p.validation), "validation": p.mean_validation, "seconds": p.mean("seconds"),
    }  # fmt: skip
    for name, losses, text in (("gain", p.gained, "target"), ("forgetting", p.forgotten, "source")):
        nll, tokens = TEXTS[text]
        intact = sum(p.intact[nll]) / sum(p.intact[tokens])
        row |= {f"{text}_windows": len(p.intact[nll])}
        if losses:
            d = np.array(list(losses.values()))
            low, high = bounds(crossed_interval(d))
            sign = -1 if name == "gain" else 1
            row |= {name: float(d.mean()), f"{name}_low": low, f"{name}_high": high,
                    f"{text}_loss": intact + sign * float(d.mean())}  # fmt: skip
    return row


def together(a: Losses, b: Losses) -> tuple[list[int], np.ndarray, np.ndarray]:
    """(the seeds that both have, the losses of each (S, W)): nats per token."""
    seeds = sorted(a.keys() & b.keys())
    first, second = (np.array([losses[s] for s in seeds]).reshape(len(seeds), -1) for losses in (a, b))
    return seeds, first, second
