"""The named protocol: which captions, frames, lengths and gallery a number was made with. Part of every result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vctool.data import Split, compare_with_published
from vctool.data.records import CaptionPolicy

CAPTION_POLICIES: dict[CaptionPolicy, str] = {
    "one": "one fixed caption per clip is the query",
    "all": "every caption is a query",
    "paragraph": "all captions of a clip, joined in file order, are its one query",
    "qrels": "queries and right clips from explicit judgements",
}
# What the field samples and reads (CLIP4Clip and its successors): frames per clip, text length in tokens.
FIELD_SETTINGS = {"msrvtt": (12, 32), "msvd": (12, 32), "vatex": (12, 32), "lsmdc": (12, 32), "didemo": (64, 64), "activitynet": (64, 64)}
TIES = "expected rank: 1 + clips scored above + half of the other clips scored equal"


@dataclass(frozen=True)
class Protocol:
    """How a result was made. name: `benchmark/split`, with `-partial` behind it if clips are missing or it is not the published one.

    frames, text_length: what the model was given (None: unknown, as for a bare matrix). comparable: True if this is the
    published split as far as can be known, False if it surely is not, None if nothing is published or known to compare with.
    departures: where this differs from the field's settings, in words.
    """

    name: str
    captions: str
    queries: int
    clips: int
    frames: int | None
    text_length: int | None
    ids_sha256: str
    comparable: bool | None
    statement: str
    departures: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "captions": self.captions,
            "queries": self.queries,
            "clips": self.clips,
            "frames": self.frames,
            "text_length": self.text_length,
            "ties": TIES,
            "ids_sha256": self.ids_sha256,
            "comparable": self.comparable,
            "statement": self.statement,
            "departures": list(self.departures),
        }


def protocol_of(split: Split, frames: int | None = None, text_length: int | None = None) -> Protocol:
    """The protocol of an evaluation of `split`, given what the model was fed."""
    published = compare_with_published(split)
    departures: list[str] = []
    field = FIELD_SETTINGS.get(split.benchmark.split("-")[0])
    if field is not None:
        if frames is not None and frames != field[0]:
            departures.append(f"{frames} frames per clip where the field samples {field[0]}")
        if text_length is not None and text_length != field[1]:
            departures.append(f"text of up to {text_length} tokens where the field reads {field[1]}")
    name = f"{split.benchmark}/{split.name}"
    if published.same is False:
        name += "-partial"
        departures.append(published.statement)
    return Protocol(
        name=name,
        captions=CAPTION_POLICIES[split.caption_policy],
        queries=len(split.queries),
        clips=len(split.clips),
        frames=frames,
        text_length=text_length,
        ids_sha256=split.ids_sha256,
        comparable=published.same,
        statement=published.statement,
        departures=tuple(departures),
    )
