"""Metrics of a run: log.jsonl, TensorBoard, the progress bar, and warnings of collapse."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from mam2 import distributed
from mam2.config import UserError
from mam2.device import memory_gib
from mam2.files import parse_json, write_text
from mam2.losses import BASELINE, Losses
from mam2.progress import stderr_console
from mam2.train.tracking import TrackerName, begin_tracking

log = logging.getLogger("mam2")
COLLAPSED_STD = 0.02  # standard deviation of features that a LayerNorm keeps near 1
LEARNED_NOTHING = 0.99  # ratio of a loss to its baseline


class RunLog:
    """Writes log.jsonl and TensorBoard files into a run's folder and draws the progress bar.

    On resuming, lines after `start_step` (written by a session that died before its next checkpoint) are removed.
    """

    def __init__(self, folder: Path, *, start_step: int, num_steps: int, title: str, track: TrackerName = "") -> None:
        from torch.utils.tensorboard import SummaryWriter  # which only training needs

        folder.mkdir(parents=True, exist_ok=True)
        self._tracking = begin_tracking(track, folder) if track else None
        path = folder / "log.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            steps = [step_of(line) for line in lines]
            if num_damaged := steps[:-1].count(math.inf):  # the last may be cut short by a kill
                log.warning(f"{path}: {num_damaged} damaged lines are left out.")
            kept = [line for line, step in zip(lines, steps, strict=True) if step <= start_step]
            write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
            expand=True,
        )
        self._task = self._progress.add_task(title, total=num_steps, completed=start_step, speed="")
        self._losses = Text(no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._progress, self._losses), console=stderr_console(), refresh_per_second=4)
        self._live.start()

    def write(self, row: dict[str, Any]) -> None:
        """Adds one line to log.jsonl, and its values to TensorBoard and the tracker."""
        self._file.write(json.dumps(row) + "\n")
        if self._tracking:
            self._tracking.log({name: value for name, value in row.items() if name != "step"}, row["step"])
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                with self._board_written():
                    self._board.add_scalar(name, value, row["step"])

    def advance(self, step: int, row: dict[str, Any] | None) -> None:
        """Moves the bar to `step`, and shows the speed and the losses of a new row."""
        self._progress.update(self._task, completed=step)
        if row:
            self._progress.update(self._task, speed=speed_line(row))
            self._losses.plain = losses_line(row)

    def close(self) -> None:
        """Ends the bar and the files."""
        self._live.stop()
        if not self._live.console.is_terminal:
            self._live.console.line()  # rich ends a line on terminals only
        self._file.close()
        with self._board_written():
            self._board.close()
        if self._tracking:
            self._tracking.end()

    @contextmanager
    def _board_written(self) -> Iterator[None]:
        """Names TensorBoard's folder in the errors of its writer, a thread."""
        try:
            yield
        except OSError as error:
            raise OSError(f"{self._board.log_dir} can't be written: {error.strerror or error}") from error


def speed_line(row: dict[str, Any]) -> str:
    """Speed and memory of a row of log.jsonl, for the bar."""
    return f"{row['clips_per_second']:.1f} clips/s, data {row['data_seconds']:.2f} s, {row['memory_gib']:.1f} GiB"


def losses_line(row: dict[str, Any]) -> str:
    """The loss of a row of log.jsonl and its parts, with their baselines, for the bar."""
    names = list(row)
    parts = [name for name in names[names.index("loss") + 1 : names.index("grad_norm")] if not name.endswith(BASELINE)]
    zero = {name: f" (zero-{name} {row[name + BASELINE]:.3f})" for name in parts if name + BASELINE in row}
    return f"loss {row['loss']:.3f}: " + ", ".join(f"{name} {row[name]:.3f}{zero.get(name, '')}" for name in parts)


