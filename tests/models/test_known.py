"""Models known by name: counts that their authors published, and a user's own list."""

import json

import pytest

from esa_ray.errors import EsaError
from esa_ray.host.footprint import PROCESS
from esa_ray.models.known import TASKS, known

#: Total and non-embedding parameters: Pythia's own table (Biderman et al. 2023, arXiv:2304.01373, and its repository).
PYTHIA = {
    "70m": (70_426_624, 18_915_328), "160m": (162_322_944, 85_056_000), "410m": (405_334_016, 302_311_424),
    "1b": (1_011_781_632, 805_736_448), "1.4b": (1_414_647_808, 1_208_602_624),
    "2.8b": (2_775_208_960, 2_517_652_480), "6.9b": (6_857_302_016, 6_444_163_072),
    "12b": (11_846_072_320, 11_327_027_200),
}  # fmt: skip

#: Total parameters as the hub shows them for the safetensors files.
TOTALS = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
}

#: In billions: parameters that a token passes, as the models' cards say.
ACTIVE = {
    "mistralai/Mixtral-8x7B-v0.1": 12.9,
    "allenai/OLMoE-1B-7B-0924": 1.3,
    "Qwen/Qwen3-30B-A3B-Base": 3.3,
}


@pytest.fixture(scope="module")
def by_name():
    return {model.name: model for model in known()}


@pytest.mark.parametrize(("size", "counts"), PYTHIA.items())
def test_pythia_has_the_parameters_that_its_paper_states(by_name, size, counts):
    found = by_name[f"EleutherAI/pythia-{size}"].parameters
    assert (found.total, found.body) == counts
    assert found.active == found.total


@pytest.mark.parametrize(("name", "total"), TOTALS.items())
def test_the_seed_models_have_the_parameters_of_their_files(by_name, name, total):
    assert by_name[name].parameters.total == total


@pytest.mark.parametrize(("name", "billions"), ACTIVE.items())
def test_of_a_mixture_of_experts_the_active_ones_are_what_its_card_says(by_name, name, billions):
    assert by_name[name].kind == "moe"
    assert by_name[name].parameters.active / 1e9 == pytest.approx(billions, rel=0.02)


def test_every_series_is_whole_and_every_kind_is_there(by_name):
    assert {m.kind for m in by_name.values()} == {"dense", "moe"}
    assert {m.tuning for m in by_name.values()} == {"base", "instruct"}
    for family, fewest in (("Pythia", 8), ("OLMo 2", 3), ("Qwen2.5", 5), ("Qwen3", 4), ("SmolLM2", 3)):
        sizes = [m.parameters.body for m in by_name.values() if m.family == family and m.tuning == "base"]
        assert len(sizes) >= fewest
        assert sizes == sorted(sizes)


def test_memory_is_what_the_weights_take_and_what_each_task_adds(by_name):
    model = by_name["HuggingFaceTB/SmolLM2-135M"]
    needed = model.memory(width=4)
    assert needed.keys() == TASKS.keys()
    assert needed["damage"] == 134_515_008 * 4 + PROCESS
    assert needed["damage"] < needed["score in block ranges"] < needed["score"]


def own(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_users_file_adds_models_and_replaces_ours(tmp_path):
    tiny = {
        "vocab_size": 100,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    content = [
        {"family": "mine", "kind": "dense", "model_type": "llama", "config": tiny,
         "models": {"me/tiny": {}, "EleutherAI/pythia-70m": {"tuning": "instruct"}}},
    ]  # fmt: skip
    found = {m.name: m for m in known(own(tmp_path, content))}
    # Embedding and head, four d×d matrices of attention, three of the FFN, two norms a block and the last one.
    assert found["me/tiny"].parameters.total == 2 * 100 * 16 + 4 * 16**2 + 3 * 16 * 32 + 3 * 16
    assert found["EleutherAI/pythia-70m"].family == "mine"
    assert len(found) == len(known()) + 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no JSON"),
        ("{}", "list"),
        ([{"family": "x", "kind": "sparse", "model_type": "llama", "models": {}}], "kind"),
        ([{"family": "x", "kind": "dense", "modeltype": "llama", "models": {}}], "0."),
    ],
)
def test_a_file_that_says_something_else_is_one_sentence(tmp_path, content, words):
    with pytest.raises(EsaError, match=words) as caught:
        known(own(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_config_that_makes_no_model_is_named(tmp_path):
    content = [{"family": "x", "kind": "dense", "model_type": "nosuch", "models": {"me/none": {}}}]
    found = next(m for m in known(own(tmp_path, content)) if m.name == "me/none")
    with pytest.raises(EsaError, match="me/none"):
        found.parameters


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EsaError, match=r"nowhere\.json"):
        known(tmp_path / "nowhere.json")
