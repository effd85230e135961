"""Random tokens, and what "the same bits" means on the machine that runs the tests."""

from __future__ import annotations

import platform

import numpy as np

# The tile is chosen so that OpenBLAS on x86 cannot tell where a row lies; other libraries were never examined.
EXACT = platform.machine().lower() in ("x86_64", "amd64") and "openblas" in str(
    np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal bit for bit; within 1e-6 where the BLAS is not one the promise was made for."""
    if EXACT:
        return np.array_equal(found, expected)
    return found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=1e-6)


def unit(generator: np.random.Generator, count: int, width: int = 16) -> np.ndarray:
    """Random directions: L2-normalised rows, float32."""
    values = generator.standard_normal((count, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)
