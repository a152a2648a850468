"""Studies in files: what ``--spec`` reads and ``--save-spec`` writes.

A file says what differs from the defaults. Where one field says it all, its value alone will do: ``model: gpt2``,
``data: wiki.txt``, ``target: pysource``, ``scores: [act_mag]``,
``perturbations: [zero, quantize-tensor-3]`` by the labels of ``--perturb``,
``lists: [six.csv]`` as ``--weights`` reads it, ``protocols: [smoke]``.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError

from esa_ray.cli import spec_functions, spec_wording, wording, yaml_text
from esa_ray.cli.parsing import study_name
from esa_ray.errors import EsaError, unreadable
from esa_ray.spec import PROTOCOLS, DataSpec, PerturbSpec, Protocol, StudySpec

TEXTS = (".yaml", ".yml", ".json")
#: Options that say nothing of a study, and that a command of :func:`command` would stumble over.
_ABOUT_PLANS = ("--plan", "--save-spec", "--on")


def read(given: str, *, name: str | None = None, trust: Sequence[str] = ()) -> list[StudySpec]:
    """The studies of a file, or of a Python file's function.

    Parameters
    ----------
    given
        A ``.yaml``, ``.yml`` or ``.json`` file, the ``study.json`` of a run, ``FILE.py`` or ``FILE.py:FUNCTION``.
    name
        What a file's only study is called that says nothing of it; else it is named after what it asks.
    trust
        What the user trusts of the models: a file of data can't speak for them.

    Raises
    ------
    EsaError
        With the file, the key and what to do.
    """
    python = re.fullmatch(r"(.+\.py)(?::(\w+))?", given)
    if python:
        found = spec_functions.studies(python[1], python[2] or "")
    else:
        entries = _entries(given)
        found = [_study(each, given, name if len(entries) == 1 else None) for each in entries]
    if twice := next((spec.name for i, spec in enumerate(found) if spec.name in {s.name for s in found[:i]}), None):
        raise EsaError(f"--spec {given} has two studies by the name {twice}; rename one, or leave it out")
    return [_trusting(spec, trust, None if python else given) for spec in found]


def write(path: str, studies: Sequence[StudySpec], arguments: Sequence[str]) -> None:
    """Write studies down so that :func:`read` finds them equal, with the command that they come from.

    Raises
    ------
    EsaError
        If the file's name ends otherwise, it can't be written, or there is another by that name.
    """
    _check_suffix(path, "--save-spec")
    said = [stated(spec) for spec in studies]
    whole: Any = said[0] if len(said) == 1 else said
    if path.endswith(".json"):
        text = json.dumps(whole, indent=2) + "\n"
    else:
        text = _comment(command(arguments)) + yaml_text.write(whole)
    _keep(Path(path), text)


def stated(spec: StudySpec) -> dict[str, Any]:
    """What a file says of a study.

    >>> from esa_ray.spec import ModelSpec
    >>> stated(StudySpec(name="tiny", model=ModelSpec(source="gpt2"), perturbations=(PerturbSpec(kind="zero"),)))
    {'name': 'tiny', 'model': 'gpt2', 'perturbations': ['zero']}
    """
    found = yaml_text.Block(spec.stated())
    if spec.name == study_name(spec):
        del found["name"]
    if data := _data(spec.data):
        found["data"] = _short(data, "source")
    if spec.target:
        found["target"] = _short({"source": spec.target.source} | _data(spec.target), "source")
    found["model"] = _short(found["model"], "source")
    if "scores" in found:
        found["scores"] = [_short({"metric": each.metric} | each.stated(), "metric") for each in spec.scores]
    if spec.perturbations:
        found["perturbations"] = [_label(p) for p in spec.perturbations]
    if spec.roles and "edits" in found["roles"]:
        found["roles"] = found["roles"] | {"edits": [_label(edit) for edit in spec.roles.edits]}
    return found


def command(arguments: Sequence[str]) -> str:
    """A command line that runs what another plans.

    >>> command(["run", "--model", "gpt2", "--plan", "--save-spec", "a.yaml", "--seeds=1,2"])
    'esa run --model gpt2 --seeds=1,2'
    """
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument.partition("=")[0] not in _ABOUT_PLANS:
            kept.append(argument)
        elif argument in _ABOUT_PLANS[1:]:
            next(rest, None)
    return shlex.join(["esa", *kept])


def _data(spec: DataSpec) -> dict[str, Any]:
    found = spec.stated()
    found.pop("batch_size", None)
    # Unasked it goes by the window.
    return found if DataSpec.model_validate(found) == spec else found | {"batch_size": spec.batch_size}


def _short(value: dict[str, Any], field: str) -> Any:
    return value[field] if set(value) == {field} else value


def _label(spec: PerturbSpec) -> Any:
    return spec.label if PerturbSpec.parse(spec.label) == spec else spec.stated()


def _comment(text: str) -> str:
    lines = text.splitlines()
    return "".join(f"# {''.join(c if c.isprintable() else '?' for c in line)}\n" for line in lines)


def _keep(path: Path, text: str) -> None:
    """Write a file, unless another stands there."""
    try:
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise EsaError(f"--save-spec {path} is there and says something else; remove it, or name another file")
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise EsaError(f"--save-spec {path} can't be written: {cause}; name a file in a directory of yours") from None


def _check_suffix(path: str, option: str) -> None:
    if not path.endswith(TEXTS):
        also = "; or a function of a Python file, FILE.py:NAME" if option == "--spec" else ""
        raise EsaError(f"{option} {path} must end in .yaml, .yml or .json{also}")


def _entries(path: str) -> list[dict[str, Any]]:
    """What a file of data says of each study."""
    _check_suffix(path, "--spec")
    try:
        content = Path(path).expanduser().read_bytes()
        value = _json(content) if path.endswith(".json") else yaml_text.read(content)
    except OSError as error:
        raise unreadable(f"--spec {path}", error) from None
    except json.JSONDecodeError as error:
        raise EsaError(f"--spec {path} can't be read: line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise EsaError(f"--spec {path} can't be read: {error}") from None
    if isinstance(value, dict) and isinstance(value.get("spec"), dict) and "resolved" in value:
        value = value["spec"]  # the study.json of a run
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(each, dict) for each in found):
        raise EsaError(f"--spec {path} holds no study; it needs a line such as `model: gpt2`, or a list of studies")
    return found


def _json(content: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice} stands twice")
        return dict(pairs)

    return json.loads(content, object_pairs_hook=once)


def _study(entry: dict[str, Any], path: str, name: str | None) -> StudySpec:
    try:
        fields = _spelled_out(entry)
        if "name" not in entry:
            fields["name"] = name or study_name(StudySpec.model_validate(fields | {"name": "draft"}))
        return StudySpec.model_validate(fields)
    except ValidationError as error:
        raise spec_wording.told(error, f"--spec {path}") from None
    except (EsaError, ValueError) as error:  # of a list's file, or of a label
        raise EsaError(f"--spec {path}: {spec_wording.in_keys(str(error))}") from None


def _spelled_out(entry: dict[str, Any]) -> dict[str, Any]:
    """What a file says, with the fields that it leaves unnamed; one value where several may be is a list of one."""
    from esa_ray.weights import read_weights

    short: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(("model", "data", "target"), lambda said: {"source": said}),
        "scores": lambda said: {"metric": said}, "perturbations": PerturbSpec.parse,
        "lists": read_weights, "protocols": _protocol,
    }  # fmt: skip
    several = {name for name, field in StudySpec.model_fields.items() if get_origin(field.annotation) is tuple}

    def whole(name: str, value: Any) -> Any:
        if name not in short or not isinstance(value, str):
            return value
        try:
            return short[name](value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    found = {}
    for name, value in entry.items():
        if name in several:
            found[name] = [whole(name, each) for each in (value if isinstance(value, list) else [value])]
        else:
            found[name] = whole(name, value)
    return found


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise ValueError(f"{name!r} is no protocol; there are {', '.join(PROTOCOLS)}")
    return Protocol.named(name)


def _trusting(spec: StudySpec, trust: Sequence[str], path: str | None) -> StudySpec:
    """A study whose model is trusted as the command says, which a file of data can't say for it."""
    if path and (missing := ",".join(sorted(set(spec.model.trust) - set(trust)))):
        raise EsaError(
            f"--spec {path} trusts {spec.model.source} with {missing}, which may run code of its author; "
            f"add --trust {','.join(sorted({*spec.model.trust, *trust}))} if you do"
        )
    if set(trust) <= set(spec.model.trust):
        return spec
    try:
        return spec.replace(model=spec.model.model_copy(update={"trust": (*spec.model.trust, *trust)}))
    except ValidationError as error:
        raise wording.told(error, "--trust") from None
