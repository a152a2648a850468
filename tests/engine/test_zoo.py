"""Models of the zoo, trained as Ray tasks, and a study of one through the command."""

import sys

import pytest

from esa_ray import cli
from esa_ray.engine import zoo
from esa_ray.errors import EsaError
from esa_ray.models.zoo import recipes

pytestmark = pytest.mark.ray
NAMES = ["llama-0.1m@10k", "llama-instruct-0.1m@10k", "mixtral-0.1m@10k"]


class Told:
    def __init__(self):
        self.total, self.done, self.said = 0, 0, []

    def phase(self, name, total, workers=0):
        self.total = total

    def advance(self, steps, note="", **more):
        self.done += steps

    def say(self, sentence):
        self.said.append(sentence)

    def close(self):
        pass


@pytest.fixture
def trained(ray_cluster, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.getbasetemp() / "zoo-cache"
    monkeypatch.setenv("ESA_CACHE", str(cache))
    return cache


def test_models_are_trained_once_the_tuned_after_their_base(trained, monkeypatch):
    told = Told()
    assert zoo.missing([NAMES[1]]) == [NAMES[0], NAMES[1]]
    zoo.train(NAMES, told)
    assert zoo.missing(NAMES) == []
    assert told.done >= told.total == 10_000 + 2_000 + 10_000
    assert [s.partition(":")[0] for s in told.said][-1] == NAMES[1]
    weights = {name: (recipes.directory(name) / "model.safetensors").stat().st_mtime_ns for name in NAMES}
    zoo.train(NAMES, Told())
    assert weights == {name: (recipes.directory(name) / "model.safetensors").stat().st_mtime_ns for name in NAMES}


def test_what_keeps_a_model_from_being_trained_is_one_sentence(trained, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ESA_CACHE", str(tmp_path / "file"))
    with pytest.raises(EsaError, match="llama-0"):
        zoo.train(["llama-0.1m@10k"], Told())


def test_a_mixture_of_the_zoo_is_studied_and_compared(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    zoo.train(NAMES, Told())
    models = ",".join(f"zoo:{name}" for name in NAMES)
    line = f"esa run --model {models} --mode global --topk 1,64 --max-samples 2 --eval-windows 4 --window 32"
    line += " --perturb zero --controls random_k --seeds 1,2 --architecture-analysis --out-dir all"
    for command in (line, "esa compare all --save-tables"):
        monkeypatch.setattr(sys, "argv", command.split())
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    html = (tmp_path / "all" / "compare.html").read_text()
    assert '<h2 id="experts">' in html
    assert "zoo llama instruct" in html
    assert (tmp_path / "all" / "tables" / "models-1.tex").is_file()
