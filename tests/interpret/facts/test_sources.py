import sys

import pytest

from esa_ray.errors import EsaError
from esa_ray.interpret.facts.file import facts_in
from esa_ray.interpret.facts.sources import facts_of
from esa_ray.spec.roles import FactSpec


def told(**asked):
    return {(fact.subject, fact.relation): fact.answer for fact in facts_of(FactSpec(**asked))}


def test_capitals_are_those_of_the_atlas():
    found = told(sources=("countries",), limit=300)
    atlas = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Canada": "Ottawa"}
    assert {country: found[country, "capital"] for country in atlas} == atlas


def test_the_largest_countries_come_first_and_none_whose_name_tells_its_capital():
    found = facts_of(FactSpec(sources=("countries",), limit=300))
    assert [fact.subject for fact in found[:3]] == ["China", "India", "United States"]
    assert not {"Mexico", "Singapore", "Luxembourg", "Guatemala", "Djibouti"} & {fact.subject for fact in found}
    assert len({fact.name for fact in found}) == len(found) > 150


def test_elements_have_their_symbols_and_numbers():
    found = told(sources=("elements",), limit=300)
    assert len(found) == 2 * 118
    assert (found["iron", "symbol"], found["iron", "number"]) == ("Fe", "26")
    assert (found["gold", "symbol"], found["gold", "number"]) == ("Au", "79")
    assert found["oganesson", "number"] == "118"


def test_the_limit_is_of_each_source_and_ways_of_asking_are_as_many_as_asked_for():
    found = facts_of(FactSpec(limit=4, paraphrases=2))
    assert [fact.source for fact in found] == ["countries"] * 4 + ["elements"] * 4
    assert {len(fact.templates) for fact in found} == {2}
    assert found[4].prompts[0] == "The chemical symbol of hydrogen is"


@pytest.mark.parametrize(("source", "package"), [("countries", "countryinfo"), ("elements", "periodictable")])
def test_a_source_whose_package_is_missing_says_what_to_install(monkeypatch, source, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EsaError, match=f"--facts {source} needs {package}: pip install 'esa-ray.facts.'"):
        facts_of(FactSpec(sources=(source,)))


def written(tmp_path, text):
    file = tmp_path / "rivers.csv"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_rows_with_one_subject_and_answer_are_ways_of_asking_for_one_fact(tmp_path):
    file = written(
        tmp_path,
        "prompt,subject,answer,alternative\n"
        "The Nile flows into the,Nile,Mediterranean,Pacific\n"
        '"Where the Nile ends, there is the",Nile,Mediterranean,\n'
        "The Indus flows into the,Indus,Arabian Sea,\n",
    )
    nile, indus = facts_in(file)
    assert nile.prompts == ["The Nile flows into the", "Where the Nile ends, there is the"]
    assert (nile.source, nile.alternative, indus.alternative) == ("rivers.csv", "Pacific", None)
    assert nile.relation == indus.relation
    assert len(facts_in(file, paraphrases=1)[0].templates) == 1


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_fields_may_be_parted_by_what_spreadsheets_part_them_by(tmp_path, mark):
    rows = [
        "\ufeff" + mark.join(["Subject", "Answer", "note", "Prompt"]),
        mark.join(["Po", "Adriatic", "", "The Po ends in the"]),
    ]
    (found,) = facts_in(written(tmp_path, "\r\n".join(rows)))
    assert (found.subject, found.answer, found.prompts) == ("Po", "Adriatic", ["The Po ends in the"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,subject\nA,B\n", "line 1 has no column 'answer'"),
        ("prompt,subject,answer,answer\nA B is,B,C,C\n", "line 1 has the column 'answer' twice"),
        ("prompt,subject,answer\nThe Nile is,Nil,\n", "line 2 has no answer; write one"),
        ("prompt,subject,answer\nThe Nile is,Rhine,X\n", "line 2 has no 'Rhine' in its prompt"),
        ("prompt,subject,answer\nThe Po is,Po\n", "line 2 has 2 fields and the header 3"),
        (
            "prompt,subject,answer\nThe Po is,Po,a\nThe Po is,Po,b\n",
            "line 3 has another answer to the prompt of line 2",
        ),
        ("prompt,subject,answer,alternative\nThe Po is,Po,a,a\n", "line 2 has its answer as alternative"),
        ("prompt,subject,answer\n", "has no facts; write a line prompt,subject,answer,alternative"),
        ("", "has no facts"),
        ('prompt,subject,answer\n"The Po,Po,a\n', "isn't CSV"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_line(tmp_path, text, words):
    with pytest.raises(EsaError, match=words) as refused:
        facts_of(FactSpec(sources=(written(tmp_path, text),)))
    assert str(refused.value).startswith("--facts ")


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(EsaError, match=r"--facts .*none\.csv can't be read: there is no such file"):
        facts_in(str(tmp_path / "none.csv"))
