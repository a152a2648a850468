"""The command line: every published line parses and plans, and bad input is one sentence and exit 2."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest

from esa_ray.cli import run as run_module
from esa_ray.cli.attack import attack
from esa_ray.cli.backdoors import backdoors
from esa_ray.cli.compress import prune, quantize
from esa_ray.cli.facts import facts
from esa_ray.cli.faults import faults
from esa_ray.cli.roles import roles
from esa_ray.cli.run import baseline, finish, run, search
from esa_ray.cli.tune import tune
from esa_ray.cli.wording import OPTIONS
from esa_ray.doctor import machine
from esa_ray.errors import EsaError
from esa_ray.measurements.plan import plan
from esa_ray.spec import (
    AttackSpec,
    DataSpec,
    FactSpec,
    FaultSpec,
    MitigationSpec,
    ModelSpec,
    Population,
    PruneSpec,
    QuantizeSpec,
    RoleSpec,
    ScoreSpec,
    Search,
    StudySpec,
    TuneSpec,
)  # fmt: skip
from esa_ray.spec.backdoors import Recipe
from esa_ray.weights import read_weights
from experiments.__main__ import names

LINES = (Path(__file__).parent / "data" / "commands.txt").read_text().splitlines()


def test_an_option_that_stands_twice_is_refused_since_half_of_the_grid_would_be_lost(esa):
    code, _, err = esa("esa run --model m --perturb zero --perturb=sign_flip --plan")
    assert code == 2
    assert "--perturb stands twice" in err


@pytest.mark.parametrize("line", LINES)
def test_published_lines_plan_without_touching_the_disk(esa, line, tmp_path):
    code, out, err = esa(line + " --plan")
    assert (code, err) == (0, "")
    model = shlex.split(line)[3]
    assert f"model             {model}" in out
    assert not list(tmp_path.iterdir())


def _facts(out):
    return {line[:18].strip(): line[18:] for line in out.splitlines()}


def test_a_plan_counts_cells_and_shared_work(esa):
    line = next(x for x in LINES if "--perturb gauss_noise --perturb-scale 0.02" in x)
    facts = _facts(esa(line + " --plan")[1])
    # 3 seeds × 1 k × 1 strength × (super, random_k, bottom_k); 200 windows a seed; 16 evaluation windows.
    assert facts["cells"] == "9"
    assert facts["rankings"].startswith("3 (each shared by 3 cells")
    assert facts["backward passes"] == "600"
    assert facts["forward passes"].startswith(f"{600 + (9 + 1) * 16} ")
    assert facts["results"] == "outputs/esa/llama31_8b/gauss_0p02_k100"


def test_a_study_that_says_nothing_of_chat_rows_keeps_its_name(esa):
    facts = _facts(esa("esa run --model x --perturb zero --plan")[1])
    assert facts["results"] == "results/x-grad_x_weight-per_layer-k100-zero-956bc3"
    assert _facts(esa("esa run --model x --perturb zero --chat --plan")[1])["results"] != facts["results"]


@pytest.mark.parametrize(
    ("said", "column", "chat"),
    [("", "text", False), ("--chat", "messages", True), ("--chat --text-column chosen", "chosen", True)],
)
def test_chat_rows_stand_in_messages_unless_another_column_is_named(esa, monkeypatch, said, column, chat):
    seen = []
    run_module = importlib.import_module("esa_ray.cli.run")
    monkeypatch.setattr(run_module, "execute", lambda studies, **options: seen.extend(studies) or 0)
    assert esa(f"esa run --model x --perturb zero {said}")[0] == 0
    assert (seen[0][0].data.text_column, seen[0][0].data.chat) == (column, chat)


def test_comma_lists_make_a_grid(esa):
    line = "esa run --model x --topk 50,100,200 --perturb sign_flip,zero,bit_flip --perturb-scale 0.005,0.01,0.05 "
    facts = _facts(esa(line + "--perturb-prob 0.1,0.2 --controls random_k --seeds 1,2 --plan")[1])
    assert facts["cells"] == str(2 * 3 * (3 + 1 + 2) * 2)


def test_studies_given_no_place_go_to_places_of_their_own(esa):
    # What is drawn or said beside a study doesn't make it another one.
    lines = [x.replace(" --save-plots", "") for x in LINES if "--out-dir" not in x]
    places = {_facts(esa(line + " --plan")[1])["results"] for line in lines}
    assert len(places) == len({*lines})


def test_score_plans_rankings_without_cells(esa):
    line = "esa score --model x --metric grad_squared,act_mag+magnitude --mode per_layer,global --seeds 1,2 "
    facts = _facts(esa(line + "--fidelity 9 --plan")[1])
    assert facts["cells"] == "0"
    assert facts["rankings"].startswith("8 ")
    assert facts["scores"] == (
        "grad_squared per_layer, grad_squared global, act_mag+magnitude per_layer, act_mag+magnitude global"
    )
    assert facts["fidelity"] == "9 single weights"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--probes 4", ["--probes", "hutchinson_diag"]),
        ("--metric hutchinson_abs --probes 1", ["probes", "2"]),
        ("--memory-budget lots", ["--memory-budget", "4GB", "lots"]),
        ("--memory-budget 0", ["--memory-budget"]),
        ("--fidelity -3", ["fidelity", "-3"]),
        ("--metric grad_squared+x", ["metric", "'x'", "act_mag"]),
        ("--metric saliency", ["--metric: 'saliency'", "grad_x_weight"]),
        ("--mode per_head", ["--mode must be", "not 'per_head'", "per_layer"]),
        ("--perturb melt", ["--perturb: 'melt'", "melt", "sign_flip"]),
        ("--topk 0", ["--topk: ", "at least 1, not 0"]),
        ("--topk ten", ["--topk", "whole numbers", "ten"]),
        ("--seeds 1,x", ["--seeds", "1,x"]),
        ("--perturb zero --perturb-scale 1.0", ["--perturb-scale", "sign_flip"]),
        ("--perturb bit_flip --perturb-prob 1.5", ["probability", "1.5"]),
        ("--perturb gauss_noise --perturb-scale -1", ["above 0", "-1"]),
        ("--controls random_k", ["--controls", "--perturb"]),
        (
            "--unit rows",
            ["--unit must be 'weight', 'row', 'col', 'neuron' or 'head', not 'rows'"],
        ),
        (
            "--unit neuron --components attention",
            ["a neuron reaches over gate, up and down, and gate isn't scored; give --components ffn"],
        ),
        ("--combine sum", ["--combine sum is of units of many weights; add --unit row"]),
        ("--perturb zero --pairs 1", ["--pairs 1 makes no pair; give at least 2"]),
        ("--pairs 2", ["--pairs is about damage; add --perturb"]),
        ("--perturb zero --controls largest_k", ["largest_k is a control of rows, columns, neurons and heads"]),
        (
            "--perturb zero --controls nearest",
            ["--controls must be 'random_k', 'matched_k', 'largest_k' or 'bottom_k', not 'nearest'"],
        ),
        ("--stability-check", ["--stability-check", "two to --seeds"]),
        ("--components q,nose", ["--components: 'nose'"]),
        ("--dtype float16", ["--dtype must be 'auto', 'fp32', 'bf16' or 'fp16', not 'float16'"]),
        ("--window 1", ["--window must be at least 2, not 1"]),
        ("--batch-size 0", ["--batch-size must be at least 1, not 0"]),
        ("--max-samples 0", ["--max-samples must be at least 1, not 0"]),
        ("--eval-windows 1", ["--eval-windows must be at least 2, not 1"]),
        ("--bos maybe", ["--bos must be 'auto', 'always' or 'never', not 'maybe'"]),
        ("--trust all", ["--trust must be 'remote_code' or 'pickle', not 'all'"]),
        ("--seeds -1", ["--seeds: ", "from 0 to 2**63", "-1"]),
        ("--prompts 99", ["--prompts 99", "16 evaluation windows", "--eval-windows"]),
        ("--metric , ", ["--metric is empty", "act_mag"]),
        ("--mode , ", ["--mode is empty", "per_layer, per_tensor, global"]),
        ("--split ''", ["--split is empty"]),
        ("--out-dir ''", ["--out-dir is empty"]),
        ("--perturb zero-1", ["--perturb zero-1: zero takes no strength"]),
        ("--perturb quantize-1,zero", ["--perturb quantize-1: ", "from 2 to 16"]),
        ("--perturb bit_flip --bits some", ["--bits must be 'all', 'sign', 'exponent' or 'mantissa', not 'some'"]),
        ("--perturb gauss_noise --noise-scale row", ["--noise-scale must be 'weight' or 'tensor', not 'row'"]),
        ("--perturb scale --perturb-scale nan", ["--perturb-scale nan must be a finite number"]),
        ("--perturb zero --repeats 0", ["--repeats must be at least 1, not 0"]),
        ("--perturb zero --early-stop 0.7", ["--early-stop must be below 0.5, not 0.7"]),
        ("--perturb zero --layers -1", ["--layers counts blocks from 0", "-1"]),
        ("--perturb zero --restore 2", ["--restore takes fractions between 0 and 1, not 2"]),
        ("--perturb zero --one-by-one", ["--one-by-one", "--mode global"]),
        ("--layers 1", ["--layers is about damage; add --perturb"]),
        ("--restore 0.5", ["--restore is about damage; add --perturb"]),
        ("--repeats 2", ["--repeats is about damage; add --perturb"]),
        ("--early-stop 0.1", ["--early-stop is about damage; add --perturb"]),
        ("--metric act_mag --components norm", ["esa: act_mag is", "leave norm out of --components"]),
        ("--model no/such/directory", ["no/such/directory", "no such directory"]),
        ("--model missing.gguf", ["missing.gguf", "no such file"]),
        ("--model ,", ["--model is empty"]),
        ("--model gpt2,gpt2", ["--model", "twice"]),
        ("--track mlflow", ["--track", "--perturb"]),
        ("--plan --out-dir s3://AKIA:hidden/key@bucket/x", ["a location with a key"]),
        ("--perturb zero --weights ~nobodyhere/x.csv", ["~nobodyhere"]),
        ("--model . --data nowhere.txt", ["config.json"]),
    ],
)
def test_bad_input_is_one_sentence_with_cause_and_mend(esa, arguments, words):
    model = "" if "--model" in arguments else "--model x/y "
    code, out, err = esa(f"esa run {model}{arguments}")
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("esa: ")
    assert "hidden" not in err
    assert "and 1 more" not in err  # one fault is one, in however many parts of the grid
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("baseline --windows 1", "--windows must be at least 2, not 1"),
        ("baseline --contexts 1", "--contexts: a window needs"),
        ("search --damage 1 --smallest w", "--smallest must be 'k' or 'strength', not 'w'"),
        ("search --damage 1 --smallest strength", "use --smallest k"),
        ("run --window x", "--window must be a whole number, not 'x'; see esa run --help"),
        ("run --window=1e9", "--window must be a whole number, not '1e9'"),
        ("run --early-stop x", "--early-stop must be a number, not 'x'"),
        ("run --gpus -1", "--gpus must be at least 0, not '-1'"),
        ("search --damage 1 --trials 0", "--trials must be at least 1, not '0'"),
        ("search", "issing option '--damage'"),
        ("run --contols none", "--contols"),
        ("run extra", "extra"),
        ("prune --method magnitude --group row", "--method says what --group would"),
        ("prune --method wanda --one-shot", "--method says what --one-shot would"),
        ("prune --method wanda --sequential", "--method says what --sequential would"),
        ("prune --pattern 2:4,4:8 --sparsity 0.7", "--pattern 2:4,4:8 leaves no choice of --sparsity"),
        ("prune --pattern 2:4 --group tensor", "--pattern 2:4 leaves no choice of --group"),
        ("prune --method wanda --damping 0.1", "--damping is of score obs and of updates, and none is asked for"),
        ("prune --method sparsegpt --damping ,", "--damping is empty"),
        ("prune --method sparsegpt --damping -1", "--damping must be at least 0"),
        ("prune --data pysource --other-data pydoc,pysource", "--other-data pysource is --data"),
        ("prune --save-model ''", "--save-model is empty"),
        ("quantize --save-model s3://bucket/models", "--save-model s3://bucket/models is no directory"),
        ("quantize --keep-by random", "--keep-by says which weights stay in 16 bits, and none do; add --keep"),
        ("run --window 1 --batch-size 0", "--window must be at least 2, not 1; and 1 more"),
    ],
)
def test_every_command_names_the_option_that_was_typed(esa, line, words):
    code, _, err = esa(f"esa {line} --model m --plan")
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


def test_help_is_no_error_and_a_command_that_is_none_is(esa):
    assert esa("esa run --help")[0] == 0
    assert esa("esa --version")[0] == 0
    code, out, err = esa("esa rum")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'rum'" in err
    for line in ("esa", "esa zoo"):
        code, out, err = esa(line)
        assert code == 2
        assert "Commands:\n" in out + err


def test_every_field_that_an_option_gives_has_its_name():
    """Each name in the table is an option, and each plain field of a study's own parts is in it."""
    commands = {
        f"--{name.replace('_', '-')}"
        for f in (run, search, baseline, prune, quantize, tune, faults, attack, backdoors, roles, facts)
        for name in signature(f).parameters
    }
    assert set(OPTIONS.values()) <= commands
    spaces: dict = {"compressions.prune.": PruneSpec, "compressions.quantize.": QuantizeSpec}
    spaces |= {"tunings.": TuneSpec, "target.": DataSpec, "faults.": FaultSpec, "attacks.": AttackSpec}
    spaces |= {"model.": ModelSpec, "data.": DataSpec, "scores.": ScoreSpec, "search.": Search, "": StudySpec}
    spaces |= {"population.": Population, "population.recipe.": Recipe, "population.mitigations.": MitigationSpec}
    spaces |= {"roles.": RoleSpec, "facts.": FactSpec}
    parts = {"model", "data", "scores", "perturbations", "analyses", "lists", "parts", "search", "protocols"} | {
        "compressions", "other_texts", "tunings", "target", "faults", "attacks", "population", "roles", "facts"
    }  # fmt: skip
    flags = {"data.chat", "target.chat", "one_by_one", "compressions.prune.sequential", "roles.attention"}
    flags |= {"target.split", "target.prompts", "population.recipe", "population.recipe.window"}
    # Which a file alone says.
    flags |= {f"population.recipe.{name}" for name in ("critical_rate", "critical_poison", "benign_poison")}
    flags |= {f"compressions.{kind}.kind" for kind in ("prune", "quantize")}  # which take no value
    for prefix, of in spaces.items():
        fields = {prefix + name for name in of.model_fields if prefix or name not in parts} - flags
        assert fields <= OPTIONS.keys()


