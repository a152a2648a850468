import contextlib
import errno
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esa_ray import schema
from esa_ray.errors import EsaError
from esa_ray.identity import IDENTITY_VERSION
from esa_ray.measurements.missing import resolution
from esa_ray.models.sources import Source
from esa_ray.schema import TABLES
from esa_ray.spec import ModelSpec, PerturbSpec, StudySpec
from esa_ray.storage.location import Location
from esa_ray.storage.store import Store

FIXED = {
    "cells": "cell_id study model dtype data metric mode k seed group perturbation strength status error n_weights "
    "n_changed delta_norm nll tokens hits seconds device version created",
    "baselines": "study model dtype data status error nll tokens hits seconds device version created",
    "rankings": "model metric mode seed group rank tensor layer component expert row col score weight",
    "score_stats": "model metric seed tensor layer component expert n mean std min max quantiles "
    "top1pct_over_median gini",
}
SPEC = StudySpec(name="s", model=ModelSpec(source="m"), perturbations=(PerturbSpec(kind="zero"),))


def write_atomically(path, content):
    Location(path.parent).write(path.name, content)


def everything_under(path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*")}


@pytest.mark.parametrize("table", FIXED)
def test_the_columns_that_design_fixes_are_there(table):
    assert set(FIXED[table].split()) <= set(schema.TABLES[table].names)
    assert all(field.metadata[b"doc"] for field in schema.TABLES[table])


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("existing", [None, b"old"])
def test_a_write_that_fails_leaves_what_was_there_and_no_debris(tmp_path, monkeypatch, step, existing):
    target = tmp_path / "deep" / "file"
    if existing is not None:
        write_atomically(target, existing)
    before = everything_under(tmp_path) | {"deep"}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(EsaError, match="no space") as caught:
        write_atomically(target, b"new")
    assert str(target) in str(caught.value)
    assert everything_under(tmp_path) == before
    assert existing is None or target.read_bytes() == existing


def test_no_half_file_is_ever_seen_under_the_final_name(tmp_path, monkeypatch):
    target, seen = tmp_path / "file", []
    real = os.replace

    def spy(source, destination):
        seen.append((target.read_bytes(), Path(source).read_bytes(), Path(source).parent == tmp_path))
        real(source, destination)

    write_atomically(target, b"old")
    monkeypatch.setattr(os, "replace", spy)
    write_atomically(target, b"new" * 1000)
    assert seen == [(b"old", b"new" * 1000, True)]
    assert target.read_bytes() == b"new" * 1000


def test_writing_under_a_file_says_so(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EsaError, match="out-dir"):
        write_atomically(tmp_path / "file" / "below", b"new")
    assert everything_under(tmp_path) == {"file"}


def rows(*ids: str) -> list[dict]:
    return [{"cell_id": i, "status": "ok", "nll": [0.1, float("inf")], "tokens": [3, 3], "strength": None} for i in ids]


def test_rows_read_back_as_they_were_written_with_nulls_and_infinities(tmp_path):
    store = Store(tmp_path)
    store.write("cells", "a", rows("x", "y"))
    raw = pq.read_table(tmp_path / "cells" / "a.parquet").to_pylist()
    assert [r["cell_id"] for r in raw] == ["x", "y"]
    assert raw[0]["nll"] == [0.1, float("inf")]
    assert raw[0]["strength"] is None
    assert raw[0]["error"] is None
    assert store.read("cells", "a").to_pylist() == raw
    assert store.read("cells", "a", ["status"]).column_names == ["status"]


def test_writing_twice_leaves_one_file_and_the_last_content(tmp_path):
    store = Store(tmp_path)
    store.write("cells", "a", rows("x"))
    store.write("cells", "a", rows("z"))
    assert everything_under(tmp_path) == {"cells", "cells/a.parquet"}
    assert store.cell_statuses() == {"z": "ok"}


def test_statuses_are_collected_over_all_files_and_scratch_files_are_no_rows(tmp_path):
    store = Store(tmp_path)
    assert store.cell_statuses() == {}
    store.write("cells", "a", rows("x"))
    store.write("cells", "b", [{"cell_id": "y", "status": "diverged"}])
    (tmp_path / "cells" / ".c.parquet.99.tmp").write_bytes(b"half")
    assert store.cell_statuses() == {"x": "ok", "y": "diverged"}
    assert store.names("cells") == ["a", "b"]


def test_a_row_that_does_not_fit_the_schema_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises((pa.ArrowException, TypeError, ValueError)):
        Store(tmp_path).write("cells", "a", [{"cell_id": "x", "k": "many"}])
    assert everything_under(tmp_path) == set()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"garbage" * 50, "truncated", "decapitated"])
