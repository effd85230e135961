"""What a model finds among the validation clips, and whether it hears the direction of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vctool.errors import UsageProblem
from vctool.metrics import METRIC_NAMES, evaluate_ranking
from vctool.models.interaction import BranchScores
from vctool.models.video_colbert import QueryTokens, VideoColBERT, VideoTokens
from vctool.training.clips import ClipSet, TrainingClip
from vctool.training.exchange import gather_clips
from vctool.training.features import FrameData
from vctool.training.forward import encode_clips, encode_frames, encode_texts, present
from vctool.training.precision import Precision
from vctool.training.ranks import ALONE, Ranks
from vctool.training.texts import TextData

REVERSAL = "reversal_accuracy"
_LOWER_IS_BETTER = frozenset({"MdR", "MnR"})
_SAME = 1e-6  # two scores this close are a tie: a branch without time gives both directions one score, up to rounding


@dataclass(frozen=True)
class Queries:
    """Which captions are asked of the validation clips.

    texts: distinct captions in use. text_Q: each query's position in `texts`. relevant: each query's right clips. pair_P: clips
    with captions for both directions; forward_P, backward_P: positions in `texts` of one caption for each direction.
    """

    texts: tuple[str, ...]
    text_Q: NDArray[np.int64]
    relevant: list[set[int]]
    pair_P: NDArray[np.int64]
    forward_P: NDArray[np.int64]
    backward_P: NDArray[np.int64]


class SplitScores(NamedTuple):
    """Of each branch (f, v, fv as the model has them): score_QN float32, and the share of right decisions about time in percent.

    reversal is empty where no clip has captions for both directions.
    """

    score_QN: dict[str, NDArray[np.float32]]
    reversal: dict[str, float]


def choose_queries(split: ClipSet, captions: int) -> Queries:
    """The first `captions` captions of each clip (0: all) as queries; a caption shared by clips has several right answers."""
    owners: dict[int, set[int]] = {}
    for i, clip in enumerate(split.clips):
        for text in clip.captions:
            owners.setdefault(split.meaning[text], set()).add(i)
    asked = [text for clip in split.clips for text in clip.captions[: captions or None]]
    if not asked:
        raise UsageProblem(f"{split.path}: no validation clip has a caption of its own", "reversed_captions alone are no queries")
    pairs = [i for i, clip in enumerate(split.clips) if _paired(clip)]
    both = [(split.clips[i].captions[0], split.clips[i].reversed_captions[0]) for i in pairs]
    used = dict.fromkeys([*asked, *(t for pair in both for t in pair)])
    place = {text: i for i, text in enumerate(used)}
    return Queries(
        texts=tuple(split.texts[t] for t in used),
        text_Q=np.array([place[t] for t in asked], dtype=np.int64),
        relevant=[owners[split.meaning[t]] for t in asked],
        pair_P=np.array(pairs, dtype=np.int64),
        forward_P=np.array([place[a] for a, _ in both], dtype=np.int64),
        backward_P=np.array([place[b] for _, b in both], dtype=np.int64),
    )


def _paired(clip: TrainingClip) -> bool:
    return bool(clip.captions) and bool(clip.reversed_captions) and clip.captions[0] != clip.reversed_captions[0]


def metric_names(interaction: str, paired: bool) -> list[str]:
    """All names that `validate` may give and that a run can choose its best weights by (higher is better)."""
    names = [n for n in METRIC_NAMES if n not in _LOWER_IS_BETTER] + ([REVERSAL] if paired else [])
    return [f"{branch}/{name}" for branch in _branches(interaction) for name in names]


def parse_best(best: str, interaction: str, paired: bool) -> list[str]:
    """The metrics whose sum chooses the best weights. Raises UsageProblem for a name there is not."""
    if best == "auto":
        return [f"{interaction}/R@1"] + ([f"{interaction}/{REVERSAL}"] if paired else [])
    known = metric_names(interaction, paired)
    names = [name.strip() for name in best.split("+")]
    for name in names:
        if name not in known:
            hint = "no validation clip has reversed_captions" if name.endswith(REVERSAL) and not paired else f"one of {', '.join(known)}"
            raise UsageProblem(f"run.best: there is no metric '{name}' to choose by", hint)
    return names


@torch.no_grad()
def validate(
    model: VideoColBERT,
    frames: FrameData,
    texts: TextData,
    queries: Queries,
    precision: Precision,
    *,
    batch: int = 64,
    pause: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Metrics as `branch/name` (branches f, v, fv as the model has them): ranking, and `reversal_accuracy` in percent.

    reversal_accuracy: share of decisions between a clip and the same clip backwards that go to the right one, for one
    caption of each direction; a tie is half right, so a model without a sense of time has 50. `pause` is called between
    batches and may raise to stop. ranks: processes that share the work; each of them gets all metrics.
    """
    scores = score_split(model, frames, texts, queries, precision, batch=batch, pause=pause, ranks=ranks)
    out: dict[str, float] = {}
    for branch, score in scores.score_QN.items():
        out |= {f"{branch}/{name}": value for name, value in evaluate_ranking(score, queries.relevant).values().items()}
    return out | {f"{branch}/{REVERSAL}": value for branch, value in scores.reversal.items()}