def test_an_unreachable_hub_is_one_clear_line(tmp_path):
    # In a process of its own: the hub's client reads this variable when it is imported.
    command = [
        sys.executable,
        "-c",
        "from esa_ray.cli import main; main()",
        "run",
        "--model",
        "meta-llama/nothing-here",
    ]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, env=offline, capture_output=True, text=True)
    assert done.returncode == 2
    assert "meta-llama/nothing-here" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (lambda d: (d / "m.gguf").write_bytes(b"no gguf"), "--model m.gguf", ["m.gguf is no GGUF file"]),
        (lambda d: (d / "m.gguf").write_bytes(b"GGUF and no more"), "--model m.gguf", ["m.gguf", "converted"]),
        (lambda d: (d / "t.jsonl").write_text("[1]"), "--data t.jsonl --model .", ["t.jsonl", "no JSON object"]),
        (lambda d: (d / "t.jsonl").write_text('{"text": 3}'), "--data t.jsonl --model .", ["no text"]),
        (lambda d: (d / "t.txt").write_bytes(b"\xff\xfe\xfa"), "--data t.txt --model .", ["t.txt", "can't be read"]),
        (
            lambda d: (d / "t.parquet").write_bytes(b"PAR1"),
            "--data t.parquet --model .",
            ["t.parquet", "can't be read"],
        ),
        (lambda d: (d / "t.txt").write_text("  "), "--data t.txt --model .", ["holds no text"]),
        (
            lambda d: (d / "t.json").write_text('{"messages": [{"role": "user", "content": "x"}]}'),
            "--data t.json --model .",
            ["t.json, line 1 has no column 'text' but messages", "--chat --text-column messages"],
        ),
        (lambda d: (d / "t.CSV").write_text("a;b\n1;2"), "--data t.CSV --model .", ["t.CSV, line 1 has no", "a, b"]),
        (lambda d: (d / "t.json").write_text("[]"), "--data t.json --chat --model .", ["--model", "no tokenizer"]),
        (lambda d: None, "--data " + 300 * "x" + " --model .", ["is no file"]),
        (lambda d: None, "--revision abc --model .", ["--revision belongs to a hub model"]),
    ],
)
def test_files_that_are_not_what_they_should_be(esa, tmp_path, monkeypatch, make, arguments, words):
    monkeypatch.setenv("ESA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    make(tmp_path)
    code, _, err = esa(f"esa run {arguments}")
    assert code == 2, err
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "line",
    [
        "run --model x --weights",
        "perturb --model x --weights",
        "run --spec",
        "models --models-file",
        "compare x --models-file",
        "baseline --model x --protocol extended --tasks",
    ],
)
@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda path: None, "there is no such file; check its path"),
        (lambda path: path.mkdir(), "it is a directory; name a file in it"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links; mend it, or name another file"),
    ],
)
def test_a_file_that_isnt_one_is_named_with_its_option_and_the_mend(esa, line, make, cause, tmp_path):
    option = line.rpartition(" ")[2]
    name = "a.csv" if option == "--weights" else "a.yaml"
    make(tmp_path / name)
    code, _, err = esa(f"esa {line} {name}")
    if option == "--weights" and (tmp_path / name).is_dir():  # a study's directory would do
        assert (
            err == "esa: --weights a.csv holds no study (no study.json); name a file of weights, or a run's --out-dir\n"
        )
    else:
        assert err == f"esa: {option} {name} can't be read: {cause}\n"
    assert code == 2


