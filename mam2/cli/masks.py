"""`mam2 masks`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from mam2.cli.parse import parse
from mam2.pictures.masks import show_masks
from mam2.terminal import say


@dataclass(frozen=True, kw_only=True)
class MasksCommand:
    """Draw every kind of mask over a video, as Fig. 3.

    Attributes:
        video: any video file; by default a rendered one.
        out: PNG to write.
        ratio: share of the patches that is masked, from 0 to 1.
        seed: seed of the masks.
    """

    video: Positional[Path | None] = None
    out: Path = Path("masks.png")
    ratio: float = 0.75
    seed: int = 0


def main(verb: str, arguments: list[str]) -> None:
    """Draws masks."""
    command = parse(MasksCommand, verb, arguments)
    show_masks(command.video, command.out, ratio=command.ratio, seed=command.seed)
    say(f"Wrote {command.out}")
