"""The training loop: steps, validations, checkpoints, and a way out that loses nothing."""

from __future__ import annotations

import hashlib
import math
import shlex
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vctool.errors import Diverged, Interrupted, UsageProblem
from vctool.models.interaction import BranchScores
from vctool.training import checkpoint
from vctool.training.batches import Batch
from vctool.training.checkpoint import Progress
from vctool.training.diagnosis import stalled
from vctool.training.display import Display, Update
from vctool.training.forward import encode_clips, encode_frames, encode_texts, present
from vctool.training.log import RunLog, finite
from vctool.training.observe import StepNumbers, first_look, stall_reasons, step_values
from vctool.training.optimizer import build_optimizer, rate_factor, set_rates, trained_parameters
from vctool.training.prepare import Prepared
from vctool.training.recipe import recipe_dict
from vctool.training.stop import StopRequest
from vctool.training.texts import TextInput
from vctool.training.validation import validate


class BatchInputs(NamedTuple):
    """A batch with its arrays, on the CPU. The frames are those of its U different clips, forwards; `row_B` finds them."""

    batch: Batch
    frames: Tensor
    frame_mask_UF: Tensor
    row_B: Tensor
    text: TextInput


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

    def __init__(self, prepared: Prepared, folder: RunFolder, display: Display, log: RunLog, stop: StopRequest) -> None:
        self.it, self.folder, self.display, self.log, self.stop = prepared, folder, display, log, stop
        self.optim, self.run = prepared.recipe.optim, prepared.recipe.run
        self.optimizer = build_optimizer(prepared.model, prepared.loss, self.optim)
        self.scaler = torch.amp.GradScaler("cuda", enabled=prepared.precision.scaled)
        self.trained = trained_parameters(prepared.model)
        self.progress = Progress()
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
                    self._validate()
                if progress.step >= total or self._patience_is_over():
                    return progress
                if self.stop.asked:
                    self._leave()
                set_rates(self.optimizer, rate_factor(progress.step, total, self.optim))
                parts = []
                for part in range(self.optim.accumulate):
                    inputs = coming.result()
                    coming = self._ask_for(pool, progress.step, part + 1)
                    parts.append(self._backward(inputs))
                    self._rows += len(inputs.batch.clip_B)
                self.last = self._apply(parts)
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
        batch, train = self.it.plan.batch(epoch, number), self.it.train
        clip_U, row_B = np.unique(batch.clip_B, return_inverse=True)
        frames, mask_UF = train.frames.take(clip_U)
        return BatchInputs(batch, frames, mask_UF, torch.from_numpy(row_B), train.texts.take(batch.text_B))

    def _scores(self, inputs: BatchInputs) -> BranchScores:
        model, precision, train = self.it.model, self.it.precision, self.it.train
        feature_UFD = encode_frames(model, inputs.frames, inputs.frame_mask_UF, pixels=train.frames.pixels, precision=precision)
        feature_BFD, mask_BF = present(feature_UFD, inputs.frame_mask_UF, inputs.row_B, torch.from_numpy(inputs.batch.reversed_B))
        return model.score(encode_texts(model, inputs.text, precision), encode_clips(model, feature_BFD, mask_BF, precision))

    def _backward(self, inputs: BatchInputs) -> StepNumbers:
        device = self.it.precision.device
        positive_BB = torch.from_numpy(inputs.batch.positive_BB).to(device)
        reversal_B = torch.from_numpy(inputs.batch.reversal_B).to(device)
        out = self.it.loss(self._scores(inputs), positive_BB, reversal_B)
        value = float(out.total.detach())
        if not math.isfinite(value):
            first = self.it.train.clips.clips[int(inputs.batch.clip_B[0])].input.id
            raise self._broken(f"the loss became {value}", f", in the batch that begins with clip {first}")
        self.scaler.scale(out.total / self.optim.accumulate).backward()
        return StepNumbers(value, float(out.frame), float(out.video), float(out.reversal), math.nan)

    def _apply(self, parts: list[StepNumbers]) -> StepNumbers:
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, self.optim.clip_norm))
        if not math.isfinite(norm) and not self.it.precision.scaled:
            raise self._broken(f"the gradient's norm became {norm}", "")
        self.scaler.step(self.optimizer)  # with fp16 a step whose gradients overflowed is passed over
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        mean = [float(np.mean(column)) for column in zip(*parts, strict=True)]
        return StepNumbers(mean[0], mean[1], mean[2], mean[3], norm)

    def _broken(self, what: str, where: str) -> Diverged:
        epoch, within = divmod(self.progress.step, self.it.epoch_steps)
        place = f"at step {self.progress.step + 1} (epoch {epoch + 1}, step {within + 1} of {self.it.epoch_steps}){where}"
        kept = checkpoint.checkpoints(self.folder.checkpoints)
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        return Diverged(f"{what} {place}; {last}", "start again with a lower optim.lr, optim.clip_norm or loss.log_scale")

    # -- validation and checkpoints ---------------------------------------------------------------------------------

    def _validation_falls(self, step: int) -> bool:
        return step == self.it.total_steps or step % (self.run.validate_every or self.it.epoch_steps) == 0

    def _validate(self) -> None:
        it, progress, began = self.it, self.progress, time.monotonic()

        def pause() -> None:
            if self.stop.asked:
                self._leave()

        metrics = validate(it.model, it.validation.frames, it.validation.texts, it.queries, it.precision, pause=pause)
        value, shown = sum(metrics[name] for name in it.best), finite(metrics)
        better = progress.best is None or value > progress.best["value"]
        epoch = progress.step / it.epoch_steps
        progress.validation_due = False
        progress.waited = 0 if better else progress.waited + 1
        progress.history.append({"step": progress.step, "epoch": round(epoch, 3), "value": value, "metrics": shown})
        if better:
            progress.best = {"step": progress.step, "value": value, "metrics": shown}
            state = {"model": checkpoint.tensors_of(it.model.trainable_state()), "loss": checkpoint.tensors_of(it.loss.state_dict())}
            checkpoint.write_tensors(self.folder.best, {"schema": checkpoint.SCHEMA, "step": progress.step, **state})
        self.save()
        seconds = time.monotonic() - began
        self.log.write("validation", progress.step, {**shown, "value": value, "best": better, "seconds": seconds})
        names = dict.fromkeys([*it.best, *(n for n in metrics if n.endswith(("/R@1", "/reversal_accuracy")))])
        words = ", ".join(f"{name} {metrics[name]:.1f}" for name in names)
        self.display.say(f"step {progress.step}, epoch {epoch:.2f}: {words}{' (best)' if better else ''}")
        self._rows, self._rows_since = 0, time.monotonic()

    def _patience_is_over(self) -> bool:
        if not self.run.patience or self.progress.waited < self.run.patience:
            return False
        self.display.say(f"no better for {self.progress.waited} validations: stopped early (run.patience = {self.run.patience})")
        return True

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        moment = time.monotonic()
        self.progress.seconds += moment - self._since
        self._since = moment
        content = {
            "model": checkpoint.tensors_of(self.it.model.trainable_state()),
            "loss": checkpoint.tensors_of(self.it.loss.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": checkpoint.random_state(),
            "recipe": recipe_dict(self.it.recipe),
            "data": self.data,
        }
        return checkpoint.save_checkpoint(self.folder.checkpoints, content, self.progress, self.run.keep)

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
        checkpoint.restore_random_state(content["random"])
        self.progress = content["progress"]

    def _leave(self) -> None:
        self.save()
        self.log.write("stopped", self.progress.step, {})
        where = f"stopped at step {self.progress.step} of {self.it.total_steps}, everything is saved"
        raise Interrupted(where, f"go on with: vctool train --resume {shlex.quote(str(self.folder.root))}")

    # -- what is said -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        inputs = self._read(0, 0)
        with torch.no_grad():
            lines, numbers = first_look(self._scores(inputs), inputs.batch, self.it.loss)
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
        if every and step % every == 0 and stalled(self.losses, every):
            warming_up = step < self.optim.warmup * self.it.total_steps
            with torch.no_grad():
                reasons = stall_reasons(self._scores(inputs), inputs.batch, self.it.loss, self.optim, self.last, warming_up)
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
