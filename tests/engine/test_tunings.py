"""Tunings as a grid without Ray: rows by look, checkpoints, saved models, and what a plan says of them."""

import json
import math

import numpy as np
import pytest

from esa_ray import data
from esa_ray.applications import tuning as core
from esa_ray.engine.work import Work
from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.measurements import MEASUREMENTS, tunings, unfinished
from esa_ray.measurements.target import check_judged_apart
from esa_ray.measurements.worker import Worker
from esa_ray.models.load import load_model, load_tokenizer
from esa_ray.models.sources import find
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, TuneSpec
from tests.tiny import state_bits

GRID = MEASUREMENTS["tunings"]
SHORT = {"steps": 6, "batch": 2, "looks": 3}
WAYS = (
    TuneSpec(learning_rate=1e-2, **SHORT),
    TuneSpec(arm="critical-source", fraction=0.1, learning_rate=1e-2, **SHORT),
    TuneSpec(learning_rate=1e-2, protect="ewc", rescore=2, **SHORT),
    TuneSpec(learning_rate=1e-2, damage=PerturbSpec(kind="gauss_noise", strength=0.5), damaged=5, **SHORT),
    TuneSpec(arm="lora", fraction=0.05, learning_rate=1e-2, **SHORT),
)
#: What a row says that isn't a result.
NOISE = ("seconds", "created", "worker")


@pytest.fixture
def working(tiny_study, tmp_path):
    """A worker of a study of tunings, in a directory of its own."""
    away = tmp_path / "away.txt"
    away.write_text("".join(f"def f{i}(x): return x + {i}\n" for i in range(400)))
    target = DataSpec(source=str(away), window=24, calibration_windows=5, evaluation_windows=3, batch_size=2)

    def of(name="study", ways=WAYS, **changes):
        asked = {"perturbations": (), "groups": ("super",), "scores": (), "target": target, "validation_windows": 2}
        spec = tiny_study.replace(**asked | {"tunings": ways, "seeds": (7,)} | changes)
        worker = Worker(spec, find(spec.model), str(tmp_path / name))
        found = worker.describe()
        worker.store.save_study(spec, found, found.pop("versions"))
        return worker

    return of


def measured(worker, units=None):
    for unit in GRID.asked(worker.spec, worker.store) if units is None else units:
        worker.measure("tunings", unit)
    return [row for name in worker.store.names("tunings") for row in worker.store.read("tunings", name).to_pylist()]


def told(rows):
    """(label, steps) → what came of it."""
    return {(row["label"], row["steps"]): {k: v for k, v in row.items() if k not in NOISE} for row in rows}


def left(worker):
    """The checkpoints that lie there."""
    return worker.store.location.names("unfinished")


def steps_taken(monkeypatch):
    """The steps that are taken from now on."""
    steps, real = [], core.course.Run._take
    monkeypatch.setattr(core.course.Run, "_take", lambda run: steps.append(run.step) or real(run))
    return steps


@pytest.fixture
def stopped(monkeypatch):
    """Let training end in an exception after so many looks in all."""

    def at(n):
        looks = []

        def look(*arguments):
            looks.append(arguments)
            if len(looks) == n:
                raise KeyboardInterrupt
            return real(*arguments)

        real = tunings._looked
        monkeypatch.setattr(tunings, "_looked", look)
        return lambda: monkeypatch.setattr(tunings, "_looked", real)

    return at


def test_every_look_has_a_row_and_the_model_is_as_it_was_whatever_was_tuned_before(working):
    worker = working("forth")
    before = state_bits(worker.model)
    forth = told(measured(worker))
    assert state_bits(worker.model) == before
    assert [steps for label, steps in forth if label == WAYS[0].label] == [2, 4, 6]
    assert len(forth) == 3 * len(WAYS) + 1
    assert {row["status"] for row in forth.values()} == {"ok"}
    assert [steps for (_, steps), row in forth.items() if row["last"]].count(6) == len(WAYS)
    again = working("back")
    assert told(measured(again, GRID.asked(again.spec, again.store)[::-1])) == forth
    assert not left(worker)


