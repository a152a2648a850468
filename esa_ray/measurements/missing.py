"""How a study's store stands to what is asked: the same model and text, and what is missing."""

from __future__ import annotations

from typing import Any

from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints
from esa_ray.measurements import MEASUREMENTS
from esa_ray.models.sources import Source
from esa_ray.spec import StudySpec
from esa_ray.storage.store import Store


def resolution(
    store: Store, spec: StudySpec, source: Source, text: str, target: str | None = None
) -> Fingerprints | None:
    """What an earlier run of this study resolved, if model, text and target are still the same.

    Raises
    ------
    EsaError
        If the place holds another study, or model, text or target have changed.
    """
    stored = store.claim(spec)
    if stored is None:
        return None
    found = Fingerprints(source.fingerprint, stored["dtype"], text, target)
    for what, flag in (("model", "--model"), ("text", "--data"), ("target", "--target")):
        if getattr(found, what) != stored.get(what):
            if not store.answered(store.load_study() or {"spec": {}}):
                return None  # mended before anything was measured on it
            raise EsaError(
                f"{store.location} was made with another {what} under the same name ({flag}); "
                "bring that one back, or choose another --out-dir"
            )
    return found


def check_opening(store: Store, found: dict[str, Any]) -> None:
    """Refuse to go on with a study whose windows began otherwise, by an earlier version's rule, or whose texts changed.

    Raises
    ------
    EsaError
        If what was found now (:meth:`Worker.describe`) differs from what the store says.
    """
    stored = (store.load_study() or {}).get("resolved") or {}
    if stored.get("bos", found["bos"]) != found["bos"]:
        now = " and ".join(found["opening"]) or "text alone"
        raise EsaError(
            f"{store.location} was measured on windows that began otherwise (by its tokenizer they begin with {now}); "
            "choose another --out-dir"
        )
    before, now = (record.get("other_texts", {}) for record in (stored, found))
    if changed := [name for name, text in now.items() if before.get(name, text) != text]:
        raise EsaError(
            f"{store.location} was measured on another {changed[0]} (--other-data); bring that text back, or choose "
            "another --out-dir"
        )


def lacks(spec: StudySpec, store: Store) -> bool:
    """Whether anything is left to compute, or to mend."""
    return bool(store.unreadable() or any(measurement.missing(spec, store) for measurement in MEASUREMENTS.values()))
