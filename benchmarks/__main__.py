"""``python -m benchmarks [NAME …] [--quick] [--out DIR]``: by default all but ``gpu`` and ``architectures``.

The first of these wants a card, the second tries transformers' model types rather than measuring anything.
"""

import argparse
from importlib import import_module

#: Name → the module whose ``main`` it is. A benchmark imports what it needs when it runs: ``gpu`` needs no ray.
BENCHMARKS = {
    name: f"benchmarks.{name}"
    for name in ("selection", "cells", "fidelity", "fold", "orchestration", "memory", "corpus", "analysis", "study")
} | {"gpu": "benchmarks.gpu.run", "architectures": "benchmarks.architectures.run"}
#: Those that run only when they are named, and write to ``--out``.
NAMED = ("gpu", "architectures")

parser = argparse.ArgumentParser(prog="python -m benchmarks")
parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}")
parser.add_argument("--quick", action="store_true", help="a third of the demo study, fewer cells, smaller models")
parser.add_argument("--out", metavar="DIR", help=f"where {' and '.join(NAMED)} write  [default: docs/results]")
parser.add_argument("--only", metavar="TYPE,…", help="model types that architectures tries  [default: all]")
parser.add_argument("--json", action="store_true", help="architectures prints all that it found")
arguments = parser.parse_args()
if arguments.out and not set(NAMED) & set(arguments.names):
    parser.error(f"--out belongs to {' and '.join(NAMED)}; name one or leave it out")
if (arguments.only or arguments.json) and "architectures" not in arguments.names:
    parser.error("--only and --json belong to architectures; name it or leave them out")
for name in arguments.names or [n for n in BENCHMARKS if n not in NAMED]:
    more = {"out": arguments.out} if arguments.out and name in NAMED else {}
    if name == "architectures":
        more |= {"only": arguments.only, "as_json": arguments.json}
    import_module(BENCHMARKS[name]).main(quick=arguments.quick, **more)
