"""One self-contained HTML page from plain blocks: no script, no font, no address that a reader would have to fetch.

Every text is escaped here and nowhere else: ids, captions and file names come from strangers. Pictures are inline SVG or data
addresses. The page has a dark form, prints, and reads with a screen reader (headings in order, tables with header cells,
pictures with descriptions).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from vctool.evaluation import chart
from vctool.evaluation.canvas import DARK, LIGHT, clean


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table; the first column is text, the others are numbers unless `numeric` is false."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = True


@dataclass(frozen=True)
class Figure:
    """A chart."""

    chart: chart.Drawing


@dataclass(frozen=True)
class Picture:
    """A JPEG or PNG with what it shows in words, width and height in pixels."""

    data: bytes
    description: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Card:
    """One example of a gallery: its query, facts about it, and pictures with a line each."""

    title: str
    lines: Sequence[str]
    pictures: Sequence[tuple[str, Picture | None]]


@dataclass(frozen=True)
class Gallery:
    """Examples below each other."""

    cards: Sequence[Card]


Block = Text | Bullets | Facts | Table | Figure | Gallery


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


def page(title: str, lead: Sequence[str], sections: Iterable[Section]) -> str:
    """The whole document."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing may be loaded or run, whatever slipped into the page.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="color-scheme" content="light dark"><meta name="generator" content="vctool">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{_text(title)}</h1>",
        *(f'<p class="lead">{_text(line)}</p>' for line in lead),
    ]
    for section in sections:
        body = "".join(_block(block) for block in section.blocks)
        parts.append(f"<section><h2>{_text(section.title)}</h2>{body}</section>")
    return "".join([*parts, "</main></body></html>\n"])


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in block.items)}</ul>" if block.items else ""
    if isinstance(block, Facts):
        return f"<dl>{''.join(f'<dt>{_text(name)}</dt><dd>{_text(value)}</dd>' for name, value in block.rows)}</dl>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        caption = f"<figcaption>{_text(block.chart.description)}</figcaption>" if block.chart.description else ""
        return f"<figure>{chart.svg(block.chart)}{caption}</figure>"
    return "".join(_card(card) for card in block.cards)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.header)
    rows = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{_text(cell)}</th>' if not at else f"<td>{_text(cell)}</td>" for at, cell in enumerate(row))
        + "</tr>"
        for row in table.rows
    )
    kind = ' class="num"' if table.numeric else ""
    # A wide table scrolls by itself, also from the keyboard, instead of pushing the page sideways.
    label = f'role="region" tabindex="0" aria-label="{_text(table.caption)}"'
    inner = f"<table{kind}><caption>{_text(table.caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide" {label}>{inner}</div>'


def _card(card: Card) -> str:
    lines = "".join(f"<p>{_text(line)}</p>" for line in card.lines)
    shown = []
    for caption, picture in card.pictures:
        image = "" if picture is None else _image(picture)
        shown.append(f"<figure>{image}<figcaption>{_text(caption)}</figcaption></figure>")
    return f'<article class="card"><h3>{_text(card.title)}</h3>{lines}{"".join(shown)}</article>'


def _image(picture: Picture) -> str:
    kind = "png" if picture.data.startswith(b"\x89PNG") else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(picture.data).decode()}"
    width, height = picture.size
    return f'<img src="{source}" alt="{_text(picture.description)}" width="{width}" height="{height}">'


def _text(text: str) -> str:
    return escape(clean(text))


def _palette(colours: dict[str, str]) -> str:
    return "".join(f"--{role}:{value};" for role, value in colours.items())


_STYLE = (
    f":root{{{_palette(LIGHT)}--box:#f5f5f5;--link:#0b5cad}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_palette(DARK)}--box:#222;--link:#8ab4f8}}}}"
    "*{box-sizing:border-box}"
    "body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}"
    "main{max-width:62rem;margin:0 auto;padding:1.5rem 1rem 4rem}"
    "h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem;overflow-wrap:anywhere}"
    "h2{font-size:1.2rem;margin:2rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--grid)}"
    "h3{font-size:1rem;margin:0 0 .25rem;overflow-wrap:anywhere}"
    "p{max-width:46rem}.lead{color:var(--muted);margin:.2rem 0}"
    ".wide{overflow-x:auto;margin:1rem 0}"
    "table{border-collapse:collapse;font-size:.875rem}"
    "caption{text-align:left;color:var(--muted);padding-bottom:.35rem}"
    "th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid var(--grid);vertical-align:top;overflow-wrap:anywhere}"
    "thead th{border-bottom:2px solid var(--muted);white-space:nowrap}tbody th{font-weight:600}"
    ".num td{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.num thead th+th{text-align:right}"
    "figure{margin:1rem 0}svg{max-width:100%;height:auto;font-family:inherit}"
    "img{max-width:100%;height:auto;display:block;border-radius:3px}"
    "figcaption{color:var(--muted);font-size:.875rem;max-width:46rem;overflow-wrap:anywhere}"
    "dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.2rem 1rem;font-size:.875rem}"
    "dt{font-weight:600}dd{margin:0;overflow-wrap:anywhere}"
    ".card{background:var(--box);border-radius:6px;padding:.8rem 1rem;margin:1rem 0;break-inside:avoid}"
    ".card p{margin:.1rem 0;font-size:.875rem;overflow-wrap:anywhere}.card figure{margin:.6rem 0 0}"
    ":focus-visible{outline:2px solid var(--link);outline-offset:2px}"
    "@media print{body{font-size:10pt}main{max-width:none;padding:0}figure,table,.card{break-inside:avoid}"
    f":root{{{_palette(LIGHT)}--box:#f5f5f5}}"
    ".wide{overflow:visible}}"
)
