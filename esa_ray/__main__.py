"""``python -m esa_ray``: the ``esa`` command where its script isn't on the path, as in a cluster's job."""

from esa_ray.cli import main

main()
