"""What a stranger's names, files and neighbours on the machine can't do."""

import ast
import contextlib
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from pydantic import ValidationError

import analysis
from esa_ray import read_documents
from esa_ray.cli import results_directory
from esa_ray.cli.parsing import build, places, slug
from esa_ray.errors import EsaError
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec, WeightList
from esa_ray.storage.store import Store, ranking_name
from esa_ray.weights import read_weights
from tests.analysis.synthetic import save_table, write_synthetic
from tests.engine.conftest import TEXT, save_model
from tests.environment import without_settings_of_ray
from tests.measuring import measure, run

ROOT = Path(__file__).parent.parent

HOSTILE = (
    "../../escaped", "/escaped", "..", ".", "a/../../escaped", "a/../../../escaped", "..\\..\\escaped", "a\nescaped",
    "escaped\0", "~/escaped", "$HOME/escaped", "-rf escaped", "\u202eescaped", "é" * 300, "hf:../../escaped", " ",
    "CON", "file:///escaped", "https://escaped.invalid/x",
)  # fmt: skip


def tree(directory: Path) -> dict[str, bytes | None]:
    """Every path below a directory, with the content of files."""
    return {
        str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in sorted(directory.rglob("*"))
    }


@pytest.fixture
def yard(tmp_path, monkeypatch):
    """A deep directory to stand in: what climbs out of it is still seen, and nothing may change but ``out``."""
    here = tmp_path / "outer" / "outer" / "inner"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "outer"))
    before = tree(tmp_path)
    yield here
    outside = {name: content for name, content in tree(tmp_path).items() if "inner/out" not in name}
    assert outside == before


# -- names never leave the output directory


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_become_file_names_are_refused_or_mended(name, yard):
    for refused in (
        lambda: StudySpec(name=name, model=ModelSpec(source="m")),
        lambda: WeightList(name=name, weights=({"tensor": "t", "row": 0},)),
        lambda: ScoreSpec(metric=name),
        lambda: ScoreSpec(mode=name),
        lambda: PerturbSpec.parse(name),
    ):
        if name != "CON":  # a name like any other, here
            with pytest.raises((ValidationError, ValueError)):
                refused()
    spec = build(model={"source": name}, data={"source": name}, scores=[{}])
    for made in (spec.name, slug(name)):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", made)
    assert Path(results_directory(spec.name)) == Path("results") / spec.name
    assert {Path(place).parent for place in places([name, "another"], "out")} == {Path("out")}


@pytest.mark.parametrize("name", [n for n in HOSTILE if "/" in n or "\\" in n or n == "escaped\0"])
def test_the_store_keeps_its_files_inside(name, yard):
    store = Store(yard / "out")
    with contextlib.suppress(EsaError):
        store.write("baselines", name, [{"study": "s"}])
    for look in (store.has, store.read):
        with contextlib.suppress(EsaError, FileNotFoundError):
            look("baselines", name)


def test_the_store_refuses_to_climb(yard):
    store = Store(yard / "out")
    for name in ("../../../escaped", "a/../../../escaped"):
        with pytest.raises(EsaError, match=r"no name of a file|outside"):
            store.write("baselines", name, [{"study": "s"}])


def test_a_list_is_named_by_its_file_and_nothing_more(yard):
    for number, name in enumerate(n for n in HOSTILE if n not in (".", "..", "escaped\0") and len(n) < 99):
        file = yard / "out" / str(number) / f"{Path(name).name}.csv"
        file.parent.mkdir(parents=True)
        file.write_text("tensor,row,col\n../../escaped,0,0\n")
        found = read_weights(file)
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", found.name)
        Store(yard / "out").write("rankings", ranking_name("listed", found.name, 0), [{"model": "m"}])


@pytest.mark.parametrize("name", HOSTILE)
def test_looking_for_a_model_or_a_text_writes_nothing(name, yard, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(yard / "out" / "hub"))
    with pytest.raises(EsaError) as refused:
        find(ModelSpec(source=name))
    assert any(w in str(refused.value) for w in ("no config.json", "no such", "neither a directory", "looked for"))
    with pytest.raises(EsaError):
        read_documents(DataSpec(source=name))


