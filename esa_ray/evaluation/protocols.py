"""One intact model, measured under protocols: loss, confidence, speed and memory, and zero-shot tasks."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from esa_ray import data
from esa_ray.errors import EsaError, first_line
from esa_ray.evaluation import confident
from esa_ray.models.blocks import context as longest
from esa_ray.models.load import load_tokenizer
from esa_ray.models.tokenizing import check_tokens, embedded
from esa_ray.spec import tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.sources import Source
    from esa_ray.spec import Protocol, StudySpec

#: What lm-eval names the metrics that are standard errors of others.
ERRORS = "_stderr"


@dataclass
class Measuring:
    """Measures a model by a study's protocols; rows come without what all of the study's rows share."""

    model: PreTrainedModel
    source: Source
    spec: StudySpec

    def __post_init__(self) -> None:
        self._windows = lru_cache(maxsize=4)(self._read_windows)
        self._gpu = next(self.model.parameters()).is_cuda

    def _protocol(self, name: str) -> Protocol:
        return next(p for p in self.spec.protocols if p.name == name)

    def _read_windows(self, windows: int, context: int) -> data.Windows:
        # What stands aside as evaluation windows is as small as it can be: each seed measures on a draw of its own.
        cut = self.spec.data.model_copy(
            update={"window": context, "calibration_windows": windows, "evaluation_windows": 2, "prompts": 0}
        )
        return data.windows(cut, load_tokenizer(self.source), self.spec.seeds)

    def protocol(self, name: str, context: int, seed: int) -> dict[str, Any]:
        """Loss and confidence on a seed's windows of one length; a length beyond the model's own is an empty row."""
        told: dict[str, Any] = {"protocol": name, "context": context, "seed": seed}
        limit = longest(self.model)
        if limit and context > limit:
            return told | {"status": "empty", "error": f"longer than the model's context of {limit} tokens"}
        windows = self._windows(self._protocol(name).windows, context).calibration(seed)
        check_tokens(self.source.name, [windows], embedded(self.model))
        # As many tokens a batch as the study's own batches have.
        batch = max(1, self.spec.data.batch_size * self.spec.data.window // context)
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        outcome, confidence = confident(self.model, windows, batch)
        seconds = time.perf_counter() - started
        return told | {
            "status": "diverged" if outcome.diverged else "ok", "nll": outcome.nll, "tokens": outcome.tokens,
            "hits": outcome.hits, "counts": confidence.counts, "sums": confidence.sums, "right": confidence.hits,
            "nonfinite": confidence.nonfinite, "seconds": seconds, "tokens_per_second": windows.size / seconds,
            "peak_memory": self._peak_memory(),
        }  # fmt: skip

    def _peak_memory(self) -> int:
        if self._gpu:
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux

    def tasks(self, name: str) -> list[dict[str, Any]]:
        """Zero-shot tasks through lm-eval: a row a task and metric.

        A task is one of lm-eval's own, or a YAML file of one here, whose data may be local files.

        Raises
        ------
        EsaError
            If lm-eval isn't installed, or doesn't know a task, or can't get its data.
        """
        try:
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise EsaError("zero-shot tasks need lm-eval: pip install 'esa-ray[tasks]'") from None
        protocol, started = self._protocol(name), time.perf_counter()
        asked = [tasks.read(task) for task in protocol.tasks]
        tokenizer = load_tokenizer(self.source)
        wrapped = HFLM(
            pretrained=self.model, tokenizer=tokenizer, batch_size=self.spec.data.batch_size,
            add_bos_token=bool(data.opening(self.spec.data, tokenizer)),
        )  # fmt: skip
        try:
            found = simple_evaluate(
                wrapped, tasks=asked, num_fewshot=0, limit=protocol.limit, bootstrap_iters=1000,
                task_manager=TaskManager(), random_seed=0, numpy_random_seed=0, torch_random_seed=0, log_samples=False,
            )  # fmt: skip
        except Exception as error:  # a task that isn't known, data that can't be had: the library raises anything
            raise EsaError(
                f"zero-shot tasks {', '.join(protocol.tasks)}: {type(error).__name__}: {first_line(error)[:200]}; name "
                "tasks that lm-eval has data for, or YAML files of your own"
            ) from None
        seconds = time.perf_counter() - started
        return [
            {"protocol": name, "harness": version("lm-eval"), "seconds": seconds, **row}
            for task in found["results"]
            for row in _rows(task, found)
        ]


def _rows(task: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    told, rows = found["results"][task], []
    for key, value in told.items():
        metric, _, variant = key.partition(",")
        if not variant or metric.endswith(ERRORS) or not isinstance(value, int | float):
            continue
        error = told.get(f"{metric}{ERRORS},{variant}")
        rows.append(
            {
                "task": task, "task_metric": metric if variant == "none" else f"{metric} ({variant})",
                "value": float(value), "std_error": float(error) if isinstance(error, int | float) else None,
                "examples": found.get("n-samples", {}).get(task, {}).get("effective"),
                "task_version": str(found.get("versions", {}).get(task, "")),
            }
        )  # fmt: skip
    return rows
