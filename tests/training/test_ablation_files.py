"""Ablation files: what is refused, what runs share, and that the files which ship can be run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vctool.ablation.grid import RECIPES, find_file, load_grid
from vctool.ablation.run import distinct_runs
from vctool.cli import cli
from vctool.errors import InputError, UsageProblem, VctoolError

ABLATIONS = ("interaction", "loss", "expansion", "scale")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def problem(path: Path, kind: type[VctoolError] = UsageProblem) -> str:
    with pytest.raises(kind) as caught:
        load_grid(path, path.parent / "out")
    return f"{caught.value.message} | {caught.value.hint}"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds =", "seads =", "unknown key 'seads' | did you mean 'seeds'?"),
        ("note =", "nota =", "unknown key 'nota' | did you mean 'note'?"),
        ("interaction=f", "interactoin=f", "cell 'f'"),
        ("interaction=f", "interaction=vf", "is not one of f, v, fv"),
        ("interaction=f", "interaction=fv", "cell 'f' changes nothing of the base"),
        ("similarity=two_way", "interaction=f", "cells 'f' and 'two_way' are the same"),
        ('name = "two_way"', 'name = "f"', "two cells are called 'f'"),
        ('name = "two_way"', 'name = "baseline"', "two cells are called 'baseline'"),
        ('name = "two_way"', 'name = "../up"', "cannot be a name"),
        ('name = "two_way"\n', "", "cell 2 has no name"),
        ('"MRR"', '"nDCG@5"', "there is no metric 'nDCG@5' | did you mean 'nDCG@10'?"),
        ("[0, 1]", "[1, 1]", "seeds must be different"),
        ("[0, 1]", "[]", "seeds must be different"),
        ('base = "base.toml"', "", "'base' is missing"),
        ('name = "small"', 'name = "sm', "is not TOML"),
    ],
)
def test_a_file_is_refused_with_the_reason(ablation: Path, old: str, new: str, words: str) -> None:
    edit(ablation, old, new)
    assert words in problem(ablation)


def test_a_training_recipe_is_told_apart_from_an_ablation_file(ablation: Path) -> None:
    assert "a training recipe" in problem(ablation.with_name("base.toml"))


def test_a_file_without_cells_is_refused(ablation: Path) -> None:
    ablation.write_text(ablation.read_text().split("[[cell]]")[0])
    assert "there is no [[cell]]" in problem(ablation)


def test_a_base_without_test_clips_is_refused(ablation: Path) -> None:
    base = ablation.with_name("base.toml")
    base.write_text("\n".join(line for line in base.read_text().splitlines() if not line.startswith("test =")))
    assert "data.test is missing" in problem(ablation)


def test_manifests_that_are_not_there_are_named_with_the_way_to_name_others(ablation: Path) -> None:
    edit(ablation.with_name("base.toml"), "clips.jsonl", "klips.jsonl")
    assert "data.train" in problem(ablation, InputError) and "--set data.train" in problem(ablation, InputError)


def test_an_optional_cell_is_left_out_where_the_base_has_it(ablation: Path) -> None:
    edit(ablation, 'set = ["model.interaction=f"]', 'set = ["model.interaction=fv"]\noptional = true')
    grid = load_grid(ablation, ablation.parent / "out")
    assert [cell.name for cell in grid.cells] == ["baseline", "two_way"]


def test_all_cells_of_a_seed_come_before_the_next_seed_and_the_shared_baseline_once(ablation: Path) -> None:
    other = ablation.with_name("other.toml")
    other.write_text(ablation.read_text().replace('"small"', '"other"').replace("interaction=f", "interaction=v").replace('"f"', '"v"'))
    out = ablation.parent / "out"
    runs = distinct_runs([load_grid(ablation, out), load_grid(other, out)])
    assert [(run.cell.name, run.seed) for run in runs] == [(name, seed) for seed in (0, 1) for name in ("baseline", "f", "two_way", "v")]


def test_where_things_lie_does_not_change_a_run_and_what_is_learnt_does(ablation: Path) -> None:
    def keys(*overrides: str) -> list[str]:
        return [run.key for run in load_grid(ablation, ablation.parent / "out", overrides).runs]

    assert keys("data.cache=elsewhere", "run.log_every=7", "data.workers=1", "model.name=other") == keys()
    assert not set(keys("optim.lr=0.25")) & set(keys())


def test_other_clips_make_other_runs(ablation: Path, test_clips: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer.jsonl"
    rows = [json.loads(line) for line in test_clips.read_text().splitlines()[:2]]
    fewer.write_text("".join(json.dumps({**row, "path": str(test_clips.parent / row["path"])}) + "\n" for row in rows))
    before = load_grid(ablation, tmp_path / "out").runs[0].key
    assert load_grid(ablation, tmp_path / "out", [f"data.test={fewer}"]).runs[0].key != before


def test_a_name_that_neither_is_a_file_nor_ships_is_refused() -> None:
    with pytest.raises(InputError, match="no such ablation file") as caught:
        find_file(Path("los"), "ablation file")
    assert caught.value.hint is not None and "loss" in caught.value.hint


@pytest.mark.parametrize("base", ["world", "msrvtt-clip-b32"])
def test_every_file_that_ships_runs_dry_on_both_bases(base: str, test_clips: Path, splits: tuple[Path, Path], tmp_path: Path) -> None:
    data = [f"data.train={splits[0]}", f"data.validation={splits[1]}", f"data.test={test_clips}"]
    options = [part for entry in data for part in ("--set", entry)]
    result = CliRunner().invoke(cli, ["ablate", *ABLATIONS, "--base", base, "-o", str(tmp_path / "out"), "--dry-run", "--json", *options])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [one["name"] for one in plan["ablations"]] == list(ABLATIONS) and all(one["seeds"] == [0, 1, 2] for one in plan["ablations"])
    assert plan["runs"] == 3 * 25 and plan["finished"] == 0 and plan["seconds_left"] is None


def test_no_recipe_ships_untested() -> None:
    assert {file.stem for file in RECIPES.glob("*.toml")} == {*ABLATIONS, "world", "msrvtt-clip-b32"}
