"""What measurements of roles and of attention share: units are subjects, weights and sets that are damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError, unreadable
from esa_ray.identity import IDENTITY_VERSION, digest
from esa_ray.interpret.subjects import Subject
from esa_ray.measurements.registry import Unit
from esa_ray.measurements.swept import Swept
from esa_ray.spec import FACTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esa_ray.grid import Fingerprints
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


def unit_of(subject: Subject) -> Unit:
    """A subject as a unit."""
    return Unit(subject.label, (subject.model_dump_json(),))


def facts_content(spec: StudySpec) -> dict[str, Any]:
    """Which facts the role "fact" is measured on, as plain values that leave defaults out.

    Files go by their names and what they say, wherever they lie: to an actor, which runs in another directory, they are
    absolute.

    Raises
    ------
    EsaError
        If a file can't be read.
    """
    if spec.facts is None:
        return {}
    names = [name if name in FACTS else _with_content(Path(name).expanduser()) for name in spec.facts.sources]
    return {"facts": spec.facts.content() | ({"sources": names} if names != [*FACTS] else {})}


def _with_content(file: Path) -> str:
    try:
        return f"{file.name}-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    except OSError as error:
        raise unreadable(f"--facts {file}", error) from None


def subject_of(unit: Unit) -> Subject:
    """The subject of a unit."""
    return Subject.model_validate_json(unit.values[0])


class Subjected(Swept):
    """A grid of subjects, the first value of whose units is the subject."""

    def ordered(self, store: Store, units: Sequence[Unit]) -> list[Unit]:
        """By seed, whose texts are kept, and by the block that passes are resumed from."""

        def key(unit: Unit) -> tuple[int, int]:
            subject = subject_of(unit)
            return subject.seed, -1 if subject.layer is None else subject.layer

        return sorted(units, key=key)

    def id_of(self, unit: Unit, spec: StudySpec, found: Fingerprints) -> str:
        """Model, dtype, text, windows, what is measured and how, and the subject."""
        return digest(
            {
                "version": IDENTITY_VERSION, "measurement": self.name, "model": found.model, "dtype": found.dtype,
                "data": {"text": found.text, **spec.data.content()}, **self.how(unit, spec),
                "subject": subject_of(unit).content(),
            }
        )  # fmt: skip

    def left(self, spec: StudySpec, store: Store) -> int:
        """As every grid's; where a file of facts can't be read, as on a machine without it, none that is known of."""
        try:
            return super().left(spec, store)
        except EsaError:
            return 0

    def how(self, unit: Unit, spec: StudySpec) -> dict[str, Any]:
        """What else its numbers depend on, as plain values that leave defaults out."""
        assert spec.roles
        return {name: value for name, value in spec.roles.content().items() if name == "windows"}

    def heard(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the driver hears: that it was measured, if a row was; a role that a model lacks is no failure."""
        return super().heard([row for row in rows if row.get("status") != "empty"] or rows)

    def columns(self, unit: Unit) -> dict[str, Any]:
        """The subject's."""
        return subject_of(unit).columns()
