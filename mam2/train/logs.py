"""What a run tells: JSON lines always, TensorBoard, a progress bar, and whether the features are healthy."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mam2 import distributed
from mam2.files import write_text
from mam2.losses import Losses

log = logging.getLogger("mam2")


class RunLog:
    """Writes log.jsonl and TensorBoard files into a run's folder and draws the progress bar.

    On resuming, lines after `start_step` (written by a sitting that died before its next checkpoint) are removed.
    """

    def __init__(self, folder: Path, *, start_step: int, num_steps: int, title: str) -> None:
        path = folder / "log.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= start_step]
            write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=Console(stderr=True), transient=False)
        self._task = self._progress.add_task(title, total=num_steps, completed=start_step, figures="")
        self._progress.start()

    def write(self, row: dict[str, Any]) -> None:
        """One line of log.jsonl, and the same figures to TensorBoard."""
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self._board.add_scalar(name, value, row["step"])

    def advance(self, step: int, row: dict[str, Any] | None) -> None:
        """Moves the bar to `step`; where there is a new row, shows its figures."""
        if row:
            figures = (
                f"loss {row['loss']:.3f}  {row['clips_per_second']:.1f} clips/s  "
                f"data {row['data_seconds']:.2f} s  {row['memory_gib']:.1f} GiB"
            )
            self._progress.update(self._task, completed=step, figures=figures)
        else:
            self._progress.update(self._task, completed=step)

    def close(self) -> None:
        """Ends the bar and the files."""
        self._progress.stop()
        self._file.close()
        self._board.close()


class HostCopy:
    """A tensor's copy in main memory: begun now, waited for when it is read, so that a GPU need not stop for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._tensor = tensor.detach()
        if tensor.is_cuda:
            self._tensor = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(
                self._tensor, non_blocking=True
            )
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Tensor:
        """The copy, when it is complete."""
        if self._copied:
            self._copied.synchronize()
        return self._tensor


class StepMetrics:
    """What one step of the optimiser gave, on its way from the device.

    Args:
        step: counted from 1.
        results: of each accumulated part.
        norm: of the gradients, before clipping.
        logged: whether the losses are averaged over all processes, and the features kept.
        numbers: more figures, of the host.
    """

    def __init__(
        self, step: int, results: list[Losses], norm: Tensor, *, logged: bool, numbers: dict[str, float]
    ) -> None:
        self.step, self.logged, self.numbers = step, logged, numbers
        shown = {"loss": torch.stack([r.total for r in results]).mean()}
        shown |= {name: torch.stack([r.parts[name] for r in results]).mean() for name in results[0].parts}
        shown |= {"grad_norm": norm}
        self._names, stacked = tuple(shown), torch.stack([value.detach().float() for value in shown.values()])
        self._values = HostCopy(distributed.mean(stacked) if logged else stacked)
        features = [r.features_BTD for r in results if r.features_BTD is not None]
        self.features_BTD = HostCopy(torch.cat(features)) if features and logged else None

    def wait(self) -> None:
        """Until the device is through with the step."""
        self._values.read()

    def values(self) -> dict[str, float]:
        """Loss, its parts, and the gradient's norm."""
        return dict(zip(self._names, self._values.read().tolist(), strict=True))


class Stopwatch:
    """Seconds since the last `lap`."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, or since the start."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def health(features_BTD: Tensor) -> dict[str, float]:
    """How much an encoder's features vary between clips: the early sign of a collapse.

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


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line cut short by a kill
        return math.inf
