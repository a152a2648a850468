"""How the texts of a command's options become a study."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

from pydantic import ByteSize, TypeAdapter, ValidationError

from esa_ray.cli.wording import OPTIONS, told
from esa_ray.errors import EsaError
from esa_ray.identity import digest
from esa_ray.spec import (
    KINDS,
    PROBED,
    PROTOCOLS,
    SCORES,
    Kind,
    Mode,
    PerturbSpec,
    Protocol,
    PruneSpec,
    QuantizeSpec,
    StudySpec,
    members,
    tasks,
)
from esa_ray.storage.location import Location, below, last_part


def items(text: str) -> list[str]:
    """The parts of a comma list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str, kind: type, flag: str) -> list[Any]:
    """The numbers of a comma list."""
    if not items(text):
        raise EsaError(f"{flag} is empty; give a number or leave it out")
    try:
        return [kind(part) for part in items(text)]
    except ValueError:
        word = "whole numbers" if kind is int else "numbers"
        raise EsaError(f"{flag} takes {word} separated by commas, not {text!r}") from None


def perturbations(
    kinds: str, scales: str | None, probabilities: str | None, bits: str | None, noise: str | None
) -> list[PerturbSpec]:
    """The grid of kinds × their own variants and strengths; a flag that no kind uses is refused."""
    try:
        wanted = [PerturbSpec.fields_of(label) for label in items(kinds)]
        if kinds and not wanted:
            raise EsaError("--perturb is empty; name a kind of damage or leave it out")
        strengths = {"--perturb-scale": scales, "--perturb-prob": probabilities}
        variants = {"bits": bits, "relative_to": noise}
        for flag, value in strengths.items():
            _check_used(flag, value, "strength", wanted)
        for field, value in variants.items():
            _check_used(OPTIONS[field], value, field, wanted)
        return [
            _perturbation(fields | variant | {"strength": strength}, _said_by(label, fields, strengths))
            for label, fields in zip(items(kinds), wanted, strict=True)
            for variant in _variants(fields, variants)
            for strength in _strengths(fields, strengths)
        ]
    except ValidationError as error:
        raise told(error, f"--perturb {kinds}") from None
    except ValueError as error:
        raise EsaError(f"--perturb: {error}") from None


def _check_used(flag: str, value: str | None, field: str, wanted: list[dict[str, Any]]) -> None:
    """Refuse an option that is empty, or that no kind uses."""
    if value is not None and not items(value):
        raise EsaError(f"{flag} is empty; give a value or leave it out")
    users = [kind.name for kind in KINDS.values() if _takes(kind, flag, field)]
    mine = [fields for fields in wanted if fields["kind"] in users]
    if value and not mine:
        shown = " and ".join(users) if len(users) < 3 else ", ".join(users)
        raise EsaError(f"{flag} belongs to {shown}; add --perturb {users[0]} or leave it out")
    if value and all(fields.get(field) is not None for fields in mine):
        raise EsaError(f"{flag} {value}: every kind in --perturb states its own; leave it out of one of the two")


def _perturbation(fields: dict[str, Any], said_by: str) -> PerturbSpec:
    """A perturbation; what is wrong in its strength is told of what says it."""
    try:
        return PerturbSpec.model_validate(fields)
    except ValidationError as error:
        raise told(error, said_by) from None


def _takes(kind: Kind, flag: str, field: str) -> bool:
    """Whether an option is for a kind: for its strength, or for a variant of it."""
    return kind.strength_by == flag if field == "strength" else field in kind.variants


def _given(fields: dict[str, Any], strengths: dict[str, str | None]) -> tuple[str, str] | None:
    """The option that gives strengths to a perturbation which states none, and its text."""
    option = KINDS[fields["kind"]].strength_by
    text = strengths.get(option or "")
    return (option, text) if option and text and fields["strength"] is None else None


def _said_by(label: str, fields: dict[str, Any], strengths: dict[str, str | None]) -> str:
    """What gives a perturbation its strength: its label, or an option of its own."""
    given = _given(fields, strengths)
    return " ".join(given) if given else f"--perturb {label}"


def _variants(fields: dict[str, Any], variants: dict[str, str | None]) -> list[dict[str, str]]:
    mine = [name for name in KINDS[fields["kind"]].variants if variants.get(name) and name not in fields]
    words = [items(variants[name] or "") for name in mine]
    return [dict(zip(mine, chosen, strict=True)) for chosen in product(*words)]


def _strengths(fields: dict[str, Any], strengths: dict[str, str | None]) -> list[float | None]:
    if given := _given(fields, strengths):
        return numbers(given[1], float, given[0])
    return list(KINDS[fields["kind"]].ladder) if fields["strength"] is None else [fields["strength"]]


