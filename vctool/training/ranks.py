"""The processes of a run: who is who under `torchrun`, and what they tell each other.

A run of one process has `Ranks()` and never touches torch.distributed. Each process owns a contiguous span of every batch, so
the batches themselves are those of one process.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from vctool.errors import UsageProblem, VctoolError

Backend = Literal["auto", "gloo", "nccl"]

_MEETING_WAIT = timedelta(minutes=10)  # for processes that are still starting
_TENSORS_WAIT = timedelta(minutes=30)  # in a step nobody is later than that
_CONTROL_WAIT = timedelta(days=7)  # the first process may prepare features for days
_POLL_SECONDS = 0.05
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process and the others. rank: 0 is the one that talks and writes. local: number on this machine.

    control: a gloo group for words between processes, beside the one that moves tensors. staged: tensors travel through the CPU
    (gloo).
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    control: Any = None
    staged: bool = True

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def counts(self, rows: int) -> list[int]:
        """How many of `rows` each process owns: as even as can be, in order."""
        ends = [rows * (rank + 1) // self.world for rank in range(self.world)]
        return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

    def span(self, rows: int) -> slice:
        """Which of `rows` this process owns."""
        return slice(rows * self.rank // self.world, rows * (self.rank + 1) // self.world)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process. All of them must ask."""
        return bool(self.most(int(flag)))

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.world == 1:
            return number
        told = torch.tensor([number])
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.control)
        return int(told)

    def refuse_difference(self, digest: str, what: str) -> None:
        """Raise VctoolError where processes have another `digest` than the first one's."""
        if self.world == 1:
            return
        told: list[Any] = [None] * self.world
        dist.all_gather_object(told, digest, group=self.control)
        others = [rank for rank, one in enumerate(told) if one != told[0]]
        if others:
            problem = VctoolError(
                f"{what} of process {others[0]} are not those of process 0", "all processes must see the same files, of the same versions"
            )
            raise self.for_all(problem)

    def for_all(self, problem: VctoolError) -> BaseException:
        """What to raise for a problem that every process has at the same time: only the first one tells it."""
        return problem if self.leads else SystemExit(problem.exit_code)

    def lead(self, work: Callable[[], object]) -> None:
        """Do `work` in the first process alone. The others wait, and end if it failed."""
        if self.world == 1:
            work()
            return
        failed = True
        try:
            if self.leads:
                work()
                failed = False
        finally:
            outcome = torch.tensor([int(failed)])
            dist.broadcast(outcome, 0, group=self.control)
        if int(outcome):
            raise SystemExit(1)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """A block that the first process goes through before the others, which find its work done. They end if it failed."""
        if self.world == 1:
            yield
            return
        outcome = torch.ones(1)
        if self.leads:
            try:
                yield
                outcome.zero_()
            finally:
                dist.broadcast(outcome, 0, group=self.control)
            return
        told: Any = dist.broadcast(outcome, 0, group=self.control, async_op=True)
        while not told.is_completed():
            time.sleep(_POLL_SECONDS)  # and not in C++, where a second Ctrl-C would not be heard
        if int(outcome):
            raise SystemExit(1)
        yield

    # -- tensors ----------------------------------------------------------------------------------------------------

    def gather(self, own: Tensor, counts: list[int]) -> Tensor:
        """Rows of all processes, in order, in each of them: `counts[r]` rows of process r. No gradient passes."""
        if self.world == 1:
            return own
        most = max(counts)
        place, flags = own.device, own.dtype == torch.bool
        sent = own.new_zeros((most, *own.shape[1:]))
        sent[: len(own)] = own
        sent = sent.to(torch.uint8) if flags else sent
        sent = sent.cpu() if self.staged else sent
        told = sent.new_empty((self.world * most, *own.shape[1:]))
        if told.numel():
            _all_gather(told, sent.contiguous())
        rows = torch.cat([told[rank * most : rank * most + count] for rank, count in enumerate(counts)])
        return rows.to(device=place, dtype=own.dtype)

    def sum_own(self, everything: Tensor, counts: list[int]) -> Tensor:
        """The sum over processes of rows that `gather` laid together, of which this process gets its own."""
        if self.world == 1:
            return everything
        if self.staged:
            # A copy: reduced in place, it would change what the caller's graph may still hold.
            total = everything.detach().cpu().clone(memory_format=torch.contiguous_format)
            if total.numel():
                dist.all_reduce(total)
            return self.own_rows(total, counts).to(everything.device)
        most = max(counts)
        laid = everything.new_zeros((self.world, most, *everything.shape[1:]))
        for rank, count in enumerate(counts):
            laid[rank, :count] = everything[sum(counts[:rank]) :][:count]
        own = everything.new_empty((most, *everything.shape[1:]))
        if own.numel():
            _reduce_scatter(own, laid.flatten(0, 1))
        return own[: counts[self.rank]]

    def own_rows(self, everything: Tensor, counts: list[int]) -> Tensor:
        """Of rows that `gather` laid together those of this process."""
        return everything[sum(counts[: self.rank]) :][: counts[self.rank]]

    def mean_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace gradients by their mean over processes (what DDP does for the parameters it holds)."""
        if self.world == 1:
            return
        given = [p for p in parameters if p.grad is not None]
        if not given:
            return
        flat = torch.cat([p.grad.flatten() for p in given if p.grad is not None])
        told = flat.cpu() if self.staged else flat
        dist.all_reduce(told)
        flat = (told / self.world).to(flat.device)
        begin = 0
        for parameter in given:
            parameter.grad = flat[begin : begin + parameter.numel()].view_as(parameter).clone()
            begin += parameter.numel()


ALONE = Ranks()
"""A run of one process."""


def launched() -> bool:
    """Whether torchrun started this process. Raises UsageProblem where only a part of what it sets is there."""
    there = [name for name in _VARIABLES if name in os.environ]
    if not {"RANK", "WORLD_SIZE"} & set(there):
        return False
    missing = [name for name in _VARIABLES if name not in there]
    if missing:
        raise UsageProblem(f"{there[0]} is set and {missing[0]} is not", "start it with torchrun, or unset what another launcher left")
    return True


def follows() -> bool:
    """Whether this is a process of a run that another one leads: it prints no result."""
    return launched() and int(os.environ["RANK"]) > 0


def restarted() -> bool:
    """Whether torchrun started this process anew after a failure."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined(backend: Backend = "auto") -> Iterator[Ranks]:
    """Meet the other processes that torchrun started; alone there is nobody to meet.

    backend: `nccl` where each process has a GPU of its own, `gloo` anywhere, `auto` the first that can. Raises UsageProblem for
    nccl without GPUs and for more processes than GPUs.
    """
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    chosen = _choose(backend, local)
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    try:
        store, _, _ = next(iter(rendezvous("env://")))
        store = PrefixStore(_meet(store, rank, world), store)
        dist.init_process_group(chosen, store=store, rank=rank, world_size=world, timeout=_TENSORS_WAIT)
        control = dist.new_group(backend="gloo", timeout=_CONTROL_WAIT)
    except (RuntimeError, ValueError) as problem:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise VctoolError(
            f"process {rank} of {world} could not meet the others at {where}: {_first_line(problem)}",
            "check torchrun's --rdzv-endpoint, --nnodes and the network",
        ) from None
    try:
        yield Ranks(rank, world, local, control, chosen == "gloo")
    except RuntimeError as problem:
        if not isinstance(problem, dist.DistError) and not any(name in str(problem).lower() for name in ("gloo", "nccl", "peer")):
            raise
        raise VctoolError(
            f"process {rank} of {world} lost another process: {_first_line(problem)}",
            "torchrun --max-restarts=N goes on from the last checkpoint by itself; run.checkpoint_every says how often there is one",
        ) from None
    except (VctoolError, SystemExit):
        if chosen == "gloo":  # NCCL would wait for the processes that have not failed
            dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()


