import sys

import numpy as np
import pytest
import torch

from esa_ray.interpret.facts.prompts import fact_prompts
from esa_ray.spec.roles import FactSpec
from tests.interpret.facts.said import Said
from tests.tiny import byte_tokenizer

LETTERS = "GHJKLM"
SPEC = {"paraphrases": 1}


def letter(text):
    return ord(text) + 2  # the byte tokenizer's


@pytest.fixture
def spec(tmp_path):
    """Six people, each with a digit; a prompt ends with its person's letter, behind which the digit follows."""
    file = tmp_path / "people.csv"
    rows = [f"ask {name}>,{name},{digit}" for digit, name in enumerate(LETTERS)]
    file.write_text("prompt,subject,answer\n" + "\n".join(rows) + "\n")
    return FactSpec(sources=(str(file),), **SPEC)


class Person(Said):
    """Adds ``knows`` to the digit of the person named last, and ``reads`` to what stood in the text before."""

    def __init__(self, reads=9.0, knows=5.0):
        super().__init__(torch.zeros(258, 258), reads)
        self.knows = knows

    def forward(self, input_ids, use_cache=False):
        found = super().forward(input_ids)
        people = {letter(name): letter(str(digit)) for digit, name in enumerate(LETTERS)}
        for row, tokens in enumerate(input_ids.tolist()):
            digit = None
            for at, token in enumerate(tokens):
                digit = people.get(token, digit)
                if digit:
                    found.logits[row, at, digit] += self.knows
        return found


def test_controls_say_the_answer_of_another_before_they_ask_for_it(spec):
    tokenizer = byte_tokenizer()
    found = fact_prompts(Person(), tokenizer, spec, limit=3)
    texts = [tokenizer.decode(w[: end + 1]) for w, end in zip(found.windows, found.ends, strict=True)]
    assert [name.split(":")[0] for name in found.names] == ["G", "H", "J"]
    assert len(found) == 3
    assert texts[:3] == [f"<s>ask {name}> " for name in "GHJ"]
    for digit, text in enumerate(texts[3:]):
        (said, asked) = text.removeprefix("<s>").split("\n")
        assert said == f"{asked}{digit}"
        assert asked[4] not in "GHJ"[digit]
    assert found.answers.tolist() == [letter(d) for d in "012"] * 2
    assert found.alternatives[:3].tolist() == found.alternatives[3:].tolist()
    assert [chr(found.windows[i][m].item() - 2) for i, m in enumerate(found.subject[:3])] == ["G", "H", "J"]
    assert found.subject.sum(1).tolist() == [1] * 6


def test_the_intact_metric_is_nothing_on_average_and_what_facts_lose_alone_shows_in_it(spec):
    tokenizer, intact = byte_tokenizer(), Person()
    found = fact_prompts(intact, tokenizer, spec, limit=4)
    # d(fact) = 5; in a control the digit was read once, 9, and another was looked up, whose digit isn't compared.
    assert found.intact.tolist() == pytest.approx([5.0] * 4 + [9.0] * 4)
    assert found.ratio == pytest.approx(5 / 9)
    tokens = torch.from_numpy(found.windows)
    assert found.metric(intact(tokens).logits).tolist() == pytest.approx([0.0] * 4, abs=1e-5)
    forgetful = Person(knows=3.0)
    assert found.metric(forgetful(tokens).logits).tolist() == pytest.approx([-2.0] * 4, abs=1e-5)


def test_what_spoils_all_answers_alike_is_no_loss_of_facts(spec):
    found = fact_prompts(Person(), byte_tokenizer(), spec, limit=4)
    logits = Person()(torch.from_numpy(found.windows)).logits
    assert found.metric(0.3 * logits).tolist() == pytest.approx([0.0] * 4, abs=1e-5)


def test_metric_and_loss_are_differentiable_and_the_loss_is_that_of_the_answer(spec):
    found = fact_prompts(Person(), byte_tokenizer(), spec, limit=2)
    logits = torch.randn(4, found.windows.shape[1], 258, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p = torch.log_softmax(logits.detach().double(), -1)
    wanted = [-float(p[i, found.ends[i], found.answers[i]]) for i in range(2)]
    assert found.nll(logits).tolist() == pytest.approx(wanted, rel=1e-5)
    (gradient,) = torch.autograd.grad(found.metric(logits).sum(), logits)
    dense = torch.zeros_like(logits)
    for i, sign in enumerate([1, 1, -found.ratio, -found.ratio]):
        dense[i, found.ends[i], found.answers[i]] += sign
        dense[i, found.ends[i], found.alternatives[i]] -= sign
    torch.testing.assert_close(gradient, dense)


def test_facts_of_all_sources_come_in_turn(tmp_path):
    files = []
    for name, digits in (("one", "012"), ("two", "345")):
        file = tmp_path / f"{name}.csv"
        rows = [f"{name} {LETTERS[int(d)]}>,{LETTERS[int(d)]},{d}" for d in digits]
        file.write_text("prompt,subject,answer\n" + "\n".join(rows) + "\n")
        files.append(str(file))
    found = fact_prompts(Person(), byte_tokenizer(), FactSpec(sources=tuple(files), **SPEC), limit=4)
    assert [name[0] for name in found.names] == ["G", "K", "H", "L"]


def test_a_model_that_knows_nothing_or_cannot_read_has_no_prompts_and_says_why(spec):
    for model in (Person(knows=0.0), Person(reads=0.0)):
        found = fact_prompts(model, byte_tokenizer(), spec, limit=3)
        assert len(found) == 0
        assert found.windows.shape == (0, 0)
        assert found.why == "the model knows none of 6 facts whose answers it can also read off a text"


def test_missing_packages_are_why_there_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "countryinfo", None)
    found = fact_prompts(Person(), byte_tokenizer(), FactSpec(sources=("countries",)), limit=3)
    assert len(found) == 0
    assert "pip install 'esa-ray[facts]'" in found.why
    assert isinstance(found.ends, np.ndarray)
