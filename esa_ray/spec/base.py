"""What every spec is, and the error of a wrong one as a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from esa_ray.errors import EsaError


class Spec(BaseModel):
    """Base of all specs: immutable, and a field that nobody defined is an error.

    A new field may be added at any time if its default means what held before there was the field: ids stay, since
    they are made of :meth:`content`. For the same reason a default never changes its meaning. Who wants another value
    where nothing is said changes it in the command line's options.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    #: Fields that change no number, such as where a text came from.
    origin: ClassVar[frozenset[str]] = frozenset()

    def content(self) -> dict[str, Any]:
        """What it asks for, as plain values for an id: each field that differs from its default, but for ``origin``.

        Example
        -------
        >>> from esa_ray.spec import DataSpec
        >>> spec = DataSpec(source="wiki.txt", window=64)
        >>> spec.content(), spec.stated()
        ({'window': 64, 'batch_size': 16}, {'source': 'wiki.txt', 'window': 64, 'batch_size': 16})
        """
        stated = self._differing(lambda spec: spec.content())
        return {name: value for name, value in stated.items() if name not in self.origin}

    def stated(self) -> dict[str, Any]:
        """As :meth:`content`, and where it comes from."""
        return self._differing(lambda spec: spec.stated())

    def _differing(self, inner: Callable[[Spec], dict[str, Any]]) -> dict[str, Any]:
        def plain(value: Any) -> Any:
            if isinstance(value, Spec):
                return inner(value)
            return [plain(item) for item in value] if isinstance(value, tuple) else value

        found = {}
        for name in type(self).model_fields:
            value, default = getattr(self, name), self._default_of(name)
            if value is not default and (stated := plain(value)) != plain(default):
                found[name] = stated
        return found

    def _default_of(self, name: str) -> Any:
        """What a field means that isn't stated; of one that must be stated, a value that equals none."""
        field = type(self).model_fields[name]
        # A default is copied where pydantic is asked for it, thousands of times a study.
        return field.get_default(call_default_factory=True) if field.default_factory else field.default

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same spec with some fields changed, validated anew (pydantic's own copy checks nothing)."""
        return type(self).model_validate(self.model_dump() | dict(update or {}))


def explain(error: ValidationError) -> EsaError:
    """A pydantic error as one sentence: the field, the value, and what is allowed."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the study"
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    shown = f" (got {value!r})" if isinstance(value, str | int | float) and repr(value) not in message else ""
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return EsaError(f"{field}: {message}{shown}{more}")
