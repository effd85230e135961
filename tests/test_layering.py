"""Who may import whom, and what a wheel holds: the walls of the house and what leaves it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"vctool": ROOT / "vctool", "vctool_export": ROOT / "export" / "vctool_export"}


def needs(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f'{package} is not installed: pip install "vctool[dev]"')


def test_imports_keep_to_the_layers() -> None:
    needs("importlinter", "import-linter")
    code = "from importlinter.cli import lint_imports_command as check; check(['--no-cache', '--no-logo'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0 and "2 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_the_table_of_packages_tells_who_imports_whom() -> None:
    needs("grimp", "import-linter")
    import grimp

    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    imports: dict[str, set[str]] = {}
    for module in graph.modules:
        found = imports.setdefault(package_of(module), set())
        found |= {package_of(other) for other in graph.find_modules_directly_imported_by(module)}
    section = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("\n## Packages\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|.*\| (.*) \|$", section, re.MULTILINE)
    told = {name: set(re.findall(r"`(\w+)`", cell)) for names, cell in rows for name in re.findall(r"`(\w+)`", names) if name in imports}
    assert set(imports) - set(told) == {"vctool", "__main__"}
    for name in told.keys() - {"cli"}:
        assert told[name] == imports[name] - {name, "errors", "config", "vctool"}, name


def package_of(module: str) -> str:
    """`scoring` of `vctool.scoring.tiles`; `vctool_export` and `vctool` are their own."""
    parts = module.split(".")
    return parts[1] if parts[0] == "vctool" and len(parts) > 1 else parts[0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree."""
    needs("hatchling", "hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_a_wheel_holds_both_packages_whole_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    wanted = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    compiled = {"vctool/scoring/_kernel.so"}  # made for the wheel; in the tree only of an editable install
    assert held - compiled == wanted - compiled
    assert {name.partition("/")[0] for name in held} == set(PACKAGES)


def test_a_wheel_holds_what_is_not_code(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    assert {"vctool/py.typed", "vctool_export/py.typed", "vctool/demo/objects.tsv"} <= held
    assert {"vctool/models/imagenet_classes.txt", "vctool/models/imagenet_kinds.txt"} <= held
    assert sum(name.startswith("vctool/demo/clips/") and name.endswith(".mp4") for name in held) >= 50
    assert "vctool/demo/clips/captions.jsonl" in held
    from vctool.demo.show import MODELS

    for model in MODELS:
        files = {"assembly.json", "config.json", "model.safetensors", "preprocess.json", "rest.bin", "tokenizer_config.json"}
        assert {
            f"vctool/demo/models/{model}/{file}" for file in files | {f"onnx/{graph}.onnx" for graph in ("text", "frame", "temporal")}
        } <= held


def test_a_wheel_is_small_licensed_and_starts_a_command(wheel: zipfile.ZipFile) -> None:
    info = wheel.namelist()[-1].partition("/")[0]
    assert "vctool = vctool.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert sum(entry.compress_size for entry in wheel.infolist()) < 20e6
