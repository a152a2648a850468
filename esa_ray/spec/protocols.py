"""Protocols: what is measured of an intact model before anything is damaged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from esa_ray.spec.base import Spec

ProtocolName = Literal["smoke", "standard", "extended"]


class Protocol(Spec):
    """How an intact model is measured: so many windows of each context length, drawn anew by every seed.

    ``contexts`` are tokens a window, BOS included; those beyond a model's own limit are passed over, and said so.
    ``tasks`` are names of zero-shot tasks for lm-eval (the ``tasks`` extra), ``limit`` how many examples of each
    (None: all).

    >>> Protocol.named("smoke").contexts
    (128,)
    """

    name: ProtocolName
    windows: int = Field(ge=2)
    contexts: tuple[int, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)

    @field_validator("contexts")
    @classmethod
    def _lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 2:
            raise ValueError(
                f"a window needs a token to predict from and one to predict, so 2 or more, not {min(value)}"
            )
        return tuple(sorted(set(value)))

    @classmethod
    def named(cls, name: str, **changes: object) -> Protocol:
        """The protocol of that name, with some of its fields changed."""
        return cls.model_validate(PROTOCOLS.get(name, {}) | {"name": name} | changes)


#: smoke: minutes on a laptop. standard: what a paper reports. extended: long contexts, and zero-shot tasks where given.
PROTOCOLS: dict[str, dict[str, object]] = {
    "smoke": {"windows": 8, "contexts": (128,)},
    "standard": {"windows": 32, "contexts": (512,)},
    "extended": {"windows": 32, "contexts": (128, 512, 2048)},
}
