"""Recipes: strict, relative to their file, and written back as they were understood."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from vctool.errors import InputError, UsageProblem
from vctool.training.recipe import FREE_KEYS, Recipe, differences, load_recipe, recipe_dict, recipe_toml
from vctool.training.toml_writer import to_toml

SMALL = '[data]\ntrain = "train.jsonl"\nvalidation = "val.jsonl"\n'


def write(tmp_path: Path, text: str = "") -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(SMALL + text)
    return path


def test_defaults_follow_the_field(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    optim = recipe.optim
    assert (optim.lr, optim.backbone_lr, optim.weight_decay, optim.betas) == (1e-4, 1e-7, 0.2, (0.9, 0.98))
    assert (optim.batch, optim.epochs, optim.warmup, optim.clip_norm) == (128, 5, 0.1, 1.0)
    assert (recipe.loss.log_scale, recipe.loss.bias) == (4.77, -12.93)


def test_paths_are_relative_to_the_recipe_and_overrides_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = load_recipe(write(tmp_path), ["data.validation=other.jsonl"])
    assert recipe.data.train == tmp_path / "train.jsonl"
    assert recipe.data.validation == tmp_path / "here" / "other.jsonl"


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [("[optim]\nlearning_rate = 1", "learning_rate", None), ("[optim]\nbatsh = 8", "batsh", "batch"), ("[optm]\nlr = 1", "optm", "optim"),
     ("[model.temporal]\nlayer = 3", "layer", "layers")],
)  # fmt: skip
def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path, text: str, key: str, near: str | None) -> None:
    with pytest.raises(UsageProblem) as caught:
        load_recipe(write(tmp_path, text))
    assert caught.value.exit_code == 2
    assert f"'{key}'" in caught.value.message and (near is None or f"'{near}'" in str(caught.value.hint))


OUT_OF_RANGE = [
    "optim.batch=1",
    "optim.warmup=1.5",
    "optim.betas=[0.9,1.0]",
    "optim.precision=fp8",
    "optim.lr=fast",
    "optim.lr=inf",
    "optim.epochs=0",
    "optim.steps=0",
    "loss.kind=triplet",
    "loss.bias=nan",
    "data.workers=-1",
    "data.limit=0",
    "run.keep=0",
    "run.name=a/b",
    "run.seed=-1",
]


@pytest.mark.parametrize("setting", OUT_OF_RANGE)
def test_values_out_of_range_are_usage_errors(tmp_path: Path, setting: str) -> None:
    with pytest.raises(UsageProblem, match=setting.split("=")[0].split(".")[1]):
        load_recipe(write(tmp_path), [setting])


@pytest.mark.parametrize("text", ["optim", "lr=1", "optim.=1", "data.train.deep=1"])
def test_a_malformed_override_is_a_usage_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageProblem, match="--set"):
        load_recipe(write(tmp_path), [text])


def test_override_values_are_toml_and_bare_words_are_texts(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path), ["optim.lr=3e-4", "optim.betas=[0.8, 0.9]", "run.name=mine", "data.reverse=true", 'loss.kind="combined_sigmoid"']
    )
    assert (recipe.optim.lr, recipe.optim.betas, recipe.run.name, recipe.data.reverse) == (3e-4, (0.8, 0.9), "mine", True)
    assert recipe.loss.kind == "combined_sigmoid"


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[data]\ntrain = "t.jsonl"\n')
    with pytest.raises(UsageProblem, match=r"data\.validation is missing"):
        load_recipe(path)


def test_a_misspelt_split_is_named_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[data]\ntrian = "t.jsonl"\nhold_out = 0.1\n')
    with pytest.raises(UsageProblem, match="unknown key 'trian'") as found:
        load_recipe(path)
    assert found.value.hint == "did you mean 'train'?"


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[data\n")
    with pytest.raises(UsageProblem, match="is not TOML"):
        load_recipe(tmp_path / "bad.toml")


def test_the_resolved_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, '[run]\nname = "a \\"b\\" \\u007f é"\n[optim]\nsteps = 7\nlr = 1e-7\n[model.query]\nexpand = "auto"\n')
    )
    (tmp_path / "resolved.toml").write_text(recipe_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "resolved.toml") == recipe


def test_toml_text_is_what_the_standard_library_reads() -> None:
    table = {"a": 1, "b": {"c": [1.5, 2.0], "d": {"e": True, "f g": "x\ny"}, "empty": {}}, "inf": float("inf")}
    assert tomllib.loads(to_toml(table)) == table


def test_differences_name_dotted_keys_and_free_keys_exist(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    other = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, lr=1.0, steps=3))
    assert differences(recipe_dict(recipe), recipe_dict(other)) == [("optim.lr", 1e-4, 1.0), ("optim.steps", None, 3)]
    tables = {field.name: field for field in dataclasses.fields(Recipe)}
    for key in FREE_KEYS:
        table, name = key.split(".")
        assert table in tables and hasattr(getattr(recipe, table), name)
