"""What goes wrong on purpose, in processes of the cluster: Ray calls these when a worker process starts.

Nothing in esa_ray knows of them; each replaces a method in the one process where it is used.
"""

import os
import time
from pathlib import Path


def bad_cells():
    """With k = 3: noise raises, zeroing finds no memory, bit flips end the process, a control poisons its GPU."""
    from esa_ray.engine.actor import ModelActor

    real = ModelActor.measure

    def measure(self, name, units):
        damaging = self._worker.damaging
        if not hasattr(damaging, "healthy"):
            damaging.healthy = damaging.run
            damaging.run = lambda cell, ranking: _bad(damaging, cell, ranking)
        return real(self, name, units)

    ModelActor.measure = measure


def _bad(damaging, cell, ranking):
    import torch

    if cell.k == 3 and cell.group == "random_k" and cell.perturbation.kind == "zero":
        raise getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: device-side assert triggered")
    if cell.k == 3 and cell.group == "super":
        match cell.perturbation.kind:
            case "gauss_noise":
                raise ArithmeticError("planted")
            case "zero":
                torch.empty(2**50)  # a petabyte: no machine has it
            case "bit_flip":
                os._exit(1)
    return damaging.healthy(cell, ranking)


def half_written_cells():
    """Processes are killed between the first and the last byte of a cell's file, three times in all."""
    from esa_ray.storage import location as place

    def torn(path: Path, content: bytes):
        flags = Path(os.environ["ESA_TEST_FLAGS"])
        died = len(list(flags.iterdir()))
        if path.parent.name == "cells" and died < 3:
            (flags / str(died)).touch()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(content[: len(content) // 2])
            os._exit(1)
        real(path, content)

    real, place._write_locally = place._write_locally, torn


def begun_together():
    """The first cell of an actor waits for a second actor, so that a sweep of seconds is shared by both."""
    from esa_ray.engine.actor import ModelActor

    flags, real = Path(os.environ["ESA_TEST_FLAGS"]), ModelActor.measure

    def measure(self, name, units):
        if name == "cells":
            (flags / str(os.getpid())).touch()
            deadline = time.monotonic() + 600
            while len(list(flags.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
        return real(self, name, units)

    ModelActor.measure = measure
