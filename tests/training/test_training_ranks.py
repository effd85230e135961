"""Several processes do what one does: the same losses, the same weights, the same choice; stopped, killed and resumed.

Processes are started by torchrun (gloo, on the CPU), once for all of these tests, since starting them is what takes time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from test_training_run import assert_same_run, interrupt_after
from toy import QUIET, Splits, batch_gradients, toy_model, toy_recipe

from vctool.errors import Interrupted, UsageProblem
from vctool.training.ranks import ALONE, Ranks, joined
from vctool.training.run import resume, start

HERE = Path(__file__).parent
# float32, nine steps of Adam at a rate of 5e-3. Adam divides a gradient by its own size: where the true one is next to nothing (the
# keys' biases, which the softmax takes away again) rounding is what the weight follows. It is 0.01 of what such a weight can move.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-6, 5e-4
NO_GRADIENT = ("query_weights.layers.2.bias", "token_weights.layers.2.bias")  # in truth zero: a softmax does not see what it adds
ROWS = [1, 2, 5, 6]

# What is run by one process and by two; `batch=7` and reversals that are not cut apart make uneven shares.
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"run__checkpoint_every": 2},
    "cached": {"optim__encode_rows": 2},
    "uneven": {"optim__batch": 7, "loss__kind": "dual_infonce", "loss__reversal_weight": 1.0, "optim__encode_rows": 2},
    "accumulated": {"optim__batch": 4, "optim__accumulate": 2, "loss__kind": "dual_sigmoid_equalized", "optim__ema": 0.9},
    "weighted": {"model__similarity": "weighted", "loss__calibrate_bias": True, "loss__log_scale": 2.3},
    "unfrozen": {"model__interaction": "f", "model__tower": "open", "optim__backbone_lr": 1e-3},
}


def torchrun(work: Path, tasks: Sequence[dict[str, Any]]) -> None:
    work.write_text(json.dumps(tasks))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command += ["--max-restarts=1", "--monitor-interval=0.1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, str(HERE / "several.py"), str(work)], capture_output=True, text=True, timeout=480, env=environment)
    assert run.returncode == 0, run.stderr[:6000]


class Launched(NamedTuple):
    """What two processes left: the folders of their runs by name, those of one process, and gradients in float64."""

    two: Path
    one: Path
    gradients: dict[str, dict[str, torch.Tensor]]
    cached: dict[str, dict[str, torch.Tensor]]


def single(splits: Splits, out: Path, **changes: Any) -> None:
    start(toy_recipe(splits.train, splits.validation, out, **changes), display=QUIET)


@pytest.fixture(scope="module")
def launch(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """All that two processes have to do, at one go."""
    root = tmp_path_factory.mktemp("ranks")
    two, one = root / "two", root / "one"
    data = {"train": str(splits.train), "validation": str(splits.validation)}
    # The first task kills a process: torchrun starts both anew, with the same list.
    tasks: list[dict[str, Any]] = [{"do": "kill", "step": 5, **data, "out": str(two / "killed"), "changes": RUNS["plain"]}]
    tasks += [{"do": "run", **data, "out": str(two / name), "changes": changes} for name, changes in RUNS.items()]
    tasks += [{"do": "stop", "step": 4, "code": 130, **data, "out": str(two / "stopped"), "changes": {}}]
    tasks += [{"do": "gradients", "rows": ROWS, "encode_rows": n, "out": str(root / f"gradients-{n}.pt")} for n in (0, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vctool.training.prepare.build_model", toy_model)
        torch.set_num_threads(1)
        for name, changes in RUNS.items():
            single(splits, one / name, **changes)
        with pytest.MonkeyPatch.context() as stopping:
            interrupt_after(stopping, 4)
            with pytest.raises(Interrupted):
                single(splits, two / "grown")
        tasks += [{"do": "resume", "out": str(two / "grown")}]
        torchrun(root / "work.json", tasks)
        resume(two / "stopped", display=QUIET)
    return Launched(two, one, *(torch.load(root / f"gradients-{n}.pt") for n in (0, 2)))


def steps(root: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def assert_close_run(one: Path, other: Path) -> None:
    """Losses of every step, gradient norms, validations and final weights agree to float32's rounding."""
    ours, theirs = steps(one), steps(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] and ours
    for a, b in zip(ours, theirs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=LOSS_TOLERANCE), a["step"]
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    weights = [load_file(root / "model" / "model.safetensors") for root in (one, other)]
    for name, value in weights[0].items():
        assert name.endswith(NO_GRADIENT) or torch.allclose(value, weights[1][name], rtol=0, atol=WEIGHT_TOLERANCE), name
    stories = [json.loads((root / "model" / "training.json").read_text()) for root in (one, other)]
    assert stories[0]["best"]["step"] == stories[1]["best"]["step"]
    for a, b in zip(stories[0]["history"], stories[1]["history"], strict=True):
        assert a["metrics"] == pytest.approx(b["metrics"], abs=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_end_where_one_does(launch: Launched, name: str) -> None:
    assert_close_run(launch.one / name, launch.two / name)


def test_gradient_caching_ends_where_the_plain_step_does(launch: Launched) -> None:
    assert_close_run(launch.one / "plain", launch.one / "cached")
    assert_close_run(launch.one / "plain", launch.two / "cached")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("which", ["gradients", "cached"])
def test_gradients_over_processes_are_those_of_one_in_float64(launch: Launched, which: str, rows: int) -> None:
    expected, found = batch_gradients(ALONE, rows), getattr(launch, which)[str(rows)]
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-12), name