def parts(layers: str, restore: str) -> list[dict[str, Any]]:
    """Parts of sets: single blocks, and all but a fraction from either end of the ranks."""
    blocks = numbers(layers, int, "--layers") if layers else []
    if min(blocks, default=0) < 0:
        raise EsaError(f"--layers counts blocks from 0, and has {min(blocks)}; leave it out")
    found: list[dict[str, Any]] = [{"kind": "layer", "value": n} for n in blocks]
    for fraction in numbers(restore, float, "--restore") if restore else []:
        if not 0 < fraction < 1:
            raise EsaError(f"--restore takes fractions between 0 and 1, not {fraction:g}")
        found += [{"kind": kind, "value": fraction} for kind in ("all_but_first", "all_but_last")]
    return found


def models(text: str) -> list[str]:
    """The models of a comma list; what is there under the whole text is one."""
    return [text] if os.path.exists(os.path.expanduser(text)) else items(text)


def places(sources: list[str], out_dir: str | None) -> list[str | None]:
    """Where each model's study goes: of one model to ``out_dir`` itself, of several to a directory each below it.

    >>> places(["gpt2", "meta-llama/Llama-3.1-8B"], "s3://bucket/two")
    ['s3://bucket/two/gpt2', 's3://bucket/two/Llama-3.1-8B']
    """
    if not sources:
        raise EsaError("--model is empty; name one")
    if len(set(sources)) < len(sources):
        raise EsaError("--model names a model twice; leave one out")
    if out_dir is not None:
        Location(out_dir)  # one that can't be, or holds a key, is refused before anything shows it
    if out_dir is None or len(sources) == 1:
        return [out_dir] * len(sources)
    names = [slug(Path(source).name) for source in sources]
    if len(set(names)) < len(names):  # the same model of several owners
        names = [slug(source) for source in sources]
    if len(set(names)) < len(names):
        raise EsaError("--model names a model twice; leave one out")
    return [below(out_dir, name) for name in names]


def slug(text: str) -> str:
    """A text as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100].strip("-._") or "study"


def study_name(spec: StudySpec) -> str:
    """A readable name for a study that was given none; its last part tells studies apart."""
    words = [Path(spec.model.source).name]
    if spec.protocols:
        words += ["baseline", *(p.name for p in spec.protocols)]
    elif spec.population:
        words += ["backdoors", *spec.population.kinds, str(spec.population.models)]
    elif spec.roles or (spec.facts and not spec.applied):
        words += ["roles", *(given.name for given in spec.lists)] if spec.roles else []
        words += [f"top{spec.topk[0]}"] if spec.roles and not spec.lists else []
        words += ["facts", *(Path(name).stem for name in spec.facts.sources)] if spec.facts else []
    elif spec.applied:
        words += [*dict.fromkeys(how.kind for how in spec.compressions)]
        words += ["tune", *dict.fromkeys(how.arm for how in spec.tunings)] if spec.tunings else []
        for name, ways in (("faults", spec.faults), ("attack", spec.attacks)):
            words += [name, *dict.fromkeys(how.dtype for how in ways)] if ways else []
    else:
        words += [spec.scores[0].metric, spec.scores[0].mode, *([spec.unit] if spec.unit != "weight" else [])]
        words += ["k" + "_".join(map(str, spec.topk))]
        words += [*dict.fromkeys(p.kind for p in spec.perturbations), *(given.name for given in spec.lists)]
    asked = {k: v for k, v in spec.stated().items() if k not in ("name", "save_models")}
    return slug("-".join(words)) + "-" + digest(asked)[:6]


def build(name: str | None = None, **fields: Any) -> StudySpec:
    """A validated study; pydantic's complaint as one sentence."""
    try:
        if name is None:
            name = study_name(StudySpec.model_validate({"name": "draft", **fields}))
        return StudySpec.model_validate({"name": name, **fields})
    except ValidationError as error:
        raise told(error) from None


def size(text: str | None, flag: str) -> int | None:
    """A number of bytes: 500MB, 4GB, 2GiB.

    >>> size("4GB", "--memory-budget")
    4000000000
    """
    if text is None:
        return None
    try:
        found = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        found = 0
    if found < 1:
        raise EsaError(f"{flag} takes a size such as 500MB or 4GB, not {text!r}")
    return found


def scores(
    metric: str,
    mode: str,
    components: str,
    probes: int | None,
    error: float | None,
    unit: str = "weight",
    combine: str = "joint",
) -> list[dict[str, Any]]:
    """The grid of scores × pools; probing is said of the estimated ones, and refused where there are none."""
    wanted = items(metric)
    for given, flag, known in ((metric, "--metric", SCORES), (mode, "--mode", get_args(Mode))):
        if not items(given):
            raise EsaError(f"{flag} is empty; name one of {', '.join(known)}")
    estimated = [m for m in wanted if PROBED & {part.strip() for part in members(m)}]
    for value, flag in ((probes, "--probes"), (error, "--probe-error")):
        if value is not None and not estimated:
            raise EsaError(f"{flag} belongs to {' and '.join(PROBED)}; add one to --metric or leave it out")
    return [
        {"metric": m, "mode": p, "components": items(components), "unit": unit, "combine": combine}
        | ({"probes": probes, "relative_error": error} if m in estimated else {})
        for m in wanted
        for p in items(mode)
    ]


