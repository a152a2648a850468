"""Roles, mediations, attention and facts as grids without Ray: what is stored is what a model damaged by hand shows."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from esa_ray.errors import EsaError
from esa_ray.measurements import MEASUREMENTS
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.spec import FactSpec, RoleSpec, ScoreSpec, WeightList, WeightName
from tests.measuring import by_one_worker, measure
from tests.tiny import state_bits

#: What a row says that isn't a result.
NOISE = ("seconds", "created", "worker")
DOWN = "model.layers.1.mlp.down_proj.weight"
GRIDS = ("roles", "mediations", "attention")


@pytest.fixture(scope="module")
def spec(tiny_study):
    roles = RoleSpec(roles=("frequency", "induction", "token-specific"), windows=4, null_weights=2)
    return tiny_study.replace(
        perturbations=(), topk=(4,), seeds=(7,), groups=("matched_k",), control_draws=2, roles=roles,
        scores=(ScoreSpec(metric="grad_x_weight_abs", mode="global"),),
    )  # fmt: skip


def new_worker(spec, place):
    worker = Worker(spec, find(spec.model), str(place))
    if worker.store.load_study() is None:
        found = worker.describe()
        worker.store.save_study(spec, found, found.pop("versions"))
    return worker


def rows_of(store, table):
    found = [row for name in store.names(table) for row in store.read(table, name).to_pylist()]
    return [{k: v for k, v in row.items() if k not in NOISE} for row in found]


@pytest.fixture(scope="module")
def whole(spec, tmp_path_factory):
    """The study's store, computed by one worker."""
    return by_one_worker(spec, tmp_path_factory.mktemp("roles"))


def nll(model, windows):
    """Nats per token of each window."""
    with torch.no_grad():
        return np.array([float(cross_entropy(model(w[None]).logits[0, :-1], w[1:])) for w in windows])


def test_a_row_has_the_loss_that_a_model_damaged_by_hand_has(spec, whole, tmp_path):
    worker = new_worker(spec, tmp_path)
    windows = torch.as_tensor(worker.windows.evaluation[:4])
    model, intact = worker.model.double(), nll(worker.model.double(), windows)
    told = [row for row in rows_of(whole, "roles") if row["role"] == "token-specific"]
    assert {row["group"] for row in told} == {"super", "matched_k"}
    for row in told:
        weight = model.get_parameter(row["tensor"]).data
        before = weight[row["row"], row["col"]].clone()
        assert float(before) == pytest.approx(row["weight"])
        weight[row["row"], row["col"]] = 0.0
        assert row["delta_nll"] == pytest.approx((nll(model, windows) - intact).tolist(), abs=2e-6)
        weight[row["row"], row["col"]] = before


def test_there_is_a_row_for_each_role_of_each_leading_weight_and_its_null(whole):
    rows = rows_of(whole, "roles")
    leading = [row for row in rows if row["group"] == "super"]
    assert sorted((row["rank"], row["role"]) for row in leading) == sorted(
        (rank, role) for rank in range(1, 5) for role in ("frequency", "induction", "token-specific")
    )
    by_tensor = {}
    for row in rows:
        if row["group"] == "matched_k":
            by_tensor.setdefault(row["tensor"], set()).add(row["subject"])
    assert by_tensor.keys() == {row["tensor"] for row in leading}
    assert all(len(mine) == 2 for mine in by_tensor.values())


def test_attention_has_a_row_for_each_block_under_each_damage(whole):
    rows = rows_of(whole, "attention")
    assert {row["block"] for row in rows} == {0, 1}
    assert {row["subject"] for row in rows} == {row["subject"] for row in rows_of(whole, "roles")}
    assert {row["status"] for row in rows} == {"ok"}


def test_mediators_are_held_for_no_pair_before_all_roles_are_known(spec, whole, tmp_path):
    worker = new_worker(spec, tmp_path)
    measure(worker, "rankings", 7)
    assert MEASUREMENTS["mediations"].asked(spec, worker.store) == []
    asked = MEASUREMENTS["mediations"].asked(spec, whole)
    told = rows_of(whole, "mediations")
    assert len(asked) == len(told)
    pairs = {(row["subject"], row["role"]) for row in rows_of(whole, "roles") if row["status"] == "ok"}
    assert {(row["subject"], row["role"]) for row in told} <= pairs


def test_a_study_that_was_stopped_and_goes_on_has_the_rows_of_one_that_wasnt(spec, whole, tmp_path):
    worker = new_worker(spec, tmp_path)
    measure(worker, "rankings", 7)
    for unit in MEASUREMENTS["roles"].missing(spec, worker.store)[::2]:
        worker.measure("roles", unit)
    del worker
    other = new_worker(spec, tmp_path)
    left = MEASUREMENTS["roles"].missing(spec, other.store)
    assert 0 < len(left) < len(MEASUREMENTS["roles"].asked(spec, other.store))
    for name in GRIDS:
        for unit in reversed(MEASUREMENTS[name].missing(spec, other.store)):
            other.measure(name, unit)
    for name in GRIDS:  # files are called by what they hold, so that both stores list them in one order
        assert rows_of(other.store, name) == rows_of(whole, name)


def test_the_model_has_the_same_bits_after_every_unit(spec, tmp_path):
    worker = new_worker(spec, tmp_path)
    measure(worker, "rankings", 7)
    bits = state_bits(worker.model)
    for name in ("roles", "attention"):
        worker.measure(name, MEASUREMENTS[name].asked(spec, worker.store)[0])
        assert state_bits(worker.model) == bits


