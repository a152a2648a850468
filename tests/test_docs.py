"""What the documents name is there."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

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
