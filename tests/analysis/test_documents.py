"""Documents of results: they say what was found, and nobody wrote in them since."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from analysis.comparison import compare
from analysis.documents import backdoors, security, tuning
from analysis.documents.pages import BENCHMARKS, DIRECTORY, STUDIES, TITLES, render, write, write_studies
from esa_ray.spec import AttackSpec, FaultSpec, QuantizeSpec, TuneSpec
from tests.analysis.attacked import attack, flipped, injected, written
from tests.analysis.cells import cell, noise, study_of
from tests.analysis.compressed import compressed, prune
from tests.analysis.many import study
from tests.analysis.populations import population
from tests.analysis.test_compression_goals import at_every_setting
from tests.analysis.test_hardening import models as hardened_models
from tests.analysis.test_pairs import planted, ranked
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
        tmp_path / "p", [p for m in ("magnitude", "wanda", "wanda++") for p in at_every_setting(m)],
        lambda p, seed, text: costs[p.score] * p.sparsity * (1 + 0.01 * np.cos(np.arange(16) + seed)),
    )  # fmt: skip
    rounded = compressed(tmp_path / "q", [QuantizeSpec(bits=b) for b in (3, 4)], lambda q, seed, text: 1 / q.bits)
    path = write_studies({"pruning": [pruned], "quantization": [rounded]}, tmp_path / "docs")
    text = path.read_text()
    assert "from the studies of 1 model (`python -m experiments pruning`, `python -m experiments pruning_zoo`" in text
    assert "| At 50, 60, 70% and 2:4 wanda++ has at least 15% less excess NLL than magnitude (P5.4a) | holds |" in text
    assert "P5.4c" not in text  # which nobody asked
    assert "## Pruning: What does compressing cost?" in text
    assert "at 60% wanda++ loses least: +0.180 nats per token" in text
    shown = set(re.findall(r"\]\((.+?\.svg)\)", text))
    assert {"compression-pruning-excess.svg", "compression-quantization-excess_bits.svg"} <= shown
    assert shown == {p.name for p in path.parent.glob("*.svg")}
    assert write_studies({}, tmp_path / "docs").read_text() == text


def test_several_models_stand_in_one_table_and_their_verdicts_name_them(tmp_path):
    def made(name, saved):
        costs = {"magnitude": 1.0, "act_mag": 0.5}
        return compressed(
            tmp_path / name,
            [*at_every_setting("magnitude", "wanda"), *at_every_setting(prune(score="regional", update="refit"))],
            lambda p, seed, text: costs.get(p.score, 0.5 * (1 - saved)) * (1 + 0.01 * np.cos(np.arange(16) + seed)),
            model=name,
        )  # fmt: skip

    zoo = [made("zoo-one", 0.2), made("zoo-two", -0.2)]
    text = write_studies({"pruning": [made("large", 0.4)], "pruning_zoo": zoo}, tmp_path / "docs").read_text()
    assert "from the studies of 3 models" in text
    heads = ["model", "setting", "method", "in domain, against magnitude", "in domain, against the best published"]
    assert f"| {' | '.join(heads)} |" in text
    assert "| large | 50% | regional-row-refit | −70% [−70%, −70%] | −40% [−40%, −40%] (wanda) |" in text
    assert "| zoo-two | 50% | regional-row-refit | −40% [−40%, −40%] | +20% [+20%, +20%] (wanda) |" in text
    assert "surely less excess NLL than the best published in 8 of 12 models and settings, surely more in 4" \
        " (zoo-two at 50%, zoo-two at 60%, zoo-two at 70%, zoo-two at 2:4)" in text  # fmt: skip
    assert text.count("## Pruning: What does compressing cost?") == 1  # the others have the table alone
    assert {f"(P5.4a, {name})" for name in ("large", "zoo-one", "zoo-two")} <= set(re.findall(r"\(P5\.4a, .+?\)", text))


def test_the_document_on_compression_says_what_rows_cost_and_how_pairs_of_them_interact(tmp_path):
    alone, controls = {0: 2.0, 1: 0.0}, {"random_k": 0.1, "matched_k": 0.2}
    cells = planted({1: [0, 1]}, alone, {(0, 1): 0.2})
    whole = {"mode": "per_layer", "k": 2, "seed": 1, "unit": "row", "delta_norm": 1.0}
    cells += [cell(cost + noise(np.random.default_rng(n)), group=group, **whole)
              for n, (group, cost) in enumerate({"super": 0.2, **controls}.items())]  # fmt: skip
    score = {"metric": "grad_x_weight", "mode": "per_layer", "unit": "row"}
    rows = study_of(tmp_path / "rows", cells, rankings=ranked(1, [0, 1]), scores=[score])
    text = write_studies({"rows": [rows]}, tmp_path / "docs").read_text()
    assert "## Rows: What do the rows cost that the score ranks highest?" in text
    assert re.search(r"\| zero \| .+ \| matched_k \| \+0\.(19|20)", text)
    assert re.search(r"In nats per token zero of .+ costs \+0\.\d+ .+ more than random_k \(p .+\), ", text)
    assert "## Rows: Do two of them break the model more, or less, than each alone?" in text
    assert "In 1 of them one undoes the other's damage." in text
    assert "compression-rows-pairs.svg" in text


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
    assert "(P5.4f) | holds | zoo-llama, full-lr0.0001-sign_flip-0.5-of100 against the intact model: 6.00 times" in text
    shown = set(re.findall(r"\]\((.+?\.svg)\)", text))
    assert {"tuning-tuning-a-tuning_front.svg", "tuning-robustness-hardening.svg"} <= shown
    assert shown == {p.name for p in path.parent.glob("*.svg")}
    assert write_studies({}, tmp_path / "docs", "tuning").read_text() == text


def test_the_document_on_security_has_every_model_and_puts_them_side_by_side(tmp_path):
    def flips(directory, model):
        rows = flipped("bf16", lambda c, s, b, n: (
            1.0 if b == 14 else 0.001 * (b + n), 0.001 * (b + n), 1e30 if b == 14 else 0.01,
        ))  # fmt: skip
        written(directory, [FaultSpec(fault="single")], rows=rows, seeds=(1, 2), model=model)

    def codes(directory, model):
        share = {"none": 1.0, "clamp": 0.1, "secded-critical": 0.9}
        specs = [FaultSpec(rate=1e-5, protect=p, repeats=20) for p in share]
        rows = [row for s in specs for row in injected(s, (1, 2), round(40 * share[s.protect]))]
        written(directory, specs, rows=rows, seeds=(1, 2), model=model)

    def attacks(directory, model):
        arms({"guided-super": 2, "random-super": 20, "random": None}, directory, model)

    def arms(flips, directory, model):
        specs = {AttackSpec(arm=arm, dtype="int8", budget=30): n for arm, n in flips.items()}
        rows = [row for s, n in specs.items() for seed in range(7)
                for row in attack(s, seed, n or 30, collapses=bool(n))]  # fmt: skip
        written(directory, attacks=specs, attacked=rows, seeds=tuple(range(7)), model=model)

    for experiment, make in (("faults", flips), ("protection_codes", codes), ("attacks", attacks)):
        for model in ("a", "b"):
            (tmp_path / experiment / model).mkdir(parents=True)
            make(tmp_path / experiment / model, model)
    assert list(security.there(tmp_path / "attacks")) == []
    studies = security.there(tmp_path)
    assert list(studies) == [f"{e}/{m}" for e in ("faults", "protection_codes", "attacks") for m in ("a", "b")]
    path = write_studies(studies, tmp_path / "docs", "security")
    text = path.read_text()
    for title in (
        "All models: how many flips does an adversary need?", "All models: where does protecting the critical share",
        "All models: how few weights hold the vulnerability?", "Faults, a: Which bits break the model when they flip?",
        "Protection, b: What does protection buy", "Protection, a: Do single flips foretell which protection is best?",
        "Attacks, b: How many flips does an adversary need?",
    ):  # fmt: skip
        assert f"## {title}" in text
    assert "(P5.4g, b) | holds | int8 unrestricted, random-super: 10.0 times [10.0, 10.0]" in text
    assert "(P5.4h, a) | fails | fails at 1 of 1: uniform bf16 1e-05 (secded-critical0.001 0.900 times" in text
    assert "(P5.4j, a) | holds | of 3 pairs of protections 2 are surely told apart, 2 of them as foretold" in text
    assert "| a | int8 | unrestricted | 2 [2, 2] | 20 [20, 20] | > 30 |" in text
    assert "uniform bf16: fails in 2, holds in 0 of 2." in text
    shown = set(re.findall(r"\]\((.+?\.svg)\)", text))
    assert {"security-protection_codes-a-foretold_chances.svg", "security-attacks-b-attack_ratios.svg"} <= shown
    assert shown == {p.name for p in path.parent.glob("*.svg")}
    assert write_studies({}, tmp_path / "docs", "security").read_text() == text


def test_the_document_on_security_copes_with_experiments_that_have_not_run(tmp_path):
    specs = [AttackSpec(arm="guided-super", dtype="int8", budget=9)]
    rows = [row for seed in (1, 2) for row in attack(specs[0], seed, 3)]
    (tmp_path / "attacks" / "a").mkdir(parents=True)
    written(tmp_path / "attacks" / "a", attacks=specs, attacked=rows, seeds=(1, 2), model="a")
    text = write_studies(security.there(tmp_path), tmp_path / "docs", "security").read_text()
    assert "## Attacks, a: How many flips does an adversary need?" in text
    assert "All models" not in text


def test_the_document_on_backdoors_has_all_bases_together_and_each_alone(tmp_path):
    for n, base in enumerate(("llama-0.3m", "neox-0.3m")):
        (tmp_path / "backdoors" / base).mkdir(parents=True)
        population(tmp_path / "backdoors" / base, base, models=15, parents=5, seed=n,
                   mitigations=({"kind": "reset-moved"}, {"kind": "reset-random"}))  # fmt: skip
    studies = backdoors.there(tmp_path)
    assert list(studies) == ["backdoors/llama-0.3m", "backdoors/neox-0.3m"]
    path = write_studies(studies, tmp_path / "docs", "backdoors")
    text = path.read_text()
    assert "from the studies of 2 models (`python -m experiments backdoors`)" in text
    for title in (
        "All bases: Does what betrays a backdoor in one base betray it in another?",
        "All bases: What removes a backdoor, and what does it cost?", "llama-0.3m: Do the backdoors work?",
        "neox-0.3m: Do the weights betray a backdoor?", "neox-0.3m: Which statistics betray it?",
        "llama-0.3m: What removes a backdoor, and what does it cost?",
    ):  # fmt: skip
        assert f"## {title}" in text
    assert text.index("All bases") < text.index("llama-0.3m: Do")
    assert all(f"(P5.4k, {of}) | " in text for of in ("all bases", "zoo:llama-0.3m", "zoo:neox-0.3m"))
    shown = set(re.findall(r"\]\((.+?\.svg)\)", text))
    assert {"backdoors-all-backdoor_bases.svg", "backdoors-llama-0.3m-roc_with_reference.svg"} <= shown
    assert shown == {p.name for p in path.parent.glob("*.svg")}
    assert write_studies({}, tmp_path / "docs", "backdoors").read_text() == text


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