def parameters(text: str) -> list[int]:
    """Numbers of parameters, as people write them.

    >>> parameters("70m, 6.9b, 1000")
    [70000000, 6900000000, 1000]
    """
    found = []
    for part in items(text):
        number = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", part.lower())
        value = round(float(number[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[number[2]]) if number else 0
        if value < 1:
            raise EsaError(f"--predict takes numbers of parameters such as 70m or 6.9b, not {part!r}")
        found.append(value)
    return found


def steps(text: str) -> str:
    """A comma list as it is, or FROM:TO as the whole numbers nearest to a ladder of steps of √2.

    >>> steps("1:16")
    '1,2,3,4,6,8,11,16'
    """
    if ":" not in text:
        return text
    low, _, high = text.partition(":")
    first, last = (numbers(end, int, "--topk")[0] for end in (low, high))
    if not 1 <= first < last:
        raise EsaError(f"--topk FROM:TO goes up from 1 or more, not {text!r}")
    found = [round(first * 2 ** (i / 2)) for i in range(2 * math.ceil(math.log2(last / first)))]
    return ",".join(map(str, sorted({k for k in found if k < last} | {last})))


def protocols(names: str, windows: int | None, contexts: str | None, asked: str, limit: int | None) -> list[Protocol]:
    """The protocols of a comma list, with what is said otherwise of windows, contexts and tasks."""
    wanted = items(names)
    if unknown := [name for name in wanted if name not in PROTOCOLS]:
        raise EsaError(f"--protocol is one of {', '.join(PROTOCOLS)}, not {unknown[0]!r}")
    if not wanted:
        raise EsaError(f"--protocol is empty; name one of {', '.join(PROTOCOLS)}")
    if asked and "extended" not in wanted:
        raise EsaError("--tasks belong to the extended protocol; add --protocol extended or leave them out")
    if limit is not None and not asked:
        raise EsaError("--limit belongs to --tasks; leave it out")
    changes: dict[str, Any] = {"windows": windows} if windows is not None else {}
    if contexts:
        changes["contexts"] = numbers(contexts, int, "--contexts")
    more = {"tasks": [_anchored(task) for task in items(asked)], "limit": limit} if asked else {}
    try:
        return [Protocol.named(name, **changes, **(more if name == "extended" else {})) for name in wanted]
    except ValidationError as error:
        raise told(error) from None


def _anchored(task: str) -> str:
    """A task's file by its absolute path, since actors run in other directories; refused if it describes none."""
    tasks.read(task)
    return str(Path(task).resolve()) if tasks.is_file(task) else task


def study(
    o: Any, search: dict[str, Any] | None = None, protocols: Sequence[Protocol] = (),
    compressions: Sequence[PruneSpec | QuantizeSpec] = (), **more: Any,
) -> StudySpec:  # fmt: skip
    """The study that a command's options describe.

    Raises
    ------
    EsaError
        For the first thing wrong with them, in one sentence.
    """
    from esa_ray.weights import read_weights  # pyarrow: `--help` doesn't need it

    if o.controls and not o.perturb and not more.get("roles"):
        raise EsaError("--controls compares damage; add --perturb, or leave it out")
    analyses = {"stability": o.stability_check, "weights": o.weight_analysis, "architecture": o.architecture_analysis}
    windows = {
        "window": o.window, "evaluation_windows": o.eval_windows, "batch_size": o.batch_size, "bos": o.bos,
    }  # fmt: skip
    # Another text calibrates nothing.
    others = [{"source": text, "calibration_windows": 1} | windows for text in items(getattr(o, "other_data", ""))]
    saved = getattr(o, "save_model", None)
    return build(
        name=slug(last_part(o.out_dir)) if o.out_dir else None,
        model={"source": o.model, "dtype": o.dtype, "revision": o.revision, "trust": items(o.trust)},
        data={
            "source": o.data, "text_column": o.text_column or ("messages" if o.chat else "text"), "chat": o.chat,
            "split": o.split, "calibration_windows": o.max_samples, "prompts": o.prompts, **windows,
        },
        scores=[] if o.metric is None else scores(
            o.metric, o.mode, o.components, o.probes, o.probe_error, o.unit, o.combine
        ),
        topk=numbers(o.topk, int, "--topk"),
        seeds=numbers(o.seeds, int, "--seeds"),
        perturbations=perturbations(o.perturb, o.perturb_scale, o.perturb_prob, o.bits, o.noise_scale),
        groups=["super", *items(o.controls)],
        analyses=[name for name, asked in analyses.items() if asked],
        fidelity=o.fidelity,
        lists=[read_weights(path) for path in items(o.weights)],
        parts=parts(o.layers, o.restore),
        one_by_one=o.one_by_one,
        pairs=o.pairs,
        repeats=o.repeats,
        control_draws=o.control_draws,
        early_stop=o.early_stop,
        search=search,
        protocols=protocols,
        compressions=compressions, **more,
        other_texts=others,
        save_models=os.path.abspath(os.path.expanduser(saved)) if saved else None,
    )  # fmt: skip
