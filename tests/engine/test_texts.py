"""What a study's driver learns of its text before any actor starts."""

import json
import shutil

import pytest

from esa_ray.data import text_fingerprint
from esa_ray.engine.work import Work
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec, ModelSpec


def test_chat_rows_are_known_by_the_text_that_the_models_template_makes_of_them(tiny_study, model_dir, tmp_path):
    mine = shutil.copytree(model_dir, tmp_path / "model")
    said = [[{"role": "user", "content": f"What is {i}?"}] for i in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in said))
    data = DataSpec(source=str(tmp_path / "a.jsonl"), text_column="messages", chat=True)
    spec = tiny_study.replace(model=ModelSpec(source=str(mine)), data=data)
    with pytest.raises(EsaError, match=f"the tokenizer of {mine} has none"):
        Work.of(spec, tmp_path / "out").read_text()
    (mine / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}")
    work = Work.of(spec, tmp_path / "out")
    work.read_text()
    assert work.text == text_fingerprint(["[What is 0?]", "[What is 1?]", "[What is 2?]"])


def test_the_commit_of_a_hub_data_set_is_written_down(tiny_study, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "x"}\n')
    found = {"model": "m", "dtype": "fp32", "text": "t", "versions": {}}
    for source, wanted in {
        f"hf:{tmp_path}/set": datasets.load_dataset_builder(str(tmp_path / "set")).hash,
        "pydoc": None,
        f"hf:{tmp_path}/gone": None,
    }.items():
        work = Work.of(tiny_study.replace(data=DataSpec(source=source)), tmp_path / (wanted or source[-4:]))
        work.described(dict(found))
        stored = work.store.load_study()
        assert stored["resolved"].get("data_revision") == wanted


def test_a_study_whose_windows_began_otherwise_is_not_gone_on_with(tiny_study, tmp_path):
    work = Work.of(tiny_study, tmp_path / "out")
    work.read_text()
    found = {"model": work.source.fingerprint, "dtype": "fp32", "text": work.text}
    for bos, opening in ((False, ()), (False, ()), (True, ("<s>",))):
        work.look()
        told = found | {"bos": bos, "opening": opening, "versions": {}}
        if bos:
            with pytest.raises(EsaError, match=r"out was measured on windows that began otherwise .* with <s>"):
                work.described(told)
        else:
            work.described(told)