def test_a_file_that_the_user_may_not_read_says_so(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.csv").write_text("tensor,row,col\na,0,0")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EsaError, match=r"--weights .*a\.csv can't be read: permission denied; allow reading it with"):
        read_weights(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run --model", "--model has no value; give it one, as esa run --help says"),
        ("run --perturb zero --trust", "--trust has no value; give it one, as esa run --help says"),
        ("run --model --plan", "--model has no value but --plan behind it; give it one, as esa run --help says"),
        ("run --data --window=4", "--data has no value but --window behind it; give it one, as esa run --help says"),
        ("zoo train --sizes", "--sizes has no value; give it one, as esa zoo train --help says"),
        ("report", "which study? Give its directory, as in: esa report results/quickstart"),
    ],
)
def test_an_option_without_its_value_is_named_with_its_commands_help(esa, line, words):
    code, out, err = esa(f"esa {line}")
    assert (code, out, err) == (2, "", f"esa: {words}\n")


def test_reporting_on_no_study_is_one_sentence(esa):
    for command in ("report", "status"):
        code, _, err = esa(f"esa {command} --out-dir nowhere")
        assert code == 2
        assert "nowhere" in err


def test_every_command_has_help_with_an_example(esa):
    code, out, _ = esa("esa --help")
    assert code == 0
    for command in ("run", "score", "report", "status"):
        assert command in out
        code, own, _ = esa(f"esa {command} --help")
        assert code == 0
        assert f"Example: esa {command} " in own


def test_perturb_with_given_weights_compares_with_as_many_of_the_largest(esa, tmp_path):
    (tmp_path / "two.csv").write_text("tensor,row,col\nx,1,0\nx,2,0\n")
    code, out, err = esa("esa perturb --model m --weights two.csv --perturb zero,sign_flip --one-by-one --plan")
    assert (code, err) == (0, "")
    facts = _facts(out)
    assert (facts["list"], facts["scores"], facts["k"]) == ("two: 2 weights, against random_k", "magnitude global", "2")
    # Two kinds × (super, its random, listed, its random, two members of each set).
    assert facts["cells"] == str(2 * (2 + 2 + 2 + 2))
    assert facts["backward passes"] == "0"


def test_perturb_without_a_list_damages_what_a_score_chooses(esa):
    facts = _facts(esa("esa perturb --model m --perturb quantize-3 --layers 0,5 --restore 0.1 --repeats 2 --plan")[1])
    assert facts["scores"] == "grad_x_weight per_layer"
    assert facts["perturbations"] == "quantize-3"
    # super: 2 runs, 2 layers, 2 restorations; random_k: 2 runs, 2 layers.
    assert facts["cells"] == "10"


def test_a_grid_of_prunings_has_each_once_since_no_group_changes_n_of_m(esa):
    line = "esa prune --model m --group row,tensor,block,model --pattern unstructured,2:4 --sparsity 0.5,0.6 --plan"
    facts = _facts(esa(line)[1])
    assert facts["compressions"] == "9 (9 ways by 1 seed, and the dense model)"
    assert not {"scores", "k"} & facts.keys()
    assert "cells" not in facts["baseline"]


def test_what_has_no_hessian_is_one_point_of_a_grid_of_dampings(esa):
    line = "esa prune --model m --method wanda,sparsegpt --damping 0.001,0.1 --sparsity 0.5,0.6 --plan"
    assert _facts(esa(line)[1])["compressions"].startswith("6 ")  # Wanda twice, SparseGPT twice by two


def test_models_of_several_parents_are_saved_in_a_directory_each(esa, tmp_path):
    out = esa("esa prune --model some/one,some/two --save-model homes --plan")[1]
    assert [line[18:] for line in out.splitlines() if line.startswith("saved models")] == [
        str(tmp_path / "homes" / name) for name in ("one", "two")
    ]
    alone = _facts(esa("esa prune --model some/one --save-model homes --plan")[1])
    assert alone["saved models"] == str(tmp_path / "homes")


def test_a_search_plans_a_ladder(esa):
    facts = _facts(esa("esa search --model m --damage 1.5 --topk 1:16 --perturb zero --plan")[1])
    assert facts["k"] == "1, 2, 3, 4, 6, 8, 11, 16"
    assert facts["search"] == "smallest k among these cells with ΔNLL ≥ 1.5"


