"""Documents of results: they say what was found, and nobody wrote in them since."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from analysis.comparison import compare
from analysis.documents import tuning
from analysis.documents.pages import BENCHMARKS, DIRECTORY, STUDIES, TITLES, render, write, write_studies
from esa_ray.spec import QuantizeSpec, TuneSpec
from tests.analysis.compressed import compressed, prune
from tests.analysis.many import study
from tests.analysis.test_hardening import models as hardened_models
from tests.analysis.tuned import arms, tuned

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TITLES)
def test_documents_are_those_of_their_findings(name):
    found = json.loads((ROOT / DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    text = (ROOT / DIRECTORY / f"{name}.md").read_text(encoding="utf-8")
    assert text == render(name, found), "stale, or edited by hand: run `make docs`"
    figures = re.findall(r"\]\((.+?\.svg)\)", text)
    assert all((ROOT / DIRECTORY / figure).is_file() for figure in figures)
    unused = {p.name for p in (ROOT / DIRECTORY).glob(f"{name}-*.svg")} - set(figures)
    assert not unused
    assert len(found["sources"]) > 20


@pytest.mark.parametrize("name", STUDIES)
def test_documents_of_single_studies_are_those_of_their_findings(name):
    if (data := ROOT / DIRECTORY / f"{name}.json").is_file():
        text = data.with_suffix(".md").read_text(encoding="utf-8")
        assert text == render(name, json.loads(data.read_text(encoding="utf-8"))), "stale, or edited by hand"


def test_the_document_on_compression_has_verdicts_and_a_figure_file_for_each_that_it_shows(tmp_path):
    costs = {"magnitude": 1.0, "act_mag": 0.5, "regional": 0.3}
    pruned = compressed(
        tmp_path / "p", [prune(m, sparsity=s) for m in ("magnitude", "wanda", "wanda++") for s in (0.5, 0.6)],
        lambda p, seed, text: costs[p.score] * p.sparsity * (1 + 0.01 * np.cos(np.arange(16) + seed)),
    )  # fmt: skip
    rounded = compressed(tmp_path / "q", [QuantizeSpec(bits=b) for b in (3, 4)], lambda q, seed, text: 1 / q.bits)
    path = write_studies({"pruning": pruned, "quantization": rounded}, tmp_path / "docs")
    text = path.read_text()
    assert (
        "from the studies of 1 model (`python -m experiments pruning` and `python -m experiments quantization`)" in text
    )
    assert "| open | 50%: wanda++ −70% against magnitude" in text
    assert "| open | 3 bits, 0.35% kept: needs tacq" in text
    assert "## Pruning: What does compressing cost?" in text
    assert "at 60% wanda++ loses least: +0.180 nats per token" in text
    shown = set(re.findall(r"\]\((.+?\.svg)\)", text))
    assert {"compression-pruning-excess.svg", "compression-quantization-excess_bits.svg"} <= shown
    assert shown == {p.name for p in path.parent.glob("*.svg")}
    assert write_studies({}, tmp_path / "docs").read_text() == text


def test_the_document_on_tuning_has_every_model_and_what_robustness_found(tmp_path):
    specs = [*arms(), *arms(rate=1e-2), TuneSpec(protect="ewc", learning_rate=1e-3)]

    def change(spec, seed, text, step):
        gain = {"full": 0.5, "critical-target": 0.4}.get(spec.arm, 0.2)
        return (-gain if text == "target" else gain / 3) * step / spec.steps

    for experiment, model in (("tuning", "a"), ("tuning", "b"), ("protection", "a")):
        tuned(tmp_path / experiment / model, specs, change, moves=lambda spec, seed: ([1.0, 2.0, 3.0], [1.0, 2.0]))
    hardened_models(tmp_path / "robustness", [0.1] * 3, [0.3] * 3)
    tuned(tmp_path / "robustness" / "a-tuned", [TuneSpec()], change)
    studies = tuning.there(tmp_path)
    assert {"tuning/a", "tuning/b", "protection/a", "robustness/intact", "robustness/a-tuned"} <= set(studies)
    path = write_studies(studies, tmp_path / "docs", "tuning")
    text = path.read_text()
    titles = (
        "Tuning of a: What does tuning to away gain", "Tuning of b: What moved?", "Protection of a: Is it worth it?",
        "Robustness: Does a model that was tuned with damage",
    )  # fmt: skip
    for title in titles:
        assert f"## {title}" in text
    assert "## Protection of a: What moved?" not in text
    assert "(P5.4d) | fails | made-up: critical-target-0.01: +0.100" in text
    assert "(P5.4f) | holds | zoo-llama, sign_flip-0.5 against the intact model: 6.00 times" in text
    shown = set(re.findall(r"\]\((.+?\.svg)\)", text))
    assert {"tuning-tuning-a-tuning_front.svg", "tuning-robustness-hardening.svg"} <= shown
    assert shown == {p.name for p in path.parent.glob("*.svg")}
    assert write_studies({}, tmp_path / "docs", "tuning").read_text() == text


@pytest.mark.parametrize("name", BENCHMARKS)
def test_documents_of_benchmarks_are_those_of_their_findings(name):
    found = json.loads((ROOT / DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    text = (ROOT / DIRECTORY / f"{name}.md").read_text(encoding="utf-8")
    assert text == render(name, found), "stale, or edited by hand: run `make docs`"
    if name != "gpu":
        return
    assert {part["status"] for part in found["parts"]} == {"done"}
    assert ("No card was at hand" in text) == (found["environment"]["device"] == "cpu")


def _measured(device, **more):
    figure = {"what": "cells | s", "value": 0.5, "unit": "of bare", "goal": "≥ 0.85", "met": False, "note": ""}
    part = {"title": "Cells", "status": "done", "error": None, "seconds": 3.0, "figures": [figure | more]}
    card = {"memory": 80e9, "capability": "9.0", "driver": "580.1", "cuda": "13.0"} if device == "cuda" else {}
    here = {"device": device, "name": "NVIDIA H100", "threads": 1, "date": "2026-01-01", "torch": "2.11"} | card
    return {"environment": here, "parts": [part, part | {"status": "failed", "error": "OSError: x", "figures": []}]}


def test_a_missed_goal_stands_on_top_and_an_open_one_is_called_open():
    missed = render("gpu", _measured("cuda"))
    assert "NVIDIA H100** (80 GB, capability 9.0, driver 580.1, CUDA 13.0" in missed
    assert "Of 1 goals 0 are met, 1 are not, and 0 are open." in missed
    assert "- cells | s: 0.5 of bare, goal ≥ 0.85" in missed
    assert "| cells \\| s | 0.5 of bare | ≥ 0.85 | **not met** |  |" in missed
    assert "**failed after 3 s: OSError: x.**" in missed
    left = render("gpu", _measured("cpu", met=None))
    assert "No card was at hand" in left
    assert "0 are not, and 1 are open" in left
    assert "| 0.5 of bare | ≥ 0.85 | open |" in left


def test_a_document_is_made_of_studies_and_made_again_without_them(tmp_path):
    for n, name in enumerate(("a|b", "c")):
        study(tmp_path / "s" / str(n), name, family="f", size=1000 * (n + 1), half=5.0, draw=np.random.default_rng(n))
    path = write("scaling", compare([tmp_path / "s"]), tmp_path / "docs")
    text = path.read_text()
    assert "a\\|b" in text
    assert text.startswith("# Scaling")
    cells = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", cells[0])) for row in cells[:2])
    path.write_text(text + "by hand\n")
    assert write("scaling", None, tmp_path / "docs").read_text() == text
    changed = json.loads((tmp_path / "docs" / "scaling.json").read_text())
    changed["sections"][0]["answer"] = "otherwise"
    assert render("scaling", changed) != text
