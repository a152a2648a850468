"""The options that commands share which make a study and run it, stated once: a decorator adds them to a command.

They are those of :mod:`esa_ray.cli.options`, with the names and defaults that all such commands have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, TypeVar

from esa_ray.cli import options

C = TypeVar("C", bound=Callable[..., None])

#: Name → type and default.
KNOWN: dict[str, tuple[Any, Any]] = {
    "seeds": (options.Seeds, "1337"), "max_samples": (options.MaxSamples, 32), "data": (options.Data, "pydoc"),
    "text_column": (options.TextColumn, None), "chat": (options.Chat, False), "split": (options.Split, "train"),
    "window": (options.Window, 128), "eval_windows": (options.EvalWindows, 16),
    "batch_size": (options.BatchSize, None), "bos": (options.Bos, "auto"), "dtype": (options.Dtype, "auto"),
    "revision": (options.Revision, None), "trust": (options.Trust, ""), "out_dir": (options.OutDir, None),
    "save_plots": (options.SavePlots, False), "only_plan": (options.OnlyPlan, False),
    "address": (options.Address, None), "gpus": (options.Gpus, None), "track": (options.Track, ""),
    "max_concurrent": (options.MaxConcurrent, None), "memory_budget": (options.MemoryBudget, None),
    "verbose": (options.Verbose, False), "save_spec": (options.SaveSpec, None),
}  # fmt: skip

#: The text and how it is cut, behind ``data``; what a model may be besides its name; how and where a study runs.
CUT = "text_column chat split window eval_windows batch_size bos"
ORIGIN = "revision trust"
RUNNING = "out_dir save_plots only_plan address gpus track max_concurrent memory_budget verbose save_spec"


def shared(*parts: str | Mapping[str, tuple[Any, Any]], **defaults: Any) -> Callable[[C], C]:
    """Give a command shared options, in the order of ``parts``, behind those that its signature states.

    Parameters
    ----------
    parts
        Names of shared options with spaces between, or options of the command's own that stand among them: name →
        type and default.
    defaults
        Those that this command has otherwise.

    The function takes them as ``**shared``; :func:`stated` puts them beside its own.

    Example
    -------
    >>> @shared("seeds window", window=64)
    ... def command(metric: str = "x", **shared: Any) -> None:
    ...     print(stated(locals()))
    >>> [f"{p.name}={p.default}" for p in signature(command).parameters.values()]
    ['metric=x', 'seeds=1337', 'window=64']
    >>> command(seeds="1,2", window=32)
    {'metric': 'x', 'seeds': '1,2', 'window': 32}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for part in parts:
        found |= {name: KNOWN[name] for name in part.split()} if isinstance(part, str) else part
    if unknown := defaults.keys() - found.keys():
        raise ValueError(f"{', '.join(sorted(unknown))}: a default of no option of these")

    def extended(command: C) -> C:
        *own, _ = signature(command, eval_str=True).parameters.values()
        more = [
            Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=defaults.get(name, default), annotation=kind)
            for name, (kind, default) in found.items()
        ]
        vars(command)["__signature__"] = signature(command, eval_str=True).replace(parameters=[*own, *more])
        return command

    return extended


def stated(given: dict[str, Any]) -> dict[str, Any]:
    """All options of a command by name, of what its function finds in ``locals()``."""
    return {name: value for name, value in given.items() if name != "shared"} | given["shared"]
