"""The model directory: one folder with everything needed to encode, checked before it is believed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vctool.config import ModelConfig, PreprocessConfig, read_json
from vctool.errors import ModelError
from vctool.preprocessing.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from vctool.preprocessing.tokenizer import TOKENIZER_FILE
from vctool.runtime.checksums import FileRecord, read_checksums, verify_file

CONFIG_FILE = "config.json"
PREPROCESS_FILE = "preprocess.json"
WEIGHTS_FILE = "model.safetensors"
GRAPHS = ("text", "frame", "temporal")
_SMALL = (CONFIG_FILE, PREPROCESS_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)


@dataclass(frozen=True)
class ModelDirectory:
    """An opened model directory. Build it with `ModelDirectory.open`.

    fingerprint: sha256 (hex) over the hashes of `config.json` and `model.safetensors` (of the graphs where a directory never
    had weights of its own); it is the model's identity in every store. tokenizer_sha256, preprocess_sha256: the same for the
    two tokenizer files and for `preprocess.json`. files: what `checksums.json` lists.
    """

    path: Path
    config: ModelConfig
    preprocess: PreprocessConfig
    fingerprint: str
    tokenizer_sha256: str
    preprocess_sha256: str
    files: Mapping[str, FileRecord] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, verify: Literal["used", "all"] = "used") -> ModelDirectory:
        """Read and check a model directory.

        `used` checks the small files now and each graph when it is asked for; `all` checks every listed file now. Raises
        ModelError, one line naming the file and the mend, if one is missing, altered or not understood.
        """
        folder = Path(path)
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise ModelError(f"{folder} {what}, expected a model directory", "`vctool fetch --list` shows models to fetch")
        if not (folder / CONFIG_FILE).exists() and not (folder / "checksums.json").exists():
            raise ModelError(f"{folder} is not a model directory: it has no {CONFIG_FILE}", "`vctool fetch --list` shows models to fetch")
        files = read_checksums(folder)
        for name in files if verify == "all" else _SMALL:
            verify_file(folder, name, _record(folder, files, name))
        identity = [CONFIG_FILE, WEIGHTS_FILE]
        if WEIGHTS_FILE not in files:
            identity = [CONFIG_FILE, *sorted(name for name in files if name.startswith("onnx/"))]
        return cls(
            path=folder,
            config=read_json(ModelConfig, folder / CONFIG_FILE),
            preprocess=read_json(PreprocessConfig, folder / PREPROCESS_FILE),
            fingerprint=_combined(files, identity),
            tokenizer_sha256=_combined(files, (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)),
            preprocess_sha256=files[PREPROCESS_FILE].sha256,
            files=files,
        )

    def has_graph(self, name: str) -> bool:
        """Whether the directory lists `onnx/<name>.onnx`."""
        return f"onnx/{name}.onnx" in self.files

    @contextmanager
    def checking(self, name: str) -> Iterator[Path]:
        """Path of `onnx/<name>.onnx`, checked while the block runs: hashing a tower takes as long as loading it.

        On leaving, ModelError if the file cannot be trusted, whatever the block made of it; nothing of the block is to be used then.
        """
        self._require_graph(name)
        with ThreadPoolExecutor(1) as pool:
            check = pool.submit(self.graph, name)
            try:
                yield self.path / f"onnx/{name}.onnx"
            finally:
                check.result()

    def graph(self, name: str) -> Path:
        """Path of `onnx/<name>.onnx`, checked together with its external data. Raises ModelError if it cannot be trusted."""
        wanted = self._require_graph(name)
        for listed, record in self.files.items():
            # Graphs above 2 GB keep their weights in a file beside them (`text.onnx.data`).
            if listed == wanted or listed.startswith((f"{wanted}.", f"{wanted}_")):
                verify_file(self.path, listed, record)
        return self.path / wanted

    def _require_graph(self, name: str) -> str:
        wanted = f"onnx/{name}.onnx"
        if self.config.similarity != "mean":  # MeanMaxSim is the one rule that the runtime scores by
            raise ModelError(
                f'{self.path} scores by similarity = "{self.config.similarity}", which only PyTorch computes',
                "such models are for `vctool ablate`; index and query serve MeanMaxSim alone",
            )
        if wanted not in self.files:
            raise ModelError(f"{self.path} has no {wanted}", f"write it with: vctool export {self.path}")
        return wanted


def _record(folder: Path, files: Mapping[str, FileRecord], name: str) -> FileRecord:
    if name not in files:
        state = "is not listed in checksums.json" if (folder / name).exists() else "is missing"
        raise ModelError(f"{folder / name} {state}", "the model directory is incomplete: fetch or export it again")
    return files[name]


def _combined(files: Mapping[str, FileRecord], names: Iterable[str]) -> str:
    lines = "".join(f"{files[name].sha256}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()
