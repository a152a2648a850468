"""How a study's store stands to what is asked: the same model and text, and what is missing."""

from __future__ import annotations

from esa_ray.errors import EsaError
from esa_ray.grid import Resolved
from esa_ray.measurements import MEASUREMENTS
from esa_ray.models.sources import Source
from esa_ray.spec import StudySpec
from esa_ray.storage.store import Store


def resolution(store: Store, spec: StudySpec, source: Source, text: str) -> Resolved | None:
    """What an earlier run of this study resolved, if model and text are still the same.

    Raises
    ------
    EsaError
        If the place holds another study, or model or text have changed.
    """
    stored = store.claim(spec)
    if stored is None:
        return None
    found = Resolved(source.fingerprint, stored["dtype"], text)
    for what, flag in (("model", "--model"), ("text", "--data")):
        if getattr(found, what) != stored[what]:
            if not store.answered(store.load_study() or {"spec": {}}):
                return None  # mended before anything was measured on it
            raise EsaError(
                f"{store.place} was made with another {what} under the same name ({flag}); "
                "bring that one back, or choose another --out-dir"
            )
    return found


def lacks(spec: StudySpec, store: Store) -> bool:
    """Whether anything is left to compute, or to mend."""
    return bool(store.unreadable() or any(measurement.missing(spec, store) for measurement in MEASUREMENTS.values()))
