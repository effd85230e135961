"""What PyTorch answers to fixed questions: the yardstick of every verification, kept in the model directory.

Made once, where torch is; afterwards any runtime can be held against it, with or without torch. No torch is imported here.

Shape letters: R rows of a bank, Q queries (of the probe) or query tokens, C clips, F frames, S side of the picture, D width.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vctool.errors import ModelError

SCHEMA = 1
REFERENCE_FILE = "export/reference.npz"

Array = NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Bank:
    """Rows that one graph is asked with, all of one shape, and PyTorch's answers.

    graph: `text`, `frame` or `temporal`. label: what is common to the rows (`77 tokens`, `12 frames`). rows: what each is.
    feeds, wanted: arrays by the graph's input and output names, first axis R.
    """

    graph: str
    label: str
    rows: tuple[str, ...]
    feeds: Arrays
    wanted: Arrays


@dataclass(frozen=True, eq=False)
class ProbeScores:
    """PyTorch's scores on a probe set.

    probe: name and hashes of what was asked (`probe.Probe.facts`). right_Q: the clip that each query describes.
    frame_QC, video_QC: float32 MeanMaxSim.
    """

    probe: Mapping[str, Any]
    clip_ids: tuple[str, ...]
    queries: tuple[str, ...]
    right_Q: NDArray[np.int64]
    frame_QC: NDArray[np.float32]
    video_QC: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reference:
    """Banks, the probe's scores, and the identity of the model that gave them.

    facts: `model_sha256`, `tokenizer_sha256`, `preprocess_sha256`, `versions`. max_batch: the largest batch to ask each graph
    with, by graph.
    """

    banks: tuple[Bank, ...]
    scores: ProbeScores | None
    facts: Mapping[str, Any]
    max_batch: Mapping[str, int] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write as a compressed `.npz` without pickle. OSError where the disk is full."""
        arrays: dict[str, Array] = {}
        banks = []
        for number, bank in enumerate(self.banks):
            banks.append({"graph": bank.graph, "label": bank.label, "rows": list(bank.rows)})
            arrays |= {f"feed.{number}.{name}": value for name, value in bank.feeds.items()}
            arrays |= {f"want.{number}.{name}": value for name, value in bank.wanted.items()}
        header: dict[str, Any] = {"schema": SCHEMA, "banks": banks, "facts": dict(self.facts), "max_batch": dict(self.max_batch)}
        if self.scores is not None:
            header["scores"] = {
                "probe": dict(self.scores.probe),
                "clip_ids": list(self.scores.clip_ids),
                "queries": list(self.scores.queries),
            }
            arrays |= {"right_Q": self.scores.right_Q, "frame_QC": self.scores.frame_QC, "video_QC": self.scores.video_QC}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for its flag

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote. Raises ModelError if it is missing, damaged or of a newer version."""
        again = "export the model again where torch is installed"
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            header = json.loads(arrays["header"].tobytes())
            if header["schema"] > SCHEMA:
                raise ModelError(f"{path}: written by a newer version of vctool (schema {header['schema']})", "upgrade vctool")
            banks = tuple(
                Bank(b["graph"], b["label"], tuple(b["rows"]), _named(arrays, f"feed.{i}."), _named(arrays, f"want.{i}."))
                for i, b in enumerate(header["banks"])
            )
            scores = None
            if "scores" in header:
                told = header["scores"]
                matrices = (arrays["right_Q"], arrays["frame_QC"], arrays["video_QC"])
                scores = ProbeScores(told["probe"], tuple(told["clip_ids"]), tuple(told["queries"]), *matrices)
            return cls(banks, scores, header["facts"], header["max_batch"])
        except FileNotFoundError:
            raise ModelError(f"{path} is missing", again) from None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as problem:
            raise ModelError(f"{path} cannot be read: {problem}", again) from None


def rows_of(arrays: Arrays, chosen: Sequence[int]) -> dict[str, Array]:
    """The chosen rows of each array, in their order (a row may be taken more than once)."""
    return {name: np.ascontiguousarray(value[list(chosen)]) for name, value in arrays.items()}


def _named(arrays: Arrays, prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
