"""Batches: decided by seed, epoch and number alone; groups whole; true captions never negatives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vctool.errors import InputError
from vctool.training.batches import BatchPlan
from vctool.training.clips import TrainingClip
from vctool.video.clip import VideoInput


def clip(number: int, captions: tuple[int, ...], back: tuple[int, ...] = (), group: str | None = None) -> TrainingClip:
    return TrainingClip(VideoInput(str(number), Path(f"{number}.mp4")), captions, back, group)


def plain(count: int) -> list[TrainingClip]:
    return [clip(i, (3 * i, 3 * i + 1, 3 * i + 2)) for i in range(count)]


def test_a_batch_depends_on_seed_epoch_and_number_alone() -> None:
    a, b = (BatchPlan(plain(50), size=8, seed=5) for _ in range(2))
    b.batch(1, 4)  # another order of asking
    for epoch, number in ((0, 0), (3, 5), (0, 5)):
        one, other = a.batch(epoch, number), b.batch(epoch, number)
        assert np.array_equal(one.clip_B, other.clip_B) and np.array_equal(one.text_B, other.text_B)
    assert not np.array_equal(a.batch(0, 0).clip_B, a.batch(1, 0).clip_B)
    assert not np.array_equal(a.batch(0, 0).clip_B, BatchPlan(plain(50), size=8, seed=6).batch(0, 0).clip_B)


def test_an_epoch_shows_no_clip_twice_and_full_batches_only() -> None:
    plan = BatchPlan(plain(50), size=8, seed=0)
    seen = np.concatenate([plan.batch(2, k).clip_B for k in range(plan.batches)])
    assert plan.batches == 6 and len(seen) == len(set(seen.tolist())) == 48


def test_captions_of_a_clip_are_drawn_anew_each_epoch() -> None:
    plan = BatchPlan(plain(8), size=8, seed=0)
    drawn = {
        (c, t) for epoch in range(12) for b in [plan.batch(epoch, 0)] for c, t in zip(b.clip_B.tolist(), b.text_B.tolist(), strict=True)
    }
    assert all(t // 3 == c for c, t in drawn) and len(drawn) == 24


def test_a_group_is_never_cut_apart_and_its_reversals_come_with_it() -> None:
    clips = [clip(i, (2 * i,), (2 * i + 1,), group=f"g{i // 3}") for i in range(30)]
    plan = BatchPlan(clips, size=12, seed=1, reverse=True)
    for epoch in range(3):
        for number in range(plan.batches):
            batch = plan.batch(epoch, number)
            rows = set(zip(batch.clip_B.tolist(), batch.reversed_B.tolist(), strict=True))
            for c, _ in rows:
                assert {(m, back) for m in range(3 * (c // 3), 3 * (c // 3) + 3) for back in (False, True)} <= rows


def test_a_reversed_row_has_a_caption_of_the_reversal_that_is_wrong_for_the_clip() -> None:
    plan = BatchPlan([clip(i, (2 * i,), (2 * i + 1,)) for i in range(6)], size=12, seed=0, reverse=True)
    batch = plan.batch(0, 0)
    assert np.array_equal(batch.text_B % 2 == 1, batch.reversed_B)
    assert np.array_equal(batch.positive_BB, np.eye(12, dtype=bool))


def test_each_row_knows_where_its_clip_runs_the_other_way_unless_its_caption_is_true_both_ways() -> None:
    clips = [clip(0, (0,), (1,)), clip(1, (2, 3), (3,)), clip(2, (4,))]
    plan = BatchPlan(clips, size=5, seed=0, reverse=True)
    for epoch in range(6):
        batch = plan.batch(epoch, 0)
        for row, other in enumerate(batch.reversal_B.tolist()):
            if batch.clip_B[row] == 2 or batch.text_B[row] == 3:
                assert other == -1
            else:
                assert batch.clip_B[other] == batch.clip_B[row] and batch.reversed_B[other] != batch.reversed_B[row]


def test_without_reverse_reversed_captions_are_not_used() -> None:
    plan = BatchPlan([clip(i, (2 * i,), (2 * i + 1,)) for i in range(6)], size=6, seed=0)
    assert not plan.batch(0, 0).reversed_B.any() and plan.rows == 6


def test_clips_that_share_a_caption_are_positives_of_each_other() -> None:
    clips = [clip(0, (7,)), clip(1, (7, 8)), clip(2, (9,))]
    plan = BatchPlan(clips, size=3, seed=0)
    for epoch in range(8):
        batch = plan.batch(epoch, 0)
        for i, j in np.ndindex(3, 3):
            assert batch.positive_BB[i, j] == (batch.text_B[i] in clips[batch.clip_B[j]].captions)


def test_all_captions_makes_every_caption_a_pair_of_its_epoch() -> None:
    plan = BatchPlan(plain(10), size=5, seed=0, caption_choice="all")
    batches = [plan.batch(0, k) for k in range(plan.batches)]
    assert sorted(t for b in batches for t in b.text_B.tolist()) == list(range(30))
    twice = [b for b in batches if len(set(b.clip_B.tolist())) < len(b.clip_B)]
    assert twice and all(b.positive_BB[i, j] for b in twice for i, j in np.ndindex(b.positive_BB.shape) if b.clip_B[i] == b.clip_B[j])


def test_a_group_beyond_the_batch_size_is_cut() -> None:
    plan = BatchPlan([clip(i, (i,), group="all") for i in range(10)], size=4, seed=0)
    assert [len(u) for u in plan.units] == [4, 4, 2]


def test_the_number_of_batches_does_not_depend_on_the_shuffle() -> None:
    clips = [clip(i, (i,), group=f"g{i % 7 if i % 2 else i}") for i in range(60)]
    plan = BatchPlan(clips, size=9, seed=0)
    for epoch in range(20):
        assert all(len(plan.batch(epoch, k).clip_B) > 0 for k in range(plan.batches))


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    assert len(BatchPlan(plain(5), size=128, seed=0).batch(0, 0).clip_B) == 5


def test_one_clip_is_nothing_to_learn_from() -> None:
    with pytest.raises(InputError, match="nothing to learn from"):
        BatchPlan(plain(1), size=8, seed=0)
