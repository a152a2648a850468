"""The commands on roles and facts: the studies that they ask for, their plans, and what is refused in one sentence."""

import json

import pytest

from esa_ray.spec import FACTS, ROLES, FactSpec, RoleSpec

FILE = "tensor,row,col\nmodel.layers.0.mlp.down_proj.weight,1,0\nmodel.layers.0.mlp.down_proj.weight,2,0\n"
OWN_FACTS = "prompt,subject,answer,alternative\nThe colour of grass is,grass,green,blue\n"


@pytest.fixture(autouse=True)
def _files(tmp_path):
    (tmp_path / "two.csv").write_text(FILE)
    (tmp_path / "mine.csv").write_text(OWN_FACTS)


# -- esa roles


def test_roles_of_no_options_have_the_defaults_of_their_spec(studies_of):
    (spec,) = studies_of("esa roles --model m")
    assert spec.roles == RoleSpec()
    assert spec.roles.roles == ROLES
    (score,) = spec.scores
    assert (score.metric, score.mode, spec.topk) == ("grad_x_weight_abs", "global", (100,))
    assert (spec.groups, spec.control_draws, spec.perturbations) == (("super", "matched_k"), 5, ())
    assert (spec.data.evaluation_windows, spec.facts) == (8, None)


def test_every_option_of_roles_is_in_the_study(studies_of):
    one, two = studies_of(
        "esa roles --model a,b --weights top:20 --roles sink,spike --null matched_k --null-weights 3 "
        "--edits zero,sign_flip,set_mean,scale-0.8 --sets row,neuron --metric magnitude --components ffn "
        "--eval-windows 4 --no-attention --facts countries --limit 7 --seeds 1,2 --out-dir d"
    )
    assert [spec.model.source for spec in (one, two)] == ["a", "b"]
    roles = one.roles
    assert (roles.roles, roles.sets, roles.null_weights) == (("sink", "spike"), ("row", "neuron"), 3)
    assert [edit.label for edit in roles.edits] == ["zero", "sign_flip-1", "set_mean", "scale-0.8"]
    assert (roles.windows, roles.attention, one.control_draws) == (4, False, 3)
    assert (one.topk, one.scores[0].metric, one.scores[0].components) == (
        (20,),
        "magnitude",
        ("gate", "up", "down", "router"),
    )
    assert one.facts == FactSpec(sources=("countries",), limit=7)


def test_weights_of_a_file_need_no_score(studies_of):
    (spec,) = studies_of("esa roles --model m --weights two.csv")
    assert (spec.scores, [given.k for given in spec.lists]) == ((), [2])


