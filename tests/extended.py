"""A measurement with its table, section and figure, as a package of somebody else's might have it: one file."""

import altair as alt
import pyarrow as pa

from analysis.report.figures import FIGURES
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import QUESTIONS, question
from esa_ray.measurements import MEASUREMENTS, Measurement, Unit
from esa_ray.measurements.cost import Cost
from esa_ray.schema import TABLES


class Heaviest(Measurement):
    """The largest absolute weight of each block."""

    name, table, phase = "heaviest", "heaviest", "heaviest"
    schema = pa.schema({"model": pa.string(), "layer": pa.int64(), "largest": pa.float64()})

    def asked(self, spec, store):
        record = store.load_study()
        return [Unit(f"block-{n}", (n,)) for n in range(record["resolved"]["layers"])] if record else []

    def cost(self, spec):
        return Cost(said="one look at each block", forward_passes=3)

    def rows(self, worker, unit):
        (layer,) = unit.values
        tensors = [t.parameter for t in worker.catalogue.tensors if t.layer == layer]
        return [{"model": worker.source.name, "layer": layer, "largest": max(float(t.abs().max()) for t in tensors)}]


def heaviest_by_block(study):
    table = study.table("heaviest")
    return None if table.is_empty() else alt.Chart(table).mark_bar().encode(x="layer:O", y="largest:Q")


def heaviest(study):
    table = study.table("heaviest").sort("layer")
    if table.is_empty():
        return None
    rows = [[str(r["layer"]), f"{r['largest']:.6f}"] for r in table.iter_rows(named=True)]
    return Section(
        "heaviest", "Which block has the largest weight?", f"Of {len(rows)} blocks, see the figure.", "Signs are lost.",
        [Figure("heaviest_by_block", "largest weight of each block", "Largest weights.")],
        [Table(["block", "largest"], rows)],
    )  # fmt: skip


def register():
    MEASUREMENTS.add(Heaviest)
    question("weights", heaviest_by_block)(heaviest)


def forget():
    MEASUREMENTS.remove("heaviest")
    del QUESTIONS["heaviest"], FIGURES["heaviest_by_block"], TABLES["heaviest"]
