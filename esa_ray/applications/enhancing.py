"""Tuning from Python: few weights that are named, or all of them while those that are named are damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import ValidationError

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.guided import SEED, asked_of, opened, ranked, store_of, super_weights, windows_of
from esa_ray.applications.kept import Kept
from esa_ray.applications.records import Calibration, of_tuned
from esa_ray.applications.saving import save
from esa_ray.applications.tuning import Tuned, tune
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.spec import DataSpec, PerturbSpec, StudySpec, TuneSpec, explain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.applications.tuning.choosing import Places
    from esa_ray.models.addressing import Catalogue

#: Windows that are trained on where nothing is said.
WINDOWS = 256


def efficient_fine_tuning(
    model: PreTrainedModel | str,
    sensitivity_map: Any,
    *,
    windows: np.ndarray | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: DataSpec | None = None,
    learning_rate: float = 1e-3,
    steps: int = 100,
    batch: int = 8,
    seed: int | None = None,
    save_to: str | Path | None = None,
) -> tuple[PreTrainedModel, Tuned]:
    """Tune the weights of a sensitivity map to a text, and leave all others as they are, bit for bit.

    Adam, as :class:`esa_ray.spec.tuning.TuneSpec` has it. Few weights take larger steps than all: try several
    ``learning_rate``, and choose by text that isn't trained on, as ``esa tune`` does.

    Parameters
    ----------
    model
        A transformers model, which is changed in place, or a name, directory or file as ``--model`` takes it.
    sensitivity_map
        Which weights learn: flat indices (in the order of memory) by tensor; a ranking, as the table ``rankings`` has
        them; or a study, by its directory or as ``analysis`` loads it: the weights that it ranks as super.
    windows
        Training windows, integers of shape (N, T). None cuts them out of ``text`` with the tokenizer.
    tokenizer
        Of a model in hand; a model by its name brings its own.
    text
        The text to tune to; None is ``pysource``, the source code of Python's library, or ``pydoc`` where a study's
        text is that.
    steps, batch
        Training steps, and windows a step; at most as many of these pass the model at a time as the text's
        ``batch_size`` says, or 8.
    seed
        Draws the windows and orders them; None is the study's first, or 1337.
    save_to
        A directory to save the tuned model in, with its provenance; for a model by its name.

    Returns
    -------
    The tuned model and what was done to it. If anything fails, the model is what it was.

    Raises
    ------
    EsaError
        If the model has no such weights, nothing says what to train on, or training diverges.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> windows = np.arange(32).reshape(4, 8) % 16
    >>> weight = model.transformer.h[1].mlp.c_fc.weight
    >>> before = weight.detach().clone()
    >>> critical = {"transformer.h.1.mlp.c_fc.weight": [0, 5]}
    >>> tuned, result = efficient_fine_tuning(model, critical, windows=windows, steps=3)
    >>> tuned is model, result.trainable, (weight != before).flatten().nonzero().flatten().tolist()
    (True, 2, [0, 5])
    """
    study = _study(sensitivity_map)
    if text is None:
        other = "pydoc" if study and study.data.source == "pysource" else "pysource"
        text = (study.data if study else DataSpec()).model_copy(
            update={"source": other, "text_column": "text", "chat": False, "calibration_windows": WINDOWS}
        )
    how = {"learning_rate": learning_rate, "steps": steps, "batch": batch}
    given = _Given(sensitivity_map, study, windows, tokenizer, text, seed, save_to)
    return _tuned(model, given, how, damaged=False)


def robustness_enhancement(
    model: PreTrainedModel | str,
    critical_weights: Any,
    *,
    damage: PerturbSpec | str = "sign_flip",
    windows: np.ndarray | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: DataSpec | None = None,
    learning_rate: float = 1e-4,
    steps: int = 100,
    batch: int = 8,
    seed: int | None = None,
    save_to: str | Path | None = None,
) -> tuple[PreTrainedModel, Tuned]:
    """Tune a whole model while its critical weights are damaged, so that it learns to do without them.

    Every step makes its gradient with ``damage`` done to the ``critical_weights``, drawn anew where it is random, and
    takes that back before the update. Whether the model then survives damage better, and what that costs it intact,
    is measured as of any model: save it, and ``esa run --model SAVED``.

    Parameters
    ----------
    model
        As :func:`efficient_fine_tuning` takes it.
    critical_weights
        Which weights are damaged, as :func:`efficient_fine_tuning` takes a ``sensitivity_map``.
    damage
        What is done to them: a :class:`esa_ray.spec.damage.PerturbSpec`, or its label as ``--perturb`` takes it.
    text
        The text to tune to; None is the study's, or without one the default of ``esa run``.
    windows, tokenizer, learning_rate, steps, batch, seed, save_to
        As :func:`efficient_fine_tuning` takes them.

    Returns
    -------
    The tuned model, and what was done to it. If anything fails, the model is what it was.

    Raises
    ------
    EsaError
        If the model has no such weights, the damage can't change them, or training diverges.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> windows = np.arange(32).reshape(4, 8) % 16
    >>> critical = {"transformer.h.0.attn.c_proj.weight": [3, 4]}
    >>> tuned, result = robustness_enhancement(model, critical, damage="scale-0.5", windows=windows, steps=3)
    >>> tuned is model, result.trainable == result.n_weights
    (True, True)
    """
    study = _study(critical_weights)
    how = {"learning_rate": learning_rate, "steps": steps, "batch": batch, "damage": _damage(damage)}
    text = text or (study.data if study else DataSpec())
    return _tuned(model, _Given(critical_weights, study, windows, tokenizer, text, seed, save_to), how, damaged=True)


class _Given:
    """What a user gave, but for the model and how it is tuned."""

    def __init__(
        self,
        weights: Any,
        study: StudySpec | None,
        windows: np.ndarray | None,
        tokenizer: PreTrainedTokenizerBase | None,
        text: DataSpec,
        seed: int | None,
        save_to: str | Path | None,
    ):
        self.weights, self.study, self.windows, self.tokenizer = weights, study, windows, tokenizer
        self.text, self.save_to = text, save_to
        self.seed = seed if seed is not None else study.seeds[0] if study else SEED


def _tuned(
    model: PreTrainedModel | str, given: _Given, how: dict[str, Any], *, damaged: bool
) -> tuple[PreTrainedModel, Tuned]:
    store = None if given.study is None else store_of(given.weights)
    model, tokenizer, source = opened(model, given.tokenizer, given.save_to, store)
    weights = catalogue(model)
    flat = _flat(given.weights, model, weights)
    spec = _spec(how, flat, weights)
    name, fingerprint, windows = None, None, given.windows
    if windows is None:
        windows, fingerprint = windows_of(given.text, tokenizer, given.seed)
        name = given.text.source
    windows = np.asarray(windows)
    places: Places = {weights[name]: torch.from_numpy(at) for name, at in flat.items()}
    together = 8 if name is None else given.text.batch_size
    text, kept = Calibrated(model, weights, windows, batch_size=together), Kept()
    try:
        result = tune(
            model, weights, spec, given.seed, windows, source=text, target=text, kept=kept,
            learning=None if damaged else places, worn=places if damaged else None,
        )  # fmt: skip
        if result.diverged:
            raise EsaError(f"training diverged after {result.steps} steps; lower learning_rate")
        if given.save_to is not None and source:
            edit = {"kind": "tune", **spec.content(), "weights": _digest(flat), "windows": _digest({"": windows})}
            edit |= {"together": together} if spec.batch > together else {}
            training = Calibration(name, fingerprint, *windows.shape)
            save(
                model, source, of_tuned(source, result, spec, edit, given.seed, training, given=not damaged),
                given.save_to,
                tokenizer=tokenizer,
            )  # fmt: skip
    except BaseException:
        kept.take_back()
        raise
    kept.keep()
    return model, result


def _spec(how: dict[str, Any], flat: Mapping[str, np.ndarray], weights: Catalogue) -> TuneSpec:
    """A tuning of the usual components, and of those that are named beside these."""
    usual = TuneSpec.model_fields["components"].default
    there = {tensor.name for tensor in weights.select(usual)}
    components = (*usual, *(name for name in flat if name not in there))
    try:
        return TuneSpec.model_validate(how | {"components": components, "looks": 1})
    except ValidationError as error:
        raise explain(error) from None


def _damage(damage: PerturbSpec | str) -> PerturbSpec:
    try:
        return PerturbSpec.parse(damage) if isinstance(damage, str) else damage
    except ValidationError as error:
        raise explain(error) from None
    except ValueError as error:
        raise EsaError(f"damage: {error}") from None


def _study(given: Any) -> StudySpec | None:
    """The study that weights are given by; None where they are given as they are."""
    return None if isinstance(given, Mapping) or _table(given) is not None else asked_of(store_of(given))


def _table(given: Any) -> pa.Table | None:
    """A ranking as a table of Arrow's, of Polars' too; None of what is none."""
    if hasattr(given, "to_arrow"):
        given = given.to_arrow()
    return given if isinstance(given, pa.Table) else None


def _flat(given: Any, model: PreTrainedModel, weights: Catalogue) -> dict[str, np.ndarray]:
    """Flat indices by tensor, ascending, each once."""
    table = _table(given)
    if isinstance(given, Mapping):
        found = {name: _indices(name, at, weights) for name, at in given.items()}
    elif table is not None:
        found = ranked(table, "the ranking", model, weights)
    else:
        found = super_weights(store_of(given), model, weights)
    found = {name: np.unique(at) for name, at in found.items() if len(at)}
    if not found:
        raise EsaError("not one weight is named; give flat indices by tensor, a ranking, or a study's directory")
    return found


def _indices(name: str, at: Any, weights: Catalogue) -> np.ndarray:
    if name not in weights.by_name:
        raise EsaError(f"the model has no tensor {name}; its first is {weights.tensors[0].name}")
    found = np.asarray(at).reshape(-1)
    if not len(found):
        return found.astype(np.int64)
    size = weights[name].size
    if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= size:
        raise EsaError(f"{name}: flat indices are whole numbers from 0 to {size - 1}, in the order of memory")
    return found.astype(np.int64)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named integers, whatever their order."""
    found = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        found.update(f"{name}:{values.shape}\n".encode())
        found.update(np.ascontiguousarray(values, "<i8").tobytes())
    return found.hexdigest()
