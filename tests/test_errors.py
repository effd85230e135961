"""Errors a user meets: their hints must work as they are."""

from __future__ import annotations

import pickle

import pytest

from vctool.errors import MissingExtraError, VctoolError, VideoError, install_line


def test_an_extra_is_installed_by_the_names_of_its_packages() -> None:
    assert install_line("cpu").startswith('pip install "onnxruntime')


def test_an_extra_that_holds_another_names_the_packages_of_both() -> None:
    line = install_line("export")
    assert '"onnx' in line and '"torch' in line and "vctool[" not in line


@pytest.mark.parametrize(
    "problem", [VctoolError("a", "b"), VideoError("clip.mp4", "file is empty", "remove it"), MissingExtraError("torch", "train")]
)
def test_errors_travel_between_processes_whole(problem: VctoolError) -> None:
    copy = pickle.loads(pickle.dumps(problem))
    assert (type(copy), str(copy), copy.hint, copy.exit_code) == (type(problem), str(problem), problem.hint, problem.exit_code)
