"""`vctool info` and `vctool doctor`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commandline import Vctool
from tinymodel import build_tiny_model

from vctool.cli import doctor as doctor_module
from vctool.cli.options import STORE_DTYPES
from vctool.errors import VctoolError
from vctool.precision import PRECISIONS
from vctool.runtime import sessions_onnxruntime
from vctool.scoring import kernels
from vctool.store import open_store


def test_info_of_a_model_directory(vctool: Vctool, tiny_model: Path) -> None:
    out = vctool("info", tiny_model).out
    assert "tiny" in out and "expansion off" in out and "4 a clip" in out
    facts = json.loads(vctool("info", tiny_model, "--json", "--all-files").out)
    assert (facts["kind"], facts["config"]["embed_dim"], facts["verified"]) == ("model", 8, "all")
    assert facts["graphs"]["text"] == (tiny_model / "onnx" / "text.onnx").stat().st_size


def test_info_says_how_a_model_without_token_training_scores(vctool: Vctool, tmp_path: Path, tiny_model: Path) -> None:
    pooled = build_tiny_model(tmp_path / "m", policy="pooled", temporal="mean")
    out = " ".join(vctool("info", pooled).out.split())
    assert "no token training: the pooled text vector against best frame + mean of frames" in out
    assert "token training" not in vctool("info", tiny_model).out


def test_info_of_a_store(vctool: Vctool, tiny_index: Path, tiny_model: Path) -> None:
    out = vctool("info", tiny_index, "--all-files").out
    assert "4, 00:04.5 of video" in out and "all checksums match" in out and str(tiny_model) in out.replace("\n", "")
    facts = json.loads(vctool("info", tiny_index, "--json").out)
    assert (facts["kind"], facts["clips"], facts["frame_tokens"], facts["video_tokens"]) == ("store", 4, 16, 24)
    assert facts["model_found"] == str(tiny_model.resolve()) and facts["frames"]["count"] == 4


def test_info_of_a_video(vctool: Vctool, tiny_videos: Path) -> None:
    facts = json.loads(vctool("info", tiny_videos / "change.mp4", "--json").out)
    assert (facts["kind"], facts["width"], facts["height"], facts["frames"], facts["codec"]) == ("video", 64, 48, 30, "h264")
    assert "64 x 48, h264" in vctool("info", tiny_videos / "change.mp4").out


def test_info_of_something_else_is_one_line(vctool: Vctool, tmp_path: Path, tiny_index: Path, tiny_model: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half.npz").write_bytes(tiny_index.read_bytes()[:3000])
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "tokenizer.json").unlink()
    for path, said in (
        (tmp_path / "nothing", "no such file"),
        (tmp_path / "text.txt", "text.txt"),
        (tmp_path / "empty", "not a model directory"),
        (tmp_path / "half.npz", "incomplete"),
        (model, "tokenizer.json is missing"),
    ):
        done = vctool("info", path)
        assert done.code == 1 and done.out == "" and said in done.err.splitlines()[0], done.err


def test_info_checks_every_byte_when_asked(vctool: Vctool, tiny_index: Path, tiny_model: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_index.read_bytes())
    data[data.find(open_store(tiny_index).frame_TD.tobytes()) + 9] ^= 1
    (tmp_path / "c.npz").write_bytes(data)
    assert vctool("info", tmp_path / "c.npz", "--all-files").code == 3
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "README.md").write_text("x")
    assert vctool("info", model).code == 0
    assert vctool("info", model, "--all-files").code == 1


def test_info_measures_what_each_precision_costs_and_finds(vctool: Vctool, tiny_index: Path, tmp_path: Path) -> None:
    done = vctool("info", tiny_index, "--measure", "--queries", "7")
    assert "int8 (as stored)" in done.out and "compact" in done.out and "float16" not in done.out
    assert "7 made-up queries (a stored moment plus noise), 4 of 4 clips" in done.err and "the store itself" in done.err
    small = tmp_path / "small.npz"
    vctool("store", "convert", tiny_index, "-o", small, "--dtype", "compact")
    np.save(tmp_path / "q.npy", np.eye(8, dtype=np.float32)[None, :3])
    measured = json.loads(vctool("info", small, "--measure", "--against", tiny_index, "--tokens", tmp_path / "q.npy", "--json").out)[
        "measured"
    ]
    assert (measured["reference"], measured["queries"], measured["made_up"]) == ("int8", 1, False)
    assert [(row["precision"], row["stored"]) for row in measured["rows"]] == [("int8", False), ("int4", False), ("compact", True)]
    assert measured["rows"][-1]["clip_bytes"] < measured["rows"][0]["clip_bytes"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--against", "x.npz"), 2, "add --measure"),
        (("--measure", "--against", "x.npz"), 1, "no such file"),
        (("--measure", "--tokens", "words.txt"), 1, "cannot be read as an array"),
    ],
)
def test_info_refuses_to_measure_what_it_cannot(
    vctool: Vctool, tiny_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("no array")
    done = vctool("info", tiny_index, *arguments)
    assert done.code == code and message in done.err and done.out == ""


def test_only_a_store_can_be_measured(vctool: Vctool, tiny_model: Path) -> None:
    done = vctool("info", tiny_model, "--measure")
    assert done.code == 2 and "only a token store can be measured" in done.err


def test_the_precisions_that_commands_offer_are_those_that_there_are() -> None:
    assert STORE_DTYPES == PRECISIONS


def test_doctor_finds_this_machine_fit(vctool: Vctool) -> None:
    done = vctool("doctor")
    assert done.code == 0 and "index and query work." in done.err
    for part in ("python", "ONNX Runtime", "scoring kernel", "video decoder", "[train]", "[trt]", "emoji font"):
        assert part in done.out
    report = json.loads(vctool("doctor", "--json").out)
    assert report["ok"] and all(f["mend"] for f in report["findings"] if f["state"] == "needed")


def test_doctor_sees_two_onnxruntimes_and_gives_the_command(vctool: Vctool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_onnxruntime, "installed_builds", lambda: {"onnxruntime": "1.0", "onnxruntime-gpu": "1.0"})
    done = vctool("doctor", "--json")
    finding = next(f for f in json.loads(done.out)["findings"] if f["part"] == "ONNX Runtime")
    assert done.code == 1 and finding["state"] == "needed"
    assert "onnxruntime-gpu 1.0" in finding["found"] and finding["mend"].startswith(
        "keep one: pip uninstall -y onnxruntime onnxruntime-gpu"
    )


def test_doctor_names_what_is_missing_and_how_to_mend_it(vctool: Vctool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor_module._version
    monkeypatch.setattr(doctor_module, "_version", lambda name: None if name in ("tokenizers", "torch") else real(name))

    def none() -> object:
        raise VctoolError("ONNX Runtime is not installed", 'install it with: pip install "vctool[cpu]"')

    monkeypatch.setattr(sessions_onnxruntime, "import_onnxruntime", none)
    done = vctool("doctor", "--json")
    mends = {f["part"]: (f["state"], f["mend"]) for f in json.loads(done.out)["findings"]}
    assert done.code == 1
    assert mends["ONNX Runtime"] == ("needed", 'pip install "vctool[cpu]"')
    assert mends["tokenizers"][0] == "needed"
    state, mend = mends["[train]"]
    assert state == "optional" and mend.startswith("pip install ") and '"torch>=' in mend


def test_doctor_says_why_scoring_is_slow_without_the_compiled_kernel(vctool: Vctool, monkeypatch: pytest.MonkeyPatch) -> None:
    report = kernels.KernelReport(("numpy",), "the kernel was not compiled when vctool was installed", mendable=True)
    monkeypatch.setattr(kernels, "report", lambda: report)
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    finding = next(f for f in json.loads(vctool("doctor", "--json").out)["findings"] if f["part"] == "scoring kernel")
    assert finding["state"] == "optional" and "was not compiled" in finding["found"] and "ten times" in finding["found"]
    assert finding["mend"].endswith("python -m vctool.scoring.build")


def test_doctor_finds_a_kernel_that_the_environment_names_in_vain(vctool: Vctool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "neon")
    done = vctool("doctor", "--json")
    finding = next(f for f in json.loads(done.out)["findings"] if f["part"] == "scoring kernel")
    assert done.code == 1 and "VCTOOL_KERNEL=neon" in finding["found"] and "choose auto" in finding["mend"]
