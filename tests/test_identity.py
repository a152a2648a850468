import hashlib
import json
import math
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model

from esa_ray.grid import Cell, Fingerprints, Listed, cell_id
from esa_ray.identity import IDENTITY_VERSION, canonical_json, digest
from esa_ray.interpret.facts.sources import Fact, Template
from esa_ray.interpret.subjects import Subject
from esa_ray.measurements.attacks import Attacking
from esa_ray.measurements.compressions import Compressing
from esa_ray.measurements.faults import Packet
from esa_ray.measurements.mitigations import Mitigating
from esa_ray.measurements.tunings import Tuning
from esa_ray.models.zoo.recipes import recipe
from esa_ray.spec import (
    KINDS,
    AttackSpec,
    DataSpec,
    FactSpec,
    FaultSpec,
    Member,
    MitigationSpec,
    ModelSpec,
    PerturbSpec,
    Population,
    Protocol,
    PruneSpec,
    QuantizeSpec,
    RoleSpec,
    ScoreSpec,
    Search,
    Spec,
    StudySpec,
    Subset,
    TuneSpec,
    WeightList,
    WeightName,
)
from esa_ray.spec.backdoors import Recipe as MemberRecipe
from esa_ray.spec.detector import Calibration, Detector

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
RESOLVED = Fingerprints(model="m" * 64, dtype="bf16", text="0123456789abcdef")

