"""A model ready to use from Python: its directory, and its encoders, each loaded on first use."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from vctool.runtime.encoder import QueryTokens, TextEncoder, VideoEncoder
from vctool.runtime.model_directory import ModelDirectory
from vctool.runtime.sessions import Device, Provider


class Model:
    """An opened model directory with its encoders. `vctool.load_model` builds one."""

    def __init__(
        self, directory: ModelDirectory, *, device: Device = "auto", provider: Provider = "auto", threads: int | None = None
    ) -> None:
        self.directory = directory
        self._device: Device = device
        self._provider: Provider = provider
        self._threads = threads

    @cached_property
    def text(self) -> TextEncoder:
        """The text tower, loaded on first use."""
        return TextEncoder(self.directory, device=self._device, provider=self._provider, threads=self._threads)

    @cached_property
    def video(self) -> VideoEncoder:
        """Frame and temporal encoder, loaded on first use."""
        return VideoEncoder(self.directory, device=self._device, provider=self._provider, threads=self._threads)

    def encode(self, text: str) -> QueryTokens:
        """Encode one query. Raises InputError if it is empty."""
        return self.text.encode([text])[0]


def load_model(
    path: ModelDirectory | str | Path, *, device: Device = "auto", provider: Provider = "auto", threads: int | None = None
) -> Model:
    """Open the model directory at `path`. device, provider, threads: what runs its graphs, see `sessions.Graph`.

    Raises ModelError, one line, if a file of it is missing or altered.
    """
    directory = path if isinstance(path, ModelDirectory) else ModelDirectory.open(path)
    return Model(directory, device=device, provider=provider, threads=threads)
