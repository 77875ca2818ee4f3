"""`mam2 show`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from mam2.cli.parse import parse
from mam2.config import UserError
from mam2.terminal import say
from mam2.use.show import show, show_augmented


@dataclass(frozen=True, kw_only=True)
class ShowCommand:
    """Draw what a pre-trained run predicts for a video, or what a run's training gets to see of it.

    Attributes:
        run: the folder of a `mam2 pretrain`, whose predictions are drawn; any other encoder, whose attention is drawn;
            with --augment, the folder of a `mam2 pretrain` or `mam2 finetune`.
        video: any video file.
        out: PNG to write; by default ./VIDEO.png.
        gif: GIF to write too, with the same rows in motion; by default none.
        mp4: MP4 to write too, with the same rows in motion; by default none.
        augment: draw four clips of the video as the run's training gets them, not predictions.
        seed: seed of the mask, or of the augmentation.
    """

    run: Positional[str]
    video: Positional[Path]
    out: Path | None = None
    gif: Path | None = None
    mp4: Path | None = None
    augment: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.augment and (self.gif or self.mp4):
            raise UserError("--augment draws a picture only; leave --gif and --mp4 out.")
        if self.out and self.out.suffix.lower() != ".png":
            raise UserError(f"{self.out} is no PNG's name. Give --out a name that ends in .png.")


def main(verb: str, arguments: list[str]) -> None:
    """Draws predictions, or augmented clips."""
    command = parse(ShowCommand, verb, arguments)
    out = command.out or Path(f"{command.video.stem}.png")
    animations = tuple(path for path in (command.gif, command.mp4) if path)
    if command.augment:
        show_augmented(command.run, command.video, out, seed=command.seed)
    else:
        show(command.run, command.video, out, animations=animations, seed=command.seed)
    say(f"Wrote {', '.join(map(str, (out, *animations)))}")
