"""``python -m benchmarks [NAME …] [--quick] [--out DIR]``: by default all but ``gpu``, which wants a card."""

import argparse
from importlib import import_module

#: Name → the module whose ``main`` it is. A benchmark imports what it needs when it runs: ``gpu`` needs no ray.
BENCHMARKS = {
    name: f"benchmarks.{name}"
    for name in ("selection", "cells", "fidelity", "fold", "orchestration", "memory", "corpus", "study")
} | {"gpu": "benchmarks.gpu.run"}

parser = argparse.ArgumentParser(prog="python -m benchmarks")
parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}")
parser.add_argument("--quick", action="store_true", help="a third of the demo study, fewer cells, smaller models")
parser.add_argument("--out", metavar="DIR", help="where gpu writes gpu.json  [default: docs/results]")
arguments = parser.parse_args()
if arguments.out and "gpu" not in arguments.names:
    parser.error("--out belongs to gpu; name it or leave it out")
for name in arguments.names or [n for n in BENCHMARKS if n != "gpu"]:
    more = {"out": arguments.out} if arguments.out else {}
    import_module(BENCHMARKS[name]).main(quick=arguments.quick, **(more if name == "gpu" else {}))
