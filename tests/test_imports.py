"""The design's rules on who may import whom, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            # `from esa_ray import data` imports a module as well as a name.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


SOURCES = sorted(p for folder in ("esa_ray", "analysis", "experiments") for p in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_the_engine_imports_ray(path):
    uses_ray = any(name.split(".")[0] == "ray" for name in imported(path))
    assert not uses_ray or relative(path).startswith("esa_ray/engine/")


@pytest.mark.parametrize("path", [p for p in SOURCES if relative(p).startswith("analysis/")], ids=relative)
def test_the_analysis_imports_nothing_of_esa_ray_but_how_tables_lie(path):
    allowed = ("esa_ray.schema", "esa_ray.tables", "esa_ray.place.Place", "esa_ray.place", "esa_ray.errors")
    names = {n for n in imported(path) if n.split(".")[0] == "esa_ray"} - {"esa_ray"}
    assert all(n in allowed or n.rpartition(".")[0] in allowed for n in names)


LAYERS = [
    {"errors", "randomness", "scratch", "place", "sizes", "machine", "host"},
    {"spec", "identity", "schema", "tables"},
    {
        "grid",
        "data",
        "models",
        "scoring",
        "perturb",
        "evaluation",
        "resume",
        "fidelity",
        "ablation",
        "store",
        "tasks",
        "progress",
        "weights",
        "weight_rows",
        "lease",
    },
    {"engine"},
    {"cli", "doctor", "options", "parsing", "wording", "__init__", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


@pytest.mark.parametrize("path", [p for p in SOURCES if relative(p).startswith("esa_ray/")], ids=relative)
def test_imports_go_one_way(path):
    room = Path(relative(path)).parts[1].removesuffix(".py")
    modules = {n.split(".")[1] for n in imported(path) if n.startswith("esa_ray.") and n.split(".")[1] in LEVEL}
    assert all(LEVEL[m] <= LEVEL[room] for m in modules)
    assert not any(n.split(".")[0] == "experiments" for n in imported(path))
    assert "analysis" not in {n.split(".")[0] for n in imported(path)} or room == "cli"


def test_every_room_has_a_level():
    rooms = {Path(relative(p)).parts[1].removesuffix(".py") for p in SOURCES if relative(p).startswith("esa_ray/")}
    assert rooms == LEVEL.keys()


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import esa_ray", {"torch", "ray", "transformers", "polars"}),
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
