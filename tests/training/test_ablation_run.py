"""Grids: what they leave behind, that nothing is done twice, and that a stop changes nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from toy import QUIET, load_toy

from vctool.ablation import run as runner
from vctool.ablation.grid import load_grid
from vctool.ablation.outcome import OUTCOME_FILE
from vctool.ablation.run import distinct_runs, outcome_of, place_of, run_all, run_one
from vctool.cli import cli
from vctool.cli.command import exit_code_of
from vctool.errors import Interrupted, VctoolError
from vctool.metrics import evaluate_ranking
from vctool.training.display import Display
from vctool.training.loop import Trainer


def ablate(file: Path, *arguments: object) -> Result:
    return CliRunner().invoke(cli, ["ablate", str(file), "-o", str(file.parent / "out"), *map(str, arguments)])


def code(file: Path, *arguments: object) -> int:
    line = ["ablate", str(file), "-o", str(file.parent / "out"), *map(str, arguments)]
    return exit_code_of(lambda: cli.main(line, standalone_mode=False))


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted((folder / "runs").glob(f"*/{OUTCOME_FILE}"))}


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What of a result must not depend on when it was made."""
    return {name: result[name] for name in ("key", "metrics", "per_query", "reversal_accuracy", "log_scale", "bias", "best_step")}


def test_a_grid_leaves_a_result_for_each_run_and_a_table_in_two_forms(ablation: Path) -> None:
    done = ablate(ablation)
    assert done.exit_code == 0, done.output
    out = ablation.parent / "out"
    found = results(out)
    assert sorted(name.rpartition("-")[0] for name in found) == sorted(
        f"{cell}-seed{seed}" for cell in ("baseline", "f", "two_way") for seed in (0, 1)
    )
    assert done.stdout.strip() == (out / "small.md").read_text().strip() and "± " in done.stdout and "two_way" in done.stdout
    table = json.loads((out / "small.json").read_text())
    assert [cell["name"] for cell in table["cells"]] == ["baseline", "f", "two_way"]
    assert table["cells"][1]["set"] == ["model.interaction=f"] and "video" not in table["cells"][1]["branches"]
    assert not list(out.glob("runs/*/checkpoints")) and not list(out.glob("runs/*/model"))
    for result in found.values():
        assert result["scored_by"] == "PyTorch" and result["test"]["queries"] == 4 and result["steps"] == 4


def test_the_test_clips_are_scored_as_the_model_scores_them(ablation: Path) -> None:
    ablate(ablation, "--seed", 0, "--keep-models")
    out = ablation.parent / "out"
    for name, result in results(out).items():
        model = load_toy(out / "runs" / name / "model")
        run = next(r for r in load_grid(ablation, out).runs if r.key == result["key"])
        assert run.recipe.data.test is not None
        split, queries, _ = runner.prepare_held_out(run.recipe, model, run.recipe.data.test, 1, out / "again", QUIET)
        # Clip by clip and caption by caption: no batch, no chunk.
        score = np.zeros((len(queries.text_Q), len(split.clips)), np.float32)
        for q, c in np.ndindex(score.shape):
            frames, mask = split.frames.take(np.array([c]))
            text = split.texts.take(queries.text_Q[q : q + 1])
            asked = model.query_from_states(text.state_BLW.float(), text.input_ids_BL, text.attention_mask_BL)  # type: ignore[union-attr]
            score[q, c] = float(model.score(asked, model.encode_maps(frames.float(), mask)).total_BC.detach())
        again = evaluate_ranking(score, queries.relevant)
        assert result["per_query"][result["primary"]]["rank"] == pytest.approx(again.ranks.tolist())


