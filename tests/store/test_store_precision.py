"""Packed stores: what is written is what docs/format.md says, whatever company a clip has, and damage is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_fixtures import MODEL, make_clip, unit, write_store

from vctool.errors import StoreError
from vctool.precision import PRECISIONS, Precision, decode, encode, rotated, token_bytes, unrotated
from vctool.precision.centres import assign_centres
from vctool.precision.codes import LEVELS, levels_of, to_levels, to_signs
from vctool.store import ClipTokens, StoreWriter, open_store

PACKED: tuple[Precision, ...] = ("int4", "compact")
FORMAT = Path(__file__).parents[2] / "docs" / "format.md"
WIDTHS = [1, 2, 3, 7, 8, 64, 100, 192, 512]


def documented() -> dict[str, Any]:
    """The names that the second example of docs/format.md defines: an independent reading of the format."""
    examples = re.findall(r"```python\n(.*?)```", FORMAT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(next(example for example in examples if "def rotation" in example), names)
    return names


def scenes(seed: int, width: int, lengths: tuple[int, ...], spread: float = 0.2) -> np.ndarray:
    """Tokens of a clip whose scenes have these lengths and nothing to do with each other."""
    centre = np.repeat(unit(len(lengths), width, seed), lengths, axis=0)
    tokens = centre + spread * unit(sum(lengths), width, seed + 1)
    return (tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).astype(np.float32)


def clip_of(name: str, frames: np.ndarray, video: np.ndarray) -> ClipTokens:
    return ClipTokens(name, "", frames, np.arange(len(frames), dtype=np.float32), video, np.full(len(video), np.nan, np.float32))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_rotation_is_the_documented_one_and_orthogonal(width):
    matrix = documented()["rotation"](width)
    tokens = unit(5, width, 1)
    assert np.allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)
    assert np.allclose(rotated(tokens), tokens @ matrix.T, atol=2e-6)
    assert np.allclose(unrotated(rotated(tokens)), tokens, atol=2e-6)


def test_a_token_with_one_coordinate_is_spread_over_all():
    for width in (192, 512, 768):
        assert np.abs(rotated(np.eye(width, dtype=np.float32)[:9])).max() < 6 / np.sqrt(width)


def test_a_tokens_rotation_has_the_same_bits_alone_and_among_others():
    tokens = unit(700, 100)
    together = rotated(tokens)
    assert all(np.array_equal(rotated(tokens[i : i + 1])[0], together[i]) for i in (0, 255, 256, 699))


def test_each_coordinate_takes_the_nearest_level_and_the_scale_fits_best():
    values = unit(40, 65, 3)
    packed, scale = to_levels(values)
    levels = levels_of(packed, 65).astype(np.float64)
    error = ((values - levels * scale[:, None]) ** 2).sum(axis=1)
    for factor in (0.99, 1.01):
        assert (((values - levels * (factor * scale[:, None])) ** 2).sum(axis=1) > error).all()
    # The codes were chosen for the scale of the pass before, which differs by less than a tenth of a level's width.
    nearest = LEVELS[np.abs(values[:, :, None] / scale[:, None, None] - LEVELS).argmin(axis=2)]
    assert (nearest == levels).mean() > 0.97
    assert error.max() < 0.02


def test_signs_keep_their_amplitude():
    packed, amplitude = to_signs(np.array([[1, -3, 0.5, -0.5], [0, 0, 0, 0]], np.float32))
    assert packed.tolist() == [[0b0101], [0b1111]] and amplitude.tolist() == [1.25, 0]


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("width", WIDTHS)
def test_plain_numpy_decodes_a_packed_store_as_documented(tmp_path, dtype, width):
    clips = [clip_of(str(i), unit(i % 4, width, i), unit(3 + i, width, 50 + i)) for i in range(9)]
    path = write_store(tmp_path / "clips.npz", clips, dtype, manifest=MODEL | {"dim": width})
    store = open_store(path)
    store.verify()
    assert (store.dtype, store.dim) == (dtype, width)
    names = documented()
    with np.load(path, allow_pickle=False) as archive:
        manifest = json.loads(archive["manifest"].tobytes())
        for i in range(len(clips)):
            clip = store.clip(i)
            for branch, found in (("frame", clip.frame_FD), ("video", clip.video_VD)):
                expected = names["packed_tokens"](archive, manifest, branch, i)
                assert found.dtype == np.float32 and found.shape == expected.shape
                assert np.allclose(found, expected, atol=3e-6)
                rows, _, scales = store.rows(branch, i)
                assert scales is None and np.array_equal(rows, found)


def test_tokens_come_back_as_near_as_their_bits_allow():
    frames = np.concatenate([scenes(i, 512, (12,), 0.25) for i in range(0, 80, 2)])
    video = np.concatenate([scenes(i, 512, (12,), 0.25) for i in range(0, 80, 2)])
    edges = np.arange(41, dtype=np.int64) * 12
    error = {}
    for precision in PRECISIONS:
        made = encode(precision, frames, edges, video, edges)
        error[precision] = float(((decode(made, precision, 512, "frame", edges) - frames) ** 2).sum(axis=1).mean())
    assert error["float16"] < 1e-6 and error["int8"] < 1e-4
    assert 0.005 < error["int4"] < 0.0105  # Lloyd-Max at 4 bits: 0.0095
    # The centre at 4 bits, and (1 - 2/pi) of what lies outside it.
    assert 0.02 < error["compact"] < 0.0095 + 0.37 * 0.06


def test_a_compact_clip_takes_2_1_kb_at_12_and_14_tokens_512_wide():
    tokens = scenes(0, 512, (26,))
    made = encode("compact", tokens[:12], np.array([0, 12]), tokens[12:], np.array([0, 14]))
    assert token_bytes(made) <= 2100


@pytest.mark.parametrize("lengths", [(12,), (6, 6), (4, 4, 4), (3, 3, 3, 3)])
def test_a_clip_has_a_centre_for_each_scene(lengths):
    tokens = scenes(5, 256, lengths)
    (centres,) = assign_centres(tokens[None])
    assert centres.tolist() == np.repeat(np.arange(len(lengths)), lengths).tolist()


def test_scenes_that_come_back_share_a_centre():
    tokens = scenes(5, 256, (4, 4, 4))[[0, 4, 1, 5, 8, 2, 9, 6]]
    assert assign_centres(tokens[None]).tolist() == [[0, 1, 0, 1, 2, 0, 2, 1]]


def test_a_long_clip_may_have_more_centres_but_never_more_than_a_byte_counts():
    many = scenes(1, 64, (1,) * 300)
    assert 4 < assign_centres(many[None, :60]).max() + 1 <= 10
    assert assign_centres(many[None]).max() + 1 <= 50
    assert assign_centres(np.repeat(many[:1], 9, axis=0)[None]).max() == 0
    assert assign_centres(np.zeros((3, 0, 8), np.float32)).shape == (3, 0)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_clip_has_the_same_bytes_alone_and_among_others(dtype):
    clips = [clip_of(str(i), scenes(i, 96, (3, 2 + i % 3)), scenes(99 + i, 96, (1 + i % 5,))) for i in range(40)]
    edges = [np.concatenate([[0], np.cumsum([len(getattr(c, name)) for c in clips])]) for name in ("frame_FD", "video_VD")]
    frames, video = np.concatenate([c.frame_FD for c in clips]), np.concatenate([c.video_VD for c in clips])
    together = encode(dtype, frames, edges[0], video, edges[1])
    for i in range(0, 40, 3):
        alone = encode(
            dtype, clips[i].frame_FD, np.array([0, len(clips[i].frame_FD)]), clips[i].video_VD, np.array([0, len(clips[i].video_VD)])
        )
        for name, values in alone.items():
            if not name.endswith("_offsets"):
                of = together["centre_offsets"] if name.startswith("centre") else edges[name.startswith("video")]
                assert np.array_equal(values, together[name][of[i] : of[i + 1]]), name


@pytest.mark.parametrize("dtype", PACKED)
def test_clips_are_copied_bit_for_bit_between_packed_stores(tmp_path, dtype):
    clips = [clip_of(str(i), scenes(i, 64, (2, 3)), scenes(9 + i, 64, (4,))) for i in range(5)]
    source = open_store(write_store(tmp_path / "a.npz", clips, dtype))
    with StoreWriter(tmp_path / "b.npz", manifest=MODEL, dtype=dtype) as writer:
        writer.add_from(source, 3)
        writer.add_range(source, 0, 3)
        writer.commit()
    copy = open_store(tmp_path / "b.npz")
    copy.verify()
    for there, here in ((3, 0), (0, 1), (2, 3)):
        assert np.array_equal(copy.clip(here).frame_FD, source.clip(there).frame_FD)
        assert np.array_equal(copy.clip(here).video_VD, source.clip(there).video_VD)


@pytest.mark.parametrize("dtype", PACKED)
def test_a_refused_clip_leaves_nothing_behind_in_a_packed_store(tmp_path, dtype):
    with StoreWriter(tmp_path / "a.npz", manifest=MODEL, dtype=dtype) as writer:
        writer.add(make_clip("a"))
        with pytest.raises(StoreError, match="all zeros"):
            writer.add(clip_of("b", np.zeros((2, 8), np.float32), unit(2)))
        writer.add(make_clip("c", 1))
        writer.commit()
    assert open_store(tmp_path / "a.npz").clip_ids == ["a", "c"]


@pytest.mark.parametrize("dtype", PACKED)
def test_an_empty_packed_store_is_a_store(tmp_path, dtype):
    with open_store(write_store(tmp_path / "a.npz", [], dtype)) as store:
        store.verify()
        assert len(store) == 0 and store.dtype == dtype


def rewritten(path: Path, target: Path, **changes: Any) -> Path:
    """The store with other arrays or, where a value is None, without them; keys of the manifest begin with `manifest_`."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    manifest = json.loads(arrays["manifest"].tobytes())
    for name, value in changes.items():
        if name.startswith("manifest_"):
            manifest[name.removeprefix("manifest_")] = value
        elif value is None:
            del arrays[name]
        else:
            arrays[name] = value
    arrays["manifest"] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    np.savez(target, **arrays)
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_scale_T": None}, "without member 'frame_scale_T'"),
        ({"centre_CD": None}, "without member 'centre_CD'"),
        ({"manifest_dtype": "int4"}, "its manifest says dim 64"),
        ({"manifest_dtype": "float16"}, "its manifest says dtype 'float16'"),
        ({"manifest_dim": 512}, "its manifest says dim 512"),
        ({"manifest_dim": None}, "its manifest says dim None"),
        ({"centre_offsets": np.array([0, 5, 1])}, "'centre_offsets' runs"),
        ({"centre_scale_C": np.ones(7, np.float32)}, "fits neither"),
        ({"video_centre_T": np.zeros(1, np.uint8)}, "'video_centre_T' has 1 values"),
        ({"centre_CD": np.zeros((2, 32), np.int16)}, "dtype int16"),
    ],
)
def test_a_damaged_packed_store_is_refused_with_the_reason(tmp_path, changes, message):
    path = write_store(tmp_path / "a.npz", [clip_of(str(i), unit(3, 64, i), unit(2, 64, i + 9)) for i in range(2)], "compact")
    with pytest.raises(StoreError, match=message):
        open_store(rewritten(path, tmp_path / "b.npz", **changes))


def test_a_token_whose_centre_is_not_there_is_an_error_and_not_another_clips_centre(tmp_path):
    path = write_store(tmp_path / "a.npz", [clip_of(str(i), unit(3, 64, i), unit(2, 64, i + 9)) for i in range(2)], "compact")
    store = open_store(rewritten(path, tmp_path / "b.npz", frame_centre_T=np.full(6, 200, np.uint8)))
    with pytest.raises(StoreError, match="a centre that its clip does not have"):
        store.clip(0)
