"""What is packed is what is needed: the wheel, installed outside the checkout, works by itself."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import esa_ray

ROOT = Path(__file__).parent.parent
PACKAGES = ("esa_ray", "analysis", "experiments")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources, since a build leaves its own files beside them."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", source, "--wheel-dir", target, "--no-build-isolation")
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The commands of an environment that has the wheel, and beside it what this one has but esa-ray."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    here = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    pip("--python", place / "bin" / "python", "install", wheel)
    # Written afterwards: pip would find this environment's own esa-ray, and call it installed.
    (here / "rest.pth").write_text("\n".join(p for p in sys.path if p.endswith(("site-packages", "dist-packages"))))
    return place / "bin"


def pip(*arguments):
    words = [str(a) for a in arguments]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    first = next(i for i, word in enumerate(words) if word in ("wheel", "install")) + 1
    run(sys.executable, "-m", "pip", *words[:first], *quiet, *words[first:])


def run(*command, cwd=None):
    # Without PYTHONPATH, which would let the checkout in.
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd or Path.home()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    written = {p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*")
               if p.is_file() and "__pycache__" not in p.parts}  # fmt: skip
    assert {"esa_ray/py.typed", "esa_ray/models/known.json", "analysis/report/templates/report.html.j2"} <= written
    with zipfile.ZipFile(wheel) as packed:
        assert {name for name in packed.namelist() if ".dist-info/" not in name} == written


def test_the_command_runs_outside_the_checkout(installed, tmp_path):
    assert run(installed / "esa", "--version", cwd=tmp_path) == f"esa-ray {esa_ray.__version__}\n"
    assert "run" in run(installed / "esa", "--help", cwd=tmp_path)


LOOK = """
import json, sys
import analysis, esa_ray, experiments
from importlib import resources
from analysis.report.page import environment
from esa_ray.models import cards, known

shown = environment().get_template("_verdicts.html.j2").render(
    verdicts=[{"claim": "a < b", "id": "C1", "status": "holds", "evidence": "p = 0.01"}]
)
json.dump({
    "packages": [package.__file__ for package in (esa_ray, analysis, experiments)],
    "card": cards.card("t4").title,
    "families": [each.family for each in known.known()],
    "templates": environment().list_templates(),
    "shown": shown,
    "typed": [resources.files(package).joinpath("py.typed").is_file() for package in (esa_ray, analysis)],
}, sys.stdout)
"""


def test_data_are_found_outside_the_checkout(installed, tmp_path):
    found = json.loads(run(installed / "python", "-c", LOOK, cwd=tmp_path))
    for package in found["packages"]:
        assert Path(package).is_relative_to(installed.parent)
    assert found["card"] == "NVIDIA T4"
    assert "SmolLM2" in found["families"]
    assert "report.html.j2" in found["templates"]
    assert '<td class="l wrap">a &lt; b' in found["shown"]
    assert found["typed"] == [True, True]
