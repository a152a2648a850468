"""Tracing held to planted truths: 200 made-up facts that a small model was trained on, and facts written into it."""

from itertools import product

import numpy as np
import pytest
import torch

from esa_ray.applications.calibrated import Calibrated
from esa_ray.interpret.facts.sensitivity import sensitivities
from esa_ray.interpret.facts.tracing import embedded, traced
from esa_ray.models.addressing import catalogue
from esa_ray.spec.roles import FactSpec
from tests.interpret.facts import remembering as memory
from tests.interpret.facts.remembering import ANSWERS, LAYERS, TOWNS, asked, facts, share_known, tokenizer, towns
from tests.tiny import tiny

ONE_PROCESS = True  # the model is trained once
SUBJECT = FactSpec(corruptions=("subject",), restored=(1,))


def rows_of(model, fact, spec=SUBJECT, others=None, seed=1, sensitivity=None):
    others = facts() if others is None else others
    return traced(
        model, catalogue(model), tokenizer(), fact, spec, others=others, seed=seed, sensitivity=sensitivity or {}
    )  # fmt: skip


def by_place(rows, **where):
    return {
        (r["position"], r["block"], r["sublayer"]): r
        for r in rows if all(r[name] == value for name, value in where.items())
    }  # fmt: skip


def logits(model, prompt):
    return model(torch.tensor([tokenizer()(prompt).input_ids])).logits[0, -1]


def test_the_model_was_trained_to_know_all_facts():
    assert share_known(memory.trained()) >= 0.99


def test_clean_and_corrupted_are_the_models_own_logits_and_the_alternative_is_the_other_subjects_answer():
    model, fact = memory.trained(), facts()[17]
    first, *_ = rows_of(model, fact)
    right, wrong = (tokenizer().convert_tokens_to_ids(first[name]) for name in ("answer", "alternative"))
    clean = logits(model, fact.prompts[0])
    assert first["clean"] == pytest.approx(float(clean[right] - clean[wrong]), abs=1e-4)
    swapped = [logits(model, other.prompts[0]) for other in facts() if other.answer == first["alternative"]]
    differences = [float(found[right] - found[wrong]) for found in swapped]
    assert min(abs(first["corrupted"] - d) for d in differences) < 1e-4
    assert first["clean"] > 0 > first["corrupted"]


def test_every_place_is_there_once_and_shares_are_of_what_was_taken():
    spec = FactSpec(restored=(1, 3), draws=2)
    rows = rows_of(memory.trained(), facts()[3], spec, sensitivity={(1, "ffn"): 7.0})
    keys = [(r["corruption"], r["position"], r["block"], r["sublayer"], r["restored"]) for r in rows]
    positions = ("subject-first", "subject-last", "last")  # what is behind the subject is the last token here
    wanted = product(("subject", "noise"), positions, range(LAYERS), ("residual", "attention", "ffn"), (1, 3))
    assert sorted(keys) == sorted(wanted)
    for r in rows:
        assert r["share"] == pytest.approx(r["effect"] / (r["clean"] - r["corrupted"]))
        assert r["sensitivity"] == (7.0 if (r["block"], r["sublayer"]) == (1, "ffn") else None)
        assert (r["status"], r["known"]) == ("ok", True)


def test_the_last_state_holds_all_and_the_entrance_of_the_subject_nearly_all():
    found = by_place(rows_of(memory.trained(), facts()[60]))
    assert found["last", LAYERS - 1, "residual"]["share"] == pytest.approx(1)
    assert found["subject-first", LAYERS - 1, "residual"]["share"] == pytest.approx(0, abs=1e-6)
    assert found["last", 0, "residual"]["share"] < found["last", LAYERS - 1, "residual"]["share"]


