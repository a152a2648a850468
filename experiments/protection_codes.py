"""Hypothesis: error correction on the critical share buys next to nothing against faults in bf16; what is free does.

P5.2. Weights of three architectures of the zoo are stored in bf16 and int8, without protection; behind SECDED of
everything or of the words that hold the critical 0.1% or 1%; with the critical 0.1% three times; and behind what adds
no bits: the top exponent bit held at 0, values clamped to the tensor's largest, a parity bit that zeroes. They meet
uniform flips at two rates, bursts, a row and a column of memory and stuck bits; against uniform flips alone matrices
are also stored reflected (after arXiv:2603.16382). SmolLM2-135M meets uniform flips. If the hypothesis holds,
protecting the critical share doesn't halve the breaks in bf16 under any fault, and clamping does at no cost; in int8,
where a flip can't make a weight huge, the critical share is worth more. The experiment `faults` says in advance in
which order protections should stand. What would speak against it: what is free breaks as often as nothing, or zeroes so
many weights that it costs more than it saves.
"""

from typing import Any

from esa_ray.spec import FaultSpec, StudySpec
from esa_ray.spec.security import Protection, Stored
from experiments.faults import LARGE, MODELS, study

#: Twenty injections of each fault behind each protection, by two seeds.
REPEATS = 10
PROTECTIONS: tuple[dict[str, Any], ...] = (
    {}, {"protect": "zero-exponent-bit"}, {"protect": "clamp"}, {"protect": "parity-zero"}, {"protect": "secded"},
    {"protect": "secded-critical"}, {"protect": "tmr-critical"},
)  # fmt: skip
#: Against uniform flips alone: a larger share, and matrices that are stored reflected.
UNIFORM: tuple[dict[str, Any], ...] = ({"protect": "secded-critical", "critical": 0.01}, {"protect": "rotation"})
#: Rates of uniform flips by dtype, of which int8 withstands a thousand times as many; and those of bursts and stuck
#: bits, with how many rows and columns there are.
RATES: dict[Stored, tuple[float, ...]] = {"bf16": (1e-6, 1e-5), "int8": (3e-3, 1e-2)}
BURSTS: dict[Stored, float] = {"bf16": 1e-5, "int8": 1e-2}
STUCK: dict[Stored, float] = {"bf16": 2e-5, "int8": 2e-2}
ROWS: dict[Stored, int] = {"bf16": 1, "int8": 16}
COLUMNS: dict[Stored, int] = {"bf16": 1, "int8": 64}
#: Rates of the larger model, which has 400 times as many bits.
LARGE_RATES: dict[Stored, tuple[float, ...]] = {"bf16": (1e-9, 1e-8), "int8": (1e-5, 1e-4)}
LARGE_PROTECTIONS: dict[Stored, Protection] = {"bf16": "zero-exponent-bit", "int8": "clamp"}


def doses(dtype: Stored) -> list[dict[str, Any]]:
    """Five faults in one dtype, uniform ones at two rates."""
    return [
        *({"rate": r} for r in RATES[dtype]), {"fault": "burst", "rate": BURSTS[dtype]},
        {"fault": "row", "events": ROWS[dtype]}, {"fault": "column", "events": COLUMNS[dtype]},
        {"fault": "stuck", "rate": STUCK[dtype]},
    ]  # fmt: skip


def faults() -> tuple[FaultSpec, ...]:
    """Every fault behind every protection that the dtype can have."""
    every = [
        FaultSpec(dtype=dtype, repeats=REPEATS, **dose, **how)
        for dtype in RATES
        for dose in doses(dtype)
        for how in (*PROTECTIONS, *(UNIFORM if dose.keys() == {"rate"} else ()))
        if (dtype, how.get("protect")) != ("int8", "zero-exponent-bit")
    ]
    return tuple(every)


def large() -> tuple[FaultSpec, ...]:
    """Uniform flips in the larger model behind what costs nothing, what costs little and what costs 12.5%."""
    behind: dict[Stored, tuple[Protection, ...]] = {
        dtype: ("none", LARGE_PROTECTIONS[dtype], "secded-critical", "secded") for dtype in LARGE_RATES
    }
    return tuple(
        FaultSpec(dtype=dtype, rate=rate, protect=protect, repeats=REPEATS)
        for dtype, rates in LARGE_RATES.items()
        for rate in rates
        for protect in behind[dtype]
    )


def studies() -> list[StudySpec]:
    """A study of each model."""
    return [*(study(model, faults=faults()) for model in MODELS), study(LARGE, faults=large())]
