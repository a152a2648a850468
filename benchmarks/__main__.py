"""``python -m benchmarks [NAME …] [--quick]``: by default all of those below."""

import argparse

from benchmarks import cells, corpus, fidelity, fold, memory, orchestration, selection, study

BENCHMARKS = {
    "selection": selection.main,
    "cells": cells.main,
    "fidelity": fidelity.main,
    "fold": fold.main,
    "orchestration": orchestration.main,
    "memory": memory.main,
    "corpus": corpus.main,
    "study": study.main,
}

parser = argparse.ArgumentParser(prog="python -m benchmarks")
parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}")
parser.add_argument("--quick", action="store_true", help="a third of the demo study, fewer cells")
arguments = parser.parse_args()
for name in arguments.names or BENCHMARKS:
    BENCHMARKS[name](quick=arguments.quick)
