"""The layers of the code, and their picture: ``python -m tests.rooms`` draws ``docs/rooms-*.svg`` from imports.

A room is a folder or module of a package. A room may import those of its own layer and of the layers below; a test
holds the code to that. The picture shows every folder, and as arrows the imports from layer to layer. It leaves out an
arrow where a longer way says the same: ``cli`` imports ``spec``, too, but so does what it imports.
"""

from __future__ import annotations

import ast
import html
import textwrap
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Package → its rooms, from the lowest layer to the highest.
LAYERS: dict[str, list[set[str]]] = {
    "esa_ray": [
        {"errors", "extensions", "randomness", "sequential", "statistics", "host"},
        {"spec", "identity", "schema", "storage", "progress"},
        {"grid", "data", "models", "scoring", "perturb", "evaluation", "resume", "weights"},
        {"applications", "security", "interpret"},
        {"measurements"},
        {"engine", "doctor"},
        {"cli", "__init__", "__main__"},
    ],
    "analysis": [
        {"statistics"},
        {"study", "names", "alike"},
        {"run", "scores", "damage", "fidelity", "compression", "tuning", "security", "roles"},
        {"report"},
        {"comparison"},
        {"documents", "__init__"},
    ],
}
#: What the rooms that are drawn are for.
ROLES = {
    "esa_ray": {
        "cli": "the esa command", "doctor": "what this machine can run", "engine": "Ray: actors, trials, clusters",
        "applications": "compressing and tuning", "security": "faults, codes, attacks",
        "interpret": "roles, attention, facts",
        "measurements": "one file per measurement", "grid": "a spec's cells and ids", "data": "text to windows",
        "models": "loading; what each weight is", "scoring": "scores, rankings, controls",
        "perturb": "edits, taken back exactly", "evaluation": "windows to loss, hits, KL",
        "resume": "from the damaged block on", "weights": "lists of weights", "spec": "what a study asks for",
        "schema": "what columns mean",
        "storage": "tables, store, lease", "statistics": "nulls, correlations",
        "host": "what this machine allows",
    },
    "analysis": {
        "documents": "the pages of docs/results", "comparison": "many models", "report": "page, figures, verdicts",
        "run": "how a study ran", "scores": "where scores are high", "damage": "what damage costs",
        "fidelity": "what a score is worth", "compression": "what compressing costs",
        "tuning": "what tuning is worth", "security": "what faults and attacks do",
        "roles": "what critical weights do",
        "study": "a study as data frames", "statistics": "fits, tests, intervals",
    },
}  # fmt: skip
#: Package → the other one as it is drawn there, as one box: its name, its layer (-1: below all) and its role.
OTHER = {"esa_ray": ("analysis", 4, "tables to a report"), "analysis": ("esa_ray", -1, "what was asked and stored")}
#: In pixels: a box, the least gap beside it, from one layer to the next, and the margin.
WIDTH, HEIGHT, GAP, STEP, MARGIN = 130, 62, 8, 118, 16


@cache
def imported(path: Path) -> frozenset[str]:
    """The modules and names that a file imports, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from esa_ray import data` imports a module as well as a name.
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def files(package: str) -> list[Path]:
    """The Python files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def room(path: Path) -> str:
    """The room of a package in which a file stands."""
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def levels(package: str) -> dict[str, int]:
    """Room → its layer, counted from below; the other package stands in one, too."""
    other, level, _ = OTHER[package]
    return {name: at for at, rooms in enumerate(LAYERS[package]) for name in rooms} | {other: level}


def imports(package: str) -> dict[str, set[str]]:
    """Room → the drawn rooms that it imports, with the other package as one of them."""
    other, level, _ = OTHER[package]
    drawn, found = {*ROLES[package], other}, dict[str, set[str]]()
    sources = [(room(path), path) for path in files(package)]
    sources += [(other, path) for path in files(other)] if level > 0 else []
    for name, path in sources:
        for words in (each.split(".") for each in imported(path)):
            target = words[1] if words[0] == package and len(words) > 1 else words[0]
            if name in drawn and target in drawn - {name}:
                found.setdefault(name, set()).add(target)
    return found


def reduced(graph: dict[str, set[str]], level: dict[str, int]) -> list[tuple[str, str]]:
    """The imports from one layer to another that no longer way says.

    >>> reduced({"a": {"b", "c"}, "b": {"c"}}, {"a": 2, "b": 1, "c": 0})
    [('a', 'b'), ('b', 'c')]
    """
    down = {name: {t for t in targets if level[t] != level[name]} for name, targets in graph.items()}

    def reach(name: str) -> set[str]:
        return set().union(*({t} | reach(t) for t in down.get(name, ())))

    return sorted(
        (name, target) for name, targets in down.items() for target in targets
        if not any(target in reach(between) for between in targets - {target})
    )  # fmt: skip


