"""`mam2 evaluate` and `mam2 probe`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from tyro.conf import Positional, arg

from mam2 import distributed
from mam2.cli import tables
from mam2.cli.parse import Flat, finished, first_word, parse
from mam2.model.weights import PUBLIC
from mam2.pictures.charts import confusion_picture
from mam2.probe.probe import Probe, default_probe, probe_encoder
from mam2.use.evaluate_run import evaluate_run


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Test a fine-tuned run on labelled videos: evaluate.json, predictions.npz, confusion.png.

    Attributes:
        run: the folder of a `mam2 finetune`.
        data_root: class folders, or a CSV with path,label.
        data_split: which rows of a CSV that has several splits.
        data_path_column: name of the CSV's column of paths; by default as in training.
        data_label_column: name of the CSV's column of labels; by default as in training.
        clips: windows per video; by default the run's own protocol.
        crops: squares per window; by default the run's own protocol.
        out: folder to write to; by default the run's.
    """

    run: Positional[Path]
    data_root: Annotated[str, arg(name="data.root")]
    data_split: Annotated[str, arg(name="data.split")] = ""
    data_path_column: Annotated[str, arg(name="data.path-column")] = ""
    data_label_column: Annotated[str, arg(name="data.label-column")] = ""
    clips: int | None = None
    crops: int | None = None
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeCommand:
    """Probe a frozen encoder: a linear layer, an attentive pooler or nearest neighbours on its features."""

    config: Annotated[Probe, Flat]
    out: Annotated[Path, arg(help="folder to write to; features are kept there")]


def main(verb: str, arguments: list[str]) -> None:
    """Tests a run, or probes an encoder."""
    if verb == "probe":
        encoder, rest = first_word(verb, arguments, names="an encoder")
        place = Path() if encoder.startswith(PUBLIC) else Path(encoder)
        default_out = (place if place.is_dir() else place.parent) / "probe"
        default = ProbeCommand(config=default_probe(encoder), out=default_out)
        probe(parse(ProbeCommand, f"probe {encoder}", rest, default=default))
    else:
        evaluate(parse(EvaluateCommand, verb, arguments))


def evaluate(command: EvaluateCommand) -> None:
    """Tests a fine-tuned run."""
    start = time.monotonic()
    out = command.out or command.run
    result, classes = evaluate_run(
        command.run,
        command.data_root,
        split=command.data_split,
        path_column=command.data_path_column,
        label_column=command.data_label_column,
        clips=command.clips,
        crops=command.crops,
        out=out,
    )
    if distributed.rank() > 0:
        return
    files = "evaluate.json, predictions.npz"
    if result.target_BK is None:
        title = f"{len(result.label_B)} videos, top-1 {result.top(1):.3f}"
        confusion_picture(result.confusion(), list(classes), out / "confusion.png", title=title)
        files += ", confusion.png"
    tables.print_evaluation(result, json.loads((out / "evaluate.json").read_text()))
    finished(f"{out}/{files}", start)


def probe(command: ProbeCommand) -> None:
    """Probes an encoder."""
    start = time.monotonic()
    report = probe_encoder(command.config, command.out)
    if distributed.rank() == 0:
        tables.print_probe(cast(str, command.config.kind), report)
    tune = f"mam2 finetune RECIPE --init {command.config.encoder} --data.root LABELLED --out TUNED"
    finished(f"{command.out}/probe_{command.config.kind}.json", start, tune)
