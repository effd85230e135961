"""Cached features: computed once, kept through interruptions, exact whatever else was in the queue."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tinymodel import make_video
from toy import LENGTH, WORDS, Splits, ToyBackbone, toy_config, toy_model

from vctool.errors import InputError, VctoolError
from vctool.preprocessing.tokenizer import Tokenizer
from vctool.training.clips import read_clips
from vctool.training.features import FrameData, clip_keys, decode_pool, frame_cache, prepare_frames, tower_fingerprint
from vctool.training.forward import present
from vctool.training.precision import choose_precision
from vctool.training.row_cache import RowCache
from vctool.training.texts import prepare_texts
from vctool.video.clip import VideoInput
from vctool.video.workers import DecodeResult

CPU = choose_precision("fp32", torch.device("cpu"))


def rows_of(cache: RowCache, count: int, start: int = 0) -> None:
    with cache.adding(count) as writer:
        for i in range(start, start + count):
            writer.add(f"k{i}", np.full(cache.shape, i, cache.dtype), i)


def test_rows_come_back_in_any_order_from_several_parts(tmp_path: Path) -> None:
    rows_of(RowCache(tmp_path, "x", {}, (2, 3), np.float16), 4)
    rows_of(RowCache(tmp_path, "x", {}, (2, 3), np.float16), 3, start=4)
    found = RowCache(tmp_path, "x", {}, (2, 3), np.float16).rows([f"k{i}" for i in (6, 0, 5, 3)])
    taken = found.take(np.array([3, 0, 0, 2]))
    assert taken.shape == (4, 2, 3) and taken[:, 0, 0].tolist() == [3, 6, 6, 5] and found.counts_N.tolist() == [6, 0, 5, 3]


def test_other_settings_lie_in_another_folder(tmp_path: Path) -> None:
    rows_of(RowCache(tmp_path, "x", {"frames": 4}, (2,), np.float16), 2)
    assert "k0" not in RowCache(tmp_path, "x", {"frames": 8}, (2,), np.float16)
    assert "k0" not in RowCache(tmp_path, "x", {"frames": 4}, (3,), np.float16)


def test_what_was_finished_before_an_exception_stays(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, "x", {}, (2,), np.float16)
    with pytest.raises(KeyboardInterrupt), cache.adding(5) as writer:
        writer.add("a", np.ones(2, np.float16), 1)
        raise KeyboardInterrupt
    again = RowCache(tmp_path, "x", {}, (2,), np.float16)
    assert again.missing(["a", "b", "b"]) == [1]


def test_a_part_opens_with_numpy_alone(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, "x", {}, (2, 3), np.float16)
    rows_of(cache, 300)
    assert np.load(cache.folder / "part-00000.npy").shape == (300, 2, 3)


def test_rows_of_a_killed_process_are_believed_as_far_as_their_bytes_go(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, "x", {}, (8,), np.float16)
    rows_of(cache, 5)
    part, index = cache.folder / "part-00000.npy", cache.folder / "index.jsonl"
    os.truncate(part, part.stat().st_size - 20)  # the last row's and a piece of the fourth's bytes are lost
    index.write_text(index.read_text() + '["k9", "part-0')
    again = RowCache(tmp_path, "x", {}, (8,), np.float16)
    assert again.missing([f"k{i}" for i in range(5)]) == [3, 4]
    assert again.rows(["k2"]).take(np.array([0]))[0, 0] == 2


def test_a_full_disk_is_one_line_and_keeps_the_rows_before_it(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, "x", {}, (1000,), np.float16)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(VctoolError, match="the disk is full"):
            rows_of(cache, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert RowCache(tmp_path, "x", {}, (1000,), np.float16).missing([f"k{i}" for i in range(20)]) == list(range(4, 20))


def test_too_small_a_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RowCache(tmp_path, "x", {}, (1000,), np.float16)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 100, 100))
    with pytest.raises(VctoolError, match=r"needs .* GB, the disk has"):
        rows_of(cache, 20)


def test_a_cache_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        RowCache(tmp_path / "file", "x", {}, (2,), np.float16)


@pytest.fixture
def inputs(splits: Splits) -> list[VideoInput]:
    return [clip.input for clip in read_clips(splits.validation).clips]


def maps(inputs: Sequence[VideoInput], root: Path, *, frozen: bool = True, frames: int = 4, workers: int = 0) -> FrameData:
    model = toy_model(toy_config(frames=frames))
    store = frame_cache(model, root, frozen=frozen, precision=CPU, decoder="pyav")
    with decode_pool(model, workers, "pyav") as decode:
        return prepare_frames(model, store, inputs, decode, frozen=frozen, precision=CPU)


def test_cached_maps_are_what_the_tower_gives(inputs: list[VideoInput], tmp_path: Path) -> None:
    pixels = maps(inputs, tmp_path, frozen=False).take(np.arange(5))[0]
    cached, mask = maps(inputs, tmp_path).take(np.arange(5))
    wanted = ToyBackbone().frame_map(pixels.flatten(0, 1)).reshape(5, 4, 6)
    assert cached.dtype == torch.float16 and mask.all()
    assert torch.allclose(cached.float(), wanted, rtol=1e-3, atol=1e-3)


def test_the_second_time_nothing_is_decoded(inputs: list[VideoInput], tmp_path: Path) -> None:
    first = maps(inputs, tmp_path)

    def refuse(_: Sequence[VideoInput]) -> Iterable[DecodeResult]:
        raise AssertionError("decoded again")

    model = toy_model(toy_config())
    store = frame_cache(model, tmp_path, frozen=True, precision=CPU, decoder="pyav")
    again = prepare_frames(model, store, inputs, refuse, frozen=True, precision=CPU)
    order = np.arange(5)
    assert np.array_equal(first.rows.take(order), again.rows.take(order))


def test_worker_processes_give_the_same_features(inputs: list[VideoInput], tmp_path: Path) -> None:
    here, there = maps(inputs, tmp_path / "a"), maps(inputs, tmp_path / "b", workers=1)
    assert np.array_equal(here.rows.take(np.arange(5)), there.rows.take(np.arange(5)))


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    clip = VideoInput("a", make_video(tmp_path / "a.mp4", ["red"], size=(32, 32)))
    before = maps([clip], tmp_path / "cache").rows.take(np.array([0]))
    make_video(tmp_path / "a.mp4", ["blue", "blue"], size=(32, 32))
    after = maps([clip], tmp_path / "cache").rows.take(np.array([0]))
    assert not np.array_equal(before, after)


def test_pieces_of_one_file_have_keys_of_their_own(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", ["red", "blue"], size=(32, 32))
    keys, failed = clip_keys(
        [VideoInput("a", path), VideoInput("b", path, 0.0, 0.5), VideoInput("c", path), VideoInput("d", tmp_path / "no.mp4")]
    )
    assert keys[0] == keys[2] != keys[1] and list(failed) == [3]


def test_fewer_frames_than_asked_are_masked_and_reversed_among_themselves(tmp_path: Path) -> None:
    clip = VideoInput("a", make_video(tmp_path / "a.mp4", ["red", "green", "blue"], seconds=0.1, size=(32, 32)))
    maps_1F, mask_1F = maps([clip], tmp_path / "cache", frames=8).take(np.array([0]))
    assert mask_1F.tolist() == [[True] * 3 + [False] * 5]
    shown, mask_BF = present(maps_1F, mask_1F, torch.tensor([0, 0]), torch.tensor([False, True]))
    assert torch.equal(shown[0], maps_1F[0]) and torch.equal(mask_BF, mask_1F.expand(2, -1))
    assert torch.equal(shown[1, :3], maps_1F[0, :3].flip(0)) and torch.equal(shown[1, 3:], maps_1F[0, 3:])
    assert not torch.equal(maps_1F[0, 0], maps_1F[0, 2])


def test_an_unreadable_clip_is_told_with_its_reason_and_tried_again_later(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("no video")
    good = VideoInput("good", make_video(tmp_path / "good.mp4", ["red"], size=(32, 32)))
    data = maps([VideoInput("a", path), good], tmp_path / "cache")
    assert list(data.failed) == [0] and data.failed[0] and len(data.rows) == 1
    make_video(path, ["green"], size=(32, 32))
    assert not maps([VideoInput("a", path), good], tmp_path / "cache").failed


def test_features_beyond_sixteen_bits_are_refused_not_stored_as_infinity(inputs: list[VideoInput], tmp_path: Path) -> None:
    model = toy_model(toy_config())
    with torch.no_grad():
        model.backbone.tower.weight.mul_(1e9)  # type: ignore[operator, union-attr]
    store = frame_cache(model, tmp_path, frozen=True, precision=CPU, decoder="pyav")
    with decode_pool(model, 0, "pyav") as decode:
        data = prepare_frames(model, store, inputs[:1], decode, frozen=True, precision=CPU)
    assert data.failed == {0: "its features do not fit into 16 bits"}


def test_the_fingerprint_is_of_the_frozen_weights_alone() -> None:
    one, other = ToyBackbone(), ToyBackbone()  # heads differ by their random start
    assert not torch.equal(one.frame_out.weight, other.frame_out.weight) and tower_fingerprint(one) == tower_fingerprint(other)
    with torch.no_grad():
        other.tower.weight[0, 0] += 1
    assert tower_fingerprint(one) != tower_fingerprint(other)
    assert tower_fingerprint(ToyBackbone(packaged=False)) != tower_fingerprint(ToyBackbone(packaged=False))


@pytest.mark.parametrize("pad_states", [True, False])
def test_cached_text_states_are_the_towers_at_every_true_token(tmp_path: Path, pad_states: bool) -> None:
    model = toy_model(toy_config())
    model.backbone.pad_states = pad_states
    model.backbone.write_tokenizer(tmp_path)
    texts = ["red then blue", "a video turns green then red", "a"]
    data = prepare_texts(model, Tokenizer.load(tmp_path), texts, tmp_path / "cache", frozen=True, precision=CPU)
    text = data.take(np.array([2, 0, 1]))
    assert text.state_BLW is not None and text.state_BLW.shape == (3, LENGTH, 12)
    whole = model.backbone.text_states(text.input_ids_BL, text.attention_mask_BL)
    known = text.attention_mask_BL.bool() if not pad_states else torch.ones_like(text.attention_mask_BL, dtype=torch.bool)
    assert torch.allclose(text.state_BLW.float()[known], whole[known], atol=2e-3)
    assert text.attention_mask_BL.sum(dim=1).tolist() == [3, 5, 8]


def test_a_text_tower_in_training_gets_ids_only_and_long_captions_are_counted(tmp_path: Path) -> None:
    model = toy_model(toy_config())
    model.backbone.write_tokenizer(tmp_path)
    data = prepare_texts(model, Tokenizer.load(tmp_path), ["red", " ".join(["red"] * 20)], tmp_path / "cache", frozen=False, precision=CPU)
    text = data.take(np.array([1]))
    assert text.state_BLW is None and data.truncated == 1
    assert text.input_ids_BL[0, 0] == WORDS.index("[CLS]") and text.input_ids_BL[0, -1] == WORDS.index("[SEP]")


def test_settings_of_a_cache_can_be_read_by_people(tmp_path: Path, inputs: list[VideoInput]) -> None:
    maps(inputs[:1], tmp_path)
    (folder,) = tmp_path.iterdir()
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["frames"] == 4 and settings["precision"] == "fp32" and settings["preprocess"]["size"] == 8
