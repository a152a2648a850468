"""Texts that are the same in part: what is left out of one of them, and which windows another text holds."""

import numpy as np
import pytest

from esa_ray.data import read_documents
from esa_ray.data.shared import without
from esa_ray.data.splitting import held
from esa_ray.spec import DataSpec

LONG = [f"a paragraph of its own that says something, number {i}" for i in range(8)]


def test_documents_that_the_other_text_has_too_are_left_out_white_space_aside():
    rows = ["mine alone", "a row\nof both", "Thanks!", "another of mine"]
    found = without(rows, ["Thanks!", "theirs", " a row of  both\n"])
    assert (found.documents, found.left_out) == (["mine alone", "another of mine"], 2)
    assert found.share == pytest.approx(20 / 45)
    assert found.told == "2 documents (44%)"


def test_of_a_single_document_paragraphs_are_left_out_unless_they_say_nothing():
    mine = "\n\n".join(["For example:", LONG[0], LONG[1], "For example:", LONG[2]])
    theirs = ["\n\n".join(["For example:", LONG[3], LONG[1].replace(" ", "\n")])]
    found = without([mine], theirs)
    assert found.documents == ["\n\n".join(["For example:", LONG[0], "For example:", LONG[2]])]
    assert found.told == f"1 paragraph ({100 * len(LONG[1]) / sum(map(len, mine.split(chr(10) * 2))):.2g}%)"


def test_a_row_is_found_in_a_file_and_a_files_paragraph_among_rows():
    file = "\n\n".join(LONG[:6])
    rows = ["\n\n".join(["Yes.", *LONG[:2]]), "\n\n".join(LONG[5:7]), LONG[3]]
    assert without(rows, [file]).documents == [rows[1]]  # of which the file has but a half
    assert without([file], rows).documents == ["\n\n".join([LONG[2], LONG[4]])]


def test_texts_with_nothing_in_common_stay_as_they_are_and_one_text_leaves_nothing():
    texts = ["one", "two\n\n", "", "three"]
    assert without(texts, ["four", "five"]).documents is texts
    assert without(texts, ["four", "five"]).told is None
    assert without([LONG[0]], [LONG[0]]).documents == []
    assert without(texts[:2], texts[:2]).documents == []


def test_the_texts_that_are_source_and_target_by_default_have_no_document_in_common():
    one, other = (read_documents(DataSpec(source=name)) for name in ("pydoc", "pysource"))
    assert without(one, other).documents is one
    assert without(other, one).documents is other
    # Their longest common paragraph is far below what counts.
    both = [{" ".join(p.split()) for d in text for p in d.split("\n\n")} for text in (one, other)]
    assert max(map(len, both[0] & both[1])) < 20


def brute(windows, others):
    """Shares of runs of 16 tokens, spelled out."""

    def runs(window):
        return [tuple(window[i : i + 16]) for i in range(1, len(window) - 15)]

    known = {run for other in others for run in runs(other)}
    says = lambda run: sum(a != b for a, b in zip(run[1:], run, strict=False)) >= 7.5  # noqa: E731
    return [np.mean([run in known and says(run) for run in runs(window)]) for window in windows.tolist()]


def test_the_share_of_a_window_that_others_hold_is_that_of_its_runs_at_any_offset():
    rng = np.random.default_rng(0)
    text = rng.integers(0, 50, 400)
    others = text.reshape(10, 40)
    shifted = np.stack([text[at : at + 60] for at in (0, 13, 100, 339)])
    for windows in (shifted, np.concatenate([shifted, rng.integers(0, 50, (3, 60))])):
        assert held(windows, others, np.arange(10)).tolist() == pytest.approx(brute(windows, others.tolist()))
    assert held(shifted, others, np.array([3, 5])).tolist() == pytest.approx(brute(shifted, others[[3, 5]].tolist()))
    assert held(others, shifted, np.arange(4)).tolist() == pytest.approx(brute(others, shifted.tolist()))


def test_rulers_count_for_nothing_wherever_they_stand():
    ruler = np.full((2, 64), 9)
    assert held(ruler, ruler, np.arange(2)).tolist() == [0, 0]
    mixed = np.concatenate([np.arange(32), np.full(32, 9)])[None]
    assert held(mixed, ruler, np.arange(2)).tolist() == [0]
    assert held(mixed, mixed, np.arange(1)).tolist() == pytest.approx(brute(mixed, mixed.tolist()))
