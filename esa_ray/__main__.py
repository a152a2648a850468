"""``python -m esa_ray``: the ``esa`` command where its script isn't on the path, as in a cluster's job."""

import os
import sys

# Python has put the working directory first on the path. It may be a model's own, where Python files hide libraries.
if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]

from esa_ray.cli import main

main()
