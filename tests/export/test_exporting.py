"""A model directory exported, altered in every way we know, and verified: what is wrong is found, and nothing is half done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from towers import replay, small_probe, tree

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("open_clip")

from tinytowers import write_tiny_model  # noqa: E402

from vctool.errors import ModelError, UsageProblem  # noqa: E402
from vctool.runtime.checksums import update_checksums, write_checksums  # noqa: E402
from vctool.runtime.graph_metadata import read_metadata  # noqa: E402
from vctool.runtime.model_directory import ModelDirectory  # noqa: E402
from vctool.runtime.sessions import ranked  # noqa: E402
from vctool.runtime.verdicts import verified  # noqa: E402
from vctool_export import exporting, verdict  # noqa: E402
from vctool_export.exporting import DriftError, export_graphs  # noqa: E402
from vctool_export.onnx_files import save_graph  # noqa: E402
from vctool_export.report import Report  # noqa: E402
from vctool_export.staging import staged  # noqa: E402
from vctool_export.verify_directory import verify_directory  # noqa: E402


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_probe(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, probe: Path) -> tuple[Path, Report]:
    """A CLIP in miniature, exported in fp32, fp16, bf16 and int8, with its report."""
    torch.set_num_threads(1)
    folder = write_tiny_model("tiny-clip", tmp_path_factory.mktemp("exported") / "model")
    return folder, export_graphs(folder, precisions=("fp16", "bf16", "int8"), probe=[probe], providers=())


@pytest.fixture
def model(exported: tuple[Path, Report], tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(exported[0], tmp_path / "model"))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a graph in place."""
    graph = onnx.load(path)
    change(graph)
    save_graph(graph, path)


def test_every_precision_is_proved_at_every_level_and_put_in_place(exported: tuple[Path, Report]) -> None:
    folder, report = exported
    assert [v.precision for v in report.verdicts] == ["fp32", "fp16", "bf16", "int8"]
    for one in report.verdicts:
        assert one.status == "ok", one.reason
        assert {c.level for c in one.checks if c.ok} == {"identity", "tensors", "scores", "retrieval"}
    wanted = {f"{name}{p}.onnx" for name in ("text", "frame", "temporal") for p in ("", ".fp16", ".bf16", ".int8")} | {"scorer.onnx"}
    assert {path.name for path in (folder / "onnx").glob("*.onnx")} == wanted
    assert json.loads((folder / "onnx" / "graphs.json").read_text())["graphs"]["text"]["fp16"] == "onnx/text.fp16.onnx"
    assert json.loads((folder / "export" / "report.json").read_text())["verdicts"][0]["status"] == "ok"
    ModelDirectory.open(folder, verify="all")


def test_fp32_is_within_a_ten_thousandth_and_a_cosine_of_five_nines(exported: tuple[Path, Report]) -> None:
    fp32 = exported[1].verdicts[0]
    for graph in ("text", "frame", "temporal"):
        error, cosine = fp32.worst("tensors", graph, "max_abs"), fp32.worst("tensors", graph, "cosine", largest=False)
        assert error is not None and error <= 1e-4 and cosine is not None and cosine >= 0.99999
    cases = " ".join(check.case for check in fp32.checks)
    assert "16 tokens, batch 1" in cases and "batch 32" in cases and "2 tokens, batch" in cases
    assert "1 frames" in cases and "4 frames" in cases and "8 frames" in cases


def test_a_graph_says_which_model_it_is_of(exported: tuple[Path, Report]) -> None:
    folder = exported[0]
    told, directory = read_metadata(folder / "onnx" / "text.fp16.onnx"), ModelDirectory.open(folder)
    assert told["model_sha256"] == directory.fingerprint and told["tokenizer_sha256"] == directory.tokenizer_sha256
    assert told["preprocess_sha256"] == directory.preprocess_sha256
    assert (told["graph"], told["precision"], told["embed_dim"], told["opset"]) == ("text", "fp16", "32", "18")
    assert json.loads(told["query"])["policy"] == "tokens"


