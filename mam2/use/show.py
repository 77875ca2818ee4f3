"""Sheets of pictures: predictions for a video, clips as a run's training sees them, frames that a tokenizer keeps.

F frames, T frames of a clip, C channels, H W pixels, N patches per frame.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path

import torch
import torch.nn.functional as F

from mam2.config import UserError, from_json, seed_of
from mam2.data.catalog import read_catalog
from mam2.data.clips import Data, middle_clip, train_clips
from mam2.data.mixing import mix
from mam2.data.shape import ClipShape
from mam2.patches import to_float
from mam2.pictures.canvas import FrameRow, enlarge, frames_shown, page_of_rows, zoom_to
from mam2.pictures.page import video_title
from mam2.pictures.prediction import animation, contact_sheet
from mam2.targets.tokenizers.vq import load_vq
from mam2.train.finetune import Finetune
from mam2.train.pretrain import Pretrain
from mam2.train.run import read_run
from mam2.trained import open_model
from mam2.use.hidden_patches import predict_middle

log = logging.getLogger("mam2")
RUN_KINDS: dict[str, type[Pretrain] | type[Finetune]] = {"pretrain": Pretrain, "finetune": Finetune}


def config_of_run(run: Path) -> Pretrain | Finetune:
    """Configuration of a pre-training or fine-tuning run; raises UserError for anything else."""
    record = read_run(run)
    if record["kind"] not in RUN_KINDS:
        raise UserError(f"{run} is a run of the kind {record['kind']!r}; accepted: {', '.join(RUN_KINDS)}.")
    return from_json(RUN_KINDS[record["kind"]], record["config"])


def show(
    run: str | Path,
    video: str | Path,
    out: str | Path,
    *,
    animations: tuple[str | Path, ...] = (),
    seed: int = 0,
) -> None:
    """Writes a contact sheet (PNG) of a run's predictions for the middle of a video; of an encoder, its attention.

    Args:
        run: the folder of a pre-training run, or another source of `load_encoder`.
        video: a video file.
        out: the PNG to write.
        animations: .gif or .mp4 files to write too: the same rows, in motion.
        seed: seed of the mask.

    Raises:
        UserError: no run, no encoder, no video, or an animation of another kind of file.
    """
    prediction = predict_middle(open_model(run, whole=True), video, seed=seed)
    contact_sheet(prediction, title=video_title(video)).save(out)
    for path in animations:
        animation(prediction, Path(path), title=video_title(video))


def show_augmented(run: str | Path, video: str | Path, out: str | Path, *, seed: int) -> None:
    """Draws four clips of a video as a run's training augments them, repeats included, as a PNG (Tables 7 and 8).

    If the run mixes clips, they are mixed with one of its own training videos, provided those can be found.

    Raises:
        UserError: no run, or no video.
    """
    config = config_of_run(Path(run))
    shape = ClipShape.of(config.encoder)
    mixing = isinstance(config, Finetune) and max(config.mixup, config.cutmix) > 0
    other = _other_video(config.data, str(video), seed=seed) if mixing else ""
    rows = []
    for draw in range(4):
        rng = random.Random(seed_of(seed, draw))
        clips_BTCHW = to_float(torch.stack(train_clips(str(video), config.data, shape, rng=rng).clips))
        kept = 1.0
        if isinstance(config, Finetune) and other:
            others_BTCHW = to_float(torch.stack(train_clips(other, config.data, shape, rng=rng).clips))
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
    """Another video of the training data; "", with a warning, without one."""
    try:
        items = read_catalog(data.listing, labelled=False).items
    except UserError as error:
        log.warning(f"Mixup and cutmix are not drawn, because no second video was found: {error}")
        return ""
    others = [item.path for item in items if Path(item.path).absolute() != Path(video).absolute()]
    return random.Random(seed).choice(others) if others else ""


def show_reconstruction(file: str | Path, videos: list[str], out: str | Path, *, size: int) -> None:
    """Draws middle frames of at most 6 videos and a small VQ tokenizer's reconstructions of them, as a PNG.

    Raises:
        UserError: no tokenizer, or no readable video.
    """
    tokenizer = load_vq(file)
    frames = []
    for video in videos[:: max(1, len(videos) // 6)]:  # evenly spaced: neighbours are of one class
        try:
            frames.append(middle_clip(video, Data(), ClipShape(1, size))[0])
        except UserError:  # damaged: training has reported it
            continue
        if len(frames) == 6:
            break
    if not frames:
        raise UserError("None of the videos can be read, so there is nothing to draw.")
    frames_FCHW = to_float(torch.stack(frames))
    codes_FN = tokenizer(frames_FCHW)
    grid = (size // tokenizer.patch_size,) * 2
    drawn_FCHW = tokenizer.decode(codes_FN, grid=grid)
    zoom = zoom_to(frames_FCHW, 128)
    error = F.mse_loss(drawn_FCHW, frames_FCHW).item()
    rows = [
        FrameRow(name="Frames", description="one of each video", frames_TCHW=enlarge(frames_FCHW, zoom)),
        FrameRow(
            name="From their codes",
            description=f"{tokenizer.num_codes} codes, {grid[0]} × {grid[1]} per frame; squared error {error:.4f}",
            frames_TCHW=enlarge(drawn_FCHW, zoom),
        ),
    ]
    page_of_rows(rows, list(range(len(frames))), title=Path(file).name, footer=[]).save(out)
