"""Every model type in turn, each in a process of its own that may crash, hang or take all memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from benchmarks.architectures.checks import CHECKS, NEEDED, DoesNotApply, Subject
from benchmarks.architectures.fields import NOT_ALONE, VARIANTS
from benchmarks.architectures.recipes import type_of, write
from benchmarks.gpu.run import write as put_in_place
from esa_ray.errors import EsaError

#: Seconds that one type may take.
SECONDS = 120


def types() -> list[str]:
    """Every model type of transformers' causal LM mapping."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tried(kind: str) -> dict[str, Any]:
    """What the checks find of one type, in this process."""
    found: dict[str, Any] = {"type": kind, "class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[type_of(kind)], "checks": {}}
    if kind in NOT_ALONE:
        return found | {"absent": NOT_ALONE[kind]}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subject = Subject(write(kind, Path(scratch) / type_of(kind)))
        except Exception as error:  # whatever a class can lack here
            return found | {"absent": f"{type(error).__name__}: {_said(error)}"}
        for name, check in CHECKS.items():
            found["checks"][name] = _said_once(found["checks"], _checked(subject, check))
    return found


def _said_once(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A failure that an earlier check has told, too, by that one's name."""
    same = (n for n, c in before.items() if found["status"] == c["status"] == "failed" and c["note"] == found["note"])
    return found | {"note": f"as {name}"} if (name := next(same, None)) else found


def _checked(subject: Subject, check: Any) -> dict[str, Any]:
    try:
        note = check(subject)
        return {"status": "ok"} | (asdict(note) if is_dataclass(note) else {"note": str(note)})
    except DoesNotApply as why:
        return {"status": "–", "note": str(why)}
    except (AssertionError, EsaError) as error:
        return {"status": "failed", "note": str(error)}
    except Exception as error:  # a bug is a row of the table
        return {"status": "failed", "note": f"{type(error).__name__}: {_said(error)}"}


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _child(kind: str, pipe: Connection) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        pipe.send(tried(kind))
    pipe.close()


def apart(kind: str, seconds: float = SECONDS) -> dict[str, Any]:
    """What the checks find of one type, in a process of its own."""
    mine, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(kind, theirs))
    started = time.perf_counter()
    process.start()
    theirs.close()
    lost: dict[str, Any] = {"type": kind, "class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[type_of(kind)], "checks": {}}
    try:
        found = mine.recv() if mine.poll(seconds) else lost | {"ended": f"took longer than {seconds:.0f} s"}
    except EOFError:
        process.join()
        found = lost | {"ended": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return found | {"seconds": round(time.perf_counter() - started, 1)}


def works(found: dict[str, Any]) -> bool:
    """Whether all that must hold holds."""
    return all(found["checks"].get(name, {}).get("status") in ("ok", "–") for name in NEEDED)


def line(found: dict[str, Any]) -> str:
    """One type in a line."""
    if why := found.get("absent") or found.get("ended"):
        return f"{found['type']:28s} {'absent' if found.get('absent') else 'ENDED'}: {why[:120]}"
    bad = [
        f"{n}: {c['note']}"
        for n, c in found["checks"].items()
        if c["status"] == "failed" and c["note"] != "as coverage"
    ]
    return f"{found['type']:28s} {found['seconds']:5.1f} s  {'works' if works(found) else 'FAILS'}  {' | '.join(bad)}"


def run(kinds: Iterable[str], say: Any = print) -> dict[str, Any]:
    """Try some types, saying how each ended."""
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        found = apart(kind)
        rows.append(found | {"works": works(found)})
        say(line(rows[-1]))
    variants = [row for row in rows if row["type"] in VARIANTS]
    environment = {name: version(name) for name in ("torch", "transformers")}
    return {
        "environment": environment | {"date": datetime.now(UTC).date().isoformat()},
        "types": [row for row in rows if row not in variants],
        "variants": variants,
    }


def main(quick: bool = False, out: str = "docs/results", only: str | None = None, as_json: bool = False) -> None:
    """Try every type, or those named, and write what was found of all."""
    chosen = only.split(",") if only else types()[:: 20 if quick else 1]
    variants = [kind for kind in VARIANTS if type_of(kind) in chosen]
    if unknown := sorted(set(chosen) - set(types())):
        sys.exit(f"no such types: {', '.join(unknown)}")
    found = run(
        [*chosen, *variants], say=lambda text: print(text, file=sys.stderr if as_json else sys.stdout, flush=True)
    )
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    if only or quick:
        return
    put_in_place(found, Path(out) / "architectures.json")