def test_a_row_has_the_losses_of_all_three_kinds_of_windows(working):
    worker = working(ways=WAYS[:1])
    rows = told(measured(worker))
    intact, first, last = rows["intact", 0], rows[WAYS[0].label, 2], rows[WAYS[0].label, 6]
    asked, tokenizer = worker.spec.target, load_tokenizer(worker.source)
    drawn = data.windows(asked.model_copy(update={"calibration_windows": 7}), tokenizer, (7,))
    assert intact["target_nll"] == evaluate(worker.model, drawn.evaluation, 2).nll
    assert intact["source_nll"] == evaluate(worker.model, worker.windows.evaluation, 2).nll
    assert (intact["validation_nll"], intact["seed"], intact["arm"]) == (None, None, None)
    assert np.array_equal(worker.target.train(7), drawn.calibration(7)[:5])
    assert np.array_equal(worker.target.validation(7), drawn.calibration(7)[5:])
    assert len(last["validation_nll"]) == 2
    assert sum(last["target_nll"]) < sum(first["target_nll"]) < sum(intact["target_nll"])
    assert (first["block_moved"], len(last["block_moved"])) == (None, 2)
    squares = sum(norm**2 for norm in last["component_moved"])
    assert math.sqrt(squares) == pytest.approx(last["delta_norm"])
    assert math.sqrt(sum(norm**2 for norm in last["block_moved"])) == pytest.approx(last["delta_norm"])
    assert 0 < first["delta_norm"] != last["delta_norm"]


@pytest.mark.parametrize("way", range(len(WAYS)))
@pytest.mark.parametrize("look", [2, 3])
def test_a_tuning_that_was_interrupted_goes_on_with_the_same_bits(working, stopped, monkeypatch, way, look):
    monkeypatch.setattr(unfinished, "SHARE", 1.0)  # so fast a disk isn't asked for
    whole = told(measured(working("whole", WAYS[way : way + 1])))
    worker = working("torn", WAYS[way : way + 1])
    _, unit = GRID.asked(worker.spec, worker.store)
    before, mend = state_bits(worker.model), stopped(look)
    with pytest.raises(KeyboardInterrupt):
        worker.measure("tunings", unit)
    assert state_bits(worker.model) == before
    assert len(left(worker)) == 1
    mend()
    steps = steps_taken(monkeypatch)
    assert told(measured(worker)) == whole
    assert steps == list(range(2 * (look - 1), 6))
    assert not left(worker)


