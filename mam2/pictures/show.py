"""What a pre-trained run predicts for a video, as pictures: the model's own predictions, nothing added back."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mam2.config import UserError, from_json, seed_of
from mam2.data.catalog import read_catalog
from mam2.data.clips import Data, train_clips, views_of
from mam2.data.mixing import mix
from mam2.data.synthetic import render
from mam2.masks import MASKS, Mask, MaskConfig, put
from mam2.objectives.contract import Objective
from mam2.patches import to_float, unpatchify
from mam2.pictures.canvas import FrameRow, enlarge, frames_shown, page_of_rows, zoom_to
from mam2.pictures.masks import mask_figure
from mam2.pictures.prediction import Prediction, animation, contact_sheet
from mam2.targets.maker import TargetMaker
from mam2.targets.motion import clip_scale
from mam2.targets.table import MOTIONS
from mam2.targets.tokenizers.vq import load_vq
from mam2.train.finetune import Finetune
from mam2.train.pretrain import Pretrain, load_run
from mam2.train.run import read_run

log = logging.getLogger("mam2")
KINDS = {"pretrain": Pretrain, "finetune": Finetune}


def show(
    run: str | Path,
    video: str | Path,
    out: str | Path,
    *,
    animations: tuple[str | Path, ...] = (),
    seed: int = 0,
) -> None:
    """Writes a contact sheet (PNG) of what a run predicts for the middle of a video.

    Args:
        run: the folder of a pre-training run.
        video: a video file.
        out: the PNG to write.
        animations: more files to write, .gif or .mp4: the same rows, in motion.
        seed: of the mask.

    Raises:
        UserError: no pre-training run, no video, or an animation of another kind of file.
    """
    model, targets, config = load_run(run)
    size, frames = config.encoder.size, config.encoder.frames
    clip_TCHW = middle_of(video, config.data, num_frames=frames, size=size)
    prediction = predict(model, targets, config.mask, clip_TCHW, seed=seed)
    contact_sheet(prediction, Path(out), title=Path(video).name)
    for path in animations:
        animation(prediction, Path(path), title=Path(video).name)


def show_augmented(run: str | Path, video: str | Path, out: str | Path, *, seed: int = 0) -> None:
    """Draws four clips of a video as a run's training gets them, repeats included, as a PNG (Tables 7 and 8).

    A run that mixes clips has them mixed with one of its own training videos, where those are at hand.

    Raises:
        UserError: no run, or no video.
    """
    record = read_run(Path(run))
    config: Pretrain | Finetune = from_json(KINDS[record["kind"]], record["config"])
    sizes = {"num_frames": config.encoder.frames, "size": config.encoder.size}
    mixing = isinstance(config, Finetune) and max(config.mixup, config.cutmix) > 0
    other, rows = _other_video(config.data, str(video), seed=seed) if mixing else "", list[FrameRow]()
    for draw in range(4):
        rng = random.Random(seed_of(seed, draw))
        clips_BTCHW = to_float(torch.stack(train_clips(str(video), config.data, rng=rng, **sizes)))
        kept = 1.0
        if isinstance(config, Finetune) and other:
            others_BTCHW = to_float(torch.stack(train_clips(other, config.data, rng=rng, **sizes)))
            pair_BTCHW, whose_B = (
                torch.cat([clips_BTCHW, others_BTCHW]),
                torch.arange(2).repeat_interleave(len(clips_BTCHW)),
            )
            switches = {"mixup": config.mixup, "cutmix": config.cutmix, "smoothing": 0.0}
            mixed_BTCHW, share_B2 = mix(pair_BTCHW, whose_B, num_classes=2, rng=rng, **switches)
            clips_BTCHW, kept = mixed_BTCHW[: len(clips_BTCHW)], share_B2[0, 0].item()
        for repeat, frames_TCHW in enumerate(clips_BTCHW):
            which = f"draw {draw + 1}" + (f", repeat {repeat + 1}" if len(clips_BTCHW) > 1 else "")
            mixed = f"{1 - kept:.0%} of it is {Path(other).name}" if other else ""
            rows.append(
                FrameRow(name=which, description=mixed, frames_TCHW=enlarge(frames_TCHW, zoom_to(frames_TCHW, 128)))
            )
    shown = frames_shown(config.encoder.frames, 8)
    page_of_rows(rows, shown, title=f"{Path(video).name}, as training gets it", footer=[]).save(out)


def _other_video(data: Data, video: str, *, seed: int) -> str:
    """A video of the training data that is not this one; "", with a warning, if there is none."""
    try:
        items = read_catalog(data.root, labelled=False, split=data.split).items
    except UserError as error:
        log.warning(f"Mixup and cutmix are not drawn, for want of a second video: {error}")
        return ""
    others = [item.path for item in items if Path(item.path).absolute() != Path(video).absolute()]
    return random.Random(seed).choice(others) if others else ""


def show_masks(video: str | Path | None, out: str | Path, *, ratio: float = 0.75, seed: int = 0) -> None:
    """Draws every kind of mask over 16 frames of a video, 14 × 14 patches, as a PNG (Fig. 3); None renders a video.

    Raises:
        UserError: no video, or an impossible ratio.
    """
    if video is None:
        clip_TCHW = render("approach", seed=0, num_frames=16, size=224)
    else:
        clip_TCHW = middle_of(video, Data(), num_frames=16, size=224)
    grid, masks = (14, 14), []
    for kind in MASKS:
        mask = MaskConfig(kind=kind, ratio=ratio)(16, grid, sample_B=torch.tensor([0]), seed=seed)
        masks.append((kind, masked_patches(mask, 196)))
    mask_figure(masks, to_float(clip_TCHW), grid, out)


def show_reconstruction(file: str | Path, videos: list[str], out: str | Path, *, size: int) -> None:
    """Draws the middle frames of at most 6 videos and what a small VQ tokenizer makes of them, as a PNG.

    Raises:
        UserError: no tokenizer, or none of the videos can be read.
    """
    tokenizer, frames = load_vq(file), []
    for video in videos[:: max(1, len(videos) // 6)]:  # from all over: neighbours are of one class
        try:
            frames.append(middle_of(video, Data(), num_frames=1, size=size)[0])
        except UserError:  # damaged: the training has told so
            continue
        if len(frames) == 6:
            break
    if not frames:
        raise UserError("None of the videos can be read, so there is nothing to draw.")
    frames_FCHW = to_float(torch.stack(frames))
    codes_FN = tokenizer(frames_FCHW)
    grid = (size // tokenizer.patch_size,) * 2
    drawn_FCHW, zoom = tokenizer.decode(codes_FN, grid=grid), zoom_to(frames_FCHW, 128)
    error = torch.nn.functional.mse_loss(drawn_FCHW, frames_FCHW).item()
    rows = [
        FrameRow(name="Frames", description="one of each video", frames_TCHW=enlarge(frames_FCHW, zoom)),
        FrameRow(
            name="From their codes",
            description=f"{tokenizer.num_codes} codes, {grid[0]} × {grid[1]} a frame; squared error {error:.4f}",
            frames_TCHW=enlarge(drawn_FCHW, zoom),
        ),
    ]
    page_of_rows(rows, list(range(len(frames))), title=Path(file).name, footer=[]).save(out)


def middle_of(video: str | Path, data: Data, *, num_frames: int, size: int) -> Tensor:
    """The clip in the middle of a video, as in testing with one view: uint8 (T, 3, size, size)."""
    return views_of(str(video), data, num_frames=num_frames, size=size, clips=1, crops=1)[0]


def masked_patches(mask: Mask, num_patches: int) -> Tensor:
    """The mask of one clip as bool (T, N), True where masked."""
    ones_BTM1 = torch.ones_like(mask.masked_BTM, dtype=torch.bool)[..., None]
    return put(ones_BTM1, mask.masked_BTM, num_patches)[0, ..., 0].cpu()


@torch.no_grad()
def predict(
    model: Objective, targets: TargetMaker, masking: MaskConfig, clip_TCHW: Tensor, *, seed: int = 0
) -> Prediction:
    """Masks one clip and predicts what is hidden.

    Args:
        model: in eval mode.
        targets: made with the model's tokenizer; where that has a decoder, predicted codes become pictures.
        masking: how the clip is masked.
        clip_TCHW: uint8 (T, 3, H, W).
        seed: of the mask.
    """
    device = next(model.encoder.parameters()).device
    whole = to_float(clip_TCHW[None].to(device))
    patch_size, sample_B = model.encoder.config.patch_size, torch.zeros(1, dtype=torch.long)
    clip = whole[:, :: model.encoder.config.tubelet]  # what is predicted is the first frame of a tubelet
    grid = (clip.shape[3] // patch_size, clip.shape[4] // patch_size)
    num_patches = grid[0] * grid[1]
    everything = replace(masking, predicted=1.0, aligned=1.0)  # whatever share training predicts
    mask = everything(clip.shape[1], grid, sample_B=sample_B, seed=seed).to(device)
    target = targets(clip, sample_B=sample_B, seed=seed)
    masked = target.at(mask)
    predicted = model.reconstruct(whole, mask, target)
    notes: list[str] = []

    appearance_TCHW = agreement_TN = None
    appearance_name = "Predicted appearance"
    appearance_BTMK = predicted.appearance_BTMK
    if appearance_BTMK is not None and targets.tokenizer is None:
        appearance_name = "Predicted pixels, normalised per patch"
        pixels_BTND = put(appearance_BTMK.float(), mask.masked_BTM, num_patches)
        appearance_TCHW = unpatchify(0.5 + pixels_BTND[0] / 6, patch_size, grid).clamp(0, 1).cpu()  # ±3σ
    elif appearance_BTMK is not None and masked.appearance is not None:
        codes_BTM = appearance_BTMK.argmax(dim=-1)
        codes_BTN = put(codes_BTM[..., None], mask.masked_BTM, num_patches)[..., 0]
        right_BTM = torch.eq(codes_BTM, masked.appearance)
        agreement_TN = put(right_BTM[..., None], mask.masked_BTM, num_patches)[0, ..., 0].cpu()
        appearance_TCHW = draw_codes(targets, codes_BTN[0], grid, size=clip.shape[3:])

    motion_TCHW = true_motion_TCHW = None
    if masked.clip_order and predicted.motion is not None and masked.motion is not None:
        share = torch.eq(predicted.motion.argmax(dim=-1), masked.motion).float().mean().item()
        notes.append(f"Clip order: of {share:.0%} of the masked tubes it is told rightly whether they were swapped.")
    elif predicted.motion is not None and target.motion is not None and targets.motion is not None:
        motion_BTND = put(predicted.motion[:, :-1].float(), mask.masked_BTM[:, :-1], num_patches)
        unit, note = motion_unit(targets, clip)
        motion_TCHW, true_motion_TCHW = (
            unpatchify(patches_BTND[0] * unit, patch_size, grid).cpu() for patches_BTND in (motion_BTND, target.motion)
        )
        notes += [note] if note else []
    return Prediction(
        clip_TCHW=clip[0].cpu(),
        masked_TN=masked_patches(mask, num_patches),
        grid=grid,
        appearance_TCHW=appearance_TCHW,
        agreement_TN=agreement_TN,
        motion_TCHW=motion_TCHW,
        true_motion_TCHW=true_motion_TCHW,
        appearance_name=appearance_name,
        tubelet=model.encoder.config.tubelet,
        attention_TN=model.encoder.attention_received(whole)[0].float().cpu(),
        notes=tuple(notes),
    )


def draw_codes(targets: TargetMaker, codes_TN: Tensor, grid: tuple[int, int], *, size: torch.Size) -> Tensor | None:
    """The codes as pictures (T, 3, H, W) in [0, 1], by the tokenizer's decoder; None where it has none."""
    if not (decode := getattr(targets.tokenizer, "decode", None)) or getattr(targets.tokenizer, "decoder", 0) is None:
        return None
    frames_TCHW = decode(codes_TN, grid=grid)
    return torch.nn.functional.interpolate(frames_TCHW, size, mode="bilinear", antialias=True).cpu()


def motion_unit(targets: TargetMaker, clip_BTCHW: Tensor) -> tuple[float, str]:
    """What to multiply motion targets with to get pixels (flow) or RGB in [0, 1], and what to say about it."""
    kind = MOTIONS[targets.config.motion]
    unit = float(targets.patch_size) if kind.channels == 2 else 1.0  # flow is in patch sides
    match targets.config.motion_scale:
        case "clip" if targets.motion is not None:
            scale = clip_scale(targets.motion(clip_BTCHW), least=kind.still).item()
            return unit * scale, "Motion is predicted in units of the clip's own root mean square; both rows share it."
        case "patch":
            return 1.0, "Motion is normalised patch by patch, in both rows."
    return unit, ""