def test_a_corrupt_file_is_named_in_an_esa_error(tmp_path, content):
    store = Store(tmp_path)
    store.write("cells", "broken", rows("x"))
    path = tmp_path / "cells" / "broken.parquet"
    whole = path.read_bytes()
    if isinstance(content, str):
        content = whole[:-20] if content == "truncated" else b"\0" * 40 + whole[len(whole) // 2 :]
    path.write_bytes(content)
    for read in (lambda: store.read("cells", "broken"), store.cell_statuses):
        with pytest.raises(EsaError) as caught:
            read()
        assert str(path) in str(caught.value)


def test_one_wrong_byte_anywhere_is_either_harmless_or_an_esa_error(tmp_path):
    store = Store(tmp_path)
    store.write("cells", "broken", rows("x"))
    path = tmp_path / "cells" / "broken.parquet"
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 400)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        with contextlib.suppress(EsaError):  # anything else, a crash of the reader say, comes through
            store.read("cells", "broken")


@pytest.mark.parametrize("metadata", [None, {"esa_ray.schema": "0"}])
def test_a_file_of_another_schema_version_is_refused_by_name(tmp_path, metadata):
    path = tmp_path / "cells" / "old.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"cell_id": ["x"]}).replace_schema_metadata(metadata), path)
    with pytest.raises(EsaError, match="schema version") as caught:
        Store(tmp_path).read("cells", "old")
    assert str(path) in str(caught.value)


def test_a_fresh_directory_can_be_claimed_and_nothing_is_resolved_yet(tmp_path):
    assert Store(tmp_path / "new").claim(SPEC) is None
    assert Store(tmp_path).claim(SPEC) is None


def test_the_same_study_claims_its_directory_again_and_learns_what_was_resolved(tmp_path):
    store = Store(tmp_path)
    store.save_study(SPEC, {"model": "abc"}, {"torch": "2"})
    assert store.claim(SPEC.replace()) == {"model": "abc"}
    content = json.loads((tmp_path / "study.json").read_text())
    assert StudySpec.model_validate(content["spec"]) == SPEC


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"topk": (7,)}, "topk"),
        ({"data": {"window": 64, "batch_size": 8}}, "data.window"),
        ({"model": {"source": "other"}}, "model.source"),
        ({"perturbations": ()}, "perturbations"),
        ({"seeds": (1, 2)}, "seeds"),
    ],
)
def test_another_study_is_refused_and_the_field_that_differs_is_named(tmp_path, changes, field):
    store = Store(tmp_path)
    store.save_study(SPEC, {}, {})
    store.write("cells", "a", rows("x"))
    with pytest.raises(EsaError) as caught:
        store.claim(SPEC.replace(**changes))
    named = str(caught.value).partition("differs in ")[2].partition(")")[0]
    assert named.split(", ") == [field]


def test_a_study_of_the_former_batches_is_told_how_to_go_on(tmp_path):
    store, then = Store(tmp_path), SPEC.replace(data={"window": 64, "batch_size": 8})
    store.save_study(then, {}, {})
    store.write("cells", "a", rows("x"))
    with pytest.raises(EsaError, match="it was made with and --batch-size 8"):
        store.claim(SPEC.replace(data={"window": 64}))


def test_a_study_that_computed_nothing_gives_its_place_to_the_mended_command(tmp_path):
    store = Store(tmp_path)
    store.save_study(SPEC, {"model": "abc"}, {})
    assert store.claim(SPEC.replace(topk=(1,))) is None


