"""The kernel is compiled at install, left out where it cannot be, and clean under the sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vctool.scoring import build, kernels

ROOT = Path(__file__).resolve().parents[2]
COMPILES = platform.machine().lower() in ("x86_64", "amd64") and any(shutil.which(name) for name in ("cc", "gcc", "clang"))

needs_compiler = pytest.mark.skipif(not COMPILES, reason="no C compiler for x86-64 here")


def test_the_build_and_the_loader_mean_the_same_file():
    assert build.LIBRARY == kernels.LIBRARY


@pytest.mark.parametrize(("compiler", "reason"), [("/bin/false", "does not compile it"), ("no-such-compiler", "no C compiler was found")])
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="not x86-64")
def test_a_compiler_that_fails_is_a_reason_and_leaves_nothing_behind(monkeypatch, tmp_path, compiler, reason):
    monkeypatch.setenv("CC", compiler)
    assert reason in (build.compile_kernel(tmp_path / "k.so") or "")
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_a_compiler_that_does_not_know_amx_builds_the_rest(monkeypatch, tmp_path):
    compiler = tmp_path / "oldcc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *WITHOUT_AMX*) exec cc "$@";; esac\necho "error: what is amx" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert build.compile_kernel(tmp_path / "k.so") is None
    assert (tmp_path / "k.so").is_file()


@needs_compiler
def test_the_source_compiles_without_a_warning():
    command = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-fsyntax-only", *build.SOURCES]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""


def _wheel(folder: Path, **variables: str) -> Path:
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    folder.mkdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if variables:
        assert "search will be slower" in result.stdout + result.stderr
    (wheel,) = folder.iterdir()
    return wheel


def _installed(wheel: Path, folder: Path) -> str:
    """What the wheel, unpacked and alone, says of its kernels."""
    shutil.unpack_archive(wheel, folder, "zip")
    code = "from vctool.scoring import kernels; r = kernels.report(); print(kernels.LIBRARY, *r.found, r.problem)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert str(folder) in result.stdout
    return result.stdout


@pytest.mark.slow
def test_a_wheel_built_without_a_compiler_is_pure_and_scores_by_numpy(tmp_path):
    wheel = _wheel(tmp_path / "dist", CC="/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "numpy the kernel was not compiled" in _installed(wheel, tmp_path / "site")


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(sys.platform == "win32", reason="the kernel is not built on Windows")
def test_a_wheel_with_the_kernel_is_for_one_platform_and_any_python_3(tmp_path):
    wheel = _wheel(tmp_path / "dist")
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    assert "was not compiled" not in _installed(wheel, tmp_path / "site")


@pytest.mark.slow
@needs_compiler
def test_the_kernels_are_clean_under_the_address_and_undefined_behaviour_sanitizers(tmp_path):
    library = tmp_path / "_kernel.so"
    problem = build.compile_kernel(library, ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
    if problem:
        pytest.skip(f"this compiler has no sanitizers: {problem}")
    runtime = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("the address sanitizer's run-time library was not found")
    code = (
        "import sys, pathlib, pytest\n"
        "from vctool.scoring import kernels\n"
        "kernels.LIBRARY = pathlib.Path(sys.argv[1])\n"
        "assert len(kernels.report().found) > 1, kernels.report()\n"
        "unwanted = 'not past_the_last and not usable_library and not 0_002 and not same_bits_alone and not numpy'\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', unwanted, *sys.argv[2:]]))\n"
    )
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    tests = [Path(__file__).with_name(f"test_scoring_{name}.py") for name in ("gradient", "kernels", "precision")]
    result = subprocess.run([sys.executable, "-c", code, library, *tests], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
