"""Fixtures of the export tests: the bundled models, assembled once."""

from __future__ import annotations

from pathlib import Path

import pytest

from vctool.data.pinned import EFFICIENTNET_LITE0, MINILM
from vctool.demo.show import MODELS, bundled_model
from vctool.errors import ModelError
from vctool.runtime.assemble import assemble


@pytest.fixture(scope="session", params=MODELS)
def assembled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundled model as a model directory."""
    for pinned in (EFFICIENTNET_LITE0, MINILM):
        try:
            pinned.locate()
        except ModelError as problem:
            pytest.skip(str(problem))
    target = tmp_path_factory.mktemp("bundled") / request.param
    assemble(bundled_model(request.param), target)
    return target