@pytest.mark.parametrize(
    ("perturb", "shown"),
    [
        ("gauss_noise --perturb-scale 0.1,0.2 --noise-scale weight,tensor",
         "gauss_noise-0.1, gauss_noise-0.2, gauss_noise-tensor-0.1, gauss_noise-tensor-0.2"),
        ("bit_flip --bits sign,mantissa --perturb-prob 0.5", "bit_flip-sign-0.5, bit_flip-mantissa-0.5"),
        ("progressive", "progressive-zero-0.25, progressive-zero-0.5, progressive-zero-0.75, progressive-zero-1"),
        ("quantize-4,quantize-tensor-4,scale-0.5,correlated-layer",
         "quantize-4, quantize-tensor-4, scale-0.5, correlated-layer-0.1"),
    ],
)  # fmt: skip
def test_kinds_variants_and_strengths_make_a_grid(esa, perturb, shown):
    assert _facts(esa(f"esa run --model m --perturb {perturb} --plan")[1])["perturbations"] == shown


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run --model m --restore 0.5", ["--perturb"]),
        ("run --model m --perturb zero --restore 1.5", ["fraction", "1.5"]),
        ("run --model m --perturb zero --early-stop 0.7", ["--early-stop"]),
        ("run --model m --perturb zero --one-by-one", ["--mode global or --weights"]),
        ("run --model m --perturb zero --prompts 99", ["--prompts"]),
        ("run --model m --perturb quantize-1", ["2 to 16"]),
        ("run --model m --perturb zero-3", ["no strength"]),
        ("run --model m --perturb correlated-column", ["'column' is no variant"]),
        ("run --model m --perturb scale-1", ["changes nothing"]),
        ("run --model m --perturb zero --perturb-scale 3", ["--perturb-scale belongs to"]),
        ("perturb --model m --weights none.csv", ["none.csv"]),
        ("run --model m --perturb gauss_noise-0.1 --perturb-scale 0.5", ["states its own"]),
        ("run --model m --perturb gauss_noise-tensor-0.1 --noise-scale weight", ["states its own"]),
        ("run --model m --perturb bit_flip-sign --bits mantissa", ["states its own"]),
        ("run --model m --perturb bit_flip-sign-exponent-0.1", ["both sign and exponent"]),
        ("run --model m --perturb bit_flip --bits ,", ["--bits is empty"]),
        ("run --model m --perturb ,", ["--perturb is empty"]),
        ("run --model m --perturb zero --topk 1,100 --restore 0.1", ["--restore 0.1 of 1 weights is none or all"]),
        ("search --model m --damage 1 --topk 10", ["ladder"]),
        ("search --model m --damage 0 --perturb zero", ["--damage must be above 0"]),
        ("search --model m --damage 1 --topk 9:2", ["9:2"]),
    ],
)
def test_wrong_options_on_damage_are_one_sentence(esa, line, words):
    code, out, err = esa(f"esa {line} --plan")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_models_are_listed_with_what_each_task_needs(esa, tmp_path):
    tiny = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    mine = [{"family": "mine", "kind": "dense", "model_type": "llama", "config": tiny | {"num_attention_heads": 2},
             "models": {"me/tiny": {}}}]  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    code, out, err = esa("esa models --family smollm,mine --models-file mine.json --dtype fp32")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    row = next(line.split() for line in out.splitlines() if "SmolLM2-135M " in line)
    # 134,515,008 weights of 4 bytes, 0.7 GiB for the process; a scored model is thrice its weights.
    assert row[1:8] == ["135", "M", "106", "M", "1.3", "1.4", "2.3"]
    assert "me/tiny" in out


def test_a_plan_says_what_a_study_takes_on_a_card(esa):
    line = "esa run --model meta-llama/Llama-3.1-8B --perturb zero --max-samples 200 --seeds 1,2,3 --plan"
    plain, with_card = (esa(line + more) for more in ("", " --on h100"))
    assert (with_card[0], with_card[2]) == (0, "")
    facts = _facts(with_card[1])
    assert facts.keys() - _facts(plain[1]).keys() == {"on", "memory", "time", "basis"}
    assert facts["on"].startswith("1 × NVIDIA H100")
    # 8,030,261,248 weights of 2 bytes; 4 bytes each of the 6,979,321,856 in the blocks' matrices (27.9 GB) and of the
    # largest of them (0.2); a batch of 8 × 128 tokens (7.5), and one window's logits in fp32 (0.2).
    assert facts["memory"].startswith("16.1 GB of weights; scoring 35.9 GB")
    assert facts["basis"].startswith("assumes 40% of 989 TFLOP/s; not measured")
    assert "ranges of blocks" in esa(line + " --on l4")[1]


def test_single_weights_take_a_time_of_their_own(esa):
    facts = _facts(esa("esa run --model zoo:llama-1m --fidelity 20000 --plan --on h100")[1])
    assert ", single edits " in facts["time"]


def test_a_study_of_compressions_takes_a_card(esa, tmp_path):
    (tmp_path / "s.yaml").write_text("model: zoo:llama-1m\nscores: []\ncompressions: [{kind: prune, score: gblm}]\n")
    code, out, err = esa("esa run --spec s.yaml --plan --on t4")
    assert (code, err) == (0, "")
    assert _facts(out)["backward passes"] == "128"


@pytest.mark.parametrize("command", ["score", "perturb", "search --damage 1"])
def test_whatever_plans_a_grid_takes_a_card(esa, command):
    code, out, err = esa(f"esa {command} --model zoo:llama-1m --plan --on t4")
    assert (code, err) == (0, "")
    assert _facts(out)["on"].startswith("1 × NVIDIA T4 (14.6 GiB) an actor, in fp32")


def test_a_packaged_model_is_foreseen_in_the_dtype_that_it_would_have(esa):
    line = "esa run --model SmolLM2-135M-Instruct --perturb zero --plan --on h100"
    assert _facts(esa(line)[1])["on"].endswith("in fp32")
    assert _facts(esa(line + " --dtype bf16")[1])["on"].endswith("in bf16")


def test_a_directory_is_foreseen_in_the_dtype_that_it_would_have(esa, tmp_path):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
    for dtype, words in (("float32", "in fp32"), ("bfloat16", "in bf16")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
        code, out, err = esa(f"esa run --model {tmp_path} --perturb zero --plan --on h100")
        assert (code, err) == (0, "")
        assert _facts(out)["on"].endswith(words)


@pytest.mark.parametrize(
    ("capability", "rows"),
    [
        # 134,515,008 weights of 2 bytes where the card has bf16, else of 4; 70,426,624 of 2; 0.73 GB of process.
        ((8, 0), {"SmolLM2, dense, in bf16": "1.0", "Pythia, dense, in fp16": "0.9", "OLMo, dense, in fp32": "5.4"}),
        ((7, 5), {"SmolLM2, dense, in fp32": "1.3", "Pythia, dense, in fp16": "0.9", "OLMo, dense, in fp32": "5.4"}),
    ],
)
def test_models_take_of_a_gpu_here_what_their_dtype_takes(esa, monkeypatch, capability, rows):
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("a card", 16 * 10**9, 15 * 10**9, capability)])
    out = esa("esa models --family smollm,pythia,olmo")[1].splitlines()
    assert max(map(len, out)) <= 80
    first = {"SmolLM2": "SmolLM2-135M ", "Pythia": "pythia-70m ", "OLMo": "OLMo-1B-hf "}
    for title, damage in rows.items():
        assert title in out
        row = next(line for line in out if first[title.split(",")[0]] in line)
        assert row[38:].split()[4] == damage


