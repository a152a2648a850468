"""Every example of a docstring runs, and says what it prints."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHOWN = re.compile(r"^\s*>>> ", re.MULTILINE)
FILES = sorted(p for room in ("esa_ray", "analysis", "experiments") for p in (ROOT / room).rglob("*.py")
               if SHOWN.search(p.read_text()))  # fmt: skip
#: What an example may be left out for: a study that was run, or a model that is loaded.
NEEDS_A_MODEL = re.compile(r"run_study\(|worker\.|load\(\"results/|compare\(\[\"results/|knowledge_localization\(\"")


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def param(path: Path):
    # The engine's modules import Ray.
    return pytest.param(path, id=name(path), marks=[pytest.mark.ray] * ("engine" in path.parts))


def examples(module) -> list[doctest.DocTest]:
    return [found for found in doctest.DocTestFinder(exclude_empty=True).find(module) if found.examples]


@pytest.mark.parametrize("path", map(param, FILES))
def test_the_examples_of_a_module_print_what_they_say(path, capsys):
    found = examples(importlib.import_module(name(path)))
    # None hides behind a decorator, or in a text that is no docstring.
    assert sum(len(each.examples) for each in found) == len(SHOWN.findall(path.read_text()))
    for each in found:
        failed, _ = doctest.DocTestRunner().run(each)
        assert failed == 0, f"{each.name}\n{capsys.readouterr().out}"


def test_only_what_needs_a_model_or_a_study_is_left_out():
    for path in FILES:
        for line in path.read_text().splitlines():
            assert "doctest: +SKIP" not in line or NEEDS_A_MODEL.search(line), f"{name(path)}: {line.strip()}"


def test_an_example_that_says_something_else_is_found():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda said: None).failed == 1


def test_there_are_examples():
    assert len(FILES) > 80
