"""A model without its own tokenizer is told what is missing, and where it lies."""

import re

import pytest

from esa_ray.errors import EsaError
from esa_ray.models.load import load_tokenizer
from esa_ray.models.sources import find
from tests.models.checkpoints import edit, spec
from tests.tiny import byte_tokenizer, tiny


def test_a_model_without_a_tokenizer_is_told_where_one_lies(tmp_path):
    tiny().save_pretrained(tmp_path / "m" / "checkpoint-5")
    source = find(spec(tmp_path / "m" / "checkpoint-5"))
    with pytest.raises(EsaError, match=r"has no tokenizer.*of the model that it was trained from"):
        load_tokenizer(source)
    byte_tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(EsaError, match=rf"has no tokenizer.*in {re.escape(str(tmp_path / 'm'))} "):
        load_tokenizer(source)


def test_a_family_whose_tokenizer_would_be_made_empty_is_refused_too(tmp_path):
    tiny("gemma").save_pretrained(tmp_path / "m")  # transformers would make one of five tokens, and all text unknown
    with pytest.raises(EsaError, match="has no tokenizer"):
        load_tokenizer(find(spec(tmp_path / "m")))


@pytest.mark.parametrize(("file", "package"), [("tokenizer.model", "sentencepiece"), ("qwen.tiktoken", "tiktoken")])
def test_a_vocabulary_that_needs_a_package_names_it(tmp_path, file, package, monkeypatch):
    monkeypatch.setattr("esa_ray.models.tokenizing._installed", lambda name: False)
    tiny().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / file).write_bytes(b"\x0a\x05words")
    edit(tmp_path / "m" / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    with pytest.raises(EsaError, match=rf"{re.escape(file)} is read by .*pip install {package}"):
        load_tokenizer(find(spec(tmp_path / "m")))
