"""The single-weight sample: single weights damaged one by one, beside what scores foresee of that.

Scores and predictions are of the calibration windows and the measured change is of the evaluation windows, so that
between them stand the score's own error and that of another text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from esa_ray.errors import EsaError
from esa_ray.models.slots import bits
from esa_ray.perturb.edit import Write, perturbed, written
from esa_ray.perturb.sites import group_of
from esa_ray.schema import FIDELITY
from esa_ray.spec import PerturbSpec

if TYPE_CHECKING:
    from esa_ray.models.addressing import Catalogue, WeightTensor
    from esa_ray.resume import Resumable

#: What :func:`measure` does to a weight; both have a known step.
EDITS = ("zero", "sign_flip")


@contextmanager
def nudged(tensor: WeightTensor, flat: int) -> Iterator[float]:
    """One weight moved by one unit in the last place towards 0, for the length of a ``with`` block, by that step.

    Its true effect is next to nothing, so that the change that is measured is the measurement's own noise.

    Raises
    ------
    NotRestoredError
        If the weight is not, bit for bit, what it was at the end, or that can't be told.
    """
    group = group_of([tensor], [np.array([flat])])
    old = group.gathered()
    new = (bits(old) - 1).view(old.dtype)
    with written([Write(group, old, new)]):
        yield float(new.double() - old.double())


def measure(
    catalogue: Catalogue,
    resumable: Resumable,
    samples: pa.Table,
    edits: Sequence[str] = ("zero", "sign_flip"),
    *,
    null_every: int = 4,
) -> pa.Table:
    """Damage every sampled weight alone, and measure the change of each window's loss (``schema.FIDELITY``).

    Per weight a row for each edit, and for every ``null_every``-th weight (0: none) one more, ``null_edit``, which
    measures rounding alone: :meth:`Resumable.jittered` at the weight's block (for embeddings, which nothing stands
    before, :func:`nudged`). Beside the change stands what the calibration windows foresee for the realised step δ
    (−w for zero, −2w for a sign flip), in nats per token:

        first_order = g·δ,    second_order = g·δ + h·δ²/2.

    Rows are ordered by layer, tensor and flat index. NaN and infinity stand where the damaged loss is.

    Raises
    ------
    EsaError
        If an edit is none of ``EDITS``.
    """
    if unknown := [e for e in edits if e not in EDITS]:
        raise EsaError(f"the single-weight sample knows no edit {unknown[0]!r}; give some of {', '.join(EDITS)}")
    rows: list[dict[str, Any]] = []
    ordered = samples.sort_by([(by, "ascending") for by in ("layer", "tensor", "flat")])
    for number, row in enumerate(ordered.to_pylist()):
        null = ["null_edit"] if null_every and number % null_every == 0 else []
        rows += [_measured(catalogue, resumable, row, edit) for edit in [*edits, *null]]
    return pa.Table.from_pylist(rows, schema=FIDELITY)


def _measured(catalogue: Catalogue, resumable: Resumable, row: dict[str, Any], edit: str) -> dict[str, Any]:
    tensor, flat = catalogue[row["tensor"]], row["flat"]
    start = resumable.starts_at(tensor)
    if edit != "null_edit":
        spec = PerturbSpec(kind=edit)
        with perturbed(catalogue, {tensor.name: np.array([flat])}, spec, row["seed"]) as applied:
            delta = resumable.delta_nll(start)
        # Of a single weight the norm of the change is its size, and both edits move it towards 0 or beyond.
        step = math.copysign(applied.delta_norm, -row["weight"])
    elif start is None:
        with nudged(tensor, flat) as step:
            delta = resumable.delta_nll(start)
    else:
        with resumable.jittered(start, row["seed"], tensor.name, flat):
            delta, step = resumable.delta_nll(start), 0.0
    g, h = row["gradient"], row["curvature"]
    return row | {
        "edit": edit,
        "delta_nll": delta,
        "tokens": resumable.tokens,
        "first_order": None if g is None else g * step,
        "second_order": None if g is None or h is None else g * step + h * step**2 / 2,
    }