@torch.no_grad()
def score_split(
    model: VideoColBERT,
    frames: FrameData,
    texts: TextData,
    queries: Queries,
    precision: Precision,
    *,
    batch: int = 64,
    pause: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
) -> SplitScores:
    """What `validate` computes its metrics from: every query against every clip, and the decisions between directions of time.

    Of several processes each encodes a span of the clips and of the captions, gets the tokens of all, and scores a span of the
    queries: no clip is encoded or counted twice.
    """
    training = model.training
    model.eval()
    try:
        clips, backward = _encode_split(model, frames, queries.pair_P, precision, batch, pause, ranks)
        asked = _encode_queries(model, texts, precision, batch, pause, ranks)
    finally:
        model.train(training)
    reversal = {}
    if len(queries.pair_P):
        forward = VideoTokens(*(t[torch.from_numpy(queries.pair_P).to(t.device)] for t in clips))
        reversal = _reversal(model, _pick(asked, queries.forward_P), _pick(asked, queries.backward_P), forward, backward)
    return SplitScores(_score(model, _pick(asked, queries.text_Q), clips, batch, pause, ranks), reversal)


def _branches(interaction: str) -> list[str]:
    return ["f", "v", "fv"] if interaction == "fv" else [interaction]


def _named(scores: BranchScores) -> dict[str, Tensor]:
    named = {name: score for name, score in (("f", scores.frame_BC), ("v", scores.video_BC)) if score is not None}
    return named | {"fv": scores.total_BC} if len(named) == 2 else named


def _encode_split(
    model: VideoColBERT,
    frames: FrameData,
    pairs: NDArray[np.int64],
    precision: Precision,
    batch: int,
    pause: Callable[[], None],
    ranks: Ranks,
) -> tuple[VideoTokens, VideoTokens]:
    count = len(frames.rows)
    forwards, backwards = [], []
    paired = np.zeros(count, dtype=np.bool_)
    paired[pairs] = True
    for chosen in _spans(ranks, count, batch):
        pause()
        values, mask_CF = frames.take(chosen)
        feature = encode_frames(model, values, mask_CF, pixels=frames.pixels, precision=precision)
        forwards.append(encode_clips(model, feature, mask_CF, precision))
        own = torch.from_numpy(np.flatnonzero(paired[chosen]))
        if len(own):
            # The same features the other way round: a branch without time then gives both directions one score.
            turned = present(feature, mask_CF, own, torch.ones(len(own), dtype=torch.bool))
            backwards.append(encode_clips(model, *turned, precision))
    counts = ranks.counts(count)
    turned_counts = [int(part.sum()) for part in np.split(paired, np.cumsum(counts)[:-1])]
    own_turned = _joined(backwards) if backwards else VideoTokens(*(t[:0] for t in forwards[0]))
    forward = gather_clips(_first(_joined(forwards), counts[ranks.rank]), ranks, counts)
    return forward, gather_clips(_first(own_turned, turned_counts[ranks.rank]), ranks, turned_counts)


def _spans(ranks: Ranks, count: int, batch: int) -> list[NDArray[np.int64]]:
    """What this process encodes of `count` rows, in batches; row 0 where it owns none, so that it has tokens of the right form."""
    own = np.arange(count)[ranks.span(count)]
    own = own if len(own) else np.zeros(1, np.int64)
    return [own[start : start + batch] for start in range(0, len(own), batch)]


def _first(tokens: VideoTokens, count: int) -> VideoTokens:
    return VideoTokens(*(t[:count] for t in tokens))


def _encode_queries(
    model: VideoColBERT, texts: TextData, precision: Precision, batch: int, pause: Callable[[], None], ranks: Ranks
) -> QueryTokens:
    count, parts = len(texts.input_ids_NL), []
    for chosen in _spans(ranks, count, batch):
        pause()
        parts.append(encode_texts(model, texts.take(chosen), precision))
    counts = ranks.counts(count)
    return QueryTokens(*(ranks.gather(torch.cat(side)[: counts[ranks.rank]], counts) for side in zip(*parts, strict=True)))


def _score(
    model: VideoColBERT, asked: QueryTokens, clips: VideoTokens, batch: int, pause: Callable[[], None], ranks: Ranks
) -> dict[str, NDArray[np.float32]]:
    parts: dict[str, list[Tensor]] = {}
    count = len(asked.query_BQD)
    for chosen in _spans(ranks, count, batch):
        pause()
        scores = model.score(QueryTokens(*(t[torch.from_numpy(chosen).to(t.device)] for t in asked)), clips)
        for name, score in _named(scores).items():
            parts.setdefault(name, []).append(score)
    counts = ranks.counts(count)
    gathered = {name: ranks.gather(torch.cat(rows)[: counts[ranks.rank]], counts) for name, rows in parts.items()}
    return {name: score.cpu().numpy() for name, score in gathered.items()}


def _reversal(
    model: VideoColBERT, forward_text: QueryTokens, backward_text: QueryTokens, forward: VideoTokens, backward: VideoTokens
) -> dict[str, float]:
    right: dict[str, list[float]] = {}
    for i in range(len(forward_text.query_BQD)):
        both = VideoTokens(*(torch.stack([a[i], b[i]]) for a, b in zip(forward, backward, strict=True)))
        texts = QueryTokens(*(torch.stack([a[i], b[i]]) for a, b in zip(forward_text, backward_text, strict=True)))
        for name, score in _named(model.score(texts, both)).items():
            for own, other in ((score[0, 0], score[0, 1]), (score[1, 1], score[1, 0])):
                ahead = float(own - other)
                right.setdefault(name, []).append(0.5 if abs(ahead) <= _SAME else float(ahead > 0))
    return {name: 100.0 * float(np.mean(values)) for name, values in right.items()}


def _pick(tokens: QueryTokens, wanted: NDArray[np.int64]) -> QueryTokens:
    index = torch.from_numpy(wanted).to(tokens.query_BQD.device)
    return QueryTokens(tokens.query_BQD[index], tokens.query_mask_BQ[index])


def _joined(parts: Sequence[VideoTokens]) -> VideoTokens:
    return VideoTokens(*(torch.cat(column) for column in zip(*parts, strict=True)))
