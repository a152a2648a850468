"""Models that esa-ray itself made of others: where they come from, and what they are called by. No torch here.

A saved model carries ``esa_edit.json``: its parent's fingerprint, what was done to it by which text, and the digest of
its files. As long as the files are those, its fingerprint is that of parent and edit together; when they were written
to, they are a model like any other, known by its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esa_ray.errors import EsaError
from esa_ray.identity import canonical_json
from esa_ray.spec.base import Spec

#: What was done: a spec, or plain values that say it.
Edit = Spec | Mapping[str, Any]

#: The file that says what a saved model was made of.
EDIT = "esa_edit.json"
#: What of a record its fingerprint is made of; the rest is for people.
_IDENTITY = ("edit", "seed", "masks", "files")

#: What is said of a directory that holds another model.
OTHER = "{} holds another saved model; name another directory, or move it away"


def provenance(path: Path) -> dict[str, Any] | None:
    """What a directory says it was made of; None if it says nothing.

    Raises
    ------
    EsaError
        If it says so in a file that can't be read.
    """
    file = path / EDIT
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict) and {"parent", "edit", "files"} <= found.keys():
            return found
    except (OSError, ValueError):
        pass
    raise EsaError(f"{file} can't be read as the record of an edit; save the model again, or move the file away")


def content(edit: Edit) -> dict[str, Any]:
    """What a record says of an edit."""
    return edit.content() if isinstance(edit, Spec) else dict(edit)


def made_of(path: Path, parent: str | None, edit: Edit | None, seed: int) -> bool:
    """Whether a directory says that it was made of a parent with this fingerprint, by this edit and seed."""
    record = provenance(path)
    if record is None or edit is None:
        return False
    asked = {"parent": parent, "edit": content(edit), "seed": seed}
    found = {"parent": record["parent"].get("fingerprint"), "edit": record["edit"], "seed": record.get("seed")}
    return canonical_json(asked) == canonical_json(found)


def fingerprint(record: dict[str, Any]) -> str:
    """SHA-256 of a parent's fingerprint, what was done to it, and what came of that."""
    told = {key: record[key] for key in _IDENTITY if key in record}
    told["parent"] = {"fingerprint": record["parent"]["fingerprint"]}
    return hashlib.sha256(canonical_json(told).encode()).hexdigest()


def derived(path: Path, files: str) -> str:
    """The fingerprint of a directory whose files have this digest: of parent and edit, if it is an unchanged edit."""
    record = provenance(path)
    return fingerprint(record) if record and record["files"] == files else files


def origin(path: Path, identity: str) -> dict[str, Any] | None:
    """Parent, edit and seed that a model in a directory was made by; None if it is no edit, or was written to since.

    ``identity`` is its fingerprint.
    """
    record = provenance(path)
    if record is None or fingerprint(record) != identity:
        return None
    return {name: record.get(name) for name in ("parent", "edit", "seed")}


def check_free(directory: str | Path, parent: str | None = None, edit: Edit | None = None, seed: int = 0) -> None:
    """Refuse a directory that a model can't be saved in, before anything is computed.

    Parameters
    ----------
    parent, edit, seed
        The fingerprint of what the model is to be made of, and how; None where that isn't known yet.

    Raises
    ------
    EsaError
        If it is a file, or holds anything but a model that esa saved, or one that was made otherwise.
    """
    target = Path(directory).expanduser()
    if target.exists() and not target.is_dir():
        raise EsaError(f"{target} is a file; name another directory for the saved model")
    if target.is_dir() and any(target.iterdir()) and provenance(target) is None:
        raise EsaError(f"{target} holds something else; name an empty or a new directory for the saved model")
    if edit and provenance(target) and not made_of(target, parent, edit, seed):
        raise EsaError(OTHER.format(target))
