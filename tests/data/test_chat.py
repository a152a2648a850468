"""Chat rows are the text that the tokenizer's template makes of them, and nothing else is."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esa_ray.data import read_documents, windows
from esa_ray.data.chat import messages
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec
from tests.tiny import BOS_ID, byte_tokenizer

#: ChatML, as many models have it.
CHATML = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
USER, ANSWER = {"role": "user", "content": "Wie geht’s?"}, {"role": "assistant", "content": "Gut.\nDanke"}
WRITTEN = "<|im_start|>user\nWie geht’s?<|im_end|>\n<|im_start|>assistant\nGut.\nDanke<|im_end|>\n"


def tokenizer(template: str | None = CHATML, **kinds):
    made = byte_tokenizer(**kinds)
    made.chat_template = template
    return made


def documents(path, *values, template: str | None = CHATML, column: str = "messages", **kinds) -> list[str]:
    path = path / "a.jsonl"
    path.write_text("\n".join(json.dumps({column: value}) for value in values))
    return read_documents(DataSpec(source=str(path), text_column=column, chat=True), tokenizer(template, **kinds))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_messages_are_written_by_the_template_without_its_bos(tmp_path, adds_bos):
    assert documents(tmp_path, [USER, ANSWER], adds_bos=adds_bos) == [WRITTEN]


def test_a_template_of_a_tokenizer_without_bos_is_written_as_it_is(tmp_path):
    assert documents(tmp_path, [USER, ANSWER], adds_bos=False, bos=False) == [WRITTEN]


@pytest.mark.parametrize(
    "said",
    [
        [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": ANSWER["content"]}],
        [{"from": "user", "value": USER["content"]}, {"from": "assistant", "value": ANSWER["content"]}],
        [USER | {"name": None, "tool_calls": None}, ANSWER | {"weight": 1}],
        [{"role": "user", "content": [{"type": "text", "text": "Wie "}, {"type": "text", "text": "geht’s?"}]}, ANSWER],
    ],
)
def test_sharegpt_and_parts_of_text_are_the_same_messages(tmp_path, said):
    assert documents(tmp_path, said) == [WRITTEN]


def test_a_call_of_a_tool_needs_no_content(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    names = "{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}"
    shape = "{% for m in messages %}{{ m.role }}:{{ m.content }}" + names + ";{% endfor %}"
    assert documents(tmp_path, [USER, call], template=shape) == ["user:Wie geht’s?;assistant:look;"]


def test_missing_and_empty_conversations_are_left_out(tmp_path):
    assert documents(tmp_path, None, [], [USER, ANSWER]) == [WRITTEN]


def test_a_table_holds_the_same_messages(tmp_path):
    pq.write_table(pa.table({"messages": [[USER, ANSWER], None, [USER | {"name": "me"}]]}), tmp_path / "a.parquet")
    spec = DataSpec(source=str(tmp_path / "a.parquet"), text_column="messages", chat=True)
    assert read_documents(spec, tokenizer()) == [WRITTEN, WRITTEN.split("<|im_start|>assistant")[0]]


def test_what_the_post_processor_puts_first_is_left_out_where_a_template_spells_it(tmp_path):
    assert documents(tmp_path, [USER, ANSWER], template="<s>" + CHATML, bos=False) == [WRITTEN]


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_no_window_has_a_bos_behind_its_first_place(tmp_path, adds_bos, bos):
    path = tmp_path / "a.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{i * 7919:05d} what?"}, ANSWER]} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    spec = DataSpec(
        source=str(path), text_column="messages", chat=True, window=16, bos=bos, calibration_windows=4,
        evaluation_windows=3,
    )  # fmt: skip
    found = windows(spec, tokenizer(adds_bos=adds_bos))
    assert ((found.tokens[:, 0] == BOS_ID) == found.bos).all()
    assert found.bos == {"auto": adds_bos, "always": True, "never": False}[bos]
    assert not (found.tokens[:, 1:] == BOS_ID).any()


def test_a_template_that_asks_for_the_date_writes_the_same_one_every_day(tmp_path):
    shape = (
        "{% macro head(sep) %}{{ strftime_now('%d %b %Y') }}{{ sep }}{% endmacro %}"
        "{% if strftime_now is defined %}{{ head('/') }}{% endif %}"
        "{% set form = '%Y-%m-%d %A %-d' %}{{ strftime_now(form) }}"
    )
    wanted = "26 Jul 2024/" + "2024-07-26 Friday 26"
    assert documents(tmp_path, [USER], template=shape) == [wanted]


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ("text", "line 2 holds 'text', which is no list of messages with role and content"),
        ([1], "line 2 holds .1., which is no list of messages"),
        ([USER, "text"], "line 2 holds .*which is no list of messages"),
        ([{"content": "x"}], "line 2 holds .*which is no list of messages"),
        ([{"role": "user"}], "line 2 holds a message with None for its content, which is no text"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "line 2 holds a message with .*image"),
        ([ANSWER], r"line 2 holds messages that the tokenizer's template refuses \(the user speaks first\)"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_line(tmp_path, bad, sentence):
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('the user speaks first') }}{% endif %}" + CHATML
    with pytest.raises(EsaError, match=rf"a\.jsonl, {sentence}"):
        documents(tmp_path, [USER], bad, template=strict)


def test_a_tokenizer_without_a_template_is_refused_with_its_name(tmp_path):
    with pytest.raises(EsaError, match="the tokenizer of this model has none; name a model that was tuned to chat"):
        documents(tmp_path, [USER], template=None)


def test_chat_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(EsaError, match="give read_documents the tokenizer"):
        read_documents(DataSpec(chat=True))


@pytest.mark.parametrize("said", [{"from": ["human"], "value": "x"}, {"role": 5, "content": "x"}, {"role": None}])
def test_a_message_whose_speaker_has_no_name_is_refused(said):
    with pytest.raises(ValueError, match=r"speaker|no list of messages"):
        messages([said])
