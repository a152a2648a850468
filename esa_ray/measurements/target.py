"""The text that a model is tuned to: windows to train on, to choose learning rates by, and to judge by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from esa_ray import data
from esa_ray.data.shared import Rest, without
from esa_ray.data.splitting import held
from esa_ray.errors import EsaError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from esa_ray.spec import DataSpec, StudySpec

#: What of a text's windows must be alike where the source and the target are one text.
CUT = ("window", "bos", "evaluation_windows")
#: Share of a window's runs of tokens from which on it counts as one that another text holds, and of windows from which
#: on texts count as the same in part: texts of one kind quote each other.
ALIKE, SEVERAL = 0.5, 0.05


@dataclass(frozen=True)
class Target:
    """The target's windows; ``n_train`` of a seed's draw train, the rest of it validates.

    ``fingerprint`` is that of all of its text, of which what the source holds, too, is ``left_out``.
    """

    spec: DataSpec
    windows: data.Windows
    n_train: int
    fingerprint: str
    left_out: str | None = None

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


def read_target(
    spec: StudySpec, tokenizer: PreTrainedTokenizerBase, source: list[str] | None = None, text: str | None = None
) -> Target:
    """Read and cut a study's target.

    Parameters
    ----------
    source
        The documents of the source text, which the target does without; None where they are too many to be read.
    text
        The source's fingerprint: a text that is source and target at once stays whole.

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
    fingerprint = data.text_fingerprint(documents)
    rest = rest_of(spec, documents, source) if source is not None and fingerprint != text else Rest(documents)
    with named():
        windows = data.windows(both, tokenizer, spec.seeds, rest.documents)
    return Target(asked, windows, asked.calibration_windows, fingerprint, rest.told)


def rest_of(spec: StudySpec, target: list[str], source: list[str]) -> Rest:
    """The target's documents without what the source holds, too.

    Nothing of what judges forgetting is trained on then, and nothing of what judges the gain chooses weights.

    Raises
    ------
    EsaError
        If nothing is left.
    """
    assert spec.target
    found = without(target, source)
    if not found.documents:
        raise EsaError(
            f"--target {spec.target.source} holds nothing that --data {spec.data.source} doesn't hold, too; give "
            "another text to tune to"
        )
    return found


def check_windows_apart(spec: StudySpec, source: data.Windows, target: Target) -> None:
    """Refuse texts that are the same in part, as far as documents and paragraphs didn't tell.

    Of a source that is too large to be read by every process only what its seeds calibrate on is known.

    Raises
    ------
    EsaError
        If a twentieth of the windows that judge, and more than one, stand in what the other text trains or calibrates.
    """
    assert spec.target
    for what, judged, other, flag in (
        ("forgetting", source.evaluation, target.windows, "--target"),
        ("what is learned", target.evaluation, source, "--data"),
    ):
        pool = other.pool_index
        if not len(pool):
            pool = np.unique(np.concatenate([other.calibration_index(seed) for seed in spec.seeds]))
        n = int((held(judged, other.tokens, pool) >= ALIKE).sum())
        if n >= max(2, SEVERAL * len(judged)):
            raise EsaError(
                f"--target {spec.target.source} and --data {spec.data.source} are the same in part: {n} of "
                f"{len(judged)} windows that judge {what} stand in {flag}, too; leave that part out of one of them"
            )


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
