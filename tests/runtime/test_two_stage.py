"""Two-stage search against float64: it finds what an exact search finds, with the same scores, or says that it searched exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.errors import InputError, StoreError, UsageProblem
from vctool.runtime import search as search_module
from vctool.runtime.allowed import allowed_clips
from vctool.runtime.graph_scorer import GraphScorer
from vctool.runtime.search import search, search_all
from vctool.runtime.two_stage import estimates, rerank
from vctool.scoring import batch_scores, chosen_scores
from vctool.store import ShardedStore, StoreWriter, TokenRows, TokenStore, open_store
from vctool.store.shards import describe_shard, folder_manifest

CLIPS, D, F, Q = 3000, 64, 8, 12
MANIFEST = {"model": {"name": "m", "interaction": "fv"}}


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


class World:
    """A store of clips with one to four scenes each, and queries about single frames of some of them."""

    def __init__(self, folder: Path) -> None:
        generator = np.random.default_rng(11)
        centre = generator.standard_normal((CLIPS, 1, D))
        scene = centre + 0.8 * generator.standard_normal((CLIPS, 4, D))
        shown = np.arange(F) * generator.integers(1, 5, (CLIPS, 1)) // F
        base = unit(np.take_along_axis(scene, shown[:, :, None], axis=1) + generator.standard_normal(D))
        self.frame = unit(base + 0.03 * generator.standard_normal((CLIPS, F, D)))
        self.video = unit(base + 0.03 * generator.standard_normal((CLIPS, F, D)))
        self.path = folder / "world.npz"
        times = np.tile(np.arange(F, dtype=np.float32), (CLIPS, 1))
        with StoreWriter(self.path, manifest=MANIFEST, dtype="int8") as writer:
            metas = [{"duration": i % 100, "tag": "even" if i % 2 == 0 else "odd"} for i in range(CLIPS)]
            rows = [TokenRows.of(tokens, None, times) for tokens in (self.frame, self.video)]
            writer.add_many([f"clip {i}" for i in range(CLIPS)], *rows, metas=metas)
            writer.commit()
        about = self.frame[generator.integers(0, CLIPS, 20), generator.integers(0, F, 20)]
        self.queries = unit(0.6 * about[:, None] + unit(generator.standard_normal((20, Q, D))))

    def exact(self, query_QD: np.ndarray) -> np.ndarray:
        """float64 [N], by the definition."""
        query = query_QD.astype(np.float64)
        parts = [
            (tokens.reshape(-1, D).astype(np.float64) @ query.T).reshape(CLIPS, F, Q).max(axis=1) for tokens in (self.frame, self.video)
        ]
        return np.asarray((parts[0] + parts[1]).mean(axis=1))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def store(world: World) -> TokenStore:
    return TokenStore(world.path)


def test_it_finds_the_best_ten_by_float64_and_scores_few(world: World, store: TokenStore) -> None:
    results = search_all(world.queries, store, exact=False)
    recall, first = [], []
    for query, result in zip(world.queries, results, strict=True):
        right = np.argsort(-world.exact(query))[:10]
        recall.append(len({hit.index for hit in result.hits} & set(right.tolist())) / 10)
        first.append(result.hits[0].index == right[0])
        assert result.mode == "two-stage" and result.candidates < CLIPS / 4
    assert np.mean(recall) >= 0.98 and np.mean(first) >= 0.95


def test_its_scores_are_the_exact_ones_to_the_bit(world: World, store: TokenStore) -> None:
    exact = {hit.index: hit.score for hit in search(world.queries[0], store, k=CLIPS, exact=True).hits}
    for hit in search(world.queries[0], store, exact=False).hits:
        assert hit.score == exact[hit.index] and hit.score == pytest.approx(world.exact(world.queries[0])[hit.index], abs=0.01)


def test_a_graph_reranks_as_the_kernel_does(world: World, store: TokenStore) -> None:
    staged = search(world.queries[0], store, exact=False, scorer=GraphScorer("cpu"))
    usual = search(world.queries[0], store, exact=False)
    assert staged.mode == "two-stage" and [h.index for h in staged.hits] == [h.index for h in usual.hits]
    assert [h.score for h in staged.hits] == pytest.approx([h.score for h in usual.hits], abs=0.005)


@pytest.mark.parametrize("branch", ["f", "v"])
def test_one_branch_alone(world: World, store: TokenStore, branch: Any) -> None:
    staged, exact = (search(world.queries[1], store, branch=branch, exact=how).hits for how in (False, True))
    assert [h.index for h in staged][:5] == [h.index for h in exact][:5]
    assert staged[0].score == exact[0].score and (staged[0].video_score is None) == (branch == "f")


def test_small_stores_are_searched_exactly_and_large_ones_in_two_stages(
    world: World, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert search_module.TWO_STAGE_FROM > CLIPS
    assert search(world.queries[0], store).to_json()["search"] == {"mode": "exact", "candidates": CLIPS}
    monkeypatch.setattr(search_module, "TWO_STAGE_FROM", CLIPS)
    found = search(world.queries[0], store).to_json()["search"]
    assert found["mode"] == "two-stage" and 10 <= found["candidates"] < CLIPS
    assert search(world.queries[0], store, exact=True).mode == "exact"


def test_the_number_of_candidates_can_be_given(world: World, store: TokenStore) -> None:
    assert search(world.queries[0], store, candidates=37).candidates == 37
    assert search(world.queries[0], store, candidates=10 * CLIPS).candidates == CLIPS
    with pytest.raises(UsageProblem, match="an exact search compares every clip"):
        search(world.queries[0], store, candidates=10, exact=True)


def test_many_queries_get_the_answers_they_get_alone(world: World, store: TokenStore) -> None:
    together = search_all(world.queries[:5], store, exact=False)
    for query, result in zip(world.queries, together, strict=False):
        alone = search(query, store, exact=False)
        assert [(h.index, h.score) for h in alone.hits] == [(h.index, h.score) for h in result.hits]


def test_vectors_that_tell_nothing_lead_to_an_exact_search(tmp_path: Path) -> None:
    """Every clip is a bag of unrelated tokens: no mean stands for them."""
    generator = np.random.default_rng(5)
    with StoreWriter(tmp_path / "noise.npz", manifest=MANIFEST, dtype="int8") as writer:
        writer.add_many([str(i) for i in range(300)], TokenRows.of(unit(generator.standard_normal((300, 40, D)))))
        writer.commit()
    result = search(unit(generator.standard_normal((Q, D))), tmp_path / "noise.npz", branch="f", exact=False)
    assert (result.mode, result.candidates) == ("exact", 300)


def test_a_store_without_pooled_vectors_is_searched_exactly_and_says_so(world: World, tmp_path: Path) -> None:
    with np.load(world.path, allow_pickle=False) as arrays:
        np.savez(tmp_path / "old.npz", **{name: arrays[name] for name in arrays.files if not name.startswith("pooled")})
    result = search(world.queries[0], tmp_path / "old.npz", exact=False)
    assert (result.mode, result.candidates) == ("exact", CLIPS)
    assert "has no pooled vectors" in result.notes[0] and result.to_json()["search"]["notes"] == list(result.notes)
    assert search(world.queries[0], tmp_path / "old.npz").notes == ()


def test_estimates_are_twice_the_best_pooled_vector_per_token(world: World, store: TokenStore) -> None:
    assert store.pooled is not None
    values = store.pooled.vector_PD.astype(np.float64) * store.pooled.scale_P[:, None]
    edges = store.pooled.offsets
    (estimate_N,) = estimates([world.queries[0]], store, "fv")
    for clip in (0, 7, CLIPS - 1):
        maxima = (world.queries[0].astype(np.float64) @ values[edges[clip] : edges[clip + 1]].T).max(axis=1)
        assert estimate_N[clip] == pytest.approx(2 * maxima.mean(), abs=0.01)  # the kernel rounds the query to int8


def test_the_depth_grows_with_the_hits(world: World, store: TokenStore) -> None:
    (estimate_N,) = estimates([world.queries[0]], store, "fv")
    depths = []
    for hits in (1, 10, 100):
        found = rerank(world.queries[0], store, "fv", estimate_N, hits, batch_scores)
        depths.append(CLIPS if found is None else len(found.clip))
    assert depths == sorted(depths) and depths[0] < depths[-1]


# --- chosen clips ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(world: World, store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> ShardedStore:
    """The same clips in three shards."""
    path = tmp_path_factory.mktemp("shards")
    for number, (start, stop) in enumerate([(0, 1000), (1000, 1001), (1001, CLIPS)]):
        with StoreWriter(path / f"s{number}.npz", manifest=MANIFEST, dtype="int8") as writer:
            writer.add_range(store, start, stop)
            writer.commit()
    entries = [describe_shard(path / f"s{number}.npz") for number in range(3)]
    (path / "manifest.json").write_bytes(folder_manifest(TokenStore(path / "s0.npz").manifest, entries, 1))
    opened = open_store(path)
    assert isinstance(opened, ShardedStore)
    return opened


@pytest.mark.parametrize("count", [0, 1, 50, 2500])
def test_chosen_clips_have_the_bits_of_a_whole_scan(world: World, store: TokenStore, folder: ShardedStore, count: int) -> None:
    clips = np.sort(np.random.default_rng(count).choice(CLIPS, count, replace=False))
    whole = batch_scores([world.queries[0], world.queries[1]], store, "fv")
    for source in (store, folder):
        for all_BN, some_BC in zip(whole, chosen_scores([world.queries[0], world.queries[1]], source, "fv", clips), strict=True):
            assert np.array_equal(all_BN[:, clips], some_BC)


@pytest.mark.parametrize("dtype", ["float16", "int4", "compact"])
def test_chosen_clips_of_any_precision_have_the_bits_of_a_whole_scan(world: World, tmp_path: Path, dtype: Any) -> None:
    with StoreWriter(tmp_path / "s.npz", manifest=MANIFEST, dtype=dtype) as writer:
        rows = [TokenRows.of(tokens[:300]) for tokens in (world.frame, world.video)]
        writer.add_many([str(i) for i in range(300)], *rows)
        writer.commit()
    opened, clips = TokenStore(tmp_path / "s.npz"), np.array([0, 3, 4, 250, 299])
    assert opened.dtype == dtype
    for all_BN, some_BC in zip(batch_scores(world.queries[:1], opened), chosen_scores(world.queries[:1], opened, "fv", clips), strict=True):
        assert np.array_equal(all_BN[:, clips], some_BC)
    best = search(world.queries[0], opened, exact=True).hits[0]
    staged = search(world.queries[0], opened, candidates=50)
    assert staged.hits[0].id == best.id
    assert staged.notes == () if dtype != "compact" else "compact stores keep none" in staged.notes[0]  # and it was searched exactly


def test_shards_are_searched_as_one_store(world: World, store: TokenStore, folder: ShardedStore) -> None:
    for how in (True, False):
        one, many = (search(world.queries[2], source, exact=how) for source in (store, folder))
        assert [(h.index, h.id, h.score) for h in one.hits] == [(h.index, h.id, h.score) for h in many.hits]
        assert one.candidates == many.candidates


def test_a_clip_with_broken_tokens_is_named_by_its_place_in_the_store(world: World, tmp_path: Path) -> None:
    with np.load(world.path, allow_pickle=False) as arrays:
        members = {name: arrays[name].copy() for name in arrays.files}
    members["frame_scale_T"][2000 * F + 3] = np.nan
    np.savez(tmp_path / "bad.npz", **members)
    bad = TokenStore(tmp_path / "bad.npz")
    with pytest.raises(InputError, match="clip 2000: its tokens are not finite"):
        chosen_scores([world.queries[0]], bad, "fv", np.array([5, 2000, 2001]))


# --- what is asked for -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_only_clips_that_pass_are_found_and_all_of_them_are_looked_at(world: World, store: TokenStore, exact: bool) -> None:
    where = 'duration < 50 and tag = "even"'
    passing = [i for i in range(CLIPS) if i % 100 < 50 and i % 2 == 0]
    result = search(world.queries[3], store, where=where, exact=exact)
    assert result.allowed == len(passing) == 750
    right = [i for i in np.argsort(-world.exact(world.queries[3])) if i in set(passing)][:10]
    assert len({hit.index for hit in result.hits} & {int(i) for i in right}) >= 9
    assert (result.candidates == 750) == exact


def test_pages_are_pieces_of_one_ranking(world: World, store: TokenStore) -> None:
    whole = search(world.queries[4], store, k=30).hits
    pages = [hit for offset in (0, 10, 20) for hit in search(world.queries[4], store, k=10, offset=offset).hits]
    assert [(h.rank, h.id, h.score) for h in pages] == [(h.rank, h.id, h.score) for h in whole]
    assert [h.rank for h in whole] == list(range(1, 31))
    assert search(world.queries[4], store, offset=CLIPS).hits == []
    assert len(search(world.queries[4], store, k=60, where="duration = 7 and id like '%7'").hits) == 30  # k above what there is


def test_the_least_score_cuts_the_hits(world: World, store: TokenStore) -> None:
    hits = search(world.queries[5], store, k=10).hits
    least = (hits[3].score + hits[4].score) / 2
    assert [h.id for h in search(world.queries[5], store, k=10, min_score=least).hits] == [h.id for h in hits[:4]]
    assert search(world.queries[5], store, min_score=2.5).hits == []


def test_a_list_of_ids_limits_the_search_and_unknown_ones_are_told(world: World, store: TokenStore) -> None:
    result = search(world.queries[6], store, ids=["clip 5", "clip 9", "clip 5", "clip 99999"])
    assert {hit.id for hit in result.hits} == {"clip 5", "clip 9"} and result.allowed == 2
    assert "1 of 3 ids are not in the store: 'clip 99999'" in result.notes[0] and "did you mean" in result.notes[0]
    with pytest.raises(InputError, match="has none of the 2 ids"):
        search(world.queries[6], store, ids=["x", "y"])
    with pytest.raises(InputError, match="the list of ids is empty"):
        search(world.queries[6], store, ids=[])
    both = search(world.queries[6], store, ids=["clip 5", "clip 9", "clip 8"], where='tag = "even"')
    assert [hit.id for hit in both.hits] == ["clip 8"]


def test_a_key_that_no_clip_has_is_told_with_its_like(store: TokenStore) -> None:
    assert allowed_clips(store, "durations < 5").notes == ("no clip has 'durations' in its metadata; did you mean duration?",)
    assert allowed_clips(store, "zzz = 1 or tag = 'even'").notes[0].startswith("no clip has 'zzz' in its metadata; there are duration, id")
    assert allowed_clips(store, "tag = 'nobody'").notes == ()


def test_id_and_path_are_keys(store: TokenStore, folder: ShardedStore) -> None:
    for source in (store, folder):
        allowed = allowed_clips(source, 'id like "clip 1_" and path = ""')
        assert allowed.clip_N is not None and np.flatnonzero(allowed.clip_N).tolist() == list(range(10, 20))


def test_a_filter_that_nothing_passes_has_no_hits(world: World, store: TokenStore) -> None:
    result = search(world.queries[0], store, where="duration > 1000")
    assert (result.hits, result.allowed, result.candidates) == ([], 0, 0)


@pytest.mark.parametrize(
    "settings", [{"k": 0}, {"offset": -1}, {"min_score": float("nan")}, {"candidates": 0}, {"where": "duration <"}, {"where": ""}]
)
def test_impossible_requests_are_refused(world: World, store: TokenStore, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        search(world.queries[0], store, **settings)


def test_arrays_are_queries(world: World, store: TokenStore) -> None:
    one, (same, *_) = search(world.queries[0] * 3, store), search_all(world.queries, store)
    assert [h.index for h in one.hits] == [h.index for h in same.hits]
    with pytest.raises(UsageProblem, match="use search_all"):
        search(world.queries, store)
    with pytest.raises(StoreError, match=f"holds tokens {D} wide, the query's are 5"):
        search(np.eye(5), store)


def test_a_store_that_is_replaced_while_it_is_searched_answers_as_it_was(world: World, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    for number, first in ((0, 0), (1, 100)):
        with StoreWriter(path, manifest=MANIFEST, dtype="int8") as writer:
            writer.add_range(TokenStore(world.path), first, first + 100)
            writer.commit()
        if number == 0:
            opened = TokenStore(path)
            before = search(world.queries[0], opened, k=3, exact=False)
    after = search(world.queries[0], opened, k=3, exact=False, where="duration >= 0")
    assert [(h.id, h.score) for h in after.hits] == [(h.id, h.score) for h in before.hits]
    assert {h.id for h in search(world.queries[0], path, k=100).hits} == {f"clip {i}" for i in range(100, 200)}
