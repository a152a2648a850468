"""Proof by edit that a model's weights are what the catalogue calls them: one row of each kind, and what it changes.

What is observed is the model's own computation: what enters attention, what enters the next matrix, what a module gives
out. Nothing of it goes by the catalogue's parts but the question which row to change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.proofs.watching import Edit, Watched, changed, other_row
from esa_ray.models.account import pattern
from esa_ray.models.modes import eval_mode
from esa_ray.scoring.products import experts_one_by_one

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue, WeightTensor

OK, NOT_RUN, NO_CLAIM = "ok", "not run", "no claim"


def prove(model: PreTrainedModel, catalogue: Catalogue) -> dict[str, str]:
    """For each component and kind of tensor "ok", or what an edit of one of its rows changed wrongly in some block.

    Kinds are patterns of names, ``*`` for numbers. "not run": text never comes to any tensor of that kind. "no claim":
    it is ``other``, or a mixer's. The model is in memory in float32; afterwards it is what it was.
    """
    found: dict[str, str] = {}
    with eval_mode(model), experts_one_by_one(model), torch.no_grad():
        watched = Watched(model, catalogue)
        for tensor in catalogue.tensors:
            for number, part in enumerate(tensor.parts):
                key = f"{part.component} {pattern(tensor.name)}"
                if found.get(key, OK) in (OK, NOT_RUN):
                    result = _proved(watched, tensor, number)
                    found[key] = found.get(key, NOT_RUN) if result == NOT_RUN else result
    return found


def _proved(watched: Watched, tensor: WeightTensor, number: int) -> str:
    component = tensor.parts[number].component
    rows = np.flatnonzero(np.isin(tensor.row_part, [i for i, p in enumerate(tensor.parts) if p.component == component]))
    if wrong := _inverse(tensor):
        return wrong
    check = CHECKS.get(component)
    if check is None:
        return NO_CLAIM
    expert = next((e for e in range(tensor.shape[0]) if (tensor.name, e) in watched.intact.inputs), 0)
    ordinal = len(rows) * 2 // 3
    return check(Edit(watched, tensor, rows, ordinal, expert if tensor.experts else 0))


def _inverse(tensor: WeightTensor) -> str | None:
    """Whether ``index`` takes back what ``locate`` tells, and finds the same weight as the axes do."""
    flat = np.unique(np.linspace(0, tensor.size - 1, 23).astype(int))
    where = tensor.locate(flat)
    again = [tensor.index(*three) for three in zip(where["row"], where["col"], where["expert"], strict=True)]
    return None if again == flat.tolist() else "index is not the inverse of locate"


def _heads(edit: Edit) -> str:
    """Exactly one head of exactly q, k or v enters attention otherwise: of grouped heads those that share it."""
    component = edit.component
    after = edit.seen()
    pairs = list(zip(edit.attended(edit.before), edit.attended(after), strict=True))
    changes = [(which, b, a) for b, a in pairs if (which := {c for c in "qkv" if changed(b[c], a[c], -1)})]
    if not changes:
        unchanged = "attention doesn't change" if edit.attended(after) else "attention isn't seen"
        return unchanged if edit.multiplies else NOT_RUN
    which, before, behind = changes[0]
    if component == "k" and not edit.takers("v") and which == {"k", "v"}:  # Gemma 4 may take its keys as values, too
        which = {"k"}
    if which != {component}:
        return f"{' and '.join(sorted(which))} of attention change"
    twice = len(pairs) == 2 and torch.equal(pairs[0][0]["q"], pairs[1][0]["q"])
    if component == "v" and twice and len(changes) == 1:  # differential attention: a call for half of the value heads
        return OK if changed(before["v"], behind["v"], -3) == set(range(before["v"].shape[-3])) else "heads stay"
    size = before["v" if component == "v" else "q"].shape[-1]
    return _one_head(edit, size, before[component], behind[component])


def _one_head(edit: Edit, size: int, before: Tensor, after: Tensor) -> str:
    flat = [t.reshape(-1, *t.shape[-2:]) for t in (before, after)]
    heads = len(flat[0])
    part = edit.tensor.parts[edit.tensor.row_part[edit.row]]
    # A head that takes its rows of several tensors has fewer in each.
    each = min(size, part.run)
    stored = max(1, len(edit.rows) // each)
    if heads % stored:
        return f"{stored} heads are told, {heads} attend"
    share, head, found = heads // stored, edit.ordinal // each, changed(*flat, 0)
    wanted = set(range(head * share, (head + 1) * share))
    copies = set(range(head, heads, stored))  # shared heads are repeated one by one, or all in turn
    right = found in (wanted, copies) or (edit.tensor.experts and found <= copies)
    return OK if right else f"heads {sorted(found)} change, not {sorted(wanted)}"


def _neuron(edit: Edit) -> str:
    """Exactly that neuron enters the down-projection otherwise; linearly by ``up`` where there is a gate."""
    component = edit.component
    into = next((t for t in edit.takers("down") if t.cols == len(edit.rows)), None)
    key = (into.name, edit.expert if into.experts else 0) if into else None
    if key is None or key not in edit.before.inputs:
        return "no down-projection takes it in" if edit.multiplies else NOT_RUN
    before, found = edit.before.inputs[key], edit.seen().inputs
    if wrong := _only(edit.before.inputs[key], found[key], -1, edit.ordinal):
        return wrong
    others = [k for k in found if k[0] == key[0] and k != key and not torch.equal(found[k], edit.before.inputs[k])]
    if others and not _batched(before):
        return f"experts {sorted(e for _, e in others)} change, too"
    gated = any(p.component == "gate" for t in [edit.tensor, *edit.takers("gate")[:1]] for p in t.parts)
    return _bent(edit, key, component) if gated else OK


def _batched(values: Tensor) -> bool:
    return values.dim() == 3


def _bent(edit: Edit, key: tuple[str, int], component: str) -> str:
    """Whether the neuron is affine in the row where that is ``up``, and isn't where it is the gate."""
    at = [edit.seen(lambda w, t=t: w * t).inputs[key][..., edit.ordinal] for t in (-1.0, 0.0, 1.0)]
    straight = bool(((at[0] + at[2] - 2 * at[1]).abs() < 1e-4 * (at[2] - at[0]).abs().max()).all())
    if straight == (component == "up"):
        return OK
    return "it passes no activation" if straight else "it passes an activation"


