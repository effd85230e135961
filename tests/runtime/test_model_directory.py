"""The model directory: one line for each way in which it can be broken, and a fingerprint that is the model's identity."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from tinymodel import build_tiny_model

from vctool.errors import ModelError
from vctool.runtime.checksums import read_checksums, write_checksums
from vctool.runtime.model_directory import ModelDirectory


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_whole_directory_opens(model: Path) -> None:
    opened = ModelDirectory.open(model, verify="all")
    assert opened.config.name == "tiny" and opened.preprocess.size == 16
    assert opened.graph("text") == model / "onnx" / "text.onnx"


def test_the_fingerprint_is_the_hash_of_config_and_weights(model: Path) -> None:
    lines = "".join(f"{hashlib.sha256((model / n).read_bytes()).hexdigest()}  {n}\n" for n in ("config.json", "model.safetensors"))
    assert ModelDirectory.open(model).fingerprint == hashlib.sha256(lines.encode()).hexdigest()


def test_another_export_of_the_same_weights_is_the_same_model(model: Path) -> None:
    before = ModelDirectory.open(model)
    (model / "onnx" / "extra.onnx").write_bytes(b"another precision")
    write_checksums(model)
    assert ModelDirectory.open(model).fingerprint == before.fingerprint


def test_other_weights_are_another_model(tmp_path: Path, tiny_model: Path) -> None:
    other = build_tiny_model(tmp_path / "other", weights=b"other")
    assert ModelDirectory.open(other).fingerprint != ModelDirectory.open(tiny_model).fingerprint


def test_the_weights_may_be_left_out_where_only_graphs_run(model: Path) -> None:
    whole = ModelDirectory.open(model).fingerprint
    (model / "model.safetensors").unlink()
    assert ModelDirectory.open(model).fingerprint == whole
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        ModelDirectory.open(model, verify="all")


def test_a_model_without_weights_of_its_own_is_known_by_its_graphs(model: Path) -> None:
    (model / "model.safetensors").unlink()
    write_checksums(model)
    before = ModelDirectory.open(model).fingerprint
    (model / "onnx" / "frame.onnx").write_bytes(b"other")
    write_checksums(model)
    assert ModelDirectory.open(model).fingerprint != before


@pytest.mark.parametrize("name", ["config.json", "preprocess.json", "tokenizer.json", "tokenizer_config.json", "checksums.json"])
def test_a_missing_file_is_named_with_the_mend(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing") as caught:
        ModelDirectory.open(model)
    assert caught.value.hint is not None and "again" in caught.value.hint


@pytest.mark.parametrize("name", ["config.json", "preprocess.json", "tokenizer.json", "tokenizer_config.json"])
def test_an_altered_file_is_named(model: Path, name: str) -> None:
    content = (model / name).read_bytes()
    (model / name).write_bytes(content[:-2] + b" \n")
    with pytest.raises(ModelError, match=f"{name} was altered"):
        ModelDirectory.open(model)
    (model / name).write_bytes(content[:-2])
    with pytest.raises(ModelError, match=f"{name} is damaged"):
        ModelDirectory.open(model)


@pytest.mark.parametrize("name", ["text", "frame", "temporal"])
def test_a_graph_is_checked_when_it_is_used(model: Path, name: str) -> None:
    path = model / "onnx" / f"{name}.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    opened = ModelDirectory.open(model)
    with pytest.raises(ModelError, match=f"{name}.onnx was altered"):
        opened.graph(name)
    path.unlink()
    with pytest.raises(ModelError, match=f"{name}.onnx is missing"):
        opened.graph(name)


def test_weights_beside_a_graph_are_checked_with_it(model: Path) -> None:
    (model / "onnx" / "text.onnx.data").write_bytes(b"weights")
    write_checksums(model)
    opened = ModelDirectory.open(model)
    opened.graph("text")
    (model / "onnx" / "text.onnx.data").write_bytes(b"weightz")
    with pytest.raises(ModelError, match=r"text\.onnx\.data was altered"):
        opened.graph("text")


def test_a_model_that_was_never_exported_says_how_to_export_it(model: Path) -> None:
    shutil.rmtree(model / "onnx")
    write_checksums(model)
    with pytest.raises(ModelError, match=r"has no onnx/text\.onnx") as caught:
        ModelDirectory.open(model).graph("text")
    assert caught.value.hint == f"write it with: vctool export {model}"


def test_what_is_no_model_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        ModelDirectory.open(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="is not a model directory"):
        ModelDirectory.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="is a file"):
        ModelDirectory.open(tmp_path / "file")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "files": {"a": 3}}', '{"schema": 9, "files": {}}'])
def test_a_malformed_record_is_one_error(model: Path, content: str) -> None:
    (model / "checksums.json").write_text(content)
    with pytest.raises(ModelError, match=r"checksums\.json"):
        ModelDirectory.open(model)


def test_an_unknown_key_is_named(model: Path) -> None:
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(values | {"embed_dims": 8}))
    write_checksums(model)
    with pytest.raises(ModelError, match="unknown key 'embed_dims'"):
        ModelDirectory.open(model)


def test_checksums_cover_every_file_but_themselves(model: Path) -> None:
    (model / ".hidden").write_text("x")
    written = write_checksums(model)
    files = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}
    assert set(written) == files - {"checksums.json", ".hidden"}
    assert read_checksums(model) == written
    assert written["README.md"].bytes == (model / "README.md").stat().st_size
