"""Token arrays that another program saved: `.npy` and `.npz` files, mapped where they can be.

Shape letters: N clips, F tokens of one clip, T tokens of all clips end to end, D width.
"""

from __future__ import annotations

import json
import mmap
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vctool.errors import InputError, StoreError
from vctool.store.archive import read_members
from vctool.store.format import mapped_array
from vctool.store.token_rows import TokenRows

_HOW = "save [N, F, D], or [T, D] with offsets [N+1], with numpy.save or numpy.savez"
_OFFSETS, _LENGTHS, _MASKS, _TIMES = ("offsets",), ("lengths",), ("mask",), ("times", "time_T")


def read_tokens(
    path: Path,
    *,
    branch: str = "frame",
    offsets: npt.NDArray[Any] | None = None,
    times: npt.NDArray[Any] | None = None,
    normalise: bool = False,
) -> TokenRows:
    """The tokens of one branch in a `.npy` file (mapped) or a `.npz` file.

    A `.npz` holds one floating array of 2 or 3 dimensions (or several, of which one is `<branch>_TD`, `<branch>`, `tokens` or
    `embeddings`), and where it is [T, D] `offsets` [N+1] or `lengths` [N]; where it is [N, F, D] optionally `lengths` [N] or `mask`
    [N, F], true on tokens that count; optionally `times`. A name may have the branch in front: `frame_offsets`.
    offsets, times: given apart. Raises InputError if the file cannot be read, StoreError for arrays that do not fit.
    """
    arrays = read_arrays(path)
    where = str(path)
    named = [(name, array) for name, array in arrays.items() if array.ndim >= 2 and array.dtype != np.bool_ and name not in _MASKS]
    if len(named) > 1:
        wanted = (f"{branch}_TD", f"{branch}s", branch, "tokens", "embeddings")
        named = [pair for name in wanted for pair in named if pair[0] == name][:1] or named
    if len(named) != 1:
        found = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "nothing"
        raise InputError(f"{path}: holds {found}: which are the {branch} tokens?", f"name them {branch}_TD, or {_HOW}")
    tokens = named[0][1]
    edges = offsets if offsets is not None else _find(arrays, branch, _OFFSETS)
    lengths, mask = _find(arrays, branch, _LENGTHS), _find(arrays, branch, _MASKS)
    seconds = times if times is not None else _find(arrays, branch, _TIMES)
    if tokens.ndim == 2 and edges is None and lengths is not None:
        edges = np.concatenate([[0], np.cumsum(_whole(lengths, where))])
    if tokens.ndim == 3 and (lengths is not None or mask is not None):
        return _without_padding(tokens, lengths, mask, seconds, normalise, where)
    return TokenRows.of(tokens, edges, seconds, normalise=normalise, where=where)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a `.npz` by their names, or the one of a `.npy` (mapped) as `tokens`. Raises InputError; never unpickles."""
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        if magic == b"\x93NUMPY":
            return {"tokens": np.load(path, mmap_mode="r", allow_pickle=False)}
        if magic[:2] != b"PK":
            raise InputError(f"{path}: is neither .npy nor .npz", _HOW)
        return _members(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", _HOW) from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory", "save the tokens as .npy: it is mapped, not loaded") from None
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as problem:
        said = str(problem).splitlines() or [type(problem).__name__]
        raise InputError(f"{path}: cannot be read: {said[0]}", _HOW) from None


def read_array(path: Path | None) -> npt.NDArray[Any] | None:
    """The one array of a `.npy` or `.npz` file; None for no path."""
    if path is None:
        return None
    arrays = read_arrays(path)
    if len(arrays) != 1:
        raise InputError(f"{path}: holds {len(arrays)} arrays", "save the one array with numpy.save")
    return next(iter(arrays.values()))


def read_ids(path: Path) -> list[str]:
    """Clip ids: a text file with one a line, a JSON list of texts, or a `.npy` of texts. Raises InputError."""
    try:
        data = path.read_bytes()
        if data[:6] == b"\x93NUMPY":
            array = np.load(path, allow_pickle=False)
            if array.ndim != 1 or array.dtype.kind not in "Uiu":
                raise InputError(f"{path}: holds {array.dtype} {list(array.shape)}, not a list of ids", "save a list of texts")
            return [str(one) for one in array.tolist()]
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith("["):
            listed = json.loads(text)
            if not all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in listed):
                raise InputError(f"{path}: is not a JSON list of ids", "write one id a line")
            return [str(one) for one in listed]
        return [line for line in text.replace("\r\n", "\n").split("\n") if line]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", "write one id a line") from None
    except (OSError, ValueError) as problem:
        raise InputError(f"{path}: cannot be read: {problem}", "write one id a line, in UTF-8") from None


def read_metas(path: Path, clips: int) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Metadata of `clips` clips from JSON lines: (objects, paths, ids). `path` (from the file's folder) and
    `id` are taken out of them, '' where absent.

    Raises InputError that names the line.
    """
    metas: list[dict[str, Any]] = []
    paths, ids = list[str](), list[str]()
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    meta = json.loads(line)
                except (ValueError, RecursionError):
                    raise InputError(f"{path}, line {number}: is not JSON", "write one JSON object a line") from None
                if not isinstance(meta, dict):
                    raise InputError(f"{path}, line {number}: is not a JSON object", "write one JSON object a line")
                named = str(meta.pop("path", "") or "")
                paths.append(named if not named or "://" in named else str(path.parent / named))
                ids.append(str(meta.pop("id", "")))
                metas.append(meta)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", "write one JSON object a line") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: cannot be read: {problem}", "write one JSON object a line, in UTF-8") from None
    if len(metas) != clips:
        raise InputError(f"{path}: has {len(metas)} lines, the tokens are of {clips} clips", "write one JSON object for each clip")
    return metas, paths, ids


