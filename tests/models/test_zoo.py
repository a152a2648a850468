"""The zoo: recipes, text, tokens, and models that really learn."""

import json

import numpy as np
import pytest
import torch

from esa_ray.data import windows
from esa_ray.errors import EsaError
from esa_ray.models.known import counted, facts
from esa_ray.models.load import load_model, load_tokenizer
from esa_ray.models.sources import find
from esa_ray.models.zoo import recipes, text, training
from esa_ray.spec import DataSpec, ModelSpec


def to_the_end(steps):
    """Tokens of every step, and what a training returns."""
    tokens = []
    while True:
        try:
            tokens.append(next(steps))
        except StopIteration as end:
            return tokens, end.value


def short(name, tokens=40_000):
    return recipes.recipe(name).model_copy(update={"tokens": tokens, "window": 128})


def brief(monkeypatch, cache):
    """Trainings of a second, in a cache of their own."""
    monkeypatch.setenv("ESA_CACHE", str(cache))
    for name, value in (("TOKENS", 40_000), ("TUNING_SHARE", 0.75), ("WINDOW", 128)):
        monkeypatch.setattr(recipes, name, value)


@pytest.mark.parametrize("name", recipes.names())
def test_sizes_are_geometric_and_equal_between_architectures(name):
    wanted = float(name.rpartition("-")[2].removesuffix("m")) * 1e6
    with torch.device("meta"):
        model = training.AutoModelForCausalLM.from_config(training.architecture(recipes.recipe(name)))
    assert counted(model).body == pytest.approx(wanted, rel=0.12)
    assert (counted(model).active < counted(model).total) == name.startswith("mixtral")


def test_a_recipe_is_known_by_all_that_is_in_it():
    plain = recipes.recipe("llama-1m")
    assert plain.identity == recipes.recipe("llama-1m").identity
    for change in ({"seed": 1}, {"tokens": 10}, {"rate": 0.5}, {"text": "2.7.18"}, {"window": 64}):
        assert plain.model_copy(update=change).identity != plain.identity
    assert len({recipes.recipe(name).identity for name in recipes.names()}) == len(recipes.names())


@pytest.mark.parametrize(
    "name",
    [
        "llama", "llama-2m", "gpt-1m", "", "llama-1m-x", "llama-1m@", "llama-1m@0k", "llama-1m@2", "llama-1m~",
        "llama-1m~0", "llama-1m~03", "llama-1m~x", "llama-1m~3@2m", "llama-1m~10000", "llama-1m~٣",
    ],
)  # fmt: skip
def test_a_name_that_isnt_in_the_zoo_is_one_sentence(name):
    with pytest.raises(EsaError, match="the zoo has no model"):
        recipes.recipe(name)


def test_a_length_of_training_is_part_of_the_name():
    longer = recipes.recipe("llama-instruct-1m@2m")
    assert (longer.tokens, longer.tuning_tokens) == (2_000_000, 400_000)
    assert recipes.base("llama-instruct-1m@2m") == "llama-1m@2m"
    assert recipes.directory("llama-1m@2m") != recipes.directory("llama-1m")


def test_a_seed_is_part_of_the_name_and_of_the_recipe_alone():
    for name in ("llama-1m", "neox-0.3m@2m", "llama-instruct-1m"):
        plain, seeded = recipes.recipe(name), recipes.recipe(f"{name}~3")
        assert plain.seed == 0
        assert seeded == plain.model_copy(update={"seed": 3})
        assert recipes.directory(f"{name}~3") != recipes.directory(name)
        assert recipes.plain(f"{name}~3") == recipes.plain(name)
    assert recipes.base("llama-instruct-1m@2m~3") == "llama-1m@2m~3"


def test_seeds_change_the_weights_and_what_is_trained_is_listed(tmp_path, monkeypatch):
    brief(monkeypatch, tmp_path)
    names = ["llama-0.1m@1k", "llama-0.1m@1k~1", "llama-0.1m@1k~2"]
    for name in names:
        to_the_end(training.ensure(name))
    (tmp_path / "zoo" / "llama-0.1m~x-0123").mkdir()
    (tmp_path / "zoo" / "llama-0.1m~x-0123" / "zoo.json").write_text("{}")
    assert recipes.trained() == names
    weights = {name: (recipes.directory(name) / "model.safetensors").read_bytes() for name in names}
    assert len(set(weights.values())) == len(names)
    assert find(ModelSpec(source=f"zoo:{names[1]}")).name == f"zoo-{names[1]}"


def test_text_is_english_and_what_is_held_out_isnt_trained_on():
    training_text, held_out = text.docstrings()
    assert sum(map(len, training_text)) > 1_000_000
    assert not set(training_text) & set(held_out)
    assert sum(map(len, held_out)) > training.VALIDATION_WINDOWS * 256
    assert " the " in text.stream(held_out).decode()


