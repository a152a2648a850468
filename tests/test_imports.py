"""The design's rules on who may import whom, read from the source."""

import ast
import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.rooms import LAYERS, ROOT, files, imported, levels, room

SOURCES = [path for folder in ("esa_ray", "analysis", "experiments") for path in files(folder)]
#: What the analysis may know of esa_ray: what studies ask, and how their tables lie.
SHARED = {"errors", "spec", "schema", "storage", "sequential", "measurements", "extensions",
          "statistics"}  # fmt: skip


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def backwards(package: str) -> list[str]:
    """Imports of a package that go from a lower room to a higher one."""
    level = levels(package)
    return [
        f"{relative(path)} imports {name}"
        for path in SOURCES if relative(path).startswith(f"{package}/")
        for name in sorted(imported(path)) if name.startswith(f"{package}.")
        if level.get(name.split(".")[1], 0) > level[room(path)]
    ]  # fmt: skip


def test_only_the_engine_imports_ray():
    users = {relative(p) for p in SOURCES if any(name.split(".")[0] == "ray" for name in imported(p))}
    assert users
    assert {path for path in users if not path.startswith("esa_ray/engine/")} == set()


def test_the_analysis_knows_of_esa_ray_what_studies_ask_and_how_tables_lie():
    known = {n.split(".")[1] for p in SOURCES if relative(p).startswith("analysis/") for n in imported(p)
             if n.startswith("esa_ray.")}  # fmt: skip
    assert known == SHARED


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_one_way(package):
    assert backwards(package) == []


def test_a_room_that_imports_backwards_is_found(monkeypatch):
    path = ROOT / "esa_ray" / "spec" / "base.py"
    monkeypatch.setitem(globals(), "imported", lambda p: {"esa_ray.engine.sweep"} if p == path else set())
    assert backwards("esa_ray") == ["esa_ray/spec/base.py imports esa_ray.engine.sweep"]


def by_name(path: Path) -> set[str]:
    """Modules of other rooms that a file hands to a call as a text, to be imported when they are asked for."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    texts = {a.value for call in calls for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    named = {text for text in texts if text.startswith("esa_ray.") and find_spec(text)}
    return {text for text in named if text.split(".")[1] != room(path)}


def graph(package: str) -> dict[str, set[str]]:
    """Room → the rooms of its package that it imports, also inside of functions."""
    rooms = {room(path) for path in files(package)} - {"__init__"}
    found: dict[str, set[str]] = {name: set() for name in rooms}
    for path in files(package):
        names = [name.split(".") for name in imported(path)]
        targets = {words[1] for words in names if words[0] == package and len(words) > 1}
        found.setdefault(room(path), set()).update((targets & rooms) - {room(path)})
    return found


def circles(package: str) -> list[tuple[str, str]]:
    """Imports from one room to another from which imports lead back."""
    found = graph(package)

    def reached(name: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
        for target in found[name] - seen:
            seen = reached(target, seen | {target})
        return seen

    return sorted((a, b) for a in found for b in found[a] if a in reached(b))


@pytest.mark.parametrize("package", LAYERS)
def test_rooms_import_each_other_in_no_circle(package):
    assert circles(package) == []


def test_a_circle_over_three_rooms_is_found(monkeypatch):
    around = {"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": set()}
    monkeypatch.setitem(globals(), "graph", lambda package: around)
    assert circles("esa_ray") == [("a", "b"), ("b", "c"), ("c", "a")]


def test_only_registries_name_a_room_as_a_text():
    # What KINDS and SCORES are made of computes, and so lies above the spec that knows them by name; their modules are
    # imported when the first of them is asked for. Nothing else goes round the rules above.
    named = {relative(path): by_name(path) for path in SOURCES if by_name(path)}
    assert named == {
        "esa_ray/spec/kinds.py": {"esa_ray.perturb.kinds"},
        "esa_ray/spec/metrics.py": {"esa_ray.scoring.metrics"},
    }


def test_nothing_imports_the_experiments_and_only_commands_the_analysis():
    for path in SOURCES:
        roots = {name.split(".")[0] for name in imported(path)}
        assert relative(path).startswith("experiments/") or "experiments" not in roots, path
        assert not relative(path).startswith("esa_ray/") or "analysis" not in roots or room(path) == "cli", path


@pytest.mark.parametrize("package", LAYERS)
def test_every_room_has_a_level(package):
    assert {room(p) for p in files(package)} == set().union(*LAYERS[package])


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import esa_ray", {"torch", "ray", "transformers", "polars"}),
        ("import esa_ray.spec", {"torch", "numpy", "esa_ray.perturb", "esa_ray.scoring"}),
        ("from esa_ray.spec import KINDS, SCORES; print(KINDS, SCORES)", {"torch", "numpy", "scipy", "pyarrow"}),
        ("import esa_ray.cli", {"torch", "ray", "transformers", "polars", "pyarrow"}),
        ("import experiments.quickstart", {"torch", "ray", "transformers"}),
        ("import analysis", {"torch", "ray", "transformers"}),
        # Drivers and trials hold no model: torch in them would cost seconds and hundreds of megabytes each.
        ("import esa_ray.engine.sweep", {"torch", "transformers"}),
    ],
)
def test_importing_is_light(code, unwanted):
    script = f"import sys; {code}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not unwanted & set(loaded.stdout.split())


@pytest.mark.parametrize("package", ["esa_ray", "analysis"])
def test_every_name_that_a_package_offers_is_there(package):
    there = importlib.import_module(package)
    assert [name for name in there.__all__ if not hasattr(there, name)] == []