def _choose(backend: Backend, local: int) -> str:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if backend == "gloo" or (backend == "auto" and not gpus):
        return "gloo"
    if not gpus:
        raise UsageProblem('run.backend = "nccl" needs GPUs, and torch sees none', 'set run.backend = "gloo" to train on CPUs')
    if not dist.is_nccl_available():
        raise UsageProblem("this build of torch has no NCCL", 'set run.backend = "gloo"')
    if local >= gpus:
        raise UsageProblem(
            f"process {local} of this machine has no GPU of its own: torch sees {gpus}",
            f'start torchrun with --nproc-per-node={gpus}, or set run.backend = "gloo" to share them',
        )
    return "nccl"


# torch 2.14 gave these two other names, and warns of the old ones.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def _meet(store: Store, rank: int, world: int) -> str:
    """A name that these very processes agree on.

    torchrun may keep its store when it starts processes anew; addresses that dead ones left there would be dialled. So the first
    process calls out a fresh name, the others answer it with one of their own, and go when they find theirs confirmed.
    """
    own, deadline = secrets.token_hex(8), time.monotonic() + _MEETING_WAIT.total_seconds()
    if rank == 0:
        store.set("vctool/call", own)
        answers = [f"vctool/{own}/{other}" for other in range(1, world)]
        store.wait(answers, _MEETING_WAIT)
        store.set(f"vctool/{own}/go", " ".join(store.get(key).decode() for key in answers))
        return own
    while time.monotonic() < deadline:
        if store.check(["vctool/call"]):
            name: str = store.get("vctool/call").decode()
            store.set(f"vctool/{name}/{rank}", own)
            if store.check([f"vctool/{name}/go"]) and own in store.get(f"vctool/{name}/go").decode().split():
                return name
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"process 0 did not answer for {_MEETING_WAIT.total_seconds():.0f} s")


def _first_line(problem: BaseException) -> str:
    lines = str(problem).splitlines() or [type(problem).__name__]
    return lines[0][:200]
