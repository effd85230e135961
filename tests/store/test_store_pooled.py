"""Pooled vectors: one for one scene, more for more, the same in any company, and carried along wherever clips go."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from store_fixtures import MODEL

from vctool.errors import StoreError, VerificationError
from vctool.store import ClipTokens, StoreWriter, TokenStore, open_store
from vctool.store.pooled import BUDGET, MOST, Pooled, pool

D = 32


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def scenes_clip(name: str, scenes: list[int], seed: int = 0, timeless: int = 2) -> ClipTokens:
    """A frame for each entry of `scenes`, which says what it shows; video tokens for each, and some without a time."""
    generator = np.random.default_rng(seed)
    shown = unit(generator.standard_normal((max(scenes, default=0) + 1, D)))
    frame_FD = unit(shown[scenes] + 0.03 * generator.standard_normal((len(scenes), D)))
    video_VD = unit(np.concatenate([frame_FD, np.tile(frame_FD.mean(axis=0), (timeless, 1))]))
    time_F = np.arange(len(scenes), dtype=np.float32)
    time_V = np.concatenate([time_F, np.full(timeless, np.nan, np.float32)])
    return ClipTokens(name, "", frame_FD, time_F, video_VD, time_V, {})


def pooled_of(*clips: ClipTokens, **settings: float) -> Pooled:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(clip, name) for clip in clips])

    counts = [np.array([len(getattr(clip, name)) for clip in clips], np.int64) for name in ("frame_FD", "video_VD")]
    return pool(
        joined("frame_FD"), joined("frame_time_F"), counts[0], joined("video_VD"), joined("video_time_V"), counts[1],
        **settings,  # type: ignore[arg-type]
    )  # fmt: skip


def vectors(found: Pooled, clip: int = 0) -> np.ndarray:
    rows = slice(int(found.offsets[clip]), int(found.offsets[clip + 1]))
    return found.vector_PD[rows].astype(np.float64) * found.scale_P[rows, None]


def plain_vector(clip: ClipTokens, frames: list[int]) -> np.ndarray:
    """What one group's vector is by its definition, in float64."""
    seen = [v for v, time in enumerate(clip.video_time_V) if np.isnan(time) or int(time) in frames]
    total = clip.frame_FD[frames].astype(np.float64).mean(axis=0) + clip.video_VD[seen].astype(np.float64).mean(axis=0)
    return np.asarray(total / np.linalg.norm(total))


def test_one_scene_has_one_vector_the_mean_of_its_tokens() -> None:
    clip = scenes_clip("a", [0] * 12)
    found = vectors(pooled_of(clip))
    assert found.shape == (1, D)
    assert np.abs(found[0] - plain_vector(clip, list(range(12)))).max() < 0.005  # int8


def test_each_scene_has_its_own_vector_also_where_the_film_cuts_back_and_forth() -> None:
    clip = scenes_clip("a", [0, 0, 1, 1, 0, 0, 2, 2, 1, 0])
    found = vectors(pooled_of(clip))
    expected = [plain_vector(clip, frames) for frames in ([0, 1, 4, 5, 9], [2, 3, 8], [6, 7])]
    assert len(found) == 3
    for vector in expected:
        assert np.abs(found - vector).max(axis=1).min() < 0.006


def test_no_clip_has_more_than_the_most_and_no_token_without_need_a_vector() -> None:
    many = scenes_clip("a", list(range(12)))
    assert len(vectors(pooled_of(many))) == MOST == 4
    assert len(vectors(pooled_of(many, most=2))) == 2
    assert len(vectors(pooled_of(many, budget=2.0))) == 1


