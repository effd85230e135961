"""Two surfaces that a chart is drawn on with the same calls: SVG for a page, PNG for everything else.

Units are those of the chart (72 to the inch on paper), y points down. Colours are named by role, so that the page can have a
dark form: `ink`, `muted`, `grid`, `ground`, and `s0` to `s5` for series.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from html import escape
from typing import Any, Literal, Protocol

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]

# Okabe and Ito's colours: told apart with the usual kinds of colour blindness. Series differ in dash and marker as well.
LIGHT = {
    "ink": "#1a1a1a",
    "muted": "#595959",
    "grid": "#d9d9d9",
    "ground": "#ffffff",
    "s0": "#0072b2",
    "s1": "#c04e00",
    "s2": "#00805e",
    "s3": "#a8447c",
    "s4": "#6b6b00",
    "s5": "#333333",
}
DARK = {
    "ink": "#ececec",
    "muted": "#b3b3b3",
    "grid": "#444444",
    "ground": "#161616",
    "s0": "#56b4e9",
    "s1": "#f0953f",
    "s2": "#38c79c",
    "s3": "#e79cc6",
    "s4": "#d6cf4d",
    "s5": "#cccccc",
}
SERIES = ("s0", "s1", "s2", "s3", "s4", "s5")
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 3), (2, 2), (8, 3, 2, 3), (1, 3), (10, 4))
FONT_SIZE = 11.0
_CHARACTER = 0.55  # mean width of a character, in font sizes: exact metrics differ from reader to reader anyway


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """About how wide a text is."""
    return len(text) * size * _CHARACTER


class Canvas(Protocol):
    """What a chart needs to draw itself."""

    width: float
    height: float

    def line(self, points: Sequence[Point], colour: str, width: float = 1.5, dash: Sequence[float] = ()) -> None: ...

    def area(self, points: Sequence[Point], colour: str, opacity: float = 1.0) -> None: ...

    def dot(self, centre: Point, radius: float, colour: str, opacity: float = 1.0) -> None: ...

    def text(
        self, at: Point, text: str, *, anchor: Anchor = "start", size: float = FONT_SIZE, colour: str = "ink", turned: bool = False
    ) -> None: ...


class SvgCanvas:
    """An SVG element for a page: colours are the page's variables with the light palette as fallback."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._parts: list[str] = []

    def line(self, points: Sequence[Point], colour: str, width: float = 1.5, dash: Sequence[float] = ()) -> None:
        dashes = f' stroke-dasharray="{" ".join(_short(d) for d in dash)}"' if dash else ""
        at = f'points="{_points(points)}" fill="none" stroke-width="{_short(width)}"{dashes}'
        self._parts.append(f'<polyline {at} style="stroke:{_variable(colour)}"/>')

    def area(self, points: Sequence[Point], colour: str, opacity: float = 1.0) -> None:
        self._parts.append(f'<polygon points="{_points(points)}" style="fill:{_variable(colour)};fill-opacity:{_short(opacity)}"/>')

    def dot(self, centre: Point, radius: float, colour: str, opacity: float = 1.0) -> None:
        at = f'cx="{_short(centre[0])}" cy="{_short(centre[1])}" r="{_short(radius)}"'
        self._parts.append(f'<circle {at} style="fill:{_variable(colour)};fill-opacity:{_short(opacity)}"/>')

    def text(
        self, at: Point, text: str, *, anchor: Anchor = "start", size: float = FONT_SIZE, colour: str = "ink", turned: bool = False
    ) -> None:
        turn = f' transform="rotate(-90 {_short(at[0])} {_short(at[1])})"' if turned else ""
        place = f'x="{_short(at[0])}" y="{_short(at[1])}" text-anchor="{anchor}" font-size="{_short(size)}"{turn}'
        self._parts.append(f'<text {place} style="fill:{_variable(colour)}">{escape(clean(text))}</text>')

    def svg(self, title: str, description: str) -> str:
        """The finished element; title and description are what a screen reader says."""
        size = f'viewBox="0 0 {_short(self.width)} {_short(self.height)}" width="{_short(self.width)}" height="{_short(self.height)}"'
        label = escape(clean(f"{title}. {description}" if description else title))
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">{"".join(self._parts)}</svg>'


