"""Budgets of a study: the same number of epochs, steps, operations or minutes of pre-training for every cell."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from mam2.config import UserError
from mam2.train.run import read_log

Unit = Literal["epochs", "steps", "TFLOP", "minutes"]


@dataclass(frozen=True)
class Budget:
    """Length of a pre-training, written `20 epochs`, `300 steps`, `50 TFLOP` or `10 minutes`."""

    value: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"

    def share(self, share: float) -> Budget:
        """A part of the budget."""
        return Budget(self.value * share, self.unit)

    def steps(self, *, steps_per_epoch: int, tflop_per_step: float, seconds_per_step: float) -> int:
        """Number of steps that it pays for; UserError for less than one."""
        per_step = {
            "steps": 1.0,
            "epochs": 1 / steps_per_epoch,
            "TFLOP": tflop_per_step,
            "minutes": seconds_per_step / 60,
        }[self.unit]
        steps = int(self.value / per_step + 1e-6)
        if steps < 1:
            raise UserError(f"A budget of {self} is less than one step, which takes {per_step:.3g} {self.unit}.")
        return steps


def parse_budget(text: str) -> Budget:
    """Reads `20 epochs`, `300 steps`, `50 TFLOP`, `10 minutes`; UserError for anything else."""
    found = re.fullmatch(r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*([A-Za-z]+)\s*", text)
    units = {name.lower(): name for name in get_args(Unit)}
    unit = found and (units.get(found[2].lower()) or units.get(f"{found[2].lower()}s"))
    if found and unit and float(found[1]) > 0:
        return Budget(float(found[1]), cast(Unit, unit))
    raise UserError(
        f"{text!r} is no budget. Accepted: a number above 0 and a unit, such as '20 epochs', '300 steps', "
        "'50 TFLOP' or '10 minutes'."
    )


def seconds_per_step(run: Path, num_clips: int) -> float:
    """The median over the log of a pre-training whose steps have so many clips, without its first line."""
    rows = read_log(run / "log.jsonl")
    speeds = [row["clips_per_second"] for row in rows if row.get("clips_per_second")]
    return num_clips / statistics.median(speeds[1:] or speeds)
