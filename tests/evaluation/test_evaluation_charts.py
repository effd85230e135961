"""Charts on both surfaces: where things are drawn, and what is refused."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from vctool.evaluation.canvas import LIGHT, PngCanvas, SvgCanvas, clean, dashed
from vctool.evaluation.chart import HEIGHT, WIDTH, Bars, Chart, Drawing, Series, nice_ticks, png, svg

LINES = Chart("lines", "A < B", "x", "y", [Series("one", [0, 1, 2], [0.0, 10.0, 5.0]), Series("two", [0, 2], [1.0, 1.0])])
BARS = Bars("bars", "Bars", "percent", ["static", "high"], [Series("f", (), [10.0, 20.0], [8.0, 15.0], [12.0, 25.0])])


def polygons(chart: Drawing) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polygon points="([^"]+)"', svg(chart))
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in one.split())] for one in found]


@pytest.mark.parametrize("chart", [LINES, BARS])
def test_a_chart_is_well_formed_xml_with_a_name_for_screen_readers(chart: Drawing) -> None:
    root = ElementTree.fromstring(svg(chart))
    assert root.get("aria-label") == f"{chart.title}"
    assert root.get("viewBox") == "0 0 680 340"


def test_bars_are_as_high_as_their_values() -> None:
    bar_10, bar_20 = polygons(BARS)
    height = [max(y for _, y in bar) - min(y for _, y in bar) for bar in (bar_10, bar_20)]
    assert height[1] == pytest.approx(2 * height[0], abs=0.2)


def test_a_line_goes_through_its_points_in_proportion() -> None:
    line = re.findall(r'<polyline points="([^"]+)" fill="none" stroke-width="2"', svg(LINES))[2]  # the first two are the legend's
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y0 - y1) == pytest.approx(2 * (y0 - y2), abs=0.3)


def test_a_logarithmic_axis_spaces_equal_ratios_equally() -> None:
    chart = Chart("log", "t", "x", "y", [Series("one", [1, 10, 100], [1.0, 2.0, 3.0])], log="x")
    x = [float(value) for value in re.findall(r'<circle cx="([\d.]+)"', svg(chart))]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0, 10, [0, 2, 4, 6, 8, 10]), (0.61, 0.99, [0.7, 0.8, 0.9]), (-1, 1, [-1, -0.5, 0, 0.5, 1])]
)
def test_ticks_are_round_numbers_inside_the_axis(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("chart", [LINES, BARS])
def test_the_png_is_small_sharp_and_has_the_series_colour(chart: Drawing) -> None:
    data = png(chart)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    assert image.size == (2 * WIDTH, 2 * HEIGHT)
    assert len(data) < 40_000
    wanted = np.array([int(LIGHT["s0"][at : at + 2], 16) for at in (1, 3, 5)])
    assert (np.abs(np.asarray(image, dtype=int) - wanted).sum(axis=2) < 90).any()


def test_both_surfaces_draw_a_turned_word_and_dashes() -> None:
    canvas = PngCanvas(40, 40)
    canvas.text((20, 20), "word", turned=True, anchor="middle")
    assert np.asarray(Image.open(io.BytesIO(canvas.png())).convert("L")).min() < 120
    assert dashed([(0, 0), (10, 0)], (3, 2)) == [[(0, 0), (3, 0)], [(5, 0), (8, 0)]]


@pytest.mark.parametrize(
    "chart",
    [
        Chart("none", "t", "x", "y", []),
        Chart("nan", "t", "x", "y", [Series("a", [0], [float("nan")])]),
        Bars("none", "t", "y", [], []),
        Bars("inf", "t", "y", ["a"], [Series("a", (), [float("inf")])]),
    ],
)
def test_a_chart_without_values_is_refused(chart: Drawing) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        svg(chart)


@pytest.mark.parametrize(
    "chart",
    [
        Chart("one", "t", "x", "y", [Series("a", [3], [0.0])]),
        Chart("same", "t", "x", "y", [Series("a", [1, 2], [5.0, 5.0])], log="xy"),
        Bars("zero", "t", "y", ["a"], [Series("a", (), [0.0])]),
    ],
)
def test_a_single_value_and_equal_values_are_drawn(chart: Drawing) -> None:
    ElementTree.fromstring(svg(chart))
    assert png(chart).startswith(b"\x89PNG")


def test_text_on_a_chart_cannot_become_markup_or_turn_the_line_round() -> None:
    canvas = SvgCanvas(10, 10)
    canvas.text((0, 0), "</text><script>\u202eevil\x00")
    assert "<script" not in canvas.svg("t", "")
    assert clean("a\u202eb\x00c\td") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c d"