def _only(before: Tensor, after: Tensor, axis: int, *wanted: int) -> str | None:
    found = changed(before, after, axis)
    return None if found == set(wanted) else f"channels {sorted(found)[:8]} change, not {', '.join(map(str, wanted))}"


def _channel(edit: Edit) -> str:
    """Exactly that channel of what the module gives out."""
    owner, after, key = edit.tensor.slots[0].owner, edit.seen(), (edit.tensor.name, edit.expert)
    pairs: list[tuple[Tensor, Tensor]] = []
    if owner in edit.before.outputs:
        pairs = list(zip(edit.before.outputs[owner], after.outputs[owner], strict=True))
    if key in edit.before.made and not any(b.shape[-1] == edit.tensor.rows for b, _ in pairs):
        pairs = [(edit.before.made[key], after.made[key])]
    if not any(b.any() for b, _ in pairs):
        return NOT_RUN
    if edit.tensor.parameter.dim() > 1 and len(edit.tensor.shape) == 1:  # a norm of every head
        pairs = [(b.flatten(-2), a.flatten(-2)) for b, a in pairs]
    found = [_only(b, a, -1, edit.row) for b, a in pairs if b.shape[-1] == edit.tensor.rows]
    return OK if None in found else (found[0] or OK if found else "its module gives out nothing of its size")


def _latent(edit: Edit) -> str:
    """Exactly that channel of the latent enters the matrix that makes heads of it."""
    component = edit.component
    n = len(edit.rows)
    into = next((t for t in edit.takers("q" if component == "q_latent" else "v") if t.cols % n == 0), None)
    key = (into.name, 0) if into else None
    if into is None or key not in edit.before.inputs:
        return "nothing takes the latent in" if edit.multiplies else NOT_RUN
    return _only(edit.before.inputs[key], edit.seen().inputs[key], -1, *range(edit.ordinal, into.cols, n)) or OK


def _gate_of_heads(edit: Edit) -> str:
    """What enters attention stays, and of what leaves it the channels of one head (or one channel) change."""
    into = next(iter(edit.takers("o")), None)
    key = (into.name, 0) if into else None
    if into is None or key not in edit.before.inputs:
        return NOT_RUN
    after = edit.seen()
    # Blocks that run again see their own changes.
    for b, a in zip(edit.attended(edit.before)[:1], edit.attended(after)[:1], strict=True):
        if any(changed(b[c], a[c], -1) for c in "qkv"):
            return "what enters attention changes"
    each = into.cols // len(edit.rows)
    found = changed(edit.before.inputs[key], after.inputs[key], -1)
    wanted = set(range(edit.ordinal * each, (edit.ordinal + 1) * each))
    return OK if found == wanted else f"channels {sorted(found)[:8]} change, not {sorted(wanted)[:8]}"


def _token(edit: Edit) -> str:
    """What the embedding gives where its input is that row's number, and nowhere else."""
    name = edit.tensor.name
    if name not in edit.before.lookups:
        return NOT_RUN
    numbers, before = edit.before.lookups[name]
    row = int(numbers.flatten()[-1])
    with edit.watched.edited(edit.tensor, row, 0, other_row):
        after = edit.watched.run().lookups[name][1]
    off = (after - before).abs().amax(-1) > 0
    return OK if torch.equal(off, numbers == row) else "other positions change"


def _logit(edit: Edit) -> str:
    before, after = edit.before.logits, edit.seen().logits
    assert before is not None
    assert after is not None
    return _only(before, after, -1, edit.row) or OK


CHECKS: dict[str, Callable[[Edit], str]] = {
    **dict.fromkeys("qkv", _heads),
    **dict.fromkeys(("q_latent", "kv_latent"), _latent),
    **dict.fromkeys(("gate", "up"), _neuron),
    **dict.fromkeys(("o", "down", "router", "norm"), _channel),
    "attn_gate": _gate_of_heads,
    "embed": _token,
    "head": _logit,
}
