"""YAML as people read it: the core of YAML 1.2, and nothing that stands twice.

YAML 1.1, which PyYAML reads, takes ``no`` for false, ``1:30`` for 90, ``2024-01-01`` for a date and ``1e-5`` for text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_MAP, _TEXT = "tag:yaml.org,2002:map", "tag:yaml.org,2002:str"
#: tag → what a plain scalar of it looks like, and the characters that it begins with.
_PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
              "-+.0123456789"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}  # fmt: skip


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


class Block(dict[str, Any]):
    """A mapping with a line for every key; others stand in one line where they hold plain values."""


for _tag, (_pattern, _first) in _PLAIN.items():
    _resolver = (f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))
    _Loader.add_implicit_resolver(*_resolver)
    # What is written is read alike by both versions.
    _Dumper.add_implicit_resolver(*_resolver)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
# In single quotes PyYAML writes U+0085 and its like as breaks of lines, which it reads as spaces.
_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar(_TEXT, text, style=None if text.isprintable() else '"')
)
_Dumper.add_representer(Block, lambda dumper, value: dumper.represent_mapping(_MAP, value.items(), flow_style=False))


def read(content: bytes) -> Any:
    """The one value that a text holds.

    Raises
    ------
    ValueError
        If it can't be read; with the line, where that is known.

    >>> read(b"{bos: no, revision: 2024-01-01, strength: 1e-5, seeds: [1, 007]}")
    {'bos': 'no', 'revision': '2024-01-01', 'strength': 1e-05, 'seeds': [1, 7]}
    """
    try:
        loader = _Loader(content)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1}: {error.problem or error.context}" if mark else str(error)) from None
    except yaml.YAMLError as error:
        raise ValueError(next(iter(str(error).splitlines()), "it is no YAML")) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write(value: Any) -> str:
    """A value as text that :func:`read`, and any reader of YAML, takes for the same.

    >>> print(write(Block(name="no", topk=[50, 100])), end="")
    name: 'no'
    topk: [50, 100]
    """
    return str(
        yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    )
