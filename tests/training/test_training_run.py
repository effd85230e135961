"""A run as its user sees it: what it leaves behind, what it refuses, and that stopping it changes nothing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy import QUIET, Splits, ToyBackbone, toy_config, toy_recipe

from vctool.config import TemporalConfig
from vctool.errors import InputError, Interrupted, UsageProblem, VctoolError
from vctool.models.checkpoint import load_model
from vctool.models.losses import RetrievalLoss
from vctool.runtime.checksums import read_checksums, verify_file
from vctool.training import checkpoint
from vctool.training.display import Display
from vctool.training.loop import Trainer
from vctool.training.recipe import Recipe
from vctool.training.run import resume, start
from vctool.training.stop import StopRequest

pytestmark = pytest.mark.usefixtures("toy")


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "model" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    last = [checkpoint.load_checkpoint(root / "checkpoints") for root in (one, other)]
    for name, value in last[0]["model"].items():
        assert torch.equal(value, last[1]["model"][name]), name
    for key, state in last[0]["optimizer"]["state"].items():
        assert all(torch.equal(v, last[1]["optimizer"]["state"][key][k]) for k, v in state.items())
    stories = [json.loads((root / "model" / "training.json").read_text()) for root in (one, other)]
    for key in ("best", "history", "log_scale", "bias", "steps"):
        assert stories[0][key] == stories[1][key]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ask for a stop when `step` steps are done, as Ctrl-C does."""
    original = Trainer._apply

    def apply(self: Trainer, parts: Any) -> Any:
        numbers = original(self, parts)
        if self.progress.step + 1 == step:
            self.stop.asked = True
        return numbers

    monkeypatch.setattr(Trainer, "_apply", apply)


@pytest.fixture
def recipe(splits: Splits, tmp_path: Path) -> Recipe:
    return toy_recipe(splits.train, splits.validation, tmp_path / "run")


def test_a_run_leaves_a_verified_model_directory_and_its_story(recipe: Recipe) -> None:
    summary = start(recipe, display=QUIET)
    folder = Path(summary["model"])
    for name, record in read_checksums(folder).items():
        verify_file(folder, name, record)
    assert {"config.json", "model.safetensors", "preprocess.json", "tokenizer.json", "training.json", "README.md"} <= {
        p.name for p in folder.iterdir()
    }
    story = json.loads((folder / "training.json").read_text())
    assert story["seed"] == 0 and story["recipe"]["optim"]["lr"] == 5e-3
    assert story["data"]["train"]["clips"] == 10 and len(story["history"]) == 3
    assert story["best"]["value"] == max(entry["value"] for entry in story["history"])
    assert "torch" in story["versions"] and story["hardware"]["device"]


def test_the_story_that_travels_names_no_folder_of_this_machine(recipe: Recipe, tmp_path: Path) -> None:
    start(recipe, display=QUIET)
    folder = tmp_path / "run" / "model"
    assert str(tmp_path) not in (folder / "training.json").read_text() + (folder / "README.md").read_text()


def test_the_toy_learns_content_and_the_direction_of_time(recipe: Recipe) -> None:
    trained = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, epochs=60))
    best = start(trained, display=QUIET)["best"]
    assert best["metrics"]["fv/reversal_accuracy"] >= 80
    assert best["metrics"]["f/reversal_accuracy"] == 50.0  # frame tokens know no time
    assert best["metrics"]["fv/R@1"] >= 80


