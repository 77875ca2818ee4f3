"""The loop: step, accumulate, clip, log, checkpoint, resume. It knows no method and no data set.

The randomness of a step depends on (seed, step, rank) and on each sample's number, so a run that was killed and
continued is the run that was not.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from torch import nn

from mam2 import distributed
from mam2.config import Duration, Epochs, UserError, check, seed_of
from mam2.data.catalog import Catalog
from mam2.data.clips import Data
from mam2.data.loader import Batch, TrainLoader, check_bad, steps_per_epoch
from mam2.device import keep_freed_memory, local_device, memory_gib
from mam2.losses import Losses
from mam2.model.blocks import can_compile, compile_blocks, recompute_blocks
from mam2.model.encoder import EncoderConfig
from mam2.train import checkpoint
from mam2.train.logs import RunLog, StepMetrics, Stopwatch, health
from mam2.train.optim import Optim, learning_rate, set_learning_rate

log = logging.getLogger("mam2")
COLLAPSED_STD = 0.02  # of features that a LayerNorm keeps near 1


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How long and how a run goes; the defaults are Table 7's for Kinetics-400.

    Attributes:
        batch_size: videos a step, over all processes and accumulated parts; data.repeats multiplies their clips.
        accumulate: parts that a process's share of the batch is computed in, one after the other.
        duration: length of the run.
        precision: "auto" is bf16 where the hardware is fast at it, else fp32.
        compile: torch.compile the blocks; "auto" does on a GPU that Triton supports, with a C compiler at hand.
        recompute: keep only the input of each block for the backward pass and compute the rest again (activation
            checkpointing): a sixth more arithmetic for much less memory, and the same result.
        seed: everything random follows from it.
        log_every: steps between lines of log.jsonl.
        save_every: time between checkpoints.
        keep: checkpoints kept.
    """

    batch_size: int = 128
    accumulate: int = 1
    duration: Duration = Epochs(800)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    recompute: bool = False
    seed: int = 0
    log_every: int = 10
    save_every: Duration = Epochs(1)
    keep: int = 2

    def __post_init__(self) -> None:
        if min(self.batch_size, self.accumulate, self.log_every, self.keep) < 1:
            raise UserError(
                f"batch_size {self.batch_size}, accumulate {self.accumulate}, log_every {self.log_every} and keep "
                f"{self.keep} must all be at least 1."
            )

        check(self, "loop.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"loop.seed is {self.seed}; accepted: 0 to 2^63 - 1.")

    def check_batch(self) -> None:
        """Raises UserError unless the batch divides into processes and accumulated parts."""
        parts = distributed.world_size() * self.accumulate
        if self.batch_size % parts:
            raise UserError(
                f"A batch of {self.batch_size} does not divide into {distributed.world_size()} processes × "
                f"{self.accumulate} accumulated parts. Change loop.batch_size or loop.accumulate."
            )


def train_loader(catalog: Catalog, data: Data, encoder: EncoderConfig, loop: Loop, *, start_step: int) -> TrainLoader:
    """The batches of a run for this process, from `start_step` to the run's end."""
    return TrainLoader(
        catalog,
        data,
        num_frames=encoder.frames,
        size=encoder.size,
        batch_size=loop.batch_size,
        num_steps=loop.duration.steps(steps_per_epoch(len(catalog.items), loop.batch_size)),
        seed=loop.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_step=start_step,
    )


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Batch, int], Losses],
    loader: TrainLoader,
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
) -> bool:
    """Trains from `start_step` to the end of the run.

    Args:
        model: on its device already; wrapped for several processes in here.
        loss_of: (model, batch on the device, step) to Losses.
        loader: starts at `start_step` too.
        folder: the run's; rank 0 writes log.jsonl and checkpoints there.
        title: what the progress bar says.
        dtype: of `autocast_dtype`.
        on_save: called on rank 0 after each checkpoint, to export what users load.
        on_step: called after each step of the optimiser, on every rank.

    Returns:
        True at the end of the run; False where SIGTERM ended it early, with everything saved.

    Raises:
        UserError: a loss that is not finite; its part is named, and nothing of it is saved.
    """
    device = local_device()
    loop.check_batch()
    per_epoch, num_steps = loader.steps_per_epoch, loader.num_steps
    warmup_steps, save_steps = optim.warmup.steps(per_epoch), max(1, loop.save_every.steps(per_epoch))
    parameters = [p for p in model.parameters() if p.requires_grad]
    if device.type == "cpu":
        keep_freed_memory()
    if loop.recompute:
        recompute_blocks(model)
    if loop.compile == "on" or (loop.compile == "auto" and can_compile(device)):
        compile_blocks(model)
    wrapped = distributed.wrap(model).train()
    main = distributed.rank() == 0
    if main and start_step >= num_steps:
        on_save()  # a kill between the last checkpoint and its export left the export undone
    if main and start_step < num_steps <= warmup_steps:
        log.warning(
            f"The warm-up, optim.warmup {optim.warmup}, lasts as long as the run, {num_steps} steps, or longer: the "
            "learning rate will not come down. Shorten it along with the run."
        )
    run_log = RunLog(folder, start_step=start_step, num_steps=num_steps, title=title) if main else None
    clock, warned, waiting = Stopwatch(), False, list[StepMetrics]()

    with stop_on_sigterm() as stop_asked:
        try:
            batches = iter(loader)
            clock.lap()
            for step in range(start_step, num_steps):
                began = time.perf_counter()
                batch = next(batches).to(device)
                data_seconds = time.perf_counter() - began

                torch.manual_seed(seed_of(loop.seed, step, distributed.rank()))
                rate = learning_rate(
                    optim, step, batch_size=loop.batch_size, warmup_steps=warmup_steps, num_steps=num_steps
                )
                set_learning_rate(optimizer, rate)
                optimizer.zero_grad()
                results = []
                for part in range(loop.accumulate):
                    with (
                        distributed.without_sync(wrapped, skip=part < loop.accumulate - 1),
                        torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
                    ):
                        losses = loss_of(wrapped, batch.part(part, of=loop.accumulate), step)
                        (losses.total / loop.accumulate).backward()
                    results.append(losses)
                if optim.max_grad_norm:
                    norm = nn.utils.clip_grad_norm_(parameters, optim.max_grad_norm)
                else:
                    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
                optimizer.step()
                on_step()

                done = step + 1
                logged = done % loop.log_every == 0 or done == num_steps
                numbers = {"lr": rate, "data_seconds": data_seconds}
                waiting.append(StepMetrics(done, results, norm, logged=logged, numbers=numbers))
                stop = distributed.any_rank(stop_asked.is_set())
                saves = stop or done == num_steps or done % save_steps == 0
                # A GPU is already at this step while the figures of the one before are read.
                ready = waiting if saves or device.type == "cpu" else waiting[:-1]
                waiting = waiting[len(ready) :]
                for figures in ready:
                    figures.wait()
                seconds = clock.lap() / len(ready) if ready else 0.0
                for figures in ready:
                    values, row = figures.values(), None
                    if not math.isfinite(values["grad_norm"]):  # the same on all ranks: gradients are averaged
                        raise UserError(_not_finite(values, figures.step))
                    if figures.logged:
                        bad = {path: why for found in distributed.gather(loader.bad) for path, why in found.items()}
                        check_bad(bad, loader.num_videos, loader.data)
                        num_clips = len(batch.label_B) * distributed.world_size()
                        row = {"step": figures.step, "epoch": figures.step / per_epoch, **values, **figures.numbers}
                        row |= {"clips_per_second": num_clips / seconds}
                        row |= {"memory_gib": memory_gib(), "bad_videos": len(bad)}
                        if main and figures.features_BTD:
                            row |= (vital := health(figures.features_BTD.read()))
                            if vital.get("feature_std", 1.0) < COLLAPSED_STD and not warned:
                                warned = True
                                log.warning(
                                    f"Step {figures.step}: the features collapse: they vary by "
                                    f"{vital['feature_std']:.4f} between clips. Lower the learning rate, or raise "
                                    "--objective.alignment-ramp."
                                )
                    if run_log:
                        if row:
                            run_log.write(row)
                        run_log.advance(figures.step, row)

                if main and saves:
                    checkpoint.save(folder, model, optimizer, checkpoint.State(done), keep=loop.keep)
                    on_save()
                    clock.lap()
                if stop and done < num_steps:
                    log.warning(
                        f"Stopped at step {done} of {num_steps}; everything is saved. The same command goes on."
                    )
                    return False
            return True
        finally:
            if run_log:
                run_log.close()


@contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets instead of ending the process; what was in force before comes back at the end."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals can't be caught elsewhere
        yield asked
        return

    def note(signum: int, frame: FrameType | None) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _not_finite(values: dict[str, float], step: int) -> str:
    bad = [name for name, value in values.items() if name not in ("loss", "grad_norm") and not math.isfinite(value)]
    where = f"the {' and '.join(sorted(bad))} loss is" if bad else "all losses here are finite but a gradient is"
    return (
        f"Step {step}: {where} not finite, so training stopped; what was saved is untouched. Start anew in another "
        "--out with a lower --optim.base-lr, --optim.max-grad-norm 1, or --loop.precision fp32."
    )
