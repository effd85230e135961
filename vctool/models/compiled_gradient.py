"""The compiled half of tiled MeanMaxSim on CPUs (`scoring/gradient.c`): maxima with places, and gradients that go back to them.

Each call shares its rows out among as many threads as torch uses; a row's sums are made by one thread in one order.
Shape letters: M query tokens end to end, C clips, T tokens of a clip, D width, B queries.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from vctool.scoring.kernels import VARIABLE, compiled_library

MOST_TOKENS = 256  # a place is one byte

_FUNCTIONS = ("vctool_fold", "vctool_chosen_tokens", "vctool_choosing_queries")


def compiles_for(*tensors: Tensor, tokens: int) -> bool:
    """Whether the compiled functions can take these: float32 on the CPU, no clip of more tokens than a byte counts, and a library."""
    fits = 0 < tokens <= MOST_TOKENS and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return fits and os.environ.get(VARIABLE, "").strip().lower() != "numpy" and _library() is not None


def fold(similarity_TCM: Tensor) -> tuple[Tensor, Tensor]:
    """(largest similarity, first token that has it: uint8), [C, M] each."""
    tokens, clips, columns = similarity_TCM.shape
    similarity = similarity_TCM.contiguous()
    best, place = similarity.new_empty(clips, columns), torch.empty(clips, columns, dtype=torch.uint8)
    _share_out("vctool_fold", clips, (similarity, tokens, clips, columns), (best, place))
    return best, place


def chosen_tokens(token_CTD: Tensor, place_CM: Tensor, share_CB: Tensor, owner_M: Tensor) -> Tensor:
    """For each query token the sum of the tokens it found, each times its clip's share for the token's query: [M, D]."""
    clips, tokens, dim = token_CTD.shape
    columns = place_CM.shape[1]
    token, place, share, owner = (t.contiguous() for t in (token_CTD, place_CM, share_CB, owner_M))
    out = token.new_zeros(columns, dim)
    _share_out("vctool_chosen_tokens", columns, (token, tokens, dim, place, columns, share, share.shape[1], owner, clips), (out,))
    return out


def choosing_queries(query_MD: Tensor, place_CM: Tensor, share_CB: Tensor, owner_M: Tensor, tokens: int) -> Tensor:
    """For each token of each clip the sum of the query tokens that found it, each times the clip's share for its query: [C, T, D]."""
    columns, dim = query_MD.shape
    clips = len(place_CM)
    query, place, share, owner = (t.contiguous() for t in (query_MD, place_CM, share_CB, owner_M))
    out = query.new_zeros(clips, tokens, dim)
    _share_out("vctool_choosing_queries", clips, (query, columns, dim, place, share, share.shape[1], owner, tokens), (out,))
    return out


def _share_out(name: str, count: int, given: tuple[Tensor | int, ...], out: tuple[Tensor, ...]) -> None:
    """Call a function for all of `count` items, some of them in each thread; it takes first and last before what it writes to."""
    library = _library()
    assert library is not None, "compiles_for says so first"
    function = getattr(library, name)
    function.restype = None
    front, back = [_argument(value) for value in given], [_argument(tensor) for tensor in out]
    threads = max(1, min(torch.get_num_threads(), count))
    edges = [count * i // threads for i in range(threads + 1)]

    def run(part: int) -> None:
        function(*front, ctypes.c_int64(edges[part]), ctypes.c_int64(edges[part + 1]), *back)

    if threads == 1:
        run(0)
    else:
        list(_pool(threads)(run, range(threads)))


@functools.cache
def _pool(threads: int) -> Callable[[Callable[[int], None], range], Iterable[None]]:
    return ThreadPoolExecutor(threads, "vctool-gradient").map


def _argument(value: Tensor | int) -> ctypes.c_void_p | ctypes.c_int64:
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_void_p(value.data_ptr())


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = compiled_library()
    return library if library is not None and all(hasattr(library, name) for name in _FUNCTIONS) else None