def test_a_study_of_a_time_before_chat_rows_is_the_same_study(tmp_path):
    store = Store(tmp_path)
    store.save_study(SPEC, {"model": "abc"}, {})
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["spec"]["data"].pop("chat") is False
    (tmp_path / "study.json").write_text(json.dumps(content))
    store.write("cells", "a", rows("x"))
    assert store.claim(SPEC) == {"model": "abc"}
    with pytest.raises(EsaError, match=r"differs in data\.chat"):
        store.claim(SPEC.replace(data=SPEC.data.model_copy(update={"chat": True})))


# -- a place where another study has no answer yet

FOUND = {"model": "abc", "dtype": "fp32", "text": "def"}
RANKED = "grad_x_weight-per_layer-s1337"


def prepared(directory, spec=SPEC) -> Store:
    """A study that stored its baseline and a ranking, and then was refused."""
    store = Store(directory)
    store.save_study(spec, FOUND, {})
    store.write("baselines", "baseline", [{"study": "s"}])
    for table in ("rankings", "score_stats"):
        store.write(table, RANKED, [{"metric": "grad_x_weight"}])
    return store


def contents(directory) -> dict[str, bytes]:
    return {
        name: (directory / name).read_bytes() for name in everything_under(directory) if (directory / name).is_file()
    }


@pytest.mark.parametrize("status", [None, "error"])
def test_a_mended_command_gets_the_place_and_keeps_the_baseline_and_nothing_is_lost(tmp_path, status):
    store = prepared(tmp_path, SPEC.replace(topk=(1_000_000,)))
    if status:
        store.write("cells", "a", [{"cell_id": "x", "status": status}])
    before = contents(tmp_path)
    assert store.claim(SPEC) is None
    assert contents(tmp_path) == before  # who only looks moves nothing
    folder = store.make_way(SPEC, FOUND)
    assert folder.startswith("former-")
    assert store.names("baselines") == ["baseline"]
    assert [store.names(t) for t in ("rankings", "score_stats", "cells")] == [[], [], []]
    # What was put aside is a place by itself, in which the former command goes on.
    former = Store(tmp_path / folder)
    assert former.claim(SPEC.replace(topk=(1_000_000,))) == FOUND
    assert former.names("rankings") == [RANKED]
    after = contents(tmp_path)
    assert set(before.values()) <= set(after.values())


@pytest.mark.parametrize(
    ("then", "now", "stay"),
    [
        ({"topk": (7, 9)}, {"topk": (5, 9)}, True),  # scored at the same largest k
        ({"repeats": 2}, {"repeats": 3}, True),
        ({"topk": (7,)}, {"topk": (9,)}, False),
        ({"groups": ("super",)}, {"groups": ("super", "random_k")}, False),
        ({}, {"perturbations": (PerturbSpec(kind="gradient_aligned"),)}, False),
        ({}, {"seeds": (2,)}, False),
        ({}, {"seeds": (1337, 2)}, True),
        ({}, {"scores": ({"metric": "grad_x_weight", "components": ("down",)},)}, False),
    ],
)
def test_a_ranking_stays_only_where_it_would_come_out_the_same(tmp_path, then, now, stay):
    store = prepared(tmp_path, SPEC.replace(**then))
    assert store.claim(SPEC.replace(**now)) is None
    folder = store.make_way(SPEC.replace(**now), FOUND)
    assert (folder is None) == stay
    assert store.names("rankings") == ([RANKED] if stay else [])
    assert store.names("baselines") == ["baseline"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"data": {"window": 64}}, FOUND), ({}, FOUND | {"model": "other"}), ({}, FOUND | {"dtype": "bf16"})],
)
def test_a_baseline_of_another_model_dtype_or_text_is_put_aside(tmp_path, changes, found):
    store = prepared(tmp_path)
    store.make_way(SPEC.replace(**changes), found)
    assert store.names("baselines") == []


@pytest.mark.parametrize("table", ["cells", "fidelity", "ablations", "protocols", "tasks"])
def test_a_place_with_an_answer_is_given_to_nobody(tmp_path, table):
    store = prepared(tmp_path)
    store.write(table, "one", [{"status": "ok"} if "status" in TABLES[table].names else {}])
    with pytest.raises(EsaError, match="holds another study"):
        store.claim(SPEC.replace(topk=(7,)))


