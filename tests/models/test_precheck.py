"""What is told of a model before a cluster starts, in this process and in another."""

import os
import subprocess
import sys

import pytest
from tokenizers import AddedToken

from esa_ray.engine import sweep
from esa_ray.errors import EsaError
from esa_ray.measurements.worker import Worker
from esa_ray.models import precheck
from esa_ray.models.sources import find
from esa_ray.models.tokenizing import check_tokens
from esa_ray.spec import ModelSpec, StudySpec, WeightList, WeightName
from tests.models.checkpoints import edit, rewritten, saved, spec
from tests.models.gguf_files import write_gguf
from tests.tiny import VOCAB, byte_tokenizer, random_windows, tiny


@pytest.fixture
def text(tmp_path):
    """Windows of bytes 1 to 44, which are the tokens 3 to 46 of the byte tokenizer."""
    file = tmp_path / "text.txt"
    file.write_text("".join(chr(n + 1) for row in random_windows(200, 20, vocab=44) for n in row), encoding="ascii")
    return str(file)


def study(directory, text: str, **more) -> StudySpec:
    data = {"source": text, "window": 16, "calibration_windows": 4, "evaluation_windows": 4, "batch_size": 2}
    return StudySpec(name="s", model=spec(directory), data=data, perturbations=({"kind": "zero"},), **more)


def check(directory, text: str, **more) -> None:
    asked = study(directory, text, **more)
    precheck.check(asked, find(asked.model))


def test_a_tokenizer_that_knows_more_than_the_model_is_no_trouble_until_the_text_needs_it(tmp_path, text):
    directory = saved(tmp_path / "m")  # 258 tokens, and the model has embeddings of 48
    check(directory, text)
    other = tmp_path / "other.txt"
    other.write_text("letters, which are tokens above 47" * 200)
    with pytest.raises(EsaError, match=rf"makes token {2 + ord('w')} of this text, .* 0 to {VOCAB - 1} alone"):
        check(directory, str(other))


def test_a_special_token_that_was_added_beyond_the_embedding_is_told(tmp_path, text):
    tiny().save_pretrained(tmp_path / "m")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": AddedToken("<begin>", special=True)})
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(EsaError, match="makes token 258"):
        precheck.check(
            (asked := study(tmp_path / "m", text).replace(data={"source": text, "window": 16, "calibration_windows": 4,
             "evaluation_windows": 4, "batch_size": 2, "bos": "always"})), find(asked.model)
        )  # fmt: skip


@pytest.mark.parametrize(("family", "key"), [("llama", "max_position_embeddings"), ("gpt2", "n_positions")])
def test_a_window_beyond_the_context_is_told_before_anything_is_loaded_and_by_the_actor(tmp_path, text, family, key):
    directory = saved(tmp_path / "m", family)
    edit(directory / "config.json", **{key: 15})
    if family == "gpt2":  # whose positions are a table
        rewritten(directory, lambda s: s | {"transformer.wpe.weight": s["transformer.wpe.weight"][:15].clone()})
    asked = study(directory, text)
    source = find(asked.model)
    with pytest.raises(EsaError, match=r"--window 16 is longer than what --model m reads, 15 tokens"):
        precheck.check(asked, source)
    with pytest.raises(EsaError, match=r"--window 16 is longer than what --model m reads, 15 tokens"):
        Worker(asked, source, str(tmp_path / "out"))
    fitting = asked.replace(data=asked.data.model_copy(update={"window": 15}))
    precheck.check(fitting, source)


def test_the_largest_token_that_has_an_embedding_is_let_through():
    windows = random_windows(3, 8, vocab=10)
    windows[1, 5] = 11
    check_tokens("m", [windows], 12)
    with pytest.raises(EsaError, match=r"token 11 .* 0 to 10 alone"):
        check_tokens("m", [windows[:1] * 0, windows], 11)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_names_of_a_list_are_looked_up_in_the_hollow_model(tmp_path, text, family):
    directory = saved(tmp_path / "m", family)

    def listed(name):
        return (WeightList(name="l", weights=(WeightName(tensor=name, row=5, col=7),)),)

    check(directory, text, lists=listed("model.layers.1.self_attn.o_proj"))
    with pytest.raises(EsaError, match=r"no weights named .*nearest are model\.layers\.1\.self_attn\.o_proj\.weight"):
        check(directory, text, lists=listed("model.layers.1.self_attn.out_proj"))


