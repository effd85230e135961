"""Clips for the toy, made once."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (the extra `train`)")

from toy import Splits, colour_pairs, toy_model, write_clips  # noqa: E402


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
