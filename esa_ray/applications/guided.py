"""Pruning from Python, guided by what a study found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from esa_ray import data
from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.compress import Compressed, compress
from esa_ray.applications.kept import Kept
from esa_ray.applications.records import Calibration, of_compressed
from esa_ray.applications.saving import save
from esa_ray.errors import EsaError
from esa_ray.models.addressing import Catalogue, catalogue
from esa_ray.models.load import load_model, load_tokenizer, resolve_dtype
from esa_ray.models.sources import Source, find
from esa_ray.models.units import Units
from esa_ray.scoring.chosen import chosen
from esa_ray.scoring.chosen_units import chosen_units_and_known, unit_of
from esa_ray.spec import DataSpec, ModelSpec, StudySpec
from esa_ray.spec.base import explain
from esa_ray.spec.compression import METHODS, PruneSpec
from esa_ray.storage.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Seed of the calibration windows where no study says another.
SEED = 1337


def esa_guided_pruning(
    model: PreTrainedModel | str,
    sensitivity_results: Any = None,
    *,
    windows: np.ndarray | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: DataSpec | None = None,
    score: str = "grad_x_weight_abs",
    sparsity: float = 0.5,
    method: str | None = None,
    seed: int | None = None,
    save_to: str | Path | None = None,
    **how: Any,
) -> tuple[PreTrainedModel, Compressed]:
    """Prune a model for good, and spare the weights that a study found it to hang on.

    The weights with the smallest score leave, exactly ⌊s·n⌋ of each group. Those that the study ranks as its super
    weights leave last of their group, whatever their score.

    Parameters
    ----------
    model
        A transformers model, which is changed in place, or a name, directory or file as ``--model`` takes it.
    sensitivity_results
        A study: its directory, or an ``analysis`` Study. Its super weights are spared, and where no windows are
        given, those of its text that its first seed calibrates on decide. None spares nothing.
    windows
        Calibration windows, integers of shape (N, T). None cuts them out of ``text`` with the tokenizer.
    tokenizer
        Of a model in hand; a model by its name brings its own.
    text
        The text to calibrate on; None is the study's, or without a study the default of ``esa run``.
    score, sparsity, **how
        As :class:`esa_ray.spec.compression.PruneSpec` has them: ``group``, ``pattern``, ``allocation``, ``update``,
        ``damping``, ``sequential``, ``components``.
    method
        A published method by its name in :data:`esa_ray.spec.compression.METHODS` ("wanda", "sparsegpt", …) in place
        of ``score``; other words change points of it.
    seed
        Of the calibration windows; None is the study's first, or 1337.
    save_to
        A directory to save the pruned model in, with its provenance; for a model by its name.

    Returns
    -------
    The pruned model and what was done to it. If anything fails, the model is what it was.

    Raises
    ------
    EsaError
        If nothing says which text to calibrate on, or the study is of another model.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> windows = np.arange(32).reshape(4, 8) % 16
    >>> pruned, result = esa_guided_pruning(model, windows=windows, sparsity=0.5)
    >>> pruned is model, result.n_pruned / result.n_weights
    (True, 0.5)
    >>> int((model.transformer.h[0].mlp.c_fc.weight == 0).sum()) * 2 == model.transformer.h[0].mlp.c_fc.weight.numel()
    True
    """
    spec = _spec(score, sparsity, method, how)
    store = None if sensitivity_results is None else store_of(sensitivity_results)
    study = asked_of(store) if store else None
    model, tokenizer, source = opened(model, tokenizer, save_to, store)
    seed = seed if seed is not None else study.seeds[0] if study else SEED
    name = fingerprint = None
    if windows is None:
        asked = text or (study.data if study else DataSpec())
        windows, fingerprint = windows_of(asked, tokenizer, seed)
        name = asked.source
    weights = catalogue(model)
    calibrated = Calibrated(model, weights, windows)
    if store:
        calibrated.spared = super_weights(store, model, weights)
    kept = Kept()
    try:
        result = compress(calibrated, spec, seed, kept)
        if save_to is not None and source:
            spared = str(store.directory) if store else None
            size, length = calibrated.windows.shape
            calibration = Calibration(name, fingerprint, size, length, spared)
            save(model, source, of_compressed(source, result, spec, seed, calibration), save_to, tokenizer=tokenizer)
    except BaseException:
        kept.take_back()
        raise
    kept.keep()
    return model, result


def opened(
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None,
    save_to: str | Path | None,
    store: Store | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None, Source | None]:
    """A model, in hand or by its name, with its tokenizer and what it was made of, as far as they are known.

    Raises
    ------
    EsaError
        If it is to be saved, and nobody knows what it was made of; or if the study in ``store`` is of another model.
    """
    if not isinstance(model, str):
        if save_to is not None:
            raise EsaError(
                "save_to needs the model's name, which says what it was made of; give that in place of a model"
            )
        return model, tokenizer, None
    source = find(ModelSpec(source=model))
    if store:
        _check_same(store, source)
    return (
        load_model(source, resolve_dtype(source, "auto", "cpu"), "cpu"), tokenizer or load_tokenizer(source), source,
    )  # fmt: skip


def super_weights(store: Store, model: PreTrainedModel, weights: Catalogue) -> dict[str, np.ndarray]:
    """The weights that a study ranks as super, by any of its scores and seeds: flat indices by tensor.

    Of rows, columns, neurons and heads these are all their weights.

    Raises
    ------
    EsaError
        If it ranked none, or those of another model.
    """
    found: dict[str, list[np.ndarray]] = {}
    for name in store.names("rankings"):
        ranking = store.read("rankings", name)
        for tensor, flat in ranked(ranking, f"{store.directory}", model, weights).items():
            found.setdefault(tensor, []).append(flat)
    if not found:
        raise EsaError(f"{store.directory} ranks no super weights; run the study with --topk, or leave it out")
    return {tensor: np.unique(np.concatenate(several)) for tensor, several in found.items()}


def ranked(ranking: pa.Table, name: str, model: PreTrainedModel, weights: Catalogue) -> dict[str, np.ndarray]:
    """The super weights of one ranking, flat indices by tensor; ``name`` is what an error calls it.

    Raises
    ------
    EsaError
        If the model has no such weights.
    """
    unit, k = unit_of(ranking), len(ranking)
    try:
        found = (
            chosen(ranking, "super", k) if unit == "weight"
            else chosen_units_and_known(Units(model, weights, unit), ranking, "super", k)[0]
        )  # fmt: skip
    except KeyError as error:
        raise EsaError(f"{name} is a study of another model: {error.args[0]}") from None
    for tensor, flat in found.items():
        if tensor not in weights.by_name or flat.max() >= weights[tensor].size:
            raise EsaError(f"{name} is a study of another model: this one has no weights {tensor}")
    return found


def _spec(score: str, sparsity: float, method: str | None, how: Mapping[str, Any]) -> PruneSpec:
    if method not in (None, *METHODS):
        raise EsaError(f"method {method!r} is not among {', '.join(METHODS)}")
    point = METHODS[method].model_dump() if method else {"score": score}
    try:
        return PruneSpec.model_validate(point | {"sparsity": sparsity, **how})
    except ValidationError as error:
        raise explain(error) from None


def store_of(results: Any) -> Store:
    """The store of a study: of its directory, or of an ``analysis`` Study."""
    return Store(getattr(results, "directory", results))


def asked_of(store: Store) -> StudySpec:
    """What a stored study asks.

    Raises
    ------
    EsaError
        If there is none.
    """
    record = store.load_study()
    if record is None:
        raise EsaError(f"{store.directory} holds no study; give the directory that esa run wrote its results to")
    return StudySpec.model_validate(record["spec"])


def _check_same(store: Store, source: Source) -> None:
    """Refuse a study of another model, where the fingerprints of both are known."""
    measured = ((store.load_study() or {}).get("resolved") or {}).get("model")
    if measured not in (None, source.fingerprint):
        raise EsaError(
            f"{store.directory} is a study of another model than {source.name}, by their fingerprints; give a study of "
            "this one, or leave it out"
        )


def windows_of(text: DataSpec, tokenizer: PreTrainedTokenizerBase | None, seed: int) -> tuple[np.ndarray, str]:
    """A seed's calibration windows of a text, and the text's fingerprint.

    Raises
    ------
    EsaError
        If there is no tokenizer.
    """
    if tokenizer is None:
        raise EsaError("a model in hand needs windows=, or a tokenizer= that cuts them out of a text; give one of them")
    documents = data.read_documents(text, tokenizer)
    return data.windows(text, tokenizer, (seed,), documents).calibration(seed), data.text_fingerprint(documents)