def test_a_run_of_two_processes_goes_on_with_one(launch: Launched) -> None:
    assert_close_run(launch.one / "plain", launch.two / "stopped")


def test_a_run_of_one_process_goes_on_with_two(launch: Launched) -> None:
    assert_close_run(launch.one / "plain", launch.two / "grown")


def test_only_the_first_process_writes(launch: Launched) -> None:
    (line,) = [line for line in (launch.two / "plain" / "log.jsonl").read_text().splitlines() if '"start"' in line]
    assert json.loads(line)["step"] == 0
    assert json.loads((launch.two / "plain" / "run.json").read_text())["hardware"]["processes"] == 2


def test_a_killed_process_is_started_anew_and_the_run_ends_with_the_same_bits(launch: Launched) -> None:
    resumed = [json.loads(line) for line in (launch.two / "killed" / "log.jsonl").read_text().splitlines() if '"resumed"' in line]
    assert [line["step"] for line in resumed] == [4]
    assert_same_run(launch.two / "plain", launch.two / "killed")


# -- without torchrun -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "world"), [(6, 2), (7, 2), (5, 3), (1, 4), (0, 2)])
def test_every_row_has_one_owner_and_shares_are_even(rows: int, world: int) -> None:
    spans = [list(range(rows))[Ranks(rank, world).span(rows)] for rank in range(world)]
    assert [row for span in spans for row in span] == list(range(rows))
    assert [len(span) for span in spans] == Ranks(0, world).counts(rows)
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


def launch_variables(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    values = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29400"} | changes
    for name, value in values.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)


def test_nccl_without_a_gpu_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    launch_variables(monkeypatch)
    with pytest.raises(UsageProblem, match="needs GPUs, and torch sees none") as caught, joined("nccl"):
        pass
    assert "gloo" in str(caught.value)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_variables(monkeypatch, LOCAL_RANK="3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageProblem, match="process 3 of this machine has no GPU of its own: torch sees 2") as caught, joined():
        pass
    assert "--nproc-per-node=2" in str(caught.value)


def test_half_of_what_a_launcher_sets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_variables(monkeypatch, MASTER_ADDR="")
    with pytest.raises(UsageProblem, match="RANK is set and MASTER_ADDR is not"), joined():
        pass


def test_one_process_under_torchrun_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_variables(monkeypatch, WORLD_SIZE="1")
    with joined() as ranks:
        assert ranks is ALONE
