import pytest
from hypothesis import given
from pydantic import ValidationError

from analysis.names import label as printed
from esa_ray.cli.parsing import perturbations as read_perturbations
from esa_ray.grid import Cell
from esa_ray.spec import (
    BLOCK_COMPONENTS,
    DataSpec,
    ModelSpec,
    PerturbSpec,
    PruneSpec,
    ScoreSpec,
    StudySpec,
    explain,
)
from tests.drawn import perturbations

ATTENTION = ("q", "k", "v", "o", "q_latent", "kv_latent", "attn_gate")
FFN = ("gate", "up", "down", "router")


def study(**changes) -> StudySpec:
    return StudySpec(**({"name": "s", "model": ModelSpec(source="m")} | changes))


@pytest.mark.parametrize(
    "label",
    ["scale-1.00000001", "sign_flip-1e-9", "gradient_aligned-1e-9", "gradient_opposed-2e-8", "progressive-zero-1e-8",
     "progressive-sign_flip-1e-8", "progressive-gradient_aligned-0.001-0.00001"],
)  # fmt: skip
def test_a_step_that_rounds_away_in_every_dtype_is_refused_in_a_sentence(label):
    with pytest.raises(ValidationError, match=r"can never change a weight: .* rounds away in fp32"):
        PerturbSpec.parse(label)


@pytest.mark.parametrize(
    "label", ["scale-1.0000001", "sign_flip-0.0000001", "gauss_noise-1e-30", "bit_flip-1e-30", "progressive-zero-1e-7"]
)
def test_a_step_that_fp32_can_take_and_a_draw_however_rare_are_not_refused(label):
    PerturbSpec.parse(label)


@pytest.mark.parametrize(
    ("kind", "strength", "variant"),
    [("sign_flip", 1.0, None), ("zero", None, None), ("gauss_noise", 0.02, "weight"), ("bit_flip", 0.05, "all")],
)
def test_a_perturbation_named_alone_is_completed(kind, strength, variant):
    spec = PerturbSpec(kind=kind)
    assert (spec.strength, spec.variant) == (strength, variant)


def test_what_is_filled_in_and_what_is_spelled_out_are_equal_and_hash_alike():
    spelled = PerturbSpec(kind="gauss_noise", strength=0.02, relative_to="weight")
    assert {PerturbSpec(kind="gauss_noise"), spelled} == {spelled}


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "zero", "strength": 1.0},
        {"kind": "sign_flip", "strength": 0.0},
        {"kind": "gauss_noise", "strength": -0.1},
        {"kind": "gauss_noise", "strength": float("nan")},
        {"kind": "gauss_noise", "strength": float("inf")},
        {"kind": "bit_flip", "strength": 1.0001},
        {"kind": "bit_flip", "relative_to": "tensor"},
        {"kind": "gauss_noise", "bits": "sign"},
        {"kind": "zero", "bits": "all"},
        {"kind": "explode"},
        {"kind": "bit_flip", "bits": "parity"},
        {"kind": "zero", "colour": "red"},
        {"kind": "scale", "strength": 1.0},
        {"kind": "bit_flip", "strength": 0.0},
        {"kind": "progressive", "strength": 0.0},
    ],
)
def test_a_perturbation_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ValidationError):
        PerturbSpec(**fields)


def test_bit_flip_takes_a_probability_of_one():
    assert PerturbSpec(kind="bit_flip", strength=1).strength == 1.0


def test_labels_tell_variants_and_strengths_apart():
    specs = [
        PerturbSpec(kind="zero"),
        PerturbSpec(kind="sign_flip"),
        PerturbSpec(kind="sign_flip", strength=0.5),
        PerturbSpec(kind="gauss_noise"),
        PerturbSpec(kind="gauss_noise", relative_to="tensor"),
        PerturbSpec(kind="bit_flip"),
        *(PerturbSpec(kind="bit_flip", bits=bits) for bits in ("sign", "exponent", "mantissa")),
    ]
    assert len({s.label for s in specs}) == len(specs)


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        (("attention",), ATTENTION),
        (("q", "k", "v", "o"), ATTENTION),
        (("ffn",), FFN),
        (("ffn", "attention"), ATTENTION + FFN),
        (("q", "k", "v", "o", *FFN), BLOCK_COMPONENTS),
        (("*.A_log", "q", "lm_head.weight"), ("q", "*.A_log", "lm_head.weight")),
        (("down", "q", "down"), ("q", "down")),
        (("norm", "head", "embed"), ("embed", "head", "norm")),
    ],
)
def test_components_are_expanded_deduplicated_and_put_in_one_order(asked, got):
    assert ScoreSpec(components=asked).components == got