def test_a_home_of_nobody_is_one_sentence():
    with pytest.raises(EsaError, match="no such"):
        find(ModelSpec(source="~nobody-of-that-name/model"))


def test_a_data_set_of_the_hub_that_is_a_local_directory_runs_none_of_its_code(yard, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", yard / "out" / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    evil = yard / "out" / "evil"
    evil.mkdir(parents=True)
    (evil / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).write_text('x')\n")
    with pytest.raises(EsaError):
        read_documents(DataSpec(source=f"hf:{evil}"))


def test_a_study_of_hostile_names_writes_into_its_directory_alone(yard):
    model, text = yard / "out" / "m\n<script>; rm -rf ~", yard / "out" / "te'xt\n$(escaped).txt"
    model.mkdir(parents=True)
    save_model(model)
    text.write_text(TEXT)
    file = yard / "out" / "li st\n$(escaped)<b>.csv"
    file.write_text("tensor,row,col\nmodel.layers.0.mlp.down_proj.weight,1,2\n")
    spec = build(
        model={"source": str(model)}, scores=[{"metric": "magnitude"}], topk=[2], perturbations=[{"kind": "zero"}],
        data={"source": str(text), "window": 16, "calibration_windows": 2, "evaluation_windows": 2},
        lists=[read_weights(file)], seeds=[1],
    )  # fmt: skip
    worker = Worker(spec, find(spec.model), str(yard / "out" / "study"))
    measure(worker, "baseline")
    measure(worker, "rankings", 1)
    from esa_ray.grid import cells

    for cell in cells(spec):
        assert run(worker, cell)["status"] == "ok"
    made = [p for p in (yard / "out" / "study").rglob("*") if p.is_file()]
    assert len(made) >= 4
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]+", p.name) for p in made)
    listed = WeightList(name="x", weights=({"tensor": "../../escaped", "row": 0},))
    with pytest.raises(EsaError, match="escaped"):
        measure(Worker(spec.replace(lists=(listed,)), find(spec.model), str(yard / "out" / "other")), "rankings", 1)


# -- names in the report are text


class Page(HTMLParser):
    """How a page is built: its elements with their attributes, scripts apart, and the text outside of them."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: Counter = Counter()
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._in_script = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements[(tag, *sorted(name for name, _ in attrs))] += 1
        self.attributes += attrs
        if tag == "script":
            self._in_script = True
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def handle_comment(self, data):
        self.elements[("comment",)] += 1


#: All in one name: the page that bears it everywhere must be built like one that bears a harmless name.
ATTACK = "".join((
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "</SCRIPT ><svg/onload=alert(1)>",
    "\" onmouseover=\"alert(1)' onclick='alert(1)",
    "{{7*7}}{% raw %}${7*7}",
    "</title></style></code></pre><iframe src=javascript:alert(1)>",
    "]]>&lt;b&gt;\u2028\\",
))  # fmt: skip


def planted(directory: Path, name: str) -> analysis.Study:
    """A study with every table filled, that bears this name wherever a name from outside can stand."""
    write_synthetic(directory, seeds=(1, 2), modes=("global",))
    record = json.loads((directory / "study.json").read_text())
    spec = record["spec"]
    spec |= {"name": name, "lists": [{"name": name, "weights": [{"tensor": name, "row": 0, "col": 0}] * 3}]}
    spec["model"] |= {"source": name, "revision": name}
    spec["data"] |= {"source": name, "text_column": name, "split": name}
    record["versions"] = {"esa-ray": name, name: "1"}
    record["resolved"] |= {"architecture": name, "model": name, "text": name, "dtype": name}
    (directory / "study.json").write_text(json.dumps(record))

    for table in ("rankings", "score_stats", "sample_sizes", "samples", "fidelity"):
        rows = pl.read_parquet(directory / table / "all.parquet")
        rows = rows.with_columns((pl.lit(name) + pl.col("tensor")).alias("tensor"), pl.lit(name).alias("model"))
        save_table(directory, table, rows)
    cells = pl.read_parquet(directory / "cells" / "all.parquet")
    cells = cells.filter((pl.col("metric") == "grad_x_weight") & (pl.col("mode") == "global") & (pl.col("k") == 40))
    mine = pl.col("group") == "super"
    tail = pl.lit(name) + pl.col("cell_id")
    given = cells.with_columns(
        metric=pl.lit("listed"), mode=pl.lit(name), k=pl.lit(3), cell_id=tail + "l",
        group=pl.when(mine).then(pl.lit("listed")).otherwise("group"),
    )  # fmt: skip
    rows = [
        given,
        given.with_columns(perturbation=pl.lit(name), cell_id=tail + "p"),
        given.with_columns(variant=pl.lit(name), cell_id=tail + "v"),
        cells.filter(mine).with_columns(status=pl.lit("error"), error=pl.lit(name), cell_id=tail + "e"),
        cells.filter(mine).with_columns(part=pl.lit("layer"), part_value=pl.lit(1.0), cell_id=tail + "y"),
    ]
    text = {c: pl.lit(name) for c in ("study", "model", "dtype", "data", "device", "version", "worker")}
    save_table(directory, "cells", pl.concat(rows, how="vertical_relaxed").with_columns(**text))
    return analysis.load(directory)


def charts(page: Page) -> dict:
    """The figures in the page's own script, as JSON: whoever breaks out of a string breaks this."""
    found = re.search(r"const charts = (\{.*?\});\n", page.scripts[-1], re.S)
    return json.loads(found[1])


