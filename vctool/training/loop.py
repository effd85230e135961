"""The training loop: steps, validations, checkpoints, and a way out that loses nothing."""

from __future__ import annotations

import hashlib
import math
import shlex
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from vctool.errors import Diverged, Interrupted, UsageProblem
from vctool.training import checkpoint
from vctool.training.advice import below_start
from vctool.training.average import Average
from vctool.training.batches import Batch
from vctool.training.blocks import compile_blocks, recompute_blocks
from vctool.training.checkpoint import Progress
from vctool.training.diagnosis import branch_warnings, stalled
from vctool.training.display import Display, Update
from vctool.training.encoder import BatchInputs, RowInputs
from vctool.training.gradients import GradientPass
from vctool.training.log import RunLog, finite
from vctool.training.observe import StepNumbers, branch_reports, first_look, stall_reasons, step_values
from vctool.training.optimizer import build_optimizer, rate_factor, set_rates, trained_parameters
from vctool.training.prepare import Prepared
from vctool.training.profile import StepClock
from vctool.training.ranks import ALONE, Ranks
from vctool.training.recipe import recipe_dict
from vctool.training.stop import StopRequest
from vctool.training.validation import validate


class _StoppedValidationError(Exception):
    """A stop was asked for in the middle of a validation."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps things."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / checkpoint.BEST

    @property
    def model(self) -> Path:
        return self.root / "model"


class Trainer:
    """One sitting of a run: the state that changes, and what is done to it."""

    def __init__(
        self, prepared: Prepared, folder: RunFolder, display: Display, log: RunLog, stop: StopRequest, ranks: Ranks = ALONE
    ) -> None:
        self.ranks = ranks
        self.it, self.folder, self.display, self.log, self.stop = prepared, folder, display, log, stop
        self.optim, self.run = prepared.recipe.optim, prepared.recipe.run
        if self.optim.recompute:
            recompute_blocks(prepared.model)
        if self.optim.compile:
            compile_blocks(prepared.model)
        self.optimizer = build_optimizer(prepared.model, prepared.loss, self.optim)
        self.scaler = torch.amp.GradScaler("cuda", enabled=prepared.precision.scaled)
        self.trained = trained_parameters(prepared.model)
        self.average = Average(self.trained, self.optim.ema) if self.optim.ema else None
        self.gradients = GradientPass(
            prepared.model, prepared.loss, prepared.precision, self.ranks, pixels=prepared.train.frames.pixels, seed=self.run.seed
        )
        self.progress = Progress()
        self.said: set[str] = set()
        self.clock = StepClock()
        self.losses: deque[float] = deque(maxlen=2 * self.run.stall_steps)
        self.last = StepNumbers(math.nan, math.nan, math.nan, math.nan, math.nan)
        self.data = data_fingerprint(prepared)
        self._since = time.monotonic()
        self._rows, self._rows_since = 0, time.monotonic()

    def train(self) -> Progress:
        """Run to the end, or raise Interrupted (state saved) when asked to stop."""
        total, progress = self.it.total_steps, self.progress
        progress.sittings += 1
        if progress.step == 0:
            self._look()
        with ThreadPoolExecutor(1, "vctool-batch") as pool, self.display.bar("training", total, "steps", progress.step) as update:
            coming = self._ask_for(pool, progress.step, 0)
            while True:
                if progress.validation_due:
                    began = time.perf_counter()
                    self._validate()
                    self.clock.pause(time.perf_counter() - began)
                if progress.step >= total or self._patience_is_over():
                    return progress
                if self.ranks.any(self.stop.asked):
                    self._leave()
                set_rates(self.optimizer, rate_factor(progress.step, total, self.optim))
                parts = []
                for part in range(self.optim.accumulate):
                    with self.clock.part("data"):
                        inputs = coming.result()
                    coming = self._ask_for(pool, progress.step, part + 1)
                    parts.append(self._backward(inputs, part))
                    self._rows += len(inputs.batch.clip_B)
                with self.clock.part("optimiser"):
                    self.last = self._apply(parts)
                self.clock.step()
                progress.step += 1
                progress.validation_due = self._validation_falls(progress.step)
                self._tell(inputs, update)
                if self.run.checkpoint_every and progress.step % self.run.checkpoint_every == 0 and not progress.validation_due:
                    self.save()

    # -- a step -----------------------------------------------------------------------------------------------------

    def _ask_for(self, pool: ThreadPoolExecutor, step: int, part: int) -> Future[BatchInputs]:
        """Read in the background: batch `part` of a step; the one after its last is the next step's first."""
        step, part = step + part // self.optim.accumulate, part % self.optim.accumulate
        epoch, within = divmod(step, self.it.epoch_steps)
        return pool.submit(self._read, epoch, within * self.optim.accumulate + part)

    def _read(self, epoch: int, number: int) -> BatchInputs:
        batch = self.it.plan.batch(epoch, number)
        rows = len(batch.clip_B)
        own = np.arange(rows)[self.ranks.span(rows)]
        shown = own if len(own) else np.zeros(1, np.int64)  # who has no row encodes one for nothing, and takes part in everything
        step = self.optim.encode_rows or len(shown)
        parts = [self._rows_of(batch, shown[start : start + step]) for start in range(0, len(shown), step)]
        return BatchInputs(batch, self.ranks.counts(rows), len(own), parts)

    def _rows_of(self, batch: Batch, rows: NDArray[np.int64]) -> RowInputs:
        train = self.it.train
        clip_U, row_B = np.unique(batch.clip_B[rows], return_inverse=True)
        frames, mask_UF = train.frames.take(clip_U)
        reversed_B = torch.from_numpy(batch.reversed_B[rows])
        return RowInputs(frames, mask_UF, torch.from_numpy(row_B), reversed_B, train.texts.take(batch.text_B[rows]))

    def _backward(self, inputs: BatchInputs, part: int) -> StepNumbers:
        def check(value: float) -> None:
            if not math.isfinite(value):
                first = self.it.train.clips.clips[int(inputs.batch.clip_B[0])].input.id
                raise self._broken(f"the loss became {value}", f", in the batch that begins with clip {first}")

        accumulate, step = self.optim.accumulate, self.progress.step
        out = self.gradients(
            inputs,
            step,
            part,
            scale=lambda total: self.scaler.scale(total / accumulate),
            check=check,
            last=part == accumulate - 1,
        )
        for name, seconds in self.gradients.seconds._asdict().items():
            self.clock.add(name, seconds)
        return StepNumbers(float(out.total), float(out.frame), float(out.video), float(out.reversal), math.nan)

    def _apply(self, parts: list[StepNumbers]) -> StepNumbers:
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, self.optim.clip_norm))
        if not math.isfinite(norm) and not self.it.precision.scaled:
            raise self._broken(f"the gradient's norm became {norm}", "")
        self.scaler.step(self.optimizer)  # with fp16 a step whose gradients overflowed is passed over
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.progress.step)
        self.optimizer.zero_grad(set_to_none=True)
        mean = [float(np.mean(column)) for column in zip(*parts, strict=True)]
        return StepNumbers(mean[0], mean[1], mean[2], mean[3], norm)

    def _broken(self, what: str, where: str) -> BaseException:
        epoch, within = divmod(self.progress.step, self.it.epoch_steps)
        place = f"at step {self.progress.step + 1} (epoch {epoch + 1}, step {within + 1} of {self.it.epoch_steps}){where}"
        kept = checkpoint.checkpoints(self.folder.checkpoints)
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        problem = Diverged(f"{what} {place}; {last}", "start again with a lower optim.lr, optim.clip_norm or loss.log_scale")
        return self.ranks.for_all(problem)

    # -- validation and checkpoints ---------------------------------------------------------------------------------

    def _validation_falls(self, step: int) -> bool:
        return step == self.it.total_steps or step % (self.run.validate_every or self.it.epoch_steps) == 0

    def _validate(self) -> None:
        it, began = self.it, time.monotonic()

        def pause() -> None:
            # Several processes are not at the same place of a validation: they finish it first.
            if self.stop.asked and self.ranks.world == 1:
                raise _StoppedValidationError

        try:
            with self.average.in_place() if self.average is not None else nullcontext():
                metrics = validate(
                    it.model, it.validation.frames, it.validation.texts, it.queries, it.precision, pause=pause, ranks=self.ranks
                )
                best = self._kept_weights(metrics)
        except _StoppedValidationError:
            self._leave()  # not before the weights are the live ones again
        progress, epoch = self.progress, self.progress.step / it.epoch_steps
        value, shown = sum(metrics[name] for name in it.best), finite(metrics)
        progress.validation_due = False
        progress.waited = 0 if best is not None else progress.waited + 1
        progress.history.append({"step": progress.step, "epoch": round(epoch, 3), "value": value, "metrics": shown})
        if best is not None:
            progress.best = {"step": progress.step, "value": value, "metrics": shown}
            kept = {"schema": checkpoint.SCHEMA, "step": progress.step, **best}
            self.ranks.lead(lambda: checkpoint.write_tensors(self.folder.best, kept))
        self.save()
        seconds = time.monotonic() - began
        self.log.write("validation", progress.step, {**shown, "value": value, "best": best is not None, "seconds": seconds})
        names = dict.fromkeys([*it.best, *(n for n in metrics if n.endswith(("/R@1", "/reversal_accuracy")))])
        words = ", ".join(f"{name} {metrics[name]:.1f}" for name in names)
        self.display.say(f"step {progress.step}, epoch {epoch:.2f}: {words}{' (best)' if best is not None else ''}")
        found = metrics.get(f"{it.recipe.model.interaction}/MRR")
        if it.start_mrr is not None and found is not None and found < it.start_mrr:
            self.display.say(below_start(found, it.start_mrr))
        self._rows, self._rows_since = 0, time.monotonic()

    def _kept_weights(self, metrics: dict[str, float]) -> dict[str, Any] | None:
        """Copies of the weights that were just measured, if they are the best so far."""
        value = sum(metrics[name] for name in self.it.best)
        if self.progress.best is not None and value <= self.progress.best["value"]:
            return None
        model, loss = self.it.model.moving_state(), self.it.loss.state_dict()
        return {"model": checkpoint.tensors_of(model), "loss": checkpoint.tensors_of(loss)} if self.ranks.leads else {}

    def _patience_is_over(self) -> bool:
        if not self.run.patience or self.progress.waited < self.run.patience:
            return False
        self.display.say(f"no better for {self.progress.waited} validations: stopped early (run.patience = {self.run.patience})")
        return True

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        moment = time.monotonic()
        self.progress.seconds += moment - self._since
        self._since = moment
        self.ranks.lead(self._write)

    def _write(self) -> None:
        content: dict[str, Any] = {
            "model": checkpoint.tensors_of(self.it.model.moving_state()),
            "loss": checkpoint.tensors_of(self.it.loss.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": checkpoint.random_state(),
            "recipe": recipe_dict(self.it.recipe),
            "data": self.data,
        }
        if self.average is not None:
            content["average"] = self.average.state()
        checkpoint.save_checkpoint(self.folder.checkpoints, content, self.progress, self.run.keep)

    def restore(self, content: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises UsageProblem where the clips or captions are not those it was made with."""
        if content["data"] != self.data:
            hint = "put the old manifests and videos back, or start a new run"
            raise UsageProblem("the clips or captions are not those that the checkpoint was made with", hint)
        self.it.model.load_state_dict(content["model"], strict=False)
        self.it.loss.load_state_dict(content["loss"])
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            self.average.load(content["average"])
        checkpoint.restore_random_state(content["random"])
        self.progress = content["progress"]

    def _leave(self) -> NoReturn:
        self.save()
        self.log.write("stopped", self.progress.step, {})
        where = f"stopped at step {self.progress.step} of {self.it.total_steps}, everything is saved"
        problem = Interrupted(where, f"go on with: vctool train --resume {shlex.quote(str(self.folder.root))}")
        raise self.ranks.for_all(problem)

    # -- what is said -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        inputs = self._read(0, 0)
        with torch.no_grad():
            lines, numbers = first_look(self.gradients.scores(inputs, 0, 0), inputs.batch, self.it.loss)
        for line in lines:
            self.display.say(line)
        self.log.write("start", 0, finite(numbers))

    def _tell(self, inputs: BatchInputs, update: Update) -> None:
        step, every = self.progress.step, self.run.stall_steps
        self.losses.append(self.last.loss)
        update(step, f"loss {self.last.loss:.3f}")
        if step % self.run.log_every == 0 or step == self.it.total_steps:
            moment = time.monotonic()
            rates = [group["lr"] for group in self.optimizer.param_groups]
            speed = self._rows / max(moment - self._rows_since, 1e-9)
            self.log.write("step", step, finite(step_values(self.last, self.it.loss, rates, speed, step / self.it.epoch_steps)))
            self._rows, self._rows_since = 0, moment
        if every and step % every == 0:
            self._look_again(inputs, step, every)

    def _look_again(self, inputs: BatchInputs, step: int, every: int) -> None:
        """What is wrong between the branches, and why the loss does not move, if it does not."""
        with torch.no_grad():
            scores = self.gradients.scores(inputs, step, 0)
            reports = branch_reports(scores, inputs.batch, self.it.loss)
        for line in branch_warnings(reports, self.said):
            self.display.say(line)
        if stalled(self.losses, every):
            warming_up = step < self.optim.warmup * self.it.total_steps
            reasons = stall_reasons(scores, inputs.batch, self.it.loss, self.optim, self.last, warming_up)
            self.display.say(f"the loss has not moved for {every} steps ({self.last.loss:.3f}); likely:")
            for reason in reasons:
                self.display.say(f"  {reason}")
            self.log.write("stall", step, {"reasons": reasons})


def data_fingerprint(prepared: Prepared) -> str:
    """sha256 over the clips and captions of both splits: what has to be the same for a resumed run to be exact."""
    digest = hashlib.sha256()
    for split in (prepared.train.clips, prepared.validation.clips):
        for clip in split.clips:
            digest.update(repr((clip.input.id, clip.captions, clip.reversed_captions, clip.group)).encode())
        digest.update(repr(split.texts).encode())
    return digest.hexdigest()
