"""The loop: step, accumulate, clip, log, checkpoint, resume. It knows no method and no data set.

The randomness of a step depends on (seed, step, rank) and on the number of each sample, so a run that was killed and
resumed gives the same result as one that was not.
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
from typing import Annotated, Generic, Literal, Protocol, Self, TypeVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from mam2 import distributed
from mam2.config import Duration, Epochs, UserError, check, seed_of
from mam2.device import keep_freed_memory, local_device
from mam2.losses import Losses
from mam2.model.blocks import can_compile, compile_blocks, recompute_blocks
from mam2.train import checkpoint
from mam2.train.logs import Reporter, RunLength, RunLog
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
        compile: torch.compile for the blocks; "auto" compiles on a GPU that Triton supports, if there is a C compiler.
        recompute: activation checkpointing: keeps only the input of each block for the backward pass and computes the
            rest again. The result is the same, for a sixth more arithmetic and much less memory.
        seed: seed of everything random.
        log_every: steps between lines of log.jsonl.
        save_every: time between checkpoints.
        keep: number of checkpoints kept.
        track: a tracker that also gets the numbers of the log: "trackio", "wandb" or "mlflow"; "" is none.
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


class AnyBatch(Protocol):
    """The batch of one process, such as `data.loader.Batch`."""

    def to(self, device: torch.device) -> Self:
        """The same batch, moved to a device."""

    def part(self, index: int, *, of: int) -> Self:
        """Part `index` of the batch in `of` equal parts."""

    def __len__(self) -> int: ...


BatchT = TypeVar("BatchT", bound=AnyBatch)
LoadedT = TypeVar("LoadedT", bound=AnyBatch, covariant=True)
LossOf = Callable[[nn.Module, BatchT, int], Losses]
"""The loss of a batch: (model, batch on the device, step) to Losses; steps count from 0."""


class Loader(RunLength, Protocol[LoadedT]):
    """The batches of a run for this process, from the step where it starts."""

    def __iter__(self) -> Iterator[LoadedT]: ...


@dataclass(frozen=True, kw_only=True)
class Training(Generic[BatchT]):
    """A run of the loop: model, batches, optimiser and settings.

    Attributes:
        model: the module to train, on its device; `fit` wraps it for several processes.
        loader: batches from `start_step` to the end of the run.
        optim: schedules of learning rate and weight decay, clipping of gradients.
        start_step: number of steps done before.
        folder: run folder; rank 0 writes log.jsonl and checkpoints there.
        title: title of the progress bar.
        dtype: autocast dtype; None means float32.
    """

    model: nn.Module
    loader: Loader[BatchT]
    optimizer: torch.optim.Optimizer
    loop: Loop
    optim: Optim
    start_step: int
    folder: Path
    title: str
    dtype: torch.dtype | None


@dataclass(frozen=True, kw_only=True)
class Events:
    """Calls of a run at its steps, evaluations and checkpoints.

    Attributes:
        on_save: called on rank 0 after each checkpoint, to export what users load.
        on_step: called on every rank after each step of the optimiser.
        on_eval: called on rank 0 with the number of steps done; its numbers are logged. None: no evaluations.
        eval_every: time between evaluations; another one follows the last step.
    """

    on_save: Callable[[], None]
    on_step: Callable[[], None] = lambda: None
    on_eval: Callable[[int], dict[str, float]] | None = None
    eval_every: Duration = Epochs(1)


def fit(training: Training[BatchT], loss_of: LossOf[BatchT], events: Events) -> bool:
    """Trains from `training.start_step` to the end of the run.

    Returns:
        True at the end of the run; False where SIGTERM or SIGHUP ended it early, with everything saved.

    Raises:
        UserError: a loss that is not finite; the message names its part, and nothing of it is saved.
    """
    loop = training.loop
    loader = training.loader
    device = local_device()
    main = distributed.rank() == 0
    num_steps = loader.num_steps
    save_steps = max(1, loop.save_every.steps(loader.steps_per_epoch))
    eval_steps = max(1, events.eval_every.steps(loader.steps_per_epoch))
    model = prepared(training.model, loop, device)
    if main and training.start_step >= num_steps:
        events.on_save()  # a kill between the last checkpoint and its export left the export undone
    if main:
        warn_of_warmup(training)
    with stop_on_signal() as stop_asked, Reporter(open_log(training), loader, log_every=loop.log_every) as report:
        batches = iter(loader)
        report.restart_clock()
        for step in range(training.start_step, num_steps):
            began = time.perf_counter()
            batch = next(batches).to(device)
            data_seconds = time.perf_counter() - began
            rate = set_rates(training, step)
            torch.manual_seed(seed_of(loop.seed, step, distributed.rank()))
            results, norm = train_step(training, loss_of, model, batch, step)
            events.on_step()
            done = step + 1
            report.add(done, results, norm, {"lr": rate, "data_seconds": data_seconds}, num_clips=len(batch))
            stop = distributed.any_rank(stop_asked.is_set())
            saves = stop or done == num_steps or done % save_steps == 0
            # A GPU is already at this step while the metrics of the one before are read.
            report.read(all_steps=saves or device.type == "cpu")
            if main and events.on_eval and (done % eval_steps == 0 or done == num_steps):
                report.note(done, events.on_eval(done))
                report.restart_clock()
            if main and saves:
                checkpoint.save(training.folder, training.model, training.optimizer, done, keep=loop.keep)
                events.on_save()
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


def open_log(training: Training[BatchT]) -> RunLog | None:
    """The log of the run on rank 0."""
    if distributed.rank() != 0:
        return None
    return RunLog(
        training.folder,
        start_step=training.start_step,
        num_steps=training.loader.num_steps,
        title=training.title,
        track=training.loop.track,
    )


def warn_of_warmup(training: Training[BatchT]) -> None:
    """Logs that the learning rate will not come down, where the warm-up is as long as the run."""
    warmup = training.optim.warmup
    num_steps = training.loader.num_steps
    if training.start_step < num_steps <= warmup.steps(training.loader.steps_per_epoch):
        log.warning(
            f"The warm-up, optim.warmup {warmup}, lasts as long as the run, {num_steps} steps, or longer: the "
            "learning rate will not come down. Shorten it along with the run."
        )


def set_rates(training: Training[BatchT], step: int) -> float:
    """Sets the learning rate and the weight decay of a step.

    Returns:
        The learning rate, before its shares for layers.
    """
    optim = training.optim
    loader = training.loader
    rate = learning_rate(
        optim,
        step,
        batch_size=training.loop.batch_size,
        warmup_steps=optim.warmup.steps(loader.steps_per_epoch),
        num_steps=loader.num_steps,
    )
    frozen = step < optim.freeze_encoder_for.steps(loader.steps_per_epoch)
    set_learning_rate(training.optimizer, rate, encoder_frozen=frozen)
    set_weight_decay(training.optimizer, weight_decay(optim, step, num_steps=loader.num_steps))
    return rate


def train_step(
    training: Training[BatchT], loss_of: LossOf[BatchT], model: nn.Module, batch: BatchT, step: int
) -> tuple[list[Losses], Tensor]:
    """One step of the optimiser: forward and backward of each part of the batch, clipping, update.

    Args:
        training: optimiser and settings.
        loss_of: the loss of a batch at a step.
        model: the training's model as `prepared` wraps it.
        batch: one batch, on the device.
        step: number of steps done before.

    Returns:
        Losses of each accumulated part, and the gradient's norm before clipping.
    """
    device = local_device()
    dtype = training.dtype
    num_parts = training.loop.accumulate
    training.optimizer.zero_grad()
    results = []
    for part in range(num_parts):
        with (
            distributed.without_sync(model, skip=part < num_parts - 1),
            torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            losses = loss_of(model, batch.part(part, of=num_parts), step)
            (losses.total / num_parts).backward()
        results.append(losses)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if training.optim.max_grad_norm:
        norm = nn.utils.clip_grad_norm_(parameters, training.optim.max_grad_norm)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    training.optimizer.step()
    return results, norm


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGHUP set, in place of ending the process. SIGHUP stays ignored under nohup."""
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
