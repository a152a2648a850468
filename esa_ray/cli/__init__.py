"""The ``esa`` command. Exit status: 0 done, 1 incomplete or failing cells, 2 bad input."""

# In the order of the help; each registers its commands.
from esa_ray.cli import run, compress, tune, faults, attack, backdoors, scan, roles, facts, read, here, zoo  # noqa: F401, I001
from esa_ray.cli.app import app, guarded, main
from esa_ray.cli.asked import results_directory
from esa_ray.cli.run import execute

__all__ = ["app", "execute", "guarded", "here", "main", "read", "results_directory", "run", "zoo"]
