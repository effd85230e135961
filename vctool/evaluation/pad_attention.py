"""Attention of pads over the words of their queries, from the PyTorch model of a model directory.

Shape letters: B texts, L tokens, Q query tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vctool.errors import ModelError

if TYPE_CHECKING:
    from vctool.runtime.encoder import QueryTokens
    from vctool.runtime.model import Model

_BATCH = 32
# The PyTorch model must be the one whose graph scored the queries.
_SAME = 1e-3


def pad_attention(model: Model, queries: Sequence[QueryTokens]) -> dict[str, Any]:
    """Where the pads of these queries look, mean over heads and pads, per layer and over all layers.

    `share`: of attention that goes to words, start, end, the pad itself and other pads. `words`: with `lift`, the attention that a word's
    token gets as a multiple of an even share over all words' tokens of its query (last layer); words seen at least 5 times.
    `per_position`: share that goes to words by the pad's number behind the text (last layer).
    Raises ModelError or MissingExtraError where the model cannot be run in PyTorch.
    """
    try:
        import torch
    except ImportError:
        raise ModelError("attention needs PyTorch, which is not installed") from None
    from vctool.models.checkpoint import load_model
    from vctool.models.text_attention import text_attention
    from vctool.preprocessing.tokenizer import Tokenizer

    runner, tokenizer = load_model(model.directory.path), Tokenizer.load(model.directory.path)
    layers: list[list[dict[str, float]]] = []
    words: dict[str, list[float]] = defaultdict(list)
    numbered: dict[int, list[float]] = defaultdict(list)
    for start in range(0, len(queries), _BATCH):
        batch = queries[start : start + _BATCH]
        tokens = tokenizer.encode([query.text for query in batch])
        found, query_BQD = text_attention(runner, torch.from_numpy(tokens.input_ids_BL), torch.from_numpy(tokens.attention_mask_BL))
        given = np.stack([query.query_QD for query in batch])
        apart = float(np.abs(query_BQD.numpy() - given).max())
        if apart > _SAME:
            raise ModelError(f"the PyTorch model and the text graph differ by {apart:.2g}: their attention may differ too")
        weights = [layer.numpy() for layer in found]
        for at, query in enumerate(batch):
            pads = np.flatnonzero(query.pad_Q)
            if not len(pads):
                continue
            layers.append([_shares(weight[at], query, pads) for weight in weights])
            last = weights[-1][at]
            in_words = [token for word in query.words for token in range(word.start, word.stop)]
            even = float(last[pads][:, in_words].sum(axis=1).mean()) / len(in_words)
            for word in query.words:
                got = float(last[pads, word.start : word.stop].mean())
                words[word.text.lower()].append(got / even if even > 0 else 0.0)
            for number, pad in enumerate(pads.tolist(), start=1):
                numbered[number].append(float(last[pad, in_words].sum()))
    if not layers:
        raise ModelError("no query has a pad")
    kinds = list(layers[0][0])
    per_layer = [{kind: float(np.mean([query[number][kind] for query in layers])) for kind in kinds} for number in range(len(layers[0]))]
    lifted = [{"word": word, "times": len(got), "lift": float(np.mean(got))} for word, got in words.items() if len(got) >= 5]
    return {
        "queries": len(layers),
        "layers": per_layer,
        "share": {kind: float(np.mean([layer[kind] for layer in per_layer])) for kind in kinds},
        "words": sorted(lifted, key=lambda one: (-float(one["lift"]), str(one["word"]))),
        "per_position": [{"pad": number, "share_to_words": float(np.mean(got))} for number, got in sorted(numbered.items())],
    }


def _shares(weight_LL: np.ndarray[Any, Any], query: QueryTokens, pads: np.ndarray[Any, Any]) -> dict[str, float]:
    """Where the attention of one query's pads goes, mean over pads; the parts sum to 1."""
    in_words = {token for word in query.words for token in range(word.start, word.stop)}
    real = np.flatnonzero(~query.pad_Q).tolist()
    rows = weight_LL[pads]
    itself = float(weight_LL[pads, pads].mean())
    return {
        "words": float(rows[:, sorted(in_words)].sum(axis=1).mean()),
        "start": float(rows[:, [at for at in real if at not in in_words and at == 0]].sum(axis=1).mean()),
        "end": float(rows[:, [at for at in real if at not in in_words and at > 0]].sum(axis=1).mean()),
        "itself": itself,
        "other pads": float(rows[:, pads].sum(axis=1).mean()) - itself,
    }
