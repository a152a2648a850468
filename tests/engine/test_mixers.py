"""Whole studies of models with mixers, without Ray, against models that are damaged by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from esa_ray.grid import cell_id, cells
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.spec import COMPONENT_GROUPS, DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec
from tests.measuring import measure, run
from tests.tiny import byte_tokenizer, state_bits
from tests.tiny_mixers import tiny_mixer


def worker_of(kind, directory, text_file) -> Worker:
    tiny_mixer(kind, vocab_size=258).save_pretrained(directory / "model")
    byte_tokenizer().save_pretrained(directory / "model")
    spec = StudySpec(
        name="tiny",
        model=ModelSpec(source=str(directory / "model")),
        data=DataSpec(source=text_file, window=16, calibration_windows=3, evaluation_windows=3, batch_size=2),
        topk=(4,),
        seeds=(7,),
        scores=(ScoreSpec(metric="grad_x_weight", mode="per_tensor"), ScoreSpec(metric="act_mag", mode="per_tensor")),
        perturbations=(PerturbSpec(kind="zero"),),
        groups=("super", "random_k"),
    )
    return Worker(spec, find(spec.model), str(directory / "out"))


def zero(parameter: torch.Tensor, row: int, col: int, expert: int | None, *, turned: bool) -> None:
    """Weight (row, col) of a matrix, of an expert or a head, or of a convolution (channels, 1, taps)."""
    place = (col, row) if turned else (row, col)
    if expert is not None:
        place = (expert, *place)
    elif parameter.dim() == 3:
        place = (row, 0, col)
    parameter.data[place] = 0.0


@pytest.mark.parametrize("kind", ["mamba", "bamba", "zamba", "qwen3_next", "minimax", "recurrent_gemma", "rwkv"])
def test_a_study_of_mixers_has_the_losses_of_models_damaged_by_hand(kind, tmp_path, text_file):
    worker = worker_of(kind, tmp_path, text_file)
    before = state_bits(worker.model)
    measure(worker, "rankings", 7)
    touched = set()
    for cell in cells(worker.spec):
        run(worker, cell)
        name = f"{cell.label}-{cell_id(cell, worker.spec.data, worker.resolved)}"
        (row,) = worker.store.read("cells", name).to_pylist()
        assert (row["status"], row["restored"]) == ("ok", True)
        twin = worker_of(kind, tmp_path / cell.label, text_file).model
        parameters = dict(twin.named_parameters())
        ranking = worker.store.read("rankings", f"{cell.score.metric}-per_tensor-s7").to_pylist()
        for r in ranking:
            if r["group"] == cell.group and r["rank"] <= 4:
                turned = r["tensor"].endswith("_gate_weight")
                zero(parameters[r["tensor"]], r["row"], r["col"], r["expert"], turned=turned)
                touched.add(r["component"])
        windows = torch.as_tensor(worker.windows.evaluation)
        with torch.no_grad():
            for got, window in zip(row["nll"], windows, strict=True):
                logits = twin(window[None], use_cache=False).logits[0, :-1].double()
                assert got == pytest.approx(float(cross_entropy(logits, window[1:], reduction="sum")), abs=2e-4)
    assert touched & set(COMPONENT_GROUPS["mixer"])
    assert state_bits(worker.model) == before
