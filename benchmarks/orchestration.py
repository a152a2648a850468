"""What orchestration adds to a cell: wall time of the sweep less the cells' own, on a model of 20,000 weights."""

import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from esa_ray.engine import cluster, sweep
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec
from esa_ray.store import Store


def tiny_model(directory: Path) -> str:
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    vocabulary = {"[UNK]": 0, "the": 1, "a": 2, "of": 3, "to": 4, "in": 5, "is": 6}
    words = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(directory)
    return str(directory)


def measure(model: str, seeds: int, directory: Path) -> tuple[int, float, float]:
    """Cells, seconds of the sweep, and seconds that the cells themselves took on their actors."""
    spec = StudySpec(
        name="tiny", model=ModelSpec(source=model), topk=(2, 4), seeds=tuple(range(seeds)),
        data=DataSpec(window=32, calibration_windows=2, evaluation_windows=4),
        perturbations=tuple(PerturbSpec(kind="gauss_noise", strength=s / 10) for s in range(1, 6)),
    )  # fmt: skip
    spent = []
    inner = sweep._sweep

    def timed(*arguments):
        started = time.perf_counter()
        inner(*arguments)
        spent.append(time.perf_counter() - started)

    sweep._sweep = timed
    try:
        summary = sweep.run_study(spec, directory)
    finally:
        sweep._sweep = inner
    store = Store(directory)
    own = sum(store.read("cells", n, ["seconds"])["seconds"][0].as_py() for n in store.names("cells"))
    return summary.cells, spent[0], own


def main(quick: bool = False) -> None:
    """Orchestration per cell at growing numbers of cells."""
    print("orchestration: driver time per cell beyond the cells' own work (2 actors)")
    with cluster.connected(), tempfile.TemporaryDirectory() as scratch:
        model = tiny_model(Path(scratch) / "model")
        for seeds in (1, 10) if quick else (1, 10, 100):
            n, wall, own = measure(model, seeds, Path(scratch) / str(seeds))
            overhead = (wall - own / 2) / n
            work = 1e3 * own / n
            print(
                f"  {n:5d} cells  {1e3 * wall / n:7.1f} ms a cell, {work:6.1f} of it work, {1e3 * overhead:6.1f} beyond"
            )
