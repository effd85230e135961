"""What the processes of a test do under torchrun: a JSON file lists runs of the toy, one after the other in the same processes.

python -m torch.distributed.run --nproc-per-node=2 tests/training/several.py work.json
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from toy import QUIET, batch_gradients, toy_model, toy_recipe  # noqa: E402

import vctool.training.prepare as prepare  # noqa: E402
from vctool.cli.command import exit_code_of  # noqa: E402
from vctool.training.loop import Trainer  # noqa: E402
from vctool.training.ranks import joined, restarted  # noqa: E402
from vctool.training.run import resume, start  # noqa: E402

RANK = int(os.environ["RANK"])
applied = Trainer._apply


def at_step(step: int, what: str) -> Any:
    """`_apply` that at a step, in process 1, asks for a stop or kills its own process (the first time that it was started)."""

    def apply(self: Trainer, parts: Any) -> Any:
        numbers = applied(self, parts)
        if RANK == 1 and self.progress.step + 1 == step:
            if what == "kill" and not restarted():
                os.kill(os.getpid(), signal.SIGKILL)
            self.stop.asked = what == "stop"
        return numbers

    return apply


def gradients(task: dict[str, Any]) -> None:
    """Gradients of one batch in float64, for several numbers of rows: what process 0 has goes into a file."""
    with joined() as ranks:
        found = {str(rows): batch_gradients(ranks, rows, encode_rows=task["encode_rows"]) for rows in task["rows"]}
        if ranks.leads:
            torch.save(found, task["out"])


def main() -> int:
    prepare.build_model = toy_model
    torch.set_num_threads(1)
    for task in json.loads(Path(sys.argv[1]).read_text()):
        Trainer._apply = at_step(task["step"], task["do"]) if "step" in task else applied  # type: ignore[method-assign]
        if task["do"] == "gradients":
            gradients(task)
            continue
        if task["do"] == "resume":
            code = exit_code_of(lambda task=task: resume(Path(task["out"]), display=QUIET) and 0)
        else:
            recipe = toy_recipe(*(Path(task[name]) for name in ("train", "validation", "out")), **task["changes"])
            try:
                code = exit_code_of(lambda recipe=recipe: start(recipe, display=QUIET) and 0)
            except SystemExit as left:  # the processes that another one leads
                code = int(left.code or 0)
        if code != task.get("code", 0):
            print(f"process {RANK}: {task['out']} ended with {code}", file=sys.stderr)
            return code or 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
