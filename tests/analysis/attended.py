"""Studies of attention under damage whose every outcome is planted, written row by row.

Legend: BLOCKS blocks of HEADS heads. The heads of block 1 and later are sinks, spikes stand after blocks 1 and 2.
"""

import numpy as np

from tests.analysis.roled import RUN, WINDOWS, written

BLOCKS, HEADS = 4, 3
SINK = [0.05, 0.6, 0.8, 0.5]
SPIKE = [10.0, 400.0, 500.0, 90.0]
ENTROPY = [2.5, 1.5, 1.0, 1.8]


def subject(number, group="super", layer=1, component="down", seed=1, edit="zero", unit="weight"):
    """Columns that say what was damaged."""
    return RUN | {
        "subject": f"{layer}.{component}[{number},0]", "unit": unit, "group": group,
        "draw": None if group == "super" else 0, "rank": number + 1, "tensor": f"layers.{layer}.{component}.weight",
        "layer": layer, "component": component, "expert": None, "row": number, "col": 0, "weight": 0.5, "score": None,
        "metric": "grad_x_weight_abs", "seed": seed, "edit": edit,
    }  # fmt: skip


def rows(what, *, cost=0.0, moved=0.1, sink=1.0, spike=1.0, entropy=0.0, status="ok"):
    """Rows of one damage: from its block on sinks and spikes are multiplied, and nats of entropy are added.

    A number for all blocks, or one each.
    """
    found = []
    for block in range(BLOCKS):
        mine = [np.broadcast_to(x, BLOCKS)[block] for x in (sink, spike, entropy)]
        reached = block >= what["layer"]
        before = [SINK[block]] * HEADS
        found.append(what | {
            "attention_id": f"{what['subject']}{what['edit']}{what['seed']}", "block": block, "status": status,
            "sink": [s * mine[0] if reached else s for s in before], "sink_intact": before,
            "elsewhere": [0.1] * HEADS, "elsewhere_intact": [0.1] * HEADS,
            "entropy": [ENTROPY[block] + mine[2] * reached] * HEADS, "entropy_intact": [ENTROPY[block]] * HEADS,
            "previous": [0.2] * HEADS, "previous_intact": [0.2] * HEADS,
            "spike": SPIKE[block] * (mine[1] if reached else 1.0), "spike_intact": SPIKE[block],
            "spike_channel": 7, "spike_channel_intact": 5, "spike_first": 0.0, "spike_first_intact": 0.75,
            "delta_z": moved, "delta_nll": [float(cost)] * WINDOWS,
        })  # fmt: skip
    return found


def study_of(directory, *damages):
    """A study with the rows of some damages."""
    return written(directory, attention=[row for damage in damages for row in damage])