def test_named_axes_text_length_included(exported: tuple[Path, Report]) -> None:
    def axes(name: str) -> list[list[Any]]:
        values = onnx.load(exported[0] / "onnx" / name, load_external_data=False).graph.input
        return [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in values]

    assert axes("text.onnx") == [["batch", "length"]] * 2
    assert axes("frame.onnx") == [["batch", 32, 32, 3]]
    assert axes("temporal.fp16.onnx") == [["batch", "frames", 32], ["batch", "frames"]]


def test_an_untouched_directory_verifies_without_torch(model: Path, probe: Path) -> None:
    code = (
        "import sys\n"
        "for n in ('torch', 'open_clip', 'onnxscript'): sys.modules[n] = None\n"
        "from vctool.cli import cli\n"
        f"cli.main(['verify', {str(model)!r}, '--probe', {str(probe)!r}, '--json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["against"] == "stored" and {v["status"] for v in told["verdicts"]} == {"ok"}
    ModelDirectory.open(model, verify="all")  # the new report is listed, and nothing else was blessed


def test_a_report_keeps_what_it_said_of_the_same_graphs(model: Path, probe: Path) -> None:
    verify_directory(model, precisions=["int8"], probe=[probe], against="stored")
    told = json.loads((model / "export" / "report.json").read_text())["verdicts"]
    assert sorted(v["artifact"] for v in told) == ["onnx bf16", "onnx fp16", "onnx fp32", "onnx int8"]
    (model / "onnx" / "frame.int8.onnx").unlink()
    verify_directory(model, precisions=["fp32"], probe=[probe], against="stored")
    assert [v["artifact"] for v in json.loads((model / "export" / "report.json").read_text())["verdicts"]] == ["onnx fp32"]


def test_another_probe_set_than_the_stored_one_is_incomplete_not_ok(model: Path) -> None:
    report = verify_directory(model, precisions=["fp32"], against="stored", keep_report=False)
    assert report.verdicts[0].status == "incomplete" and "its sentences are not those" in report.verdicts[0].reason


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_altered_weight_is_caught_even_with_fresh_checksums(precision: str, model: Path, probe: Path) -> None:
    def alter(graph: Any) -> None:
        weight = next(t for t in graph.graph.initializer if len(t.dims) == 2 and np.prod(t.dims) >= 32 * 32)
        array = onnx.numpy_helper.to_array(weight).copy()
        array[3, 5] += 5.0
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))

    edit(model / "onnx" / ("frame.onnx" if precision == "fp32" else "frame.fp16.onnx"), alter)
    write_checksums(model)
    judged = verify_directory(model, precisions=[precision], probe=[probe], against="stored", keep_report=False).verdicts[0]
    assert judged.status == "failed" and judged.reason.startswith("tensors: frame")


def test_a_file_altered_after_export_is_named(model: Path, probe: Path) -> None:
    data = bytearray((model / "onnx" / "frame.onnx.data").read_bytes())
    data[100] ^= 1
    (model / "onnx" / "frame.onnx.data").write_bytes(data)
    judged = verify_directory(model, precisions=["fp32"], probe=[probe], against="stored").verdicts[0]
    assert judged.status == "failed" and "frame.onnx.data was altered" in judged.reason
    with pytest.raises(ModelError, match=r"frame\.onnx\.data was altered"):  # verifying did not bless it
        ModelDirectory.open(model, verify="all")


