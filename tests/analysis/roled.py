"""Studies of roles and facts whose every outcome is planted, written row by row.

Legend: weights lie in TENSORS, whose weights change metrics on scales of their own. A leading weight that is planted
as the holder of a role changes its metric STRONG times as much as others of its tensor, with the sign of the role, and
the mediator bears the share of its damage that is said.
"""

from datetime import UTC, datetime

import numpy as np

import analysis
from esa_ray.spec import DataSpec, ModelSpec, ScoreSpec, StudySpec
from esa_ray.spec.roles import SIDES, FactSpec, RoleSpec
from esa_ray.storage.store import Store
from tests.analysis.synthetic import save_table

WINDOWS, STRONG, BLOCKS, HEADS = 8, 1000.0, 4, 3
TENSORS = [f"layers.{layer}.{name}.weight" for layer in range(BLOCKS) for name in ("o", "down", "up", "q", "v")]
MEASURED = {"spike": "largest |h| over the median at BOS, log", "sink": "share of heads", "frequency": "share of Δz"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN = {"study": "made", "model": "m", "dtype": "fp32", "data": "home", "status": "ok", "seconds": 0.5, "device": "here",
       "worker": "w", "version": "v", "created": NOW}  # fmt: skip


def written(directory, seeds=(1,), source="pydoc", wanted=None, model="made-up", **tables):
    """A study that asked for roles or facts, with these rows by table."""
    store = Store(directory)
    scores = () if "facts" in tables and "roles" not in tables else (
        ScoreSpec(metric="grad_x_weight_abs", mode="global"),
    )  # fmt: skip
    asked = StudySpec(
        name="made", model=ModelSpec(source=model), data=DataSpec(source=source, evaluation_windows=WINDOWS),
        seeds=seeds, scores=scores, topk=(100,) if scores else (50,), groups=("super", "matched_k"),
        roles=(wanted or RoleSpec()) if scores else None, facts=FactSpec() if "facts" in tables else None,
    )  # fmt: skip
    resolved = {"model": "f" * 64, "dtype": "fp32", "text": "t", "bos": True, "windows": 200, "pool": 190,
                "parameters": 1000, "layers": BLOCKS, "architecture": "Made", "vocabulary": 256}  # fmt: skip
    store.save_study(asked, resolved, {"esa-ray": "0"})
    for name, rows in tables.items():
        if rows:
            save_table(directory, name, rows)
    return analysis.load(directory)


def subject(group, rank, tensor, number, edit="zero", seed=1, unit="weight"):
    """Columns that say what was damaged."""
    _, layer, component, _ = tensor.split(".")
    name = f"{layer}.{component}[{number},{rank}]" + ("" if unit == "weight" else f" {unit}")
    return RUN | {
        "subject": name, "unit": unit, "group": group, "draw": None if group == "super" else 0, "rank": rank,
        "tensor": tensor, "layer": int(layer), "component": component, "expert": None, "row": number, "col": rank,
        "weight": 0.5 / rank, "score": 1.0 / rank if group == "super" else None, "metric": "grad_x_weight_abs",
        "seed": seed, "edit": edit,
    }  # fmt: skip


def windows(mean, rng, spread=0.05):
    """A value for each window, of exactly this mean, that differs between windows by a share of it."""
    noise = rng.normal(size=WINDOWS)
    return (mean * (1 + spread * (noise - noise.mean()))).tolist()


def role_row(told, role, change, cost, rng, **columns):
    """A row of ``roles``."""
    return told | {
        "role_id": told["subject"], "role": role, "measured": MEASURED.get(role, f"metric of {role}"),
        "change": float(change), "changes": windows(change, rng), "intact": 10.0, "first_order": 0.8 * float(change),
        "condition": 0.99 if role == "confidence" else None, "delta_nll": windows(cost, rng),
    } | columns  # fmt: skip


def mediation_row(told, role, cost, share, rng, converse=None, **columns):
    """A row of ``mediations``: holding the mediator undoes a share of the damage."""
    damage = np.array(windows(cost, rng))
    return told | {
        "mediation_id": told["subject"], "role": role, "mediator": f"the mediator of {role}",
        "delta_nll": damage.tolist(), "held_nll": (damage * (1 - share)).tolist(),
        "converse_nll": (damage * (share if converse is None else converse)).tolist(),
    } | columns  # fmt: skip


def planted(
    holders,
    *,
    leading=40,
    per=5,
    roles=("spike", "sink", "frequency"),
    costs=None,
    edits=("zero",),
    seeds=(1,),
    mediate=True,
    leak=0.0,
    truth=0,
    noise=0,
):
    """Rows of ``roles`` and ``mediations``: ``holders[rank][role]`` is the share that the role's mediator bears.

    ``per`` matched weights a tensor; ``costs[rank]`` is a leading weight's damage (others: 1/rank), a matched one's
    is 0.0001; ``leak`` is the share that mediators bear of matched weights' damage.
    """
    scales = dict(zip(TENSORS, np.exp(np.random.default_rng(truth).normal(0, 2, len(TENSORS))), strict=True))
    found, held = [], []
    for edit in edits:
        for seed in seeds:
            rng = np.random.default_rng([noise, seed, len(edit)])
            for rank in range(1, leading + 1):
                tensor, mine = TENSORS[rank % len(TENSORS)], holders.get(rank, {})
                told, cost = subject("super", rank, tensor, 0, edit, seed), (costs or {}).get(rank, 1 / rank)
                for role in roles:
                    size = STRONG if role in mine else float(np.clip(abs(rng.normal()), 0.2, 1.5))
                    found.append(role_row(told, role, (SIDES[role] or 1) * scales[tensor] * size, cost, rng))
                held += [mediation_row(told, role, cost, share, rng) for role, share in mine.items() if mediate]
            for at, tensor in enumerate(TENSORS):
                for number in range(1, per + 1):
                    told = subject("matched_k", at + 1, tensor, number, edit, seed)
                    found += [role_row(told, role, scales[tensor] * rng.normal(), 1e-4, rng) for role in roles]
                    here = [mine for rank, mine in holders.items() if TENSORS[rank % len(TENSORS)] == tensor]
                    if mediate and number <= 3:
                        held += [mediation_row(told, r, 1e-4, leak, rng) for r in roles if any(r in m for m in here)]
    return {"roles": found, "mediations": held}


def fact_row(fact, position, block, sublayer, effect, *, paraphrase=0, corruption="subject", restored=1, taken=4.0,
             sensitivity=None, known=True, source="countries"):  # fmt: skip
    """A row of ``facts``."""
    return RUN | {
        "fact_id": fact, "fact": fact, "source": source, "relation": "capital", "paraphrase": paraphrase,
        "prompt": f"The capital of {fact} is", "subject": fact, "answer": "A", "alternative": "B", "known": known,
        "corruption": corruption, "seed": 1, "clean": 3.0, "corrupted": 3.0 - taken, "position": position,
        "block": block, "sublayer": sublayer, "restored": restored, "effect": effect, "share": effect / taken,
        "sensitivity": sensitivity,
    }  # fmt: skip


def traced_facts(effect, sensitivity, *, facts=8, blocks=6, paraphrases=2, noise=0.05, corruptions=("subject",),
                 restored=(1,)):  # fmt: skip
    """Rows of ``facts``: ``effect(fact, position, block, sublayer)`` in logits, ``sensitivity(block, sublayer)``."""
    rng = np.random.default_rng(0)
    return [
        fact_row(f"fact{n}", position, block, sublayer, effect(n, position, block, sublayer) + noise * rng.normal(),
                 paraphrase=p, corruption=corruption, restored=width,
                 sensitivity=None if sublayer == "residual" else sensitivity(block, sublayer))
        for corruption in corruptions for width in restored for n in range(facts) for p in range(paraphrases)
        for position in ("subject-first", "subject-last", "last") for block in range(blocks)
        for sublayer in ("residual", "attention", "ffn")
    ]  # fmt: skip
