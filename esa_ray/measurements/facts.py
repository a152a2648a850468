"""Facts: which ones the model knows, where it holds them, and how much it hangs on these places."""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints
from esa_ray.identity import IDENTITY_VERSION, digest
from esa_ray.interpret.facts.sources import Fact, facts_of
from esa_ray.interpret.peers import alike
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.role_cost import cost_of_facts
from esa_ray.measurements.swept import Swept

if TYPE_CHECKING:
    from esa_ray.measurements.cost import Cost
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store

_FACTS = TypeAdapter(list[Fact])


def _stem(fact: Fact) -> str:
    """A fact in a file's name, e.g. ``countries-capital-Ivory-Coast``."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{fact.source}-{fact.relation}-{fact.subject}")[:80].strip("-.")


def fact_of(unit: Unit) -> tuple[Fact, list[Fact], int]:
    """The fact of a unit, those that it is compared with, and the seed."""
    number, facts, seed = unit.values
    found = _FACTS.validate_json(facts)
    return found[number], found, seed


@MEASUREMENTS.add
class Facts(Swept):
    """One unit a fact and seed; a row for each place of each way of asking, and one for a way that doesn't do."""

    name, table, phase, identity = "facts", "facts", "facts", "fact_id"
    passes = 20.0

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Every fact of the sources, by every seed; actors read no files, so a unit has what it is compared with."""
        if spec.facts is None:
            return []
        facts = facts_of(spec.facts)
        families = {(fact.source, fact.relation): alike(fact, facts) for fact in facts}
        texts = {key: _FACTS.dump_json(mine).decode() for key, mine in families.items()}
        found = []
        for key, mine in families.items():
            units = product(spec.seeds, enumerate(mine))
            found += [Unit(f"{_stem(fact)}-s{seed}", (i, texts[key], seed)) for seed, (i, fact) in units]
        return found

    def left(self, spec: StudySpec, store: Store) -> int:
        """As every grid's; where a source can't be read, as on a machine without its file, none that is known of."""
        try:
            return super().left(spec, store)
        except EsaError:
            return 0

    def cost(self, spec: StudySpec) -> Cost:
        """See :func:`esa_ray.measurements.role_cost.cost_of_facts`."""
        return cost_of_facts(spec)

    def id_of(self, unit: Unit, spec: StudySpec, found: Fingerprints) -> str:
        """Model, dtype, text (sensitivity is of its windows), how facts are traced, the fact and its like, seed."""
        assert spec.facts
        number, facts, seed = unit.values
        return digest(
            {
                "version": IDENTITY_VERSION, "measurement": self.name, "model": found.model, "dtype": found.dtype,
                "data": {"text": found.text, **spec.data.content()}, "how": spec.facts.content(),
                "fact": number, "facts": facts, "seed": seed,
            }
        )  # fmt: skip

    def columns(self, unit: Unit) -> dict[str, Any]:
        """The fact, whatever way it is asked for."""
        fact, _, seed = fact_of(unit)
        return {
            "fact": fact.name, "source": fact.source, "relation": fact.relation, "subject": fact.subject,
            "answer": fact.answer, "seed": seed,
        }  # fmt: skip

    def heard(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the driver hears: a fact that the model knows by one way of asking is measured."""
        measured = [row for row in rows if row.get("status") != "empty"]
        return super().heard(measured or rows)

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Ask, corrupt, restore every place."""
        from esa_ray.interpret.facts.tracing import traced

        assert worker.spec.facts
        fact, facts, seed = fact_of(unit)
        mine = worker.interpreting
        return traced(
            worker.model, worker.catalogue, mine.tokenizer, fact, worker.spec.facts, others=facts, seed=seed,
            sensitivity=mine.sensitivity(seed), opening=mine.opening,
        )  # fmt: skip
