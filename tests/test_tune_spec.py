"""What a tuning may ask for."""

import pytest
from pydantic import ValidationError

from esa_ray.spec import PerturbSpec, TuneSpec


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"damage": PerturbSpec.parse("adaptive-0.1")}, "adaptive-0.1 goes by a score, which tuning changes"),
        ({"damage": PerturbSpec.parse("gradient_aligned-0.1")}, "goes by the gradient, which tuning changes"),
        ({"damage": PerturbSpec.parse("progressive-gradient_opposed-0.5")}, "goes by the gradient"),
        ({"arm": "lora", "damage": PerturbSpec(kind="zero")}, "--damage is done to the weights themselves"),
        ({"arm": "bottom", "score": "act_mag", "components": ("embed", "q")}, "leave embed out of --components"),
        ({"arm": "critical-source", "score": "hutchinson_diag"}, "is estimated by probes"),
        ({"arm": "random", "protect": "ewc"}, "--protect ewc holds back full tuning; use --arm full"),
        ({"protect": "freeze", "strength": 1.0}, "only below a share of 1"),
        ({"strength": 1.0}, "belong to --protect"),
        ({"rescore": 5}, "belong to --protect"),
        ({"protect": "ewc", "rescore": 8, "steps": 8}, "--rescore 8 is never done in 8 steps"),
        ({"steps": 3}, "4 looks need as many steps"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        TuneSpec(**fields)


def test_a_score_that_nothing_asks_says_nothing_of_its_components():
    assert TuneSpec(arm="random", score="act_mag", components=("embed", "q")).score == "grad_x_weight_abs"


def test_damage_that_goes_by_rows_is_known_in_every_step():
    assert TuneSpec(damage=PerturbSpec.parse("adaptive-row-0.1")).damage is not None
