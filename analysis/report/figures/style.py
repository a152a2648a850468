"""What all figures share: colours and shapes told apart with every common colour blindness, orders and scales."""

from __future__ import annotations

import altair as alt

from analysis.names import GROUP_ORDER
from analysis.study import Study
from esa_ray.spec import COMPONENTS, is_data_free

#: Okabe and Ito's palette, told apart with every common colour blindness; shapes say the same again.
COLOURS = ["#D55E00", "#CC79A7", "#0072B2", "#009E73", "#E69F00", "#8A8A8A"]
SHAPES = ["circle", "cross", "square", "triangle-up", "triangle-down", "diamond"]
MANY_COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A"]
MANY_SHAPES = [
    "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right",
]  # fmt: skip
Chart = alt.Chart | alt.LayerChart | alt.FacetChart


def _paint(groups: list[str], palette: list[str]) -> alt.Scale:
    return alt.Scale(domain=groups, range=[palette[GROUP_ORDER.index(g)] for g in groups])


def group_scales(groups: list[str]) -> dict:
    """Colour and shape of super and its controls."""
    order, legend = alt.Sort(groups), alt.Legend(columns=3)
    return {
        "color": alt.Color("group:N", sort=order, title="group", legend=legend, scale=_paint(groups, COLOURS)),
        "shape": alt.Shape("group:N", sort=order, title="group", legend=legend, scale=_paint(groups, SHAPES)),
    }  # fmt: skip


def named_scales(field: str, names: list[str], title: str | None = None) -> dict:
    """Colour and shape of names, with a legend that fits a phone.

    Beyond eight each repeats, but not the two together before the 56th.
    """
    longest = max(map(len, names))
    columns = next((n for n, most in ((4, 6), (3, 9), (2, 20)) if longest <= most), 1)
    legend = alt.Legend(columns=columns, labelLimit=250 if columns == 1 else 140, title=title, symbolOpacity=1)
    turn = len(names)
    looks = (MANY_COLOURS, MANY_SHAPES if turn <= 8 else MANY_SHAPES[:7])
    colours, shapes = ((palette * (1 + turn // len(palette)))[:turn] for palette in looks)
    return {
        "color": alt.Color(
            f"{field}:N", sort=names, scale=alt.Scale(domain=names, range=colours), legend=legend, title=title
        ),
        "shape": alt.Shape(
            f"{field}:N", sort=names, scale=alt.Scale(domain=names, range=shapes), legend=legend, title=title
        ),
    }  # fmt: skip


def rule(value: float, text: str, dash: tuple[int, int] = (5, 4)) -> Chart:
    """A horizontal reference line with its name at the left end."""
    base = alt.Chart(alt.Data(values=[{"at": value, "name": text}]))
    line = base.mark_rule(strokeDash=list(dash), color="#555").encode(y="at:Q")
    name = base.mark_text(align="left", dx=4, dy=-7, color="#555", fontSize=11)
    return alt.layer(line, name.encode(y="at:Q", text="name:N", x=alt.value(0)))


def components(present: list[str]) -> list[str]:
    """Components in the order in which a block applies them."""
    return [c for c in COMPONENTS if c in present]


def seeing(study: Study, metrics: list[str]) -> list[str]:
    """Those scores that look at text, in the study's order."""
    order = list(dict.fromkeys(s["metric"] for s in study.spec["scores"]))
    return [m for m in order if m in metrics and not is_data_free(m)]
