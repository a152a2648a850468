"""What the documents name is there."""

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement

import analysis
import esa_ray
from analysis import comparison
from esa_ray.cli import app
from esa_ray.spec import KINDS, METRICS
from experiments.__main__ import names as experiments
from tests import rooms

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *(ROOT / "docs").glob("*.md")]


#: Documents in which an option that stands by itself is one of the ``esa`` command.
OF_COMMANDS = (
    "README.md",
    "CHANGELOG.md",
    "studies.md",
    "scores.md",
    "models.md",
    "texts.md",
    "checkpoints.md",
    "tuning.md",
    "security.md",
    "roles.md",
)


def blocks(document, language):
    """The fenced blocks of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.M | re.S)


def commands(document):
    """Command lines of a document as words, in blocks and in sentences, without comments and what … stands for."""
    shell = "\n".join(blocks(document, "bash")).replace("\\\n", " ")
    prose = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)
    lines = [line.partition(" #")[0] for line in [*shell.splitlines(), *re.findall("`([^`]+)`", prose)]]
    found = [part.replace("…", " ").split() for line in lines for part in line.split("&&")]
    return [words for words in found if words]


def anchors(document):
    """The headings of a document as GitHub's links name them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_headings_that_documents_link_to_are_there(document):
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if "://" not in target:
            name, _, heading = target.partition("#")
            linked = document.parent / name if name else document
            assert linked.exists(), target
            assert not heading or heading in anchors(linked), target


def check_esa(words):
    """Whether these are a command of ``esa`` that exists, with options that it has."""
    command: Any = typer.main.get_command(app)
    while words and not words[0].startswith("-") and (deeper := getattr(command, "commands", None)):
        if words[0].isupper():  # COMMAND stands for any
            return
        command, words = deeper[words[0]], words[1:]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, words


def check_option(option):
    """Whether some command of ``esa`` has an option."""
    esa: Any = typer.main.get_command(app)
    every = (each for command in esa.commands.values() for each in command.params)
    assert any(option in (*each.opts, *each.secondary_opts) for each in every), option


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist_with_the_options_that_they_are_given(document):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)) | {".venv/.model"}
    for words in commands(document):
        if words[0] == "esa":
            check_esa(words[1:])
        elif words[0] == "make":
            assert set(words[1:]) <= targets, words
        elif words[:3] == ["python", "-m", "experiments"]:
            assert set(words[3:4]) <= {"NAME", *experiments()}, words
        elif words[0].startswith("--") and document.name in OF_COMMANDS:
            check_option(words[0])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_in_the_documents_python_exist(document):
    homes = {"analysis": analysis, "comparison": comparison, "esa_ray": esa_ray}
    for block in blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in homes:
                assert hasattr(homes[node.value.id], node.attr), ast.unparse(node)
            elif isinstance(node, ast.ImportFrom) and node.module in homes:
                assert all(hasattr(homes[node.module], alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_source_files_that_documents_name_are_there(document):
    folders = "esa_ray|analysis|experiments|benchmarks|tests|deploy"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", document.read_text()):
        assert (ROOT / name).exists(), name


def test_the_diff_of_a_measurement_is_the_code_as_it_stands():
    (diff,) = blocks(ROOT / "CONTRIBUTING.md", "diff")
    files = re.findall(r"^\+\+\+ b/(\S+)\n((?:^\+(?!\+\+ ).*\n)+)", diff, re.M)
    assert [name.rpartition("/")[2] for name, _ in files] == ["single_weights.py", "__init__.py", "study.py"]
    for name, added in files:
        assert re.sub(r"^\+", "", added, flags=re.M) in (ROOT / name).read_text(), name


def test_the_page_on_scores_counts_model_types_as_the_table_does():
    rows = json.loads((ROOT / "docs/results/architectures.json").read_text())["types"]
    made = [row for row in rows if "absent" not in row]
    works = [row for row in made if all(check["status"] in ("ok", "–") for check in row["checks"].values())]
    counts = re.search(r"the (\d+) types .* (\d+) can be made here, and (\d+) of them", text_of("scores"))
    assert counts is not None
    assert [int(n) for n in counts.groups()] == [len(rows), len(made), len(works)]


def test_the_page_on_scores_lists_every_score_and_every_kind_of_damage():
    page = text_of("scores")
    assert set(METRICS) <= set(re.findall(r"^\| `(\w+)`", page, re.M))
    listed = page[page.index("## Damage") : page.index("## Outcome")]
    assert set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\|([^|]+)\|", listed, re.M)))) == set(KINDS)


def text_of(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


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


def test_no_share_of_the_results_on_backdoors_lies_outside_its_range():
    text = (ROOT / "docs/results/backdoors.md").read_text()
    shares = [float(x.replace("−", "-")) for x in re.findall(r"([−-]?\d[\d,.]*)%", text)]
    assert len(shares) > 1000
    assert min(shares) >= 0
    assert max(shares) <= 100
