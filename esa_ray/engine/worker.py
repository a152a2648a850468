"""What a model actor does, as a plain class: load once, then score and damage on request. No Ray here."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Any

import torch

from esa_ray import __version__, data
from esa_ray.ablation import observed, silenced, sublayers
from esa_ray.engine.damaging import Damaging
from esa_ray.engine.measuring import Measuring
from esa_ray.engine.rankings import Rankings
from esa_ray.errors import EsaError
from esa_ray.evaluation import Outcome
from esa_ray.fidelity import measure
from esa_ray.grid import Cell, Resolved, cell_id
from esa_ray.machine import own_directory, this_machine
from esa_ray.models import device as gpus
from esa_ray.models.account import account
from esa_ray.models.addressing import catalogue
from esa_ray.models.blocks import check_window, vocabulary
from esa_ray.models.exhaustion import give_back_memory, out_of_memory, poisoned
from esa_ray.models.known import facts
from esa_ray.models.load import load_model, load_tokenizer, resolve_dtype
from esa_ray.models.sources import Source, check_unchanged, find
from esa_ray.models.tokenizing import check_tokens, embedded
from esa_ray.perturb.edit import NotRestoredError
from esa_ray.perturb.fixed import UnchangeableError, rounds_away
from esa_ray.resume import Resumable
from esa_ray.scoring.chosen import EmptyPartError
from esa_ray.spec import StudySpec
from esa_ray.store import CENSUS_PACKET, Store, ablation_name, fidelity_name, protocol_name, ranking_name, samples_name
from esa_ray.tasks import answers_name

#: Bytes below which a smaller budget for scoring saves nothing.
SMALLEST_BUDGET = 64 * 2**20

#: Kinds of models that each machine has files of its own of.
LOCAL = ("directory", "gguf")


def versions(device: str = "cpu") -> dict[str, str]:
    """Versions of everything that can change a number, on GPUs also of CUDA and the driver, and how they round."""
    found = {"esa-ray": __version__} | {name: version(name) for name in ("torch", "transformers", "numpy")}
    return found | {"python": platform.python_version()} | (gpus.versions() if device != "cpu" else {})


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
        self.windows, found = (windows, text) if windows and text else self._read_text(text)
        self.resolved = Resolved(source.fingerprint, self.dtype, found)
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
        self.device, self._versions = f"{where} on {platform.node()}", versions(device)
        self.rankings = Rankings(self.model, self.catalogue, self.windows, spec, self.store, source.name)
        self._check_steps()
        self._ranking = lru_cache(maxsize=16)(self._read_ranking)
        self.damaging = Damaging(
            self.model, self.catalogue, self.windows, spec.data, head_stays=not self._may_touch_head(),
            tail_stays=all(tensor.layer is not None for tensor in self.rankings.tensors), budget=memory_budget,
        )  # fmt: skip

    def _read_text(self, expected: str | None) -> tuple[data.Windows, str]:
        tokenizer = load_tokenizer(self.source)
        documents = data.read_documents(self.spec.data, tokenizer)
        found = data.text_fingerprint(documents)
        if expected not in (None, found):
            raise EsaError(f"{platform.node()} sees another text under --data {self.spec.data.source}; share the file")
        return data.windows(self.spec.data, tokenizer, self.spec.seeds, documents), found

    def _check_tokens(self) -> None:
        read = [self.windows.evaluation, *(self.windows.calibration(seed) for seed in self.spec.seeds)]
        check_tokens(self.source.name, read, embedded(self.model))

    def _check_layers(self) -> None:
        deep = [part.value for part in self.spec.parts if part.kind == "layer" and part.value >= self.catalogue.layers]
        if deep:
            raise EsaError(f"--layers {deep[0]:g}: the model has the blocks 0 to {self.catalogue.layers - 1}")

    def _check_files(self) -> None:
        if self._mapped:  # what is written to the file then stands in the model
            check_unchanged(self.source)

    def _check_steps(self) -> None:
        dtypes = {tensor.dtype for tensor in self.rankings.tensors}
        for perturbation in self.spec.perturbations:
            if rounds_away(perturbation, dtypes):
                raise EsaError(
                    f"{perturbation.label} can never change a weight in {self.dtype}, where {perturbation.step:.2g} of "
                    "one rounds away; give another strength, or --dtype fp32"
                )

    def _may_touch_head(self) -> bool:
        head = self.model.get_output_embeddings()
        return any(place.owner is head for tensor in self.rankings.tensors for place in tensor.places)

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
        }

    @cached_property
    def _common(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "study": spec.name,
            "model": self.source.name,
            "dtype": self.dtype,
            "data": spec.data.source,
            "device": self.device,
            "worker": f"{platform.node()}/{os.getpid()}",
            "version": " ".join(f"{k}={v}" for k, v in self._versions.items()),
        }

    def baseline(self) -> dict[str, Any]:
        """Measure and store the intact model; returns its perplexity and the seconds it took."""
        if self.store.has("baselines", "baseline"):
            stored = self.store.read("baselines", "baseline").to_pylist()[0]
            known = Outcome(stored["nll"], stored["tokens"], stored["hits"])
            return {"perplexity": known.perplexity, "seconds": stored["seconds"]}
        started = time.perf_counter()
        found = self.damaging.baseline()
        seconds = time.perf_counter() - started
        outcome = Outcome(found["nll"], found["tokens"], found["hits"])
        if outcome.diverged:
            raise EsaError(
                f"{self.source.name} gives a NaN or infinite loss undamaged in {self.dtype}; try --dtype fp32"
            )
        self._check_files()
        row = {**self._common, "status": "ok", "seconds": seconds, "created": datetime.now(UTC), **found}
        self.store.write("baselines", "baseline", [row])
        return {"perplexity": outcome.perplexity, "seconds": seconds}

    @cached_property
    def _baseline(self) -> dict[str, Any]:
        return self.store.read("baselines", "baseline").to_pylist()[0]

    def _intact(self) -> dict[str, Any]:
        """The intact model's loss here, where the stored baseline's isn't the same to the bit.

        Other hardware rounds otherwise, and damage is to be measured against the same rounding.
        """
        own = self.damaging.intact.outcome.nll
        measured = "_baseline" in vars(self) or self.store.has("baselines", "baseline")  # asked of a bucket but once
        stored = self._baseline if measured else {}
        return {"intact_nll": None if own == stored.get("nll") else own}

    def rank(self, seed: int) -> dict[str, Any]:
        """Score, select and store every ranking of a seed (:class:`Rankings`).

        Where memory runs out, on the way to the last table, all begins again with half the budget: a smaller range of
        blocks at a time, with the same scores, or where one block's accumulators leave no room for a batch fewer
        windows together, which changes rounding alone. What is stored by then stays.
        """
        started = time.perf_counter()
        while True:
            try:
                self.rankings.write(seed, self.memory_budget)
                break
            except Exception as error:
                smaller = self._smaller_budget()
                if not out_of_memory(error) or smaller < SMALLEST_BUDGET:
                    raise
            self.memory_budget = smaller
            give_back_memory()
        give_back_memory()
        return {"seed": seed, "seconds": time.perf_counter() - started}

    def _smaller_budget(self) -> int:
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return (self.memory_budget or 4 * weights) // 2

    @cached_property
    def _resumable(self) -> Resumable:
        return Resumable(self.model, self.windows.evaluation, self.spec.data.batch_size)

    def measure(self, part: int) -> dict[str, Any]:
        """Damage one packet of the census' weights, one at a time, and store what each cost."""
        started, seed = time.perf_counter(), self.spec.seeds[0]
        packet = self.store.read("samples", samples_name(seed)).slice(part * CENSUS_PACKET, CENSUS_PACKET)
        self.store.write("fidelity", fidelity_name(seed, part), measure(self.catalogue, self._resumable, packet))
        return {"part": part, "seconds": time.perf_counter() - started}

    def ablate(self, layer: int) -> dict[str, Any]:
        """Silence a block's sub-layers and experts, one at a time, and store what each is worth and how it is used."""
        started = time.perf_counter()
        parts = sublayers(self.catalogue, layer)
        start = self.damaging.prepared([tensor for part in parts for tensor in part.tensors])
        assert self.damaging.intact  # measured by passes of its own, which the next one isn't to count
        with observed(self.model, parts, self.windows.evaluation) as seen:
            self.damaging.outcome(start)
        common = {k: v for k, v in self._common.items() if k not in ("study", "data")}
        rows = []
        for part in parts:
            began = time.perf_counter()
            with silenced(part):
                outcome = self.damaging.outcome(start)
            used = seen[0].uses.get(part.expert) if part.part == "expert" and part.expert is not None else None
            rows.append(
                {
                    **common, "layer": layer, "part": part.part, "expert": part.expert, **(vars(used) if used else {}),
                    "peak": seen[0].peaks[part.part, part.expert], **vars(outcome), **self._intact(),
                    "status": "diverged" if outcome.diverged else "ok", "seconds": time.perf_counter() - began,
                    "created": datetime.now(UTC),
                }
            )  # fmt: skip
        self.store.write("ablations", ablation_name(layer), rows)
        return {"layer": layer, "seconds": time.perf_counter() - started}

    @cached_property
    def _measuring(self) -> Measuring:
        return Measuring(self.model, self.source, self.spec)

    def protocol(self, protocols: tuple[str, ...], context: int, seed: int) -> dict[str, Any]:
        """Measure the intact model on windows of one length that a seed draws, and store it for these protocols."""
        row = self._common | self._measuring.protocol(protocols[0], context, seed) | {"created": datetime.now(UTC)}
        for protocol in protocols:
            self.store.write("protocols", protocol_name(protocol, context, seed), [row | {"protocol": protocol}])
        return {"seconds": row.get("seconds")}

    def tasks(self, protocol: str) -> dict[str, Any]:
        """Ask the intact model a protocol's zero-shot tasks, and store the answers' scores."""
        common = {k: self._common[k] for k in ("study", "model", "dtype", "data")}
        rows = [common | row | {"created": datetime.now(UTC)} for row in self._measuring.tasks(protocol)]
        asked = next(p for p in self.spec.protocols if p.name == protocol)
        self.store.write("tasks", answers_name(asked), rows)
        return {"rows": len(rows)}

    def _read_ranking(self, name: str) -> Any:
        return self.store.read("rankings", name)

    def _damaged(self, cell: Cell) -> dict[str, Any]:
        """A cell's outcome; where memory runs out, once more without what is kept to save time."""
        ranking = self._ranking(ranking_name(*cell.chosen_by, cell.seed))
        try:
            return self.damaging.run(cell, ranking)
        except Exception as error:
            if not out_of_memory(error):
                raise
        self.damaging.spare_memory()
        give_back_memory()
        return self.damaging.run(cell, ranking)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Damage, evaluate, restore, and store the row; an exception becomes a row with status ``error``."""
        started = time.perf_counter()
        identity = cell_id(cell, self.spec.data, self.resolved)
        name = f"{cell.label}-{identity}"
        if self.store.has("cells", name):  # another trial, or an earlier run of this one, was here
            known = self.store.read("cells", name).to_pylist()[0]
            if known["status"] != "error":
                return _told(known)
        row: dict[str, Any] = {
            "cell_id": identity,
            **self._common,
            **cell.columns,
        }
        fatal: Exception | None = None
        try:
            row |= self._damaged(cell) | self._intact()
        except (EmptyPartError, UnchangeableError) as error:
            n = error.n_weights if isinstance(error, UnchangeableError) else 0
            row |= {"status": "empty", "error": str(error), "n_weights": n, "n_changed": 0, "delta_norm": 0.0}
        except EsaError:
            raise  # a cause the user can mend, the same for every cell
        except Exception as error:  # whatever it is, it is this cell's alone, unless it ends this process
            fatal = error if isinstance(error, NotRestoredError) or poisoned(error) else None
            row |= {"status": "error", "error": f"{type(error).__name__}: {error}{_mend(error)}"}
        row |= {"seconds": time.perf_counter() - started, "created": datetime.now(UTC)}
        self._check_files()
        self.store.write("cells", name, [row])
        if fatal:  # neither weights nor device can be trusted any more; the row says why, until a new process tries it
            raise fatal
        return _told(row)


def _mend(error: Exception) -> str:
    if out_of_memory(error):
        return "; lower --batch-size or --window"
    return "; its process ended" if poisoned(error) else ""


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """What the driver hears of a cell; ``intact``, where not the baseline's, is the intact loss, nats per token."""
    told = {k: row.get(k) for k in ("cell_id", "status", "error", "seconds", "nll", "tokens")}
    own = row.get("intact_nll")
    return told | {"intact": sum(own) / (len(own) * row["tokens"][0]) if own else None}
