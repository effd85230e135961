"""What a run should be told about its clips, its captions and its result: measured, and said in words.

`diagnosis.py` is about a loss that does not move; this is about a loss that moves and a model that is worse than it could be.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vctool.metrics import PerQuery, compare_paired, evaluate_ranking
from vctool.models.video_colbert import VideoColBERT
from vctool.training.clips import ClipSet
from vctool.training.features import FrameData
from vctool.training.forward import encode_frames
from vctool.training.precision import Precision
from vctool.training.texts import TextData
from vctool.training.validation import Queries, score_split

_CUT_MANY = 0.1  # share of captions
_SHARED_SOME = 0.002  # share of a batch's pairs
_SHARED_MANY = 0.05
_ENOUGH_LONG = 20  # queries


def caption_lines(clips: ClipSet, batch: int) -> list[str]:
    """What captions said of several clips do to batches of this many clips: they are right answers, and are counted as such."""
    owners: dict[int, set[int]] = {}
    for i, clip in enumerate(clips.clips):
        for text in clip.captions:
            owners.setdefault(clips.meaning[text], set()).add(i)
    shared = {meaning: own for meaning, own in owners.items() if len(own) > 1}
    if not shared:
        return []
    most = max(shared, key=lambda meaning: len(shared[meaning]))
    words = next(text for text, meaning in zip(clips.texts, clips.meaning, strict=True) if meaning == most)
    mates: list[set[int]] = [set() for _ in clips.clips]
    for own in shared.values():
        for i in own:
            mates[i] |= own - {i}
    pairs = float(np.mean([len(m) for m in mates])) / max(len(clips) - 1, 1)
    if pairs < _SHARED_SOME:
        return []
    line = (
        f"{len(shared)} captions are said of several clips, '{words}' of {len(shared[most])}: they count as right for all of them, "
        f"also where only case and full stops differ; {100 * pairs:.1f} % of a batch's other clips are no wrong answers"
    )
    if pairs > _SHARED_MANY:
        line += (
            f", so a batch of {batch} teaches like one of {max(1, round(batch * (1 - pairs)))}: captions that tell clips apart would help"
        )
    return [line]


def length_lines(name: str, texts: TextData, model: VideoColBERT) -> list[str]:
    """How many captions do not fit into the text tower, and what can be done about it."""
    if not texts.truncated:
        return []
    length, context = model.config.query.max_length, model.backbone.context_length
    line = f"{texts.truncated} of {len(texts.input_ids_NL)} {name} captions are longer than {length} tokens and are cut"
    if texts.truncated < _CUT_MANY * len(texts.input_ids_NL):
        return [line]
    if length < context:
        return [f"{line}: what is behind is never seen; set model.query.max_length up to {context}"]
    tower = model.config.backbone.name
    return [
        f"{line}: {tower} takes no more. It was made for sentences; give paragraphs to a tower with a longer context (CLIP: 77), or a "
        "sentence of each at a time"
    ]


def pad_lines(model: VideoColBERT, frames: FrameData, texts: TextData, queries: Queries, precision: Precision) -> list[str]:
    """Whether pads that count hurt captions longer than `query.auto_limit`, measured on the validation clips.

    Nothing is trained for it: pads are only left out of the mean. Empty where pads do not count, or too few captions are that long.
    """
    query = model.config.query
    if query.policy != "tokens" or query.expand != "on":
        return []
    length_Q = texts.attention_mask_NL.sum(axis=1)[queries.text_Q]
    long_Q = np.flatnonzero(length_Q > query.auto_limit)
    if len(long_Q) < _ENOUGH_LONG:
        return []
    asked = replace(queries, text_Q=queries.text_Q[long_Q], relevant=[queries.relevant[i] for i in long_Q], pair_P=queries.pair_P[:0])
    config, results = model.config, []
    try:
        for expand in ("on", "off"):
            model.config = replace(config, query=replace(query, expand=expand))
            scores = score_split(model, frames, texts, asked, precision).score_QN[config.interaction]
            results.append(PerQuery.of(evaluate_ranking(scores, asked.relevant).per_query))
    finally:
        model.config = config
    groups = np.array([min(right) for right in asked.relevant], dtype=np.int64)
    found = next(d for d in compare_paired(results[0], results[1], groups=groups).differences if d.metric == "MRR")
    if found.low <= 0:
        return []
    return [
        f"pads hurt long captions: of more than {query.auto_limit} tokens they are found with MRR {found.b:.3f} without the pads and "
        f"{found.a:.3f} with them ({len(long_Q)} captions, 95 % interval of the difference {found.low:+.3f} to {found.high:+.3f}); "
        'query.expand = "auto" leaves them out there'
    ]


@torch.no_grad()
def zero_shot_mrr(
    model: VideoColBERT, frames: FrameData, texts: TextData, queries: Queries, precision: Precision, *, as_it_is: bool
) -> float:
    """MRR of the validation captions before any training. as_it_is: by the model itself, which was trained before.

    Otherwise as the towers were trained to be used: the pooled text against the mean of the frames. A fresh temporal encoder and
    tokens that never met a frame say nothing yet, and must not be what training is compared with.
    """
    training = model.training
    model.eval()
    try:
        if as_it_is:
            score_QN = score_split(model, frames, texts, replace(queries, pair_P=queries.pair_P[:0]), precision).score_QN[
                model.config.interaction
            ]
        else:
            clip_ND = torch.cat([_mean_frames(model, frames, chosen, precision) for chosen in _chunks(len(frames.rows))])
            text_TD = torch.cat([_pooled(model, texts, chosen, precision) for chosen in _chunks(len(texts.input_ids_NL))])
            score_QN = (text_TD[torch.from_numpy(queries.text_Q)] @ clip_ND.T).numpy()
    finally:
        model.train(training)
    return evaluate_ranking(score_QN, queries.relevant).mrr


def below_start(mrr: float, start: float) -> str:
    """What is said where validation finds less than the model could before it was trained."""
    return (
        f"below the zero-shot start: MRR {mrr:.3f} now, {start:.3f} before any training; if it stays there, lower optim.backbone_lr, "
        "train on more clips, or keep the model that there was (`vctool train own-clips` asks whether training helps)"
    )


def _chunks(count: int, size: int = 64) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def _mean_frames(model: VideoColBERT, frames: FrameData, chosen: NDArray[np.int64], precision: Precision) -> torch.Tensor:
    values, mask_CF = frames.take(chosen)
    feature_CFD = F.normalize(encode_frames(model, values, mask_CF, pixels=frames.pixels, precision=precision), dim=-1).cpu()
    return F.normalize((feature_CFD * mask_CF[..., None]).sum(dim=1), dim=-1)


def _pooled(model: VideoColBERT, texts: TextData, chosen: NDArray[np.int64], precision: Precision) -> torch.Tensor:
    text = texts.take(chosen)
    ids, mask = text.input_ids_BL.to(precision.device), text.attention_mask_BL.to(precision.device)
    state = model.backbone.text_states(ids, mask) if text.state_BLW is None else text.state_BLW.to(precision.device).float()
    return F.normalize(model.backbone.pooled_features(state, ids, mask).float(), dim=-1).cpu()
