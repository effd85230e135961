"""The Triton Inference Server repository: configurations parsed as protocol buffers, shapes held against the graphs by ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")

from google.protobuf import descriptor_pool, message_factory, text_format  # noqa: E402
from tinymodel import SIZE, build_tiny_model  # noqa: E402

from vctool.cli import cli  # noqa: E402
from vctool.errors import InputError, ModelError  # noqa: E402
from vctool.runtime.engine_file import info_path  # noqa: E402
from vctool_export.triton_repository import graph_config, write_repository  # noqa: E402

# The part of Triton's model_config.proto that we write: message -> field -> (type, repeated). Text needs no field numbers.
SCHEMA: dict[str, dict[str, tuple[str, bool]]] = {
    "ModelConfig": {
        "name": ("string", False), "platform": ("string", False), "backend": ("string", False), "max_batch_size": ("int32", False),
        "default_model_filename": ("string", False), "input": ("ModelInput", True), "output": ("ModelOutput", True),
        "dynamic_batching": ("Batching", False), "instance_group": ("Group", True), "ensemble_scheduling": ("Ensemble", False),
        "optimization": ("Optimization", False),
    },
    "Reshape": {"shape": ("int64", True)},
    "ModelInput": {"name": ("string", False), "data_type": ("DataType", False), "dims": ("int64", True), "reshape": ("Reshape", False)},
    "ModelOutput": {"name": ("string", False), "data_type": ("DataType", False), "dims": ("int64", True), "reshape": ("Reshape", False)},
    "Batching": {"max_queue_delay_microseconds": ("uint64", False)},
    "Group": {"count": ("int32", False), "kind": ("Kind", False), "profile": ("string", True)},
    "Optimization": {"cuda": ("Cuda", False)},
    "Cuda": {"graphs": ("bool", False)},
    "Ensemble": {"step": ("Step", True)},
    "Step": {"model_name": ("string", False), "model_version": ("int64", False), "input_map": ("Pair", True), "output_map": ("Pair", True)},
    "Pair": {"key": ("string", False), "value": ("string", False)},
}  # fmt: skip
ENUMS = {
    "DataType": ["TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_INT32", "TYPE_INT64", "TYPE_FP32"],
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU"],
}
NUMPY = {"TYPE_BOOL": "tensor(bool)", "TYPE_UINT8": "tensor(uint8)", "TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)"}


@pytest.fixture(scope="module")
def parse() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="triton_part.proto", package="part", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, (field, (kind, repeated)) in enumerate(fields.items(), 1):
            one = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if kind in SCHEMA or kind in ENUMS:
                one.type, one.type_name = (11 if kind in SCHEMA else 14), f".part.{kind}"
            else:
                one.type = {"string": 9, "int32": 5, "int64": 3, "uint64": 4, "bool": 8}[kind]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("part.ModelConfig"))
    return lambda path: text_format.Parse(path if isinstance(path, str) else path.read_text(), config())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    assert write_repository(build_tiny_model(folder / "m"), folder / "repository") == ["text", "frame", "temporal", "clip"]
    return folder / "repository"


def ports(entries: Any) -> dict[str, Any]:
    return {entry.name: entry for entry in entries}


def type_of(entry: Any) -> str:
    return str(entry.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[entry.data_type].name)


@pytest.mark.parametrize("name", ["text", "frame", "temporal"])
def test_each_configuration_is_what_onnxruntime_says_of_the_graph(repository: Path, parse: Any, name: str) -> None:
    config = parse(repository / name / "config.pbtxt")
    assert (config.name, config.backend) == (name, "onnxruntime")
    session = ort.InferenceSession(str(repository / name / "1" / config.default_model_filename), providers=["CPUExecutionProvider"])
    for entries, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert set(ports(entries)) == {r.name for r in real}
        for one in real:
            entry = ports(entries)[one.name]
            sides = list(entry.reshape.shape) if entry.reshape.shape else list(entry.dims)
            sides = [-1, *sides] if config.max_batch_size else sides
            assert len(sides) == len(one.shape) and NUMPY[type_of(entry)] == one.type
            assert all(told in (-1, side) or (told == 1 and isinstance(side, str)) for told, side in zip(sides, one.shape, strict=True))
    assert bool(config.max_batch_size) == config.HasField("dynamic_batching") == (name == "text")


def test_the_ensemble_joins_what_its_models_have(repository: Path, parse: Any) -> None:
    clip = parse(repository / "clip" / "config.pbtxt")
    models = {n: parse(repository / n / "config.pbtxt") for n in ("frame", "temporal")}
    assert (clip.platform, clip.max_batch_size) == ("ensemble", 0) and (repository / "clip" / "1").is_dir()
    known = {name: (list(p.dims), p.data_type) for name, p in ports(clip.input).items()}
    for step in clip.ensemble_scheduling.step:
        model = models[step.model_name]
        assert {pair.key for pair in step.input_map} == set(ports(model.input)) and model.max_batch_size == 0
        for pair in step.input_map:
            source = ports(model.input)[pair.key]
            assert known[pair.value] == (list(source.dims), source.data_type)
        for pair in step.output_map:
            made = ports(model.output)[pair.key]
            known[pair.value] = (list(made.dims), made.data_type)
    assert all(known[name] == (list(p.dims), p.data_type) for name, p in ports(clip.output).items())
    assert set(ports(clip.output)) == {"frame_features", "video_tokens", "video_mask"}


def test_a_request_along_the_ensemble_gives_the_tokens_of_the_runtime(repository: Path, parse: Any) -> None:
    """What the server would do with a request, done by ONNX Runtime from the configurations alone."""
    from vctool.runtime.model import load_model

    frames = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    known: dict[str, Any] = {"frames": frames, "frame_mask": np.ones(5, np.bool_)}
    for step in parse(repository / "clip" / "config.pbtxt").ensemble_scheduling.step:
        config = parse(repository / step.model_name / "config.pbtxt")
        session = ort.InferenceSession(str(repository / step.model_name / "1" / config.default_model_filename))
        feeds = {}
        for pair in step.input_map:
            shape = iter(known[pair.value].shape)
            wanted = list(ports(config.input)[pair.key].reshape.shape) or None
            full = known[pair.value].shape if wanted is None else [1, *shape]
            feeds[pair.key] = known[pair.value].reshape(full)
        names = [pair.key for pair in step.output_map]
        for pair, value in zip(step.output_map, session.run(names, feeds), strict=True):
            known[pair.value] = value[0] if ports(config.output)[pair.key].reshape.shape else value
    encoder = load_model(repository.parent / "m", device="cpu", provider="onnxruntime").video
    _, _, video_VD, _ = encoder.encode(frames, np.arange(5.0))
    np.testing.assert_allclose(known["video_tokens"][known["video_mask"]], video_VD, atol=1e-6)


def test_engines_take_the_place_of_graphs(tmp_path: Path, parse: Any) -> None:
    model = build_tiny_model(tmp_path / "m")
    with pytest.raises(ModelError, match="has no engine that Triton Inference Server runs"):
        write_repository(model, tmp_path / "r", backend="tensorrt")
    text = graph_config("text", model / "onnx" / "text.onnx", "tensorrt", 2)
    config = parse(text)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert list(config.instance_group[0].profile) == ["0", "1"] and config.optimization.cuda.graphs
    assert not (tmp_path / "r").exists() and info_path(Path("x.engine")).name == "x.engine.json"


def test_a_folder_that_is_there_is_not_touched(repository: Path) -> None:
    before = sorted(p.name for p in repository.rglob("*"))
    with pytest.raises(InputError, match="exists already"):
        write_repository(repository.parent / "m", repository)
    assert sorted(p.name for p in repository.rglob("*")) == before


def test_an_altered_graph_is_not_deployed(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "m")
    path = model / "onnx" / "temporal.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ModelError, match=r"temporal\.onnx was altered"):
        write_repository(model, tmp_path / "r")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_tiny_model(tmp_path / "m")
    with pytest.raises(SystemExit) as leaving:
        cli.main(["export", str(model), "--triton", str(tmp_path / "r"), "--json"])
    told = json.loads(capsys.readouterr().out)
    expected = {"path": str((tmp_path / "r").resolve()), "models": ["text", "frame", "temporal", "clip"]}
    assert leaving.value.code == 0 and told["triton"] == expected
    shutil.rmtree(tmp_path / "r")