def shares(n: int) -> list[float]:
    """Where the middles of a row's boxes stand, as shares of the width."""
    return [(i + 0.5) / n if n > 3 else (i + 1) / (n + 1) for i in range(n)]


def ordered(rows: list[list[str]], arrows: list[tuple[str, str]]) -> list[list[str]]:
    """The rows, each in the order of the mean place of what its rooms are joined to, so that few arrows cross."""
    place: dict[str, float] = {}

    def mean(name: str) -> tuple[float, str]:
        near = [place[b if a == name else a] for a, b in arrows if name in (a, b)]
        return round(sum(near) / len(near), 6) if near else 0.5, name

    for _ in range(4):
        for row in rows:
            if place:
                row.sort(key=mean)
        place = {name: share for row in rows for name, share in zip(row, shares(len(row)), strict=True)}
    return rows


def draw(package: str) -> str:
    """The picture of a package's rooms and imports, as SVG."""
    level, (other, _, role) = levels(package), OTHER[package]
    roles, arrows = ROLES[package] | {other: role}, reduced(imports(package), level)
    layers = sorted(set(level.values()), reverse=True)
    rows = ordered([sorted(name for name in roles if level[name] == at) for at in layers], arrows)
    width = max(max(map(len, rows)) * (WIDTH + GAP) + 2 * MARGIN, 5 * (WIDTH + GAP))
    corner = {
        name: (MARGIN + share * (width - 2 * MARGIN) - WIDTH / 2, MARGIN + i * STEP)
        for i, row in enumerate(rows)
        for name, share in zip(row, shares(len(row)), strict=True)
    }
    parts = [_band(MARGIN + i * STEP, width, {n for n in level if level[n] == at} - {*roles, "__init__", "__main__"})
             for i, at in enumerate(layers)]  # fmt: skip
    parts += [_arrow(corner[a], corner[b]) for a, b in arrows]
    parts += [_box(corner[name], name, roles[name], name == other) for row in rows for name in row]
    head = HEAD.format(width=width, height=len(rows) * STEP - STEP + HEIGHT + 2 * MARGIN, package=package)
    return head + "\n".join(parts) + "\n</svg>\n"


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<title>The rooms of {package}, and which imports which</title>
<style>text {{ font-family: system-ui, sans-serif; fill: #1f2933; text-anchor: middle; }} .name {{ font-size: 15px;
font-weight: 600; }} .role {{ font-size: 11.5px; fill: #52606d; }} path {{ fill: none; stroke: #829ab1;
stroke-width: 1.4; marker-end: url(#tip); }} .room {{ fill: #fff; stroke: #486581; stroke-width: 1.2; }}
.other {{ fill: #fff; stroke: #486581; stroke-dasharray: 4 3; }}</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" orient="auto"
markerUnits="userSpaceOnUse"><path d="M0,0.8 L7.5,4 L0,7.2 Z" style="fill:#829ab1;stroke:none"/></marker></defs>
<rect width="100%" height="100%" rx="8" fill="#fff"/>
"""


def _band(top: float, width: float, modules: set[str]) -> str:
    """A layer's ground, with the names of its modules that have no box."""
    ground = f'<rect x="8" y="{top - 8:g}" width="{width - 16:g}" height="{HEIGHT + 16}" rx="8" fill="#f0f4f8"/>'
    words = "".join(f'<tspan x="{width - 16:g}" dy="14">{name}</tspan>' for name in sorted(modules))
    return ground + (f'<text class="role" y="{top - 2:g}" style="text-anchor:end">{words}</text>' if words else "")


def _arrow(above: tuple[float, float], below: tuple[float, float]) -> str:
    """An import: from the middle of a box's lower edge to the middle of another's upper edge."""
    (x1, y1), (x2, y2) = ((x + WIDTH / 2, y) for x, y in (above, below))
    y1 += HEIGHT
    bend = min(STEP - HEIGHT, (y2 - y1) / 2)
    aside = WIDTH if x1 == x2 and y2 - y1 > STEP else 0  # round the box that stands between
    return f'<path d="M{x1:g},{y1:g} C{x1 + aside:g},{y1 + bend:g} {x2 + aside:g},{y2 - bend:g} {x2:g},{y2 - 1:g}"/>'


def _box(corner: tuple[float, float], name: str, role: str, other: bool) -> str:
    """A room: its name, and what it is for in at most two lines."""
    x, y = corner
    lines = textwrap.wrap(role, 18)
    told = "".join(
        f'<text class="role" x="{x + WIDTH / 2:g}" y="{y + 38 + 15 * i:g}">{html.escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    kind = "other" if other else "room"
    return (
        f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + WIDTH / 2:g}" y="{y + 21:g}">{name}</text>{told}'
    )


def path(package: str) -> Path:
    """Where a package's picture lies."""
    return ROOT / "docs" / f"rooms-{package}.svg"


if __name__ == "__main__":
    for name in LAYERS:
        path(name).write_text(draw(name), encoding="utf-8")
        print(path(name).relative_to(ROOT))
