"""Folding per-window gradients beside one product over all rows, which is the least that their sum takes."""

import time
from collections.abc import Callable
from functools import partial

import torch

from esa_ray.scoring.fold import FOLDS, fold_windows

SHAPES = {"cpu": [(576, 576), (1536, 576), (2048, 8192)], "cuda": [(4096, 4096), (14336, 4096), (128256, 4096)]}
WINDOWS, TOKENS = 8, {"cpu": 128, "cuda": 2048}


def _seconds(way: Callable[[], object], device: str, rounds: int) -> float:
    """The least of some rounds, after one that isn't counted: other work on the machine only adds."""
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        way()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def main(quick: bool = False) -> None:
    """Milliseconds a batch, and the product's time over the fold's own."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens, rounds = TOKENS[device], 3 if quick else 7
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"fold: {WINDOWS} windows of {tokens} tokens, {name}; in brackets the bare product's time over the fold's")
    for m, n in SHAPES[device][: 2 if quick else None]:
        totals = {name: torch.zeros(m, n, device=device) for name in FOLDS}
        for dtype in (torch.float32, torch.bfloat16):
            left, right = (torch.randn(WINDOWS * tokens, k, device=device).to(dtype) for k in (m, n))
            offsets = list(range(0, len(left) + 1, tokens))
            bare = _seconds(partial(torch.mm, left.T, right), device, rounds)
            shown = []
            for names in (*([name] for name in FOLDS), list(FOLDS)):
                some = {name: totals[name] for name in names}
                fold = partial(fold_windows, some, left, right, offsets)
                taken = _seconds(fold, device, rounds)
                shown.append(f"{'+'.join(names)} {1e3 * taken:.1f} ms ({bare / taken:.2f})")
            print(f"  {m} × {n} {str(dtype)[6:]}: product {1e3 * bare:.1f} ms, {', '.join(shown)}")
