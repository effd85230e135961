"""Verification: what it finds, what it lets pass, and what it never calls ok. No torch: the answers are made by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vctool.errors import ModelError
from vctool_export.probe import Probe
from vctool_export.reference import Bank, ProbeScores, Reference
from vctool_export.verdict import LIMITS, CannotRunHereError, Check, Limits
from vctool_export.verify import batches_of, compare, probe_scores, retrieval_check, top_overlap, verify_artifact

D, S, L = 16, 4, 6
Array = np.ndarray[Any, Any]


def unit(x: Array) -> Array:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


class Toy:
    """Three graphs in numpy: words are rows of a table, frames are projected pixels, video tokens the frames and their mean."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.words = unit(rng.normal(size=(50, D)))
        self.project = rng.normal(size=(S * S * 3, D)).astype(np.float32) / 255

    def text(self, feeds: Mapping[str, Array]) -> list[Array]:
        return [self.words[feeds["input_ids"]], feeds["attention_mask"] > 0]

    def frame(self, feeds: Mapping[str, Array]) -> list[Array]:
        return [feeds["frames"].reshape(len(feeds["frames"]), -1).astype(np.float32) @ self.project]

    def temporal(self, feeds: Mapping[str, Array]) -> list[Array]:
        mask = feeds["frame_mask"][..., None]
        mean = (feeds["frame_features"] * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True)
        mask_BV = np.concatenate([feeds["frame_mask"], np.ones_like(feeds["frame_mask"][:, :1])], axis=1)
        return [unit(np.concatenate([feeds["frame_features"], mean], axis=1)), mask_BV]


OUTPUTS = {"text": ("query_tokens", "query_mask"), "frame": ("frame_features",), "temporal": ("video_tokens", "video_mask")}


class ToySession:
    """One of the toy's graphs, with a fault if one is asked for."""

    def __init__(self, toy: Toy, name: str, fault: Callable[[str, list[Array]], list[Array]] = lambda _, out: out) -> None:
        self.graph, self.name, self.fault = getattr(toy, name), name, fault

    def run(self, outputs: tuple[str, ...], feeds: Mapping[str, Array], /) -> list[Array]:
        named = dict(zip(OUTPUTS[self.name], self.fault(self.name, self.graph(feeds)), strict=True))
        return [named[name] for name in outputs]


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="module")
def probe() -> Probe:
    rng = np.random.default_rng(1)
    clips = tuple(rng.integers(0, 256, (3, S, S, 3), dtype=np.uint8) for _ in range(12))
    ids = rng.integers(1, 50, (24, L))
    mask = np.ones((24, L), dtype=np.int64)
    mask[:, 4:] = 0
    names = tuple(f"clip {i}" for i in range(12))
    texts = tuple(f"query {i}" for i in range(24))
    return Probe(names, clips, texts, np.repeat(np.arange(12), 2), ids, mask, {"name": "toy"})


@pytest.fixture(scope="module")
def reference(toy: Toy, probe: Probe) -> Reference:
    rng = np.random.default_rng(2)
    feeds: dict[str, dict[str, Array]] = {
        "text": {"input_ids": probe.input_ids_QL[:3], "attention_mask": probe.attention_mask_QL[:3]},
        "frame": {"frames": np.stack([clip[0] for clip in probe.clips[:4]])},
        "temporal": {"frame_features": rng.normal(size=(2, 3, D)).astype(np.float32), "frame_mask": np.array([[1, 1, 1], [1, 1, 0]], bool)},
    }
    banks = []
    for name, given in feeds.items():
        answers = dict(zip(OUTPUTS[name], getattr(toy, name)(given), strict=True))
        rows = len(next(iter(given.values())))
        banks.append(Bank(name, "toy rows", tuple(f"row {i}" for i in range(rows)), given, answers))
    scores = probe_scores({name: ToySession(toy, name) for name in OUTPUTS}, probe)
    return Reference(tuple(banks), scores, {"model_sha256": "ab" * 32}, {"text": 8, "frame": 5, "temporal": 3})


def test_the_same_numbers_are_ok_at_every_level_and_batch(toy: Toy, reference: Reference, probe: Probe) -> None:
    asked: list[int] = []

    class Counting(ToySession):
        def run(self, outputs: tuple[str, ...], feeds: Mapping[str, Array], /) -> list[Array]:
            asked.append(len(next(iter(feeds.values()))))
            return super().run(outputs, feeds)

    verdict = verify_artifact(lambda name: Counting(toy, name), reference, probe=probe)
    assert verdict.status == "ok" and verdict.reason == "" and not verdict.failures
    assert {check.level for check in verdict.checks} == {"tensors", "scores", "retrieval"}
    assert {1, 2, 8, 5, 3} <= set(asked)


