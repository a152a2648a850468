"""What a model actor does, as a plain class: load once, then score and damage on request. No Ray here."""

from __future__ import annotations

import os
import platform
import time
from functools import cached_property, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from esa_ray import __version__, data
from esa_ray.errors import EsaError
from esa_ray.evaluation.damaging import Damaging
from esa_ray.evaluation.protocols import Measuring
from esa_ray.grid import Fingerprints
from esa_ray.host.machine import own_directory, this_machine
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.target import Target, check_windows_apart, read_target
from esa_ray.models import device as gpus
from esa_ray.models.account import account
from esa_ray.models.addressing import catalogue
from esa_ray.models.blocks import check_window, vocabulary
from esa_ray.models.edited import origin
from esa_ray.models.known import facts
from esa_ray.models.load import load_model, load_tokenizer, resolve_dtype
from esa_ray.models.sources import Source, check_unchanged, find
from esa_ray.models.tokenizing import check_tokens, embedded
from esa_ray.perturb.fixed import rounds_away
from esa_ray.resume import Resumable
from esa_ray.scoring.rankings import Rankings
from esa_ray.spec import DataSpec, StudySpec
from esa_ray.storage.store import (
    Store,
)

if TYPE_CHECKING:
    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.evaluation.outcome import Outcome
    from esa_ray.measurements.interpreting import Interpreting
    from esa_ray.measurements.members import Members
    from esa_ray.measurements.memories import Memories

#: Kinds of models that each machine has files of its own of.
LOCAL = ("directory", "gguf")


def versions(device: str = "cpu", *more: str) -> dict[str, str]:
    """Versions of everything that can change a number, on GPUs also of CUDA and the driver, and how they round.

    ``more`` are packages that this study uses, where they are installed.
    """
    installed = [name for name in more if find_spec(name)]
    found = {"esa-ray": __version__} | {name: version(name) for name in ("torch", "transformers", "numpy", *installed)}
    return found | {"python": platform.python_version()} | (gpus.versions() if device != "cpu" else {})


def _more(spec: StudySpec) -> list[str]:
    """Packages beside the usual ones that change a study's numbers: of adapters' starts, and of facts."""
    asked = spec.facts or (spec.roles and "fact" in spec.roles.roles)
    return ["peft"] * any(how.arm == "lora" for how in spec.tunings) + ["countryinfo", "periodictable"] * bool(asked)


