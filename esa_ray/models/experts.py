"""Which tensors of single experts a checkpoint lacks whose model holds all of a block's experts in one.

transformers joins them as it loads, and says of one that isn't there only that the joining failed, or that what it
made of the others has another shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_OF_EXPERT = re.compile(r"^(.*\bexperts\.)(\d+)(\..+)$")
#: What configs call the number of experts in a block.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def lacking(names: Iterable[str], config: Any) -> list[str]:
    """Names of a file's experts that aren't there: every expert of every block has what any of them has.

    Parameters
    ----------
    names
        What the files hold.
    config
        The model's, or the part of it that describes its text.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> lacking(["h.experts.0.w1", "h.experts.0.w2", "h.experts.1.w2"], SimpleNamespace(num_experts=2))
    ['h.experts.1.w1']
    """
    found = [told for name in names if (told := _OF_EXPERT.match(name))]
    have = {told[0] for told in found}
    said = next((n for key in EXPERTS if isinstance(n := getattr(config, key, None), int)), 0)
    count = max([said, *(int(told[2]) + 1 for told in found)])
    leaves = sorted({told[3] for told in found})
    wanted = [
        f"{prefix}{n}{leaf}" for prefix in sorted({told[1] for told in found}) for n in range(count) for leaf in leaves
    ]
    return [name for name in wanted if name not in have]