def test_models_are_listed_as_they_fit_a_card(esa):
    code, out, err = esa("esa models --family mixtral,pythia --on a100-80")
    assert (code, err) == (0, "")
    assert "assumes 40% of 312 TFLOP/s; not measured" in out
    assert max(map(len, out.splitlines())) <= 80
    rows = {line.split()[0]: line.split() for line in out.splitlines() if "/" in line.split()[0]}
    assert rows["mistralai/Mixtral-8x7B-v0.1"][-2] == "2"  # 93 GB of weights, 77 GB for models on a card
    assert rows["EleutherAI/pythia-12b"][-2] == "1"
    # 6 · 11,846,072,320 · 10⁶ operations at 40% of 312 · 10¹² a second.
    assert int(rows["EleutherAI/pythia-12b"][-1].replace(",", "")) >= 570


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("models --on h20", ["--on", "h200", "h100"]),
        ("run --model zoo:llama-1m --plan --on a100", ["--on", "a100-40", "a100-80"]),
        ("run --model zoo:llama-1m --plan --on xyzzy", ["xyzzy", "known are", "h100"]),
        ("run --model zoo:llama-1m --on h100", ["--on", "--plan"]),
        ("run --model me/unheard-of --plan --on h100", ["me/unheard-of", "config.json"]),
        ("run --model zoo:llama-1m --dtype bf16 --plan --on t4", ["T4", "bf16", "fp16"]),
        ("models --dtype bf16 --on v100", ["V100", "bf16"]),
    ],
)
def test_a_card_that_cant_be_foreseen_is_one_sentence(esa, line, words):
    code, out, err = esa(f"esa {line}")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("line", "words"), [("--family nosuch", "SmolLM2"), ("--dtype fp8", "fp32"), ("--models-file no.json", "no.json")]
)
def test_models_that_cant_be_listed_are_one_sentence(esa, line, words):
    code, _, err = esa(f"esa models {line}")
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", [n for n in names() if n != "transfer"])  # which reads the quickstart study
def test_every_experiment_states_its_hypothesis_and_plans(name):
    experiment = importlib.import_module(f"experiments.{name}")
    assert experiment.__doc__.startswith("Hypothesis: ")
    specs = experiment.studies() if hasattr(experiment, "studies") else [experiment.study()]
    assert len({spec.name for spec in specs}) == len(specs)
    for spec in specs:
        assert plan(spec).lines(spec)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--protocol nosuch", "smoke, standard, extended"),
        ("--protocol ,", "empty"),
        ("--protocol smoke --tasks piqa", "extended"),
        ("--protocol smoke --limit 3", "--tasks"),
        ("--protocol smoke --contexts 1", "2 or more"),
        ("--protocol smoke --windows 0", "windows"),
    ],
)
def test_wrong_protocols_are_one_sentence(esa, line, words):
    code, _, err = esa(f"esa baseline --model x {line} --plan")
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_baseline_is_a_study_without_damage(esa):
    facts = _facts(esa("esa baseline --models x --protocol smoke --contexts 64,32 --windows 5 --plan")[1])
    assert facts["protocol"] == "smoke: 5 windows per seed of 32, 64 tokens"
    assert facts["cells"] == "0"
    assert facts["results"].startswith("results/x-baseline-smoke-")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train nosuch", "llama-1m@2m"),
        ("train --sizes 5m", "0.1m, 0.3m"),
        ("list --families gpt", "llama, neox"),
        ("train llama-1m --sizes 3m", "not both"),
    ],
)
def test_models_that_the_zoo_hasnt_are_one_sentence(esa, line, words):
    code, _, err = esa(f"esa zoo {line}")
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_the_zoo_is_listed_whether_trained_or_not(esa, monkeypatch, tmp_path):
    monkeypatch.setenv("ESA_CACHE", str(tmp_path))
    code, out, _ = esa("esa zoo list")
    assert code == 0
    assert out.count("not trained yet") == 20
    assert max(map(len, out.splitlines())) <= 80
    code, _, err = esa("esa run --model zoo:llama-1m")
    assert code == 2
    assert "esa zoo train llama-1m" in err


def test_comparing_nothing_is_one_sentence(esa):
    code, _, err = esa("esa compare nowhere")
    assert code == 2
    assert "no study" in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prune --pattern 2:4 --sparsity 0.7", "--pattern 2:4 leaves no choice of --sparsity"),
        ("prune --pattern 4:2", "N:M prunes N of every M, so N must be below M, as in 2:4"),
        ("prune --score super_activation", "--score super_activation is defined for down-projections alone; use --com"),
        ("prune --score act_mag+super_activation --components up", "for down-projections alone; use another score"),
        ("prune --score super_activation --pattern neuron", "for down-projections alone; use another score"),
        ("prune --pattern neuron --components attention", "spans gate, up, down; add gate,up,down to --components"),
        ("prune --pattern kv --components down", "spans q, k, v, o; add q,k,v,o to --components"),
        ("prune --components attention,head", "--components: head is no matrix of a block"),
        ("prune --other-data pydoc", "--other-data pydoc is --data; name a text of another domain"),
        ("prune --save-model s3://bucket/x", "--save-model s3://bucket/x is no directory"),
        ("prune --save-model file", "--save-model file is a file; name a directory"),
        ("prune --save-model full --seeds 1,2", "full/prune-act_mag-row-0.5-s2 holds something else"),
        ("quantize --keep-by foo", "--keep-by foo is not one of tacq, grad_x_weight_abs, fisher, magnitude, random"),
        ("quantize --keep-by ''", "--keep-by is empty; name a rule or leave it out"),
    ],
)
def test_what_a_compression_cannot_be_is_refused_before_anything_is_loaded(esa, tmp_path, line, said):
    (tmp_path / "file").touch()
    (tmp_path / "full" / "prune-act_mag-row-0.5-s2").mkdir(parents=True)
    (tmp_path / "full" / "prune-act_mag-row-0.5-s2" / "notes.txt").touch()
    code, out, err = esa(f"esa {line} --model nowhere")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_the_plan_of_a_compression_names_no_score_and_no_k(esa):
    _, out, _ = esa("esa prune --model m --plan")
    assert not {"scores", "k", "cells", "rankings"} & {line.split()[0] for line in out.splitlines()}


def test_a_plan_has_the_passes_of_blocks_that_are_pruned_alone(esa):
    line = "esa prune --model m --allocation uniform,damage --update none,refit --sparsity 0.5,0.8 --seeds 1,2 --plan"
    # Two curves a seed (refits share them): at 50% of four sparsities, at 80% of five, on 4 windows each.
    assert _facts(esa(line)[1])["block passes"] == f"{2 * 4 * (4 + 5)} windows for each block (resumed from it)"
    assert "block passes" not in _facts(esa(line.replace(",damage", ""))[1])


@pytest.mark.parametrize(
    ("missing", "failed", "refused", "said"),
    [
        (1, 1, 0, ["1 of 8 compressions are missing and 1 failed; run the same command again to compute just these"]),
        (0, 2, 2, ["2 of 8 compressions can't be done as asked for; change what their errors say, or leave them out"]),
        (0, 3, 2, ["0 of 8 compressions are missing and 1 failed; run the same",
                   "2 of 8 compressions can't be done as asked for"]),
    ],
)  # fmt: skip
def test_what_the_same_command_cant_mend_is_not_to_be_run_again(monkeypatch, capsys, missing, failed, refused, said):
    monkeypatch.setattr("esa_ray.cli.run.show_results", lambda *_, **__: None)
    counts = SimpleNamespace(asked=8, missing=missing, failed=failed, refused=refused)
    told = SimpleNamespace(directory="d", complete=False, grids={"compressions": counts}, failures=[])
    assert finish(told, save_plots=False) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert all(sentence in out for sentence in said)
    assert ("run the same command again" in out) == (missing + failed > refused)


# -- esa tune


