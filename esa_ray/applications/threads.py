"""Small products on CPUs: computed by one thread each, several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def single_threaded() -> Iterator[int]:
    """Operations of torch run in one thread each for the length of a ``with`` block; gives how many it had before.

    For many small operations: waking other threads takes longer than they save, on a busy machine many times longer.
    And one thread gives the same bits whatever the machine.

    >>> with single_threaded():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    if threads == 1:  # setting them, even to the same number, is seen by every thread of the process
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def each(work: Callable[[Tensor], None], chunks: Sequence[Tensor], threads: int) -> None:
    """Work through chunks, on a CPU with so many threads, in no fixed order.

    >>> found = []
    >>> each(lambda chunk: found.append(int(chunk.sum())), torch.arange(6).split(2), 2)
    >>> sorted(found)
    [1, 5, 9]
    """
    if threads == 1 or len(chunks) < 2 or chunks[0].device.type != "cpu":
        for chunk in chunks:
            work(chunk)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, chunks))
