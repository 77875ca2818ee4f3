"""`mam2 import`: a published encoder as a file of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mam2.cli.parse import Flat, parse, say
from mam2.model.importers import import_encoder
from mam2.model.importers.facts import Inflation, Triple
from mam2.model.weights import save_encoder


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a published encoder a file of ours.

    Attributes:
        source: timm:NAME, hf:NAME, hf:FOLDER, a folder with config.json and weights, or a file of weights.
        out: the file to write, such as encoder.safetensors.
        file: for timm:NAME, a file of its weights, instead of a download.
        inflation: clips, tubelets and attention.
        num_heads: attention heads, 0 for what the source states; needed if it states none and its width is unusual.
        pixel_mean: of the pixels in [0, 1] that it was trained on, where the source does not state it.
        pixel_std: their standard deviation.
        licence: of the weights, where the source does not state it.
    """

    source: Positional[str]
    out: Path
    file: str = ""
    inflation: Annotated[Inflation, Flat] = field(default_factory=Inflation)
    num_heads: int = 0
    pixel_mean: Annotated[Triple | None, arg(metavar="R G B")] = None
    pixel_std: Annotated[Triple | None, arg(metavar="R G B")] = None
    licence: str = ""


def main(verb: str, arguments: list[str]) -> None:
    """Writes the encoder, and says what became of each tensor."""
    command = parse(Import, verb, arguments)
    imported = import_encoder(
        command.source,
        file=command.file,
        inflation=command.inflation,
        num_heads=command.num_heads,
        mean=command.pixel_mean,
        std=command.pixel_std,
        licence=command.licence,
    )
    save_encoder(command.out, imported.encoder)
    config, origin = imported.encoder.config, imported.encoder.origin
    for note in imported.notes:
        say(f"  {note}")
    licence = f" Licence: {origin.licence}." if origin else ""
    say(f"Wrote {command.out}: {config.frames} frames of {config.size}², {config.attention} attention.{licence}")
    recipe = "mam2_adapt_b" if config.attention == "factorised" else "mam2_adapt_video_b"
    say(f"Next: mam2 pretrain {recipe} --init {command.out} --data.root VIDEOS --out RUN")
    say(f"      mam2 probe {command.out} --train LABELLED --test TEST")