def test_a_second_command_trains_nothing(ablation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ablate(ablation)
    table = (ablation.parent / "out" / "small.md").read_text()
    monkeypatch.setattr(runner, "run_one", None)
    again = ablate(ablation)
    assert again.exit_code == 0 and "6 of 6 runs are finished" in again.stderr
    assert (ablation.parent / "out" / "small.md").read_text() == table


def test_ctrl_c_keeps_finished_runs_and_the_same_command_goes_on_exactly(ablation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ablation.parent / "whole"
    run_all(load_grid(ablation, whole, seeds=[0]).runs, whole, display=QUIET)
    original, steps = Trainer._apply, 0

    def apply(self: Trainer, parts: Any) -> Any:
        nonlocal steps
        numbers = original(self, parts)
        steps += 1
        if steps == 6:  # the second step of the second run
            os.kill(os.getpid(), signal.SIGINT)
        return numbers

    monkeypatch.setattr(Trainer, "_apply", apply)
    assert code(ablation, "--seed", 0, "-q") == 130
    out = ablation.parent / "out"
    assert len(results(out)) == 1 and (out / "small.md").exists()
    assert list(out.glob("runs/f-seed0-*/checkpoints/step-00000002.pt"))
    assert code(ablation, "--seed", 0, "-q") == 0
    assert steps == 12, "the interrupted run went on at its third step"
    one, other = results(whole), results(out)
    assert one.keys() == other.keys() and all(numbers(one[name]) == numbers(other[name]) for name in one)


def test_ctrl_c_says_how_to_go_on(ablation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "measure", stop)
    with pytest.raises(Interrupted) as caught:
        run_all(load_grid(ablation, ablation.parent / "out").runs, ablation.parent / "out", display=QUIET)
    assert "0 of 6 runs are finished" in caught.value.message and caught.value.hint == "run the same command again to go on"


@pytest.mark.slow
def test_a_grid_that_is_killed_anywhere_ends_as_if_it_had_not_been(ablation: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run_all(load_grid(ablation, whole, seeds=[0]).runs, whole, display=QUIET)
    out = tmp_path / "killed"
    grid = load_grid(ablation, out, seeds=[0])
    for seconds in (0.1, 0.3, 0.6, 1.0, 1.5, 60.0):
        child = os.fork()
        if child == 0:
            run_all(distinct_runs([grid]), out, display=QUIET)
            os._exit(0)
        end = time.monotonic() + seconds
        while time.monotonic() < end and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.02)
        else:
            if time.monotonic() >= end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    one, other = results(whole), results(out)
    assert one.keys() == other.keys() and all(numbers(one[name]) == numbers(other[name]) for name in one)


def test_a_changed_recipe_is_trained_anew_with_a_word_and_the_old_result_kept(ablation: Path) -> None:
    ablate(ablation, "--only", "f", "--seed", 0)
    changed = ablate(ablation, "--only", "f", "--seed", 0, "--set", "optim.lr=1e-4")
    assert "cell f: recipe or data are not those of f-seed0-" in changed.stderr and "the old result is kept" in changed.stderr
    assert len(results(ablation.parent / "out")) == 2


def test_a_run_whose_loss_leaves_the_numbers_is_a_result_and_the_grid_goes_on(ablation: Path) -> None:
    text = ablation.read_text().replace('set = ["model.interaction=f"]', 'set = ["loss.log_scale=200.0"]')
    ablation.write_text(text)
    done = ablate(ablation, "--seed", 0)
    assert done.exit_code == 0, done.output
    assert "the loss became" in done.stdout.split("## Failed runs")[1] and "| f | – |" in done.stdout
    table = json.loads((ablation.parent / "out" / "small.json").read_text())
    assert list(table["cells"][1]["failed"]) == ["0"] and table["cells"][2]["metrics"]


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(ablation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = load_grid(ablation, ablation.parent / "out")
    run_one(grid.runs[0], place_of(grid.runs[0], ablation.parent / "out"), display=QUIET)

    original = Path.open

    def full(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == f"{OUTCOME_FILE}.partial":
            raise OSError(28, "No space left on device")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(VctoolError, match="could not be written: No space left on device"):
        run_all(grid.runs, ablation.parent / "out", display=QUIET)
    assert outcome_of(grid.runs[0], ablation.parent / "out") is not None and len(results(ablation.parent / "out")) == 1


def test_a_damaged_result_is_named_with_the_mend(ablation: Path) -> None:
    grid = load_grid(ablation, ablation.parent / "out")
    place = place_of(grid.runs[0], ablation.parent / "out")
    place.mkdir(parents=True)
    (place / OUTCOME_FILE).write_text('{"schema": 1')
    done = ablate(ablation, "--dry-run")
    assert done.exit_code == 1
    assert code(ablation, "--dry-run") == 1


def test_one_seed_has_no_interval_and_says_so(ablation: Path) -> None:
    done = ablate(ablation, "--seed", 3)
    assert "±" not in done.stdout.split("Mean ±")[0] and "One seed only: there is no interval over seeds" in done.stdout


def test_only_trains_the_named_cell_and_an_unknown_one_is_refused(ablation: Path) -> None:
    done = ablate(ablation, "--only", "two_way", "--seed", 0)
    assert [name.rpartition("-")[0] for name in results(ablation.parent / "out")] == ["two_way-seed0"]
    assert "2 of 3 runs are not finished" in done.stdout
    assert code(ablation, "--only", "three_way") == 2


def test_a_dry_run_trains_nothing_and_knows_the_time_from_what_is_finished(ablation: Path) -> None:
    before = ablate(ablation, "--dry-run")
    assert "not known before a first run is finished" in before.stdout and not (ablation.parent / "out" / "runs").exists()
    ablate(ablation, "--only", "f", "--seed", 0)
    plan = json.loads(ablate(ablation, "--dry-run", "--json").stdout)
    assert plan["runs"] == 6 and plan["finished"] == 1
    assert plan["seconds_left"] == pytest.approx(5 * plan["seconds_each"])
    assert [cell["finished"] for cell in plan["ablations"][0]["cells"]] == [0, 1, 0]


def test_tables_alone_are_written_from_what_is_finished(ablation: Path) -> None:
    ablate(ablation, "--seed", 0)
    (ablation.parent / "out" / "small.md").unlink()
    done = ablate(ablation, "--tables", "--json")
    assert (
        json.loads(done.stdout)["tables"][0]["name"] == "small"
        and "3 of 6 runs are not finished" in (ablation.parent / "out" / "small.md").read_text()
    )


def test_a_quiet_grid_says_nothing_on_stderr(ablation: Path) -> None:
    assert ablate(ablation, "-q", "--only", "f", "--seed", 0).stderr == ""


def test_each_finished_run_is_told_with_the_time_left(ablation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = load_grid(ablation, ablation.parent / "out", seeds=[0])
    run_all(grid.runs, ablation.parent / "out", display=Display())
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert [line.split(":")[0] for line in lines] == ["[1/3] baseline, seed 0", "[2/3] f, seed 0", "[3/3] two_way, seed 0"]
