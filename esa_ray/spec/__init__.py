"""Specs: what a study is, as frozen and validated values.

A spec says what to compute and never where. Variants derive with ``model_copy(update=...)`` or
:meth:`StudySpec.replace`; every field is checked again on the way.
"""

from esa_ray.spec.base import Spec, explain
from esa_ray.spec.damage import (
    KINDS,
    LISTED,
    RANDOM_KINDS,
    SCALED,
    Kind,
    Part,
    PerturbSpec,
    WeightList,
    WeightName,
)
from esa_ray.spec.protocols import PROTOCOLS, Protocol
from esa_ray.spec.scores import (
    BLOCK_COMPONENTS,
    COMPONENT_GROUPS,
    COMPONENTS,
    DATA_FREE,
    METRICS,
    PROBED,
    Component,
    DataSpec,
    Dtype,
    Metric,
    Mode,
    ModelSpec,
    ScoreSpec,
    asks_for,
    grouped,
    is_tensor_name,
    members,
)
from esa_ray.spec.study import DRAWN_CONTROLS, Group, Search, StudySpec

__all__ = [
    "BLOCK_COMPONENTS",
    "COMPONENTS",
    "COMPONENT_GROUPS",
    "DATA_FREE",
    "DRAWN_CONTROLS",
    "KINDS",
    "LISTED",
    "METRICS",
    "PROBED",
    "PROTOCOLS",
    "RANDOM_KINDS",
    "SCALED",
    "Component",
    "DataSpec",
    "Dtype",
    "Group",
    "Kind",
    "Metric",
    "Mode",
    "ModelSpec",
    "Part",
    "PerturbSpec",
    "Protocol",
    "ScoreSpec",
    "Search",
    "Spec",
    "StudySpec",
    "WeightList",
    "WeightName",
    "asks_for",
    "explain",
    "grouped",
    "is_tensor_name",
    "members",
]