class Worker:
    """Holds one model and its text windows; every method leaves the weights as it found them.

    Parameters
    ----------
    device
        "cpu", "cuda", or "auto" for accelerate's device map over all visible GPUs.
    threads
        CPU threads for this process; None leaves torch's own choice.
    memory_budget
        Bytes above the weights that scoring may take on any one device; None is no limit.
    room
        By "auto" and without a budget, the bytes of each GPU for weights and scoring together: what weights leave of it
        is the budget.
    max_memory
        By "auto", the bytes of weights that each GPU (by number) and "cpu" may hold; None is what is free.
    gpu_share
        The part of a GPU that this process keeps to; None is all of it.
    text
        The fingerprint that the text must have: every worker reads it for itself, and all must see the same.
    origin
        The machine that found the model; on any other its files are compared first.
    target
        As ``text``, of the text that is tuned to.
    windows
        The windows of a text that is too large for every worker to read; ``text`` is then taken at its word.
    """

    def __init__(
        self,
        spec: StudySpec,
        source: Source,
        directory: str,
        *,
        text: str | None = None,
        target: str | None = None,
        windows: data.Windows | None = None,
        device: str = "cpu",
        threads: int | None = None,
        memory_budget: int | None = None,
        room: int | None = None,
        max_memory: dict[int | str, int] | None = None,
        gpu_share: float | None = None,
        origin: str | None = None,
    ):
        if threads:
            torch.set_num_threads(threads)
        if origin not in (None, this_machine()) and source.kind in LOCAL:
            mine = find(spec.model)
            if mine != source:
                raise EsaError(f"{platform.node()} has other files under --model {spec.model.source}; share them")
            source = mine
        gpus.pin_arithmetic()
        if gpu_share:
            gpus.take_share(gpu_share)
        self.spec, self.source, self.store = spec, source, Store(directory)
        self.dtype = resolve_dtype(source, spec.model.dtype, device)
        self.windows, self.target, found = self._read_texts(windows, text, target)
        self.resolved = Fingerprints(
            source.fingerprint, self.dtype, found, self.target.fingerprint if self.target else None
        )
        # What fits no device goes to this machine's disk, in a directory that goes with the process.
        folder = own_directory("esa-offload-") if device == "auto" else None
        self.model = load_model(source, self.dtype, device, max_memory, folder)
        self._mapped = device == "cpu" and source.kind == "directory"
        if memory_budget is None and room and max_memory:
            memory_budget = max(room - gpus.heaviest(self.model, max_memory[0]), 1)
        self.memory_budget = memory_budget
        check_window(source.name, self.model, spec.data.window)
        self._check_tokens()
        self.catalogue = catalogue(self.model)
        self._check_layers()
        where = f"cpu × {torch.get_num_threads()} threads" if device == "cpu" else gpus.cards(self.model)
        self.device, self._versions = f"{where} on {platform.node()}", versions(device, *_more(spec))
        self.rankings = Rankings(self.model, self.catalogue, self.windows, spec, self.store, source.name)
        self._check_steps()
        self.ranking = lru_cache(maxsize=16)(self._read_ranking)
        self.calibrated = lru_cache(maxsize=1)(self._calibrate)
        self.trained_on = lru_cache(maxsize=1)(self._calibrate_target)
        self.damaging = Damaging(
            self.model, self.catalogue, self.windows, spec.data, head_stays=not self._may_touch_head(),
            tail_stays=all(tensor.layer is not None for tensor in self.rankings.tensors), budget=memory_budget,
        )  # fmt: skip

    def _read_texts(
        self, windows: data.Windows | None, text: str | None, target: str | None
    ) -> tuple[data.Windows, Target | None, str]:
        """The text's windows, the target, and the text's fingerprint."""
        documents, tokenizer = None, load_tokenizer(self.source)
        if windows is None or text is None:
            documents = data.read_documents(self.spec.data, tokenizer)
            found = data.text_fingerprint(documents)
            if text not in (None, found):
                raise EsaError(
                    f"{platform.node()} sees another text under --data {self.spec.data.source}; share the file"
                )
            windows, text = data.windows(self.spec.data, tokenizer, self.spec.seeds, documents), found
        return windows, self._read_target(target, windows, documents, text), text

    def _read_target(
        self, expected: str | None, windows: data.Windows, documents: list[str] | None, text: str
    ) -> Target | None:
        if self.spec.target is None:
            return None
        found = read_target(self.spec, load_tokenizer(self.source), documents, text)
        if expected not in (None, found.fingerprint):
            raise EsaError(f"{platform.node()} sees another text under --target {found.spec.source}; share the file")
        if found.fingerprint != text:
            check_windows_apart(self.spec, windows, found)
        return found

    def _calibrate(self, seed: int) -> Calibrated:
        """A seed's calibration windows, and what compressions and tunings by them have gathered so far."""
        return self._gathering(self.windows.calibration(seed), self.spec.data)

    def _calibrate_target(self, seed: int) -> Calibrated:
        """A seed's training windows of the target, and what tunings have gathered of them so far."""
        assert self.target
        return self._gathering(self.target.train(seed), self.target.spec)

    def _gathering(self, windows: np.ndarray, spec: DataSpec) -> Calibrated:
        from esa_ray.applications.calibrated import Calibrated

        return Calibrated(
            self.model, self.catalogue, windows, batch_size=spec.batch_size, memory_budget=self.memory_budget
        )

    @cached_property
    def _others(self) -> list[tuple[data.Windows, str]]:
        """The windows of the study's other texts, and what they say."""
        tokenizer, found = load_tokenizer(self.source), []
        for spec in self.spec.other_texts:
            documents = data.read_documents(spec, tokenizer)
            windows = data.windows(spec, tokenizer, documents=documents)
            check_tokens(self.source.name, [windows.evaluation], embedded(self.model))
            found.append((windows, data.text_fingerprint(documents)))
        return found

    def spare_memory(self) -> None:
        """Let go of what is kept to save time, and keep less of it from now on."""
        self.damaging.spare_memory()
        self.memories.spare_memory()
        if self.spec.population:
            self.members.spare_memory()
        if self.spec.roles:
            self.interpreting.spare_memory()
        self.calibrated.cache_clear()
        self.trained_on.cache_clear()

    @cached_property
    def memories(self) -> Memories:
        """Ways to store the model's weights, for faults and attacks."""
        from esa_ray.measurements.memories import Memories

        return Memories(self)

    @cached_property
    def members(self) -> Members:
        """The models of the study's population."""
        from esa_ray.measurements.members import Members

        return Members(self)

    @cached_property
    def interpreting(self) -> Interpreting:
        """What roles, attention and facts are told by."""
        from esa_ray.measurements.interpreting import Interpreting

        return Interpreting(self)

    @property
    def texts(self) -> list[tuple[str, DataSpec, np.ndarray]]:
        """Every text that is evaluated: "in" or "out" of the domain of calibration, its spec, its windows (N, T)."""
        mine = ("in", self.spec.data, self.windows.evaluation)
        others = zip(self.spec.other_texts, self._others, strict=True)
        return [mine, *(("out", spec, windows.evaluation) for spec, (windows, _) in others)]

    def _check_tokens(self) -> None:
        texts = [self.windows, *([self.target.windows] if self.target else [])]
        read = [text.evaluation for text in texts]
        read += [text.calibration(seed) for text in texts for seed in self.spec.seeds]
        check_tokens(self.source.name, read, embedded(self.model))

    def _check_layers(self) -> None:
        deep = [part.value for part in self.spec.parts if part.kind == "layer" and part.value >= self.catalogue.layers]
        if deep:
            raise EsaError(f"--layers {deep[0]:g}: the model has the blocks 0 to {self.catalogue.layers - 1}")

    def check_files(self) -> None:
        """Refuse to go on where the model's files were written to since."""
        if self._mapped:  # what is written to the file then stands in the model
            check_unchanged(self.source)

    def _check_steps(self) -> None:
        done = [(perturbation, self.rankings.tensors) for perturbation in self.spec.perturbations]
        done += [(t.damage, self.catalogue.select(t.components)) for t in self.spec.tunings if t.damage]
        done += [(edit, self.rankings.tensors) for edit in (self.spec.roles.edits if self.spec.roles else ())]
        for perturbation, tensors in done:
            if rounds_away(perturbation, {tensor.dtype for tensor in tensors}):
                raise EsaError(
                    f"{perturbation.label} can never change a weight in {self.dtype}, where {perturbation.step:.2g} of "
                    "one rounds away; give another strength, or --dtype fp32"
                )

    def _may_touch_head(self) -> bool:
        head = self.model.get_output_embeddings()
        return any(slot.owner is head for tensor in self.rankings.tensors for slot in tensor.slots)

    def describe(self) -> dict[str, Any]:
        """What was found: part of ``study.json`` and of the report's method section."""
        windows = self.windows
        return {
            "model": self.resolved.model,
            "dtype": self.resolved.dtype,
            "text": self.resolved.text,
            "bos": windows.bos,
            "opening": windows.opening,
            "windows": windows.total,
            "pool": windows.pool,
            **facts(self.source.name, self.model),
            "vocabulary": vocabulary(self.model),
            "layers": self.catalogue.layers,
            "addressed": account(self.catalogue),
            "architecture": type(self.model).__name__,
            "versions": self._versions,
            **self._described_others(),
            **self._described_origin(),
        }

    def _described_origin(self) -> dict[str, Any]:
        found = origin(Path(self.source.path), self.source.fingerprint) if self.source.kind == "directory" else None
        return {"made_of": found} if found else {}

    def _described_others(self) -> dict[str, Any]:
        texts = {spec.source: text for spec, (_, text) in zip(self.spec.other_texts, self._others, strict=True)}
        target = {"target": self.target.fingerprint} if self.target else {}
        if self.target and self.target.left_out:
            target["target_left_out"] = self.target.left_out
        return target | ({"other_texts": texts} if texts else {})

    @cached_property
    def common(self) -> dict[str, Any]:
        """What all rows of this worker say alike."""
        spec = self.spec
        return {
            "study": spec.name,
            "model": self.source.name,
            "dtype": self.dtype,
            "data": spec.data.source,
            **({"target": spec.target.source} if spec.target else {}),
            "device": self.device,
            "worker": f"{platform.node()}/{os.getpid()}",
            "version": " ".join(f"{k}={v}" for k, v in self._versions.items()),
        }

    def measure(self, name: str, unit: Unit) -> dict[str, Any]:
        """Measure one unit of a measurement and store it; returns what the driver hears, the seconds among it.

        Example
        -------
        >>> worker.measure("rankings", Unit("s1337", (1337,)))  # doctest: +SKIP
        """
        started = time.perf_counter()
        found = MEASUREMENTS[name].measure(self, unit)
        return {"seconds": time.perf_counter() - started} | found

    @cached_property
    def _baseline(self) -> dict[str, Any]:
        return dict(self.store.read("baselines", "baseline").to_pylist()[0])

    def own_intact(self) -> dict[str, Any]:
        """The intact model's loss here, where the stored baseline's isn't the same to the bit.

        Other hardware rounds otherwise, and damage is to be measured against the same rounding.
        """
        own = self.damaging.intact.outcome.nll
        measured = "_baseline" in vars(self) or self.store.has("baselines", "baseline")  # asked of a bucket but once
        stored = self._baseline if measured else {}
        return {"intact_nll": None if own == stored.get("nll") else own}

    def evaluated(self) -> list[tuple[str, str, Outcome]]:
        """Each text, whether it is in domain, and what the model as it is now makes of it."""
        from esa_ray.evaluation import evaluate

        return [
            (spec.source, domain, evaluate(self.model, windows, spec.batch_size))
            for domain, spec, windows in self.texts
        ]

    @cached_property
    def dense(self) -> list[tuple[str, str, Outcome]]:
        """The same of the intact model, which it must be when this is asked for the first time."""
        return self.evaluated()

    def loss(self, name: str, windows: np.ndarray) -> dict[str, Any]:
        """What the model as it is now makes of windows of the target, or by the name "source" of the study's text."""
        from esa_ray.evaluation import evaluate

        spec = self.spec.data if name == "source" else self.spec.target
        assert spec
        outcome = evaluate(self.model, windows, spec.batch_size)
        return {f"{name}_nll": outcome.nll, f"{name}_tokens": outcome.tokens}

    def both_losses(self) -> dict[str, Any]:
        """The same of the evaluation windows of both."""
        assert self.target
        return self.loss("target", self.target.evaluation) | self.loss("source", self.windows.evaluation)

    @cached_property
    def untuned(self) -> dict[str, Any]:
        """The same of the intact model, which it must be when this is asked for the first time."""
        return self.both_losses()

    @cached_property
    def resumable(self) -> Resumable:
        """The evaluation windows' forward passes, to be resumed from any block."""
        return Resumable(self.model, self.windows.evaluation, self.spec.data.batch_size)

    @cached_property
    def protocols(self) -> Measuring:
        """The intact model under protocols."""
        return Measuring(self.model, self.source, self.spec)

    def _read_ranking(self, name: str) -> Any:
        return self.store.read("rankings", name)
