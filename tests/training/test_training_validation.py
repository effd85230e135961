"""Validation: the numbers of the metrics package, and the direction of time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy import Splits, toy_config, toy_model

from vctool.errors import UsageProblem
from vctool.metrics import evaluate_ranking
from vctool.preprocessing.tokenizer import Tokenizer
from vctool.training.clips import ClipSet, TrainingClip, read_clips
from vctool.training.features import FrameData, decode_pool, frame_cache, prepare_frames
from vctool.training.precision import choose_precision
from vctool.training.texts import TextData, prepare_texts
from vctool.training.validation import Queries, choose_queries, parse_best, validate
from vctool.video.clip import VideoInput

CPU = choose_precision("fp32", torch.device("cpu"))


def clip_set(*clips: tuple[tuple[int, ...], tuple[int, ...]]) -> ClipSet:
    made = tuple(TrainingClip(VideoInput(str(i), Path(f"{i}.mp4")), a, b, None) for i, (a, b) in enumerate(clips))
    return ClipSet(Path("v.jsonl"), made, tuple(f"text {i}" for i in range(20)), "", 0)


def test_a_caption_shared_by_clips_has_several_right_answers() -> None:
    queries = choose_queries(clip_set(((0, 1), ()), ((1, 2), ())), captions=0)
    assert [queries.texts[t] for t in queries.text_Q] == ["text 0", "text 1", "text 1", "text 2"]
    assert queries.relevant == [{0}, {0, 1}, {0, 1}, {1}]


def test_the_first_captions_are_asked_and_only_their_texts_are_encoded() -> None:
    queries = choose_queries(clip_set(((0, 1), ()), ((2, 3), ())), captions=1)
    assert queries.texts == ("text 0", "text 2") and len(queries.pair_P) == 0


def test_pairs_need_captions_of_both_directions() -> None:
    queries = choose_queries(clip_set(((0,), (1,)), ((2,), ()), ((3,), (3,)), ((), (4,))), captions=1)
    assert queries.pair_P.tolist() == [0]
    assert [queries.texts[queries.forward_P[0]], queries.texts[queries.backward_P[0]]] == ["text 0", "text 1"]


def test_a_split_of_reversed_captions_alone_is_no_validation() -> None:
    with pytest.raises(UsageProblem, match="no validation clip has a caption"):
        choose_queries(clip_set(((), (1,))), captions=1)


def test_the_best_metric_is_named_or_automatic() -> None:
    assert parse_best("auto", "fv", True) == ["fv/R@1", "fv/reversal_accuracy"] and parse_best("auto", "f", False) == ["f/R@1"]
    assert parse_best("v/nDCG@10 + f/R@5", "fv", False) == ["v/nDCG@10", "f/R@5"]
    for wrong in ("R@1", "fv/MdR", "fv/reversal_accuracy"):
        with pytest.raises(UsageProblem, match="there is no metric"):
            parse_best(wrong, "fv", False)


def prepared(splits: Splits, tmp_path: Path, model: torch.nn.Module) -> tuple[FrameData, TextData, Queries]:
    split = read_clips(splits.validation)
    queries = choose_queries(split, 0)
    store = frame_cache(model, tmp_path, frozen=True, precision=CPU, decoder="pyav")  # type: ignore[arg-type]
    with decode_pool(model, 0, "pyav") as decode:  # type: ignore[arg-type]
        frames = prepare_frames(model, store, [c.input for c in split.clips], decode, frozen=True, precision=CPU)  # type: ignore[arg-type]
    model.backbone.write_tokenizer(tmp_path)  # type: ignore[union-attr, operator]
    texts = prepare_texts(model, Tokenizer.load(tmp_path), queries.texts, tmp_path, frozen=True, precision=CPU)  # type: ignore[arg-type]
    return frames, texts, queries


def test_the_numbers_are_those_of_scoring_everything_at_once(splits: Splits, tmp_path: Path) -> None:
    model = toy_model(toy_config()).eval()
    frames, texts, queries = prepared(splits, tmp_path, model)
    maps, mask = frames.take(np.arange(len(frames.rows)))
    text = texts.take(queries.text_Q)
    assert text.state_BLW is not None
    with torch.no_grad():
        query = model.query_from_states(text.state_BLW.float(), text.input_ids_BL, text.attention_mask_BL)
        scores = model.score(query, model.encode_maps(maps.float(), mask))
    for batch in (2, 64):
        found = validate(model, frames, texts, queries, CPU, batch=batch)
        for name, score in (("f", scores.frame_BC), ("v", scores.video_BC), ("fv", scores.total_BC)):
            assert score is not None
            wanted = evaluate_ranking(score.numpy(), queries.relevant).values()
            assert {k: found[f"{name}/{k}"] for k in wanted} == pytest.approx(wanted)


def test_a_model_without_a_sense_of_time_hears_no_direction(splits: Splits, tmp_path: Path) -> None:
    config = toy_config()
    blind = toy_model(toy_config(temporal=type(config.temporal)(kind="none")))
    found = validate(blind, *prepared(splits, tmp_path, blind), CPU)
    assert {found[f"{b}/reversal_accuracy"] for b in ("f", "v", "fv")} == {50.0}


def test_validation_leaves_the_model_in_training_mode_and_its_random_state_alone(splits: Splits, tmp_path: Path) -> None:
    model = toy_model(toy_config()).train()
    inputs = prepared(splits, tmp_path, model)
    before = torch.get_rng_state()
    validate(model, *inputs, CPU)
    assert model.training and torch.equal(before, torch.get_rng_state())
