import pytest
import torch

from esa_ray.interpret.facts.asked import Asking, Prompt
from esa_ray.interpret.facts.known import knows
from esa_ray.interpret.facts.sources import Fact, Template
from tests.interpret.facts.remembering import tokenizer as word_tokenizer
from tests.interpret.facts.said import Said
from tests.tiny import byte_tokenizer

CAPITALS = {"France": "Paris", "Finland": "Helsinki", "Peru": "Lima", "Panama": "Panama City", "Cuba": "Havana"}
TEMPLATE = Template("The capital of ", " is")


def fact(subject, answer, **more):
    return Fact(source="s", relation="capital", subject=subject, answer=answer, templates=(TEMPLATE,), **more)


FACTS = [fact(*pair) for pair in CAPITALS.items()]


def test_the_subjects_tokens_are_found_and_the_answers_are_what_follows():
    tokenizer = byte_tokenizer()
    prompt = Asking(tokenizer, FACTS).prompt(FACTS[1], 0)
    assert tokenizer.decode(prompt.tokens) == "<s>The capital of Finland is"
    assert tokenizer.decode([prompt.tokens[i] for i in prompt.subject]).strip() == "Finland"
    assert tokenizer.decode(prompt.answer) == " Helsinki"
    assert {tokenizer.decode(tokens) for tokens in prompt.others.values()} == {
        " Paris",
        " Lima",
        " Panama City",
        " Havana",
    }


def test_a_prompt_begins_as_windows_do():
    prompt = Asking(byte_tokenizer(), FACTS, opening=[1, 1, 1]).prompt(FACTS[0], 0)
    assert prompt.tokens[:4] == (1, 1, 1, ord("T") + 2)
    assert byte_tokenizer().decode([prompt.tokens[i] for i in prompt.subject]).strip() == "France"


def test_answers_are_compared_by_the_first_token_that_differs():
    prompt = Asking(byte_tokenizer(), FACTS).prompt(FACTS[0], 0)
    shared, paris, panama = prompt.pair(prompt.others["Panama City"])
    assert byte_tokenizer().decode(shared) == "<s>The capital of France is Pa"
    assert (paris, panama) == (ord("r") + 2, ord("n") + 2)


def test_others_are_of_the_same_source_and_relation_and_never_the_same_answer():
    more = [
        fact("Gaul", "Paris"), fact("Spain", "Madrid").model_copy(update={"relation": "king"}),
        fact("Egypt", "Cairo").model_copy(update={"source": "t"}),
    ]  # fmt: skip
    found = Asking(byte_tokenizer(), FACTS + more, seed=1).alike(FACTS[0])
    assert {f.subject for f in found} == CAPITALS.keys() - {"France"}
    orders = {tuple(f.subject for f in Asking(byte_tokenizer(), FACTS, seed=s).alike(FACTS[0])) for s in range(9)}
    assert len(orders) > 1


def test_what_the_tokenizer_cannot_tell_apart_is_no_prompt():
    unknown = Fact(source="s", relation="r", subject="first1", answer="", templates=(Template("the town of ", " is"),))
    assert Asking(word_tokenizer(), []).prompt(unknown, 0) is None


def prompt_of(answer, others):
    return Prompt(FACTS[0], 0, (0, 1), range(1, 2), answer, {str(i): tokens for i, tokens in enumerate(others)})


@pytest.mark.parametrize(
    ("answer", "others", "known"),
    [
        ((2,), [(3,)], True),  # 5 against 4 behind token 1
        ((3,), [(2,)], False),
        ((2,), [(3,), (4,)], False),  # 4 is said before both
        ((2, 5), [(2, 3)], True),  # told apart behind 2, where 5 comes first
        ((2, 3), [(2, 5)], False),
        ((2, 5), [(2, 3), (4,)], False),
        ((2, 5), [(2,)], False),  # one begins the other: nothing to compare
        ((2, 5), [(2,), (3,)], True),
    ],
)
def test_a_model_knows_what_it_prefers_to_every_other_answer_where_they_first_differ(answer, others, known):
    table = torch.zeros(6, 6)
    table[1, 2], table[1, 3], table[1, 4], table[2, 5] = 5, 4, 6, 1
    assert knows(Said(table), prompt_of(answer, others)) == known
