"""What every spec is, and the error of a wrong one as a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from esa_ray.errors import EsaError


class Spec(BaseModel):
    """Base of all specs: immutable, and a field that nobody defined is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

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