def _members(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a `.npz`: mapped where they are stored plainly, aligned or not; else loaded."""
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    found: dict[str, npt.NDArray[Any]] = {}
    loaded: list[str] = []
    try:
        members = read_members(data, str(path))
    except StoreError as problem:
        raise InputError(problem.message, "save it again") from None
    for member in members:
        name = member.name.removesuffix(".npy")
        array = None if member.compressed else mapped_array(data[member.data : member.data + member.size])
        if array is not None:
            found[name] = array
        elif member.name.endswith(".npy"):
            loaded.append(name)
    if loaded:
        with np.load(path, allow_pickle=False) as archive:
            found |= {name: archive[name] for name in loaded}
    return found


def _find(arrays: dict[str, npt.NDArray[Any]], branch: str, names: tuple[str, ...]) -> npt.NDArray[Any] | None:
    return next((arrays[one] for name in names for one in (f"{branch}_{name}", name) if one in arrays), None)


def _whole(lengths: npt.NDArray[Any], where: str) -> npt.NDArray[np.int64]:
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        raise StoreError(f"{where}: lengths have shape {lengths.shape} and dtype {lengths.dtype}", "give N whole numbers")
    return lengths.astype(np.int64)


def _without_padding(
    tokens: npt.NDArray[Any],
    lengths: npt.NDArray[Any] | None,
    mask: npt.NDArray[Any] | None,
    times: npt.NDArray[Any] | None,
    normalise: bool,
    where: str,
) -> TokenRows:
    clips, rows, _ = tokens.shape
    if mask is None and lengths is not None:
        counts = _whole(lengths, where)
        if len(counts) != clips or (counts > rows).any():
            raise StoreError(
                f"{where}: {len(counts)} lengths up to {counts.max(initial=0)} for tokens {tokens.shape}", "give one for each clip"
            )
        mask = np.arange(rows) < counts[:, None]
    if mask is None or mask.shape != (clips, rows):
        raise StoreError(f"{where}: the mask has shape {None if mask is None else mask.shape}, tokens {tokens.shape}", "give [N, F]")
    counted = mask.astype(bool)
    if times is not None and times.shape == counted.shape:
        times = times[counted]
    edges = np.concatenate([[0], np.cumsum(counted.sum(axis=1))])
    return TokenRows.of(tokens[counted], edges, times, normalise=normalise, where=where)