def names_in(value, name: str) -> bool:
    if isinstance(value, dict):
        return any(names_in(v, name) or name in k for k, v in value.items())
    return (
        any(names_in(v, name) for v in value) if isinstance(value, list) else isinstance(value, str) and name in value
    )


def page_of(study: analysis.Study, directory: Path) -> Page:
    analysis.write_report(study)
    return Page((directory / "report.html").read_text())


def test_names_in_the_report_are_text_and_nothing_else(tmp_path, monkeypatch):
    # Neither the library nor the width of an interval is in question, and both take seconds.
    monkeypatch.setattr("analysis.report.page.library", lambda: "/* Vega */")
    monkeypatch.setattr("analysis.fidelity.tables.RESAMPLES", 10)
    harmless, page = (
        page_of(planted(tmp_path / where, name), tmp_path / where)
        for where, name in (("harmless", "harmless"), ("hostile", ATTACK))
    )
    assert page.elements == harmless.elements
    assert len(page.scripts) == 2
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not {tag for tag, *_ in page.elements} & {"img", "svg", "iframe", "comment"}
    assert "".join(page.text).count(ATTACK) > 20  # it is all there, as it was given
    drawn = charts(page)
    assert drawn.keys() == charts(harmless).keys()
    assert names_in(drawn, ATTACK)
    assert not re.search(r"</script|<!--", page.scripts[-1], re.I)


def test_names_in_figures_are_text(tmp_path):
    # Two line separators in one name are more than Vega's own parser takes: such a figure stays empty.
    chart = analysis.report.figures.FIGURES["damage"](planted(tmp_path, ATTACK.replace("\u2028", "")))
    chart.save(tmp_path / "damage.svg")
    elements = list(ElementTree.parse(tmp_path / "damage.svg").iter())
    assert "alert(1)" in "".join(e.text or "" for e in elements)
    assert not {e.tag.rpartition("}")[2] for e in elements} & {"script", "image", "img", "foreignObject", "a", "iframe"}
    assert not [k for e in elements for k in e.attrib if k.lower().startswith("on") or k.endswith("href")]


# -- the cluster

ALONE = """
import stat
from pathlib import Path
from esa_ray.engine.cluster import connected

with connected():
    import ray
    node = ray._private.worker._global_node
    mode = stat.S_IMODE((Path.home() / ".ray" / "auth_token").stat().st_mode)
    print(node.gcs_address, oct(mode), node.webui_url or "no-dashboard", flush=True)
    input()
"""
STRANGER = """
import os, ray
ray.init(address=os.environ["TARGET"], log_to_driver=False)
print("connected", flush=True)
"""


