"""Where a step's time goes: the parts are those that were slow, and they add up."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from toy import QUIET, Splits, toy_recipe

from vctool.training.loop import Trainer
from vctool.training.profile import StepClock, profile_lines
from vctool.training.run import start

pytestmark = pytest.mark.usefixtures("toy")


def test_shares_add_up_and_leave_the_first_step_and_pauses_out() -> None:
    clock = StepClock()
    for seconds in (0.2, 0.02, 0.02):
        with clock.part("data"):
            time.sleep(seconds)
        clock.add("loss", 0.0)
        clock.step()
    began = time.perf_counter()
    time.sleep(0.3)
    clock.pause(time.perf_counter() - began)
    with clock.part("data"):
        time.sleep(0.02)
    clock.step()
    report = clock.report()
    assert report["steps"] == 3 and sum(report["share"].values()) == pytest.approx(100)
    assert 0.02 <= report["seconds_per_step"] < 0.09  # neither the first step nor the pause
    assert report["share"]["data"] > 80


def test_a_profile_of_no_steps_says_so() -> None:
    assert profile_lines(StepClock().report()) == ["too few steps for a profile: the first one is left out"]


@pytest.mark.parametrize("slow", [False, True])
def test_a_run_that_waits_for_its_data_is_told(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    real = Trainer._read
    if slow:
        monkeypatch.setattr(Trainer, "_read", lambda self, *place: (time.sleep(0.1), real(self, *place))[1])
    recipe = toy_recipe(splits.train, splits.validation, tmp_path / "run", run__profile=True, optim__steps=6, run__validate_every=100)
    report = start(recipe, display=QUIET)["profile"]
    assert report["steps"] == 5
    assert (report["share"]["data"] > 50) is slow
    assert any("wait for data" in line for line in profile_lines(report)) is slow
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["share"] for line in log if line["event"] == "profile"] == [report["share"]]
