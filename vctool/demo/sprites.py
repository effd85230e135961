"""Glyphs of the colour emoji font as small pictures: found, drawn once, scaled and turned through caches."""

from __future__ import annotations

import os
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from vctool.demo.objects import things
from vctool.errors import InputError

FONT_VARIABLE = "VCTOOL_EMOJI_FONT"
FONT_FILE = "NotoColorEmoji.ttf"
FONT_FOLDERS = (
    "/usr/share/fonts/truetype/noto",
    "/usr/share/fonts/noto",
    "/usr/share/fonts/noto-emoji",
    "/usr/share/fonts/google-noto-emoji-fonts",
    "/usr/share/fonts/google-noto-color-emoji-fonts",
    "/usr/share/fonts/truetype",
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/opt/homebrew/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
)
INSTALL_HINT = (
    "install it with: apt-get install fonts-noto-color-emoji, dnf install google-noto-color-emoji-fonts "
    f"or brew install --cask font-noto-color-emoji; or set {FONT_VARIABLE} to the path of {FONT_FILE}"
)

_STRIKE = 109  # the only size at which the font holds bitmaps
_MASTER = 144  # side of the square that holds a drawn glyph with its rim


def find_font() -> Path:
    """The colour emoji font: the file named by VCTOOL_EMOJI_FONT, else the first one in the usual folders.

    Raises InputError, with what to install, where there is none.
    """
    named = os.environ.get(FONT_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise InputError(f"{FONT_VARIABLE} names {path}, which is not a file", INSTALL_HINT)
        return path
    for folder in FONT_FOLDERS:
        path = Path(folder).expanduser() / FONT_FILE
        if path.is_file():
            return path
    raise InputError(f"the font {FONT_FILE} is not on this machine and the demo world is drawn with it", INSTALL_HINT)


@cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(str(path), _STRIKE)
    except OSError as problem:
        raise InputError(f"{path} cannot be used as the colour emoji font: {problem}", INSTALL_HINT) from problem


@cache
def master(name: str) -> Image.Image:
    """The glyph of one object, RGBA `_MASTER` square, centred, with a light rim that keeps it visible on any background."""
    font = _font(find_font())
    canvas = Image.new("RGBA", (2 * _MASTER, 2 * _MASTER), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((_MASTER // 2, _MASTER // 2), things()[name].glyph, font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise InputError(f"the colour emoji font has no picture of: {name}", INSTALL_HINT)
    glyph = canvas.crop(box)
    room = _MASTER - 16
    scale = min(room / glyph.width, room / glyph.height, 1.0)
    if scale < 1.0:
        glyph = glyph.resize((round(glyph.width * scale), round(glyph.height * scale)), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (_MASTER, _MASTER), (0, 0, 0, 0))
    square.paste(glyph, ((_MASTER - glyph.width) // 2, (_MASTER - glyph.height) // 2))
    shape = square.getchannel("A")
    wide = shape
    for _ in range(4):  # four small filters are one of width 9, and ten times as fast
        wide = wide.filter(ImageFilter.MaxFilter(3))
    rim = wide.filter(ImageFilter.GaussianBlur(1.2))
    shade = wide.filter(ImageFilter.GaussianBlur(3.0)).point([level * 2 // 5 for level in range(256)])
    sticker = Image.new("RGBA", square.size, (30, 30, 40, 0))
    sticker.putalpha(shade)
    white = Image.new("RGBA", square.size, (250, 250, 246, 0))
    white.putalpha(rim)
    sticker = Image.alpha_composite(sticker, white)
    flat = Image.alpha_composite(sticker, square)
    flat.putalpha(ImageChops.lighter(flat.getchannel("A"), shape))
    return flat


@lru_cache(maxsize=4096)
def _scaled(name: str, side: int) -> Image.Image:
    # Premultiplied while it is resized, or the colour of clear pixels bleeds into the edge.
    return (
        master(name).convert("RGBa").resize((side, side), Image.Resampling.BOX if side < 48 else Image.Resampling.HAMMING).convert("RGBA")
    )


@lru_cache(maxsize=8192)
def sprite(name: str, side: int, degrees: int) -> tuple[Image.Image, Image.Image]:
    """Object `name` in a square of `side` pixels, turned counterclockwise by whole degrees: (RGB picture, L mask)."""
    picture = _scaled(name, side)
    if degrees % 360:
        picture = picture.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    return picture.convert("RGB"), picture.getchannel("A")


@lru_cache(maxsize=4096)
def faded(name: str, side: int, degrees: int, alpha: int) -> tuple[Image.Image, Image.Image]:
    """As `sprite`, with its mask scaled by `alpha` of 255."""
    picture, mask = sprite(name, side, degrees)
    return picture, mask.point([value * alpha // 255 for value in range(256)])
