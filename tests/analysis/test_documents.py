"""Documents of results: they say what was found, and nobody wrote in them since."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from analysis.comparison import compare
from analysis.documents import DIRECTORY, TITLES, render, write
from tests.analysis.many import study

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
