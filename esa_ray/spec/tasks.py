"""Zero-shot tasks by lm-eval's names, or as YAML files of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError, unreadable
from esa_ray.identity import digest

if TYPE_CHECKING:
    from esa_ray.spec import Protocol


def is_file(task: str) -> bool:
    """Whether a task is named by a file.

    >>> is_file("my_task.yaml"), is_file("piqa")
    (True, False)
    """
    return task.endswith((".yaml", ".yml"))


def read(task: str) -> str | dict[str, Any]:
    """A task by its name, or what a YAML file says of one.

    Raises
    ------
    EsaError
        If the file can't be read, or describes no task.
    """
    if not is_file(task):
        return task
    import yaml

    try:
        with open(task, encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise unreadable(f"--tasks {task}", error) from None
    if not isinstance(found, dict) or "task" not in found:
        raise EsaError(f"--tasks {task} describes no task (it has no field `task`)")
    return found


def answers_name(protocol: Protocol) -> str:
    """How the answers to a protocol's tasks are called in the store: with what its files say, where it has any."""
    files = [read(task) for task in protocol.tasks if is_file(task)]
    # As Python writes it: YAML has dates, which JSON hasn't.
    return f"{protocol.name}-{digest(repr(files))}" if files else protocol.name