def test_a_plan_of_roles_counts_weights_and_has_no_cells(esa):
    code, out, err = esa("esa roles --model gpt2 --weights top:20 --null-weights 3 --roles sink,induction --plan")
    assert (code, err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if " " in line)
    assert facts["roles"] == "80 weights and sets at most, each damaged once (2 roles)"
    assert facts["attention"] == "80 weights at most"
    # 80 × 8 windows of two texts, the intact model's texts and gradients, attention, the baseline, calibration.
    assert out.split("forward passes")[1].split()[0] == str(80 * 8 * 2 + 8 * (2 + 2) + 81 * 8 + 8 + 128)
    assert not {"cells", "perturbations"} & facts.keys()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--weights top:0", "--weights top:N takes a whole number from 1 on, not 'top:0'"),
        ("--weights top:many", "--weights top:N takes a whole number from 1 on"),
        ("--weights none.csv", "none.csv"),
        ("--weights two.csv,two.csv", "--weights takes top:N or one file"),
        ("--weights two.csv --metric magnitude", "--metric chooses weights, which two.csv names; leave it out"),
        ("--metric magnitude,act_mag", "roles are of the weights of one score; name one"),
        ("--roles cook", "--roles cook is not one of spike, sink"),
        ("--roles ''", "--roles is empty"),
        ("--null random_k", "--null random_k is not one of matched_k"),
        ("--null-weights 0", "--null-weights must be at least 1, not 0"),
        ("--edits smash", "--edits: 'smash' is not one of"),
        ("--edits scale-1", "scale by 1 changes nothing"),
        ("--edits gradient_aligned", "--edits: gradient_aligned-0.1 needs the gradient of each weight"),
        ("--edits ''", "--edits is empty"),
        ("--sets tensor", "--sets tensor is not one of row, col, neuron, head"),
        ("--eval-windows 1", "--eval-windows must be at least 2, not 1"),
        ("--limit 3", "--limit is of --facts; add them, or leave it out"),
        ("--facts ''", "--facts is empty"),
        ("--facts nowhere.csv", "nowhere.csv"),
    ],
)
def test_what_roles_cannot_be_is_refused_before_anything_is_loaded(esa, line, said):
    code, out, err = esa(f"esa roles --model gpt2 {line}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_roles_read_back_from_a_file_and_its_faults_are_told_in_its_keys(esa, studies_of, tmp_path):
    long = "--edits zero,scale-0.8 --sets head --weights two.csv --facts mine.csv --no-attention --eval-windows 4"
    for name, each in (("plain", ""), ("long", long)):
        (written,) = studies_of(f"esa roles --model m {each} --save-spec {name}.yaml")
        (read,) = studies_of(f"esa run --spec {name}.yaml")
        assert read == written
    assert "edits: [zero, scale-0.8]" in (tmp_path / "long.yaml").read_text()
    for roles, said in (
        ({"roles": ["cook"]}, "roles.roles[0] must be"),
        ({"edits": ["smash"]}, "'smash' is not one of"),
        ({"null_weights": 0}, "roles.null_weights must be at least 1"),
    ):
        fields = {"model": "m", "scores": [{"metric": "magnitude", "mode": "global"}], "groups": ["matched_k"]}
        (tmp_path / "a.json").write_text(json.dumps(fields | {"roles": roles}))
        code, _, err = esa("esa run --spec a.json")
        assert (code, err.count("\n")) == (2, 1)
        assert said in err


# -- esa facts


def test_facts_of_no_options_have_the_defaults_of_their_spec(studies_of):
    (spec,) = studies_of("esa facts --model m")
    assert spec.facts == FactSpec()
    assert spec.facts.sources == FACTS
    assert (spec.scores, spec.roles, spec.groups) == ((), None, ("super",))


def test_every_option_of_facts_is_in_the_study(studies_of):
    (spec,) = studies_of(
        "esa facts --model m --facts elements,mine.csv --limit 9 --paraphrases 2 --corruption noise --noise 2 "
        "--draws 4 --restored 1,3"
    )
    assert spec.facts == FactSpec(
        sources=("elements", "mine.csv"), limit=9, paraphrases=2, corruptions=("noise",), noise=2.0, draws=4,
        restored=(1, 3),
    )  # fmt: skip
    (read,) = studies_of("esa facts --model m --facts mine.csv --save-spec a.yaml")
    assert studies_of("esa run --spec a.yaml") == [read]


def test_a_plan_of_facts_counts_them_by_seed_and_ranks_nothing(esa):
    code, out, err = esa("esa facts --model gpt2 --facts countries --limit 5 --plan")
    assert (code, err) == (0, "")
    assert "facts             5 facts at most" in out
    out += esa("esa facts --model gpt2 --facts countries --limit 5 --seeds 1,2 --plan")[1]
    assert "facts             10 facts at most" in out
    assert "rankings" not in out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--facts ''", "--facts is empty; name one of countries, elements, or a CSV"),
        ("--facts planets", "planets"),
        ("--limit 0", "--limit must be at least 1, not 0"),
        ("--paraphrases 4", "--paraphrases must be at most 3, not 4"),
        ("--corruption fire", "--corruption fire is not one of subject, noise"),
        ("--corruption subject --noise 2", "--noise belongs to --corruption noise"),
        ("--noise 0", "--noise must be above 0"),
        ("--draws 0", "--draws must be at least 1"),
        ("--restored 2", "their number is odd and above 0, not 2"),
        ("--restored some", "--restored takes whole numbers"),
    ],
)
def test_what_facts_cannot_be_is_refused_before_anything_is_loaded(esa, line, said):
    code, out, err = esa(f"esa facts --model gpt2 {line}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