@pytest.mark.parametrize(
    ("asked", "stated"),
    [
        (("attention", "ffn", "mixer"), {}),
        (("q", "k", "v", "o", *FFN), {}),
        (("attention",), {"components": ["attention"]}),
        (("q", "k", "v", "o"), {"components": ["attention"]}),
        (("attention", "ffn"), {"components": ["attention", "ffn"]}),
        (("head", "ffn", "embed"), {"components": ["ffn", "embed", "head"]}),
        (("q", "v", "*.A_log"), {"components": ["q", "v", "*.A_log"]}),
    ],
)
def test_components_are_hashed_by_their_groups(asked, stated):
    assert ScoreSpec(components=asked).content() == stated
    assert ScoreSpec(**ScoreSpec(components=asked).content()) == ScoreSpec(components=asked)


@pytest.mark.parametrize("components", [(), ("qkv",), ("attention", "bias")])
def test_unknown_or_no_components_are_refused(components):
    with pytest.raises(ValidationError):
        ScoreSpec(components=components)


def test_topk_is_sorted_and_lists_lose_their_repetitions():
    zero = PerturbSpec(kind="zero")
    spec = study(topk=(100, 50, 100), seeds=(3, 1, 3), perturbations=(zero, zero), groups=("bottom_k", "bottom_k"))
    assert spec.topk == (50, 100)
    assert spec.seeds == (3, 1)
    assert spec.perturbations == (zero,)
    assert spec.groups == ("super", "bottom_k")


def test_a_control_always_comes_with_the_set_that_it_controls_for():
    assert study(groups=("random_k",)).groups == ("super", "random_k")