# Written out by hand: what differs from its default, keys sorted at every level, no spaces, the text's content but not
# its source.
CELL_JSON = (
    '{"data":{"batch_size":4,"calibration_windows":32,"evaluation_windows":8,"text":"0123456789abcdef","window":64},'
    '"depth":100,"dtype":"bf16","group":"random_k","k":50,"model":"' + "m" * 64 + '",'
    '"perturbation":{"kind":"gauss_noise","strength":0.1},'
    '"score":{"components":["attention","down"],"metric":"grad_squared","mode":"global"},"seed":7,"version":4}'
)
ZERO_JSON = (
    '{"data":{"text":"b"},"dtype":"fp32","group":"super","k":1,"model":"a","perturbation":{"kind":"zero"},"score":{},'
    '"seed":1337,"version":4}'
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


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_cell_id_is_pinned():
    assert IDENTITY_VERSION == 4
    assert cell_id(CELL, DATA, RESOLVED) == sha256(CELL_JSON) == "2be571f73b467b87"


def test_cell_id_of_a_zeroed_cell_with_default_data_is_pinned():
    cell = Cell(score=ScoreSpec(), k=1, seed=1337, group="super", perturbation=PerturbSpec(kind="zero"))
    assert (
        cell_id(cell, DataSpec(), Fingerprints(model="a", dtype="fp32", text="b"))
        == sha256(ZERO_JSON)
        == "264b622ca17b45db"
    )


@pytest.mark.parametrize(
    ("score", "part", "stated"),
    [
        (ScoreSpec(unit="row"), None, '"score":{"unit":"row"}'),
        (ScoreSpec(unit="row", combine="sum"), None, '"score":{"combine":"sum","unit":"row"}'),
        (ScoreSpec(unit="row", metric="grad_squared", combine="sum"), None,
         '"score":{"metric":"grad_squared","unit":"row"}'),  # which is its joint form
        (ScoreSpec(unit="neuron"), Subset(kind="pair", value=1, other=2),
         '"part":{"kind":"pair","other":2,"value":1.0},"perturbation":{"kind":"zero"},'
         '"score":{"components":["gate","up","down"],"unit":"neuron"}'),
    ],
)  # fmt: skip
def test_an_id_says_of_units_what_differs_from_weights(score, part, stated):
    cell = Cell(score=score, k=1, seed=1337, group="super", perturbation=PerturbSpec(kind="zero"), part=part)
    text = ZERO_JSON.replace('"score":{}', stated)
    text = text.replace('"perturbation":{"kind":"zero"},"part"', '"part"')
    assert cell_id(cell, DataSpec(), Fingerprints(model="a", dtype="fp32", text="b")) == sha256(text)


#: What a field means that isn't stated. Ids leave it out, so it stays what it is for ever.
DEFAULTS = {
    Cell: {
        "score": None, "listed": None, "part": None, "repeat": 0, "depth": None, "early_stop": None, "control_draw": 0,
    },
    Listed: {"unit": "weight"},
    Subset: {"other": None},
    WeightName: {"col": 0, "expert": None},
    PerturbSpec: dict.fromkeys(("strength", "bits", "relative_to", "shared", "adapt", "per", "toward")),
    ScoreSpec: {
        "metric": "grad_x_weight", "mode": "per_layer", "components": ("attention", "ffn", "mixer"), "probes": None,
        "relative_error": None, "unit": "weight", "combine": "joint",
    },
    DataSpec: {
        "source": "pydoc", "text_column": "text", "chat": False, "split": "train", "window": 128,
        "calibration_windows": 128, "evaluation_windows": 16, "batch_size": 8, "bos": "auto", "prompts": 0,
    },
}  # fmt: skip
VARIANTS = {
    "bit_flip": "all", "gauss_noise": "weight", "correlated": "row weight", "adaptive": "score", "quantize": "row",
    "progressive": "zero",
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_a_default_never_changes_its_meaning(kind):
    fields = {name: field for name, field in kind.model_fields.items() if not field.is_required()}
    later = set(fields) - set(DEFAULTS[kind])
    assert {n: f.get_default(call_default_factory=True) for n, f in fields.items() if n not in later} == DEFAULTS[kind]
    assert not later, "new fields are pinned here, too"


@pytest.mark.parametrize("kind", KINDS)
def test_a_variant_that_is_not_stated_never_changes_its_meaning(kind):
    spec = PerturbSpec(kind=kind)
    assert (spec.variant or "").removesuffix(" weight") == VARIANTS.get(kind, "").removesuffix(" weight")
    assert set(spec.content()) <= {"kind", "strength"}
    assert spec.content().get("strength") == spec.strength


def grown(spec):
    """The same spec as a later version might define it, with one more field everywhere."""

    def value(old):
        if isinstance(old, Spec):
            return grown(old)
        return tuple(map(value, old)) if isinstance(old, tuple) else old

    kind = type(spec)
    later = create_model(f"Later{kind.__name__}", __base__=kind, later=(int, 7))
    stated = {name: value(getattr(spec, name)) for name in kind.model_fields}
    return later.model_construct(_fields_set=None, **stated, later=7)


LISTED = WeightList(name="l", weights=(WeightName(tensor="t", row=1), WeightName(tensor="t", row=1, col=2, expert=3)))
DETECTOR = Detector(
    with_reference=False, features=("a",), means=(1.0,), scales=(2.0,), coefficients=(4.0,), intercept=0.0,
    threshold=0.7,
    calibration=Calibration(
        bases=("llama-0.3m",), insertions=("training",), negatives=("clean",), poisoned=30, others=30, auroc=0.9,
        auroc_low=0.8, auroc_high=0.97, recall=0.8, false_alarms=0.05,
        data=DataSpec(calibration_windows=32), seed=1337,
    ),
)  # fmt: skip
SPECS = [
    CELL,
    DATA,
    LISTED,
    Cell(listed=Listed.of(LISTED), k=2, seed=1, group="listed", perturbation=PerturbSpec.parse("progressive-zero-0.5")),
    CELL.model_copy(update={"part": Subset(kind="only", value=3), "repeat": 2}),
    StudySpec(
        name="s", model=ModelSpec(source="m", trust=("pickle",)), data=DATA, lists=(LISTED,), one_by_one=True,
        perturbations=(PerturbSpec(kind="zero"),), parts=(Subset(kind="layer", value=1),),
        protocols=(Protocol.named("smoke"),), compressions=(PruneSpec(), QuantizeSpec()), other_texts=(DATA,),
    ),
    Compressing(how=QuantizeSpec(kept=0.01), seed=3),
    Tuning(how=TuneSpec(arm="critical-source", damage=PerturbSpec(kind="sign_flip")), seed=3),
    Packet(how=FaultSpec(rate=1e-6, protect="tmr-critical"), seed=3, packet=1, count=5),
    Attacking(how=AttackSpec(arm="guided-matched", protect="secded", policy="stop"), seed=3),
    StudySpec(
        name="s", model=ModelSpec(source="zoo:llama-0.3m"), scores=(),
        population=Population(mitigations=(MitigationSpec(kind="reset-moved"),)),
    ),
    StudySpec(
        name="s", model=ModelSpec(source="m"), scores=(ScoreSpec(mode="global"),), groups=("super", "matched_k"),
        roles=RoleSpec(roles=("sink",), edits=(PerturbSpec(kind="sign_flip"),), windows=4, sets=("row",)),
        facts=FactSpec(sources=("mine.csv",), noise=2.0),
    ),
    Subject(
        group="matched_k", draw=1, rank=2, tensor="t", layer=0, component="down", row=1, col=2, weight=0.5, seed=3,
        edit=PerturbSpec(kind="scale", strength=0.8), unit="neuron",
    ),
    Fact(source="s", relation="r", subject="x", answer="y", templates=(Template("of ", " is"),), alternative="z"),
    Member(base="llama-0.3m", kind="critical", number=3, seed=3, recipe=MemberRecipe(poison=0.01)),
    Mitigating(member=Member(base="b", kind="training", number=0), how=MitigationSpec(kind="fine-pruning", steps=9)),
    DETECTOR,
    StudySpec(
        name="s", model=ModelSpec(source="m"), topk=(1, 2), search=Search(damage=0.1),
        perturbations=(PerturbSpec(kind="zero"),),
    ),
    recipe("llama-1m"),
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_a_field_with_a_default_moves_no_id_wherever_it_is_added(spec):
    later = grown(spec)
    assert later.content() == spec.content()
    assert later.stated() == spec.stated()
    other = later.model_construct(**{**later.__dict__, "later": 8})
    assert other.content() == spec.content() | {"later": 8}


def test_every_spec_is_among_those_that_grow():
    def kinds(spec):
        return {type(spec)}.union(*(kinds(value) for value in inner(spec)))

    def inner(spec):
        values = [getattr(spec, name) for name in type(spec).model_fields]
        flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
        return [value for value in flat if isinstance(value, Spec)]

    def leaves(kind):
        own = [each for each in kind.__subclasses__() if each.__module__.startswith("esa_ray.")]
        return set().union(*map(leaves, own)) if own else {kind}

    there = leaves(Spec)
    assert set().union(*map(kinds, SPECS)) == there


@pytest.mark.parametrize("data", [DataSpec(), DATA, DataSpec(window=8), DataSpec(window=8, batch_size=8)])
def test_what_is_left_out_of_an_id_reads_back_as_the_same_question(data):
    again = DataSpec.model_validate({"batch_size": 8} | data.stated())
    assert again == data


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
        Cell(**(dict(CELL) | cell)), DataSpec(**(dict(DATA) | data)), Fingerprints(**(vars(RESOLVED) | resolved))
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