@pytest.mark.parametrize("frames", [1, 7, 12, 33, 100])
def test_groups_keep_within_the_budget_or_are_the_most(frames: int) -> None:
    clip = scenes_clip("a", [i * 3 // frames for i in range(frames)], seed=frames)
    found = vectors(pooled_of(clip))
    both_FD = (clip.frame_FD.astype(np.float64) + clip.video_VD[:frames]) / 2
    nearest_F = ((both_FD[:, None] - found[None] * np.linalg.norm(both_FD, axis=1).mean()) ** 2).sum(axis=2).min(axis=1)
    assert len(found) == min(3, frames) and nearest_F.mean() < BUDGET


def test_a_clip_is_pooled_the_same_alone_and_among_others() -> None:
    clips = [scenes_clip(str(i), [j * (i % 5 + 1) // 12 for j in range(12 - i % 3)], seed=i, timeless=i % 2) for i in range(40)]
    together = pooled_of(*clips)
    for index, clip in enumerate(clips):
        rows = slice(int(together.offsets[index]), int(together.offsets[index + 1]))
        alone = pooled_of(clip)
        assert np.array_equal(alone.vector_PD, together.vector_PD[rows]) and np.array_equal(alone.scale_P, together.scale_P[rows])


def test_clips_without_frames_without_video_and_without_both() -> None:
    full = scenes_clip("full", [0, 0, 1, 1])
    empty, none = np.zeros((0, D), np.float32), np.zeros(0, np.float32)
    frames_only = ClipTokens("f", "", full.frame_FD, full.frame_time_F, empty, none, {})
    video_only = ClipTokens("v", "", empty, none, full.video_VD, full.video_time_V, {})
    nothing = ClipTokens("0", "", empty, none, empty, none, {})
    found = pooled_of(frames_only, nothing, video_only)
    assert np.diff(found.offsets).tolist() == [2, 0, 3]  # two scenes; the two tokens without a time are a third moment
    assert len(pooled_of(nothing).vector_PD) == 0


def test_tokens_that_cancel_out_have_a_vector_that_scores_nothing() -> None:
    token = unit(np.ones((1, D)))
    clip = ClipTokens("a", "", np.concatenate([token, -token]), np.arange(2, dtype=np.float32), token[:0], np.zeros(0, np.float32), {})
    found = vectors(pooled_of(clip, most=1))
    assert np.isfinite(found).all() and np.abs(found).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_store_has_them_and_a_copy_has_the_same(tmp_path: Path, dtype: str) -> None:
    clips = [scenes_clip(f"clip {i}", [j * (i + 1) // 8 for j in range(8)], seed=i) for i in range(5)]
    with StoreWriter(tmp_path / "a.npz", manifest=MODEL, dtype=dtype) as writer:  # type: ignore[arg-type]
        for clip in clips:
            writer.add(clip)
        writer.commit()
    store, expected = TokenStore(tmp_path / "a.npz"), pooled_of(*clips)
    assert store.pooled is not None
    assert np.array_equal(store.pooled.vector_PD, expected.vector_PD) and np.array_equal(store.pooled.offsets, expected.offsets)
    with StoreWriter(tmp_path / "b.npz", manifest=MODEL, dtype=dtype) as writer:  # type: ignore[arg-type]
        writer.add_from(store, 3)
        writer.add_range(store, 0, 3)
        writer.commit()
    copy = TokenStore(tmp_path / "b.npz")
    assert copy.pooled is not None
    assert np.array_equal(vectors(copy.pooled, 0), vectors(store.pooled, 3)) and np.array_equal(
        vectors(copy.pooled, 2), vectors(store.pooled, 1)
    )
    copy.verify()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        assert np.array_equal(plain["pooled_PD"], store.pooled.vector_PD)


def without(path: Path, target: Path, *members: str) -> Path:
    """The store without some members: what an older version, or another program, wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        np.savez(target, **{name: arrays[name] for name in arrays.files if name not in members})
    return target


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    with StoreWriter(tmp_path / "s.npz", manifest=MODEL, dtype="int8") as writer:
        for i in range(4):
            writer.add(scenes_clip(f"clip {i}", [j * (i + 1) // 8 for j in range(8)], seed=i))
        writer.commit()
    return tmp_path / "s.npz"


def test_a_store_without_them_opens_and_a_copy_of_it_has_them(stored: Path, tmp_path: Path) -> None:
    old = TokenStore(without(stored, tmp_path / "old.npz", "pooled_PD", "pooled_scale_P", "pooled_offsets"))
    assert old.pooled is None
    with StoreWriter(tmp_path / "new.npz", manifest=MODEL, dtype="int8") as writer:
        writer.add_range(old)
        writer.commit()
    new, first = TokenStore(tmp_path / "new.npz").pooled, TokenStore(stored).pooled
    assert new is not None and first is not None and np.array_equal(new.offsets, first.offsets)
    assert np.abs(new.vector_PD * new.scale_P[:, None] - first.vector_PD * first.scale_P[:, None]).max() < 0.01  # pooled from int8 tokens


def test_a_store_with_some_of_the_members_is_refused(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="pooled vectors without member pooled_scale_P"):
        open_store(without(stored, tmp_path / "half.npz", "pooled_scale_P"))


def test_members_that_do_not_fit_are_refused(stored: Path, tmp_path: Path) -> None:
    with np.load(stored, allow_pickle=False) as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    for name, values, told in (
        ("pooled_PD", whole["pooled_PD"][:, :-1], "'pooled_PD' has shape"),
        ("pooled_PD", whole["pooled_PD"].astype(np.float32), "'pooled_PD' has dtype float32"),
        ("pooled_offsets", whole["pooled_offsets"][::-1].copy(), "'pooled_offsets' runs from"),
        ("pooled_offsets", whole["pooled_offsets"][:-1], "'pooled_offsets' has"),
    ):
        np.savez(tmp_path / "bad.npz", **{**whole, name: values})
        with pytest.raises(StoreError, match=told):
            open_store(tmp_path / "bad.npz")


def test_a_changed_byte_among_them_is_found(stored: Path) -> None:
    with zipfile.ZipFile(stored) as archive:
        place = archive.getinfo("pooled_PD.npy").header_offset + 400
    data = bytearray(stored.read_bytes())
    data[place] ^= 1
    stored.write_bytes(data)
    with pytest.raises(VerificationError, match="pooled_PD"):
        TokenStore(stored).verify()


def test_the_manifest_lists_them(stored: Path) -> None:
    with np.load(stored, allow_pickle=False) as arrays:
        listed = json.loads(arrays["manifest"].tobytes())["arrays"]
    assert {"pooled_PD", "pooled_scale_P", "pooled_offsets"} <= set(listed)
