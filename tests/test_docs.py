"""What the documents name is there."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import rooms

ROOT = Path(__file__).parents[1]


def test_every_fault_names_tests_that_exist():
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    lines = [line for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(lines) > 15
    for line in lines:
        named = re.findall(r"`(test_\w+)`", line.rpartition("|")[0].rpartition("|")[2])
        assert named, line
        assert defined.issuperset(named), line


def test_files_that_documents_link_to_are_there():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_versions_that_are_told_are_those_that_are_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = {"Python": project["requires-python"].removeprefix(">=")}
    extras = {f" (`{name}`)": lines for name, lines in project["optional-dependencies"].items() if name != "dev"}
    for mark, lines in {"": project["dependencies"], **extras}.items():
        for each in map(Requirement, lines):
            (stated[f"{each.name}{mark}"],) = [bound.version for bound in each.specifier]
    rows = [line.split("|")[1:3] for line in (ROOT / "docs" / "versions.md").read_text().splitlines() if "|" in line]
    assert {name.strip(): version.strip() for name, version in rows[2:]} == stated


@pytest.mark.parametrize("package", rooms.LAYERS)
def test_the_picture_of_the_rooms_is_that_of_the_imports(package):
    assert rooms.path(package).read_text() == rooms.draw(package), "draw it anew: python -m tests.rooms"


@pytest.mark.parametrize("package", rooms.LAYERS)
def test_every_folder_is_in_the_picture_and_every_arrow_goes_down_along_an_import(package):
    drawn, level = rooms.draw(package), rooms.levels(package)
    folders = {path.parent.name for path in (rooms.ROOT / package).glob("*/__init__.py")}
    assert folders <= set(re.findall(r'<text class="name"[^>]*>(\w+)<', drawn))
    arrows = rooms.reduced(rooms.imports(package), level)
    assert len(re.findall('<path d="M[^"]*C', drawn)) == len(arrows) > len(folders) / 2
    assert all(level[above] > level[below] for above, below in arrows)


def test_an_arrow_is_left_out_where_a_longer_way_says_the_same():
    graph = {"command": {"engine", "spec"}, "engine": {"spec", "crew"}, "crew": {"engine"}, "doctor": {"spec"}}
    level = {"command": 2, "doctor": 2, "engine": 1, "crew": 1, "spec": 0}
    assert rooms.reduced(graph, level) == [("command", "engine"), ("doctor", "spec"), ("engine", "spec")]
