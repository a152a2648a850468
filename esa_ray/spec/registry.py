"""Objects by name: what a study may ask for, built in or added, so that a new one is one file."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from importlib import import_module
from typing import ClassVar, Generic, TypeVar

from esa_ray import extensions
from esa_ray.errors import EsaError


class Entry(ABC):
    """What a registry holds: an object with a name."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def row(self) -> tuple[str, ...]:
        """What the registry's table says of it, its name first."""

    @abstractmethod
    def check(self) -> None:
        """Refuse a definition that can't work, when it is registered.

        Raises
        ------
        ValueError
            With what is wrong with it.
        """


class UnknownError(EsaError, KeyError):
    """No object of that name is registered in this process."""

    def __str__(self) -> str:
        return str(self.args[0])  # where a KeyError shows a repr


T = TypeVar("T", bound=Entry)
C = TypeVar("C", bound=type[Entry])


class Registry(Mapping[str, T], Generic[T]):
    """Objects by name, the built-in ones first, then others as they were added; printed, it is a table of them.

    A name that isn't there is looked for in the packages installed here that have an entry point of the group
    ``esa_ray``: so a cluster's processes find it, too.

    Parameters
    ----------
    noun
        What one is called.
    home
        The module whose import adds the built-in ones. It is imported at the first use, so that a spec needs nothing
        of what computes; it imports this registry, and no torch.
    columns
        The heads of the table.

    Example
    -------
    >>> from esa_ray.spec import KINDS
    >>> KINDS["scale"].dose(-1.0), [name for name in KINDS if "gradient" in name]
    (2.0, ['gradient_aligned', 'gradient_opposed'])
    """

    def __init__(self, noun: str, home: str, columns: tuple[str, ...]) -> None:
        self.noun, self.home, self.columns = noun, home, columns
        self._known: dict[str, T] = {}

    def add(self, kind: C) -> C:
        """Register an object of a class, as the class's decorator; adding the same class again changes nothing.

        Raises
        ------
        ValueError
            If the name can't stand in a label, belongs to another class, or the definition can't work.
        """
        name = getattr(kind, "name", None)
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{kind.__name__}: name is to be lower-case letters, digits and underscores, not {name!r}")
        if (known := self._all.get(name)) is not None and type(known) is not kind:
            where = f"{type(known).__module__}.{type(known).__qualname__}"
            raise ValueError(f"{self.noun} {name} is registered already, by {where}; choose another name")
        mine = kind()
        mine.check()
        self._known[name] = mine  # type: ignore[assignment]
        return kind

    def remove(self, name: str) -> None:
        """Forget one."""
        del self._all[name]

    def where(self, holds: Callable[[T], bool]) -> Names:
        """The names of those of which something holds, now and later."""
        return Names(lambda: (name for name, item in self.items() if holds(item)))

    @property
    def _all(self) -> dict[str, T]:
        """Name → object, built-in ones included."""
        import_module(self.home)  # where that is being imported just now, this returns at once
        return self._known

    def __getitem__(self, name: str) -> T:
        if name not in self._known and name not in self._all:
            extensions.load()
        if name not in self._known:
            raise UnknownError(
                f"no {self.noun} {name!r} is known here; install the package that adds it wherever the study runs"
            )
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __str__(self) -> str:
        rows = [self.columns, *(item.row for item in self.values())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


class Names(Set[str]):
    """Some names of a registry, in its order; what is added later is among them."""

    def __init__(self, found: Callable[[], Iterable[str]]) -> None:
        self._found = found

    def __contains__(self, name: object) -> bool:
        return name in tuple(self._found())

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(tuple(self._found()))

    def __repr__(self) -> str:
        return f"Names({', '.join(self)})"

    @classmethod
    def _from_iterable(cls, names: Iterable[str]) -> frozenset[str]:  # type: ignore[override]
        return frozenset(names)
