"""The environment of processes that tests start."""

import os


def without_settings_of_ray(**more: str) -> dict[str, str]:
    """This process's environment, with nothing in it that Ray reads but how its workers stand to other processes."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return mine | {"RAY_worker_niceness": "0"} | more
