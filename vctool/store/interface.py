"""What every open token store offers, be it one file or a folder of them.

Shape letters: N clips, T tokens of one clip in one branch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from vctool.store.format import AnyArray
from vctool.store.tokens import ClipTokens, Float32

if TYPE_CHECKING:
    from vctool.store.reader import TokenStore


class Store(Protocol):
    """An open store: `TokenStore` (one `.npz`) or `ShardedStore` (a folder of them). Clips are numbered 0 to N-1 across shards.

    Whoever reads tokens in bulk takes `shards`, in order: their clips laid end to end are the store's clips.
    """

    @property
    def path(self) -> Path:
        """What was opened."""

    @property
    def folder(self) -> Path:
        """The real folder that paths of clips and of the model are relative to: the one that holds the `.npz` files."""

    @property
    def manifest(self) -> dict[str, Any]:
        """Model, settings, counts: see docs/format.md."""

    @property
    def shards(self) -> Sequence[TokenStore]:
        """The mapped files, in the order of their clips; a single file is its own only shard."""

    @property
    def dim(self) -> int:
        """Token width D."""

    @property
    def dtype(self) -> str:
        """How tokens are stored."""

    @property
    def clip_ids(self) -> list[str]:
        """All ids."""

    @property
    def clip_paths(self) -> list[str]:
        """All paths as stored."""

    def __len__(self) -> int: ...

    def __contains__(self, clip_id: object) -> bool: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None: ...

    def close(self) -> None:
        """Let go of the files."""

    def index_of(self, clip_id: str) -> int:
        """Position of the clip with this id; raises StoreError if there is none."""

    def clip_id(self, index: int) -> str:
        """Id of one clip."""

    def clip_path(self, index: int) -> str:
        """Path of one clip as stored."""

    def resolve_path(self, index: int) -> Path | None:
        """Absolute path of one clip's video file; None if it has none or it is an address."""

    def clip_meta(self, index: int) -> dict[str, Any]:
        """Metadata of one clip."""

    def rows(self, branch: str, index: int) -> tuple[AnyArray, Float32, Float32 | None]:
        """One clip's stored tokens [T, D], times [T] and scales [T] of branch `frame` or `video`."""

    def clip(self, index: int) -> ClipTokens:
        """One clip as float32, its path absolute."""

    def verify(self) -> None:
        """Recompute every checksum; raises VerificationError that names what does not match."""