@pytest.mark.parametrize(
    "changes",
    [
        {"topk": (0,)},
        {"topk": ()},
        {"seeds": (-1,)},
        {"seeds": ()},
        {"scores": ()},
        {"name": ""},
        {"name": "../up"},
        {"name": ".hidden"},
        {"groups": ("worst_k",)},
        {"analyses": ("stability",), "seeds": (1,)},
        {"analyses": ("stability",), "seeds": (1, 1)},
        {"colour": "red"},
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ValidationError):
        study(**changes)


def test_replace_changes_what_is_named_keeps_the_rest_and_validates():
    spec = study(topk=(5,), seeds=(1, 2), perturbations=(PerturbSpec(kind="bit_flip", bits="sign"),))
    other = spec.replace(topk=(9, 3))
    assert other.topk == (3, 9)
    assert other.model_dump(exclude={"topk"}) == spec.model_dump(exclude={"topk"})
    for wrong in ({"topk": (0,)}, {"colour": 1}):
        with pytest.raises(ValidationError):
            spec.replace(**wrong)


def test_specs_are_frozen():
    with pytest.raises(ValidationError):
        DataSpec().window = 5


@pytest.mark.parametrize(
    ("spec", "update"),
    [
        (PerturbSpec(kind="bit_flip"), {"strength": 7.0}),
        (ModelSpec(source="m"), {"dtype": "fp8"}),
        (DataSpec(), {"window": -1}),
        (ScoreSpec(), {"components": ("nonsense",)}),
    ],
)
def test_a_variant_by_model_copy_is_checked_again_as_the_module_says(spec, update):
    with pytest.raises((ValidationError, ValueError)):
        spec.model_copy(update=update)


def test_a_study_reads_back_from_its_json():
    spec = study(
        perturbations=(PerturbSpec(kind="zero"), PerturbSpec(kind="gauss_noise", relative_to="tensor")),
        scores=(ScoreSpec(metric="magnitude", mode="global", components=("down",)),),
    )
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec


def test_members_of_an_ensemble_are_put_in_one_order_and_each_known_and_distinct():
    assert ScoreSpec(metric="magnitude+grad_squared").metric == "grad_squared+magnitude"
    for wrong in ("grad_squared+", "grad_squared+nonsense", "magnitude+magnitude", ""):
        with pytest.raises(ValidationError):
            ScoreSpec(metric=wrong)


def test_super_activation_is_of_down_projections_alone():
    assert ScoreSpec(metric="super_activation").components == ("down",)
    assert ScoreSpec(metric="super_activation+magnitude", components=("ffn",)).components == ("down",)
    with pytest.raises(ValidationError, match="down"):
        ScoreSpec(metric="super_activation", components=("attention",))


@pytest.mark.parametrize("component", ["embed", "norm"])
def test_act_mag_is_refused_where_nothing_is_multiplied(component):
    with pytest.raises(ValidationError, match="act_mag"):
        ScoreSpec(metric="act_mag", components=("down", component))


def test_probing_belongs_to_estimates_and_is_one_per_study():
    first = ScoreSpec(metric="hutchinson_diag")
    assert first.estimated
    assert first.probes >= 2
    with pytest.raises(ValidationError, match="hutchinson"):
        ScoreSpec(probes=4)
    with pytest.raises(ValidationError, match="probes"):
        study(scores=(first, ScoreSpec(metric="hutchinson_abs", probes=first.probes + 1)))
    for wrong in ({"probes": 1}, {"relative_error": 0.0}):
        with pytest.raises(ValidationError):
            ScoreSpec(metric="hutchinson_diag", **wrong)


def test_an_explanation_names_the_field_and_the_value():
    with pytest.raises(ValidationError) as caught:
        study(data={"window": 1})
    said = str(explain(caught.value))
    assert "data.window" in said
    assert "1" in said
    with pytest.raises(ValidationError) as caught:
        study(perturbations=({"kind": "bit_flip", "strength": 2.0},))
    assert "probability" in str(explain(caught.value))


@given(perturbations())
def test_a_label_reads_back_as_what_it_names(spec):
    assert PerturbSpec.parse(spec.label) == spec


@given(perturbations(), perturbations())
def test_different_perturbations_have_different_labels_and_columns(a, b):
    same = a == b
    assert (a.label == b.label) == same
    assert ((a.kind, a.strength, a.variant) == (b.kind, b.strength, b.variant)) == same


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "scale", "strength": 1.0},
        {"kind": "quantize", "strength": 2.5},
        {"kind": "quantize", "strength": 17},
        {"kind": "progressive", "strength": 1.5},
        {"kind": "set_mean", "strength": 0.1},
        {"kind": "gradient_aligned", "strength": -0.1},
        {"kind": "zero", "shared": "row"},
        {"kind": "gauss_noise", "per": "row"},
        {"kind": "progressive", "toward": PerturbSpec(kind="progressive")},
    ],
)
def test_damage_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ValidationError):
        PerturbSpec(**fields)


@pytest.mark.parametrize(("window", "windows"), [(128, 8), (64, 16), (512, 2), (1024, 1), (4096, 1)])
def test_a_batch_holds_as_many_windows_as_make_a_thousand_tokens_unless_it_is_said(window, windows):
    assert DataSpec(window=window).batch_size == windows
    assert DataSpec(window=window, batch_size=None).batch_size == windows
    assert DataSpec(window=window, batch_size=3).batch_size == 3
    assert DataSpec(window=window).model_copy(update={"calibration_windows": 5}).batch_size == windows
    assert DataSpec().model_copy(update={"window": window}) == DataSpec(window=window)
    assert DataSpec(batch_size=8).model_copy(update={"window": window}).batch_size == 8
    assert DataSpec.model_validate({"window": str(window)}) == DataSpec(window=window)


@given(perturbations())
def test_what_reports_print_of_a_row_the_command_line_takes_back(spec):
    row = Cell(score=ScoreSpec(), k=1, seed=1, group="super", perturbation=spec).columns
    assert read_perturbations(printed(row), None, None, None, None) == [spec]


def test_two_compressions_are_never_saved_under_one_name():
    ways = (PruneSpec(), PruneSpec(components=("gate",)))
    study = StudySpec(name="s", model=ModelSpec(source="m"), scores=(), compressions=ways)
    assert len(study.compressions) == 2
    with pytest.raises(ValidationError, match=r"two models to prune-act_mag-row-0\.5; make them two studies"):
        study.replace(save_models="homes")
