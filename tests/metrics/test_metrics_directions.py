"""Video-to-text: the two published forms against their plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vctool.errors import InputError
from vctool.metrics import evaluate_ranking, v2t_caption, v2t_group


def world(seed: int, clips: int = 9, captions: int = 40, levels: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, (captions, clips)).astype(np.float32), rng.integers(0, clips, captions)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([3, 1000]))
def test_v2t_group_ranks_groups_by_their_best_caption(seed: int, levels: int) -> None:
    sims, clip = world(seed, levels=levels)
    present = np.unique(clip)
    best = np.array([[sims[clip == g, c].max() for g in present] for c in present])
    assert v2t_group(sims, clip).ranks.tolist() == evaluate_ranking(best, np.arange(len(present))).ranks.tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([3, 1000]))
def test_v2t_caption_ranks_all_captions_and_takes_the_best_own_one(seed: int, levels: int) -> None:
    sims, clip = world(seed, levels=levels)
    expected = []
    for c in np.unique(clip):
        own = sims[clip == c, c].max()
        wrong_above = np.sum(sims[clip != c, c] > own)
        wrong_equal, right_equal = np.sum(sims[clip != c, c] == own), np.sum(sims[clip == c, c] == own)
        expected.append(1 + wrong_above + wrong_equal / (right_equal + 1))
    assert v2t_caption(sims, clip).ranks.tolist() == pytest.approx(expected)


def test_both_forms_agree_at_r1_and_differ_below_as_published() -> None:
    sims, clip = world(3, clips=20, captions=200, levels=10**6)
    group, caption = v2t_group(sims, clip), v2t_caption(sims, clip)
    assert group.r1 == caption.r1
    assert group.mean_rank < caption.mean_rank


def test_with_one_caption_per_clip_both_forms_are_the_transpose() -> None:
    sims = np.random.default_rng(0).standard_normal((15, 15)).astype(np.float32)
    turned = evaluate_ranking(sims.T, np.arange(15)).ranks.tolist()
    assert v2t_group(sims, np.arange(15)).ranks.tolist() == turned
    assert v2t_caption(sims, np.arange(15)).ranks.tolist() == turned


def test_clips_without_captions_are_no_video_queries() -> None:
    sims = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    clip = np.array([5, 0, 5, 2])
    assert v2t_group(sims, clip).queries == v2t_caption(sims, clip).queries == 3
    assert v2t_group(sims, clip).clips == 3
    assert v2t_caption(sims, clip).clips == 4


def test_many_to_many_judgements_have_no_groups() -> None:
    with pytest.raises(InputError, match="v2t_caption"):
        v2t_group(np.zeros((2, 3)), [{0, 1}, {2}])  # type: ignore[arg-type]
    assert v2t_caption(np.eye(3)[:2], [{0, 1}, {1}]).queries == 2


def test_chunks_do_not_change_either_form(monkeypatch: pytest.MonkeyPatch) -> None:
    sims, clip = world(5, levels=4)
    whole = v2t_group(sims, clip).ranks.tolist(), v2t_caption(sims, clip).ranks.tolist()
    monkeypatch.setattr("vctool.metrics.ranks.chunks_of.__defaults__", (200,))
    assert (v2t_group(sims, clip).ranks.tolist(), v2t_caption(sims, clip).ranks.tolist()) == whole