def test_another_process_tells_the_same_sentence_and_this_one_stays_without_torch(tmp_path, text):
    directory = rewritten(saved(tmp_path / "m"), lambda s: {k: v for k, v in s.items() if k != "model.norm.weight"})
    asked = study(directory, text)
    with pytest.raises(EsaError, match=r"lacks model\.norm\.weight") as here:
        precheck.check_apart([(asked, find(asked.model))])
    code = (
        "import sys; from esa_ray.errors import EsaError; from esa_ray.models import precheck, sources;"
        "from esa_ray.spec import StudySpec\n"
        "asked = StudySpec.model_validate_json(sys.argv[1])\n"
        "try: precheck.check_apart([(asked, sources.find(asked.model))])\n"
        "except EsaError as error: print(error, 'torch' in sys.modules, sep='\\n')"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, asked.model_dump_json()], capture_output=True, text=True, check=True
    )
    assert there.stdout.splitlines() == [str(here.value), "False"]


def test_python_files_beside_the_model_are_not_imported_where_it_is_the_working_directory(tmp_path, text):
    directory = saved(tmp_path / "m")
    for name in ("accelerate", "random", "sentencepiece"):  # what transformers imports from wherever it finds it first
        (directory / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    code = (
        "import sys; sys.path.remove('')\n"
        "from esa_ray.models import precheck, sources; from esa_ray.spec import StudySpec\n"
        "asked = StudySpec.model_validate_json(sys.argv[1])\n"
        "precheck.check_apart([(asked, sources.find(asked.model))])"
    )
    subprocess.run(
        [sys.executable, "-c", code, study(".", text).model_dump_json()], cwd=directory, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert not (tmp_path / "ran").exists()


def test_no_process_is_started_for_what_only_the_loading_tells(tmp_path, text, monkeypatch):
    gguf = write_gguf(tmp_path / "m.gguf")
    trusted = ModelSpec(source=str(saved(tmp_path / "m")), trust=("remote_code",))
    asked = [(study(gguf, text), find(spec(gguf))), (study(tmp_path / "m", text), find(trusted))]
    monkeypatch.delitem(sys.modules, "torch")  # as in a driver, which hasn't loaded it
    monkeypatch.setattr(precheck.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    precheck.check_apart(asked)
    with pytest.raises(pytest.fail.Exception):
        precheck.check_apart([*asked, (study(tmp_path / "m", text), find(spec(tmp_path / "m")))])


def test_a_model_that_is_right_passes_in_another_process(tmp_path, text):
    asked = study(saved(tmp_path / "m"), text)
    ended = subprocess.run(
        [sys.executable, "-m", "esa_ray.models.precheck"], input=precheck.written([(asked, find(asked.model))]),
        capture_output=True, check=True,
    )  # fmt: skip
    assert ended.stdout.decode().splitlines()[-1] == "null"


@pytest.fixture
def no_cluster(monkeypatch):
    """Whoever asks for a cluster fails."""

    def asked(*_, **__):
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(sweep.cluster, "connected", asked)


def test_a_study_is_refused_before_it_asks_for_a_cluster(tmp_path, text, no_cluster):
    directory = saved(tmp_path / "m")
    right = study(directory, text)
    with pytest.raises(AssertionError, match="a cluster was asked for"):  # what is right goes on to one
        sweep.run_study(right, tmp_path / "out")
    rewritten(directory, lambda state: {k: v for k, v in state.items() if k != "model.norm.weight"})
    with pytest.raises(EsaError, match=r"lacks model\.norm\.weight"):
        sweep.run_study(right, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_actor_checks_tokens_for_itself(tmp_path, text):
    """As of a GGUF file, whose tokenizer nobody sees before."""
    directory, other = saved(tmp_path / "m"), tmp_path / "other.txt"
    other.write_text("letters, which are tokens above 47" * 200)
    asked = study(directory, str(other))
    with pytest.raises(EsaError, match=rf"makes token {2 + ord('w')} of this text"):
        Worker(asked, find(asked.model), str(tmp_path / "out"))
    asked = study(directory, text)
    assert Worker(asked, find(asked.model), str(tmp_path / "out")).describe()["vocabulary"] == VOCAB
