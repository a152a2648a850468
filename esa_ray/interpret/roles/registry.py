"""The roles by their names."""

from __future__ import annotations

from esa_ray.interpret.roles.base import Role
from esa_ray.interpret.roles.bigram import Bigram
from esa_ray.interpret.roles.confidence import Confidence
from esa_ray.interpret.roles.fact import FactRole
from esa_ray.interpret.roles.frequency import Frequency
from esa_ray.interpret.roles.induction import Induction
from esa_ray.interpret.roles.looking import Position, PreviousToken
from esa_ray.interpret.roles.sink import Sink
from esa_ray.interpret.roles.spike import Spike
from esa_ray.interpret.roles.token_specific import TokenSpecific
from esa_ray.spec.roles import RoleName

#: Name → role, in the order of :data:`esa_ray.spec.roles.ROLES`.
ROLES: dict[RoleName, type[Role]] = {
    role.name: role
    for role in (
        Spike, Sink, Confidence, Frequency, Bigram, Induction, PreviousToken, Position, TokenSpecific, FactRole,
    )
}  # fmt: skip