@pytest.mark.parametrize(
    ("file", "said"), [("tokenizer.json", "another tokenizer"), ("config.json", "other weights"), ("preprocess.json", "another preprocess")]
)
def test_graphs_exported_from_something_else_are_caught(file: str, said: str, model: Path, probe: Path) -> None:
    (model / file).write_text((model / file).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    write_checksums(model)
    judged = verify_directory(model, precisions=["fp32"], probe=[probe], against="stored", keep_report=False).verdicts[0]
    assert judged.status == "failed" and said in judged.reason


def test_the_graph_of_another_model_is_caught_by_torch(model: Path, probe: Path, tmp_path: Path) -> None:
    """Weights exchanged and everything blessed, metadata too: only asking PyTorch anew can tell."""
    torch.manual_seed(5)
    from safetensors.torch import load_file, save_file

    state = load_file(model / "model.safetensors")
    save_file(
        {name: v + 0.05 * torch.randn_like(v) if v.is_floating_point() else v for name, v in state.items()}, model / "model.safetensors"
    )
    from vctool_export.identity import facts_of
    from vctool_export.onnx_files import set_metadata

    for name in ("text", "frame", "temporal"):
        edit(model / "onnx" / f"{name}.onnx", lambda graph: set_metadata(graph, facts_of(model)))
    write_checksums(model)
    judged = verify_directory(model, precisions=["fp32"], probe=[probe], against="torch", keep_report=False).verdicts[0]
    assert judged.status == "failed" and judged.reason.startswith("tensors: text")


def test_a_tower_that_overflows_in_fp16_is_refused_and_nothing_changes(
    exported: tuple[Path, Report], model: Path, probe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A norm's scale times 1e7, the next weights divided by it: the same function, beyond fp16 and within bf16."""
    loud = Path(shutil.copytree(exported[0], tmp_path / "loud"))

    def scale(graph: Any) -> None:
        constants = {t.name: t for t in graph.graph.initializer}

        def times(node: Any, index: int, factor: float) -> None:
            # A tensor of its own: fresh norms are equal, and the exporter keeps one array for all of them.
            array = onnx.numpy_helper.to_array(constants[node.input[index]]) * np.float32(factor)
            node.input[index] = f"{node.name}.{index}"
            graph.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), node.input[index]))

        for norm in [node for node in graph.graph.node if node.op_type == "LayerNormalization"]:
            readers = [node for node in graph.graph.node if norm.output[0] in node.input]
            if all(node.op_type == "MatMul" for node in readers):
                times(norm, 1, 1e7)
                times(norm, 2, 1e7)
                for node in readers:
                    times(node, 1, 1e-7)
                return
        raise AssertionError("no norm that only products read")

    edit(loud / "onnx" / "temporal.onnx", scale)
    replay(monkeypatch, loud)
    before = tree(model)
    with pytest.raises(DriftError, match="fp16 graphs differ from PyTorch: tensors: temporal") as caught:
        export_graphs(model, precisions=("fp16", "bf16"), probe=[probe], providers=())
    assert caught.value.exit_code == 3 and "bf16" in (caught.value.hint or "")
    states = {v.precision: v.status for v in caught.value.report.verdicts}
    assert states == {"fp32": "ok", "fp16": "failed", "bf16": "ok"}
    assert tree(model) == before


