"""Optimizer, schedule, checkpoint files, log and display."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from toy import toy_config, toy_model

from vctool.errors import InputError, VctoolError
from vctool.models.losses import LossConfig, RetrievalLoss
from vctool.training import checkpoint
from vctool.training.checkpoint import Progress
from vctool.training.display import Display, clock
from vctool.training.log import RunLog, finite
from vctool.training.optimizer import build_optimizer, freeze_pretrained, rate_factor, set_rates
from vctool.training.recipe import OptimConfig
from vctool.training.stop import stop_requests


def test_the_rate_rises_and_falls_as_a_cosine() -> None:
    optim = OptimConfig(warmup=0.1, final_lr=0.2)
    factors = [rate_factor(step, 100, optim) for step in range(101)]
    assert factors[:3] == pytest.approx([0.1, 0.2, 0.3]) and factors[9] == 1.0 == factors[10]
    assert factors[55] == pytest.approx(0.6) and factors[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert rate_factor(0, 10, OptimConfig(warmup=0.0)) == 1.0


def groups_by_name(packaged: bool) -> dict[str, tuple[float, float]]:
    config = toy_config() if packaged else toy_config(backbone=type(toy_config().backbone)("offline", "open"))
    model, loss = toy_model(config), RetrievalLoss(LossConfig())
    freeze_pretrained(model, False)
    optimizer = build_optimizer(model, loss, OptimConfig(lr=1e-3, backbone_lr=1e-6, weight_decay=0.3))
    of = {id(p): (g["peak_lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    named = [*model.named_parameters(), *(("loss." + n, p) for n, p in loss.named_parameters())]
    return {name: of[id(p)] for name, p in named if id(p) in of}


def test_pretrained_parameters_have_their_own_rate_and_vectors_do_not_decay() -> None:
    groups = groups_by_name(packaged=False)
    assert groups["backbone.tower.weight"] == (1e-6, 0.3) and groups["backbone.tower.bias"] == (1e-6, 0.0)
    assert groups["temporal.blocks.0.qkv.weight"] == (1e-3, 0.3) and groups["temporal.blocks.0.norm_mlp.weight"] == (1e-3, 0.0)
    assert groups["loss.log_scale"] == (1e-3, 0.0) == groups["loss.bias"]


def test_heads_over_packaged_towers_are_new_modules_and_the_towers_do_not_train() -> None:
    groups = groups_by_name(packaged=True)
    assert groups["backbone.frame_out.weight"] == (1e-3, 0.3) and "backbone.tower.weight" not in groups


def test_the_schedule_scales_every_group_by_its_own_peak() -> None:
    model, loss = toy_model(toy_config(backbone=type(toy_config().backbone)("offline", "open"))), RetrievalLoss(LossConfig())
    optimizer = build_optimizer(model, loss, OptimConfig(lr=1e-2, backbone_lr=1e-4))
    set_rates(optimizer, 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {5e-3, 5e-5}


def test_a_checkpoint_comes_back_whole_and_without_running_code(tmp_path: Path) -> None:
    content = {"model": {"w": torch.randn(3)}, "random": checkpoint.random_state()}
    progress = Progress(step=7, best={"value": 1.5, "metrics": {"f/R@1": None}}, history=[{"step": 7}])
    checkpoint.save_checkpoint(tmp_path, content, progress, keep=1)
    back = checkpoint.load_checkpoint(tmp_path)
    assert torch.equal(back["model"]["w"], content["model"]["w"]) and back["progress"] == progress
    torch.save({"schema": 1, "progress": Path("x")}, tmp_path / "step-00000009.pt")  # a pickled object is refused
    with pytest.raises(InputError, match="not a checkpoint"):
        checkpoint.load_checkpoint(tmp_path)


def test_random_numbers_go_on_where_they_stopped() -> None:
    state = checkpoint.random_state()
    first = torch.randn(4)
    checkpoint.restore_random_state(state)
    assert torch.equal(first, torch.randn(4))


def test_a_full_disk_keeps_the_checkpoint_before_it_and_says_so(tmp_path: Path) -> None:
    content = {"model": {"w": torch.zeros(50_000)}}
    checkpoint.save_checkpoint(tmp_path, content, Progress(step=1), keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(VctoolError, match="could not be written: File too large") as caught:
            checkpoint.save_checkpoint(tmp_path, content, Progress(step=2), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the checkpoint before it is intact" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.pt"]
    assert checkpoint.load_checkpoint(tmp_path)["progress"].step == 1


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 and then nothing"])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "step-00000001.pt").write_bytes(damage)
    with pytest.raises(InputError, match="not a checkpoint, or damaged"):
        checkpoint.load_checkpoint(tmp_path)


def test_the_log_drops_lines_beyond_the_step_that_is_resumed_and_torn_ones(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False, after=0) as log:
        for step in (1, 2, 3):
            log.write("step", step, {"loss": step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "ste')
    with RunLog(tmp_path, tensorboard=False, after=2) as log:
        log.write("step", 3, finite({"loss": math.nan}))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, None)]


def test_a_log_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with (
            pytest.raises(VctoolError, match=r"log\.jsonl cannot be written: File too large"),
            RunLog(tmp_path, tensorboard=False, after=0) as log,
        ):
            for step in range(100):
                log.write("step", step, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_tensorboard_gets_the_numbers_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    with RunLog(tmp_path, tensorboard=True, after=0) as log:
        log.write("step", 1, {"loss": 2.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_progress_off_a_terminal_is_plain_lines_with_rate_and_time_left(capfd: pytest.CaptureFixture[str]) -> None:
    with Display().bar("training", 20, "steps") as update:
        for step in range(1, 21):
            update(step, "loss 1.0")
    said = capfd.readouterr()
    assert said.out == "" and "training 20/20" in said.err and "steps/s" in said.err and "loss 1.0" in said.err and "\x1b" not in said.err


def test_what_a_cache_already_held_does_not_count_as_work(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    moments = iter([0.0, *[1.0 * i for i in range(100)]])
    monkeypatch.setattr("vctool.training.display.time.monotonic", lambda: next(moments))
    with Display().bar("clips", 1000, "clips") as update:
        for done in range(991, 1001):
            update(done)
    rate = float(capfd.readouterr().err.split("1000/1000, ")[1].split(" clips/s")[0])
    assert rate < 2


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    display = Display(quiet=True)
    display.say("hello")
    with display.bar("x", 1, "steps") as update:
        update(1)
    assert capfd.readouterr() == ("", "")


def test_times_are_for_people() -> None:
    assert [clock(s) for s in (0.2, 61, 3725)] == ["0:00", "1:01", "1:02:05"]


def test_a_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)
