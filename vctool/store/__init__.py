"""Token stores: one `.npz` file that any NumPy can open, that we map, and that a crash cannot damage."""

from vctool.store.format import SCHEMA, StoreDtype
from vctool.store.reader import TokenStore, open_store
from vctool.store.tokens import ClipTokens
from vctool.store.writer import StoreWriter

__all__ = ["SCHEMA", "ClipTokens", "StoreDtype", "StoreWriter", "TokenStore", "open_store"]
