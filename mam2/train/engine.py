"""The loop: step, accumulate, clip, log, checkpoint, resume. It knows no method and no data set.

The randomness of a step depends on (seed, step, rank) and on each sample's number, so a run that was killed and resumed
gives the same result as one that was not.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, Protocol, Self, TypeVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from mam2 import distributed
from mam2.config import Duration, Epochs, UserError, check, seed_of
from mam2.device import keep_freed_memory, local_device
from mam2.losses import Losses
from mam2.model.blocks import can_compile, compile_blocks, recompute_blocks
from mam2.train import checkpoint
from mam2.train.logs import Reporter
from mam2.train.optim import Optim, learning_rate, set_learning_rate, set_weight_decay, weight_decay
from mam2.train.tracking import TrackerName

log = logging.getLogger("mam2")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Length and course of a run; the defaults are Table 7's for Kinetics-400.

    Attributes:
        batch_size: videos per step, over all processes and accumulated parts; data.repeats multiplies their clips.
        accumulate: number of parts in which a process computes its share of the batch, one after the other.
        duration: length of the run.
        precision: "auto" is bf16 where the hardware is fast at it, else fp32.
        compile: torch.compile the blocks; "auto" does on a GPU that Triton supports, if there is a C compiler.
        recompute: keep only the input of each block for the backward pass and compute the rest again (activation
            checkpointing): a sixth more arithmetic for much less memory, and the same result.
        seed: everything random follows from it.
        log_every: steps between lines of log.jsonl.
        save_every: time between checkpoints.
        keep: number of checkpoints kept.
        track: a tracker that gets the log's numbers too: "trackio", "wandb", "mlflow"; "" is none.
    """

    batch_size: Annotated[int, Ge(1)] = 128
    accumulate: Annotated[int, Ge(1)] = 1
    duration: Duration = Epochs(800)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    recompute: bool = False
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    log_every: Annotated[int, Ge(1)] = 10
    save_every: Duration = Epochs(1)
    keep: Annotated[int, Ge(1)] = 2
    track: TrackerName = ""

    def __post_init__(self) -> None:
        check(self, "loop.")

    def check_batch(self) -> None:
        """Raises UserError unless the batch divides into processes and accumulated parts."""
        parts = distributed.world_size() * self.accumulate
        if self.batch_size % parts:
            raise UserError(
                f"A batch of {self.batch_size} does not divide into {distributed.world_size()} processes × "
                f"{self.accumulate} accumulated parts. Change loop.batch_size or loop.accumulate."
            )


class Batch(Protocol):
    """A batch of one process."""

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""

    def part(self, index: int, *, of: int) -> Self:
        """Part `index` of the batch in `of` equal parts."""

    def __len__(self) -> int: ...


BatchT = TypeVar("BatchT", bound=Batch)
LoadedT = TypeVar("LoadedT", bound=Batch, covariant=True)