def test_what_is_no_checkpoint_or_was_written_otherwise_is_begun_anew(working, stopped, monkeypatch):
    monkeypatch.setattr(unfinished, "SHARE", 1.0)
    whole = told(measured(working("whole", WAYS[:1])))
    for name, torn in (
        ("version", lambda content: content.replace(b"torch=", b"torch=9")),
        ("bit", lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]),
        ("half", lambda content: content[: len(content) // 2]),
    ):
        worker = working(name, WAYS[:1])
        mend = stopped(2)
        with pytest.raises(KeyboardInterrupt):
            measured(worker)
        mend()
        (file,) = (worker.store.location.path / "unfinished").iterdir()
        assert file.read_bytes() != torn(file.read_bytes())
        file.write_bytes(torn(file.read_bytes()))
        rows = told(measured(worker))
        assert [steps for _, steps in rows if steps] == [2, 4, 6]
        assert rows == whole


def test_a_failure_leaves_an_error_row_and_the_checkpoint_from_which_the_next_try_goes_on(working, monkeypatch):
    monkeypatch.setattr(unfinished, "SHARE", 1.0)
    whole = told(measured(working("whole", WAYS[:1])))
    worker = working(ways=WAYS[:1])
    *_, unit = GRID.asked(worker.spec, worker.store)
    with monkeypatch.context() as broken:
        real, seen = tunings._looked, []
        broken.setattr(tunings, "_looked", lambda *a: seen.append(1) or (1 / 0 if len(seen) == 2 else real(*a)))
        (row,) = measured(worker, [unit])
    assert (row["status"], row["arm"], row["steps"]) == ("error", "full", None)
    assert "ZeroDivisionError" in row["error"]
    assert unit in GRID.missing(worker.spec, worker.store)
    assert unit not in GRID.missing(worker.spec, worker.store, failed=False)
    assert len(left(worker)) == 1
    assert told(measured(worker)) == whole
    assert not left(worker)


def test_training_that_diverges_is_an_outcome_with_rows_up_to_that_look(working, tmp_path):
    hot = TuneSpec(learning_rate=1e30, **SHORT)
    worker = working(ways=(hot,), save_models=str(tmp_path / "homes"))
    before = state_bits(worker.model)
    rows = [row for row in measured(worker) if row["label"] == hot.label]
    assert rows[-1]["status"] == "diverged"
    assert rows[-1]["steps"] < 6
    assert rows[-1]["saved"] is None
    assert not (tmp_path / "homes").exists()
    assert state_bits(worker.model) == before
    assert GRID.counts(worker.spec, worker.store, worker.resolved) == {"ok": 1, "diverged": 1}
    assert not GRID.missing(worker.spec, worker.store)


def test_what_cant_be_tuned_leaves_the_others_a_result(working):
    few = TuneSpec(arm="magnitude", fraction=1e-9, **SHORT)
    worker = working(ways=(few, WAYS[0]))
    rows = told(measured(worker))
    assert "is not one; raise it" in rows[few.label, None]["error"]
    assert rows[WAYS[0].label, 6]["status"] == "ok"
    assert len(GRID.missing(worker.spec, worker.store)) == 1


def test_ids_go_by_what_both_texts_say_and_not_by_where_they_lie(working, tmp_path):
    def ids(worker):
        return {unit.name: GRID.id_of(unit, worker.spec, worker.resolved) for unit in GRID.asked(worker.spec, None)}

    worker = working()
    found = ids(worker)
    assert len(set(found.values())) == len(WAYS) + 1
    target, resolved = worker.spec.target, worker.resolved
    (tmp_path / "moved.txt").write_bytes((tmp_path / "away.txt").read_bytes())
    moved = target.model_copy(update={"source": str(tmp_path / "moved.txt")})
    assert ids(working("moved", target=moved)) == found
    (tmp_path / "more.txt").write_text((tmp_path / "away.txt").read_text() + "print(1)\n")
    more = target.model_copy(update={"source": str(tmp_path / "more.txt")})
    for others in (
        ids(working("more", target=more)),
        ids(working("validation", validation_windows=3)),
        ids(working("longer", target=target.model_copy(update={"calibration_windows": 6}))),
        ids(working("source", data=worker.spec.data.model_copy(update={"calibration_windows": 3}))),
    ):
        assert not set(others.values()) & set(found.values())
    assert resolved.target == worker.describe()["target"]


@pytest.mark.parametrize("how", [WAYS[1], WAYS[-1]], ids=lambda how: how.arm)
def test_a_saved_model_measured_again_has_the_stored_loss_and_says_what_it_was_made_of(working, tmp_path, how):
    worker = working(ways=(how,), save_models=str(tmp_path / "homes"))
    row = told(measured(worker))[how.label, 6]
    assert row["saved"] == str(tmp_path / "homes" / f"{how.label}-s7")
    home = find(ModelSpec(source=row["saved"]))
    assert home.fingerprint != worker.source.fingerprint
    model = load_model(home, worker.dtype, "cpu")
    assert evaluate(model, worker.target.evaluation, 2).nll == row["target_nll"]
    assert evaluate(model, worker.windows.evaluation, 2).nll == row["source_nll"]
    record = json.loads((tmp_path / "homes" / f"{how.label}-s7" / "esa_edit.json").read_text())
    assert record["parent"]["fingerprint"] == worker.source.fingerprint
    assert record["edit"] | how.content() == record["edit"]
    assert (record["edit"]["kind"], record["seed"]) == ("tune", 7)
    assert record["edit"]["target"]["text"] == worker.resolved.target
    assert record["edit"]["data"]["text"] == worker.resolved.text
    assert record["training"]["text"] == worker.spec.target.source
    assert record["training"]["fingerprint"] == worker.resolved.target
    assert f"{row['trainable']:,} numbers" in record["summary"]
    assert not GRID.missing(worker.spec, worker.store)


def test_a_model_that_is_to_be_saved_is_missing_until_it_is_there_and_was_tuned_to_this_text(working, tmp_path):
    homes = tmp_path / "homes"
    measured(working(ways=WAYS[:1]))
    worker = working(ways=WAYS[:1], save_models=str(homes))
    _, unit = GRID.asked(worker.spec, worker.store)
    assert GRID.missing(worker.spec, worker.store) == [unit]
    assert len(measured(worker, [unit])) == 4  # the intact model's row and its own, none twice
    assert not GRID.missing(worker.spec, worker.store)
    file = homes / f"{WAYS[0].label}-s7" / "esa_edit.json"
    record = json.loads(file.read_text())
    record["edit"]["target"]["text"] = "another"
    file.write_text(json.dumps(record))
    assert GRID.missing(worker.spec, worker.store) == [unit]


def test_a_directory_with_another_saved_model_is_refused_before_anything_is_trained(working, tmp_path, monkeypatch):
    homes = str(tmp_path / "homes")
    measured(working("one", WAYS[:1], save_models=homes))
    longer = WAYS[0].model_copy(update={"steps": 7})
    worker = working("two", (longer,), save_models=homes)
    _, unit = GRID.asked(worker.spec, worker.store)
    monkeypatch.setattr(core.course.Run, "_take", None)
    with pytest.raises(EsaError, match="holds another saved model; name another directory"):
        measured(worker, [unit])


def test_a_save_that_fails_is_the_users_to_mend_and_the_last_checkpoint_stays(working, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "SHARE", 1.0)
    worker = working(ways=WAYS[:1], save_models=str(tmp_path / "homes"))
    (tmp_path / "homes").touch()
    with pytest.raises(EsaError, match="homes can't be written"):
        measured(worker)
    (tmp_path / "homes").unlink()
    steps = steps_taken(monkeypatch)
    assert told(measured(worker))[WAYS[0].label, 6]["saved"]
    assert steps == [4, 5]


@pytest.mark.parametrize(
    ("ways", "passes"),
    [
        (WAYS[:1], 0),
        (WAYS[:2], 4),
        # Fisher information at first and before steps 2 and 4 of each of two seeds' tunings.
        (WAYS[2:3], 4 + 2 * 4),
        ((TuneSpec(arm="critical-target", fraction=0.1, **SHORT),), 5),
        ((*WAYS[1:3], TuneSpec(arm="bottom", fraction=0.1, score="act_mag", **SHORT)), 4 + 4 + 2 * 4),
    ],
)
def test_a_plan_counts_the_passes_that_are_made(working, monkeypatch, ways, passes):
    worker = working(ways=ways)
    found, seen = GRID.cost(worker.spec), {"forward": 0, "backward": 0}

    def forward(module, arguments, options, output):
        n, tokens = (arguments[0] if arguments else options["input_ids"]).shape
        n *= tokens == worker.spec.data.window  # a few tokens are tried first, to see how the model uses its weights
        seen["forward"] += n
        if output.logits.requires_grad:
            output.logits.register_hook(lambda _: seen.update(backward=seen["backward"] + n))

    worker.model.register_forward_hook(forward, with_kwargs=True)
    measured(worker)
    assert found.backward_passes == len(ways) * 6 * 2 + passes
    assert seen == {"forward": found.forward_passes, "backward": found.backward_passes}


def test_a_text_that_is_both_is_cut_into_the_same_windows(tiny_study):
    same = tiny_study.data.model_copy(update={"calibration_windows": 50, "batch_size": 4})
    spec = tiny_study.replace(tunings=WAYS, target=same)
    check_judged_apart(spec, "text", "text")
    for field, value in (("window", 25), ("bos", "always"), ("evaluation_windows", 6)):
        other = spec.replace(target=same.model_copy(update={field: value}))
        check_judged_apart(other, "text", "another")
        with pytest.raises(EsaError, match=f"is the text of --data, cut into other windows \\({field}\\)"):
            check_judged_apart(other, "text", "text")


def rows(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def own(words, n=120):
    """Documents of nothing that other words have."""
    return [" ".join(f"{words[i * j % len(words)]}{i * 31 % 97}" for j in range(1, 9)) for i in range(1, n)]


def test_documents_that_both_texts_have_are_neither_trained_on_nor_do_they_judge_the_gain(working, tmp_path):
    ours, both, theirs = own(["ash", "oak", "elm"]), own(["sun", "moon"]), own(["def", "class", "pass", "return"])
    source = rows(tmp_path / "source.jsonl", [*ours, *both])
    target = rows(tmp_path / "target.jsonl", [*both[::-1], *theirs])
    cut = {"window": 24, "evaluation_windows": 3, "batch_size": 2}
    worker = working(
        data=DataSpec(source=source, calibration_windows=4, **cut),
        target=DataSpec(source=target, calibration_windows=5, **cut), seeds=(7, 8),
    )  # fmt: skip
    wanted = data.windows(
        DataSpec(source=rows(tmp_path / "theirs.jsonl", theirs), calibration_windows=7, **cut),
        load_tokenizer(worker.source), (7, 8),
    )  # fmt: skip
    assert np.array_equal(worker.target.evaluation, wanted.evaluation)
    for seed in (7, 8):
        both_kinds = np.concatenate([worker.target.train(seed), worker.target.validation(seed)])
        assert np.array_equal(both_kinds, wanted.calibration(seed))
    assert worker.resolved.target == data.text_fingerprint([*both[::-1], *theirs])
    told = worker.describe()["target_left_out"]
    assert told.startswith("119 documents (")
    work = Work.of(worker.spec, tmp_path / "new")
    work.read_text()
    assert work.remarks == [f"{told} of --target {target} stand in --data, too, and are left out of it"]


def test_a_target_that_the_source_holds_whole_is_refused_before_ray_starts(working, tmp_path):
    both = own(["sun", "moon"])
    cut = {"window": 24, "calibration_windows": 4, "evaluation_windows": 3}
    spec = working().spec.replace(
        data=DataSpec(source=rows(tmp_path / "source.jsonl", [*own(["ash", "oak"]), *both]), **cut),
        target=DataSpec(source=rows(tmp_path / "target.jsonl", both), **cut),
    )
    with pytest.raises(EsaError, match=r"--target \S+ holds nothing that --data \S+ doesn't hold, too; give another"):
        Work.of(spec, tmp_path / "new").read_text()


@pytest.mark.parametrize("header", [0, 20, 40])
@pytest.mark.parametrize(
    ("mine", "theirs"), [(slice(0, 900), slice(5, 900)), (slice(0, 500), slice(400, 900)), (slice(0, 900), slice(700))]
)
def test_texts_that_are_the_same_in_part_without_a_paragraph_to_tell_it_by_are_refused(
    working, tmp_path, mine, theirs, header
):
    lines = [f"def f{i}(x): return x + {i * 7919 % 1000}\n" for i in range(900)]
    (tmp_path / "one.txt").write_text("".join(lines[mine]))
    (tmp_path / "other.txt").write_text("#" * header + "".join(lines[theirs]))
    cut = {"window": 64, "calibration_windows": 20, "evaluation_windows": 30}
    texts = [DataSpec(source=str(tmp_path / name), **cut) for name in ("one.txt", "other.txt")]
    for n, (source, target) in enumerate([texts, texts[::-1]]):
        with pytest.raises(
            EsaError, match=r"are the same in part: \d+ of 30 windows that judge .* leave that part out"
        ):
            working(f"study{n}", data=source, target=target)


@pytest.mark.parametrize(("names", "window"), [(("pydoc", "pysource"), 128), (("pysource", "pydoc"), 64)])
def test_the_default_texts_keep_their_windows(working, names, window):
    cut = {"window": window, "evaluation_windows": 32, "batch_size": 8}
    source, target = (
        DataSpec(source=name, calibration_windows=n, **cut) for name, n in zip(names, (32, 256), strict=True)
    )
    worker = working(data=source, target=target, validation_windows=16, seeds=(1337, 123, 999))
    tokenizer = load_tokenizer(worker.source)
    plain = data.windows(target.model_copy(update={"calibration_windows": 272}), tokenizer, worker.spec.seeds)
    assert np.array_equal(worker.target.evaluation, plain.evaluation)
    assert all(np.array_equal(worker.target.windows.calibration(s), plain.calibration(s)) for s in worker.spec.seeds)
    assert "target_left_out" not in worker.describe()


def test_a_text_that_is_source_and_target_stays_whole(working):
    same = working().spec.data
    worker = working("same", data=same, target=same.model_copy(update={"calibration_windows": 5}), validation_windows=2)
    assert np.array_equal(worker.target.evaluation, worker.windows.evaluation)
    assert len(worker.target.train(7)) == 5


def test_a_target_that_is_too_short_is_told_by_its_own_options(working, tmp_path):
    (tmp_path / "short.txt").write_text(" ".join(map(str, range(60))))
    short = DataSpec(source=str(tmp_path / "short.txt"), window=24, calibration_windows=5, evaluation_windows=3)
    with pytest.raises(EsaError, match=r"the text of --target holds \d+ .+ lower --target-windows, --eval-windows"):
        working(target=short)


def test_a_target_that_changed_under_the_same_name_is_refused_before_ray_starts(working, tmp_path):
    worker = working(ways=WAYS[:1])
    measured(worker)
    work = Work.of(worker.spec, tmp_path / "study")
    work.read_text()
    assert (work.resolved, work.lacks) == (worker.resolved, True)  # nobody has measured the baseline
    (tmp_path / "away.txt").write_text((tmp_path / "away.txt").read_text() + "x = 1\n")
    with pytest.raises(EsaError, match=r"was made with another target under the same name \(--target\)"):
        work.read_text()
    with pytest.raises(EsaError, match="sees another text under --target"):
        Worker(worker.spec, worker.source, str(tmp_path / "study"), target=worker.resolved.target)


def test_a_target_without_tunings_or_the_other_way_round_is_refused(tiny_study):
    with pytest.raises(ValueError, match="--target is missing"):
        tiny_study.replace(tunings=WAYS)
    with pytest.raises(ValueError, match="--target is the text that tunings are to"):
        tiny_study.replace(target=tiny_study.data)


def test_damage_that_always_rounds_away_is_refused_once_the_dtype_is_known(working, tiny_study):
    slight = TuneSpec(damage=PerturbSpec(kind="scale", strength=1.001), **SHORT)
    working(ways=(slight,))
    half = tiny_study.model.model_copy(update={"dtype": "bf16"})
    with pytest.raises(EsaError, match=r"scale-1.001 can never change a weight in bf16"):
        working(ways=(slight,), model=half)
