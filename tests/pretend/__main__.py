"""Prints which paths find on which layouts of pretend cards what they find on the CPU.

``python -m tests.pretend [PART OF A CASE'S NAME]``, e.g. ``python -m tests.pretend "two cards: llama"``.
"""

import sys
import tempfile
import warnings

import torch

from tests.pretend.benches import CASES, Benches
from tests.pretend.paths import PATHS


def outcome(benches: Benches, case, name: str) -> str:
    """ok, "differs", or what was raised."""
    try:
        return "differs" if benches.difference(case, name) else "ok"
    except Exception as error:
        return type(error).__name__


def main(wanted: str = "") -> int:
    """One row a case: how many paths are ok, and what became of the others. Exits 1 if there are others."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        benches = Benches(folder)
        for case in (c for c in CASES if wanted in str(c)):
            found = {name: outcome(benches, case, name) for name in PATHS}
            others = [f"{name}: {what}" for name, what in found.items() if what != "ok"]
            wrong += len(others)
            print(f"{case!s:45} {len(PATHS) - len(others):3} of {len(PATHS)} ok  {'; '.join(others)}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
