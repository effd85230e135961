"""Charts as data, drawn on a canvas: points and lines over two axes, and grouped bars. Nothing but Pillow is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from vctool.evaluation.canvas import DASHES, FONT_SIZE, SERIES, Canvas, PngCanvas, Point, SvgCanvas, text_width

WIDTH, HEIGHT = 680.0, 340.0
_TITLE, _RIGHT, _BOTTOM = 24.0, 16.0, 44.0
_LEGEND = 18.0


@dataclass(frozen=True)
class Series:
    """One set of values. low, high: ends of their intervals, as long as y. kind `points` draws dots without a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    kind: Literal["line", "points"] = "line"


@dataclass(frozen=True)
class Chart:
    """Lines and points over two axes. log: which axes are logarithmic. marks: (x, words) for upright lines. shaded: (from, to) on x.

    labels: (x, y, words) beside a point. name: file name without suffix. description: what it shows, for who cannot see it.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    description: str = ""
    log: Literal["", "x", "xy"] = ""
    marks: Sequence[tuple[float, str]] = ()
    shaded: tuple[float, float] | None = None
    labels: Sequence[tuple[float, float, str]] = ()
    y_range: tuple[float, float] | None = None

    def draw(self, canvas: Canvas) -> None:
        """Draw on a canvas. Raises ValueError if there is not one finite value."""
        logged_x, logged_y = "x" in self.log, "y" in self.log
        xs = [x for one in self.series for x in one.x] + [x for x, _ in self.marks] + [x for x, _, _ in self.labels]
        ys = [y for one in self.series for y in (*one.y, *one.low, *one.high)] + [y for _, y, _ in self.labels]
        if not xs or not ys or not all(math.isfinite(value) for value in (*xs, *ys)):
            raise ValueError(f"chart '{self.name}' has nothing to draw, or a value that is not finite")
        down = _Axis(*(self.y_range or _padded(min(ys), max(ys), logged_y)), logged_y)
        across = _Axis(*_padded(min(xs), max(xs), logged_x), logged_x)
        frame = _Frame.of(canvas, self.title, self.y_label, down, len(self.series) > 1)
        _legend(canvas, [one.name for one in self.series], self.kinds())
        frame.draw_y(canvas, down)
        for tick in across.ticks():
            at = frame.x(across, tick)
            canvas.line([(at, frame.bottom), (at, frame.bottom + 4)], "muted", 1)
            canvas.text((at, frame.bottom + 16), _tick(tick), anchor="middle", size=10, colour="muted")
        canvas.text(((frame.left + frame.right) / 2, canvas.height - 8), self.x_label, anchor="middle")
        if self.shaded is not None:
            low, high = (frame.x(across, max(across.low, min(across.high, value))) for value in self.shaded)
            canvas.area([(low, frame.top), (high, frame.top), (high, frame.bottom), (low, frame.bottom)], "muted", 0.13)
        for number, one in enumerate(self.series):
            self._series(canvas, frame, across, down, one, number)
        for x, words in self.marks:
            at = frame.x(across, x)
            canvas.line([(at, frame.top), (at, frame.bottom)], "ink", 1, (4, 3))
            late = at > (frame.left + frame.right) / 2
            canvas.text((at - 4 if late else at + 4, frame.top + 11), words, anchor="end" if late else "start", size=10)
        for x, y, words in self.labels:
            canvas.text((frame.x(across, x) + 5, frame.y(down, y) + 3), words, size=9)

    def kinds(self) -> list[str]:
        """How each series is drawn, for the legend."""
        return [one.kind for one in self.series]

    def _series(self, canvas: Canvas, frame: _Frame, across: _Axis, down: _Axis, one: Series, number: int) -> None:
        colour = SERIES[number % len(SERIES)]
        x = [frame.x(across, value) for value in one.x]
        y = [frame.y(down, value) for value in one.y]
        if one.low and one.high:
            low, high = ([frame.y(down, value) for value in ends] for ends in (one.low, one.high))
            if one.kind == "line":
                canvas.area([*zip(x, high, strict=True), *reversed(list(zip(x, low, strict=True)))], colour, 0.18)
            else:
                for place, bottom, top in zip(x, low, high, strict=True):
                    canvas.line([(place, bottom), (place, top)], colour, 1)
        if one.kind == "line":
            canvas.line(list(zip(x, y, strict=True)), colour, 2, DASHES[number % len(DASHES)])
        crowded = len(x) > 60
        if one.kind == "points" or not crowded:
            for point in zip(x, y, strict=True):
                canvas.dot(point, 2.2 if crowded else 3, colour, 0.45 if crowded else 1)


@dataclass(frozen=True)
class Bars:
    """Grouped bars from zero: one group per category, one bar in it per series. low, high: interval ends per series or empty."""

    name: str
    title: str
    y_label: str
    categories: Sequence[str]
    series: Sequence[Series]
    description: str = ""
    y_range: tuple[float, float] | None = field(default=None)

    def draw(self, canvas: Canvas) -> None:
        """Draw on a canvas. Raises ValueError if there is no bar, or a value that is not finite."""
        values = [value for one in self.series for value in (*one.y, *one.low, *one.high)]
        if not values or not self.categories or not all(math.isfinite(value) for value in values):
            raise ValueError(f"chart '{self.name}' has nothing to draw, or a value that is not finite")
        down = _Axis(*(self.y_range or _padded(min(0.0, *values), max(0.0, *values), False)), False)
        frame = _Frame.of(canvas, self.title, self.y_label, down, len(self.series) > 1)
        _legend(canvas, [one.name for one in self.series], ["bar"] * len(self.series))
        frame.draw_y(canvas, down)
        slot = (frame.right - frame.left) / len(self.categories)
        thick = min(44.0, 0.8 * slot / len(self.series))
        zero = frame.y(down, max(down.low, 0.0))
        for place, category in enumerate(self.categories):
            middle = frame.left + (place + 0.5) * slot
            for number, one in enumerate(self.series):
                left = middle + (number - len(self.series) / 2) * thick
                top = frame.y(down, one.y[place])
                corners = [(left + 1, zero), (left + 1, top), (left + thick - 1, top), (left + thick - 1, zero)]
                canvas.area(corners, SERIES[number % len(SERIES)], 0.85)
                if one.low and one.high:
                    at = left + thick / 2
                    canvas.line([(at, frame.y(down, one.low[place])), (at, frame.y(down, one.high[place]))], "ink", 1.5)
            shown = category if text_width(category, 10) < slot else category[: max(1, int(slot / 6))] + "…"
            canvas.text((middle, frame.bottom + 16), shown, anchor="middle", size=10, colour="muted")
        canvas.line([(frame.left, zero), (frame.right, zero)], "muted", 1)


Drawing = Chart | Bars


def svg(chart: Drawing) -> str:
    """The chart as an SVG element."""
    canvas = SvgCanvas(WIDTH, HEIGHT)
    chart.draw(canvas)
    return canvas.svg(chart.title, chart.description)


def png(chart: Drawing) -> bytes:
    """The chart as a PNG file, twice the SVG's size in pixels."""
    canvas = PngCanvas(WIDTH, HEIGHT)
    chart.draw(canvas)
    return canvas.png()


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    logged: bool

    def part(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.logged else (self.low, self.high)
        return ((math.log10(value) if self.logged else value) - low) / (high - low)

    def ticks(self) -> list[float]:
        if self.logged:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first < 4 else (1,)
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        else:
            found = nice_ticks(self.low, self.high)
        return [tick for tick in found if self.low * (1 - 1e-9 * (self.low > 0)) <= tick <= self.high * (1 + 1e-9)]


def nice_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) from `low` to `high`, about `about` of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) + 0.0 for number in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    """The rectangle of the values."""

    left: float
    right: float
    top: float
    bottom: float

    @classmethod
    def of(cls, canvas: Canvas, title: str, y_label: str, down: _Axis, legend: bool) -> _Frame:
        canvas.text((4, 15), title, size=13)
        widest = max(text_width(_tick(tick), 10) for tick in down.ticks())
        frame = cls(32 + widest, canvas.width - _RIGHT, _TITLE + 8 + (_LEGEND if legend else 0), canvas.height - _BOTTOM)
        canvas.text((16, (frame.top + frame.bottom) / 2), y_label, anchor="middle", turned=True)
        return frame

    def x(self, axis: _Axis, value: float) -> float:
        return self.left + axis.part(value) * (self.right - self.left)

    def y(self, axis: _Axis, value: float) -> float:
        return self.bottom - axis.part(value) * (self.bottom - self.top)

    def draw_y(self, canvas: Canvas, down: _Axis) -> None:
        for tick in down.ticks():
            at = self.y(down, tick)
            canvas.line([(self.left, at), (self.right, at)], "grid", 0.8)
            canvas.text((self.left - 5, at + 3.5), _tick(tick), anchor="end", size=10, colour="muted")


