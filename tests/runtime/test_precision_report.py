"""What `vctool info --measure` reports: checked against a plain float64 reckoning, and for what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.errors import InputError, StoreError
from vctool.precision import PRECISIONS
from vctool.runtime.precision_report import measure_precisions
from vctool.store import ClipTokens, StoreWriter, open_store

D = 64


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def make_store(path: Path, dtype: Any, clips: int = 150, seed: int = 0, width: int = D) -> Path:
    generator = np.random.default_rng(seed)
    with StoreWriter(path, manifest={"dim": width, "model": {"interaction": "fv"}}, dtype=dtype) as writer:
        for i in range(clips):
            scene = unit(generator.standard_normal(width))
            frames, video = (unit(scene + 0.4 * unit(generator.standard_normal((n, width)))) for n in (1 + i % 4, 5))
            writer.add(ClipTokens(f"clip {i}", "", frames, np.zeros(len(frames)), video, np.zeros(5)))
        writer.commit()
    return path


def reckoned(reference: Any, store: Any, queries: list[np.ndarray]) -> dict[str, float]:
    """The oracle: float64, clip by clip, from what the stores give back."""

    def all_scores(opened: Any) -> np.ndarray:
        rows = []
        for i in range(len(opened)):
            clip = opened.clip(i)
            parts = [query.astype(np.float64) @ tokens.T for query in queries for tokens in (clip.frame_FD, clip.video_VD)]
            best = [part.max(axis=1).mean() for part in parts]
            rows.append(np.array(best).reshape(len(queries), 2).sum(axis=1))
        return np.array(rows).T

    exact, found = all_scores(reference), all_scores(store)
    ten = [(set(np.argsort(-e)[:10]), set(np.argsort(-f)[:10])) for e, f in zip(exact, found, strict=True)]
    return {
        "recall_1": float(np.mean(exact.argmax(axis=1) == found.argmax(axis=1))),
        "recall_10": float(np.mean([len(a & b) / 10 for a, b in ten])),
        "error": float(np.abs(exact - found).max()),
    }


@pytest.mark.parametrize("dtype", ["int8", "int4", "compact"])
def test_a_store_is_compared_with_the_one_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setenv("VCTOOL_KERNEL", "numpy")  # the query is not rounded
    fine, coarse = (open_store(make_store(tmp_path / f"{name}.npz", name)) for name in ("float16", dtype))
    queries = [unit(np.random.default_rng(i).standard_normal((6, D))) for i in range(12)]
    report = measure_precisions(coarse, "fv", against=fine, queries=queries)
    (row,) = [row for row in report.rows if row.stored]
    expected = reckoned(fine, coarse, queries)
    assert (row.precision, report.reference, report.made_up, report.clips) == (dtype, "float16", False, 150)
    assert row.recall_1 == pytest.approx(expected["recall_1"], abs=1e-4)
    assert row.recall_10 == pytest.approx(expected["recall_10"], abs=1e-4)
    assert row.error == pytest.approx(expected["error"], rel=0.02, abs=1e-6)
    made_anew = {r.precision: r for r in report.rows if not r.stored}
    assert dtype not in made_anew and set(made_anew) | {dtype} == set(PRECISIONS)


def test_coarser_precisions_cost_less_and_find_less(tmp_path: Path) -> None:
    report = measure_precisions(open_store(make_store(tmp_path / "a.npz", "float16")), "fv", count=40)
    assert [row.precision for row in report.rows] == list(PRECISIONS)
    assert [row.stored for row in report.rows] == [True, False, False, False]
    sizes, errors, depths = ([getattr(row, name) for row in report.rows] for name in ("clip_bytes", "error", "depth"))
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors) and depths == sorted(depths)
    assert report.rows[0].recall_10 == 1 and report.rows[0].depth == 10 and report.rows[-1].recall_10 < 1


def test_what_is_finer_than_the_store_is_not_offered(tmp_path: Path) -> None:
    report = measure_precisions(open_store(make_store(tmp_path / "a.npz", "int4")), "f", count=5)
    assert [row.precision for row in report.rows] == ["int4", "compact"] and report.reference == "int4"


def test_the_same_seed_gives_the_same_report_and_another_another(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "a.npz", "int8", clips=400))
    first, again, other = (measure_precisions(store, "fv", clips=130, count=9, seed=seed) for seed in (1, 1, 2))
    assert first == again and first.clips == 128 and first.of == 400 and first.rows != other.rows


def test_clips_without_tokens_take_no_part_and_a_store_without_any_is_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "a.npz", manifest={"dim": D}, dtype="int8") as writer:
        for i in range(20):
            video = unit(np.random.default_rng(i).standard_normal((3, D)))
            writer.add(ClipTokens(str(i), "", np.zeros((0, D), np.float32), np.zeros(0), video, np.zeros(3)))
        writer.commit()
    store = open_store(tmp_path / "a.npz")
    assert measure_precisions(store, "v", count=5).rows[0].recall_10 > 0.9
    with pytest.raises(InputError, match="no clip has frame tokens"):
        measure_precisions(store, "f", count=5)
    with StoreWriter(tmp_path / "b.npz", manifest={"dim": D}, dtype="int8") as writer:
        writer.commit()
    with pytest.raises(InputError, match="holds no clip"):
        measure_precisions(open_store(tmp_path / "b.npz"), "f", count=5)


def test_stores_of_other_clips_or_widths_are_refused(tmp_path: Path) -> None:
    store, wider = open_store(make_store(tmp_path / "a.npz", "int8", 20)), open_store(make_store(tmp_path / "b.npz", "int8", 20, width=65))
    fewer = open_store(make_store(tmp_path / "c.npz", "int8", 10))
    with pytest.raises(StoreError, match="tokens 64 wide"):
        measure_precisions(store, "fv", against=wider)
    with pytest.raises(StoreError, match="no clip 'clip 1"):
        measure_precisions(store, "fv", against=fewer)