def test_a_ranking_is_the_answer_of_a_study_without_damage(tmp_path):
    asked = StudySpec(name="s", model=ModelSpec(source="m"))
    with pytest.raises(EsaError, match="holds another study"):
        prepared(tmp_path / "done", asked).claim(asked.replace(topk=(7,)))
    refused = Store(tmp_path / "refused")
    refused.save_study(asked, FOUND, {})
    refused.write("baselines", "baseline", [{"study": "s"}])
    assert refused.claim(asked.replace(topk=(7,))) is None


def test_a_place_whose_cells_cannot_be_read_is_given_to_nobody(tmp_path):
    store = prepared(tmp_path)
    store.write("cells", "a", rows("x"))
    (tmp_path / "cells" / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(EsaError, match="holds another study"):
        store.claim(SPEC.replace(topk=(7,)))


def test_a_mended_model_gets_the_place_where_nothing_was_measured_on_the_broken_one(tmp_path):
    store, source = prepared(tmp_path), Source("m", "directory", "/m", "mended")
    assert resolution(store, SPEC, source, "def") is None
    store.write("cells", "a", rows("x"))
    with pytest.raises(EsaError, match="another model under the same name"):
        resolution(store, SPEC, source, "def")


def test_a_bucket_makes_way_too(bucket):
    store = Store(bucket)
    store.save_study(SPEC.replace(topk=(1_000_000,)), FOUND, {})
    store.write("rankings", RANKED, [{"metric": "grad_x_weight"}])
    folder = store.make_way(SPEC, FOUND)
    assert store.names("rankings") == []
    assert store.location.exists(f"{folder}/rankings/{RANKED}.parquet")


def test_a_renamed_directory_holds_the_same_study(tmp_path):
    store = Store(tmp_path)
    store.save_study(SPEC, {"model": "abc"}, {})
    assert store.claim(SPEC.replace(name="t")) == {"model": "abc"}


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(EsaError, match="other files"):
        Store(tmp_path).claim(SPEC)


@pytest.mark.parametrize(
    "content", ["", "{", "{'spec': 1}", '{"spec": [1], "resolved": {}}', '{"spec": {}, "resolved": 1}']
)
def test_a_broken_study_file_is_named(tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(EsaError, match=r"study\.json"):
        Store(tmp_path).claim(SPEC)


@pytest.mark.parametrize("scores", [None, [{}], [{"metric": "magnitude", "components": ["not one of ours"]}]])
def test_a_study_in_words_of_a_later_version_is_another_study(tmp_path, scores):
    store = Store(tmp_path)
    store.save_study(SPEC, {"model": "abc"}, {})
    store.write("cells", "a", rows("x"))
    content = json.loads((tmp_path / "study.json").read_text())
    content["spec"] |= {"scores": scores, "later": 1}
    (tmp_path / "study.json").write_text(json.dumps(content))
    with pytest.raises(EsaError, match=r"holds another study \(it differs in .*later"):
        store.claim(SPEC)


def test_the_manifest_counts_the_files_of_every_table(tmp_path):
    store = Store(tmp_path)
    store.write("cells", "a", rows("x"))
    store.write("cells", "b", rows("y"))
    store.save_manifest({"note": "ü"})
    content = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert content["files"] == dict.fromkeys(TABLES, 0) | {"cells": 2}
    assert content["note"] == "ü"


def test_results_of_another_identity_version_are_refused_in_a_sentence_that_says_so(tmp_path):
    spec, store = StudySpec(name="s", model=ModelSpec(source="m")), Store(tmp_path)
    store.save_study(spec, {}, {})
    assert store.claim(spec) == {}
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "one.parquet").write_bytes(b"")
    assert store.claim(spec) == {}
    record = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(record | {"identity": IDENTITY_VERSION - 1}))
    with pytest.raises(EsaError, match="computed cells otherwise"):
        store.claim(spec)


def test_a_study_of_another_identity_version_without_results_is_begun_anew(tmp_path):
    spec, store = StudySpec(name="s", model=ModelSpec(source="m")), Store(tmp_path)
    store.save_study(spec, {"model": "old"}, {})
    record = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(record | {"identity": IDENTITY_VERSION - 1}))
    assert store.claim(spec) is None


def test_a_study_into_a_file_is_refused_in_one_clause(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(EsaError, match=r"taken is a file; choose a directory for --out-dir$"):
        Store(tmp_path / "taken").claim(SPEC)