class Loader(Protocol[LoadedT]):
    """The batches of a run for this process, from the step where it starts."""

    steps_per_epoch: int
    num_steps: int

    def __iter__(self) -> Iterator[LoadedT]: ...

    def count_bad(self) -> int:
        """Unusable videos that all processes met so far; UserError if there are too many."""


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, BatchT, int], Losses],
    loader: Loader[BatchT],
    optimizer: torch.optim.Optimizer,
    *,
    loop: Loop,
    optim: Optim,
    start_step: int,
    folder: Path,
    title: str,
    dtype: torch.dtype | None,
    on_save: Callable[[], None],
    on_step: Callable[[], None] = lambda: None,
    on_look: Callable[[int], dict[str, float]] | None = None,
    look_every: Duration = Epochs(1),
) -> bool:
    """Trains from `start_step` to the end of the run.

    Args:
        model: on its device already; wrapped for several processes in here.
        loss_of: (model, batch on the device, step) to Losses.
        loader: starts at `start_step` too.
        folder: the run's; rank 0 writes log.jsonl and checkpoints there.
        title: of the progress bar.
        dtype: of `autocast_dtype`.
        on_save: called on rank 0 after each checkpoint, to export what users load.
        on_step: called after each step of the optimiser, on every rank.
        on_look: called with the step on rank 0, `look_every` so often and at the end; what it returns is logged.
        look_every: how often.

    Returns:
        True at the end of the run; False where SIGTERM or SIGHUP ended it early, with everything saved.

    Raises:
        UserError: a loss that is not finite; the message names its part, and nothing of it is saved.
    """
    device = local_device()
    num_steps = loader.num_steps
    save_steps = max(1, loop.save_every.steps(loader.steps_per_epoch))
    warmup_steps = optim.warmup.steps(loader.steps_per_epoch)
    look_steps = max(1, look_every.steps(loader.steps_per_epoch))
    waiting_steps = optim.encoder_waits.steps(loader.steps_per_epoch)
    wrapped = prepared(model, loop, device)
    main = distributed.rank() == 0
    if main and start_step >= num_steps:
        on_save()  # a kill between the last checkpoint and its export left the export undone
    if main and start_step < num_steps <= warmup_steps:
        log.warning(
            f"The warm-up, optim.warmup {optim.warmup}, lasts as long as the run, {num_steps} steps, or longer: the "
            "learning rate will not come down. Shorten it along with the run."
        )
    report = Reporter(
        folder, title=title, start_step=start_step, loader=loader, log_every=loop.log_every, track=loop.track
    )
    with stop_on_signal() as stop_asked, report:
        batches = iter(loader)
        report.restart_clock()
        for step in range(start_step, num_steps):
            began = time.perf_counter()
            batch = next(batches).to(device)
            data_seconds = time.perf_counter() - began
            rate = learning_rate(
                optim, step, batch_size=loop.batch_size, warmup_steps=warmup_steps, num_steps=num_steps
            )
            set_learning_rate(optimizer, rate, encoder_waits=step < waiting_steps)
            set_weight_decay(optimizer, weight_decay(optim, step, num_steps=num_steps))
            torch.manual_seed(seed_of(loop.seed, step, distributed.rank()))
            results, norm = train_step(wrapped, loss_of, batch, step, optimizer, loop=loop, optim=optim, dtype=dtype)
            on_step()
            done = step + 1
            report.add(done, results, norm, {"lr": rate, "data_seconds": data_seconds}, num_clips=len(batch))
            stop = distributed.any_rank(stop_asked.is_set())
            saves = stop or done == num_steps or done % save_steps == 0
            # A GPU is already at this step while the metrics of the one before are read.
            report.read(all_steps=saves or device.type == "cpu")
            if main and on_look and (done % look_steps == 0 or done == num_steps):
                report.note(done, on_look(done))
                report.restart_clock()
            if main and saves:
                checkpoint.save(folder, model, optimizer, done, keep=loop.keep)
                on_save()
                report.restart_clock()
            if stop and done < num_steps:
                log.warning(f"Stopped at step {done} of {num_steps}; everything is saved. The same command resumes.")
                return False
    return True


def prepared(model: nn.Module, loop: Loop, device: torch.device) -> nn.Module:
    """The model as the loop asks for it: recomputed, compiled, wrapped for several processes, in training mode."""
    if device.type == "cpu":
        keep_freed_memory()
    if loop.recompute:
        recompute_blocks(model)
    if loop.compile == "on" or (loop.compile == "auto" and can_compile(device)):
        compile_blocks(model)
    return distributed.wrap(model).train()


def train_step(
    model: nn.Module,
    loss_of: Callable[[nn.Module, BatchT, int], Losses],
    batch: BatchT,
    step: int,
    optimizer: torch.optim.Optimizer,
    *,
    loop: Loop,
    optim: Optim,
    dtype: torch.dtype | None,
) -> tuple[list[Losses], Tensor]:
    """One step of the optimiser: forward and backward of each part of the batch, clipping, update.

    Returns:
        The losses of each accumulated part, and the gradient's norm before clipping.
    """
    device = local_device()
    optimizer.zero_grad()
    results = []
    for part in range(loop.accumulate):
        with (
            distributed.without_sync(model, skip=part < loop.accumulate - 1),
            torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            losses = loss_of(model, batch.part(part, of=loop.accumulate), step)
            (losses.total / loop.accumulate).backward()
        results.append(losses)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optim.max_grad_norm:
        norm = nn.utils.clip_grad_norm_(parameters, optim.max_grad_norm)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    optimizer.step()
    return results, norm


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGHUP set instead of ending the process; the earlier handlers are restored at the end.

    A SIGHUP that is ignored, as under nohup, stays so.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals can't be caught elsewhere
        yield asked
        return

    def note(signum: int, frame: FrameType | None) -> None:
        asked.set()

    caught = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in caught}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
