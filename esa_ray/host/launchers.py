"""Launchers that start a command several times. Ray spreads a study by itself, so each copy would run all of it."""

from __future__ import annotations

import contextlib
import os

from esa_ray.errors import EsaError

#: Variables with the number of copies, and of each the variable that numbers them, the launcher, and what to do.
#: SLURM's are those of a step: a batch script has SLURM_NTASKS, too, and runs once.
COPIES = (
    ("WORLD_SIZE", "RANK", "torchrun or accelerate launch"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun"),
    ("PMI_SIZE", "PMI_RANK", "mpirun"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "mpirun"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def copies() -> tuple[str, int, int] | None:
    """The launcher, how many copies it started, and which of them this is; None if this process is alone.

    A step of ``ray symmetric-run`` is a task on every node, of which the head alone starts the command.
    """
    for size, rank, launcher in COPIES:
        started, mine = _number(size), _number(rank)
        if started is None or mine is None or started < 2:
            continue
        if launcher == "srun" and "symmetric-run" in _ancestors():
            continue
        return launcher, started, mine
    return None


def _ancestors() -> str:
    """The command lines of the processes that led to this one, as far as they may be read."""
    import psutil  # here, since every command comes by, and few by this

    words: list[str] = []
    with contextlib.suppress(psutil.Error):
        for parent in psutil.Process().parents():
            with contextlib.suppress(psutil.Error):
                words += parent.cmdline()
    return " ".join(words)


def alone() -> None:
    """See that no launcher has started this command more than once.

    Raises
    ------
    EsaError
        If one has; the sentence names it, and how to start a study.
    """
    if found := copies():
        launcher, started, mine = found
        raise EsaError(
            f"{launcher} started this command {started} times (this is number {mine}), and each would run the whole "
            "study; start it once, without the launcher, since Ray uses all GPUs and cores by itself, and all nodes of "
            "a cluster that --address names (SLURM: sbatch deploy/slurm.sh)"
        )
