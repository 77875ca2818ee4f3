"""`mam2 import`: a published encoder as a file of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from mam2.cli.parse import Flat, parse
from mam2.model.importers import import_as
from mam2.model.importers.facts import Inflation, Stated
from mam2.model.weights import save_encoder
from mam2.terminal import say


@dataclass(frozen=True, kw_only=True)
class ImportCommand:
    """Make a published encoder a file of ours.

    Attributes:
        source: timm:NAME, hf:NAME, hf:FOLDER, a folder with config.json and weights, or a file of weights.
        out: file to write, such as encoder.safetensors.
    """

    source: Positional[str]
    out: Path
    inflation: Annotated[Inflation, Flat] = field(default_factory=Inflation)
    stated: Annotated[Stated, Flat] = field(default_factory=Stated)


def main(verb: str, arguments: list[str]) -> None:
    """Writes the encoder, and says what became of each tensor."""
    command = parse(ImportCommand, verb, arguments)
    imported = import_as(command.source, command.inflation, command.stated)
    save_encoder(command.out, imported.encoder)
    config, origin = imported.encoder.config, imported.encoder.origin
    for note in imported.notes:
        say(f"  {note}")
    licence = f" Licence: {origin.licence}." if origin else ""
    say(f"Wrote {command.out}: {config.frames} frames of {config.size}², {config.attention} attention.{licence}")
    recipe = "mam2_adapt_b" if config.attention == "factorised" else "mam2_adapt_video_b"
    say(f"Next: mam2 pretrain {recipe} --init {command.out} --data.root VIDEOS --out RUN")
    say(f"      mam2 probe {command.out} --train LABELLED --test TEST")
