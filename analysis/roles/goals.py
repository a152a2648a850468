"""What was asked of roles and facts: criteria, each with the numbers that judge it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import polars as pl

from analysis.roles.assigned import ANY, assigned
from analysis.roles.damages import primary
from analysis.roles.false import false_roles
from analysis.roles.stability import agreements
from analysis.roles.table import ENOUGH, leading
from analysis.roles.tracing import BEST, SUBLAYERS, consistency, traced_sensitivity
from analysis.study import Study

#: Targets: share of weights and of damage with a role, share of matched weights with one, agreement.
WEIGHTS, MASS, FALSE_ROLES, AGREEMENT = 0.5, 0.7, 0.05, 0.7
#: Leading weights that cost anything, below which no share of them is judged.
FEWEST = 10
#: Matched weights that hurt, below which no share of them is judged.
HURT = 20
#: Least ρ of ways of asking for one fact, and most ρ of tracing with sensitivity.
CONSISTENCY, STORES = 0.5, 0.3

GOALS: dict[str, Any] = {
    "goal": pl.String, "target": pl.Float64, "estimate": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "status": pl.String, "evidence": pl.String, "why_not": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def role_goals(*studies: Study) -> pl.DataFrame:
    """One row per goal that a study of roles can be held to; further studies are of the same model and other texts.

    "weights": at least half of the leading weights whose own damage exceeds the noise hold a role by themselves; what
    their sets hold stands beside it. "mass": they bear at least 70% of the damage. "false": at most 5% of matched
    weights that hurt would get one. "stability": κ of at least 0.7 over seeds, texts and kinds of damage, the worst of
    them. Shares of fewer than ten weights that cost anything, or of fewer than twenty matched ones, are left open.
    ``status``: "holds" where the 95% interval lies on the right side of the target, "fails" on the wrong side, else
    "open"; the share of weights is counted in full and needs none.
    """
    first = primary(studies[0])
    if first is None:
        return pl.DataFrame(schema=GOALS)
    rows = [*_shares(studies[0], first), _false(studies[0], first), _stable(studies)]
    return pl.DataFrame(rows, schema=GOALS)


def least(low: float, high: float, target: float) -> str:
    """Whether an interval says that something is at least a target.

    >>> least(0.55, 0.8, 0.5), least(0.4, 0.6, 0.5), least(0.1, 0.3, 0.5)
    ('holds', 'open', 'fails')
    """
    return "holds" if low >= target else "fails" if high < target else "open"


def most(low: float, high: float, target: float) -> str:
    """Whether an interval says that something is at most a target.

    >>> most(0.0, 0.03, 0.05), most(0.02, 0.1, 0.05), most(0.06, 0.2, 0.05)
    ('holds', 'open', 'fails')
    """
    return "holds" if high <= target else "fails" if low > target else "open"


def _at(table: pl.DataFrame, first: tuple[str, int]) -> list[dict[str, Any]]:
    return table.filter(
        (pl.col("edit") == first[0]) & (pl.col("seed") == first[1]) & (pl.col("role") == ANY)
    ).to_dicts()


def _shares(study: Study, first: tuple[str, int]) -> list[dict[str, Any]]:
    found = _at(assigned(study), first)
    if not found or not found[0]["own_of"]:
        none = "no leading weight's damage exceeds the noise"
        return [{"goal": name, "target": target, "status": "open", "why_not": none}
                for name, target in (("weights", WEIGHTS), ("mass", MASS))]  # fmt: skip
    r = found[0]
    why = _few(study, first)
    if not why and r["missing"]:
        why = f"the mediators of {r['missing']} weights, or of matched ones, weren't held"
    few = None if r["own_of"] >= FEWEST else (
        f"{r['own_of']} leading weight{'s cost' if r['own_of'] != 1 else ' costs'} more than noise, and {FEWEST} are "
        "the least that a share is judged by"
    )  # fmt: skip
    rows = []
    for goal, target, ends in (("weights", WEIGHTS, ("own_share", "own_low", "own_high")),
                               ("mass", MASS, ("own_mass", "own_mass_low", "own_mass_high"))):  # fmt: skip
        estimate, low, high = (r[name] for name in ends)
        if estimate is None or low is None or high is None:
            rows.append({"goal": goal, "target": target, "status": "open", "why_not": "all damage is within noise"})
            continue
        # All leading weights are counted: their share is no estimate, and its interval is about others.
        status = least(estimate, estimate, target) if goal == "weights" else least(low, high, target)
        rows.append({
            "goal": goal, "target": target, "estimate": estimate, "low": low, "high": high,
            "status": "open" if few or (why and status != "holds") else status,
            "evidence": f"{r['own']} of {r['own_of']}{_sets(r)}", "why_not": why or few,
        })  # fmt: skip
    return rows


def _sets(r: dict[str, Any]) -> str:
    return f"; with their sets {r['weights']} of {r['of']}" if r["sets"] or r["of"] != r["own_of"] else ""


def _few(study: Study, first: tuple[str, int]) -> str | None:
    """Why nothing can be necessary: too few matched weights."""
    mine = leading(study).filter((pl.col("edit") == first[0]) & (pl.col("seed") == first[1]))
    counts = mine["null"].drop_nulls().to_list()
    if not counts or max(counts) >= ENOUGH:
        return None
    return f"{max(counts)} matched weights are too few for a p that survives the correction; raise --null-weights"


def _false(study: Study, first: tuple[str, int]) -> dict[str, Any]:
    told = {"goal": "false", "target": FALSE_ROLES}
    found = _at(false_roles(study), first)
    if not found:
        return told | {"status": "open", "why_not": "no two matched weights of one tensor were damaged"}
    r = found[0]
    if r["threshold"] is None:
        return told | {"status": "open", "why_not": "no leading weight passes, so that none is held to that"}
    few = None if r["hurt"] >= HURT else (
        f"{r['hurt']} of {r['matched']} matched weights hurt, so that only these could get one, and {HURT} are the "
        "least that a share is judged by"
    )  # fmt: skip
    if not r["hurt"]:
        return told | {"status": "open", "why_not": few}
    return told | {
        "estimate": r["share"], "low": r["low"], "high": r["high"],
        "status": "open" if few else most(r["low"], r["high"], FALSE_ROLES),
        "evidence": f"{r['false']} of {r['hurt']} that hurt, of {r['matched']}", "why_not": few,
    }  # fmt: skip


def _stable(studies: Sequence[Study]) -> dict[str, Any]:
    told = {"goal": "stability", "target": AGREEMENT}
    table = agreements(studies).filter(pl.col("of") == "roles")
    if table.is_empty():
        return told | {"status": "open", "why_not": "one seed, one text and one kind of damage"}
    worst = table.sort("kappa").row(0, named=True)
    tried = set(table["over"])
    status = least(worst["kappa_low"], worst["kappa_high"], AGREEMENT)
    lacking = [
        name for over, name in (("seed", "seeds"), ("text", "texts"), ("edit", "kinds of damage")) if over not in tried
    ]
    why = f"{' and '.join(lacking)} weren't compared" if lacking else None
    return told | {
        "estimate": worst["kappa"], "low": worst["kappa_low"], "high": worst["kappa_high"],
        "status": "open" if why and status == "holds" else status, "why_not": why,
        "evidence": f"{worst['one']} against {worst['other']}, the least of {len(table)}",
    }  # fmt: skip


@lru_cache(maxsize=8)
def fact_goals(study: Study) -> pl.DataFrame:
    """One row per goal that a study of facts can be held to, of the first corruption and one restored block.

    "consistent": ρ between ways of asking for one fact is at least 0.5, and surely above that between different
    facts of a relation.
    "stores": over places ρ of sensitivity and of what restoring gives back is at most 0.3, within attention and within
    feed-forward layers, so that sensitivity isn't where facts return; of both together ρ would also tell that their
    matrices differ in size. It fails if it does in either of them, and holds if it does in both.
    """
    if study.facts.is_empty():
        return pl.DataFrame(schema=GOALS)
    return pl.DataFrame([_consistent(study), _stores(study)], schema=GOALS)


def _arm(table: pl.DataFrame, sublayers: Sequence[str]) -> dict[str, Any] | None:
    """The row of the first corruption, of the fewest restored blocks, and of the first sub-layer that has one."""
    for sublayer in sublayers:
        for r in table.filter(pl.col("sublayer") == sublayer).sort("restored", maintain_order=True).to_dicts():
            return r
    return None


def _consistent(study: Study) -> dict[str, Any]:
    told = {"goal": "consistent", "target": CONSISTENCY}
    table = consistency(study)
    r = _arm(table.sort(pl.col("corruption") != "subject", maintain_order=True), ("ffn", "residual", "attention"))
    if r is None:
        return told | {"status": "open", "why_not": "fewer than three facts are known in two ways of asking"}
    status = least(r["low"], r["high"], CONSISTENCY)
    why = None if (r["difference_low"] or 0) > 0 else (
        "no relation has two known facts" if r["others"] is None else "different facts agree as much"
    )  # fmt: skip
    return told | {
        "estimate": r["rho"], "low": r["low"], "high": r["high"],
        "status": "open" if why and status == "holds" else status, "why_not": why,
        "evidence": f"{r['sublayer']}, {r['facts']} facts; {_more(r)}".replace("-", "−"),
    }  # fmt: skip


def _more(r: dict[str, Any]) -> str:
    if r["others"] is None:
        return "no other fact of a relation"
    ends = f"[{r['difference_low']:.2f}, {r['difference_high']:.2f}]"
    return f"{r['difference']:.2f} {ends} more than different facts of a relation"


def _stores(study: Study) -> dict[str, Any]:
    told = {"goal": "stores", "target": STORES}
    table = traced_sensitivity(study).filter(pl.col("position") == BEST)
    table = table.sort(pl.col("corruption") != "subject", "restored", maintain_order=True)
    found = [r for r in (_arm(table, (sublayer,)) for sublayer in SUBLAYERS[1:]) if r is not None]
    if not found:
        return told | {
            "status": "open",
            "why_not": "fewer than three known facts were traced at places with a sensitivity",
        }
    each = [most(r["low"], r["high"], STORES) for r in found]
    worst = max(found, key=lambda r: r["rho"])
    return told | {
        "estimate": worst["rho"], "low": worst["low"], "high": worst["high"],
        "status": "fails" if "fails" in each else "open" if "open" in each else "holds",
        "evidence": "; ".join(f"{r['sublayer']} {_within(r)} over {r['places']} places" for r in found)
        + f"; {worst['facts']} facts",
    }  # fmt: skip


def _within(r: dict[str, Any]) -> str:
    return f"{r['rho']:.2f} [{r['low']:.2f}, {r['high']:.2f}]".replace("-", "−")
