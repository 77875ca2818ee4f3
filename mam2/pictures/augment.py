"""Augmented clips of a run's training, drawn (Tables 7 and 8)."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import torch

from mam2.config import UserError, from_json, seed_of
from mam2.data.clips import Data, catalog_of, train_clips
from mam2.data.mixing import mix
from mam2.patches import to_float
from mam2.pictures.canvas import FrameRow, enlarge, frames_shown, page_of_rows, zoom_to
from mam2.train.finetune import Finetune
from mam2.train.pretrain import Pretrain
from mam2.train.run import read_run

log = logging.getLogger("mam2")
KINDS = {"pretrain": Pretrain, "finetune": Finetune}


def show_augmented(run: str | Path, video: str | Path, out: str | Path, *, seed: int) -> None:
    """Draws four clips of a video as a run's training augments them, repeats included, as a PNG (Tables 7 and 8).

    If the run mixes clips, they are mixed with one of its own training videos, provided those can be found.

    Raises:
        UserError: no run, or no video.
    """
    record = read_run(Path(run))
    config: Pretrain | Finetune = from_json(KINDS[record["kind"]], record["config"])
    sizes = {"num_frames": config.encoder.frames, "size": config.encoder.size}
    mixing = isinstance(config, Finetune) and max(config.mixup, config.cutmix) > 0
    other = _other_video(config.data, str(video), seed=seed) if mixing else ""
    rows = []
    for draw in range(4):
        rng = random.Random(seed_of(seed, draw))
        clips_BTCHW = to_float(torch.stack(train_clips(str(video), config.data, rng=rng, **sizes)))
        kept = 1.0
        if isinstance(config, Finetune) and other:
            others_BTCHW = to_float(torch.stack(train_clips(other, config.data, rng=rng, **sizes)))
            pair_BTCHW = torch.cat([clips_BTCHW, others_BTCHW])
            whose_B = torch.arange(2).repeat_interleave(len(clips_BTCHW))
            switches = {"mixup": config.mixup, "cutmix": config.cutmix, "smoothing": 0.0}
            mixed_BTCHW, share_B2 = mix(pair_BTCHW, whose_B, num_classes=2, rng=rng, **switches)
            clips_BTCHW = mixed_BTCHW[: len(clips_BTCHW)]
            kept = share_B2[0, 0].item()
        for repeat, frames_TCHW in enumerate(clips_BTCHW):
            which = f"draw {draw + 1}" + (f", repeat {repeat + 1}" if len(clips_BTCHW) > 1 else "")
            mixed = f"{1 - kept:.0%} of it is {Path(other).name}" if other else ""
            enlarged_TCHW = enlarge(frames_TCHW, zoom_to(frames_TCHW, 128))
            rows.append(FrameRow(name=which, description=mixed, frames_TCHW=enlarged_TCHW))
    shown = frames_shown(config.encoder.frames, 8)
    page_of_rows(rows, shown, title=f"{Path(video).name}, as training gets it", footer=[]).save(out)


def _other_video(data: Data, video: str, *, seed: int) -> str:
    """A video of the training data that is not this one; "", with a warning, if there is none."""
    try:
        items = catalog_of(data, labelled=False).items
    except UserError as error:
        log.warning(f"Mixup and cutmix are not drawn, because no second video was found: {error}")
        return ""
    others = [item.path for item in items if Path(item.path).absolute() != Path(video).absolute()]
    return random.Random(seed).choice(others) if others else ""
