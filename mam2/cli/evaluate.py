"""`mam2 evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from mam2 import distributed
from mam2.cli import tables
from mam2.cli.parse import Flat, finished, parse
from mam2.use.evaluate_run import Evaluate, evaluate_files


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Test a fine-tuned run on labelled videos: evaluate.json, predictions.npz, confusion.png.

    Attributes:
        run: the folder of a `mam2 finetune`.
        out: folder to write to; by default the run's.
    """

    run: Positional[Path]
    config: Annotated[Evaluate, Flat] = field(default_factory=Evaluate)
    out: Path | None = None


def main(verb: str, arguments: list[str]) -> None:
    """Tests a run."""
    command = parse(EvaluateCommand, verb, arguments)
    out = command.out or command.run
    done = evaluate_files(command.run, out, config=command.config, picture=True)
    if distributed.rank() == 0:
        tables.print_evaluation(done.result, done.report)
    finished(f"{out}/{', '.join(done.files)}")