def test_the_same_seed_gives_the_same_bits_and_another_does_not(splits: Splits, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        start(toy_recipe(splits.train, splits.validation, tmp_path / name, run__seed=seed), display=QUIET)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    a, c = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize(
    "settings", [{}, {"optim__accumulate": 2, "optim__batch": 4}, {"optim__precision": "bf16"}], ids=["plain", "accumulate", "bf16"]
)
@pytest.mark.parametrize("step", [1, 4], ids=["first-step", "mid-epoch"])
def test_an_interrupted_run_ends_bit_equal(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, settings: dict[str, Any]
) -> None:
    start(toy_recipe(splits.train, splits.validation, tmp_path / "whole", **settings), display=QUIET)
    with monkeypatch.context() as patch:
        interrupt_after(patch, step)
        with pytest.raises(Interrupted, match=f"stopped at step {step} of"):
            start(toy_recipe(splits.train, splits.validation, tmp_path / "cut", **settings), display=QUIET)
    resume(tmp_path / "cut", display=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_stopped_before_its_validation_validates_first_when_it_goes_on(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(toy_recipe(splits.train, splits.validation, tmp_path / "whole"), display=QUIET)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)  # an epoch has three steps: the stop falls between the step and its validation
        with pytest.raises(Interrupted):
            start(toy_recipe(splits.train, splits.validation, tmp_path / "cut"), display=QUIET)
    assert checkpoint.load_checkpoint(tmp_path / "cut" / "checkpoints")["progress"].validation_due
    resume(tmp_path / "cut", display=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_log_has_each_step_once_after_a_crash_and_a_resume(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._apply

    def crash(self: Trainer, parts: Any) -> Any:
        if self.progress.step == 6:
            raise RuntimeError("power cut")
        return original(self, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_apply", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            start(toy_recipe(splits.train, splits.validation, tmp_path / "run", run__checkpoint_every=5), display=QUIET)
    resume(tmp_path / "run", display=QUIET)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["event"] == "step"]
    assert steps == list(range(1, 10))
    assert {"loss", "loss_f", "loss_v", "lr", "log_scale", "bias", "grad_norm", "examples_per_second"} <= lines[1].keys()


def test_ctrl_c_saves_says_how_to_go_on_and_the_rest_is_bit_equal(splits: Splits, tmp_path: Path) -> None:
    settings = {"run__stall_steps": 0, "optim__epochs": 40, "run__validate_every": 60}
    script = tmp_path / "train.py"
    script.write_text(
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        "import torch, vctool.training.prepare as prepare, toy\n"
        "from pathlib import Path\n"
        "from vctool.cli.command import exit_code_of\n"
        "from vctool.training.run import start\n"
        "prepare.build_model = toy.toy_model; torch.set_num_threads(1)\n"
        f"paths = [Path(p) for p in {[str(splits.train), str(splits.validation), str(tmp_path / 'cut')]!r}]\n"
        f"recipe = toy.toy_recipe(*paths, **{settings!r})\n"
        "sys.exit(exit_code_of(lambda: start(recipe) and 0))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True, env=environment)
    log, deadline = tmp_path / "cut" / "log.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and (not log.exists() or log.read_text().count('"event": "step"') < 5):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "everything is saved" in said and f"vctool train --resume {tmp_path / 'cut'}" in said and "Traceback" not in said
    assert 5 <= checkpoint.load_checkpoint(tmp_path / "cut" / "checkpoints")["progress"].step < 120
    resume(tmp_path / "cut", display=QUIET)
    start(toy_recipe(splits.train, splits.validation, tmp_path / "whole", **settings), display=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_changed_recipe_is_not_resumed_and_the_keys_are_named(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        start(recipe, display=QUIET)
    changed = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, lr=1e-2, batch=8))
    with pytest.raises(UsageProblem) as caught:
        resume(tmp_path / "run", changed, display=QUIET)
    assert "optim.lr: 0.005 then, 0.01 now" in str(caught.value) and "optim.batch: 6 then, 8 now" in str(caught.value)


def test_a_run_may_be_resumed_with_other_folders_and_intervals(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interrupted):
            start(recipe, display=QUIET)
    changed = dataclasses.replace(
        recipe, run=dataclasses.replace(recipe.run, keep=3), data=dataclasses.replace(recipe.data, cache=tmp_path / "other")
    )
    assert resume(tmp_path / "run", changed, display=QUIET)["steps"] == 9


def test_changed_captions_are_not_resumed(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tmp_path / "own.jsonl"
    rows = [json.loads(line) for line in splits.train.read_text().splitlines()]
    rows = [row | {"path": str(splits.train.parent / row["path"])} for row in rows]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interrupted):
            start(toy_recipe(manifest, splits.validation, tmp_path / "run"), display=QUIET)
    rows[0]["captions"] = ["something else"]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UsageProblem, match="clips or captions are not those"):
        resume(tmp_path / "run", display=QUIET)


def test_a_folder_that_holds_a_run_is_not_written_over(recipe: Recipe) -> None:
    start(recipe, display=QUIET)
    with pytest.raises(UsageProblem, match="already holds a run"):
        start(recipe, display=QUIET)


def test_a_folder_without_a_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the folder of a run"):
        resume(tmp_path, display=QUIET)


def test_a_loss_that_is_not_a_number_stops_with_the_last_checkpoint_and_says_where(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RetrievalLoss.forward
    calls = 0

    def forward(self: RetrievalLoss, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        out = original(self, *args)
        return out._replace(total=out.total * float("nan")) if calls == 5 else out

    monkeypatch.setattr(RetrievalLoss, "forward", forward)
    with pytest.raises(
        VctoolError, match=r"the loss became nan at step 5 \(epoch 2, step 2 of 3\), in the batch that begins with clip .*mp4"
    ) as caught:
        start(recipe, display=QUIET)
    assert "step-00000003.pt" in str(caught.value)
    assert checkpoint.load_checkpoint(tmp_path / "run" / "checkpoints")["progress"].step == 3


def test_a_clip_that_cannot_be_read_is_left_out_and_named(splits: Splits, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "own.jsonl"
    rows = [json.loads(line) for line in splits.train.read_text().splitlines()]
    rows = [row | {"path": str(splits.train.parent / row["path"])} for row in rows]
    (tmp_path / "text.mp4").write_text("not a video")
    manifest.write_text(
        "\n".join(map(json.dumps, [*rows, {"path": "gone.mp4", "caption": "gone"}, {"path": "text.mp4", "caption": "words"}]))
    )
    summary = start(toy_recipe(manifest, splits.validation, tmp_path / "run", optim__steps=2), display=Display())
    said = capfd.readouterr().err
    assert "2 of 12 clips of own.jsonl cannot be read" in said and "gone.mp4" in said and "text.mp4" in said
    story = json.loads((Path(summary["model"]) / "training.json").read_text())
    assert story["data"]["train"]["clips"] == 10
    with pytest.raises(InputError, match=r"2 clips of .* cannot be read"):
        start(toy_recipe(manifest, splits.validation, tmp_path / "strict", data__strict=True), display=QUIET)


def test_fp16_on_a_cpu_is_refused_with_the_way_out(recipe: Recipe) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageProblem, match="fp16 needs a GPU") as caught:
        start(dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, precision="fp16")), display=QUIET)
    assert "bf16" in str(caught.value)


def test_a_backbone_that_is_not_frozen_trains_from_pixels(splits: Splits, tmp_path: Path) -> None:
    config = toy_config(backbone=dataclasses.replace(toy_config().backbone, name="open"))
    recipe = dataclasses.replace(toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__backbone_lr=1e-3), model=config)
    start(recipe, display=QUIET)
    assert any(p.name.startswith("frames-") for p in (tmp_path / "cache").iterdir())
    assert not torch.equal(weights(tmp_path / "run")["backbone.tower.weight"], ToyBackbone().tower.weight)


def test_freezing_a_whole_backbone_leaves_its_weights_and_uses_the_cache(splits: Splits, tmp_path: Path) -> None:
    config = toy_config(backbone=dataclasses.replace(toy_config().backbone, name="open"))
    recipe = dataclasses.replace(toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__freeze_backbone=True), model=config)
    start(recipe, display=QUIET)
    assert any(p.name.startswith("maps-") for p in (tmp_path / "cache").iterdir())
    assert torch.equal(weights(tmp_path / "run")["backbone.tower.weight"], ToyBackbone().tower.weight)


def test_a_frozen_backbone_without_a_temporal_transformer_is_nothing_to_train(splits: Splits, tmp_path: Path) -> None:
    config = toy_config(backbone=dataclasses.replace(toy_config().backbone, name="open"), temporal=TemporalConfig(kind="mean"))
    recipe = dataclasses.replace(toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__freeze_backbone=True), model=config)
    with pytest.raises(UsageProblem, match="nothing to train"):
        start(recipe, display=QUIET)


@pytest.mark.parametrize("interaction", ["f", "v"])
def test_a_model_of_one_branch_trains_and_is_chosen_by_it(splits: Splits, tmp_path: Path, interaction: str) -> None:
    recipe = dataclasses.replace(toy_recipe(splits.train, splits.validation, tmp_path / "run"), model=toy_config(interaction=interaction))
    metrics = start(recipe, display=QUIET)["best"]["metrics"]
    assert {name.split("/")[0] for name in metrics} == {interaction}


def test_patience_ends_a_run_that_no_longer_improves(splits: Splits, tmp_path: Path) -> None:
    recipe = toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__lr=0.0, optim__epochs=50, run__patience=2)
    assert start(recipe, display=QUIET)["steps"] == 9  # three epochs: the first is best, two are waited for


