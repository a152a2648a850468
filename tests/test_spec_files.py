"""Studies in files: what ``--save-spec`` writes ``--spec`` reads back, and a wrong file is one sentence."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from esa_ray import cli
from esa_ray.cli import asked, run, spec_files, yaml_text
from esa_ray.spec import DataSpec, ScoreSpec, StudySpec
from experiments import quickstart
from tests.drawn import perturbations

ROOT = Path(__file__).parent.parent
LINES = (Path(__file__).parent / "data" / "commands.txt").read_text().splitlines()
FLAGS = (Path(__file__).parent / "data" / "flags.txt").read_text().splitlines()


@pytest.fixture
def studies(monkeypatch, tmp_path):
    """Run a command up to where it would plan or run; the studies that it asks for, and where they go."""
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(run, "execute", lambda studies, **options: seen.append((studies, options)) or 0)

    def of(line):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return seen.pop()

    return of


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def of(line):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
        return err

    return of


# -- there and back


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
@pytest.mark.parametrize("line", LINES)
def test_what_a_published_line_means_reads_back_from_a_file(studies, line, suffix):
    written, _ = studies(f"{line} --save-spec study.{suffix}")
    place = line.partition("--out-dir ")[2]
    read, _ = studies(f"esa run --spec study.{suffix}" + (f" --out-dir {place}" if place else ""))
    assert read == written


MANY = (
    "esa run --model gpt2 --metric act_mag+magnitude,hutchinson_diag --mode per_layer,global --components ffn,*.A_log "
    "--probes 4 --topk 5,10 --seeds 1,2 --perturb zero,progressive-scale-0.5-0.25,gauss_noise --noise-scale tensor "
    "--controls random_k,matched_k --control-draws 2 "
    "--weights six.csv --layers 0,2 --restore 0.5 --one-by-one --pairs 2 --repeats 3 --prompts 2 "
    "--early-stop 0.05 --fidelity 9 --data rows.csv --text-column words --split test --window 64 --batch-size 8 "
    "--bos never --dtype bf16 --revision 1e5 --stability-check --weight-analysis --architecture-analysis"
)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_every_option_that_describes_a_study_reads_back(studies, tmp_path, suffix):
    (tmp_path / "six.csv").write_text("tensor,row,col\nx.weight,1,0\nx.weight,2,0\n")
    written, _ = studies(f"{MANY} --save-spec all.{suffix}")
    ((spec, _),) = written
    unsaid = {name for name in StudySpec.model_fields if name not in spec.stated()}
    assert unsaid == {
        "search",
        "protocols",
        "compressions",
        "other_texts",
        "tunings",
        "faults",
        "attacks",
        "population",
        "roles",
        "facts",
        "target",
        "validation_windows",
        "save_models",
    }  # which other commands ask for
    (tmp_path / "six.csv").unlink()
    assert studies(f"esa run --spec all.{suffix}")[0] == written


def test_a_file_says_what_differs_from_the_defaults_and_the_command_that_says_the_same(studies, tmp_path):
    studies("esa run --model gpt2 --perturb zero,quantize-tensor-3 --window 64 --plan --save-spec a.yaml")
    assert (tmp_path / "a.yaml").read_text() == (
        "# esa run --model gpt2 --perturb zero,quantize-tensor-3 --window 64\n"
        "model: gpt2\ndata: {window: 64}\nperturbations: [zero, quantize-tensor-3]\n"
    )


def test_the_command_in_a_file_asks_for_the_same_study(studies, tmp_path):
    written, _ = studies("esa run --model 'a b' --perturb zero --plan --on=h100 --save-spec a.yaml")
    assert studies((tmp_path / "a.yaml").read_text().splitlines()[0].removeprefix("# "))[0] == written


def test_several_models_are_a_list_of_studies_that_go_where_the_command_puts_them(studies, tmp_path):
    for place in ("", " --out-dir base"):
        written, _ = studies(f"esa run --model gpt2,me/other --perturb zero{place} --save-spec two{place[-4:]}.yaml")
        assert len(written) == 2
        assert studies(f"esa run --spec two{place[-4:]}.yaml{place}")[0] == written
    assert [each["model"] for each in yaml.safe_load((tmp_path / "two.yaml").read_text())] == ["gpt2", "me/other"]


def test_a_study_that_was_given_no_name_is_named_after_its_place_or_what_it_asks(studies, tmp_path):
    (tmp_path / "a.yaml").write_text("model: gpt2\nperturbations: [zero]\n")
    plain, _ = studies("esa run --model gpt2 --perturb zero")
    assert studies("esa run --spec a.yaml")[0] == plain
    ((spec, place),) = studies("esa run --spec a.yaml --out-dir some/place")[0]
    assert (spec.name, place) == ("place", "some/place")
    (tmp_path / "b.yaml").write_text("name: mine\nmodel: gpt2\n")
    ((spec, place),) = studies("esa run --spec b.yaml --out-dir some/place")[0]
    assert (spec.name, place) == ("mine", "some/place")


_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
_texts = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["no", "1e5", "007", "1:30", "~", "2024-01-01", "# x", " x"]
)
_data = st.builds(
    DataSpec, source=_texts, text_column=_texts, chat=st.booleans(), window=st.sampled_from([64, 128, 512]),
    batch_size=st.sampled_from([None, 1, 8, 16]), evaluation_windows=st.integers(2, 9), prompts=st.integers(0, 2),
    bos=st.sampled_from(["auto", "always", "never"]),
)  # fmt: skip
_scores = st.builds(
    ScoreSpec, metric=st.sampled_from(["act_mag", "magnitude+grad_squared", "super_activation", "grad_x_weight"]),
    mode=st.sampled_from(["per_layer", "per_tensor", "global"]),
    components=st.sampled_from([("attention", "ffn", "mixer"), ("ffn",), ("q", "down", "*.A_log")]),
).filter(lambda s: s.metric != "super_activation" or "down" in s.components)  # fmt: skip
_members = st.lists(
    st.fixed_dictionaries({"tensor": _texts, "row": st.integers(0, 2**40), "expert": st.none() | st.integers(0, 9)}),
    min_size=1, max_size=3, unique_by=lambda m: (m["tensor"], m["row"], m["expert"]),
)  # fmt: skip
_models = st.fixed_dictionaries({
    "source": _texts, "dtype": st.sampled_from(["auto", "bf16"]), "revision": st.none() | _texts,
    "trust": st.lists(st.sampled_from(["pickle", "remote_code"])),
})  # fmt: skip
_protocol = st.fixed_dictionaries({
    "name": st.sampled_from(["smoke", "extended"]), "windows": st.integers(2, 99),
    "contexts": st.lists(st.integers(2, 4096), min_size=1), "tasks": st.lists(_texts, max_size=2),
})  # fmt: skip


@st.composite
def _whole(draw):
    """Any study that is allowed, its damage weighed and its parts sometimes there."""
    damage = draw(st.lists(perturbations(), min_size=1, max_size=4))
    fields = {
        "name": draw(_names), "model": draw(_models), "data": draw(_data), "perturbations": damage,
        "scores": draw(st.lists(_scores, min_size=1, max_size=3, unique_by=lambda s: (s.metric, s.mode))),
        "topk": draw(st.lists(st.integers(10, 10**12), min_size=1, max_size=3)),
        "seeds": draw(st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=3, unique=True)),
        "groups": draw(st.lists(st.sampled_from(["random_k", "matched_k", "bottom_k"]), max_size=3)),
        "analyses": draw(st.lists(st.sampled_from(["stability", "weights", "architecture"]), max_size=3)),
        "fidelity": draw(st.integers(0, 9)), "protocols": draw(st.lists(_protocol, max_size=1)),
    }  # fmt: skip
    if draw(st.booleans()):
        return StudySpec.model_validate(fields | {
            "parts": draw(st.lists(st.fixed_dictionaries({"kind": st.just("layer"), "value": st.integers(0, 99)}))),
            "repeats": draw(st.integers(1, 9)), "early_stop": draw(st.none() | st.floats(1e-6, 0.4)),
            "lists": [] if any(p.needs_score for p in damage) else
            draw(st.lists(st.fixed_dictionaries({"name": _names, "weights": _members}), max_size=1)),
        })  # fmt: skip
    search = {"damage": draw(st.floats(1e-300, 1e300)), "trials": draw(st.integers(1, 99))}
    return StudySpec.model_validate(fields | {"topk": [5, 9], "groups": [], "search": search})


@settings(deadline=None)
@given(st.lists(_whole(), min_size=1, max_size=2, unique_by=lambda spec: spec.name), st.sampled_from(["yaml", "json"]))
def test_any_study_reads_back_from_what_is_written_of_it(tmp_path_factory, specs, suffix):
    path = str(tmp_path_factory.mktemp("any") / f"study.{suffix}")
    spec_files.write(path, specs, ["run", "--data", specs[0].data.source])
    assert spec_files.read(path, trust=("pickle", "remote_code")) == [
        s.replace(model=s.model.model_copy(update={"trust": ("pickle", "remote_code")})) for s in specs
    ]
    untrusting = [s.replace(model=s.model.model_copy(update={"trust": ()})) for s in specs]
    if untrusting == specs:
        assert spec_files.read(path) == specs


@given(st.text() | st.integers() | st.floats(allow_nan=False) | st.none() | st.booleans())
def test_what_is_written_plainly_any_reader_of_yaml_takes_for_the_same(value):
    text = yaml_text.write({"a": [value]})
    assert yaml_text.read(text.encode()) == yaml.safe_load(text) == {"a": [value]}


# -- what people write


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("model: gpt2\nseeds: 7\nscores: act_mag\nperturbations: bit_flip-sign-0.5\n",
         "--metric act_mag --seeds 7 --perturb bit_flip-sign-0.5"),
        ("model: gpt2\ndata: no\nperturbations: [{kind: scale, strength: 1e-5}]\n", "--data no --perturb scale-1e-5"),
        ('{"model": {"source": "gpt2", "revision": "1e5"}, "topk": [9, 007]}', "--revision 1e5 --topk 7,9"),
        ("model: gpt2\nlists: two.csv\nperturbations: zero\n", "--weights two.csv --perturb zero"),
    ],
)  # fmt: skip
def test_one_field_that_says_it_all_and_a_list_of_one_need_no_more(studies, tmp_path, text, same):
    (tmp_path / "two.csv").write_text("tensor,row,col\nx.weight,1,0\nx.weight,2,0\n")
    (tmp_path / "a.yaml").write_text(text)
    assert studies("esa run --spec a.yaml")[0] == studies(f"esa run --model gpt2 {same}")[0]


def test_the_study_of_a_run_can_be_run_anew(tmp_path):
    spec = quickstart.study()
    (tmp_path / "study.json").write_text(json.dumps({"spec": spec.model_dump(mode="json"), "resolved": {}}))
    assert spec_files.read(str(tmp_path / "study.json")) == [spec]


def test_an_experiment_is_a_study_of_a_python_file(studies):
    file = ROOT / "experiments" / "quickstart.py"
    assert studies(f"esa run --spec {file}")[0] == studies(f"esa run --spec {file}:study")[0]
    assert studies(f"esa run --spec {file}")[0] == [(quickstart.study(), "results/quickstart")]


def test_a_python_file_may_return_several_studies_and_import_its_neighbours(studies, tmp_path):
    (tmp_path / "near.py").write_text("SEEDS = (1, 2)\n")
    (tmp_path / "mine.py").write_text(
        "from near import SEEDS\nfrom esa_ray.spec import ModelSpec, StudySpec\n\n"
        "def both():\n    return [StudySpec(name=n, model=ModelSpec(source='gpt2'), seeds=SEEDS) for n in 'ab']\n"
    )
    found, _ = studies("esa run --spec mine.py:both --out-dir base")
    assert [(spec.name, spec.seeds, place) for spec, place in found] == [
        ("a", (1, 2), "base/a"), ("b", (1, 2), "base/b"),
    ]  # fmt: skip
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1 +", [", line 1: SyntaxError"]),
        ("\nimport nothing_of_this_name", [", line 2: ModuleNotFoundError", "nothing_of_this_name"]),
        ("import sys\nsys.exit(3)", [", line 2: SystemExit: 3"]),
        ("def other():\n    pass", ["no function study", "it has other", "FILE:NAME"]),
        ("def study():\n    return 3", ["study() must return a StudySpec, or a list of them, not a int"]),
        ("def studies():\n    return []", ["studies() must return", "an empty list"]),
        ("def study(x):\n    pass", ["TypeError", "x"]),
        ("from esa_ray.spec import DataSpec\ndef study():\n    return DataSpec(window=1)",
         [", line 3: window must be at least 2, not 1"]),
    ],
)  # fmt: skip
def test_a_python_file_that_returns_no_study_is_one_sentence_with_its_line(refused, tmp_path, code, words):
    (tmp_path / "mine.py").write_text(code)
    said = refused("esa run --spec mine.py --plan")
    assert said.startswith("esa: --spec mine.py")
    for word in words:
        assert word in said


# -- what is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: gpt2\nseed: [1]\n", "seed is no field of a study; write seeds"),
        ("model: gpt2\nmax-samples: 3\n", "max-samples is no field of a study; write data.calibration_windows"),
        ("model: {src: gpt2}\n", "model.src is no field of a study; write model.source"),
        ("model: gpt2\nzz: 1\n", "zz is no field of a study; there are name, model, data, "),
        ("model: gpt2\nperturbations: [zero, melt]\n", "perturbations: 'melt' is not one of sign_flip, "),
        ("model: gpt2\nperturbations: [{kind: zero, strength: 1}]", "perturbations[0]: zero takes no strength"),
        ("perturbations: [zero]\n", "model is missing; add it"),
        ("model: gpt2\ndata: {window: 1}\n", "data.window must be at least 2, not 1"),
        ("model: gpt2\nscores: [{mode: per_head}]\n", "scores[0].mode must be 'per_layer', 'per_tensor' or 'global'"),
        ("model: gpt2\ntopk: 50,100\n", "topk[0] must be a whole number, not '50,100'"),
        ("model: gpt2\none_by_one: maybe\n", "one_by_one must be true or false, not 'maybe'"),
        ("model: 3\n", "model must have fields of its own, not 3"),
        ("model: gpt2\nanalyses: stability\n", "analyses: [stability] compares seeds; give at least two to seeds"),
        ("model: gpt2\nprotocols: smok\n", "protocols: 'smok' is no protocol; there are smoke, standard, extended"),
        ("model: gpt2\nlists: no.csv\n", "lists no.csv can't be read"),
        ("name: a b\nmodel: gpt2\n", "name must have letters, digits, '.', '_' and '-' alone"),
        ("model: gpt2\nmodel: gpt3\n", "line 2: model stands twice"),
        ('{"model": "a",\n "model": "b"}', "line 2: model stands twice"),
        ("model: gpt2\n topk: 3\n", "line 2: mapping values are not allowed here"),
        ("model: [1\n", "line 2: "),
        ("a: *b\n", "line 1: found undefined alias 'b'"),
        ("[" * 3000, "it is nested too deeply"),
        ("", "holds no study; it needs a line such as `model: gpt2`"),
        ("gpt2", "holds no study"),
        ("[]", "holds no study"),
        ("- model: gpt2\n- model: gpt2\n", "two studies by the name gpt2-"),
        ("model: {source: gpt2, trust: [remote_code]}", "add --trust remote_code if you do"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_the_file_the_key_and_the_mend(refused, tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    err = refused("esa run --spec a.yaml --plan")
    assert err.startswith("esa: --spec a.yaml")
    assert said in err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'{"model": "gpt2",}', "can't be read: line 1: "),
        ("a.json", b'{"model": "a", "model": "b"}', "can't be read: model stands twice"),
        ("a.json", b'{"model": "a", "early_stop": NaN}', "early_stop must be a finite number"),
        ("a.yaml", b"model: \xff\xfe", "can't be read: "),
        ("a.txt", b"model: gpt2", "must end in .yaml, .yml or .json; or a function of a Python file"),
    ],
)
def test_a_file_that_cant_be_read_is_one_sentence(refused, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert f"--spec {name}" in (err := refused(f"esa run --spec {name} --plan"))
    assert said in err


@pytest.mark.parametrize("name", ["no.yaml", "no.json", "no.py", "no.py:study"])
def test_a_file_that_isnt_there_is_one_sentence(refused, name):
    assert "no such file" in refused(f"esa run --spec {name} --plan").lower()


def _parameters():
    return [p for p in typer.main.get_command(cli.app).commands["run"].params if p.opts[0] != "--help"]


@pytest.mark.parametrize("parameter", [p for p in _parameters() if p.name not in asked.HOW], ids=lambda p: p.name)
def test_an_option_that_describes_the_study_is_refused_beside_a_file_even_at_its_default(refused, tmp_path, parameter):
    (tmp_path / "a.yaml").write_text("model: gpt2\n")
    value = "" if parameter.is_flag else f" {parameter.default or 1}"
    said = refused(f"esa run --spec a.yaml --plan {parameter.opts[0]}{value}")
    assert said.startswith(f"esa: {parameter.opts[0]}: --spec a.yaml says what the study is")


def test_options_that_say_how_and_where_work_beside_a_file(studies, tmp_path):
    (tmp_path / "a.yaml").write_text("model: {source: gpt2, trust: [pickle]}\nperturbations: [zero]\n")
    found, options = studies(
        "esa run --spec a.yaml --out-dir x --plan --on h100 --save-plots --address a:1 --gpus 0 --track mlflow "
        "--max-concurrent 3 --memory-budget 1KB --verbose --trust pickle,remote_code"
    )
    ((spec, place),) = found
    assert (place, spec.model.trust) == ("x", ("pickle", "remote_code"))
    assert asked.HOW - {"context"} <= {p.name for p in _parameters()}
    assert options == {
        "only_plan": True, "on": "h100", "save_plots": True, "address": "a:1", "gpus": 0, "track": ("mlflow",),
        "concurrency": 3, "memory_budget": 1000, "verbose": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--plan", "--model is missing; name one, or give a file of a study by --spec"),
        ("--spec a.yaml --track mlflow", "--track tells of damaged cells"),
        ("--spec a.yaml --trust all", "--trust must be 'remote_code' or 'pickle', not 'all'"),
        ("--spec a.yaml --out-dir s3://AKIA:hidden/key@bucket/x", "a location with a key"),
        ("--spec ''", "--spec is empty"),
        ("--model gpt2 --plan --save-spec a.yaml", "--save-spec a.yaml is there and says something else"),
        ("--model gpt2 --plan --save-spec a.toml", "--save-spec a.toml must end in .yaml, .yml or .json"),
        ("--model gpt2 --plan --save-spec no/a.yaml", "--save-spec no/a.yaml can't be written: no such file"),
    ],
)
def test_wrong_use_of_files_is_one_sentence(refused, tmp_path, line, said):
    (tmp_path / "a.yaml").write_text("model: gpt2\n")
    assert said in refused(f"esa run {line}")
    assert (tmp_path / "a.yaml").read_text() == "model: gpt2\n"


def test_writing_the_same_twice_is_no_fault(studies, tmp_path):
    for _ in range(2):
        studies("esa run --model gpt2 --plan --save-spec a.yaml")


# -- the flags


def _flags(command, words):
    inner = getattr(command, "commands", {})
    if not inner:
        own = sorted(o for p in command.params for o in [*p.opts, *p.secondary_opts] if o.startswith("-"))
        return [" ".join([*words, *own])]
    return [line for name in sorted(inner) for line in _flags(inner[name], [*words, name])]


def test_the_flags_are_frozen():
    """Another option is a decision: what can be said in a file of a study needs none."""
    assert _flags(typer.main.get_command(cli.app), ["esa"]) == FLAGS


def test_the_file_in_the_documents_is_what_the_command_beside_it_writes(studies, tmp_path):
    command, file = (
        block.partition("\n")[2] for block in (ROOT / "docs" / "spec-files.md").read_text().split("```")[1:4:2]
    )
    studies(command.splitlines()[0])
    assert (tmp_path / "study.yaml").read_text() == file
