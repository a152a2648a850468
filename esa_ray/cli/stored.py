"""What the commands on stored weights share: how weights are stored and protected, and how a grid is made of that."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any, TypeVar, get_args

import typer
from pydantic import ValidationError

from esa_ray.cli.app import console
from esa_ray.cli.asked import typed
from esa_ray.cli.parsing import items, numbers
from esa_ray.cli.wording import option
from esa_ray.errors import EsaError
from esa_ray.spec import DEFENCES, PROBED, SCORES, STORED, AttackSpec, Dtype, FaultSpec, explain
from esa_ray.spec.security import BY_WORDS, OF_CRITICAL, Code, Policy

_SCORES = [name for name in SCORES if name not in PROBED and not SCORES[name].alone]
StoredDtype = Annotated[str, typer.Option("--dtype", help=f"Dtype(s) that weights are stored in: {', '.join(STORED)}.")]
LoadDtype = Annotated[
    str, typer.Option(help="Dtype that the model computes in: auto (the file's own; on a CPU fp32), fp32, bf16, fp16.")
]
LOADED = {"load_dtype": (LoadDtype, "auto")}
Protect = Annotated[str, typer.Option(help=f"Protection(s): {', '.join(DEFENCES)}.")]
Critical = Annotated[
    str, typer.Option(help="secded-critical, tmr-critical: share(s) of the weights that are protected.")
]
Score = Annotated[str, typer.Option(help=f"Score that chooses weights: {', '.join(_SCORES)}; a+b too.")]
OnDetection = Annotated[
    str, typer.Option("--policy", help="secded: what is done with errors that can't be corrected: zero, reload, stop.")
]
Codes = Annotated[str, typer.Option("--code", help="secded: code(s): hsiao, hamming (extended).")]
Components = Annotated[str, typer.Option(help="What is stored: components, groups of them, tensors by name.")]
#: Options of both commands that the study itself doesn't know, or knows by the same name as something else.
OWN = ("dtype", "load_dtype", "protect", "critical", "score", "policy", "code", "components")

S = TypeVar("S", FaultSpec, AttackSpec)


def kept(given: dict[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """A command's options without its own, as :func:`esa_ray.cli.run.launch` takes them."""
    if (load := given["load_dtype"]) not in get_args(Dtype):
        raise EsaError(f"--load-dtype {load} is not one of {', '.join(get_args(Dtype))}")
    return {k: v for k, v in given.items() if k not in (*OWN, *own)} | {"dtype": load, "metric": None}


def among(text: str, known: Sequence[str], flag: str) -> list[str]:
    """The names of a comma list, each once."""
    names = list(dict.fromkeys(items(text)))
    if not names:
        raise EsaError(f"{flag} is empty; name one of {', '.join(known)}")
    if unknown := [name for name in names if name not in known]:
        raise EsaError(f"{flag} {unknown[0]} is not one of {', '.join(known)}")
    return names


def dtypes(given: dict[str, Any]) -> list[str]:
    """The dtypes of storage."""
    return among(given["dtype"], tuple(STORED), "--dtype")


def alike(given: dict[str, Any]) -> dict[str, Any]:
    """What all points of a grid have alike."""
    return {"score": given["score"], "components": items(given["components"])}


def storages(given: dict[str, Any]) -> list[dict[str, Any]]:
    """dtype × protection, each by its own share, policy and code."""
    names = among(given["protect"], DEFENCES, "--protect")
    shares = numbers(given["critical"], float, "--critical")
    policies = among(given["policy"], get_args(Policy), "--policy")
    codes = among(given["code"], get_args(Code), "--code")
    for name, users in (("critical", OF_CRITICAL), ("policy", BY_WORDS), ("code", BY_WORDS)):
        if typed(given["context"], name) and not {*names} & {*users}:
            raise EsaError(f"--{name} belongs to --protect {' and '.join(users)}; add one, or leave it out")
    return [
        alike(given) | {"dtype": dtype, "protect": name, "critical": share, "policy": policy, "code": code}
        for dtype, name in product(dtypes(given), names)
        for share in (shares if name in OF_CRITICAL else shares[:1])
        for policy, code in (product(policies, codes) if name in BY_WORDS else [(policies[0], codes[0])])
    ]


def grid(kind: type[S], part: str, points: Sequence[dict[str, Any]]) -> list[S]:
    """The specs of all points, each once, without those that can't be, which are counted in a line."""
    made, faults = [], []
    for fields in points:
        try:
            made.append(kind.model_validate(fields))
        except ValidationError as error:
            faults.append(explain(error, lambda place: option((part, *place))))
    if not made:
        raise faults[0]
    if faults:
        console.out(f"left out          {len(faults)} combinations that can't be, as: {faults[0]}")
    return list(dict.fromkeys(made))


def check_score(given: dict[str, Any], specs: Sequence[FaultSpec | AttackSpec], users: str) -> None:
    """Refuse a score that nothing is chosen by."""
    if typed(given["context"], "score") and not any(how.by_score for how in specs):
        raise EsaError(f"--score chooses weights for {users}; add one, or leave it out")
