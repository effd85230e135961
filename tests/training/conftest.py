"""Clips for the toy, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (the extra `train`)")

from toy import Splits, colour_pairs, load_toy, toy_model, toy_recipe, write_clips  # noqa: E402

from vctool.training.recipe import recipe_toml  # noqa: E402

ABLATION = """
name = "small"
question = "Does it matter?"
base = "base.toml"
seeds = [0, 1]
metrics = ["R@1", "MRR"]

[[cell]]
name = "f"
set = ["model.interaction=f"]
note = "frames alone"

[[cell]]
name = "two_way"
set = ["model.similarity=two_way"]
"""


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Ten clips to train on and five to validate by."""
    folder = tmp_path_factory.mktemp("clips")
    pairs = colour_pairs()
    return Splits(write_clips(folder / "train", pairs[::3] + pairs[1::3]), write_clips(folder / "validation", pairs[2::3]))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes build the toy instead of a real model."""
    monkeypatch.setattr("vctool.training.prepare.build_model", toy_model)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def test_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips that neither train nor choose: pairs of the others, the other way round."""
    return write_clips(tmp_path_factory.mktemp("held") / "test", [(b, a) for a, b in colour_pairs()[1::4]])


@pytest.fixture
def ablation(splits: Splits, test_clips: Path, tmp_path: Path, toy: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ablation file of three cells and two seeds, over a toy recipe of four steps."""
    monkeypatch.setattr("vctool.ablation.run.load_model", load_toy)
    recipe = toy_recipe(splits.train, splits.validation, tmp_path / "unused", optim__steps=4, data__test=test_clips)
    (tmp_path / "base.toml").write_text(recipe_toml(recipe))
    path = tmp_path / "small.toml"
    path.write_text(ABLATION)
    return path
