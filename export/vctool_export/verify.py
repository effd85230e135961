"""Hold anything that runs a model's graphs against PyTorch: tensors, scores, and what is retrieved. No torch.

The artefact is a *session maker*: a function from a graph's name (`text`, `frame`, `temporal`) to something with `run`, as
`vctool.runtime.sessions.Graph` has. ONNX Runtime, OpenVINO, an engine: all are judged by the same checks and one table of limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vctool.errors import VctoolError
from vctool.scoring import mean_max_sim
from vctool_export.probe import Probe
from vctool_export.reference import Arrays, Bank, ProbeScores, Reference, rows_of
from vctool_export.verdict import LIMITS, CannotRunHereError, Check, Limits, Verdict, decide, not_run

TOP = 10
RECALLS = (1, 5, 10)

Array = NDArray[Any]
Float32 = NDArray[np.float32]


class Session(Protocol):
    """One graph, ready to run."""

    def run(self, outputs: tuple[str, ...], feeds: Mapping[str, Array], /) -> list[Array]:
        """The named outputs for these inputs. Raises VctoolError if the runtime fails."""


MakeSession = Callable[[str], Session]

MASKS = {"query_tokens": "query_mask", "video_tokens": "video_mask"}
"""Tokens that do not count are not compared: nothing ever reads them."""


def verify_artifact(
    make_session: MakeSession,
    reference: Reference,
    *,
    precision: str = "fp32",
    artifact: str = "onnx",
    engine: str = "ONNX Runtime, CPU",
    probe: Probe | None = None,
    max_batch: Mapping[str, int] | None = None,
    checks: Sequence[Check] = (),
    why_no_probe: str = "",
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Run every graph of `reference` through `make_session` and compare with PyTorch's answers.

    make_session(name) may raise CannotRunHereError: the verdict is then `not run` with its message, never `ok`. Another
    VctoolError from it or from a session is a failed check. precision: a key of `LIMITS`. probe: the pixels and sentences of
    the set that `reference.scores` is about; None leaves scores and retrieval out and says so (`why_no_probe`). max_batch:
    the largest batch of each graph, if not the reference's. checks: findings to begin with (hashes, metadata).
    """
    say = progress or (lambda _: None)
    limits = LIMITS[precision]
    found = list(checks)
    sessions: dict[str, Session] = {}
    try:
        for graph in dict.fromkeys(bank.graph for bank in reference.banks):
            try:
                sessions[graph] = make_session(graph)
            except CannotRunHereError:
                raise
            except VctoolError as problem:
                found.append(Check("tensors", graph, "load", False, note=problem.message))
        for bank in reference.banks:
            if bank.graph in sessions and (fixed := fixed_axes(sessions[bank.graph], bank)):
                found.append(Check("tensors", bank.graph, bank.label, None, note=f"not asked: {fixed}"))
            elif bank.graph in sessions:
                say(f"{bank.graph}: {bank.label}")
                largest = (max_batch or {}).get(bank.graph) or reference.max_batch.get(bank.graph, len(bank.rows))
                found += _tensor_checks(sessions[bank.graph], bank, largest, limits)
        unusable = any(
            check.ok is False and check.level == "tensors" and math.isnan(check.values.get("cosine", math.nan)) for check in found
        )
        if reference.scores is None or probe is None:
            why = why_no_probe or "no probe set was given"
            found += [Check("scores", "", "", None, note=why), Check("retrieval", "", "", None, note=why)]
        elif unusable:
            # No scores can be had of NaN. Tokens that are merely off go on: what they cost in retrieval is what a reader wants to know.
            found.append(Check("retrieval", "", "", None, note="the tensors are unusable"))
        else:
            say(f"probe set: {len(probe.clips)} clips, {len(probe.queries)} queries")
            found += _probe_checks(sessions, probe, reference, limits)
    except CannotRunHereError as problem:
        return not_run(artifact, precision, engine, problem.message)
    return decide(artifact, precision, engine, found)


def fixed_axes(session: Session, bank: Bank) -> str:
    """What of a bank's shape the session declares it cannot take (`inputs`, if it has any), or "" if it takes it.

    The batch is not among it: a batch that is fixed is an error, a text length or a number of frames may be the tower's.
    """
    declared: Mapping[str, Sequence[Any]] = getattr(session, "inputs", {})
    for name, value in bank.feeds.items():
        for axis, (have, given) in enumerate(zip(declared.get(name, ()), value.shape, strict=False)):
            if axis and isinstance(have, int) and have != given:
                return f"{name} takes exactly {have} along axis {axis}"
    return ""


def batches_of(rows: int, largest: int) -> Iterator[list[int]]:
    """Row numbers of each batch to ask: every row alone, two together, and the largest batch, rows repeated as needed."""
    yield from ([row] for row in range(rows))
    yield [0, rows - 1]
    if largest > 2:
        yield [row % rows for row in range(largest)]


