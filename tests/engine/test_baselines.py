"""The intact model under protocols, and sub-layers silenced, through the engine."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import analysis
from esa_ray.engine.sweep import run_study
from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.evaluation.protocols import Measuring
from esa_ray.measurements import MEASUREMENTS
from esa_ray.models.load import load_model, load_tokenizer
from esa_ray.models.sources import find
from esa_ray.spec import Protocol, ScoreSpec
from esa_ray.spec.tasks import answers_name
from esa_ray.storage.store import Store

TASK = Path(__file__).parent.parent / "data" / "task.yaml"


@pytest.fixture(scope="module")
def spec(tiny_study):
    return tiny_study.replace(
        name="base", perturbations=(), groups=("super",), topk=(3,), scores=(ScoreSpec(metric="magnitude"),),
        protocols=(
            Protocol(name="smoke", windows=4, contexts=(16,)), Protocol(name="extended", windows=4, contexts=(16,
            32, 4096)),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def measuring(spec):
    source = find(spec.model)
    return Measuring(load_model(source, "fp32", "cpu"), source, spec)


def local_task(tmp_path):
    """Twenty questions with two answers each, in a file that a task reads."""
    rows = [
        {"question": f"{w} ends in", "choices": [" a", " b"], "answer": n % 2} for n, w in enumerate("abcdefghij" * 2)
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = tmp_path / "task.yaml"
    task.write_text(TASK.read_text().replace("TASK_DATA", str(data)))
    return task, rows


def test_a_protocol_measures_what_evaluation_does(measuring, spec):
    row = measuring.protocol("smoke", 16, 7)
    windows = measuring._windows(4, 16).calibration(7)
    assert windows.shape == (4, 16)
    wanted = evaluate(measuring.model, windows, 3)
    assert row["nll"] == pytest.approx(wanted.nll)
    assert row["hits"] == wanted.hits
    assert row["tokens_per_second"] == pytest.approx(4 * 16 / row["seconds"])
    assert row["peak_memory"] > 50e6
    other = measuring.protocol("smoke", 16, 8)
    assert other["nll"] != pytest.approx(row["nll"])


def test_a_context_beyond_the_models_own_is_passed_over_and_said(measuring):
    row = measuring.protocol("extended", 4096, 7)
    assert row["status"] == "empty"
    assert "128 tokens" in row["error"]


def test_a_local_task_is_scored_as_by_hand(measuring, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    task, rows = local_task(tmp_path)
    asked = Protocol(name="extended", windows=4, contexts=(16,), tasks=(str(task),))
    spec = measuring.spec.replace(protocols=(asked,))
    found = Measuring(measuring.model, measuring.source, spec).tasks("extended")
    (row,) = (r for r in found if r["task_metric"] == "acc")
    # By hand: which of the two answers has the higher log-probability behind the question.
    tokenizer, right = load_tokenizer(measuring.source), 0
    for r in rows:
        scores = []
        for choice in r["choices"]:
            context, whole = tokenizer(r["question"]).input_ids, tokenizer(r["question"] + choice).input_ids
            with torch.no_grad():
                logs = measuring.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            scores.append(sum(float(logs[i - 1, whole[i]]) for i in range(len(context), len(whole))))
        right += int(np.argmax(scores)) == r["answer"]
    assert row["value"] == pytest.approx(right / len(rows))
    assert row["examples"] == 20
    assert row["task"] == "last_letter"


def test_answers_to_tasks_that_have_changed_since_are_refused(measuring, tmp_path):
    task, _ = local_task(tmp_path)
    asked = Protocol(name="extended", windows=4, contexts=(16,), tasks=(str(task), "piqa"))
    spec, store, tasks = measuring.spec.replace(protocols=(asked,)), Store(tmp_path / "s"), MEASUREMENTS["tasks"]
    assert [unit.values for unit in tasks.missing(spec, store)] == [("extended",)]
    store.write("tasks", answers_name(asked), [{"protocol": "extended", "task": "last_letter", "value": 1.0}])
    assert tasks.missing(spec, store) == []
    task.write_text(task.read_text() + "metadata: {made: 2024-01-01}\n")
    with pytest.raises(EsaError, match="other tasks"):
        tasks.missing(spec, store)


@pytest.mark.parametrize(
    ("content", "words"), [("a: [", "can't be read"), ("a: 1", "no field `task`"), (None, "can't be read")]
)
def test_a_task_file_that_is_none_is_one_sentence(measuring, tmp_path, content, words):
    path = tmp_path / "task.yaml"
    if content:
        path.write_text(content)
    asked = Protocol(name="extended", windows=4, contexts=(16,), tasks=(str(path),))
    with pytest.raises(EsaError, match=words):
        Measuring(measuring.model, measuring.source, measuring.spec.replace(protocols=(asked,))).tasks("extended")


@pytest.mark.ray
def test_protocols_and_silenced_sublayers_through_the_engine(spec, ray_cluster, tmp_path):
    both = spec.replace(analyses=("architecture",))
    summary = run_study(both, tmp_path)
    assert summary.complete
    store = Store(tmp_path)
    assert set(store.names("protocols")) == {
        f"{p}-c{c}-s{s}"
        for p, c in (("smoke", 16), ("extended", 16), ("extended", 32), ("extended", 4096))
        for s in (7, 8)
    }
    assert store.names("ablations") == ["block-0000", "block-0001"]
    # Two protocols that read the same windows are measured once.
    first, second = (store.read("protocols", f"{p}-c16-s7").to_pylist()[0] for p in ("smoke", "extended"))
    assert (first.pop("protocol"), second.pop("protocol")) == ("smoke", "extended")
    assert first == second
    assert run_study(both, tmp_path).computed == 0
    # What is lost is measured again, and comes out the same.
    before = store.read("protocols", "smoke-c16-s7").to_pylist()[0]
    for table, name in (("protocols", "smoke-c16-s7"), ("ablations", "block-0001")):
        (tmp_path / table / f"{name}.parquet").unlink()
    assert analysis.progress(analysis.load(tmp_path))["protocols missing"] == 1
    assert analysis.progress(analysis.load(tmp_path))["blocks missing"] == 1
    assert run_study(both, tmp_path).computed == 2
    assert store.read("protocols", "smoke-c16-s7").to_pylist()[0]["nll"] == before["nll"]
    study = analysis.load(tmp_path)
    table = analysis.protocol_summary(study)
    assert table["why_not"].drop_nulls().to_list() == ["longer than the model's context of 128 tokens"]
    rows = study.protocols.filter(pl.col("protocol") == "smoke")
    rates = [sum(n) / sum(t) for n, t in rows.select("nll", "tokens").iter_rows()]
    assert table["nll"][0] == pytest.approx(np.mean(rates))
    perplexities = np.exp(rates)
    assert table["spread"][0] == pytest.approx(perplexities.std(ddof=1) / perplexities.mean())
    found = {v.id: v.status for v in analysis.verdicts(study)}
    assert found.keys() == {"P1.3a", "P1.3b"}
    assert 'id="chart-reliability"' in Path(analysis.write_report(study)).read_text()


def test_reports_count_answers_without_the_files_that_asked(measuring, tmp_path):
    task, _ = local_task(tmp_path)
    asked = Protocol(name="extended", windows=4, contexts=(16,), tasks=(str(task),))
    spec, store, tasks = measuring.spec.replace(protocols=(asked,)), Store(tmp_path / "s"), MEASUREMENTS["tasks"]
    assert tasks.left(spec, store) == 1
    store.write("tasks", answers_name(asked), [{"protocol": "extended", "task": "last_letter", "value": 1.0}])
    task.unlink()
    assert tasks.left(spec, store) == 0