def test_a_single_wrong_token_fails_and_is_named(toy: Toy, reference: Reference, probe: Probe) -> None:
    def nudge(name: str, out: list[Array]) -> list[Array]:
        if name == "frame":
            out[0][-1, 0] += 0.01 * np.abs(out[0]).max()
        return out

    verdict = verify_artifact(lambda name: ToySession(toy, name, nudge), reference, probe=probe)
    assert verdict.status == "failed" and verdict.reason.startswith("tensors: frame")
    assert all(check.ok for check in verdict.checks if check.graph in ("text", "temporal"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_named(value: float, toy: Toy, reference: Reference, probe: Probe) -> None:
    def overflow(name: str, out: list[Array]) -> list[Array]:
        if name == "text":
            out[0][0, 0, 0] = value
        return out

    verdict = verify_artifact(lambda name: ToySession(toy, name, overflow), reference, precision="fp16", probe=probe)
    assert verdict.status == "failed" and "NaN or infinity" in verdict.reason


def test_another_mask_fails(toy: Toy, reference: Reference) -> None:
    verdict = verify_artifact(
        lambda name: ToySession(toy, name, lambda n, out: [out[0], ~out[1]] if n == "text" else out), reference, why_no_probe="-"
    )
    assert verdict.status == "failed" and "another mask" in verdict.reason


def test_a_batch_that_is_fixed_fails(toy: Toy, reference: Reference) -> None:
    class OnlyOne(ToySession):
        def run(self, outputs: tuple[str, ...], feeds: Mapping[str, Array], /) -> list[Array]:
            if len(next(iter(feeds.values()))) != 1:
                raise ModelError("got 2, expected 1")
            return super().run(outputs, feeds)

    verdict = verify_artifact(lambda name: OnlyOne(toy, name), reference)
    assert verdict.status == "failed" and "expected 1" in verdict.reason and "batch 2" in verdict.reason


def test_an_artefact_that_cannot_run_here_is_never_ok(reference: Reference, probe: Probe) -> None:
    def no_gpu(name: str) -> ToySession:
        raise CannotRunHereError("no GPU")

    verdict = verify_artifact(no_gpu, reference, probe=probe)
    assert (verdict.status, verdict.reason, verdict.checks) == ("not run", "no GPU", ())


def test_without_a_probe_set_the_verdict_is_incomplete_and_says_why(toy: Toy, reference: Reference) -> None:
    verdict = verify_artifact(lambda name: ToySession(toy, name), reference, why_no_probe="the clips are not here")
    assert verdict.status == "incomplete" and "the clips are not here" in verdict.reason


def test_findings_from_elsewhere_count(toy: Toy, reference: Reference, probe: Probe) -> None:
    wrong = Check("identity", "text", "metadata", False, note="exported with another tokenizer")
    verdict = verify_artifact(lambda name: ToySession(toy, name), reference, probe=probe, checks=[wrong])
    assert verdict.status == "failed" and "another tokenizer" in verdict.reason


def test_tokens_that_do_not_count_are_not_compared() -> None:
    want = {"query_tokens": np.ones((1, 2, 4), np.float32), "query_mask": np.array([[True, False]])}
    have = {"query_tokens": np.stack([[np.ones(4), np.full(4, -1.0)]]).astype(np.float32), "query_mask": want["query_mask"]}
    assert compare(want, have) == (0.0, pytest.approx(1.0), "")


def test_every_row_is_asked_alone_and_in_the_largest_batch() -> None:
    asked = list(batches_of(3, 7))
    assert asked[:3] == [[0], [1], [2]] and asked[3] == [0, 2] and asked[4] == [0, 1, 2, 0, 1, 2, 0]


def test_top_ten_overlap_counts_near_ties_as_interchangeable() -> None:
    want = np.array([np.linspace(1, 0, 20)], np.float32)
    swapped = want.copy()
    swapped[0, [9, 10]] = swapped[0, [10, 9]]
    assert top_overlap(want, want, 0.0) == (1.0, 1.0)
    assert top_overlap(want, swapped, 0.0) == (pytest.approx(0.9), pytest.approx(0.9))
    assert top_overlap(want, swapped, 0.06) == (pytest.approx(0.9), 1.0)


def test_recall_that_falls_by_more_than_one_query_fails() -> None:
    rng = np.random.default_rng(3)
    right = np.arange(40)
    want = rng.uniform(0, 0.1, (40, 40)).astype(np.float32)
    want[right, right] = 0.2
    loose = Limits(max_abs=None, cosine=0, score=1, near=0, top=0, recall=1.0)
    for lost, ok in ((1, True), (2, False)):
        have = want.copy()
        have[right[:lost], right[:lost]] = 0.0
        check = retrieval_check("f", want, have, right, loose)
        assert check.ok is ok
        assert check.values["recall1_torch"] == 100 and check.values["recall1"] == pytest.approx(100 - 2.5 * lost)


def test_noise_among_ties_is_no_drift() -> None:
    want = np.full((8, 30), 0.5, np.float32)
    have = want + np.random.default_rng(4).uniform(-1e-7, 1e-7, want.shape).astype(np.float32)
    assert retrieval_check("f", want, have, np.arange(8), LIMITS["fp32"]).ok


def test_a_reference_survives_its_file(reference: Reference, tmp_path: Path) -> None:
    reference.save(tmp_path / "export" / "reference.npz")
    read = Reference.load(tmp_path / "export" / "reference.npz")
    assert read.facts == reference.facts and read.max_batch == reference.max_batch
    for mine, other in zip(reference.banks, read.banks, strict=True):
        assert (mine.graph, mine.label, mine.rows) == (other.graph, other.label, other.rows)
        for name, value in {**mine.feeds, **mine.wanted}.items():
            np.testing.assert_array_equal(value, {**other.feeds, **other.wanted}[name])
    assert isinstance(reference.scores, ProbeScores) and isinstance(read.scores, ProbeScores)
    np.testing.assert_array_equal(reference.scores.video_QC, read.scores.video_QC)
    assert replace(read.scores, probe={}).queries == reference.scores.queries


def test_a_damaged_reference_is_one_line(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    reference.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match="cannot be read"):
        Reference.load(path)
    with pytest.raises(ModelError, match="is missing"):
        Reference.load(tmp_path / "none.npz")


def test_verification_imports_neither_torch_nor_onnx() -> None:
    import subprocess

    code = "import sys\nfor n in ('torch', 'onnx'): sys.modules[n] = None\nimport vctool_export.verify, vctool_export.probe\n"
    subprocess.run([sys.executable, "-c", code], check=True)