def python(code: str, home: Path, **environment: str) -> subprocess.Popen:
    """A process of another user, as far as Ray can tell: with a home and an environment of its own."""
    home.mkdir(exist_ok=True)
    settings = without_settings_of_ray(HOME=str(home), PYTHONPATH=str(ROOT), **environment)
    return subprocess.Popen(
        [sys.executable, "-c", code], env=settings, text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def first_word_of(process: subprocess.Popen, *words: str) -> str:
    """Which of these a process says first: a refused client of Ray tries for 20 seconds, and its first line tells."""
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if found := [word for word in words if word in line]:
            return found[0]
    pytest.fail("".join(said))


@pytest.mark.ray
def test_the_local_cluster_lets_nobody_in_without_its_token(tmp_path):
    cluster = python(ALONE, tmp_path / "mine")
    processes = [cluster]
    try:
        said = cluster.stdout.readline().split()
        assert len(said) == 3, cluster.stdout.read()
        address, mode, dashboard = said
        assert mode == "0o600"
        assert dashboard == "no-dashboard"
        words = ("Unauthenticated", "connected")
        for home, environment, wanted in (
            ("stranger", {}, "Unauthenticated"),
            ("guesser", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, "Unauthenticated"),
            ("mine", {"RAY_AUTH_MODE": "token"}, "connected"),
        ):
            processes.append(python(STRANGER, tmp_path / home, TARGET=address, **environment))
            assert first_word_of(processes[-1], *words) == wanted
            processes[-1].kill()
    finally:
        for process in processes[1:]:
            process.kill()
            process.wait()
        with contextlib.suppress(subprocess.TimeoutExpired):
            cluster.communicate("\n", timeout=120)
        cluster.kill()
        cluster.wait()


# -- the source

SOURCES = sorted(p for room in ("esa_ray", "analysis", "experiments") for p in (ROOT / room).rglob("*.py"))
FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.load",
    "numpy.load", "pandas.read_pickle", "importlib.import_module:variable", "eval", "exec", "compile", "__import__",
    "code", "codeop", "runpy", "commands",
}  # fmt: skip


def dotted(node: ast.expr) -> str | None:
    """``a.b.c`` of an attribute chain; None of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return None


def dangers(source: str) -> list[str]:
    """What a source could unpickle, evaluate or hand to a shell, by the real names of what it imported."""
    tree, names, found = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(a.asname or a.name.partition(".")[0]): (a.name if a.asname else a.name.partition(".")[0])
                      for a in node.names}  # fmt: skip
            found += [a.name for a in node.names if a.name in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            found += [node.module] * (node.module.partition(".")[0] in FORBIDDEN)
            found += [n for a in node.names if (n := f"{node.module}.{a.name}") in FORBIDDEN]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if any(k.arg == "shell" and getattr(k.value, "value", True) for k in node.keywords):
            found.append("shell=True")
        if any(k.arg == "weights_only" and getattr(k.value, "value", None) is False for k in node.keywords):
            found.append("weights_only=False")
        if any(k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords):
            found.append("allow_pickle=True")
        if any(k.arg == "trust_remote_code" and getattr(k.value, "value", None) is True for k in node.keywords):
            found.append("trust_remote_code=True")
        if name := dotted(node.func):
            head, _, rest = name.partition(".")
            real = names.get(head, head) + (f".{rest}" if rest else "")
            tensors = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
            if real == "torch.load" and tensors:
                continue  # torch's own unpickler, which makes tensors and plain containers alone
            found += [real] * (real in FORBIDDEN or real.partition(".")[0] in FORBIDDEN - {"code", "commands"})
    return found


def test_nothing_of_ours_unpickles_evaluates_or_calls_a_shell():
    assert len(SOURCES) > 80
    assert {str(p): d for p in SOURCES if (d := dangers(p.read_text()))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import torch as t\nt.load(x)", "from torch import load",
        "import numpy as np\nnp.load(x)", "eval(x)", "exec(x)", "import yaml\nyaml.load(x)",
        "from os import system as s\ns(x)", "import os\nos.system(x)", "import subprocess as s\ns.run(x, shell=True)",
        "import subprocess as s\ns.run(x, shell=y)", "f(x, weights_only=False)", "f(trust_remote_code=True)",
        "import cloudpickle as c\nc.loads(x)", "__import__(x)",
    ],
)  # fmt: skip
def test_the_walk_over_the_source_sees_what_it_looks_for(code):
    assert dangers(code)


@pytest.mark.parametrize("code", ["model.eval()", "import re\nre.compile(x)", "f(shell=False)", "json.load(x)"])
def test_and_nothing_else(code):
    assert dangers(code) == []
