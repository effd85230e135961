"""What docs/format.md says of query results and model directories is what is written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from commandline import Vctool
from tinymodel import build_tiny_model

from vctool.config import ModelConfig, PreprocessConfig
from vctool.preprocessing.tokenizer import TokenizerConfig
from vctool.runtime.checksums import CHECKSUMS_FILE
from vctool.runtime.model_directory import GRAPHS, ModelDirectory

FORMAT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", FORMAT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[2]


def example(title: str) -> Any:
    found = re.search(r"```json\n(.*?)```", section(title), re.DOTALL)
    assert found, title
    return json.loads(found[1])


def shape(value: Any) -> Any:
    """Keys of objects at every depth; a list is its first element, a plain value nothing."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


def keys_of(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    return set(value).union(*map(keys_of, value.values())) if isinstance(value, dict) else set()


def answer(vctool: Vctool, index: Path, *args: str) -> dict[str, Any]:
    done = vctool("query", "green then yellow", "--index", index, "--json", *args)
    result: dict[str, Any] = json.loads(done.out)
    return result


def test_the_example_of_a_query_result_has_the_keys_of_a_real_one(vctool: Vctool, tiny_index: Path) -> None:
    assert shape(example("Query result")) == shape(answer(vctool, tiny_index))


def test_every_key_of_a_query_result_is_explained(vctool: Vctool, tiny_index: Path) -> None:
    explained = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`[^`]+`", section("Query result").split("```")[2]))))
    assert keys_of(answer(vctool, tiny_index)) - explained == set()


def test_what_is_said_of_null_and_of_sums_holds(vctool: Vctool, tiny_index: Path) -> None:
    for branch, without in (("f", "video"), ("v", "frame"), ("fv", None)):
        for hit in answer(vctool, tiny_index, "--branch", branch)["hits"]:
            assert sum(token["share"] for token in hit["evidence"]) == pytest.approx(hit["score"], abs=1e-5)
            words = sum(word["share"] for word in hit["words"]) + hit["pad_share"] + hit["special_share"]
            assert words == pytest.approx(hit["score"], abs=1e-5)
            if without:
                assert hit[f"{without}_score"] is None
                assert all(token[f"{without}_share"] is None for token in hit["evidence"])
            assert all(token["second"] == token["video_second" if branch == "v" else "frame_second"] for token in hit["evidence"])
            assert hit["end"] > hit["start"] == 0.0 and Path(hit["path"]).is_absolute()


def test_every_key_of_the_json_files_is_explained() -> None:
    text = section("Model directory")
    for kind in (ModelConfig, PreprocessConfig, TokenizerConfig):
        for field in dataclasses.fields(kind):
            inner = field.default_factory if field.default_factory is not dataclasses.MISSING else None
            names = [f.name for f in dataclasses.fields(inner)] if dataclasses.is_dataclass(inner) else [field.name]
            assert [name for name in names if f"`{name}`" not in text and f".{name}`" not in text] == []


def test_the_files_and_graphs_of_a_model_directory_are_those_listed(tmp_path: Path) -> None:
    from vctool.runtime.sessions import Graph

    text = section("Model directory")
    model = build_tiny_model(tmp_path / "model")
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert [name for name in files if f"`{name}`" not in text] == []
    for name in GRAPHS:
        graph = Graph(model / "onnx" / f"{name}.onnx", device="cpu")
        (row,) = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
        assert [port for port in (*graph.inputs, *graph.outputs) if f"`{port}`" not in row] == []


def test_checksums_and_identity_are_made_as_described(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model")
    record = json.loads((model / CHECKSUMS_FILE).read_text(encoding="utf-8"))
    documented = example(CHECKSUMS_FILE)
    assert record.keys() == documented.keys() and record["schema"] == documented["schema"]
    assert record["files"]["config.json"].keys() == documented["files"]["config.json"].keys()

    def lines(*names: str) -> str:
        made = "".join(f"{hashlib.sha256((model / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
        return hashlib.sha256(made.encode()).hexdigest()

    opened = ModelDirectory.open(model)
    assert opened.fingerprint == lines("config.json", "model.safetensors")
    assert opened.tokenizer_sha256 == lines("tokenizer.json", "tokenizer_config.json")
    assert opened.preprocess_sha256 == hashlib.sha256((model / "preprocess.json").read_bytes()).hexdigest()