def _tensor_checks(session: Session, bank: Bank, largest: int, limits: Limits) -> list[Check]:
    by_batch: dict[int, list[tuple[float, float, str]]] = {}
    outputs = tuple(bank.wanted)
    for chosen in batches_of(len(bank.rows), largest):
        what = bank.rows[chosen[0]] if len(chosen) == 1 else ""
        try:
            got = dict(zip(outputs, session.run(outputs, rows_of(bank.feeds, chosen)), strict=True))
        except CannotRunHereError:
            raise
        except VctoolError as problem:
            by_batch.setdefault(len(chosen), []).append((float("nan"), float("nan"), problem.message))
            continue
        error, cosine, note = compare(rows_of(bank.wanted, chosen), got)
        by_batch.setdefault(len(chosen), []).append((error, cosine, f"{what}: {note}" if note and what else note))
    return [_tensor_check(bank, batch, measured, limits) for batch, measured in by_batch.items()]


def _tensor_check(bank: Bank, batch: int, measured: list[tuple[float, float, str]], limits: Limits) -> Check:
    case = f"{bank.label}, batch {batch}"
    notes = [note for _, _, note in measured if note]
    values = {"max_abs": _worst(m[0] for m in measured), "cosine": -_worst(-m[1] for m in measured)}
    if notes:
        return Check("tensors", bank.graph, case, False, values, notes[0])
    if not values["cosine"] >= limits.cosine:
        return Check("tensors", bank.graph, case, False, values, f"a token's cosine is {values['cosine']:.6f} (allowed: {limits.cosine})")
    if limits.max_abs is not None and not values["max_abs"] <= limits.max_abs:
        return Check("tensors", bank.graph, case, False, values, f"differs by {values['max_abs']:.2g} (allowed: {limits.max_abs:g})")
    return Check("tensors", bank.graph, case, True, values)


def compare(wanted: Arrays, got: Arrays) -> tuple[float, float, str]:
    """(largest difference, smallest cosine of a token, what is wrong or "") of one run's outputs.

    The difference is relative to the largest wanted value where that is above 1. Masks must be equal. NaN and infinity are wrong.
    """
    error, cosine = 0.0, 1.0
    for name, want in wanted.items():
        have = got[name]
        if have.shape != want.shape:
            return float("nan"), float("nan"), f"{name} is {list(have.shape)}, PyTorch gives {list(want.shape)}"
        if want.dtype == np.bool_:
            if not np.array_equal(have.astype(np.bool_), want):
                return float("nan"), float("nan"), f"{name} is another mask than PyTorch's"
            continue
        mask = MASKS.get(name, "")
        counted = wanted[mask] if mask in wanted else np.ones(want.shape[:-1], dtype=np.bool_)
        want_TD, have_TD = want[counted].astype(np.float64), have[counted].astype(np.float64)
        if not want_TD.size:
            continue
        if not np.isfinite(have_TD).all():
            return float("inf"), float("nan"), f"{name} holds NaN or infinity"
        error = max(error, float(np.abs(have_TD - want_TD).max()) / max(1.0, float(np.abs(want_TD).max())))
        cosine = min(cosine, float(_cosines(want_TD, have_TD).min()))
    return error, cosine, ""


def _cosines(a_TD: NDArray[np.float64], b_TD: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(a_TD, axis=-1) * np.linalg.norm(b_TD, axis=-1)
    product = (a_TD * b_TD).sum(axis=-1)
    cosine: NDArray[np.float64] = np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)
    return cosine


def _worst(values: Iterator[float] | Any) -> float:
    numbers = list(values)
    return float("nan") if any(n != n for n in numbers) else max(numbers)


def _probe_checks(sessions: Mapping[str, Session], probe: Probe, reference: Reference, limits: Limits) -> list[Check]:
    wanted = reference.scores
    assert wanted is not None
    try:
        got = probe_scores(sessions, probe)
    except CannotRunHereError:
        raise
    except VctoolError as problem:
        return [Check("scores", "", "probe set", False, note=problem.message)]
    checks = []
    branches = {"f": (wanted.frame_QC, got.frame_QC), "v": (wanted.video_QC, got.video_QC)}
    branches["fv"] = (wanted.frame_QC + wanted.video_QC, got.frame_QC + got.video_QC)
    for branch, (want_QC, have_QC) in branches.items():
        allowed = limits.score * (2 if branch == "fv" else 1)
        error = float(np.abs(have_QC - want_QC).max())
        note = "" if error <= allowed else f"a score differs by {error:.2g} (allowed: {allowed:g})"
        checks.append(Check("scores", "", f"branch {branch}", error <= allowed, {"max_abs": error}, note))
        checks.append(retrieval_check(branch, want_QC, have_QC, wanted.right_Q, limits))
    return checks


