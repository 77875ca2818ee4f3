"""Pages of moving stretches of videos, with a line about each: the hits of a search."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from mam2.config import UserError, printable
from mam2.data.video.open import open_video
from mam2.pictures.page import write_html

HIT_SHORT_SIDE = 160  # pixels
MAX_FRAMES = 16


@dataclass(frozen=True, kw_only=True)
class Card:
    """A stretch of a video on a page, from `start` to `end` (seconds), with a caption."""

    path: str
    start: float
    end: float
    words: str


def write_cards(
    file: Path,
    *,
    title: str,
    about: str,
    rows: Sequence[tuple[str, Sequence[Card]]],
    facts: Mapping[str, str],
    commands: Sequence[str],
) -> None:
    """Writes one HTML file of moving pictures, without links or scripts: it opens without a server.

    Args:
        file: the file to write.
        title, about: plain text, as are all others.
        rows: headings, and the cards below each.
        facts, commands: see `write_html`.

    Raises:
        UserError: another ending than .html.
    """
    check_page(file)
    values = {
        "about": printable(about),
        "rows": [(printable(heading), [_card_values(card) for card in cards]) for heading, cards in rows],
    }
    write_html(file, "hits", values, title=title, facts=facts, commands=commands)


def check_page(file: Path) -> None:
    """Raises UserError unless a page can be written into such a file."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"A page can't be written to {file}; accepted is a file that ends in .html.")


def _card_values(card: Card) -> dict[str, str]:
    """The template's values for a card; for a video that can't be read, the problem in words."""
    values = {
        "picture": "",
        "problem": "",
        "name": printable(Path(card.path).name),
        "path": printable(card.path),
        "when": f"{clock(card.start)} to {clock(card.end)}",
        "words": printable(card.words),
    }
    try:
        values["picture"] = data_address(stretch(card.path, start=card.start, end=card.end))
    except UserError as error:
        values["problem"] = printable(str(error))
    return values


def stretch(path: str, *, start: float, end: float) -> bytes:
    """A stretch of a video as an animated WebP at its speed; raises UserError if it has no frames there."""
    with open_video(path, short_side=HIT_SHORT_SIDE) as video:
        first = video.frame_at(start)
        last = min(video.frame_at(end), video.num_frames - video.num_missing)
        if first >= last:
            raise UserError(f"{path} has no frames from {start:.3f} to {end:.3f} seconds: it is another one now.")
        count = min(MAX_FRAMES, last - first)
        frames_TCHW = video.frames([first + i * (last - first) // count for i in range(count)])
    return webp(frames_TCHW, seconds=(end - start) / count)


def webp(frames_TCHW: Tensor, *, seconds: float, quality: int = 60) -> bytes:
    """Frames, uint8 (T, 3, H, W), as an animated WebP that shows each for so many seconds."""
    pictures = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in frames_TCHW]
    buffer = io.BytesIO()
    milliseconds = max(20, round(1000 * seconds))
    # kmax: each frame is coded whole, or small changes would be left out as if nothing moved.
    options = {"duration": milliseconds, "loop": 0, "quality": quality, "kmax": 1}
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:], **options)
    return buffer.getvalue()


def data_address(picture: bytes) -> str:
    """A WebP as a data: address."""
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def clock(seconds: float) -> str:
    """Seconds as a player shows them: `1:02:03.5`."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
