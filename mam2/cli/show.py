"""`mam2 show`, `mam2 masks` and `mam2 report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from mam2.cli.parse import parse, say
from mam2.config import UserError
from mam2.pictures.masks import show_masks
from mam2.use.run_page import write_run_page
from mam2.use.show import show, show_augmented


@dataclass(frozen=True, kw_only=True)
class ShowCommand:
    """Draw what a pre-trained run predicts for a video, or what a run's training gets to see of it.

    Attributes:
        run: the folder of a `mam2 pretrain`; any other encoder, of which the attention is drawn; with --augment, the
            folder of a `mam2 pretrain` or `mam2 finetune`.
        video: any video file.
        out: output PNG; by default ./VIDEO.png.
        gif: an animation of the same to write too.
        mp4: an animation of the same to write too.
        augment: draw four clips of the video as the run's training gets them, not predictions.
        seed: of the mask, or of the augmentation.
    """

    run: Positional[str]
    video: Positional[Path]
    out: Path | None = None
    gif: Path | None = None
    mp4: Path | None = None
    augment: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class MasksCommand:
    """Draw every kind of mask over a video, as Fig. 3.

    Attributes:
        video: any video file; by default a rendered one.
        out: output PNG.
        ratio: share of patches that is masked.
        seed: of the masks.
    """

    video: Positional[Path | None] = None
    out: Path = Path("masks.png")
    ratio: float = 0.75
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write the page of a run, finished or not: how far, how healthy, its curves, pictures and cost.

    Attributes:
        run: the folder of a `mam2 pretrain` or `mam2 finetune`.
        out: the HTML file to write; by default report.html in the run's folder.
        video: what is drawn of a pre-training; by default one of its own videos.
    """

    run: Positional[Path]
    out: Path | None = None
    video: str = ""


def main(verb: str, arguments: list[str]) -> None:
    """Draws predictions, augmented clips or masks, or writes a run's page."""
    if verb == "masks":
        masks = parse(MasksCommand, verb, arguments)
        show_masks(masks.video, masks.out, ratio=masks.ratio, seed=masks.seed)
        say(f"Wrote {masks.out}")
        return
    if verb == "report":
        report = parse(ReportCommand, verb, arguments)
        say(f"Wrote {write_run_page(report.run, report.out, video=report.video)}")
        return
    command = parse(ShowCommand, verb, arguments)
    animations = tuple(path for path in (command.gif, command.mp4) if path)
    if command.augment and animations:
        raise UserError("--augment draws a picture only; leave --gif and --mp4 out.")
    out = command.out or Path(f"{command.video.stem}.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"{out} is no PNG's name. Give --out a name that ends in .png.")
    if command.augment:
        show_augmented(command.run, command.video, out, seed=command.seed)
    else:
        show(command.run, command.video, out, animations=animations, seed=command.seed)
    say(f"Wrote {', '.join(map(str, (out, *animations)))}")
