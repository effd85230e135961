"""Search: the order, the refusals, and evidence that adds up to the score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodel import DIM, build_tiny_model

import vctool
from vctool.errors import InputError, StoreError, UsageProblem
from vctool.preprocessing.tokenizer import Word
from vctool.runtime.encoder import QueryTokens
from vctool.runtime.evidence import explain
from vctool.runtime.indexing import index_videos
from vctool.runtime.model import load_model
from vctool.runtime.moments import clip_span
from vctool.runtime.search import best, default_branch, find_model, search, search_all
from vctool.scoring import batch_scores
from vctool.store import ClipTokens, StoreWriter, TokenStore, open_store


@pytest.fixture(scope="module")
def index(tiny_model: Path, tiny_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("index") / "clips.npz"
    index_videos([tiny_videos], output, tiny_model, workers=0)
    return output


def unit(rng: np.random.Generator, rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    tokens = rng.normal(size=(rows, DIM))
    rows_of_length_1: np.ndarray[Any, np.dtype[np.float32]] = (tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).astype(np.float32)
    return rows_of_length_1


def random_store(path: Path, dtype: Any = "float16", clips: int = 12) -> TokenStore:
    rng = np.random.default_rng(5)
    manifest = {"model": {"name": "m", "sha256": "0" * 64, "interaction": "fv"}}
    with StoreWriter(path, manifest=manifest, dtype=dtype) as writer:
        for i in range(clips):
            times = (np.arange(4) / 2).astype(np.float32)
            video_times = np.concatenate([times, [np.nan, np.nan]]).astype(np.float32)
            writer.add(ClipTokens(f"clip {i}", f"{i}.mp4", unit(rng, 4), times, unit(rng, 6), video_times, {"duration": 2.0}))
        writer.commit()
    return open_store(path)


def random_query() -> QueryTokens:
    rng = np.random.default_rng(9)
    mask_Q = np.array([True, True, True, True, True, False, True, True])
    pad_Q = np.array([False] * 6 + [True, True])
    pieces = ["[CLS]", "dog", "fris", "##bee", "[SEP]", "x", "[PAD]", "[PAD]"]
    return QueryTokens("dog frisbee", unit(rng, 8), mask_Q, pieces, pad_Q, [Word("dog", 1, 2), Word("frisbee", 2, 4)])


def test_a_colour_finds_its_video(index: Path) -> None:
    assert search("yellow", index).hits[0].id == "sub/yellow.mp4"
    assert {h.id for h in search("red", index, k=2).hits} == {"red.mp4", "change.mp4"}


def test_the_word_points_at_its_second(index: Path) -> None:
    hit = next(h for h in search("green then red", index).hits if h.id == "change.mp4")
    seconds = {w.text: w.second for w in hit.evidence.words}
    assert seconds["red"] is not None and 0 <= seconds["red"] < 1
    assert seconds["green"] is not None and 2 <= seconds["green"] < 3
    assert hit.start == 0 and hit.end == pytest.approx(3.0)


@pytest.mark.parametrize("branch", ["f", "v", "fv"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_shares_add_up_to_the_score(tmp_path: Path, branch: Any, dtype: Any) -> None:
    store, query = random_store(tmp_path / "s.npz", dtype), random_query()
    for hit in search(query, store, branch=branch, k=12).hits:
        evidence = hit.evidence
        assert sum(t.share for t in evidence.tokens) == pytest.approx(hit.score, abs=1e-5)  # as exact as the kernels are
        told = sum(w.share for w in evidence.words) + evidence.pad_share + evidence.special_share
        assert told == pytest.approx(hit.score, abs=1e-5)
        parts = [s for s in (hit.frame_score, hit.video_score) if s is not None]
        assert sum(parts) == pytest.approx(hit.score, abs=2e-7) and len(parts) == len(branch)


@pytest.mark.parametrize("branch", ["f", "v", "fv"])
def test_evidence_equals_a_plain_loop(tmp_path: Path, branch: Any) -> None:
    store, query = random_store(tmp_path / "s.npz"), random_query()
    evidence, clip = explain(query, store, 3, branch), store.clip(3)
    counted = [i for i in range(8) if query.mask_Q[i]]
    assert [t.token for t in evidence.tokens] == counted
    for token in evidence.tokens:
        share = 0.0
        if "f" in branch:
            cosines = [float(np.dot(query.query_QD[token.token].astype(float), f.astype(float))) for f in clip.frame_FD]
            assert token.frame_second == clip.frame_time_F[int(np.argmax(cosines))]
            share += max(cosines) / len(counted)
        if "v" in branch:
            cosines = [float(np.dot(query.query_QD[token.token].astype(float), v.astype(float))) for v in clip.video_VD]
            time = clip.video_time_V[int(np.argmax(cosines))]
            assert token.video_global == bool(np.isnan(time))
            assert token.video_second == (None if np.isnan(time) else time)
            share += max(cosines) / len(counted)
        assert token.share == pytest.approx(share, abs=1e-6)
    words = [i for i in counted if 1 <= i < 4]
    curve = np.zeros(4)
    if "f" in branch:
        curve += np.mean([clip.frame_FD.astype(float) @ query.query_QD[i] for i in words], axis=0)
    if "v" in branch:
        curve += np.mean([clip.video_VD[:4].astype(float) @ query.query_QD[i] for i in words], axis=0)
    assert evidence.best_second == clip.frame_time_F[int(np.argmax(curve))]


def test_word_pieces_are_shown_as_one_word_with_their_shares_together(tmp_path: Path) -> None:
    evidence = explain(random_query(), random_store(tmp_path / "s.npz"), 0, "fv")
    by_token = {t.token: t for t in evidence.tokens}
    assert [w.text for w in evidence.words] == ["dog", "frisbee"]
    assert evidence.words[1].share == pytest.approx(by_token[2].share + by_token[3].share)
    assert evidence.words[1].second == max((by_token[2], by_token[3]), key=lambda t: t.share).second
    assert evidence.pad_share == pytest.approx(by_token[6].share + by_token[7].share)
    assert evidence.special_share == pytest.approx(by_token[0].share + by_token[4].share)


def test_many_queries_get_the_answers_they_get_alone(index: Path) -> None:
    model = load_model(find_model(open_store(index)))
    texts = ["red", "blue then green", "a yellow video"]
    together = search_all(texts, index, model)
    assert [r.to_json() for r in together] == [search(t, index, model).to_json() for t in texts]


def test_best_takes_ties_in_store_order_and_no_clip_without_tokens() -> None:
    scores = np.array([0.5, -np.inf, 0.7, 0.5, 0.5, -1], np.float32)
    assert best(scores, 3) == [2, 0, 3]
    assert best(scores, 99) == [2, 0, 3, 4, 5]
    assert best(np.array([-np.inf], np.float32), 3) == []


def test_best_equals_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 8, 30).astype(np.float32)
        k = int(rng.integers(1, 35))
        assert best(scores, k) == sorted(range(30), key=lambda i: (-scores[i], i))[:k]


def test_the_json_form_is_plain_and_documented(index: Path) -> None:
    result = json.loads(json.dumps(search("red video", index, k=2).to_json(), allow_nan=False))
    assert result["schema"] == 1 and result["query"] == "red video" and result["branch"] == "fv"
    assert result["search"] == {"mode": "exact", "candidates": 4}
    assert result["tokens"][1] == {"text": "red", "pad": False, "counted": True}
    assert [h["rank"] for h in result["hits"]] == [1, 2]
    keys = {"rank", "id", "path", "score", "frame_score", "video_score", "start", "end", "best_second", "moment", "words"}
    assert keys | {"pad_share", "special_share", "evidence"} == set(result["hits"][0])
    assert {"token", "text", "pad", "share", "second"} <= set(result["hits"][0]["evidence"][0])
    assert Path(result["hits"][0]["path"]).is_file()


def test_a_store_of_another_model_is_refused_with_both_fingerprints(index: Path, tmp_path: Path) -> None:
    other = load_model(build_tiny_model(tmp_path / "other", name="other"))
    store = open_store(index)
    with pytest.raises(StoreError) as caught:
        search("red", store, other)
    assert store.manifest["model"]["sha256"][:16] in str(caught.value) and other.directory.fingerprint[:16] in str(caught.value)


def test_tokens_of_another_width_are_refused(index: Path) -> None:
    with pytest.raises(StoreError, match="8 wide, the query's are 4"):
        search(QueryTokens.from_array(np.eye(4), "q.npy"), index)


def test_tokens_need_no_model(index: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(index, tmp_path / "alone.npz"))
    query = load_model(find_model(open_store(index))).encode("yellow")
    counted = QueryTokens.from_array(query.query_QD[query.mask_Q], "q.npy")
    assert search(counted, moved).hits[0].id == "sub/yellow.mp4"


def test_the_model_is_found_when_store_and_model_move_together(tiny_model: Path, tiny_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    shutil.copytree(tiny_model, tmp_path / "a" / "model")
    index_videos([tiny_videos / "red.mp4"], tmp_path / "a" / "clips.npz", tmp_path / "a" / "model", workers=0)
    (tmp_path / "a").rename(tmp_path / "b")
    assert find_model(open_store(tmp_path / "b" / "clips.npz")).resolve() == (tmp_path / "b" / "model").resolve()


def test_the_model_is_found_when_the_store_alone_moves(index: Path, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    moved = Path(shutil.copy(index, tmp_path / "x" / "y" / "clips.npz"))
    assert find_model(open_store(moved)) == tiny_model.resolve()


def test_a_lost_model_is_one_clear_line(tmp_path: Path, tiny_videos: Path) -> None:
    model = build_tiny_model(tmp_path / "model")
    index_videos([tiny_videos / "red.mp4"], tmp_path / "clips.npz", model, workers=0)
    shutil.rmtree(model)
    with pytest.raises(StoreError, match=r"was made with model 'tiny' .* no longer in") as caught:
        search("red", tmp_path / "clips.npz")
    assert caught.value.hint == "say where that model is with --model DIR"


def test_the_branch_is_the_models_own_unless_asked(tmp_path: Path, tiny_videos: Path, index: Path) -> None:
    model = build_tiny_model(tmp_path / "m", policy="pooled", temporal="mean", interaction="f")
    index_videos([tiny_videos], tmp_path / "c.npz", model, workers=0)
    assert default_branch(open_store(tmp_path / "c.npz")) == "f"
    result = search("yellow", tmp_path / "c.npz")
    assert result.branch == "f" and result.hits[0].id == "sub/yellow.mp4" and result.hits[0].video_score is None
    mean = search("yellow", tmp_path / "c.npz", branch="v").hits[0]
    assert mean.evidence.best_second is None and mean.evidence.words[0].second is None
    assert search("yellow", index).branch == "fv"
    assert result.to_json()["search"]["query_policy"] == "pooled"
    assert "query_policy" not in search("yellow", index).to_json()["search"]


def test_an_empty_store_has_no_hits(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "e.npz", manifest={"model": {"interaction": "fv"}, "dim": DIM}) as writer:
        writer.commit()
    assert search(random_query(), tmp_path / "e.npz").hits == []


def test_impossible_requests_are_refused(index: Path) -> None:
    with pytest.raises(UsageProblem):
        search("red", index, k=0)
    with pytest.raises(InputError, match="the query is empty"):
        search(" ", index)


@pytest.mark.parametrize(
    ("meta", "span"),
    [
        ({}, (0.0, None)),
        ({"duration": 4}, (0.0, 4.0)),
        ({"start": 1.5, "end": 2, "duration": 9}, (1.5, 2.0)),
        ({"end": "x", "start": True}, (0, None)),
    ],
)
def test_a_clip_is_its_piece_or_the_whole_file(meta: dict[str, Any], span: tuple[float, float | None]) -> None:
    assert clip_span(meta) == span


def test_the_python_names_do_the_same(index: Path) -> None:
    model, store = vctool.load_model(find_model(open_store(index))), vctool.open_store(index)
    query = model.encode("red")
    result = vctool.search("red", store, model, k=2)
    scores = vctool.mean_max_sim(query, store, branch="fv")
    assert result.hits[0].score == float(scores[result.hits[0].index])
    (shard,) = store.shards
    plain = vctool.mean_max_sim(query.query_QD[query.mask_Q], shard.decoded("frame", 0, len(store)), shard.frame_offsets)
    assert np.allclose(plain, vctool.mean_max_sim(query, store, branch="f"), atol=0.01)  # an int8 store has the query rounded too
    assert set(vctool.__all__) <= set(dir(vctool))
    with pytest.raises(AttributeError):
        vctool.nothing  # noqa: B018


def test_a_search_takes_its_scores_from_the_scorer_it_is_given(tmp_path: Path) -> None:
    store, query = random_store(tmp_path / "s.npz"), random_query()

    def backwards(queries: Any, store: Any, branch: Any = "fv", /) -> Any:
        return tuple(-part_BN for part_BN in batch_scores(queries, store, branch))

    usual, turned = search(query, store, k=12), search(query, store, k=12, scorer=backwards)
    assert [h.id for h in turned.hits] == [h.id for h in usual.hits][::-1]
    assert [h.score for h in turned.hits] == [-h.score for h in usual.hits][::-1]
