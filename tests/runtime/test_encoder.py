"""Text and video through the graphs: shapes, unit length, times, and independence of the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tinymodel import COLOURS, DIM, LENGTH, SIZE, build_tiny_model

from vctool.errors import InputError, ModelError, UsageProblem
from vctool.runtime.checksums import write_checksums
from vctool.runtime.encoder import QueryTokens, TextEncoder, VideoEncoder
from vctool.runtime.model_directory import ModelDirectory


def frames_of(*colours: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.stack([np.full((SIZE, SIZE, 3), COLOURS[c], np.uint8) for c in colours])


@pytest.fixture(scope="module")
def text(tiny_model: Path) -> TextEncoder:
    return TextEncoder(ModelDirectory.open(tiny_model), device="cpu", threads=1)


@pytest.fixture(scope="module")
def video(tiny_model: Path) -> VideoEncoder:
    return VideoEncoder(ModelDirectory.open(tiny_model), device="cpu", threads=1)


def test_query_tokens_keep_their_text_and_mask(text: TextEncoder) -> None:
    (query,) = text.encode(["red frisbee"])
    assert query.query_QD.shape == (LENGTH, DIM) and query.query_QD.dtype == np.float32
    assert query.pieces_Q[:5] == ["[CLS]", "red", "fris", "##bee", "[SEP]"]
    assert query.mask_Q.tolist() == [True] * 5 + [False] * (LENGTH - 5)
    assert query.pad_Q.tolist() == [False] * 5 + [True] * (LENGTH - 5)
    assert [w.text for w in query.words] == ["red", "frisbee"] and query.dropped == ""
    np.testing.assert_allclose(np.linalg.norm(query.query_QD, axis=1), 1, atol=1e-6)


def test_a_query_is_the_same_alone_and_in_a_batch(text: TextEncoder) -> None:
    texts = ["red", "a blue video", "green then yellow"] * 20
    together = text.encode(texts, batch_size=7)
    assert [q.text for q in together] == texts
    for alone, one in zip(texts, together, strict=True):
        assert np.array_equal(text.encode([alone])[0].query_QD, one.query_QD)


def test_a_long_query_says_what_was_cut(text: TextEncoder) -> None:
    (query,) = text.encode(["red " * 500])
    assert query.pieces_Q == ["[CLS]"] + ["red"] * (LENGTH - 2) + ["[SEP]"]
    assert query.dropped.split() == ["red"] * (500 - LENGTH + 2)


@pytest.mark.parametrize("nothing", ["", "   ", "\t\n", "\0", "\u200b\x01"])
def test_a_query_without_a_word_is_refused(text: TextEncoder, nothing: str) -> None:
    with pytest.raises(InputError, match="the query"):
        text.encode(["red", nothing])


@pytest.mark.parametrize("odd", ["🐕‍🦺🥏", "كلب يلتقط", "a\0dog", "\udcff red", "<script>", "[SEP] [CLS]"])
def test_any_query_with_a_word_is_encoded(text: TextEncoder, odd: str) -> None:
    (query,) = text.encode([odd])
    assert np.isfinite(query.query_QD).all() and query.words


def test_a_pooled_model_gives_one_token_that_is_the_whole_query(tmp_path: Path) -> None:
    model = ModelDirectory.open(build_tiny_model(tmp_path / "m", policy="pooled", temporal="mean", interaction="f"))
    (query,) = TextEncoder(model, device="cpu").encode(["red video"])
    assert query.query_QD.shape == (1, DIM) and query.pieces_Q == ["red video"]
    assert [(w.text, w.start, w.stop) for w in query.words] == [("red video", 0, 1)] and not query.pad_Q.any()


def test_templates_average_the_pooled_vectors_and_are_named(tmp_path: Path) -> None:
    model = ModelDirectory.open(build_tiny_model(tmp_path / "m", policy="pooled", temporal="mean", interaction="f"))
    encoder = TextEncoder(model, device="cpu")
    alone = [query.query_QD[0].astype(np.float64) for query in encoder.encode(["red video", "blue red", "green video", "blue green"])]
    encoder.use_templates(["{} video", "blue {}"])
    for query, pair, text in zip(encoder.encode(["red", "green"]), (alone[:2], alone[2:]), ("red", "green"), strict=True):
        wanted = (pair[0] + pair[1]) / np.linalg.norm(pair[0] + pair[1])
        np.testing.assert_allclose(query.query_QD[0], wanted, atol=1e-6)
        assert (query.text, query.pieces_Q, query.templates, query.pooled) == (text, [text], ("{} video", "blue {}"), True)
    with pytest.raises(InputError, match="the query is empty"):
        encoder.encode([" "])


def test_templates_of_the_model_s_own_are_used(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m", policy="pooled", temporal="mean", interaction="f")
    config = json.loads((folder / "config.json").read_text())
    config["query"]["templates"] = ["blue {}"]
    (folder / "config.json").write_text(json.dumps(config))
    write_checksums(folder)
    encoder = TextEncoder(ModelDirectory.open(folder), device="cpu")
    given = encoder.encode(["red"])[0]
    encoder.use_templates([])
    np.testing.assert_allclose(given.query_QD, encoder.encode(["blue red"])[0].query_QD, atol=1e-6)


def test_templates_that_do_not_fit_are_refused(text: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="query is one pooled vector"):
        text.use_templates(["a photo of {}"])
    pooled = TextEncoder(ModelDirectory.open(build_tiny_model(tmp_path / "m", policy="pooled")), device="cpu")
    for bad in ("a photo", "{} and {}"):
        with pytest.raises(UsageProblem, match="once, where the query goes"):
            pooled.use_templates([bad])


def test_expansion_counts_the_pads(tmp_path: Path) -> None:
    model = ModelDirectory.open(build_tiny_model(tmp_path / "m", expand="on"))
    (query,) = TextEncoder(model, device="cpu").encode(["red"])
    assert query.mask_Q.all() and query.pad_Q.sum() == LENGTH - 3


def test_a_tokenizer_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text('{"kind": "bert", "context_length": 9, "pad_id": 0}')
    write_checksums(folder)
    with pytest.raises(ModelError, match=r"takes 12 tokens, tokenizer_config\.json says 9"):
        TextEncoder(ModelDirectory.open(folder), device="cpu")


def test_graph_and_config_of_different_policies_are_refused(tmp_path: Path) -> None:
    tokens, pooled = (build_tiny_model(tmp_path / p, policy=p) for p in ("tokens", "pooled"))
    (tokens / "onnx" / "text.onnx").write_bytes((pooled / "onnx" / "text.onnx").read_bytes())
    write_checksums(tokens)
    with pytest.raises(ModelError, match="1 query tokens for policy 'tokens', expected 12"):
        TextEncoder(ModelDirectory.open(tokens), device="cpu").encode(["red"])


def test_frame_features_are_the_mean_colour_and_not_normalised(video: VideoEncoder) -> None:
    features_ND = video.frame_features(frames_of("red", "blue"))
    assert features_ND.shape == (2, DIM) and features_ND.dtype == np.float32
    expected = np.array([np.linalg.norm(np.array(COLOURS[c]) / 255 - 0.5) for c in ("red", "blue")])
    assert np.allclose(np.linalg.norm(features_ND, axis=1), expected, rtol=1e-5)


def test_clip_tokens_are_unit_rows_with_the_frames_times(video: VideoEncoder) -> None:
    frame_FD, frame_time_F, video_VD, video_time_V = video.encode(frames_of("red", "blue", "green"), np.array([0.0, 0.5, 1.25]))
    assert frame_FD.shape == (3, DIM) and video_VD.shape == (5, DIM)
    for token_TD in (frame_FD, video_VD):
        np.testing.assert_allclose(np.linalg.norm(token_TD, axis=1), 1, atol=1e-6)
    assert frame_time_F.tolist() == [0.0, 0.5, 1.25]
    assert video_time_V[:3].tolist() == [0.0, 0.5, 1.25] and np.isnan(video_time_V[3:]).all()


def test_the_mean_of_frames_has_no_time(tmp_path: Path) -> None:
    model = ModelDirectory.open(build_tiny_model(tmp_path / "m", temporal="mean"))
    _, _, video_VD, video_time_V = VideoEncoder(model, device="cpu").encode(frames_of("red", "blue"), np.array([0.0, 1.0]))
    assert video_VD.shape == (1, DIM) and np.isnan(video_time_V).all()


def test_a_model_without_temporal_encoder_needs_no_graph_for_it(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m", temporal="none")
    (folder / "onnx" / "temporal.onnx").unlink()
    write_checksums(folder)
    frame_FD, _, video_VD, video_time_V = VideoEncoder(ModelDirectory.open(folder), device="cpu").encode(
        frames_of("red", "blue"), np.array([0.0, 1.0])
    )
    assert np.array_equal(frame_FD, video_VD) and video_time_V.tolist() == [0.0, 1.0]


def test_a_frame_that_gives_no_direction_is_named_not_stored(video: VideoEncoder) -> None:
    with pytest.raises(ModelError, match="NaN, infinite or zero"):
        video.clip_tokens(np.zeros((2, DIM), np.float32), np.array([0.0, 1.0]))


def test_more_frames_than_the_model_reads_are_refused(video: VideoEncoder) -> None:
    with pytest.raises(ModelError, match="17 frames, this model reads at most 16"):
        video.encode(frames_of(*["red"] * 17), np.arange(17.0))


def test_tokens_from_elsewhere_are_normalised() -> None:
    query = QueryTokens.from_array(np.array([[3, 4], [0, 2]]), "q.npy")
    assert np.allclose(query.query_QD, np.array([[0.6, 0.8], [0, 1]]), rtol=1e-6)
    assert query.mask_Q.all() and [w.text for w in query.words] == ["token 1", "token 2"]


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.ones(3), np.ones((0, 3)), np.full((1, 2), np.nan), np.array([["a"]])])
def test_tokens_from_elsewhere_that_are_none_are_refused(bad: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    with pytest.raises(InputError, match=r"q\.npy"):
        QueryTokens.from_array(bad, "q.npy")
