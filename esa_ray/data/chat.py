"""Chat rows → documents, as the tokenizer's template writes them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from esa_ray.data.first_tokens import put_first, shown
from esa_ray.errors import EsaError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Messages → the text that a model is trained on; raises ValueError with what is wrong with them.
Render = Callable[[object], str]

#: Who speaks in ShareGPT's rows → the same in everyone else's.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}


#: What today is for templates that write it down (Llama 3's default), or a text would be another one every day.
TODAY = datetime.date(2024, 7, 26)
#: Goes before a template: takes the place of transformers' own function, which asks the clock.
_DATED = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(
        f"|replace('{part}', '{TODAY.strftime(part)}')"
        for part in ("%-d", "%-m", "%d", "%m", "%Y", "%y", "%B", "%b", "%A", "%a", "%H", "%M", "%S")
    )
    + " }}{% endmacro %}"
)


def template(tokenizer: PreTrainedTokenizerBase) -> str:
    """A tokenizer's own template, for which today is :data:`TODAY`.

    Raises
    ------
    EsaError
        If it has none.
    """
    try:
        return _DATED + tokenizer.get_chat_template()
    except ValueError:  # also where it has several and doesn't say which one is meant
        raise EsaError(
            f"--chat needs a chat template, and the tokenizer of {tokenizer.name_or_path or 'this model'} has none; "
            "name a model that was tuned to chat, or give rows of text"
        ) from None


def renderer(tokenizer: PreTrainedTokenizerBase) -> Render:
    """What writes messages down by the tokenizer's template, without the tokens that begin it as they begin any text.

    Those are left out because windows begin with them as ``DataSpec.bos`` says, and would have them twice.

    Raises
    ------
    EsaError
        If the tokenizer has no template.
    """
    form = template(tokenizer)
    first = [tokenizer.bos_token or "", "".join(shown(put_first(tokenizer), tokenizer))]

    def render(value: object) -> str:
        said = messages(value)
        if not said:
            return ""
        try:
            text = str(tokenizer.apply_chat_template(said, chat_template=form, tokenize=False))
        except Exception as error:  # whatever a template raises
            raise ValueError(f"holds messages that the tokenizer's template refuses ({first_line(error)})") from None
        return text.removeprefix(next(filter(text.startswith, filter(None, first)), ""))

    return render


def is_chat(value: object) -> bool:
    """Whether a value looks like messages.

    >>> is_chat([{"from": "human", "value": "Hi"}]), is_chat(["Hi"])
    (True, False)
    """
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and ("role" in value or {"from", "value"} <= value.keys())


def messages(value: object) -> list[dict[str, Any]]:
    """Messages in the form that templates take: a role and a text each; from OpenAI's, ShareGPT's or parts of text.

    >>> messages([{"from": "human", "value": "Hi"}, {"role": "tool", "content": [{"type": "text", "text": "Yes?"}]}])
    [{'role': 'user', 'content': 'Hi'}, {'role': 'tool', 'content': 'Yes?'}]

    Raises
    ------
    ValueError
        If it is something else.
    """
    if not isinstance(value, list) or (value and not is_chat(value)):
        raise ValueError(f"holds {value!r:.40}, which is no list of messages with role and content")
    return [_message(said) for said in value]


def _message(said: dict[str, Any]) -> dict[str, Any]:
    # Tables hold a null for every field that a message doesn't have.
    said = {name: value for name, value in said.items() if value is not None}
    if "role" not in said and "from" in said:
        rest = {name: value for name, value in said.items() if name not in ("from", "value")}
        said = {"role": ROLES.get(str(said["from"]), said["from"]), "content": said.get("value"), **rest}
    if not isinstance(said.get("role"), str):
        raise ValueError(f"holds a message whose speaker is {said.get('role')!r:.40}, which is no name")
    content = said.get("content")
    if content is None and "tool_calls" in said:
        content = ""
    return said | {"content": _text(content)}


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(map(_is_text, content)):
        return "".join(part["text"] for part in content)
    raise ValueError(f"holds a message with {content!r:.40} for its content, which is no text")