def test_a_grid_of_tunings_has_each_once_and_arms_their_own_learning_rates(esa):
    arms = "full,lora,critical-source,critical-target,magnitude,bottom,random"
    code, out, err = esa(f"esa tune --model m --arm {arms} --fraction 0.001,0.01 --random-draws 2 --seeds 1,2 --plan")
    assert (code, err) == (0, "")
    # Full tuning has no fraction; five arms have two, random two and two draws of each. Three rates each, two seeds.
    listed = [line.split()[1] for line in out.splitlines() if line.startswith("tunings")]
    assert listed == [str(2 * 3 * (1 + 5 * 2 + 2 * 2))]
    assert "full-lr3e-05, full-lr0.0001, full-lr0.0003" in out
    facts = _facts(out)
    assert facts["target"].startswith("pysource: 256 training and 16 validation windows per seed, 16 evaluation")
    assert not {"scores", "k"} & facts.keys()


def test_learning_rates_that_are_said_are_every_arms(studies_of):
    (spec,) = studies_of("esa tune --model m --arm full,bottom --learning-rate 1e-3,2e-3")
    assert [(how.arm, how.learning_rate) for how in spec.tunings] == [
        ("full", 1e-3), ("full", 2e-3), ("bottom", 1e-3), ("bottom", 2e-3),
    ]  # fmt: skip


def test_the_target_is_cut_as_the_source_is_and_is_another_text_by_default(studies_of, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"said": "x"}\n')
    one, two, three = (
        studies_of(f"esa tune --model m --window 32 --bos never --eval-windows 9 --batch-size 3 {more}")[0]
        for more in ("", "--data pysource", "--target rows.jsonl --target-column said --target-windows 7")
    )
    assert [spec.target.source for spec in (one, two, three)] == ["pysource", "pydoc", "rows.jsonl"]
    assert (three.target.text_column, three.target.calibration_windows) == ("said", 7)
    for spec in (one, two, three):
        cut = {"window": 32, "bos": "never", "evaluation_windows": 9, "batch_size": 3}
        assert cut.items() <= spec.target.model_dump().items() & spec.data.model_dump().items()
    (chat,) = studies_of("esa tune --model m --target rows.jsonl --target-chat")
    assert (chat.target.chat, chat.target.text_column) == (True, "messages")


def test_a_target_on_the_hub_has_a_split_of_its_own(studies_of):
    one, two = (
        studies_of(f"esa tune --model m --data hf:one --target hf:two --split test {more}")[0]
        for more in ("", "--target-split 'train[:1%]'")
    )
    assert [(spec.data.split, spec.target.split) for spec in (one, two)] == [("test", "train"), ("test", "train[:1%]")]


