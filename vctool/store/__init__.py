"""Token stores: `.npz` files that any NumPy can open, that we map, and that a crash cannot damage; one, or a folder of them."""

from typing import TYPE_CHECKING, Any

from vctool.store.format import SCHEMA, StoreDtype
from vctool.store.interface import Store
from vctool.store.opening import open_store
from vctool.store.reader import TokenStore
from vctool.store.shards import ShardedStore
from vctool.store.token_rows import TokenRows
from vctool.store.tokens import ClipTokens

if TYPE_CHECKING:
    from vctool.store.writer import StoreWriter

__all__ = ["SCHEMA", "ClipTokens", "ShardedStore", "Store", "StoreDtype", "StoreWriter", "TokenRows", "TokenStore", "open_store"]


def __getattr__(name: str) -> Any:
    if name != "StoreWriter":
        raise AttributeError(f"module 'vctool.store' has no attribute '{name}'")
    from vctool.store.writer import StoreWriter  # who only reads stores does not pay for loading it

    return StoreWriter
