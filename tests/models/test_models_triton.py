"""The Triton kernels: their numbers in Triton's interpreter (and on a GPU where there is one), and their way to machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the models need torch (the extra `train`)")
triton = pytest.importorskip("triton", reason="Triton comes with torch on Linux only")

from vctool.errors import UsageProblem  # noqa: E402
from vctool.models import triton_meanmaxsim as kernels  # noqa: E402
from vctool.models.interaction import mean_max_sim  # noqa: E402

POINTERS = {"query_mask": "*u8", "token_mask": "*u8", "score": "*fp32", "weight": "*fp32", "out": "*fp32", "place": "*i16"}
MAXIMA = {"BLOCK_Q": 32, "BLOCK_T": 16, "KEEP": True}
OF_QUERIES = {"OF_TOKENS": False, "BLOCK_R": 32, "BLOCK_K": 16}
OF_TOKENS = {"OF_TOKENS": True, "BLOCK_R": 16, "BLOCK_K": 32}


def run_numerics(interpret: str) -> subprocess.CompletedProcess[str]:
    file = Path(__file__).with_name("triton_numerics.py")
    environment = os.environ | {"TRITON_INTERPRET": interpret, "PYTHONPATH": os.pathsep.join([str(file.parent), *sys.path])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_numbers_hold_in_the_interpreter() -> None:
    result = run_numerics("1")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_the_numbers_hold_on_a_gpu() -> None:
    result = run_numerics("0")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


def compiled(kernel: Any, choices: dict[str, Any], config: Any, dtype: str, architecture: int) -> dict[str, Any]:
    """Triton's own way from source to cubin, as on a GPU of that architecture, with widths that are multiples of 16."""
    constants = choices | config.kwargs | {"PRECISION": "tf32x3" if dtype == "fp32" else "ieee"}
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {
        n: "constexpr" if n in constants else POINTERS.get(n, f"*{dtype}" if n in ("query", "token", "other") else "i32")
        for n in kernel.arg_names
    }
    aligned = {n for n in names if n == "D" or signature[n].startswith("*")}
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n in aligned},
    )
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    asm: dict[str, Any] = triton.compile(
        source, target=target, options={"num_warps": config.num_warps, "num_stages": config.num_stages}
    ).asm
    return asm


def check(asm: dict[str, Any], architecture: int) -> None:
    assert f".target sm_{architecture}" in asm["ptx"] and bytes(asm["cubin"][:4]) == b"\x7fELF"
    assert "mma" in asm["ptx"], "the products do not reach the tensor cores"


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # or nothing would be compiled the second time


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.usefixtures("fresh_cache")
def test_each_kernel_compiles_to_machine_code_that_uses_tensor_cores(dtype: str, architecture: int) -> None:
    check(compiled(kernels.maxima_kernel, MAXIMA, kernels.forward_configs()[0], dtype, architecture), architecture)
    check(compiled(kernels.gradient_kernel, OF_QUERIES, kernels.gradient_configs()[0], dtype, architecture), architecture)
    check(compiled(kernels.gradient_kernel, OF_TOKENS, kernels.gradient_configs()[0], dtype, architecture), architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.usefixtures("fresh_cache")
def test_every_choice_of_tiles_compiles(dtype: str, architecture: int) -> None:
    for blocks in ({"BLOCK_Q": 1, "BLOCK_T": 4}, {"BLOCK_Q": 32, "BLOCK_T": 16}, {"BLOCK_Q": 64, "BLOCK_T": 64}):
        for config in kernels.forward_configs():
            check(compiled(kernels.maxima_kernel, blocks | {"KEEP": True}, config, dtype, architecture), architecture)
    for choices in (OF_QUERIES, OF_TOKENS):
        for config in kernels.gradient_configs():
            check(compiled(kernels.gradient_kernel, choices, config, dtype, architecture), architecture)


def test_the_kernel_is_refused_where_it_cannot_run() -> None:
    query, mask = torch.ones(1, 1, 4), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(UsageProblem, match="tokens are on cpu, not on an NVIDIA GPU"):
        mean_max_sim(query, mask, query, mask, kernel="triton")
    assert mean_max_sim(query, mask, query, mask, kernel="auto").item() == 4
