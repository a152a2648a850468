"""Specs: what a study is, as frozen and validated values.

A spec says what to compute and never where. Variants derive with ``model_copy(update=...)`` or
:meth:`StudySpec.replace`; every field is checked again on the way.
"""

from esa_ray.spec.base import Spec, explain
from esa_ray.spec.compression import METHODS, PRUNING_SCORES, Compression, PruneSpec, QuantizeSpec, n_of_m
from esa_ray.spec.damage import LISTED, PerturbSpec, Subset, WeightList, WeightName
from esa_ray.spec.kinds import KINDS, RANDOM_KINDS, SCALED, Kind, direction, dose, draws, label
from esa_ray.spec.metrics import (
    DATA_FREE,
    METRICS,
    PROBED,
    SCORES,
    Metric,
    Places,
    Score,
    has_magnitude,
    is_data_free,
    is_ensemble,
    is_of_activations,
    members,
)
from esa_ray.spec.protocols import PROTOCOLS, Protocol
from esa_ray.spec.registry import Registry
from esa_ray.spec.scores import (
    BLOCK_COMPONENTS,
    COMPONENT_GROUPS,
    COMPONENTS,
    PLURALS,
    UNITS,
    Component,
    DataSpec,
    Dtype,
    Mode,
    ModelSpec,
    ScoreSpec,
    asks_for,
    grouped,
    is_tensor_name,
)
from esa_ray.spec.study import CONTROLS, DRAWN_CONTROLS, PAIRED_CONTROLS, TREATED, Group, Search, StudySpec
from esa_ray.spec.tuning import ARMS, PROTECTIONS, STRENGTHS, TuneSpec

__all__ = [
    "ARMS",
    "BLOCK_COMPONENTS",
    "COMPONENTS",
    "COMPONENT_GROUPS",
    "CONTROLS",
    "DATA_FREE",
    "DRAWN_CONTROLS",
    "KINDS",
    "LISTED",
    "METHODS",
    "METRICS",
    "PAIRED_CONTROLS",
    "PLURALS",
    "PROBED",
    "PROTECTIONS",
    "PROTOCOLS",
    "PRUNING_SCORES",
    "RANDOM_KINDS",
    "SCALED",
    "SCORES",
    "STRENGTHS",
    "TREATED",
    "UNITS",
    "Component",
    "Compression",
    "DataSpec",
    "Dtype",
    "Group",
    "Kind",
    "Metric",
    "Mode",
    "ModelSpec",
    "PerturbSpec",
    "Places",
    "Protocol",
    "PruneSpec",
    "QuantizeSpec",
    "Registry",
    "Score",
    "ScoreSpec",
    "Search",
    "Spec",
    "StudySpec",
    "Subset",
    "TuneSpec",
    "WeightList",
    "WeightName",
    "asks_for",
    "direction",
    "dose",
    "draws",
    "explain",
    "grouped",
    "has_magnitude",
    "is_data_free",
    "is_ensemble",
    "is_of_activations",
    "is_tensor_name",
    "label",
    "members",
    "n_of_m",
]
