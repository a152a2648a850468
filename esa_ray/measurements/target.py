"""The text that a model is tuned to: windows to train on, to choose learning rates by, and to judge by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esa_ray import data
from esa_ray.errors import EsaError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from esa_ray.spec import DataSpec, StudySpec

#: What of a text's windows must be alike where the source and the target are one text.
CUT = ("window", "bos", "evaluation_windows")


@dataclass(frozen=True)
class Target:
    """The target's windows; ``n_train`` of a seed's draw train, the rest of it validates."""

    spec: DataSpec
    windows: data.Windows
    n_train: int
    fingerprint: str

    @property
    def evaluation(self) -> np.ndarray:
        """Windows (N, T) that judge what was learned; no seed trains on them or chooses by them."""
        return self.windows.evaluation

    def train(self, seed: int) -> np.ndarray:
        """Windows (N, T) that a seed trains on."""
        return self.windows.calibration(seed)[: self.n_train]

    def validation(self, seed: int) -> np.ndarray:
        """Windows (N, T) that a seed chooses learning rates by."""
        return self.windows.calibration(seed)[self.n_train :]


def read_target(spec: StudySpec, tokenizer: PreTrainedTokenizerBase) -> Target:
    """Read and cut a study's target.

    Raises
    ------
    EsaError
        If it isn't there, or too short.
    """
    assert spec.target
    asked = spec.target
    both = asked.model_copy(update={"calibration_windows": asked.calibration_windows + spec.validation_windows})
    with named():
        documents = data.read_documents(asked, tokenizer)
        windows = data.windows(both, tokenizer, spec.seeds, documents)
    return Target(asked, windows, asked.calibration_windows, data.text_fingerprint(documents))


@contextmanager
def named() -> Iterator[None]:
    """What goes wrong with the target, in the names of its own options."""
    try:
        yield
    except EsaError as error:
        said = str(error).replace("--data ", "--target ").replace("to calibrate", "to train on and validate by")
        said = said.replace("seeds calibrate on", "seeds train on").replace("the text", "the text of --target")
        raise EsaError(said.replace("--max-samples", "--target-windows")) from None


def check_judged_apart(spec: StudySpec, text: str, target: str) -> None:
    """Refuse to tune to the source text itself where its windows are cut otherwise.

    Parameters
    ----------
    text, target
        Fingerprints of the two.

    Raises
    ------
    EsaError
        If windows that are trained on could hold what judges forgetting.
    """
    assert spec.target
    unlike = [name for name in CUT if getattr(spec.target, name) != getattr(spec.data, name)]
    if text == target and unlike:
        raise EsaError(
            f"--target {spec.target.source} is the text of --data, cut into other windows ({', '.join(unlike)}), so "
            "that training could see what judges forgetting; give both the same"
        )