def test_keep_says_how_many_checkpoints_stay(splits: Splits, tmp_path: Path) -> None:
    start(toy_recipe(splits.train, splits.validation, tmp_path / "run", run__keep=2), display=QUIET)
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000006.pt", "step-00000009.pt"]


def test_training_can_go_on_from_a_model_directory(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(toy_recipe(splits.train, splits.validation, tmp_path / "first"), display=QUIET)
    monkeypatch.setattr("vctool.models.checkpoint.build_offline_backbone", lambda name, width: ToyBackbone())
    loaded = load_model(tmp_path / "first" / "model")
    recipe = toy_recipe(splits.train, splits.validation, tmp_path / "second", init__model=tmp_path / "first" / "model", optim__lr=0.0)
    start(recipe, display=QUIET)
    own = weights(tmp_path / "second")
    assert all(torch.equal(own[name], value) for name, value in loaded.trainable_state().items())


def test_a_stop_while_features_are_made_keeps_them_and_the_same_command_goes_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def asked() -> Iterator[StopRequest]:
        request = StopRequest()
        request.asked = True
        yield request

    with monkeypatch.context() as patch:
        patch.setattr("vctool.training.run.stop_requests", asked)
        with pytest.raises(Interrupted, match="stopped while preparing features"):
            start(recipe, display=QUIET)
    (index,) = (tmp_path / "cache").glob("maps-*/index.jsonl")
    assert len(index.read_text().splitlines()) == 1
    assert start(recipe, display=QUIET)["steps"] == 9


def test_a_loss_that_does_not_move_is_explained(splits: Splits, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = toy_recipe(
        splits.train, splits.validation, tmp_path / "run", optim__lr=0.0, optim__epochs=4, run__stall_steps=3, loss__bias=8.0
    )
    start(recipe, display=Display())
    said = capfd.readouterr().err
    assert "the loss has not moved for 3 steps" in said and "loss.calibrate_bias = true" in said
    events = [json.loads(line)["event"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert events[0] == "start" and "stall" in events and events[-1] == "end"


def test_a_calibrated_bias_starts_where_the_scores_are_and_survives_a_resume(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"loss__calibrate_bias": True, "loss__log_scale": 4.0, "loss__bias": 8.0, "loss__separate_scale": True}
    start(toy_recipe(splits.train, splits.validation, tmp_path / "whole", **settings), display=QUIET)
    first = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[0])
    assert first["f/bias"] == pytest.approx(first["f/calibrated"], rel=1e-4) and first["v/bias"] == pytest.approx(
        first["v/calibrated"], rel=1e-4
    )
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            start(toy_recipe(splits.train, splits.validation, tmp_path / "cut", **settings), display=QUIET)
    resume(tmp_path / "cut", display=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_reversals_are_weighed_and_logged_where_the_recipe_says_so(splits: Splits, tmp_path: Path) -> None:
    start(toy_recipe(splits.train, splits.validation, tmp_path / "run", loss__reversal_weight=1.0), display=QUIET)
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines() if '"step", "step"' in line]
    assert len(steps) == 9
    assert all(step["loss"] == pytest.approx(step["loss_f"] + step["loss_v"] + step["loss_reversal"], rel=1e-5) for step in steps)


def test_an_epoch_shorter_than_a_step_is_refused(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"fewer than optim\.accumulate = 9"):
        start(toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__accumulate=9), display=QUIET)


def test_every_caption_may_be_a_pair_of_its_own(splits: Splits, tmp_path: Path) -> None:
    summary = start(
        toy_recipe(splits.train, splits.validation, tmp_path / "run", data__caption_choice="all", optim__epochs=1), display=QUIET
    )
    assert summary["steps"] == 6  # 10 clips, both ways, two captions each way, six rows a batch


def test_a_batch_larger_than_the_data_is_said_and_sees_all_of_it(splits: Splits, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__batch=64, optim__steps=2)
    assert start(recipe, display=Display())["steps"] == 2
    assert "optim.batch is 64, the training clips make 20 rows: every step sees all of them" in capfd.readouterr().err


def test_a_disk_that_fills_at_a_checkpoint_keeps_the_one_before_and_the_run_goes_on_when_there_is_room(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(toy_recipe(splits.train, splits.validation, tmp_path / "whole"), display=QUIET)
    original = checkpoint._Recorder.write

    def full(self: Any, data: Any) -> int:
        if self.file.name.endswith("step-00000006.pt.partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint._Recorder, "write", full)
        with pytest.raises(VctoolError, match=r"step-00000006.pt could not be written: No space left on device") as caught:
            start(toy_recipe(splits.train, splits.validation, tmp_path / "cut"), display=QUIET)
    assert "make room" in str(caught.value)
    assert [p.name for p in sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))] == ["step-00000003.pt"]
    resume(tmp_path / "cut", display=QUIET)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