def retrieval_check(branch: str, want_QC: Float32, have_QC: Float32, right_Q: NDArray[np.int64], limits: Limits) -> Check:
    """Whether two score matrices retrieve the same: top ten found again, and R@1, R@5, R@10 against the right clips.

    Scores closer than 1e-6 count as ties, whose expected rank is taken, in both matrices alike: float noise of an untrained
    model is no drift.
    """
    exact, explained = top_overlap(want_QC, have_QC, limits.near)
    values: dict[str, float] = {"top10": exact, "top10_interchangeable": explained}
    if explained < limits.top:
        return Check("retrieval", "", f"branch {branch}", False, values, f"top-10 overlap is {explained:.3f} (allowed: {limits.top})")
    queries = len(want_QC)
    allowed = max(limits.recall, 100 / queries) + 1e-9
    problem = ""
    for k in RECALLS:
        before, after = (100 * float((_ranks(matrix, right_Q) <= k).mean()) for matrix in (want_QC, have_QC))
        values |= {f"recall{k}_torch": before, f"recall{k}": after}
        if abs(after - before) > allowed and not problem:
            problem = f"R@{k} is {after:.1f}, PyTorch's {before:.1f} (allowed: {allowed:.1f} points on {queries} queries)"
    return Check("retrieval", "", f"branch {branch}", not problem, values, problem)


def top_overlap(want_QC: Float32, have_QC: Float32, near: float) -> tuple[float, float]:
    """Mean share of the wanted top ten that is in the other's: as it is, and with clips less than `near` below the tenth as good."""
    k = min(TOP, want_QC.shape[1])
    exact, explained = [], []
    for want_C, have_C in zip(want_QC, have_QC, strict=True):
        best = np.argsort(-want_C, kind="stable")[:k]
        found = np.argsort(-have_C, kind="stable")[:k]
        exact.append(len(set(best.tolist()) & set(found.tolist())) / k)
        explained.append(float((want_C[found] >= want_C[best[-1]] - near).mean()))
    return float(np.mean(exact)), float(np.mean(explained))


def _ranks(score_QC: Float32, right_Q: NDArray[np.int64], tie: float = 1e-6) -> NDArray[np.float64]:
    right_Q1 = score_QC[np.arange(len(score_QC)), right_Q][:, None]
    above_Q = (score_QC > right_Q1 + tie).sum(axis=1)
    tied_Q = (np.abs(score_QC - right_Q1) <= tie).sum(axis=1)
    ranks: NDArray[np.float64] = above_Q + (tied_Q + 1) / 2
    return ranks


def probe_scores(sessions: Mapping[str, Session], probe: Probe, batch: int = 16) -> ProbeScores:
    """Encode a probe set through `text`, `frame` and `temporal` sessions and score every query with every clip."""
    tokens, masks = [], []
    for start in range(0, len(probe.queries), batch):
        feeds = {"input_ids": probe.input_ids_QL[start : start + batch], "attention_mask": probe.attention_mask_QL[start : start + batch]}
        query_BQD, mask_BQ = sessions["text"].run(("query_tokens", "query_mask"), feeds)
        tokens += list(query_BQD)
        masks += list(mask_BQ)
    frame, video = [], []
    for frames_FSSC in probe.clips:
        features_FD = _frame_features(sessions["frame"], frames_FSSC, batch)
        frame.append(_unit(features_FD))
        mask_1F = np.ones((1, len(features_FD)), dtype=np.bool_)
        video_1VD, mask_1V = sessions["temporal"].run(
            ("video_tokens", "video_mask"), {"frame_features": features_FD[None], "frame_mask": mask_1F}
        )
        video.append(video_1VD[0][mask_1V[0].astype(np.bool_)].astype(np.float32))
    matrices = []
    for clips in (frame, video):
        tokens_TD = np.ascontiguousarray(np.concatenate(clips))
        offsets = np.cumsum([0, *(len(clip) for clip in clips)])
        scores = [mean_max_sim(q.astype(np.float32), tokens_TD, offsets, m.astype(np.bool_)) for q, m in zip(tokens, masks, strict=True)]
        matrices.append(np.stack(scores))
    return ProbeScores(probe.facts, probe.clip_ids, probe.queries, probe.right_Q, *matrices)


def _frame_features(session: Session, frames_FSSC: NDArray[np.uint8], batch: int) -> Float32:
    parts = [session.run(("frame_features",), {"frames": frames_FSSC[i : i + batch]})[0] for i in range(0, len(frames_FSSC), batch)]
    return np.concatenate(parts).astype(np.float32)


def _unit(token_TD: Float32) -> Float32:
    norm_T1 = np.linalg.norm(token_TD.astype(np.float64), axis=1, keepdims=True)
    unit: Float32 = (token_TD / np.where(norm_T1 > 0, norm_T1, 1)).astype(np.float32)
    return unit
