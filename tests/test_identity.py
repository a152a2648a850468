import hashlib
import json
import math
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esa_ray.grid import Cell, Resolved, cell_id
from esa_ray.identity import IDENTITY_VERSION, canonical_json, digest
from esa_ray.spec import DataSpec, PerturbSpec, ScoreSpec

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=5), v, max_size=4), max_leaves=12
)

CELL = Cell(
    score=ScoreSpec(metric="grad_squared", mode="global", components=("attention", "down")),
    k=50,
    seed=7,
    group="random_k",
    perturbation=PerturbSpec(kind="gauss_noise", strength=0.1),
    depth=100,
)
DATA = DataSpec(source="pydoc", window=64, calibration_windows=32, evaluation_windows=8, batch_size=4)
RESOLVED = Resolved(model="m" * 64, dtype="bf16", text="0123456789abcdef")

# Written out by hand: keys sorted at every level, no spaces, the text's content but not its source.
CELL_JSON = (
    '{"data":{"batch_size":4,"bos":"auto","calibration_windows":32,"evaluation_windows":8,"prompts":0,'
    '"text":"0123456789abcdef","window":64},"depth":100,"dtype":"bf16","early_stop":null,"group":"random_k","k":50,"listed":null,"model":"'
    + "m"
    * 64
    + '",'
    '"part":null,"perturbation":{"adapt":null,"bits":null,"kind":"gauss_noise","per":null,"relative_to":"weight",'
    '"shared":null,"strength":0.1,"toward":null},"repeat":0,'
    '"score":{"components":["q","k","v","o","down"],"metric":"grad_squared","mode":"global","probes":null,"relative_error":null},'
    '"seed":7,"version":3}'
)


@given(values)
def test_canonical_json_reads_back_as_the_same_value(value):
    back = json.loads(canonical_json(value))
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, dict | list)  # 1 stays 1, 1.0 stays 1.0, -0.0 stays


@given(st.dictionaries(st.text(alphabet=string.ascii_letters, max_size=4), values, max_size=6))
def test_the_order_in_which_keys_were_set_changes_nothing(value):
    backwards = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(backwards)


@given(st.dictionaries(st.text(max_size=4), st.integers(), min_size=2, max_size=6))
def test_keys_stand_sorted_and_nothing_stands_between_tokens(value):
    text = canonical_json(value)
    assert list(json.loads(text)) == sorted(value)
    assert text.isascii()
    pairs = ",".join(f"{json.dumps(k)}:{value[k]}" for k in sorted(value))
    assert text == "{" + pairs + "}"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_two_floats_share_a_form_only_if_they_are_the_same_bits(x):
    assert canonical_json(x) != canonical_json(math.nextafter(x, 0.0 if x else 1.0))
    assert np.float64(json.loads(canonical_json(x))).tobytes() == np.float64(x).tobytes()


def test_tuples_and_lists_are_one_thing_and_numbers_of_different_type_are_not():
    assert canonical_json((1, (2,))) == canonical_json([1, [2]]) == "[1,[2]]"
    assert len({canonical_json(v) for v in (1, 1.0, True, "1", 0, 0.0, -0.0, False, None)}) == 9


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"a": {"b": (0, v)}}])
def test_nan_and_infinity_are_refused_wherever_they_stand(value, wrap):
    with pytest.raises(ValueError, match="canonical"):
        canonical_json(wrap(value))


@pytest.mark.parametrize(
    "value", [{1, 2}, frozenset(), b"x", 1j, object(), np.int64(3), np.zeros(2), {"a": [{3}]}, {"a": np.int32(1)}]
)
def test_types_that_json_lacks_are_refused_wherever_they_stand(value):
    with pytest.raises(TypeError, match="canonical"):
        canonical_json(value)


@pytest.mark.parametrize("key", [1, 1.5, None, True, ("a",)])
def test_keys_that_are_no_strings_are_refused(key):
    with pytest.raises(TypeError, match="key"):
        canonical_json({"outer": {key: 1}})


@given(values)
def test_digest_is_the_first_64_bits_of_sha256_over_the_canonical_bytes(value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert digest(value) == hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def test_cell_id_is_pinned():
    assert IDENTITY_VERSION == 3
    assert cell_id(CELL, DATA, RESOLVED) == "382ea4f3548a9428"
    assert hashlib.sha256(CELL_JSON.encode()).hexdigest()[:16] == "382ea4f3548a9428"


def test_cell_id_of_a_zeroed_cell_with_default_data_is_pinned():
    cell = Cell(score=ScoreSpec(), k=1, seed=1337, group="super", perturbation=PerturbSpec(kind="zero"))
    assert cell_id(cell, DataSpec(), Resolved(model="a", dtype="fp32", text="b")) == "e4c6a21d24cb65e4"


@pytest.mark.parametrize(
    ("cell", "data", "resolved"),
    [
        ({"k": 51}, {}, {}),
        ({"seed": 8}, {}, {}),
        ({"depth": 200}, {}, {}),
        ({"group": "super"}, {}, {}),
        ({"score": ScoreSpec(metric="grad_x_weight", mode="global", components=("attention", "down"))}, {}, {}),
        ({"score": ScoreSpec(metric="grad_squared", mode="per_layer", components=("attention", "down"))}, {}, {}),
        ({"score": ScoreSpec(metric="grad_squared", mode="global", components=("attention",))}, {}, {}),
        ({"score": ScoreSpec(metric="hutchinson_abs", components=("down",))}, {}, {}),
        ({"perturbation": PerturbSpec(kind="zero")}, {}, {}),
        ({"perturbation": PerturbSpec(kind="gauss_noise", strength=0.2)}, {}, {}),
        ({"perturbation": PerturbSpec(kind="gauss_noise", strength=0.1, relative_to="tensor")}, {}, {}),
        ({}, {"window": 65}, {}),
        ({}, {"calibration_windows": 33}, {}),
        ({}, {"evaluation_windows": 9}, {}),
        ({}, {"batch_size": 5}, {}),
        ({}, {"bos": "never"}, {}),
        ({}, {}, {"model": "n"}),
        ({}, {}, {"dtype": "fp16"}),
        ({}, {}, {"text": "other"}),
    ],
)
def test_everything_that_changes_a_number_changes_the_cell_id(cell, data, resolved):
    changed = cell_id(
        Cell(**(dict(CELL) | cell)), DataSpec(**(dict(DATA) | data)), Resolved(**(vars(RESOLVED) | resolved))
    )
    assert changed != cell_id(CELL, DATA, RESOLVED)


@pytest.mark.parametrize("more", [{"probes": 9}, {"relative_error": 0.2}])
def test_how_long_an_estimate_was_probed_is_part_of_its_identity(more):
    ids = {
        cell_id(CELL.model_copy(update={"score": ScoreSpec(metric="hutchinson_abs", **kw)}), DATA, RESOLVED)
        for kw in ({}, more)
    }
    assert len(ids) == 2


def test_where_the_text_came_from_is_no_part_of_identity():
    elsewhere = DataSpec(**(dict(DATA) | {"source": "hf:x", "text_column": "body", "split": "test", "chat": True}))
    assert cell_id(CELL, elsewhere, RESOLVED) == cell_id(CELL, DATA, RESOLVED)


def test_components_named_by_group_or_one_by_one_are_one_identity():
    spelled = ScoreSpec(metric="grad_squared", mode="global", components=("down", "o", "v", "k", "q", "q"))
    assert cell_id(Cell(**(dict(CELL) | {"score": spelled})), DATA, RESOLVED) == cell_id(CELL, DATA, RESOLVED)
