"""The training loop: steps, validations, checkpoints, and a way out that loses nothing."""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vctool.errors import Interrupted, UsageProblem, VctoolError
from vctool.models.interaction import BranchScores
from vctool.training import checkpoint
from vctool.training.batches import Batch
from vctool.training.checkpoint import Progress
from vctool.training.diagnosis import BranchReport, explain_stall, report_branch, stalled, start_lines
from vctool.training.forward import batch_scores
from vctool.training.log import Display, RunLog, finite
from vctool.training.optimizer import build_optimizer, rate_factor, set_rates, trained_parameters
from vctool.training.prepare import Prepared
from vctool.training.recipe import recipe_dict
from vctool.training.stop import StopRequest
from vctool.training.texts import TextInput
from vctool.training.validation import validate


class BatchInputs(NamedTuple):
    """A batch with its arrays, on the CPU."""

    batch: Batch
    frames: Tensor
    frame_mask_BF: Tensor
    text: TextInput


class StepNumbers(NamedTuple):
    """What one optimizer step is reported by."""

    loss: float
    frame: float
    video: float
    gradient: float


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
        self.losses: deque[float] = deque(maxlen=max(2 * self.run.stall_steps, 1))
        self.last = StepNumbers(math.nan, math.nan, math.nan, math.nan)
        self.data = data_fingerprint(prepared)
        self._since = time.monotonic()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def train(self) -> Progress:
        """Run to the end, or raise Interrupted (state saved) when asked to stop."""
        total, progress = self.it.total_steps, self.progress
        progress.sittings += 1
        if progress.step == 0:
            self._first_look()
        with (
            ThreadPoolExecutor(1, thread_name_prefix="vctool-batch") as pool,
            self.display.bar("training", total, "steps", progress.step) as update,
        ):
            coming = self._ask_for(pool, progress.step, 0)
            marked, marked_rows = time.monotonic(), 0
            while True:
                if progress.validation_due:
                    self._validate()
                    if self._patience_is_over():
                        break
                    marked, marked_rows = time.monotonic(), 0
                if progress.step >= total:
                    break
                if self.stop.asked:
                    self._leave()
                rows = 0
                set_rates(self.optimizer, rate_factor(progress.step, total, self.optim))
                parts: list[StepNumbers] = []
                for part in range(self.optim.accumulate):
                    inputs = coming.result()
                    coming = self._ask_for(pool, progress.step, part + 1)
                    parts.append(self._backward(inputs, progress.step))
                    rows += len(inputs.batch.clip_B)
                self.last = self._apply(parts, progress.step)
                progress.step += 1
                marked_rows += rows
                self.losses.append(self.last.loss)
                progress.validation_due = self._validation_falls(progress.step)
                update(progress.step, f"loss {self.last.loss:.3f}")
                if progress.step % self.run.log_every == 0 or progress.step == total:
                    moment = time.monotonic()
                    self._log_step(marked_rows / max(moment - marked, 1e-9))
                    marked, marked_rows = moment, 0
                if self.run.stall_steps and progress.step % self.run.stall_steps == 0 and stalled(self.losses, self.run.stall_steps):
                    self._explain(inputs)
                if self.run.checkpoint_every and progress.step % self.run.checkpoint_every == 0 and not progress.validation_due:
                    self.save()
        return progress

    def _ask_for(self, pool: ThreadPoolExecutor, step: int, part: int) -> Future[BatchInputs]:
        """Read a batch in the background: part `part` of a step, or the first of the next one."""
        step, part = step + part // self.optim.accumulate, part % self.optim.accumulate
        epoch, within = divmod(step, self.it.epoch_steps)
        return pool.submit(self._read, epoch, within * self.optim.accumulate + part)

    def _read(self, epoch: int, number: int) -> BatchInputs:
        batch, train = self.it.plan.batch(epoch, number), self.it.train
        frames, mask_BF = train.frames.take(batch.clip_B, batch.reversed_B)
        return BatchInputs(batch, frames, mask_BF, train.texts.take(batch.text_B))

    def _scores(self, inputs: BatchInputs) -> BranchScores:
        it = self.it
        return batch_scores(
            it.model, inputs.frames, inputs.frame_mask_BF, inputs.text, pixels=it.train.frames.pixels, precision=it.precision
        )

    def _backward(self, inputs: BatchInputs, step: int) -> StepNumbers:
        positive_BB = torch.from_numpy(inputs.batch.positive_BB).to(self.it.precision.device)
        out = self.it.loss(self._scores(inputs), positive_BB)
        value = float(out.total.detach())
        if not math.isfinite(value):
            raise self._broken(f"the loss became {value}", inputs, step)
        self.scaler.scale(out.total / self.optim.accumulate).backward()  # type: ignore[no-untyped-call]
        return StepNumbers(value, float(out.frame), float(out.video), math.nan)

    def _apply(self, parts: list[StepNumbers], step: int) -> StepNumbers:
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained, self.optim.clip_norm))
        if not math.isfinite(norm) and not self.it.precision.scaled:
            raise self._broken(f"the gradient's norm became {norm}", None, step)
        self.scaler.step(self.optimizer)  # with fp16 a step whose gradients overflowed is passed over
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        mean = [float(np.mean(column)) for column in zip(*parts, strict=True)]
        return StepNumbers(mean[0], mean[1], mean[2], norm)

    def _broken(self, what: str, inputs: BatchInputs | None, step: int) -> VctoolError:
        epoch, within = divmod(step, self.it.epoch_steps)
        where = f"at step {step + 1} (epoch {epoch + 1}, step {within + 1} of {self.it.epoch_steps})"
        if inputs is not None:
            first = self.it.train.clips.clips[int(inputs.batch.clip_B[0])].input.id
            where += f", in the batch that begins with clip {first}"
        kept = checkpoint.checkpoints(self.folder.checkpoints)
        last = f"the last good checkpoint is {kept[-1].name}" if kept else "there is no checkpoint yet"
        precision = " and optim.precision" if self.it.precision.name != "fp32" else ""
        return VctoolError(f"{what} {where}; {last}", f"lower optim.lr or optim.clip_norm, check loss.log_scale{precision}")

    # -- validation and checkpoints ---------------------------------------------------------------------------------

    def _validation_falls(self, step: int) -> bool:
        every = self.run.validate_every or self.it.epoch_steps
        return step == self.it.total_steps or step % every == 0

    def _validate(self) -> None:
        it, progress = self.it, self.progress

        def pause() -> None:
            if self.stop.asked:
                self._leave()

        began = time.monotonic()
        metrics = validate(it.model, it.validation.frames, it.validation.texts, it.queries, it.precision, pause=pause)
        value = sum(metrics[name] for name in it.best)
        better = progress.best is None or value > progress.best["value"]
        progress.validation_due = False
        progress.waited = 0 if better else progress.waited + 1
        epoch = progress.step / it.epoch_steps
        entry = {"step": progress.step, "epoch": round(epoch, 3), "loss": self.last.loss, "value": value, "metrics": finite(metrics)}
        entry["loss"] = entry["loss"] if math.isfinite(self.last.loss) else None
        progress.history.append(entry)
        if better:
            progress.best = {"step": progress.step, "value": value, "metrics": finite(metrics)}
            state = {"model": checkpoint.tensors_of(it.model.trainable_state()), "loss": checkpoint.tensors_of(it.loss.state_dict())}
            checkpoint.write_tensors(self.folder.best, {"schema": checkpoint.SCHEMA, **progress.best, **state})
        self.save()
        self.log.write(
            "validation", progress.step, {**finite(metrics), "value": value, "best": better, "seconds": time.monotonic() - began}
        )
        shown = ", ".join(f"{name} {metrics[name]:.1f}" for name in dict.fromkeys([*it.best, *_shown(metrics)]))
        self.display.say(f"step {progress.step}, epoch {epoch:.2f}: {shown}{' (best)' if better else ''}")

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
            raise UsageProblem(
                "the clips or captions changed since the checkpoint was written",
                "put the old manifests and videos back, or start a new run",
            )
        self.it.model.load_state_dict(content["model"], strict=False)
        self.it.loss.load_state_dict(content["loss"])
        self.optimizer.load_state_dict(content["optimizer"])
        with suppress(RuntimeError):  # an empty state: the run went on with another precision
            self.scaler.load_state_dict(content["scaler"])
        checkpoint.restore_random_state(content["random"])
        self.progress = content["progress"]

    def _leave(self) -> None:
        self.save()
        self.log.write("stopped", self.progress.step, {})
        raise Interrupted(
            f"stopped at step {self.progress.step} of {self.it.total_steps}, everything is saved",
            f"go on with: vctool train --resume {self.folder.root}",
        )

    # -- what is said -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _reports(self, inputs: BatchInputs) -> tuple[list[BranchReport], BranchScores]:
        scores, loss = self._scores(inputs), self.it.loss
        reports = []
        for name, score, which in (("f", scores.frame_BC, 0), ("v", scores.video_BC, -1)):
            if score is not None:
                t, b = float(loss.log_scale[which]), float(loss.bias[which])
                reports.append(report_branch(name, score.cpu().numpy(), inputs.batch.positive_BB, t, b))
        return reports, scores

    def _first_look(self) -> None:
        inputs = self._read(0, 0)
        sigmoid = "sigmoid" in self.it.loss.config.kind
        reports, scores = self._reports(inputs)
        if sigmoid and self.it.loss.config.calibrate_bias:
            self.it.loss.calibrate(scores)
            reports, _ = self._reports(inputs)
            self.display.say(f"bias calibrated to {', '.join(f'{float(b):.2f}' for b in self.it.loss.bias)}")
        for line in start_lines(reports, sigmoid):
            self.display.say(line)
        self.log.write("start", 0, {f"{r.branch}/{k}": v for r in reports for k, v in finite(_numbers(r)).items()})

    def _log_step(self, rate: float) -> None:
        loss, step, numbers = self.it.loss, self.progress.step, self.last
        values = {"loss": numbers.loss, "loss_f": numbers.frame, "loss_v": numbers.video, "grad_norm": numbers.gradient}
        values |= {f"lr_{i}": g["lr"] for i, g in enumerate(self.optimizer.param_groups)} if False else {}
        rates = sorted({g["lr"] for g in self.optimizer.param_groups}, reverse=True)
        values |= {"lr": rates[0], "examples_per_second": rate, "epoch": step / self.it.epoch_steps}
        if len(rates) > 1:
            values["backbone_lr"] = rates[-1]
        for name, parameter in (("log_scale", loss.log_scale), ("bias", loss.bias)):
            for branch, number in zip(("", "_v"), parameter.detach().tolist(), strict=False):
                values[name + branch] = number
        self.log.write("step", step, finite(values))

    def _explain(self, inputs: BatchInputs) -> None:
        reports, _ = self._reports(inputs)
        positive_BB = inputs.batch.positive_BB
        others = positive_BB.size - len(positive_BB)
        reasons = explain_stall(
            reports,
            sigmoid="sigmoid" in self.it.loss.config.kind,
            peak_lr=self.optim.lr,
            gradient_norm=self.last.gradient,
            clip_norm=self.optim.clip_norm,
            shared_captions=float(positive_BB.sum() - len(positive_BB)) / max(others, 1),
            warming_up=self.progress.step < self.optim.warmup * self.it.total_steps,
        )
        self.display.say(f"the loss has not moved for {self.run.stall_steps} steps ({self.last.loss:.3f}). Likely:")
        for reason in reasons:
            self.display.say(f"  - {reason}")
        self.log.write("stall", self.progress.step, {"reasons": reasons})


def data_fingerprint(prepared: Prepared) -> str:
    """sha256 over the clips, captions and batches of a run: what has to be the same for a resumed run to be exact."""
    digest = hashlib.sha256()
    for split in (prepared.train.clips, prepared.validation.clips):
        for clip in split.clips:
            digest.update(repr((clip.input.id, clip.captions, clip.reversed_captions, clip.group)).encode())
        digest.update(repr(split.texts).encode())
    return digest.hexdigest()


def _shown(metrics: dict[str, float]) -> list[str]:
    return [name for name in metrics if name.endswith(("/R@1", "/reversal_accuracy"))]


def _numbers(report: BranchReport) -> dict[str, float]:
    return {k: v for k, v in vars(report).items() if isinstance(v, float)}
