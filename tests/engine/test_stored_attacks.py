"""Attacks as a grid without Ray: rows by flip, checkpoints, ids, and what a model is afterwards."""

import math

import numpy as np
import pytest
import torch

from esa_ray import data
from esa_ray.measurements import MEASUREMENTS, unfinished
from esa_ray.measurements.worker import Worker
from esa_ray.models.load import load_model, load_tokenizer
from esa_ray.models.sources import find
from esa_ray.security import assault
from esa_ray.spec import AttackSpec, FaultSpec, ModelSpec
from esa_ray.spec.security import ATTACKS
from tests.tiny import state_bits

GRID = MEASUREMENTS["attacks"]
#: What a row says that isn't a result.
NOISE = ("seconds", "created", "worker")
FEW = {"search_windows": 2, "selection_windows": 2, "candidates": 2, "tries": 3, "budget": 3, "k": 5}


def asked(arm, **more):
    return AttackSpec(arm=arm, **{"dtype": "int8", **FEW, **more})


@pytest.fixture(scope="module")
def able(tiny_study, tmp_path_factory):
    """The tiny study, of a model that has learnt how often its text has which bytes: one by chance has collapsed."""
    source = find(tiny_study.model)
    model, tokenizer = load_model(source, "fp32", "cpu"), load_tokenizer(source)
    windows = torch.from_numpy(data.windows(tiny_study.data, tokenizer, (1,)).tokens[:64].astype(np.int64))
    optimizer = torch.optim.Adam(model.requires_grad_().parameters(), lr=1e-2)
    for batch in windows.split(8) * 5:
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    place = tmp_path_factory.mktemp("able")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return tiny_study.replace(model=ModelSpec(source=str(place)))


@pytest.fixture
def working(able, tmp_path):
    """A worker of a study of attacks, in a directory of its own."""

    def of(attacks, place="study", **changes):
        spec = able.replace(
            perturbations=(), groups=("super",), scores=(), attacks=tuple(attacks), seeds=(7,), **changes
        )
        worker = Worker(spec, find(spec.model), str(tmp_path / place))
        found = worker.describe()
        worker.store.save_study(spec, found, found.pop("versions"))
        return worker

    return of


def measured(worker):
    for unit in GRID.asked(worker.spec, worker.store):
        worker.measure("attacks", unit)
    return [row for name in worker.store.names("attacks") for row in worker.store.read("attacks", name).to_pylist()]


def told(rows):
    return {(row["label"], row["step"]): {k: v for k, v in row.items() if k not in NOISE} for row in rows}


@pytest.fixture
def stopped(monkeypatch):
    """Let attacks end in an exception after so many reports in all; returns what mends them."""

    def at(n):
        seen, real = [], assault.attack

        def attack(*arguments, report, **options):
            def counted():
                seen.append(1)
                if len(seen) == n:
                    raise KeyboardInterrupt
                return report()

            return real(*arguments, report=counted, **options)

        monkeypatch.setattr(assault, "attack", attack)
        return lambda: monkeypatch.setattr(assault, "attack", real)

    return at


def test_every_arm_has_a_row_of_the_stored_model_and_one_a_flip_and_leaves_the_model_as_it_was(working):
    worker = working([asked(arm) for arm in ATTACKS])
    before = state_bits(worker.model)
    rows = measured(worker)
    assert state_bits(worker.model) == before
    for arm in ATTACKS:
        mine = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["step"])
        assert [row["step"] for row in mine] == list(range(len(mine)))
        assert [row["last"] for row in mine] == [False] * (len(mine) - 1) + [True]
        assert mine[0]["nll"] == mine[0]["stored_nll"] != mine[0]["intact_nll"]
        assert (mine[0]["bit"], mine[0]["bits_spent"], mine[0]["vocabulary"]) == (None, 0, 258)
        assert [row["bits_spent"] for row in mine] == list(range(len(mine)))  # without a protection a bit a flip
        for row in mine:
            mean = sum(row["nll"]) / sum(row["tokens"])
            assert row["collapsed"] == (not mean < math.log(258))
        assert (mine[-1]["k"], mine[-1]["draw"]) == (
            5 if "-" in arm and arm != "data-free" else None, 0 if "random" in arm or "matched" in arm else None
        )  # fmt: skip


