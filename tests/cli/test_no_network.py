"""No command but `fetch NAME` of a model that lies on the hub ever opens a connection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

GUARD = '''
import os, sys

def guard(event, args):
    """Every connection and every look-up of a name outside this process is written down and refused, also in child processes."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        if event == "socket.connect" and args[0].family == 1:  # AF_UNIX: processes of one machine
            return
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"{event} {args[1:]}\\n")
        raise OSError("the guard: no network here")

sys.addaudithook(guard)
'''


def test_daily_commands_open_no_connection(tmp_path: Path, tiny_videos: Path, tiny_model: Path) -> None:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    log, output = tmp_path / "log", str(tmp_path / "c.npz")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "guard"), "GUARD_LOG": str(log)}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}

    def python(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=environment, timeout=120, cwd=tmp_path)

    python("-c", "import socket; socket.create_connection(('127.0.0.1', 9))")
    assert "getaddrinfo" in log.read_text()  # the guard sees what it must see
    log.unlink()
    rows = [{"path": str(tiny_videos / f"{name}.mp4"), "captions": [name]} for name in ("red", "blue")]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    commands = [
        ["index", str(tiny_videos), "-o", output, "--model", str(tiny_model)],
        ["query", "red", "--index", output, "--explain"],
        ["info", output],
        ["info", str(tiny_model)],
        ["evaluate", str(tiny_model), "--data", str(tmp_path / "test.jsonl")],
        ["doctor"],
        ["fetch", "--list"],
        ["verify", str(tiny_model)],  # which has no reference to be verified against: it ends with 1
    ]
    code = (
        "from vctool.cli import cli\n"
        f"if __name__ == '__main__':\n    for args in {commands!r}:\n"
        "        try: cli.main(args)\n        except SystemExit as leaving: assert leaving.code in (0, None) or args[0] == 'verify', args\n"
    )
    (tmp_path / "all.py").write_text(code)  # a file, since the decode processes import what started them
    done = python("all.py")
    assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
