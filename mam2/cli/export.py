"""`mam2 export`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from mam2.cli.parse import finished, parse, say
from mam2.share.export import Device, Format, Head, Pool, export


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Export an encoder or a classifier to ONNX, torch.export or AOTInductor, compared with the model on a clip.

    Attributes:
        source: a run's folder, or an encoder.safetensors or classifier.safetensors.
        format: onnx, pt2 (torch.export), or aoti (compiled for this machine).
        out: the file to write: .onnx or .pt2.
        head: probabilities or logits of a classifier, none for features; auto is probabilities where there is a class.
        pool: features of every patch, or their mean: one vector per clip.
        device: what aoti compiles for.
        clip: a video to compare on; by default rendered ones.
        tolerance: largest difference accepted, as a share of the model's largest number.
    """

    source: Positional[str]
    format: Format
    out: Path
    head: Head = "auto"
    pool: Pool = "none"
    device: Device = "cpu"
    clip: Path | None = None
    tolerance: float = 1e-3


def main(verb: str, arguments: list[str]) -> None:
    """Exports a model."""
    start = time.monotonic()
    command = parse(ExportCommand, verb, arguments)
    done = export(
        command.source,
        command.out,
        format=command.format,
        head=command.head,
        pool=command.pool,
        device=command.device,
        clip=command.clip,
        tolerance=command.tolerance,
    )
    say(f"Input  {done.takes}.")
    say(f"Output {done.gives}.")
    numbers = f"{done.difference:.2g}, of numbers up to {done.largest:.3g}"
    say(f"Largest difference from the model: {numbers}, on {done.clip}.")
    finished(str(done.file), start)