@pytest.mark.parametrize("arm", ["guided", "guided-random", "random", "data-free"])
@pytest.mark.parametrize("report", [2, 4])
def test_an_attack_that_was_interrupted_goes_on_to_the_same_table(working, stopped, monkeypatch, arm, report):
    monkeypatch.setattr(unfinished, "SHARE", 1.0)  # so fast a disk isn't asked for
    quiet = {"threat": "stealthy"}  # which leaves more than one flip before collapse
    whole = told(measured(working([asked(arm, **quiet)], "whole")))
    worker = working([asked(arm, **quiet)], "torn")
    (unit,) = GRID.asked(worker.spec, worker.store)
    before, mend = state_bits(worker.model), stopped(report)
    with pytest.raises(KeyboardInterrupt):
        worker.measure("attacks", unit)
    assert state_bits(worker.model) == before
    assert len(worker.store.location.names("unfinished")) == 1
    mend()
    assert repr(told(measured(worker))) == repr(whole)
    assert not worker.store.location.names("unfinished")


def test_protection_costs_an_adversary_bits(working):
    ways = [asked("random", protect=protect, budget=2) for protect in ("none", "secded", "parity-zero")]
    rows = {(row["protect"], row["step"]): row for row in measured(working(ways))}
    assert rows["none", 1]["bits_flipped"] == 1
    assert rows["secded", 1]["bits_flipped"] in (3, 5)
    assert rows["parity-zero", 1]["bits_flipped"] == 2
    assert rows["secded", 2]["bits_spent"] == rows["secded", 1]["bits_flipped"] + rows["secded", 2]["bits_flipped"]
    assert rows["secded", 1]["overhead"] == pytest.approx(0.125, abs=1e-3)


def test_an_attack_without_enough_windows_is_refused_before_anything_is_loaded(tiny_study):
    with pytest.raises(ValueError, match="are 5 of the 4 calibration windows; raise --max-samples"):
        tiny_study.replace(attacks=(asked("guided", search_windows=3),))
    tiny_study.replace(attacks=(asked("random", search_windows=3),))  # which looks at none


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"faults": (FaultSpec(rate=0.1), FaultSpec(rate=0.1, repeats=9))}, "two faults called uniform-bf16-0.1-none"),
        ({"attacks": (AttackSpec(), AttackSpec(budget=9))}, "two attacks called guided-bf16-unrestricted-none"),
        (
            {"attacks": tuple(AttackSpec(arm="random-super", score=s) for s in ("magnitude", "grad_squared"))},
            "attacks go by grad_squared and by magnitude",
        ),
        (
            {"faults": tuple(FaultSpec(fault="single", score=s) for s in ("magnitude", "grad_squared"))},
            "single flips go by grad_squared and by magnitude",
        ),
    ],
)
def test_two_that_reports_could_not_tell_apart_are_refused(tiny_study, changes, said):
    data = tiny_study.data.model_copy(update={"calibration_windows": 16})
    with pytest.raises(ValueError, match=said):
        tiny_study.replace(data=data, **changes)


def test_ids_go_by_what_is_asked(working):
    def ids(worker):
        return {GRID.id_of(unit, worker.spec, worker.resolved) for unit in GRID.asked(worker.spec, worker.store)}

    plain = working([asked("guided-random")])
    assert ids(plain) == ids(working([asked("guided-random")], "again"))
    for field, value in (("draw", 1), ("threat", "stealthy"), ("budget", 4), ("k", 6), ("protect", "clamp")):
        assert not ids(plain) & ids(working([asked("guided-random", **{field: value})], field))


def test_an_attack_that_no_seed_changes_is_made_by_the_first_alone(working):
    ways = [asked("data-free"), asked("guided"), asked("data-free", protect="tmr-critical", critical=0.01)]
    worker = working(ways)
    spec = worker.spec.replace(seeds=(7, 8, 9))
    units = GRID.asked(spec, worker.store)
    assert [unit.name.rpartition("-s")[2] for unit in units] == ["7", *"789", *"789"]  # scores are a seed's
    assert GRID.cost(spec).count == 7


def test_the_driver_hears_what_all_steps_of_an_attack_took_and_how_it_ended():
    def row(nll, seconds):
        return {"status": "ok", "nll": [nll, nll], "tokens": [2, 2], "stored_nll": [2.0, 2.0], "seconds": seconds}

    told = GRID.heard([row(2.0, 1.0), row(3.0, 4.0), row(5.0, 2.5)])
    assert (told["seconds"], sum(told["tokens"]), told["intact"]) == (7.5, 12, 1.0)
    assert told["nll"][0] / told["tokens"][0] == 2.5
    assert GRID.heard([{"status": "error", "error": "no"}])["nll"] is None
