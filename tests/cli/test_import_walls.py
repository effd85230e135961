"""The commands of daily use run where torch, onnx and tensorrt do not exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vctool.cli import COMMANDS

BLOCKER = '''
import sys

class Wall:
    """Refuses what only training and exporting may need, in this process and in every one it starts."""

    names = {"torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "tensorrt", "open_clip", "timm", "transformers", "safetensors"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"the wall: {name} must not be imported here")

sys.meta_path.insert(0, Wall())
'''


def test_daily_commands_and_every_help_work_behind_the_wall(tmp_path: Path, tiny_videos: Path, tiny_model: Path) -> None:
    (tmp_path / "wall").mkdir()
    (tmp_path / "wall" / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "wall")}

    def python(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=environment, timeout=120, cwd=tmp_path)

    assert "the wall" in python("-c", "import torch").stderr
    output = str(tmp_path / "c.npz")
    for args in (
        ["index", str(tiny_videos), "-o", output, "--model", str(tiny_model)],
        ["query", "red", "--index", output, "--explain"],
        ["query", "red", "--index", output, "--json"],
        ["info", str(tiny_model)],
        ["info", output],
        ["info", str(tiny_videos / "red.mp4")],
        ["doctor"],
        ["completion", "bash"],
    ):
        done = python("-m", "vctool", *args)
        assert done.returncode == 0, (args, done.stderr)
    helps = "\n".join(f"    ['{name}', '--help']," for name in COMMANDS)
    code = (
        "import sys\nfrom vctool.cli import cli\n"
        f"for args in (['--help'],\n{helps}\n):\n"
        "    try: cli.main(args)\n    except SystemExit as leaving: assert leaving.code == 0, args\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    done = python("-c", "import vctool\nfor name in vctool.__all__: getattr(vctool, name)")
    assert done.returncode == 0, done.stderr
