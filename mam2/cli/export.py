"""`mam2 export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from mam2.cli.parse import Flat, finished, parse
from mam2.share.export import Export, export_file
from mam2.terminal import say


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Export an encoder or a classifier to ONNX, torch.export or AOTInductor, compared with the model on a clip.

    Attributes:
        source: a run's folder, or an encoder.safetensors or classifier.safetensors.
        out: file to write: .onnx, or .pt2 for the other two formats.
    """

    source: Positional[str]
    config: Annotated[Export, Flat]
    out: Path


def main(verb: str, arguments: list[str]) -> None:
    """Exports a model."""
    command = parse(ExportCommand, verb, arguments)
    done = export_file(command.source, command.out, config=command.config)
    say(f"Input  {done.takes}.")
    say(f"Output {done.gives}.")
    numbers = f"{done.difference:.2g}, of numbers up to {done.largest:.3g}"
    say(f"Largest difference from the model: {numbers}, on {done.clip}.")
    finished(str(done.file))
