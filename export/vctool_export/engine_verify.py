"""Engines held against PyTorch's stored answers, on the GPU that they were built for: the judge of `engines.export_engines`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vctool.config import PreprocessConfig, read_json
from vctool.errors import ModelError
from vctool.preprocessing.tokenizer import Tokenizer
from vctool.runtime.cuda import NoGpuError, first_gpu
from vctool.runtime.engine_file import EngineInfo
from vctool.runtime.model_directory import PREPROCESS_FILE
from vctool.runtime.sessions import run_in_pieces
from vctool.runtime.sessions_tensorrt import TensorRtSession
from vctool.runtime.tensorrt_api import load_tensorrt
from vctool_export.probe import read_probe, same_probe
from vctool_export.reference import REFERENCE_FILE, Reference
from vctool_export.verdict import CannotRunHereError
from vctool_export.verify import Array, Session, verify_artifact


def judge_engines(model_dir: Path, infos: Sequence[EngineInfo], *, progress: Callable[[str], None] | None = None) -> Mapping[str, Any]:
    """The verdict over the engines of one target, as JSON: tensors, scores and retrieval, at batches up to the largest profile and one
    more, so that splitting is judged with it.

    `not run` where there is no GPU, where the model directory holds no answers of PyTorch, and where the engines are not of all the
    graphs that were asked.
    """
    if not (model_dir / REFERENCE_FILE).is_file():
        return {
            "status": "not run",
            "reason": f"the model directory holds no answers of PyTorch ({REFERENCE_FILE}): export its graphs again",
        }
    try:
        reference = Reference.load(model_dir / REFERENCE_FILE)
    except ModelError as problem:
        return {"status": "not run", "reason": problem.message}
    by_name = {info.graph: info for info in infos}
    missing = sorted({bank.graph for bank in reference.banks} - set(by_name))
    if missing:
        return {"status": "not run", "reason": f"no engine of {', '.join(missing)} was asked for"}
    probe, why = None, "PyTorch was not asked about a probe set"
    if reference.scores is not None:
        probe = read_probe(Tokenizer.load(model_dir), read_json(PreprocessConfig, model_dir / PREPROCESS_FILE))
        why = same_probe(dict(reference.scores.probe), probe)
        probe = None if why else probe

    def session(name: str) -> Session:
        return _Engine(by_name[name])

    verdict = verify_artifact(
        session,
        reference,
        precision=_limits(infos),
        artifact="tensorrt",
        engine=f"{infos[0].flavour} {infos[0].version}, {infos[0].sm}",
        probe=probe,
        max_batch={name: max(p.batch for p in info.profiles) + 1 for name, info in by_name.items()},
        why_no_probe=why,
        progress=progress,
    )
    return verdict.to_json()


def _limits(infos: Sequence[EngineInfo]) -> str:
    """The row of limits: of the narrowest precision among the engines, since their answers meet in one score."""
    found = {info.precision for info in infos}
    return next((name for name in ("int8", "bf16", "fp16") if name in found), "fp32")


class _Engine:
    """An engine as verification wants it: batches of any size, and a clear difference between wrong and not runnable."""

    def __init__(self, info: EngineInfo) -> None:
        try:
            self._session = TensorRtSession(info, load_tensorrt(info.flavour), first_gpu())
        except NoGpuError as problem:
            raise CannotRunHereError(problem.message) from None
        self._name = info.path.name

    def run(self, outputs: tuple[str, ...], feeds: Mapping[str, Array], /) -> list[Array]:
        try:
            return run_in_pieces(self._session, outputs, feeds)
        except ValueError as problem:
            raise ModelError(f"{self._name}: {problem}") from None
