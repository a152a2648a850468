"""What a reader of a figure needs, asked of the picture that Vega draws: labels on every axis, and nothing cut off."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import numpy as np
import polars as pl
import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st

import analysis
from analysis.comparison import compare
from analysis.comparison.figures import figures
from analysis.report.figures import charts, styled
from analysis.report.figures.axes import by_block, linear, logarithmic, signed
from analysis.report.figures.style import named_scales
from esa_ray.spec import COMPONENTS
from tests.analysis.many import study

#: How the page draws all figures.
PAGE = (Path(analysis.__file__).parent / "report" / "templates" / "_charts.html.j2").read_text()
CONFIG = json.loads(re.search(r"const config = (.*);", PAGE)[1])
#: Width of a figure on a phone of 390 pixels: 1.25 rem are left at both sides.
PHONE = 350


def drawn(chart, width=PHONE):
    """A chart as an SVG, its plot as wide as all of it may be."""
    return ElementTree.fromstring(vl_convert.vegalite_to_svg(chart.properties(width=width).to_json(), config=CONFIG))


def groups(element, role):
    return [g for g in element.iter() if f"role-{role}" in (g.get("class") or "").split()]


def labels(element):
    """The labels of each axis of numbers, as Vega describes it to a reader who doesn't see it."""
    found = [g for g in element.iter() if re.search("axis titled .* for a (?!discrete)", g.get("aria-label") or "")]
    return [[t.text for g in groups(axis, "axis-label") for t in g.iter() if t.text and t.text.strip()]
            for axis in found]  # fmt: skip


positive = st.floats(1e-9, 1e9)


@given(positive, st.floats(1.01, 1e6))
def test_a_logarithmic_axis_has_two_labels_or_more_inside_it(low, factor):
    high = low * factor
    ticks = logarithmic(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low * (1 - 1e-6) <= t <= high * (1 + 1e-6) for t in ticks)
    assert sorted(set(ticks)) == ticks


@given(st.floats(0, 1e3), st.floats(1e-5, 1e3))
def test_an_axis_through_nothing_has_a_label_beside_0(down, up):
    ticks = signed(-down, up)
    assert 0 in ticks
    assert len(ticks) >= 2
    assert all(-down <= t <= up * (1 + 1e-9) for t in ticks)


@pytest.mark.parametrize(("depth", "wanted"), [
    (1, [0]), (2, [0, 1]), (6, [0, 1, 2, 3, 4, 5]), (32, [0, 5, 10, 15, 20, 25, 30]),
])  # fmt: skip
def test_blocks_are_numbered_by_whole_numbers(depth, wanted):
    assert by_block(depth).to_dict()["axis"]["values"] == wanted


def test_round_numbers_are_those_that_people_count_in():
    assert linear(0.13, 0.52) == [0.2, 0.3, 0.4, 0.5]


def test_every_axis_of_a_full_studys_figures_is_labelled(synthetic):
    for name, chart in charts(synthetic[0]).items():
        for found in labels(drawn(chart)):
            assert len(found) >= 2, (name, found)


@pytest.mark.parametrize("names", [
    list(COMPONENTS), ["q", "k", "v", "o", "gate", "up", "down"], ["grad_x_weight_abs", "act_mag", "magnitude"],
    ["mixer_dt", "kv_latent", "attn_gate", "q_latent"], ["gauss_noise-weight per_layer k=100", "sign_flip-0.5"],
    ["progressive-zero-0.5 grad_x_weight, k=100"],
])  # fmt: skip
def test_a_legend_is_no_wider_than_a_phone(names):
    base = alt.Chart(pl.DataFrame({"name": names, "x": range(len(names))}))
    points = base.mark_point().encode(x="x:Q", y=alt.Y("x:Q", title="a title"), **named_scales("name", names))
    dash = base.mark_line().encode(
        x="x:Q", y="x:Q", strokeDash=alt.StrokeDash("name:N", legend=alt.Legend(columns=1, labelLimit=250))
    )
    for chart in (points, points + dash if len(names) <= 3 else points):
        # Of a plot that is narrow, the width of all is that of its widest part; the axis takes the rest of a phone.
        picture = drawn(styled({"c": chart})["c"], 100)
        assert float(picture.get("width")) <= PHONE
        shown = {t.text for g in groups(picture, "legend-label") for t in g.iter() if t.text and t.text.strip()}
        assert len(shown) == len(names)


def test_no_figure_of_a_full_study_is_wider_than_a_phone(synthetic):
    for name, chart in charts(synthetic[0]).items():
        assert float(drawn(chart, 100).get("width")) <= PHONE, name


def test_models_of_nearly_one_size_stand_on_a_labelled_axis(tmp_path):
    draw = np.random.default_rng(0)
    for size in (1.1e8, 1.7e8):
        study(tmp_path / f"{size:g}", f"m-{size:g}", family="m", size=size, half=1e4, draw=draw)
    found = figures(compare([str(tmp_path)]))
    for name in (n for n in found if n.startswith("scaling-")):
        across, up = labels(drawn(styled(found)[name]))
        assert len(across) >= 2
        assert len(up) >= 2
        assert all(label.endswith("M") for label in across)