class HostCopy:
    """A copy of a tensor in main memory, made while the GPU goes on."""

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._tensor = tensor.detach()
        if tensor.is_cuda:
            host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._tensor = host.copy_(self._tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Tensor:
        """The copy; waits until it is complete."""
        if self._copied:
            self._copied.synchronize()
        return self._tensor


class StepMetrics:
    """Metrics of one step of the optimiser, on their way from the device.

    Args:
        step: number of the step, from 1.
        results: losses of each accumulated part.
        norm: norm of the gradients before clipping.
        logged: averages the losses over all processes, and keeps the features.
        numbers: more metrics, from the host.
        num_clips: clips of this process.
    """

    def __init__(
        self, step: int, results: list[Losses], norm: Tensor, *, logged: bool, numbers: dict[str, float], num_clips: int
    ) -> None:
        self.step = step
        self.logged = logged
        self.numbers = numbers
        self.num_clips = num_clips
        shown = {"loss": torch.stack([r.total for r in results]).mean()}
        shown |= {name: torch.stack([r.parts[name] for r in results]).mean() for name in results[0].parts}
        shown |= {"grad_norm": norm}
        self._names = tuple(shown)
        stacked = torch.stack([value.detach().float() for value in shown.values()])
        self._values = HostCopy(distributed.mean(stacked) if logged else stacked)
        features = [r.features_BTD for r in results if r.features_BTD is not None]
        self.features_BTD = HostCopy(torch.cat(features)) if features and logged else None

    def values(self) -> dict[str, float]:
        """The loss, its parts, and the norm of the gradient; waits for the device."""
        return dict(zip(self._names, self._values.read().tolist(), strict=True))


class RunLength(Protocol):
    """The part of a loader that a report needs."""

    steps_per_epoch: int
    num_steps: int

    def count_bad(self) -> int: ...


class Reporter:
    """Reads back the metrics of steps, warns, and logs every `log_every`-th. A context manager.

    All processes add and read all steps; the one that has a log, rank 0, writes it.
    """

    def __init__(self, run_log: RunLog | None, loader: RunLength, *, log_every: int) -> None:
        self._run_log = run_log
        self._loader = loader
        self._log_every = log_every
        self._waiting = list[StepMetrics]()
        self._ratios = dict[str, deque[float]]()
        self._has_collapsed = False
        self.restart_clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._run_log:
            self._run_log.close()

    def restart_clock(self) -> None:
        """Excludes the time since the last reading, such as that of saving, from the speed."""
        self._last_read = time.perf_counter()

    def add(self, step: int, results: list[Losses], norm: Tensor, numbers: dict[str, float], *, num_clips: int) -> None:
        """Starts to copy a step's metrics from the device; `step` counts from 1, `num_clips` are this process's."""
        logged = step % self._log_every == 0 or step == self._loader.num_steps
        self._waiting.append(StepMetrics(step, results, norm, logged=logged, numbers=numbers, num_clips=num_clips))

    def note(self, step: int, numbers: dict[str, float]) -> None:
        """Adds a line to the log, such as an online probe's."""
        if self._run_log:
            self._run_log.write({"step": step, "epoch": step / self._loader.steps_per_epoch, **numbers})

    def read(self, *, all_steps: bool) -> None:
        """Reads the steps added so far, all of them or all but the last.

        Raises:
            UserError: a gradient that is not finite, or too many unusable videos.
        """
        ready = self._waiting if all_steps else self._waiting[:-1]
        self._waiting = self._waiting[len(ready) :]
        values_of_all = [metrics.values() for metrics in ready]
        seconds = (time.perf_counter() - self._last_read) / max(1, len(ready))
        self.restart_clock()
        for metrics, values in zip(ready, values_of_all, strict=True):
            if not math.isfinite(values["grad_norm"]):  # the same on all ranks: gradients are averaged
                raise UserError(not_finite(values, metrics.step))
            row = self._row(metrics, values, seconds) if metrics.logged else None
            if self._run_log:
                if row:
                    self._run_log.write(row)
                    self._judge(row)
                self._run_log.advance(metrics.step, row)

    def _row(self, metrics: StepMetrics, values: dict[str, float], seconds: float) -> dict[str, Any]:
        row: dict[str, Any] = {"step": metrics.step, "epoch": metrics.step / self._loader.steps_per_epoch, **values}
        row |= metrics.numbers
        row["clips_per_second"] = metrics.num_clips * distributed.world_size() / seconds
        row["memory_gib"] = memory_gib()
        row["bad_videos"] = self._loader.count_bad()
        if self._run_log and metrics.features_BTD:
            row |= variation(metrics.features_BTD.read())
        return row

    def _judge(self, row: dict[str, Any]) -> None:
        """Warns once of collapsing features, and at the end of parts that were not learned."""
        if row.get("feature_std", 1.0) < COLLAPSED_STD and not self._has_collapsed:
            self._has_collapsed = True
            log.warning(
                f"Step {row['step']}: the features collapse: their standard deviation between clips is "
                f"{row['feature_std']:.4f}. Lower --optim.base-lr, or, for MAM², raise --objective.alignment-ramp."
            )
        for name in [name.removesuffix(BASELINE) for name in row if name.endswith(BASELINE)]:
            ratios = self._ratios.setdefault(name, deque(maxlen=20))
            ratios.append(row[name] / max(row[name + BASELINE], 1e-12))
            mean = sum(ratios) / len(ratios)
            if row["step"] == self._loader.num_steps and mean > LEARNED_NOTHING:
                log.warning(
                    f"The {name} loss is {mean:.3f} times that of predicting none (mean of the last {len(ratios)} "
                    f"lines of log.jsonl): nothing of {name} was learned. Train longer, or see docs/log/learning.md."
                )


def variation(features_BTD: Tensor) -> dict[str, float]:
    """Variation of an encoder's features between clips; it falls early in a collapse.

    Args:
        features_BTD: features of different clips, averaged over the patches of each frame.

    Returns:
        `feature_std`, the standard deviation over the batch, averaged over frames and channels; and `effective_rank`,
        the exponential of the entropy of the singular values (Roy & Vetterli, 2007). Empty for a single clip.
    """
    if len(features_BTD) < 2:
        return {}
    centered = features_BTD - features_BTD.mean(dim=0)
    values = torch.linalg.svdvals(centered.flatten(0, 1))
    share = values / values.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum().item()
    return {"feature_std": features_BTD.std(dim=0).mean().item(), "effective_rank": math.exp(entropy)}


def not_finite(values: dict[str, float], step: int) -> str:
    """The error message of a step with a gradient that is not finite; it names the part of the loss to blame."""
    bad = [name for name, value in values.items() if name not in ("loss", "grad_norm") and not math.isfinite(value)]
    where = f"the {' and '.join(sorted(bad))} loss is" if bad else "all losses here are finite but a gradient is"
    return (
        f"Step {step}: {where} not finite, so training stopped; what was saved is untouched. Start again in another "
        "--out with a lower --optim.base-lr, --optim.max-grad-norm 1, or --loop.precision fp32."
    )


def step_of(line: str) -> float:
    """The step of a line of log.jsonl; infinite for a damaged line."""
    try:
        return float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
