"""Studies of faults and attacks whose every outcome is planted, written row by row."""

import math
from datetime import UTC, datetime
from itertools import product

import numpy as np

import analysis
from esa_ray.spec import STORED, DataSpec, FaultSpec, ModelSpec, StudySpec
from esa_ray.spec.security import CONFINED
from esa_ray.storage.store import Store
from tests.analysis.synthetic import save_table

TOKENS, WINDOWS, WEIGHTS, VOCABULARY, BLOCKS = 100, 8, 10_000, 1000, 4
#: The stored model's loss, nats per token.
RATE = 3.0
BASE = TOKENS * (RATE + np.linspace(-0.2, 0.2, WINDOWS))
#: Bits that a protection adds over those of the weights, as tables say it.
OVERHEAD = {"secded": 0.125, "secded-critical": 0.01, "tmr-critical": 0.002}
RANGES = ("0.00-0.90", "0.90-0.99", "0.99-0.999", "0.999-1.00")
SIZES = dict(zip(RANGES, (0.9, 0.09, 0.009, 0.001), strict=True))


def written(directory, faults=(), attacks=(), rows=None, attacked=None, seeds=(1, 2, 3), model="made-up"):
    """A study that asked for some faults and attacks, with these rows."""
    store = Store(directory)
    asked = StudySpec(
        name="made", model=ModelSpec(source=model), data=DataSpec(source="home", evaluation_windows=WINDOWS),
        seeds=seeds, scores=(), faults=tuple(faults), attacks=tuple(attacks),
    )  # fmt: skip
    resolved = {"model": "f" * 64, "dtype": "fp32", "text": "t", "bos": True, "windows": 200, "pool": 190,
                "parameters": 1000, "layers": BLOCKS, "architecture": "Made", "vocabulary": VOCABULARY}  # fmt: skip
    store.save_study(asked, resolved, {"esa-ray": "0"})
    for name, table in (("faults", rows), ("attacks", attacked)):
        if table is not None and len(table):
            save_table(directory, name, table)
    return analysis.load(directory)


def _common(spec, seed):
    critical = "critical" in spec.protect
    return {
        "study": "made", "model": "m", "data": "home", "label": spec.label, "dtype": spec.dtype, "computed": "fp32",
        "protection": spec.protection, "protect": spec.protect, "critical": spec.critical if critical else None,
        "policy": spec.policy if "secded" in spec.protect else None, "components": ",".join(spec.components),
        "seed": seed, "n_weights": WEIGHTS, "n_bits": WEIGHTS * STORED[spec.dtype],
        "overhead": OVERHEAD.get(spec.protect, 0.0), "packed_overhead": 0.003 if critical else None,
        "covered": spec.critical if critical else None, "stored_nll": BASE.tolist(),
        "intact_nll": (BASE - 0.02 * TOKENS).tolist(), "device": "here", "version": "v", "worker": "w",
        "created": datetime.now(UTC), "seconds": 1.0,
    }  # fmt: skip


def _outcome(delta):
    """Columns of an outcome ``delta`` nats per token above the stored model; None: it diverged."""
    lost = delta is None
    nll = np.full(WINDOWS, np.nan) if lost else BASE + TOKENS * np.asarray(delta)
    return {"status": "diverged" if lost else "ok", "nll": nll.tolist(), "tokens": [TOKENS] * WINDOWS,
            "hits": [40] * WINDOWS, "windows": WINDOWS}  # fmt: skip


def injected(spec, seeds, breaks, *, delta=0.5, changed=True, **columns):
    """Rows of a fault: ``spec.repeats`` by each seed, of which the first ``breaks`` in all break the model."""
    places = list(product(seeds, range(spec.repeats)))
    return [
        _common(spec, seed) | _outcome((delta if i < breaks else 0.01) if changed else 0.0) | {
            "fault_id": f"{spec.label}{seed}", "fault": spec.fault, "rate": spec.rate, "events": spec.events,
            "burst": spec.burst if spec.fault == "burst" else None,
            "row_bytes": spec.row_bytes if spec.fault in ("row", "column") else None, "repeat": repeat, "n_flips": 3,
            "n_corrected": 0, "n_detected": 0, "n_miscorrected": 0, "n_undetected": 3, "n_changed": 3 * changed,
            "delta_norm": 1.0,
        } | columns for i, (seed, repeat) in enumerate(places)
    ]  # fmt: skip


def bit_class(dtype, bit):
    exponent = {"fp32": 8, "bf16": 8, "fp16": 5}.get(dtype, 0)
    top = STORED[dtype] - 1
    if bit == top:
        return "sign"
    return "magnitude" if dtype == "int8" else "exponent" if bit >= top - exponent else "mantissa"


def flipped(dtype, outcome, *, components=("q", "down"), seeds=(1, 2), repeats=4, bits=None):
    """Rows of single flips: ``outcome(component, stratum, bit, number)`` is (ΔNLL or None, predicted, value read)."""
    spec, rows = FaultSpec(fault="single", dtype=dtype, repeats=repeats), []
    strata = product(components, RANGES, range(STORED[dtype]) if bits is None else bits)
    for component, stratum, bit in strata:
        for number, (seed, repeat) in enumerate(product(seeds, range(repeats))):
            delta, predicted, damaged = outcome(component, stratum, bit, number)
            rows.append(_common(spec, seed) | _outcome(delta) | {
                "fault_id": f"{dtype}{seed}{bit}", "fault": "single", "repeat": repeat, "n_flips": 1, "n_changed": 1,
                "n_undetected": 1, "bit": bit, "bit_class": bit_class(dtype, bit), "tensor": component, "layer": 0,
                "component": component, "row": 0, "col": 0, "stratum": stratum, "score": spec.score,
                "population": round(SIZES[stratum] * WEIGHTS / len(components)), "weight": 0.01, "damaged": damaged,
                "predicted": predicted,
            })  # fmt: skip
    return rows


def attack(spec, seed, flips, *, collapses=True, bits=1, steps=True):
    """Rows of an attack that collapses the model with its last of ``flips`` flips, or doesn't."""
    rows = []
    top = math.log(VOCABULARY) - RATE
    for step in range(flips + 1) if steps else (0,):
        done = collapses and step == flips and step > 0
        delta = top + 0.5 if done else 0.9 * top * step / max(flips, 1)
        rows.append(_common(spec, seed) | _outcome(delta) | {
            "attack_id": f"{spec.label}{seed}", "way": spec.way, "arm": spec.arm, "threat": spec.threat,
            "budget": spec.budget, "k": spec.k if spec.arm in CONFINED else None, "draw": spec.draw,
            "step": step, "last": step == flips, "bit": 7 if step else None, "bit_class": "sign" if step else None,
            "component": "down" if step else None, "bits_flipped": bits, "bits_spent": bits * step,
            "predicted": 1.0 if step else None, "collapsed": done, "vocabulary": VOCABULARY,
        })  # fmt: skip
    return [{k: v for k, v in row.items() if k not in ("hits", "windows", "n_bits")} | {"n_bits": 0} for row in rows]
