"""The report's caveats and Method speak of what a study has, whatever it is about."""

import re
from html import unescape

import pytest

import analysis
from esa_ray.spec import AttackSpec, FaultSpec
from esa_ray.spec.tuning import TuneSpec
from tests.analysis.attacked import attack, injected, written
from tests.analysis.compressed import compressed, prune
from tests.analysis.tuned import arms, tuned

#: What only a study of damaged sets, or one that ranks weights, can mean.
OF_SETS = ("groups differ", "matched_k", "at every strength", "A score is a first-order", "controls", "0 ok", "on –")


def text_of(study):
    html = analysis.write_report(study).read_text().split("<details><summary>The study's spec")[0]
    html = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def faulted(directory):
    fault = FaultSpec(rate=1e-5, repeats=3)
    rows = injected(fault, (1, 2, 3), 4)
    rows[2] |= {"status": "diverged"}
    rows = [*rows[:6], rows[6] | {"status": "error", "error": "out of memory"}]  # of a packet that failed, one row
    return written(directory, [fault], rows=rows)


def attacked(directory):
    arm = AttackSpec(arm="random", dtype="int8", budget=9)
    return written(directory, attacks=[arm], attacked=[r for n in (1, 2, 3) for r in attack(arm, n, 2 + n)])


def trained(directory):
    return tuned(directory, arms(), lambda s, n, *_: None if (s.arm, n) == ("lora", 2) else -0.1,
                 fails=[("full-lr0.001", 1)])  # fmt: skip


def pruned(directory):
    return compressed(directory, [prune("wanda")], lambda *_: 0.1)


@pytest.mark.parametrize(
    ("made", "title", "said"),
    [
        (faulted, "What do faults do to", "faults 6 injections in 3 packets, 1 of them diverged; of the packets 1"),
        (attacked, "What do attacks do to", "attacks 3: 3 ok, 0 diverged, 0 failed, 3 missing; 12 flips; 15.0 s"),
        (trained, "What is tuning", "tunings 24: 22 ok, 1 diverged, 1 failed, 25 missing; 24.0 s in all"),
        (pruned, "What does compressing", "compressions 3: 3 ok, 0 diverged, 0 failed, "),
    ],
)
def test_a_study_that_ranks_nothing_has_no_caveat_of_sets_and_says_what_it_has(tmp_path, made, title, said):
    text = text_of(made(tmp_path))
    assert [each for each in OF_SETS if each in text] == []
    assert title in text
    assert said in text
    assert "computed on here " in text
    assert "scores ;" not in text
    assert "cells 0" not in text


def test_the_method_of_tunings_names_their_target(tmp_path):
    study = tuned(tmp_path, [TuneSpec()], lambda *_: -0.1)
    data = study.spec["target"]
    assert (
        f"target away: {data['calibration_windows']} training and {study.spec['validation_windows']} validation "
        "windows per seed, 16 evaluation windows" in text_of(study)
    )


def test_a_study_of_sets_keeps_their_caveats(synthetic):
    text = text_of(synthetic[0])
    assert "The groups differ in more than their score" in text
    assert "controls random_k" in text
    assert "at every strength" not in text  # it zeroes, which draws nothing
