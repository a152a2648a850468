"""Whether a model that was tuned with damage to its critical weights survives that damage better, and at what cost.

Legend: S tunings by seeds of their own, B resamples of the cells' seeds and windows; of (S, 1 + B) the first column is
the data as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.damage.dose import Curve
from analysis.damage.landmarks import reached, room_of
from analysis.damage.paired import bounds
from analysis.damage.series import divergence, response, series
from analysis.damage.windows import baseline
from analysis.statistics.crossed import crossed_interval
from analysis.statistics.inference import LEVEL
from analysis.study import Study
from analysis.tuning.goals import MARGIN, status_of
from esa_ray.spec.scores import grouped
from esa_ray.spec.tuning import TuneSpec

#: The damage that is to be survived, and how much more of it.
DAMAGE, TIMES = "sign_flip", 2.0
INTACT, UNDAMAGED = "the intact model", "tuned without damage"
NEEDED = {INTACT: "needs a study of the intact model", UNDAMAGED: "needs the same tuning without damage, by this seed"}
#: Fields of a tuning that say what is damaged in it, and not how it trains.
OF_DAMAGE = ("damage", "damaged", "score")

HARDENED: dict[str, Any] = {
    "parent": pl.String, "way": pl.String, "damage": pl.String, "rival": pl.String, "series": pl.String,
    "chosen": pl.String, "tunings": pl.Int64, "dose": pl.Float64, "rival_dose": pl.Float64, "ratio": pl.Float64,
    "bound": pl.String, "ratio_low": pl.Float64, "ratio_high": pl.Float64, "ratio_status": pl.String,
    "cost": pl.Float64, "cost_low": pl.Float64, "cost_high": pl.Float64, "cost_status": pl.String,
    "candidates": pl.Int64, "status": pl.String, "why_not": pl.String,
}  # fmt: skip


def _text(how: Any) -> str:
    return json.dumps(how, sort_keys=True)


@dataclass(frozen=True, eq=False)
class Tuned:
    """A study of a model that was tuned: of which parent (its fingerprint), how, and by which seed."""

    study: Study
    parent: str
    how: dict[str, Any]
    seed: int

    @property
    def spec(self) -> TuneSpec:
        """How it was tuned; the texts aside."""
        return TuneSpec.model_validate({name: v for name, v in self.how.items() if name in TuneSpec.model_fields})

    @property
    def alike(self) -> str:
        """What it has in common with the same tuning without damage."""
        return _text({name: value for name, value in self.how.items() if name not in OF_DAMAGE})


@dataclass(frozen=True, eq=False)
class Dose:
    """A dose at half collapse, as it is and resampled, (1 + B,): it lies between ``least`` and ``most``.

    They are equal where the tested doses reach it, else 0 or the doses that it lies beyond.
    """

    least: np.ndarray
    most: np.ndarray


def origin(study: Study) -> dict[str, Any] | None:
    """Parent, edit and seed of a study's model, if it was tuned; None otherwise."""
    found = study.resolved.get("made_of")
    return found if found and found["edit"].get("kind") == "tune" else None


def tuned_models(studies: Sequence[Study]) -> list[Tuned]:
    """The studies of tuned models."""
    told = [(study, made) for study in studies if (made := origin(study))]
    return [Tuned(study, made["parent"]["fingerprint"], made["edit"], made["seed"]) for study, made in told]


@lru_cache(maxsize=4)
def hardened(studies: tuple[Study, ...]) -> pl.DataFrame:
    """One row per parent, way of tuning with damage, rival and series of sign flips on super weights.

    Rivals are the parent itself and the same tunings without damage, by the same seeds. ``dose`` and ``rival_dose``
    are doses at half collapse (:func:`analysis.damage.landmarks.dose_landmarks`), geometric means over ``tunings``, and
    ``ratio`` is the one over the other. A dose that no tested one reaches lies beyond the largest tested one (or
    between the largest finite dose and the one from which on all diverges): then the ratio is a ``bound``, at least or
    at most. Super weights are each model's own: what is attacked is what the tuned model hangs on.

    The 95% interval is Student's on ln ratio over tunings, its variance that between tunings plus that of resampled
    seeds and windows of the cells, the same ones for both models. A bound's interval has one end, and so has that of
    a ratio of which over 2.5% of the resamples are bounds.

    ``cost`` is the NLL of the tuned model, undamaged, less the rival's on the same evaluation windows, nats per token,
    with :func:`analysis.statistics.crossed.crossed_interval` over tunings and windows. ``ratio_status``: at least 2 by
    its interval; ``cost_status``: at most 0.02 nats; ``status`` is both, with allowance for ``candidates`` ways of one
    parent (Bonferroni).

    ``way`` is the tuning's label, with what tells it apart from others of that label where there are any.
    """
    found = tuned_models(studies)
    by_parent: dict[str, list[Tuned]] = {}
    for model in found:
        by_parent.setdefault(model.parent, []).append(model)
    rows = [row for parent, models in by_parent.items() for row in _of(parent, models, studies)]
    return pl.DataFrame(rows, schema=HARDENED)