def _legend(canvas: Canvas, names: Sequence[str], kinds: Sequence[str]) -> None:
    if len(names) < 2:
        return
    x, y = 4.0, _TITLE + 9
    for number, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        colour = SERIES[number % len(SERIES)]
        if kind == "bar":
            canvas.area([(x, y - 8), (x + 14, y - 8), (x + 14, y), (x, y)], colour, 0.85)
        elif kind == "points":
            canvas.dot((x + 7, y - 4), 3, colour)
        else:
            canvas.line([(x, y - 4), (x + 22, y - 4)], colour, 2, DASHES[number % len(DASHES)])
        start = x + (18 if kind != "line" else 27)
        canvas.text((start, y), name, size=FONT_SIZE)
        x = start + text_width(name) + 18


def _padded(low: float, high: float, logged: bool) -> tuple[float, float]:
    """The ends of an axis: a little beyond the values, and never of no length."""
    if logged:
        low, high = max(low, 1e-9), max(high, 1e-9)
        return (low / 1.08, high * 1.08) if high > low * 1.5 else (low / 2, high * 2)
    if high - low < 1e-12:
        return low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    margin = 0.04 * (high - low)
    return (low if low == 0 else low - margin), (high if high == 0 else high + margin)


def _tick(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.1g}"
    return f"{value:,.2f}".rstrip("0").rstrip(".") if abs(value) < 10_000 else f"{value:,.0f}"


__all__ = ["HEIGHT", "WIDTH", "Bars", "Chart", "Drawing", "Point", "Series", "nice_ticks", "png", "svg"]
