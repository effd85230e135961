"""`vctool train` as it is typed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from toy import Splits, toy_recipe

import vctool_export
from vctool.cli import cli
from vctool.cli.command import exit_code_of
from vctool.config import TemporalConfig
from vctool.errors import MissingExtraError
from vctool.training import checkpoint
from vctool.training.loop import Trainer
from vctool.training.recipe import load_recipe, recipe_toml

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def recipe(splits: Splits, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_toml(toy_recipe(splits.train, splits.validation, tmp_path / "run")))
    return path


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose graphs were asked for; the toy has none to export."""
    folders: list[Path] = []
    monkeypatch.setattr(vctool_export, "export_graphs", lambda folder, progress=None: folders.append(folder))
    return folders


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["train", *map(str, arguments)])


def code(*arguments: object) -> int:
    return exit_code_of(lambda: cli.main(["train", *map(str, arguments)], standalone_mode=False))


def test_training_prints_the_model_folder_on_stdout_and_exports_its_graphs(recipe: Path, exported: list[Path], tmp_path: Path) -> None:
    result = run(recipe, "--set", "optim.steps=2")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "run" / "model") and exported == [tmp_path / "run" / "model"]
    assert "step 2" in result.stderr


def test_json_is_one_object_with_the_best_metrics(recipe: Path, exported: list[Path], tmp_path: Path) -> None:
    result = run(recipe, "--json", "-q", "-o", tmp_path / "other", "--seed", "5", "--set", "optim.steps=2")
    summary = json.loads(result.stdout)
    assert summary["steps"] == 2 and "fv/R@1" in summary["best"]["metrics"] and summary["run"] == str(tmp_path / "other")
    assert result.stderr == "" and load_recipe(tmp_path / "other" / "recipe.toml").run.seed == 5


def test_a_run_is_resumed_by_its_folder_alone(
    recipe: Path, exported: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = Trainer._apply

    def stop(self: Trainer, parts: Any) -> Any:
        self.stop.asked = self.progress.step == 3
        return original(self, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_apply", stop)
        assert code(recipe) == 130
    assert f"hint: go on with: vctool train --resume {tmp_path / 'run'}" in capfd.readouterr().err and not exported
    assert code("--resume", tmp_path / "run") == 0 and len(exported) == 1
    assert checkpoint.load_checkpoint(tmp_path / "run" / "checkpoints")["progress"].step == 9
    assert code("--resume", tmp_path / "run") == 0  # a finished run writes its model once more


def test_resuming_with_another_value_is_a_usage_error(
    recipe: Path, exported: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert code(recipe, "--set", "optim.steps=2") == 0
    assert code("--resume", tmp_path / "run", "--set", "optim.lr=1.0") == 2
    assert "optim.lr: 0.005 then, 1.0 now" in capfd.readouterr().err


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = run(recipe, "--dry-run")
    assert said.exit_code == 0, said.output
    assert "9 steps, 3 an epoch, of 6 rows x 1" in said.stdout and "fv/R@1 + fv/reversal_accuracy" in said.stdout
    plan = json.loads(run(recipe, "--dry-run", "--json").stdout)
    assert plan["cache"]["missing_clips"] == 15 and plan["cache"]["bytes"] == 15 * 4 * 6 * 2 and plan["train"]["rows_per_epoch"] == 20
    assert plan["parameters"]["trained"] < plan["parameters"]["backbone"] + plan["parameters"]["temporal"]
    assert "new, matrices: " in said.stdout and "activations of 6 rows" in said.stdout and "s a step (measured)" in said.stdout
    assert sum(group["parameters"] for group in plan["groups"]) == plan["parameters"]["trained"] + 2  # log-scale and bias
    assert plan["bytes"]["optimizer"] == 2 * plan["bytes"]["gradients"] == 8 * plan["parameters"]["trained"]
    assert plan["hours"] == pytest.approx(9 * plan["step"]["seconds"] / 3600)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_tells_what_saves_memory(splits: Splits, tmp_path: Path) -> None:
    held, layers = [], TemporalConfig(layers=3, head_width=8, max_frames=8)
    for changes in ({}, {"optim__encode_rows": 2}, {"optim__recompute": True}):
        path = tmp_path / "own.toml"
        values = {"optim__batch": 24, "model__temporal": layers, **changes}
        path.write_text(recipe_toml(toy_recipe(splits.train, splits.validation, tmp_path / "run", **values)))
        plan = json.loads(run(path, "--dry-run", "--json").stdout)
        held.append((plan["rows_at_once"], plan["bytes"]["activations"], plan["bytes"]["weights"]))
    assert [rows for rows, _, _ in held] == [24, 2, 24] and held[0][2] == held[1][2]
    assert held[1][1] == pytest.approx(held[0][1] / 12, rel=0.2) and held[2][1] < held[0][1]


IMPOSSIBLE = [
    ([], "no recipe given"),
    (["--resume", "run", "-o", "x"], "exclude each other"),
    (["none.toml"], "no such recipe"),
    (["--resume", "gone"], "not the folder"),
]


@pytest.mark.parametrize(("arguments", "words"), IMPOSSIBLE)
def test_a_call_that_cannot_work_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code(*arguments) in (1, 2)
    said = capfd.readouterr().err
    assert words in said and "Traceback" not in said and "internal error" not in said


def test_without_torch_the_way_to_install_it_is_told(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else original(name, *rest))
    assert code(recipe) == 1
    said = capfd.readouterr().err
    assert "torch is not installed" in said and "pip install" in said


def test_without_the_exporter_the_model_is_kept_and_the_way_on_is_told(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def missing(folder: Path, progress: object = None) -> None:
        raise MissingExtraError("onnx", "export")

    monkeypatch.setattr(vctool_export, "export_graphs", missing)
    assert code(recipe, "--set", "optim.steps=2") == 0
    said = capfd.readouterr()
    assert f"vctool export {tmp_path / 'run' / 'model'}" in said.err and (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_folder_that_cannot_be_written_is_one_line(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert code(recipe, "-o", tmp_path / "file" / "run") == 1
    assert "cannot be written" in capfd.readouterr().err
