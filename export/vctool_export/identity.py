"""Which model a graph belongs to: hashes written into its metadata at export and compared with the directory's files. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from vctool.config import ModelConfig, read_json
from vctool.errors import ModelError
from vctool.preprocessing.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from vctool.preprocessing.tokenizer import TOKENIZER_FILE
from vctool.runtime.checksums import read_checksums, sha256_of, verify_file
from vctool.runtime.graph_metadata import read_metadata
from vctool.runtime.model_directory import CONFIG_FILE, PREPROCESS_FILE, WEIGHTS_FILE
from vctool_export.reference import Reference
from vctool_export.verdict import Check

HASHES = ("model_sha256", "tokenizer_sha256", "preprocess_sha256")
_MEANING = {"model_sha256": "other weights or another config.json", "tokenizer_sha256": "another tokenizer"}
_MEANING |= {"preprocess_sha256": "another preprocess.json"}


def facts_of(folder: Path) -> dict[str, str]:
    """The three identities of a model directory, from its files (not from its checksums), as `ModelDirectory` defines them."""
    facts = {
        "tokenizer_sha256": _combined(folder, (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)),
        "preprocess_sha256": _sha256(folder / PREPROCESS_FILE),
    }
    if (folder / WEIGHTS_FILE).is_file():  # a directory of graphs alone is named by its graphs, which cannot name themselves
        facts["model_sha256"] = _combined(folder, (CONFIG_FILE, WEIGHTS_FILE))
    return facts


def graph_metadata(folder: Path, graph: str, precision: str, opset: int, versions: dict[str, str]) -> dict[str, str]:
    """What a graph says about itself: identities, sizes, query policy, precision, versions; strings, as ONNX wants them."""
    config = read_json(ModelConfig, folder / CONFIG_FILE)
    query: dict[str, str | int] = {"policy": config.query.policy, "counted": config.query.counted, "expand": config.query.expand}
    query |= {"auto_limit": config.query.auto_limit, "max_length": config.query.max_length}
    return {
        **facts_of(folder),
        "graph": graph,
        "model": config.name,
        "backbone": config.backbone.name,
        "embed_dim": str(config.embed_dim),
        "frames": str(config.frames),
        "interaction": config.interaction,
        "query": json.dumps(query),
        "temporal": config.temporal.kind,
        "precision": precision,
        "opset": str(opset),
        **{f"{name}_version": version for name, version in versions.items()},
    }


def integrity_checks(folder: Path) -> list[Check]:
    """Every file of a model directory against `checksums.json`: one check for each that is missing or altered, one if none is."""
    try:
        files = read_checksums(folder)
    except ModelError as problem:
        return [Check("identity", "", "checksums.json", False, note=problem.message)]
    found = []
    for name, record in files.items():
        try:
            verify_file(folder, name, record)
        except ModelError as problem:
            found.append(Check("identity", "", name, False, note=problem.message))
    return found or [Check("identity", "", f"{len(files)} files match checksums.json", True)]


def metadata_checks(folder: Path, paths: dict[str, Path], precision: str) -> list[Check]:
    """Whether each graph was exported from this directory's weights, tokenizer and preprocessing, in this precision."""
    facts = facts_of(folder)
    checks = []
    for graph, path in paths.items():
        told = read_metadata(path)
        known = [name for name in HASHES if name in told and name in facts]
        if not known:
            checks.append(Check("identity", graph, path.name, None, note="its file does not say what it was exported from"))
            continue
        wrong = [_MEANING[name] for name in known if told[name] != facts[name]]
        if told.get("graph", graph) != graph:
            wrong.append(f"another graph ('{told['graph']}')")
        if told.get("precision", precision) != precision:
            wrong.append(f"another precision ({told['precision']})")
        note = f"{path.name} was exported from {' and '.join(wrong)}" if wrong else ""
        checks.append(Check("identity", graph, path.name, not wrong, note=note))
    return checks


def reference_check(folder: Path, reference: Reference) -> Check:
    """Whether stored answers of PyTorch are those of this directory's model."""
    facts = facts_of(folder)
    wrong = [_MEANING[name] for name in HASHES if name in facts and reference.facts.get(name) != facts[name]]
    note = f"the stored answers of PyTorch are of {' and '.join(wrong)}" if wrong else ""
    return Check("identity", "", "reference", not wrong, note=note)


def _combined(folder: Path, names: Iterable[str]) -> str:
    lines = "".join(f"{_sha256(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", "the model directory is incomplete: fetch or train it again") from None
    except OSError as problem:
        raise ModelError(f"{path} cannot be read: {problem.strerror or problem}", "check its permissions") from None
