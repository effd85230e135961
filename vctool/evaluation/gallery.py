"""Galleries of a report: queries with contact sheets of their right clip and of what was ranked above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vctool.evaluation.failures import Failure
from vctool.evaluation.html import Block, Card, Gallery, Picture, Text

Sheets = Mapping[str, Picture | str]


def failure_gallery(failures: Sequence[Failure], sheets: Sheets, notes: Mapping[int, Sequence[str]] | None = None) -> list[Block]:
    """Cards of failures, worst first. sheets: pictures or reasons by clip id. notes: lines about a query, by its number."""
    if not failures:
        return [Text("No query failed: every right clip is at rank 1.")]
    blocks: list[Block] = []
    if not any(isinstance(sheets.get(one.right.clip), Picture) for one in failures):
        why = next((reason for reason in sheets.values() if isinstance(reason, str)), "the result names no video files")
        blocks.append(Text(f"Without pictures: {why}."))
    cards = [
        Card(
            f"“{one.text}”",
            [f"Right clip at rank {one.rank:g}.", *(notes or {}).get(one.number, ())],
            [
                shown(sheets, one.right.clip, f"right clip: {one.right.clip}, score {one.right.score:.3f}"),
                *(
                    shown(sheets, other.clip, f"ranked {place}: {other.clip}, score {other.score:.3f}")
                    for place, other in enumerate(one.above, start=1)
                ),
            ],
        )
        for one in failures
    ]
    return [*blocks, Gallery(cards)]


def shown(sheets: Sheets, clip: str, caption: str) -> tuple[str, Picture | None]:
    """A clip's sheet with its caption, or the caption with the reason why there is no sheet."""
    found = sheets.get(clip)
    if isinstance(found, Picture):
        return caption, found
    return (f"{caption} ({found})" if found else caption), None