class PngCanvas:
    """A picture on white, drawn at four times its size and halved: Pillow does not smooth edges itself."""

    scale, shrink = 4, 2

    def __init__(self, width: float, height: float) -> None:
        from PIL import Image, ImageDraw

        self.width, self.height = width, height
        self._image = Image.new("RGB", (round(width * self.scale), round(height * self.scale)), LIGHT["ground"])
        self._draw = ImageDraw.Draw(self._image, "RGBA")
        self._fonts: dict[float, Any] = {}

    def line(self, points: Sequence[Point], colour: str, width: float = 1.5, dash: Sequence[float] = ()) -> None:
        thick = max(1, round(width * self.scale))
        for piece in dashed(points, dash):
            self._draw.line(self._scaled(piece), fill=LIGHT[colour], width=thick, joint="curve")

    def area(self, points: Sequence[Point], colour: str, opacity: float = 1.0) -> None:
        self._draw.polygon(self._scaled(points), fill=_with_alpha(colour, opacity))

    def dot(self, centre: Point, radius: float, colour: str, opacity: float = 1.0) -> None:
        x, y, r = (value * self.scale for value in (*centre, radius))
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=_with_alpha(colour, opacity))

    def text(
        self, at: Point, text: str, *, anchor: Anchor = "start", size: float = FONT_SIZE, colour: str = "ink", turned: bool = False
    ) -> None:
        from PIL import Image, ImageDraw

        font = self._font(size)
        text = clean(text)
        x, y = at[0] * self.scale, at[1] * self.scale
        if not turned:
            self._draw.text((x, y), text, fill=LIGHT[colour], font=font, anchor={"start": "ls", "middle": "ms", "end": "rs"}[anchor])
            return
        left, top, right, bottom = self._draw.textbbox((0, 0), text, font=font)
        word = Image.new("L", (max(1, round(right - left)), max(1, round(bottom - top))), 0)
        ImageDraw.Draw(word).text((-left, -top), text, fill=255, font=font)
        word = word.rotate(90, expand=True)
        along = {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor]
        self._image.paste(LIGHT[colour], (round(x - word.width), round(y - along * word.height)), word)

    def png(self) -> bytes:
        """The finished picture; few colours, so a palette makes it small."""
        from PIL import Image

        small = self._image.resize(
            (self._image.width // self.shrink, self._image.height // self.shrink), resample=Image.Resampling.BOX
        ).quantize(64)
        out = io.BytesIO()
        small.save(out, format="PNG", optimize=True)
        return out.getvalue()

    def _font(self, size: float) -> Any:
        from PIL import ImageFont

        if size not in self._fonts:
            self._fonts[size] = ImageFont.load_default(size * self.scale)
        return self._fonts[size]

    def _scaled(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        return [(x * self.scale, y * self.scale) for x, y in points]


def dashed(points: Sequence[Point], dash: Sequence[float]) -> list[list[Point]]:
    """A line cut into its dashes; the whole line where there is no pattern."""
    if not dash:
        return [list(points)]
    pieces: list[list[Point]] = []
    at, left, current = 0, float(dash[0]), [points[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length, done = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 0.0
        while length - done > left:
            done += left
            here = (x0 + (x1 - x0) * done / length, y0 + (y1 - y0) * done / length)
            if at % 2 == 0:
                pieces.append([*current, here])
            current, at = [here], at + 1
            left = float(dash[at % len(dash)])
        left -= length - done
        current.append((x1, y1))
    if at % 2 == 0:
        pieces.append(current)
    return pieces


def clean(text: str) -> str:
    """A text without characters that XML forbids or that reverse what stands around them."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _variable(colour: str) -> str:
    return f"var(--{colour},{LIGHT[colour]})"


def _with_alpha(colour: str, opacity: float) -> tuple[int, int, int, int]:
    value = LIGHT[colour].removeprefix("#")
    return (int(value[:2], 16), int(value[2:4], 16), int(value[4:], 16), round(255 * opacity))


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{_short(x)},{_short(y)}" for x, y in points)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