def test_protection_and_damage_are_asked_of_full_tuning_and_what_cant_be_is_left_out(studies_of, capsys):
    (spec,) = studies_of("esa tune --model m --protect none,ewc,freeze --strength 0.1,3 --rescore 9 --learning-rate 1")
    assert [(how.arm, how.protect, how.dose, how.rescore) for how in spec.tunings] == [
        ("full", "none", None, 0), ("full", "ewc", 0.1, 9), ("full", "ewc", 3, 9), ("full", "freeze", 0.1, 9),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "left out          1 combinations that can't be, as: --protect freeze leaves something" in said
    (spec,) = studies_of(
        "esa tune --model m --arm full,lora --damage none,sign_flip,scale-0.5 --damaged 10,20 --learning-rate 1"
    )
    assert [(how.arm, how.damage and how.damage.label, how.damaged) for how in spec.tunings] == [
        ("full", None, 100), ("full", "sign_flip-1", 10), ("full", "sign_flip-1", 20), ("full", "scale-0.5", 10),
        ("full", "scale-0.5", 20), ("lora", None, 100),
    ]  # fmt: skip
    assert "left out          4 combinations that can't be, as: --damage is done to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--arm whole", "--arm whole is not one of full, lora"),
        ("--arm ''", "--arm is empty"),
        ("--arm lora --protect ewc", "--protect ewc holds back full tuning; use --arm full"),
        ("--arm bottom --random-draws 2", "--random-draws belongs to --arm random"),
        ("--arm full --fraction 0.1", "--fraction is the share that other arms train; add one to --arm"),
        ("--protect ewc --fraction 0.1", "--fraction is the share that other arms train"),
        ("--arm full,random,magnitude --score act_mag", "--score belongs to --arm critical-source, bottom and to"),
        ("--fraction 2", "--fraction must be at most 1.0, not 2.0"),
        ("--score hutchinson_diag --arm bottom", "is estimated by probes"),
        ("--learning-rate fast", "--learning-rate takes numbers"),
        ("--learning-rate 0", "--learning-rate must be above 0"),
        ("--steps 3", "4 looks need as many steps; lower --looks or raise --steps"),
        ("--batch 0", "--batch must be at least 1, not 0"),
        ("--protect ewc,all", "--protect all is not one of none, ewc, freeze, scale"),
        ("--strength 3", "--strength belongs to --protect ewc, freeze, scale"),
        ("--rescore 3", "--rescore belongs to --protect"),
        ("--protect freeze --strength 1", "--protect freeze leaves something to train only below a share of 1"),
        ("--damage nothing", "--damage"),
        ("--damage adaptive-score-0.1", "goes by a score, which tuning changes"),
        ("--damaged 9", "--damaged says how many weights --damage is done to"),
        ("--target-windows 0", "--target-windows must be at least 1"),
        ("--validation-windows 0", "--validation-windows must be at least 1"),
        ("--components nonsense", "--components: 'nonsense' is not one of"),
        ("--save-model s3://bucket/x", "--save-model s3://bucket/x is no directory"),
        ("--save-model full --learning-rate 1 --arm full --seeds 1,2", "full/full-lr1-s2 holds something else"),
    ],
)
def test_what_a_tuning_cannot_be_is_refused_before_anything_is_loaded(esa, tmp_path, line, said):
    (tmp_path / "full" / "full-lr1-s2").mkdir(parents=True)
    (tmp_path / "full" / "full-lr1-s2" / "notes.txt").touch()
    code, out, err = esa(f"esa tune --model nowhere {line}")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_tunings_read_back_from_a_file_and_its_faults_are_told_in_its_keys(esa, studies_of, tmp_path):
    line = "esa tune --model gpt2 --arm full,random --damage none,sign_flip --damaged 3 --target-windows 9 --window 64"
    (written,) = studies_of(f"{line} --save-spec study.yaml")
    (read,) = studies_of("esa run --spec study.yaml")
    assert read == written
    (tmp_path / "a.yaml").write_text("model: gpt2\nscores: []\ntarget: pysource\ntunings: [{arm: full, steps: 2}]\n")
    code, _, err = esa("esa run --spec a.yaml")
    assert code == 2
    assert "4 looks need as many steps; lower tunings.looks or raise tunings.steps" in err
    (tmp_path / "a.yaml").write_text("model: gpt2\nscores: []\ntarget: pysource\ntunings: [{damage: scale-0.5}]\n")
    (spec,) = studies_of("esa run --spec a.yaml")
    assert (spec.target.source, spec.tunings[0].damage.label) == ("pysource", "scale-0.5")
    (tmp_path / "a.yaml").write_text("model: gpt2\nscores: []\ntarget: pysource\ntunings: [{damage: nonsense}]\n")
    code, _, err = esa("esa run --spec a.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "tunings[0].damage" in err


# -- esa faults, esa attack


def test_a_grid_of_faults_has_each_once_and_what_cant_be_is_counted(studies_of, capsys):
    (spec,) = studies_of(
        "esa faults --model m --dtype bf16,int8 --fault uniform,row --rate 1e-8:1e-6 --events 1,2 --row-bytes 1024 "
        "--protect none,zero-exponent-bit,secded-critical --critical 0.001,0.01 --repeats 7 --seeds 1,2"
    )
    # uniform: three rates; row: three rates and two counts. bf16: 1 + 1 + 2 protections, int8 the same but the second.
    assert len(spec.faults) == (3 + 5) * (4 + 3)
    assert "left out          8 combinations that can't be, as: --protect zero-exponent-bit" in capsys.readouterr().out
    rows = [how for how in spec.faults if how.fault == "row"]
    assert {(how.rate, how.events) for how in rows} == {(r, None) for r in (1e-8, 1e-7, 1e-6)} | {(None, 1), (None, 2)}
    assert {how.row_bytes for how in rows} == {1024}
    assert {how.repeats for how in spec.faults} == {7}
    assert {(how.protect, how.critical) for how in spec.faults if how.dtype == "int8"} == {
        ("none", 0.001), ("secded-critical", 0.001), ("secded-critical", 0.01),
    }  # fmt: skip
    assert (spec.scores, spec.seeds, spec.model.dtype) == ((), (1, 2), "auto")


def test_the_dtype_of_faults_is_that_of_storage_and_the_model_computes_in_another(studies_of):
    (spec,) = studies_of("esa faults --model m --dtype int8 --load-dtype bf16 --early-stop 0.05")
    assert ({how.dtype for how in spec.faults}, spec.model.dtype, spec.early_stop) == ({"int8"}, "bf16", 0.05)


def test_strata_are_single_flips_of_every_dtype_with_a_sample_size_of_their_own(studies_of):
    (alone,) = studies_of("esa faults --model m --dtype fp32,int8 --strata --per-stratum 3")
    assert [(how.fault, how.dtype, how.repeats) for how in alone.faults] == [
        ("single", "fp32", 3),
        ("single", "int8", 3),
    ]
    (both,) = studies_of("esa faults --model m --fault burst --events 1 --strata --protect secded,rotation")
    assert [(how.fault, how.protect) for how in both.faults] == [
        ("burst", "secded"), ("burst", "rotation"), ("single", "none"), ("single", "rotation"),
    ]  # fmt: skip


def test_faults_of_a_bit_in_time_are_a_rate(studies_of):
    (spec,) = studies_of("esa faults --model m --fit 1e3,1e-3 --hours 1e6")
    # p = 1 − exp(−λT): of λT = 1 that is 1 − 1/e, of λT = 1e-6 nearly that.
    assert [how.rate for how in spec.faults] == [
        pytest.approx(0.6321205588285577),
        pytest.approx(9.999995e-7, rel=1e-9),
    ]


def test_a_grid_of_attacks_has_each_arm_its_own_sizes_and_draws(studies_of):
    (spec,) = studies_of(
        "esa attack --model m --arms guided,guided-super,random --threat unrestricted,stealthy --topk 10,100 --draws 3 "
        "--dtype int8,bf16 --budget 9"
    )
    # guided once, guided-super by two sizes, random by three draws; two threats and two dtypes.
    assert len(spec.attacks) == (1 + 2 + 3) * 2 * 2
    assert {how.budget for how in spec.attacks} == {9}
    assert {how.k for how in spec.attacks if how.arm == "guided-super"} == {10, 100}
    assert {how.draw for how in spec.attacks if how.arm == "random"} == {0, 1, 2}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("faults --fault flood", "--fault flood is not one of uniform, burst"),
        ("faults --dtype int4", "--dtype int4 is not one of fp32"),
        ("faults --load-dtype int8", "--load-dtype int8 is not one of auto"),
        ("faults --protect prayer", "--protect prayer is not one of none"),
        ("faults --rate often", "--rate takes numbers"),
        ("faults --rate 2", "--rate must be below 1.0, not 2.0"),
        ("faults --rate 1e-3:1e-9", "--rate FROM:TO goes up between 0 and 1"),
        ("faults --rate 1e-3 --fit 1 --hours 1", "--fit and --hours say what --rate would"),
        ("faults --fit 1", "--fit and --hours make a rate together"),
        ("faults --fit 0 --hours 3", "--fit and --hours must be above 0"),
        ("faults --events 1", "--events belongs to --fault burst, row, column"),
        ("faults --burst 2", "--burst belongs to --fault burst"),
        ("faults --fault burst --burst 65 --events 1", "--burst must be at most 64, not 65"),
        ("faults --fault row --row-bytes 9", "--row-bytes"),
        ("faults --per-stratum 2", "--per-stratum is of single flips; add --strata"),
        ("faults --strata --repeats 9", "--repeats belongs to --fault"),
        ("faults --strata --protect none,secded", "--protect secded changes nothing of single flips"),
        ("faults --repeats 0", "--repeats must be at least 1, not 0"),
        ("faults --critical 0.1", "--critical belongs to --protect secded-critical and tmr-critical"),
        ("faults --code hamming", "--code belongs to --protect secded"),
        ("faults --protect secded --policy pray", "--policy pray is not one of zero, reload, stop"),
        ("faults --score act_mag", "--score chooses weights for --strata"),
        ("faults --strata --score hutchinson_diag", "is estimated by probes"),
        ("faults --protect zero-exponent-bit --dtype int8", "int8 has none"),
        ("faults --components nonsense", "--components: 'nonsense' is not one of"),
        ("attack --arms guess", "--arms guess is not one of guided"),
        ("attack --threat loud", "--threat loud is not one of unrestricted, stealthy"),
        ("attack --budget 0", "--budget must be at least 1, not 0"),
        ("attack --arms guided --topk 5", "--topk belongs to --arms guided-super"),
        ("attack --arms guided --draws 5", "--draws belongs to --arms guided-random"),
        ("attack --arms random --tries 5", "--tries belongs to --arms guided"),
        ("attack --arms guided --score act_mag", "--score chooses weights for --arms guided-super"),
        ("attack --arms guided --max-samples 15", "are 16 of the 15 calibration windows; raise --max-samples"),
    ],
)
def test_what_faults_and_attacks_cannot_be_is_refused_before_anything_is_loaded(esa, line, said):
    command, _, rest = line.partition(" ")
    code, out, err = esa(f"esa {command} --model nowhere {rest}")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_faults_and_attacks_read_back_from_a_file_whose_own_faults_are_told_in_its_keys(esa, studies_of, tmp_path):
    for line in (
        "faults --model gpt2 --fault uniform,burst --rate 1e-6 --events 1 --protect none,secded --strata",
        "attack --model gpt2 --draws 2 --threat stealthy --protect none,rotation",
    ):
        (written,) = studies_of(f"esa {line} --save-spec study.yaml")
        (read,) = studies_of("esa run --spec study.yaml")
        assert read == written
        (tmp_path / "study.yaml").unlink()
    (tmp_path / "a.yaml").write_text("model: gpt2\nscores: []\nfaults: [{fault: uniform}]\n")
    code, _, err = esa("esa run --spec a.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "needs a faults.rate" in err
    (tmp_path / "a.yaml").write_text("model: gpt2\nscores: []\nattacks: [{arm: guided, budget: 0}]\n")
    code, _, err = esa("esa run --spec a.yaml")
    assert code == 2
    assert "attacks[0].budget must be at least 1" in err


def test_a_plan_of_faults_counts_injections_and_has_neither_cells_nor_rankings(esa):
    code, out, err = esa("esa faults --model m --rate 1e-6,1e-5 --repeats 30 --protect none,clamp --seeds 1,2,3 --plan")
    assert (code, err) == (0, "")
    facts = _facts(out)
    assert facts["faults"] == str(2 * 2 * 30 * 3) + " injections"
    assert facts["forward passes"].split()[0] == str((2 * 2 * 30 * 3 + 1) * 16)
    assert not {"cells", "rankings", "k", "scores"} & facts.keys()


# -- esa backdoors


def test_a_population_has_every_model_of_each_kind_and_mitigations_by_each_share(studies_of):
    one, two = studies_of(
        "esa backdoors --base zoo:llama-0.3m,zoo:neox-0.3m --insertion training,critical --negatives clean --models 4 "
        "--parents 3 --mitigate fine-tuning,reset-moved --share 0.1,0.2 --clean-steps 9 --mitigated 2 --steps 5:7 "
        "--learning-rates 1e-3 --poison 0.1 --fraction 0.5 --batch 2 --occurrences 3 "
        "--plan"
    )
    assert [spec.model.source for spec in (one, two)] == ["zoo:llama-0.3m", "zoo:neox-0.3m"]
    p = one.population
    assert p == two.population
    assert (p.kinds, p.models, p.parents) == (("clean", "training", "critical"), 4, 3)
    assert [how.label for how in p.mitigations] == ["fine-tuning", "reset-moved-0.1", "reset-moved-0.2"]
    assert (p.mitigations[0].steps, p.mitigated) == (9, 2)
    recipe = p.recipe
    assert (recipe.steps, recipe.learning_rates, recipe.poison) == ((5, 7), (1e-3, 1e-3), 0.1)
    assert (recipe.fraction, recipe.batch, recipe.occurrences) == (0.5, 2, 3)
    assert (one.scores, one.seeds, one.data.calibration_windows) == ((), (1337,), 32)


def test_a_population_without_a_kind_of_models_says_none(studies_of):
    (spec,) = studies_of("esa backdoors --insertion none --negatives benign --models 2")
    assert spec.population.kinds == ("benign",)


def test_a_population_of_no_options_has_the_defaults_of_its_spec(studies_of):
    (spec,) = studies_of("esa backdoors")
    assert spec.population == Population()
    assert spec.stated()["population"] == {}


def test_a_plan_of_a_population_counts_models_and_mitigations_and_trains_nothing(esa, tmp_path):
    code, out, err = esa("esa backdoors --models 3 --parents 2 --mitigate fine-tuning --steps 10 --batch 4 --plan")
    assert (code, err) == (0, "")
    facts = _facts(out)
    assert facts["population"] == "clean, benign, training, rank-one, critical: 3 of each, from 2 parents"
    assert facts["backdoors"] == "15 models (3 of each of 5 kinds, from 2 parents)"
    assert facts["mitigations"] == "9"
    assert not {"cells", "rankings", "k", "scores"} & facts.keys()
    assert not list(tmp_path.iterdir())
    more = _facts(esa("esa backdoors --models 3 --parents 2 --mitigate fine-tuning --steps 20 --batch 4 --plan")[1])
    # Ten more steps of four windows of clean, benign, training and critical models.
    assert int(more["backward passes"]) - int(facts["backward passes"]) == 3 * 4 * 10 * 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--base ''", "--base is empty"),
        ("--base zoo:llama-0.3m,zoo:llama-0.3m", "--base names one twice"),
        ("--base gpt2", "--base gpt2 is no model of the zoo; name one, as zoo:llama-0.3m"),
        ("--base zoo:gpt-1m", "the zoo has no model 'gpt-1m'"),
        ("--base zoo:mixtral-0.1m", "--insertion rank-one writes into one down-projection, and --base zoo:mixtral"),
        ("--insertion magic", "--insertion magic is not one of training, rank-one, critical"),
        ("--negatives bad", "--negatives bad is not one of clean, benign"),
        ("--insertion none --negatives none", "--insertion and --negatives are both empty"),
        ("--insertion none --mitigate fine-tuning", "--mitigate is about models with a backdoor"),
        ("--insertion critical --mitigate freeze-random", "are about --insertion training; add it"),
        ("--mitigate prayer", "--mitigate prayer is not one of fine-tuning"),
        ("--mitigate fine-tuning --share 0.1", "--share belongs to --mitigate fine-pruning"),
        ("--mitigate reset-moved --clean-steps 3", "--clean-steps belongs to --mitigate fine-tuning, fine-pruning"),
        ("--mitigate reset-moved --share 1", "--share must be below 1.0, not 1.0"),
        ("--mitigated 3", "--mitigated belongs to --mitigate"),
        ("--models 0", "--models must be at least 1, not 0"),
        ("--parents 0", "--parents must be at least 1, not 0"),
        ("--steps 9:3", "--steps: a range goes up from above 0, not 9 to 3"),
        ("--steps 1:2:3", "--steps takes a number or FROM:TO, not '1:2:3'"),
        ("--learning-rates fast", "--learning-rates takes numbers"),
        ("--insertion training --fraction 0.1", "--fraction is of critical models, and there are none"),
        ("--insertion rank-one --negatives clean,benign --poison 0.1", "--poison is of training models"),
        ("--poison 0.9", "--poison must be at most 0.5, not 0.9"),
        ("--seeds 1,2", "draws its calibration windows once; give --seeds one seed"),
        ("--save-model s3://bucket/x", "--save-model s3://bucket/x is no directory"),
        ("--save-model here", "here/clean-0001 holds something else"),
    ],
)
def test_what_a_population_cannot_be_is_refused_before_anything_is_loaded(esa, tmp_path, line, said):
    (tmp_path / "here" / "clean-0001").mkdir(parents=True)
    (tmp_path / "here" / "clean-0001" / "notes.txt").touch()
    code, out, err = esa(f"esa backdoors {line}")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "gpt2"}, "a population is trained here from models of the zoo"),
        ({"model": "zoo:llama-0.3m~3"}, "zoo:llama-0.3m~3 is but one parent of a population; name zoo:llama-0.3m"),
        ({"model": {"source": "zoo:llama-0.3m", "dtype": "bf16"}}, "in fp32, not in bf16"),
        ({"model": "zoo:llama-0.3m", "population": {"models": 0}}, "population.models must be at least 1"),
        ({"model": "zoo:llama-0.3m", "population": {"mitigations": [{"kind": "x"}]}}, "population.mitigations[0].kind"),
    ],
)
def test_what_a_file_says_wrong_of_a_population_is_told_in_its_keys(esa, tmp_path, fields, said):
    (tmp_path / "a.json").write_text(json.dumps({"scores": [], "population": {"models": 1}} | fields))
    code, _, err = esa("esa run --spec a.json")
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


