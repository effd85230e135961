"""`vctool demo`, step by step: the clips and the model that ship with the package, indexed and asked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from vctool.errors import InputError

QUERIES = (
    ("a dog catching a frisbee", "what is there, and who does what: its twin clip shows the dog throwing"),
    ("a rocket falls down", "motion: the clip of the rising rocket has the very same frames"),
    ("a sun appears before a cloud", "order: played backwards, the cloud disappears before the sun"),
    ("a cat chasing a dog", "who chases whom: played backwards, the dog chases the cat"),
)
"""(query, what it takes to answer it)."""

MODELS = ("demo", "offline")
"""Bundled models: `demo` is trained on the demo world, `offline` is the untrained pair of PyPI towers."""


def bundled_model(name: str) -> Path:
    """The bundle of one of MODELS."""
    return Path(str(resources.files("vctool.demo").joinpath("models", name)))


def unpack_clips(folder: Path) -> int:
    """Copy the bundled clips and their captions into `folder` (made if need be); returns how many. Raises InputError."""
    source = Path(str(resources.files("vctool.demo").joinpath("clips")))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clips = sorted(source.glob("*.mp4"))
        for path in [*clips, source / "captions.jsonl", source / "README.md"]:
            shutil.copyfile(path, folder / path.name)
    except OSError as problem:
        raise InputError(f"{folder} cannot be written: {problem.strerror or problem}", "choose another folder with --out") from None
    return len(clips)


def prepare_model(target: Path, say: Callable[[str], None]) -> None:
    """The demo's model directory at `target`; one that is there and whole is kept."""
    from vctool.runtime.assemble import assemble
    from vctool.runtime.model_directory import ModelDirectory

    if target.exists():
        ModelDirectory.open(target, verify="all")
        say(f"{target} is there already")
    else:
        assemble(bundled_model("demo"), target)
