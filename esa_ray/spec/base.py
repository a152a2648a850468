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


#: Kind of a pydantic error → what it says, with the names of its context.
_PHRASES = {
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "finite_number": "must be a finite number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "string_type": "must be a text",
    "missing": "is missing",
    "extra_forbidden": "is no field that a study has",
    "string_too_short": "is empty",
    "too_short": "is empty",
    "tuple_type": "must be a list",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "model_type": "must have fields of its own",
    "invalid_key": "must be a text",
    "string_pattern_mismatch": "must have letters, digits, '.', '_' and '-' alone, and begin with a letter or digit",
}


def explain(error: ValidationError, named: Callable[[tuple[Any, ...]], str | None] | None = None) -> EsaError:
    """A pydantic error as one sentence: the field, the value, and what is allowed.

    ``named`` gives the name of a field by its place; None where the sentence is to do without.
    """
    errors = error.errors()
    # Of a list with one wrong member pydantic says, too, that it is too short.
    inner = {each["loc"][:n] for each in errors for n in range(1, len(each["loc"]))}
    told = [each for each in errors if each["loc"] not in inner]
    faults = [_fault(each, named or (lambda place: ".".join(map(str, place)))) for each in told]
    # A grid has the same fault many times.
    more = len({field for field, _ in faults}) - 1
    return EsaError(faults[0][1] + (f"; and {more} more" if more else ""))


def _fault(fault: Any, named: Callable[[tuple[Any, ...]], str | None]) -> tuple[str | None, str]:
    """The field of a fault, and what is to be said of it."""
    field, value, kind = named(fault["loc"]), fault.get("input"), fault["type"]
    if kind in _PHRASES:
        # What has to be there for another's sake, and nobody names.
        context = {k: str(v).replace("'super', ", "") for k, v in fault.get("ctx", {}).items()}
        said = f"{field or 'the study'} {_PHRASES[kind].format(**context)}"
        shown = isinstance(value, str | int | float) and value != "" and kind != "extra_forbidden"
        return field, f"{said}, not {value!r}" if shown else said
    message = fault["msg"].removeprefix("Value error, ")
    return field, f"{field}: {message}" if field and field not in message else message