def _of(parent: str, models: list[Tuned], studies: Sequence[Study]) -> Iterator[dict[str, Any]]:
    damaged: dict[str, list[Tuned]] = {}
    for model in models:
        if "damage" in model.how:
            damaged.setdefault(_text(model.how), []).append(model)
    intact = next((s for s in studies if s.resolved["model"] == parent), None)
    for name, mine in zip(_names([mine[0] for mine in damaged.values()]), damaged.values(), strict=True):
        mine.sort(key=lambda model: model.seed)
        plain = {m.seed: m.study for m in models if "damage" not in m.how and m.alike == mine[0].alike}
        rivals = {
            INTACT: [(m.study, intact) for m in mine if intact is not None],
            UNDAMAGED: [(m.study, plain[m.seed]) for m in mine if m.seed in plain],
        }
        spec, made = mine[0].spec, origin(mine[0].study)
        assert spec.damage
        assert made
        common = {"parent": made["parent"]["name"], "way": name, "damage": spec.damage.label,
                  "candidates": len(damaged)}  # fmt: skip
        for rival, pairs in rivals.items():
            if not pairs:
                yield common | {"rival": rival, "status": "open", "why_not": NEEDED[rival]}
            yield from (common | {"rival": rival} | row for row in _rows(pairs, len(damaged)))


def _names(ways: Sequence[Tuned]) -> list[str]:
    """A way's label, and of those with one label whatever they differ in: steps, batch, components, texts."""
    labels, asked = [each.spec.label for each in ways], [_asked(each) for each in ways]
    found = []
    for label, mine in zip(labels, asked, strict=True):
        alike = [other for named, other in zip(labels, asked, strict=True) if named == label]
        unlike = [key for key in dict.fromkeys(k for other in alike for k in other)
                  if len({_text(other.get(key)) for other in alike}) > 1]  # fmt: skip
        found.append(", ".join([label, *(f"{key} {_said(mine.get(key))}" for key in unlike)]))
    return found


