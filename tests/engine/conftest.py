"""A tiny model and text on disk, and one Ray cluster for the whole session."""

import os
import tempfile

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec
from tests.tiny import byte_tokenizer

TEXT = "".join(
    f"Item {i}: the {w} {i * 7919 % 1000} {w[::-1]}.\n" for i, w in enumerate(["alpha", "beta", "gamma"] * 400)
)


def save_model(directory, *, poison: bool = False, seed: int = 0) -> str:
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    if poison:
        model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("nan")
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture(scope="session")
def tiny_study(model_dir, text_file):
    return StudySpec(
        name="tiny",
        model=ModelSpec(source=model_dir),
        data=DataSpec(source=text_file, window=24, calibration_windows=4, evaluation_windows=5, batch_size=2),
        topk=(3, 5),
        seeds=(7, 8),
        perturbations=(
            PerturbSpec(kind="zero"),
            PerturbSpec(kind="gauss_noise", strength=0.5),
            PerturbSpec(kind="bit_flip", strength=0.3),
        ),
        groups=("super", "random_k", "matched_k", "bottom_k"),
    )


@pytest.fixture(scope="session")
def ray_cluster():
    """The session's own cluster: studies run in this process join it, and only it is stopped at the end."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    import ray

    with tempfile.TemporaryDirectory(prefix="esa-ray-", ignore_cleanup_errors=True) as scratch:
        ray.init(
            address="local", include_dashboard=False, num_cpus=2, object_store_memory=100 * 2**20,
            log_to_driver=False, logging_level="ERROR", _temp_dir=scratch,
        )  # fmt: skip
        yield
        ray.shutdown()
