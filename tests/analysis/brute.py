"""What stability is by its definition, set by set."""

from itertools import combinations

import numpy as np
import polars as pl


def sets(table, k, **where):
    rows = table.filter([pl.col(name) == value for name, value in where.items()] + [pl.col("rank") <= k])
    return {s: set(m.select("tensor", "flat").iter_rows()) for (s,), m in rows.group_by(["seed"], maintain_order=True)}


def mean_jaccard(by_seed):
    return np.mean([len(a & b) / len(a | b) for a, b in combinations(by_seed.values(), 2)])