def test_windows_are_bytes_behind_bos_and_the_tokenizer_agrees():
    said = "naïve — ok"
    cut = training.text_windows((said * 20).encode(), 16)
    assert (cut[:, 0] == training.BOS).all()
    tokenizer = training.tokenizer()
    assert tokenizer(said).input_ids == [training.BOS, *training.encoded(said.encode())]
    assert tokenizer.decode(tokenizer(said).input_ids, skip_special_tokens=True) == said
    chat = [{"role": "user", "content": "Repeat: a"}, {"role": "assistant", "content": "a"}]
    tokens, labels = training.chat_windows([("Repeat: a", "a")] * 9, 64)
    one = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert tokens[0, : len(one)].tolist() == one
    # Only the answer and its end are learnt.
    assert labels[0, : len(one)].tolist() == [-100] * (len(one) - 2) + one[-2:]


def test_instructions_have_the_right_answers():
    sentence = "return the largest of these numbers."
    pairs = set(text.conversations((sentence,), 200, seed=0))
    found = {asked.split(": ")[0]: (asked, answer) for asked, answer in pairs}
    assert found["First word"][1] == "return"
    assert found["Last word"][1] == "numbers."
    assert found["Repeat"][1] == sentence
    assert found["Upper case"] == ("Upper case: return the largest of", "RETURN THE LARGEST OF")
    for asked, answer in pairs:
        if asked.startswith("Continue: "):
            assert f"{asked.removeprefix('Continue: ')} {answer}" == sentence


@pytest.mark.parametrize("name", ["llama-0.1m", "neox-0.1m", "mixtral-0.1m"])
def test_a_model_learns_and_loads_like_any_other(tmp_path, monkeypatch, name):
    brief(monkeypatch, tmp_path)
    tokens, told = to_the_end(training.ensure(name))
    assert sum(tokens) >= 40_000
    # Bytes drawn by their frequency alone cost 3.1 nats; a uniform guess log 260 = 5.6.
    held_out = training.encoded(text.stream(text.docstrings()[1]))
    shares = np.bincount(held_out) / len(held_out)
    unigram = -sum(p * np.log(p) for p in shares if p)
    assert told["validation_nll"] < unigram - 0.1
    source = find(ModelSpec(source=f"zoo:{name}"))
    model, tokenizer = load_model(source, "fp32", "cpu"), load_tokenizer(source)
    assert not getattr(model.config, "output_router_logits", False)
    known = facts(source.name, model)
    assert (known["family"], known["tuning"]) == (f"zoo {name.partition('-')[0]}", "base")
    assert known["kind"] == ("moe" if "mixtral" in name else "dense")
    # What was measured in training is what the loaded model gives, by another path.
    cut = training.text_windows(text.stream(text.docstrings()[1]), 128)[:64]
    with torch.no_grad():
        logits = model(torch.from_numpy(cut)).logits[:, :-1].double().log_softmax(-1)
    nll = -logits.gather(-1, torch.from_numpy(cut)[:, 1:, None]).mean()
    assert float(nll) == pytest.approx(told["validation_nll"], abs=1e-4)
    assert windows(DataSpec(calibration_windows=2, evaluation_windows=2), tokenizer, (0,)).bos
    again, _ = to_the_end(training.ensure(name))
    assert again == []


def test_tuning_teaches_answers_and_starts_from_its_base(tmp_path, monkeypatch):
    brief(monkeypatch, tmp_path)
    _, told = to_the_end(training.ensure("llama-instruct-0.1m"))
    assert (recipes.directory("llama-0.1m") / "zoo.json").is_file()
    assert told["answer_nll"] < told["answer_nll_before"] - 0.1
    kept = json.loads((recipes.directory("llama-instruct-0.1m") / "zoo.json").read_text())
    assert kept == json.loads(json.dumps(told))
    assert kept["recipe"]["tuning_tokens"] == 30_000


def test_a_training_that_is_killed_leaves_nothing_that_looks_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("ESA_CACHE", str(tmp_path))
    steps = training.train(short("llama-0.1m"), recipes.directory("llama-0.1m"))
    next(steps)
    steps.close()
    with pytest.raises(EsaError, match=r"esa zoo train llama-0\.1m"):
        find(ModelSpec(source="zoo:llama-0.1m"))


def test_training_leaves_the_random_numbers_of_gpus_alone(tmp_path, monkeypatch):
    """Asking for a GPU's state makes a context there, of hundreds of megabytes."""
    asked = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *n: asked.append(n) or torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *n: asked.append(n))
    next(training.train(short("llama-0.1m"), tmp_path / "m"))
    assert not asked


def test_the_same_recipe_gives_the_same_weights(tmp_path):
    torch.set_num_threads(1)
    for folder in ("a", "b"):
        to_the_end(training.train(short("mixtral-0.1m", tokens=4096), tmp_path / folder))
    a, b = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("a", "b"))
    assert a == b
