"""Studies of roles whose rankings, and whose stored roles, are planted."""

from esa_ray.schema import TABLES
from esa_ray.spec import ModelSpec, RoleSpec, ScoreSpec, StudySpec
from esa_ray.storage.store import Store, ranking_name

DOWN, UP = "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"


def study(k=3, null_weights=5, draws=1, seeds=(7,), **roles):
    return StudySpec(
        name="s", model=ModelSpec(source="m"), scores=(ScoreSpec(metric="grad_x_weight_abs", mode="global"),),
        topk=(k,), seeds=seeds, groups=("matched_k",), control_draws=draws,
        roles=RoleSpec(null_weights=null_weights, **roles),
    )  # fmt: skip


def weight(group, rank, tensor=DOWN, row=0, col=0, draw=None, score=None, metric="grad_x_weight_abs"):
    """A row of a ranking."""
    return {
        "group": group, "control_draw": draw, "rank": rank, "tensor": tensor, "layer": 0 if tensor == DOWN else 1,
        "component": "down" if tensor == DOWN else "up", "metric": metric, "row": row, "col": col, "score": score,
        "weight": 0.5, "unit": "weight",
    }  # fmt: skip


def ranked(directory, spec, rows, seed=7):
    """A store with this ranking."""
    store = Store(directory)
    full = [dict.fromkeys(TABLES["rankings"].names) | row for row in rows]
    store.write("rankings", ranking_name("grad_x_weight_abs", "global", seed), full)
    return store