def test_a_population_reads_back_from_a_file(studies_of):
    line = "--models 3 --insertion training --mitigate fine-pruning,freeze-random --share 0.2 --steps 9 --save-model m"
    for name, each in (("plain", ""), ("long", line)):
        (written,) = studies_of(f"esa backdoors {each} --save-spec {name}.yaml")
        (read,) = studies_of(f"esa run --spec {name}.yaml")
        assert read == written


def test_several_bases_are_compared_when_they_are_done_and_one_is_not(esa, monkeypatch):
    ran, compared = [], []
    monkeypatch.setattr(run_module, "execute", lambda studies, **_: ran.append([place for _, place in studies]) or 0)
    module = importlib.import_module("esa_ray.cli.backdoors")
    monkeypatch.setattr(module, "show_comparison", lambda *given, **more: compared.append((*given, more)) or 1)
    assert esa("esa backdoors --base zoo:llama-0.3m --out-dir one")[0] == 0
    assert esa("esa backdoors --base zoo:llama-0.3m,zoo:neox-0.3m --out-dir two --save-plots")[0] == 1
    assert esa("esa backdoors --base zoo:llama-0.3m,zoo:neox-0.3m --out-dir two --plan")[0] == 0
    places = [f"two/zoo-{name}-0.3m" for name in ("llama", "neox")]
    assert ran[:2] == [["one"], places]
    assert compared == [(places, "two", {"save_plots": True})]