@pytest.mark.parametrize("where", ["convert_to_half", "write_checksums"])
def test_a_full_disk_leaves_the_directory_as_it_was(
    where: str, exported: tuple[Path, Report], model: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    replay(monkeypatch, exported[0])
    monkeypatch.setattr(exporting, where, full)
    before = tree(model)
    with pytest.raises(ModelError, match="No space left on device"):
        export_graphs(model, precisions=("fp16",), probe=[probe], providers=())
    assert tree(model) == before


@pytest.mark.parametrize("count", [2, 9])
def test_ctrl_c_while_files_are_moved_puts_all_of_them_back(
    count: int, exported: tuple[Path, Report], model: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vctool_export.staging import Exchange

    replay(monkeypatch, exported[0])
    moves = 0
    real = Exchange.move

    def interrupted(self: Exchange, source: Path, target: Path) -> None:
        nonlocal moves
        moves += 1
        if moves == count:
            raise KeyboardInterrupt
        real(self, source, target)

    monkeypatch.setattr(Exchange, "move", interrupted)
    before = tree(model)
    with pytest.raises(KeyboardInterrupt):
        export_graphs(model, probe=[probe], providers=())
    assert tree(model) == before


def test_two_exports_at_once(model: Path) -> None:
    with staged(model), pytest.raises(ModelError, match=r"another export of .* is running"), staged(model):
        pass
    with staged(model):
        pass
    assert not list(model.glob(".export*"))


def test_what_a_killed_export_left_behind_is_removed(model: Path) -> None:
    (model / ".export-dead").mkdir()
    (model / ".export-dead" / "half.onnx").write_bytes(b"half")
    with staged(model):
        assert not (model / ".export-dead").exists()


def test_graphs_of_old_weights_go_and_those_of_the_same_stay(
    exported: tuple[Path, Report], model: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay(monkeypatch, exported[0])
    export_graphs(model, probe=[probe], providers=())
    assert (model / "onnx" / "text.fp16.onnx").is_file() and (model / "onnx" / "text.int8.onnx").is_file()

    def relabel(graph: Any) -> None:
        next(p for p in graph.metadata_props if p.key == "model_sha256").value = "00" * 32

    edit(model / "onnx" / "text.fp16.onnx", relabel)
    export_graphs(model, probe=[probe], providers=())
    assert not list((model / "onnx").glob("*.fp16.onnx*")) and (model / "onnx" / "text.int8.onnx").is_file()
    ModelDirectory.open(model, verify="all")


def test_the_fastest_encoder_that_passes_is_the_default_after_an_export(
    exported: tuple[Path, Report], model: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    replay(monkeypatch, exported[0])
    frame = model / "onnx" / "frame.onnx"
    assert ranked(frame, "cpu", "auto")[0].provider == "onnxruntime"
    report = export_graphs(model, probe=[probe], providers=("openvino-fp32",))
    assert [trial.status for trial in report.trials] == ["ok"]
    assert ranked(frame, "cpu", "auto")[0].provider == "openvino-fp32"
    ModelDirectory.open(model, verify="all")


def test_a_provider_that_fails_its_trial_is_not_taken_and_fails_nothing(
    exported: tuple[Path, Report], model: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    replay(monkeypatch, exported[0])
    monkeypatch.setattr(exporting, "limits_of", lambda make, precision: (lambda name: _Scaled(make(name)), precision))
    report = export_graphs(model, probe=[probe], providers=("openvino-fp32",))
    assert not report.failed and [trial.status for trial in report.trials] == ["failed"]
    assert not verified(model, "openvino-fp32") and ranked(model / "onnx" / "frame.onnx", "cpu", "auto")[0].provider == "onnxruntime"


class _Scaled:
    """A session that answers a little too much."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, outputs: tuple[str, ...], feeds: Any) -> list[Any]:
        return [a + a.dtype.type(0.01) if a.dtype.kind == "f" else a for a in self._session.run(outputs, feeds)]


def test_int8_by_the_users_clips(exported: tuple[Path, Report], model: Path, probe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, exported[0])
    # Twelve queries to an untrained model are ranked by chance: here it is the tensors that are judged.
    monkeypatch.setitem(verdict.LIMITS, "int8-qdq", replace(verdict.LIMITS["int8-qdq"], recall=100.0))
    report = export_graphs(model, precisions=("int8-qdq", "int8-weights"), calibrate=[probe], probe=[probe], providers=())
    assert {v.precision: v.status for v in report.verdicts} == {"fp32": "ok", "int8-weights": "ok", "int8-qdq": "ok"}
    layers = json.loads((model / "export" / "layers.int8-qdq.json").read_text())["graphs"]["frame"]["layers"]
    runs = {(layer["op"], layer["runs"]) for layer in layers}
    assert ("Conv", "int8") in runs and ("Softmax", "fp32") in runs and ("LayerNormalization", "fp32") in runs


def test_int8_without_clips_to_take_its_ranges_from_is_refused(model: Path) -> None:
    with pytest.raises(UsageProblem, match="takes its ranges from your clips"):
        export_graphs(model, precisions=("int8-qdq",), providers=())


def test_a_checksum_is_updated_for_the_named_file_alone(model: Path) -> None:
    (model / "README.md").write_text("new\n")
    (model / "onnx" / "text.onnx.data").write_bytes(b"altered")
    update_checksums(model, ["README.md"])
    with pytest.raises(ModelError, match=r"text\.onnx\.data is damaged"):
        ModelDirectory.open(model, verify="all")
