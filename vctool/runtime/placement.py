"""Where a graph runs, as it was found out and not as it was asked for; and the protocol that all sessions follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class Placement:
    """What runs a graph: `provider` (onnxruntime, tensorrt-ep, openvino, tensorrt), `device`, the `precision` of its products, and
    `library`, name and version."""

    provider: str
    device: Literal["cpu", "cuda"]
    precision: str
    library: str

    def to_json(self) -> dict[str, str]:
        """The four as a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.library} on {self.device}, {self.precision}"


class Session(Protocol):
    """One loaded graph.

    inputs: the shape of each input, symbolic sides as text. batch_limit: rows of the first axis that one run takes, None if any
    number. batched_outputs: outputs with that axis, None if all have it.
    """

    placement: Placement
    inputs: dict[str, list[int | str | None]]
    outputs: list[str]
    batch_limit: int | None
    batched_outputs: frozenset[str] | None

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Arrays of the named outputs, owned by the caller. Raises whatever the library raises: the caller says where."""
        ...


def first_line(problem: BaseException) -> str:
    """The first line of a library's message, or the name of its exception."""
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__