def test_an_id_is_of_the_damage_and_what_it_is_measured_on(spec, whole):
    grid, found = MEASUREMENTS["roles"], _found(whole)
    unit = grid.asked(spec, whole)[0]
    first = grid.id_of(unit, spec, found)
    assert first in {row["role_id"] for row in rows_of(whole, "roles")}
    more_null = spec.replace(roles=spec.roles.model_copy(update={"null_weights": 5}), name="other")
    assert grid.id_of(unit, more_null, found) == first
    fewer = spec.replace(roles=spec.roles.model_copy(update={"windows": 3}))
    flipped = spec.replace(roles=spec.roles.model_copy(update={"edits": ("sign_flip",)}))
    assert grid.id_of(unit, fewer, found) != first
    assert grid.id_of(grid.asked(flipped, whole)[0], flipped, found) != first


def _found(store):
    from esa_ray.grid import Fingerprints

    return Fingerprints.of(store.load_study())


def test_the_role_of_facts_goes_by_what_their_file_says_wherever_it_lies(spec, whole, tmp_path):
    grid, found = MEASUREMENTS["roles"], _found(whole)
    unit, roles = grid.asked(spec, whole)[0], spec.roles.model_copy(update={"roles": ("fact",)})
    ids = []
    for folder, answer in (("a", "green"), ("b", "green"), ("c", "lush")):
        file = tmp_path / folder / "facts.csv"
        file.parent.mkdir()
        file.write_text(f"prompt,subject,answer\nThe colour of grass is,grass,{answer}\n")
        ids.append(grid.id_of(unit, spec.replace(roles=roles, facts=FactSpec(sources=(str(file),))), found))
    assert ids[0] == ids[1] != ids[2]
    file.unlink()
    gone = spec.replace(roles=roles, facts=FactSpec(sources=(str(file),)))
    with pytest.raises(EsaError, match=r"--facts .*facts.csv"):
        grid.id_of(unit, gone, found)
    assert grid.left(gone, whole) == 0  # a report needs no file


def test_a_head_that_two_leading_weights_are_of_is_damaged_once(spec, tmp_path):
    q = "model.layers.1.self_attn.q_proj.weight"
    given = WeightList(name="two", weights=tuple(WeightName(tensor=q, row=row, col=row) for row in (0, 1)))
    roles = spec.roles.model_copy(update={"roles": ("frequency",), "sets": ("head",)})
    mine = spec.replace(scores=(), lists=(given,), roles=roles)
    worker = new_worker(mine, tmp_path)
    measure(worker, "rankings", 7)
    for unit in MEASUREMENTS["roles"].asked(mine, worker.store):
        worker.measure("roles", unit)
    rows = [r for r in rows_of(worker.store, "roles") if (r["unit"], r["group"]) == ("head", "super")]
    first, second = sorted(rows, key=lambda row: row["rank"])
    assert (first["status"], second["status"]) == ("ok", "empty")
    assert second["error"] == f"it is the same head as {first['subject']}"


def test_given_weights_need_no_score_and_one_that_is_zero_has_nothing_to_damage(spec, tmp_path, text_file):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(spec.model.source)
    model.get_parameter(DOWN).data[3, 5] = 0.0
    model.save_pretrained(tmp_path / "m")
    from esa_ray.models.load import load_tokenizer

    load_tokenizer(find(spec.model)).save_pretrained(tmp_path / "m")
    given = WeightList(
        name="two", weights=(WeightName(tensor=DOWN, row=3, col=5), WeightName(tensor=DOWN, row=1, col=2))
    )
    mine = spec.replace(scores=(), lists=(given,), model={"source": str(tmp_path / "m")})
    worker = new_worker(mine, tmp_path / "study")
    measure(worker, "rankings", 7)
    for unit in MEASUREMENTS["roles"].asked(mine, worker.store):
        worker.measure("roles", unit)
    rows = {(row["rank"], row["role"]): row for row in rows_of(worker.store, "roles") if row["group"] == "super"}
    assert {rows[1, role]["status"] for role in mine.roles.roles} == {"empty"}
    assert "every one is 0" in rows[1, "frequency"]["error"]
    assert rows[2, "token-specific"]["status"] == "ok"
    assert rows[2, "token-specific"]["metric"] == "listed"
    assert MEASUREMENTS["roles"].missing(mine, worker.store) == []


def test_a_fact_that_a_model_does_not_know_is_a_row_that_says_so(tiny_study, tmp_path):
    (tmp_path / "facts.csv").write_text(
        "prompt,subject,answer,alternative\nThe colour of grass is,grass,green,blue\n"
        "The colour of sky is,sky,blue,red\n"
    )
    mine = tiny_study.replace(
        perturbations=(), groups=("super",), seeds=(7,), scores=(),
        facts=FactSpec(sources=(str(tmp_path / "facts.csv"),), draws=2, restored=(1,)),
    )  # fmt: skip
    worker = new_worker(mine, tmp_path / "study")
    units = MEASUREMENTS["facts"].asked(mine, worker.store)
    assert len(units) == 2
    for unit in units:
        worker.measure("facts", unit)
    rows = rows_of(worker.store, "facts")
    assert {row["answer"] for row in rows} == {"green", "blue"}
    assert all(row["status"] in ("ok", "empty") for row in rows)
    assert all(row["error"] for row in rows if row["status"] == "empty")
    assert MEASUREMENTS["facts"].missing(mine, worker.store) == []
    (tmp_path / "facts.csv").unlink()
    assert MEASUREMENTS["facts"].left(mine, worker.store) == 0  # a report needs no file
