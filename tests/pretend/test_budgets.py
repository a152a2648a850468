"""How often the host waits for a card, in budgets: each wait stands the card still for as long as a small kernel takes.

A budget is what the design allows, not what was measured; beside it stands what was measured when it was set. A test
that fails prints the lines that wait, most frequent first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from esa_ray.evaluation import Intact, evaluate
from esa_ray.evaluation.single_weights import measure
from esa_ray.models.addressing import Catalogue, WeightTensor, catalogue
from esa_ray.perturb.edit import Applied, perturbed
from esa_ray.resume import Resumable
from esa_ray.scoring.chosen import chosen_and_known
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.ranking import rank, score_stats
from esa_ray.scoring.sampling import sample
from esa_ray.scoring.scores import Scores
from esa_ray.spec import PerturbSpec, ScoreSpec
from tests.pretend.device import PretendCards
from tests.pretend.tally import Tally

LAYERS, VOCAB, BATCH = 8, 64, 8
BODY = ("q", "k", "v", "o", "gate", "up", "down")
GROUPS = ("super", "random_k", "matched_k", "bottom_k")
GRADIENTS = ("grad_x_weight", "grad_x_weight_abs", "grad_squared")

# What is measured: 8 blocks of 7 matrices, bf16, 4 calibration windows, 16 evaluation windows in batches of 8, k = 20.
#                               budget   what the first version of each took
SCORING_A_WINDOW = 4  #                  1.3 of gradients (1 transformers' own), 169 of act_mag (3 a matrix)
EDIT_AND_RESTORE = 6  #                  190 of sign_flip (5 a matrix that is touched, 38 of them)
EVALUATION_WITH_KL = 6  #                67 with kept logits (4 a window), 51 with kept head inputs (3 a window)
CELL = 10  #                             257 of sign_flip, 333 of gauss_noise, 447 of quantize
RANKING_A_TENSOR = 48  #                 42 by grad_x_weight, 47 by act_mag: some 10 for each of four groups
STATISTICS_A_TENSOR = 5  #               8
SINGLE_WEIGHT = 10  #                    11 an edit, 2 of them transformers' own


@dataclass
class Measured:
    """A model on one card, and what a study makes of it."""

    cards: PretendCards
    model: PreTrainedModel

    calibration = np.random.default_rng(0).integers(0, VOCAB, (4, 16))
    evaluation = np.random.default_rng(1).integers(0, VOCAB, (16, 16))

    @cached_property
    def catalogue(self) -> Catalogue:
        return catalogue(self.model)

    @cached_property
    def tensors(self) -> tuple[WeightTensor, ...]:
        return self.catalogue.select(BODY)

    @cached_property
    def scores(self) -> Scores:
        return score_tensors(self.model, self.tensors, self.calibration, [*GRADIENTS, "act_mag"])

    def ranking(self, k: int = 20, metric: str = "grad_x_weight") -> pa.Table:
        return rank(self.scores, ScoreSpec.model_validate({"metric": metric, "components": BODY}), k, GROUPS, seed=0)

    @cached_property
    def top(self) -> pa.Table:
        return self.ranking()

    @cached_property
    def intact(self) -> Intact:
        return Intact(self.model, self.evaluation, BATCH)

    @cached_property
    def resumable(self) -> Resumable:
        return Resumable(self.model, self.evaluation, BATCH, head_shortcut=False)

    def tally(self, run: Callable[[], object]) -> Tally:
        with self.cards.counting() as tally:
            run()
        return tally

    def damage(self, label: str, k: int = 20) -> AbstractContextManager[Applied]:
        weights, known = chosen_and_known(self.top, "super", k)
        return perturbed(self.catalogue, weights, PerturbSpec.parse(label), 0, known)

    def outcome(self, windows: int = 16) -> object:
        return evaluate(
            self.model, self.evaluation[:windows], BATCH, intact=self.intact,
            forward=lambda number, _: self.resumable.logits(1, number)[: windows - number * BATCH],
        )  # fmt: skip


def _made(dtype: torch.dtype, cards: PretendCards) -> Measured:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.to(dtype)
    cards.place(model)
    return Measured(cards, model)


@pytest.fixture(scope="module")
def machine():
    return PretendCards()


@pytest.fixture(scope="module")
def _sixteen_bit(machine):
    return _made(torch.bfloat16, machine)


@pytest.fixture(scope="module")
def _full(machine):
    return _made(torch.float32, machine)


@pytest.fixture
def measured(_sixteen_bit, machine):
    with machine:
        yield _sixteen_bit


@pytest.fixture
def with_compact_head(_full, machine):
    with machine:
        yield _full


def assert_within(tally: Tally, budget: float, each: int = 1) -> None:
    found = tally.synchronisations / each
    assert found <= budget, f"{found:.1f} waits of {budget} allowed; over {each}:\n{tally.report()}"


@pytest.mark.parametrize("metrics", [["grad_x_weight"], [*GRADIENTS], ["act_mag"], ["super_activation"]], ids="+".join)
def test_scoring_waits_a_few_times_a_window(measured, metrics):
    tensors = [t for t in measured.tensors if metrics != ["super_activation"] or "down_proj" in t.name]
    tally = measured.tally(lambda: score_tensors(measured.model, tensors, measured.calibration, metrics))
    assert_within(tally, SCORING_A_WINDOW, each=len(measured.calibration))


@pytest.mark.parametrize("metrics", [[*GRADIENTS], ["act_mag"]], ids="+".join)
def test_scoring_more_tensors_waits_no_more(measured, metrics):
    few, all_ = (
        measured.tally(lambda n=n: score_tensors(measured.model, measured.tensors[:n], measured.calibration, metrics))
        for n in (7, 7 * LAYERS)
    )
    assert all_.synchronisations == few.synchronisations, all_.report()


KINDS = (
    "sign_flip-1", "sign_flip-0.3", "zero", "set_mean", "scale-0.5", "gauss_noise-0.1", "gauss_noise-tensor-0.1",
    "bit_flip-0.1", "gradient_aligned-0.1", "correlated-0.1", "adaptive-0.1", "adaptive-row-0.1", "quantize-4",
    "quantize-tensor-4", "progressive-zero-0.5",
)  # fmt: skip


@pytest.mark.parametrize("label", KINDS)
def test_an_edit_and_its_restoration_wait_a_few_times(measured, label):
    def edit():
        with measured.damage(label):
            pass

    assert measured.top
    assert_within(measured.tally(edit), EDIT_AND_RESTORE)


def test_an_evaluation_with_kept_logits_waits_a_few_times(measured):
    assert not measured.intact.compact
    assert measured.resumable
    assert_within(measured.tally(measured.outcome), EVALUATION_WITH_KL)


def test_an_evaluation_with_kept_head_inputs_waits_a_few_times(with_compact_head):
    assert with_compact_head.intact.compact
    assert with_compact_head.resumable
    assert_within(with_compact_head.tally(with_compact_head.outcome), EVALUATION_WITH_KL)


def _cell(measured: Measured, label: str, k: int = 20, windows: int = 16) -> Tally:
    assert measured.top
    assert measured.intact
    assert measured.resumable

    def cell():
        with measured.damage(label, k):
            measured.outcome(windows)

    return measured.tally(cell)


@pytest.mark.parametrize("label", ["sign_flip-1", "quantize-4"])
def test_a_cell_whose_intact_logits_are_made_again_waits_a_few_times(measured, label):
    again = Measured(measured.cards, measured.model)
    again.top, again.resumable = measured.top, measured.resumable
    again.intact = Intact(measured.model, measured.evaluation, BATCH, tail_stays=True)
    assert (measured.intact.kind, again.intact.kind) == ("Logits", "States")
    assert_within(_cell(again, label), CELL)


@pytest.mark.parametrize("label", ["sign_flip-1", "gauss_noise-0.1", "quantize-4"])
def test_a_cell_waits_a_few_times(measured, label):
    assert_within(_cell(measured, label), CELL)


def test_a_cell_of_more_weights_waits_no_more(measured):
    few, many = (_cell(measured, "zero", k) for k in (1, 20))
    assert many.synchronisations == few.synchronisations, many.report()


def test_a_cell_of_more_windows_in_a_batch_waits_no_more(measured):
    few, many = (_cell(measured, "zero", windows=n) for n in (2, BATCH))
    assert many.synchronisations == few.synchronisations, many.report()


def test_a_cell_downloads_numbers_and_no_tensors(measured):
    # Per window four sums and counts in float64, per weight its old and new value: less than one row of logits.
    tally, windows = _cell(measured, "zero"), len(measured.evaluation)
    weights = sum(map(len, chosen_and_known(measured.top, "super", 20)[0].values()))
    assert tally.downloaded <= 8 * (4 * windows + 2 * weights + 16), tally.report()


@pytest.mark.parametrize("metric", ["grad_x_weight", "act_mag"])
def test_a_ranking_waits_a_few_times_a_tensor(measured, metric):
    assert measured.scores
    assert_within(measured.tally(lambda: measured.ranking(metric=metric)), RANKING_A_TENSOR, each=7 * LAYERS)


def test_score_statistics_wait_a_few_times_a_tensor(measured):
    spec = ScoreSpec(metric="grad_squared", components=BODY)
    tally = measured.tally(lambda scores=measured.scores: score_stats(scores, spec, seed=0))
    assert_within(tally, STATISTICS_A_TENSOR, each=7 * LAYERS)


def test_damaging_one_weight_alone_waits_a_few_times(measured):
    drawn = sample(measured.scores, "grad_x_weight", 96, seed=0, components=BODY).slice(40, 4)
    resumable = Resumable(measured.model, measured.evaluation, BATCH)
    tally = measured.tally(lambda: measure(measured.catalogue, resumable, drawn, null_every=0))
    assert_within(tally, SINGLE_WEIGHT, each=2 * 4)