def test_noise_is_so_many_standard_deviations_of_the_embeddings_and_the_mean_of_its_draws():
    model, fact = memory.trained(), facts()[8]
    std, width = embedded(model)
    table = model.get_input_embeddings().weight
    assert (std, width) == (pytest.approx(float(table.double().std(correction=0))), table.shape[1])
    weak, strong = (
        rows_of(model, fact, FactSpec(corruptions=("noise",), noise=noise, restored=(1,)))[0] for noise in (1e-4, 3.0)
    )
    assert weak["corrupted"] == pytest.approx(weak["clean"], abs=0.01)
    assert strong["corrupted"] < 0.7 * strong["clean"]
    one, two = (rows_of(model, fact, FactSpec(corruptions=("noise",), draws=n, restored=(1,))) for n in (1, 2))
    later = rows_of(model, fact, FactSpec(corruptions=("noise",), draws=1, restored=(1,)), seed=2)
    assert one[0]["corrupted"] != later[0]["corrupted"]
    assert one[0]["corrupted"] != two[0]["corrupted"]
    assert one == rows_of(model, fact, FactSpec(corruptions=("noise",), draws=1, restored=(1,)))


def test_a_fact_that_the_model_does_not_know_is_one_row_and_says_so():
    wrong = facts()[5].model_copy(update={"answer": next(t for t in TOWNS if t != facts()[5].answer)})
    (row,) = rows_of(memory.trained(), wrong)
    assert (row["known"], row["status"]) == (False, "empty")
    assert row["error"] == "the model doesn't prefer the answer to all others"
    assert (row["fact"], row["prompt"]) == (wrong.name, wrong.prompts[0])


def test_a_corruption_that_cannot_be_made_is_empty_and_the_other_is_made():
    fact = facts()[5]
    longer = [f.model_copy(update={"subject": f"{f.subject} {f.subject}"}) for f in facts()[6:12]]
    rows = rows_of(memory.trained(), fact, FactSpec(draws=1, restored=(1,)), others=[fact, *longer])
    (empty,) = [row for row in rows if row["corruption"] == "subject"]
    assert (empty["known"], empty["status"]) == (True, "empty")
    assert empty["error"] == "no other subject that is asked about has as many tokens"
    assert {row["status"] for row in rows if row["corruption"] == "noise"} == {"ok"}


def test_an_alternative_that_a_file_gives_is_the_one_that_is_compared():
    given = next(t for t in reversed(TOWNS) if t != facts()[5].answer)
    rows = rows_of(memory.trained(), facts()[5].model_copy(update={"alternative": given}))
    assert {row["alternative"] for row in rows} == {given}


def _edits():
    """Facts that are written into a known matrix: two into each."""
    draw = np.random.default_rng(3)
    for block, part in product(range(LAYERS), ("ffn", "attention")):
        for number in draw.choice(len(facts()), 2, replace=False):
            yield block, part, facts()[number], TOWNS[(TOWNS.index(facts()[number].answer) + 7) % ANSWERS]


def _auroc(values, places, edited):
    """Chance that the edited place is above another."""
    others = [values[place] for place in places if place != edited]
    return float(np.mean([(values[edited] > o) + 0.5 * (values[edited] == o) for o in others]))


def test_the_matrix_that_a_fact_was_written_into_is_found_by_tracing_and_sensitivity():
    places = list(product(range(LAYERS), ("ffn", "attention")))
    areas, known = [], []
    for block, part, fact, answer in _edits():
        model = memory.trained()
        layer = model.model.layers[block]
        new = memory.written(model, layer.mlp.down_proj if part == "ffn" else layer.self_attn.o_proj, fact, answer)
        every = [new if other is fact else other for other in facts()]
        known.append(int(model(asked([new])).logits[0, -1].argmax()) == int(towns([new])))
        windows = np.hstack([asked(every).numpy(), towns(every).numpy()[:, None]])
        sensitivity = sensitivities(Calibrated(model, catalogue(model), windows, batch_size=len(windows)))
        rows = rows_of(model, new, others=every, sensitivity=sensitivity)
        found = {
            (r["block"], r["sublayer"]): max(0.0, r["effect"]) * r["sensitivity"]
            for r in rows if r["position"] == "last" and r["sublayer"] != "residual"
        }  # fmt: skip
        areas.append(_auroc(found, places, (block, part)))
    assert all(known)
    assert np.mean(areas) >= 0.9


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "mixtral"])
def test_embeddings_of_every_family_have_a_spread(family):
    model = tiny(family)
    table = model.get_input_embeddings().weight.double()
    assert embedded(model)[0] == pytest.approx(float(table.std(correction=0)))