def _asked(model: Tuned) -> dict[str, Any]:
    """All that a tuning was asked to do, its defaults too, and of its texts what isn't a default, by name."""
    texts = {name: v for name, v in model.how.items() if name not in TuneSpec.model_fields and name != "kind"}
    found = model.spec.model_dump(mode="json") | {"components": grouped(model.spec.components)}
    for name, value in texts.items():
        found |= {f"{name} {k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _said(value: Any) -> str:
    return "as usual" if value is None else "+".join(value) if isinstance(value, list | tuple) else str(value)


def _rows(pairs: list[tuple[Study, Study]], candidates: int) -> Iterator[dict[str, Any]]:
    """A row for each series that all of these studies have."""
    shared = [{_key(c): c for c in flips(study)} for pair in pairs for study in pair]
    for key in (k for k in (shared[0] if shared else ()) if all(k in curves for curves in shared)):
        c = shared[0][key]
        yield {"series": c.series.what["series"], "chosen": c.series.what["chosen"]} | _row(pairs, key, candidates)
    if shared and not set.intersection(*(set(curves) for curves in shared)):
        yield {"status": "open", "why_not": "these studies share no series of sign flips on super weights"}


@lru_cache(maxsize=64)
def flips(study: Study) -> list[Curve]:
    """A study's series of sign flips on super weights, without fitted curves: a dose is read off the isotonic one."""
    if study.baselines.is_empty():
        return []
    found = []
    for s in (s for s in series(study) if s.what["perturbation"] == DAMAGE):
        if (lost := divergence(s, "super")).tested > 1:
            found.append(Curve(s, "super", response(s, "super"), lost, [], []))
    return found


def _key(c: Curve) -> tuple:
    return tuple(c.series.what[name] for name in ("axis", "metric", "mode", "k", "variant", "strength", "direction"))


def half_collapse(study: Study, c: Curve) -> Dose | str:
    """The dose at which one curve is half of the way to a uniform guess; a text says why there is none."""
    room, told = room_of(study)
    if told:
        return told
    if c.lost.partly or (c.mine is not None and c.mine.left_out):
        return "seeds that diverged are left out, which are the weak ones"
    if c.mine is None:
        return "no seed has a finite loss"
    value, drawn = reached(c.mine, c.mine.draws(), room / 2)
    doses = np.concatenate([[value], drawn])
    first, last = float(c.mine.doses[0]), float(c.mine.doses[-1])
    beyond = np.inf if c.lost.start is None else c.lost.start
    least = np.where(doses == np.inf, last, np.where(doses == -np.inf, 0.0, doses))
    return Dose(least, np.where(doses == np.inf, beyond, np.where(doses == -np.inf, first, doses)))


def _row(pairs: list[tuple[Study, Study]], key: tuple, candidates: int) -> dict[str, Any]:
    found = [tuple(half_collapse(s, next(c for c in flips(s) if _key(c) == key)) for s in pair) for pair in pairs]
    row: dict[str, Any] = {"tunings": len(pairs)} | _cost(pairs)
    if why := next((dose for pair in found for dose in pair if isinstance(dose, str)), None):
        return row | {"status": "open", "why_not": why}
    mine, other = ([pair[i] for pair in found] for i in (0, 1))
    least = _logs([d.least for d in mine]) - _logs([d.most for d in other])  # type: ignore[union-attr]
    most = _logs([d.most for d in mine]) - _logs([d.least for d in other])  # type: ignore[union-attr]
    row |= {"dose": _middle(mine), "rival_dose": _middle(other)} | _ratio(least, most)
    sure = 1 - (1 - LEVEL) / candidates
    row["ratio_status"] = _ratio_status(least, most, LEVEL)
    found_status = {row["ratio_status"], row["cost_status"]}
    if "fails" in found_status or "open" in found_status:
        return row | {"status": "fails" if "fails" in found_status else "open"}
    certain = _ratio_status(least, most, sure) == "holds" and status_of(_costs(pairs), MARGIN, sure) == "holds"
    why = None if certain else f"not sure with the choice of {candidates} ways; run more seeds or windows"
    return row | {"status": "holds" if certain else "open", "why_not": why}


def _logs(doses: list[np.ndarray]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(doses))


def _middle(doses: Sequence[Any]) -> float | None:
    """Geometric mean; None where one is only bounded."""
    if any(d.least[0] != d.most[0] for d in doses):
        return None
    return float(np.exp(np.mean([np.log(d.least[0]) for d in doses])))


def _ratio(least: np.ndarray, most: np.ndarray) -> dict[str, Any]:
    low, high = float(least[:, 0].mean()), float(most[:, 0].mean())
    shown, bound = (low, None) if low == high else (low, "at least") if np.isfinite(low) else (high, "at most")
    return {
        "ratio": math.exp(shown) if np.isfinite(shown) else None, "bound": bound if np.isfinite(shown) else None,
        "ratio_low": _end(least, -1), "ratio_high": _end(most, 1),
    }  # fmt: skip


def _end(logs: np.ndarray, side: int, level: float = LEVEL) -> float | None:
    """One end of the interval of a ratio whose logarithms (S, 1 + B) are these; None where it has no such end."""
    middle, drawn = float(logs[:, 0].mean()), logs[:, 1:].mean(axis=0)
    if not np.isfinite(middle):
        return None
    known = np.isfinite(drawn)
    if (~known).mean() > (1 - level) / 2:  # so many of them lie beyond what was tested that the end may, too
        return None
    square = float(drawn[known].var())
    n = len(logs)
    square += float(logs[:, 0].var(ddof=1)) / n if n > 1 else 0.0
    critical = stats.t.ppf((1 + level) / 2, n - 1) if n > 1 else stats.norm.ppf((1 + level) / 2)
    return float(math.exp(middle + side * critical * math.sqrt(square)))


def _ratio_status(least: np.ndarray, most: np.ndarray, level: float) -> str:
    low, high = _end(least, -1, level), _end(most, 1, level)
    return "holds" if low is not None and low >= TIMES else "fails" if high is not None and high < TIMES else "open"


def _costs(pairs: list[tuple[Study, Study]]) -> np.ndarray:
    """(S, W): NLL of each tuned model less its rival's in each evaluation window, over the mean tokens of a window."""
    found = []
    for mine, other in pairs:
        a, b = baseline(mine), baseline(other)
        found.append((np.array(a["nll"]) - np.array(b["nll"])) / float(np.mean(b["tokens"])))
    return np.array(found)


def _cost(pairs: list[tuple[Study, Study]]) -> dict[str, Any]:
    d = _costs(pairs)
    low, high = bounds(crossed_interval(d))
    return {"cost": float(d.mean()), "cost_low": low, "cost_high": high, "cost_status": status_of(d, MARGIN)}
