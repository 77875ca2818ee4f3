"""What a pre-trained run predicts for a video, as a picture: the model's own predictions, nothing added back."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mam2.data import sampling, transforms
from mam2.data.decode import Video
from mam2.masks import TubeMask, put, take
from mam2.objectives.mam2 import MAM2
from mam2.targets import TargetMaker
from mam2.targets.motion import motion_scale
from mam2.targets.pixels import to_float, unpatchify
from mam2.train.pretrain import load_run
from mam2.visualize import Prediction, contact_sheet


def show(run: str | Path, video: str | Path, out: str | Path, *, seed: int = 0) -> None:
    """Writes a contact sheet (PNG) of what a run predicts for the middle of a video.

    Args:
        run: the folder of a pre-training run.
        video: a video file.
        out: the PNG to write.
        seed: of the mask.

    Raises:
        UserError: no pre-training run, or no video.
    """
    model, targets, config = load_run(run)
    encoder = config.encoder
    with Video(str(video)) as opened:
        (indices,) = sampling.views(
            opened.num_frames, clip_frames=encoder.frames, stride_frames=config.data.stride_frames, clips=1
        )
        (clip_TCHW,) = transforms.test_crops(opened.frames(indices), size=encoder.size, crops=1)
    contact_sheet(predict(model, targets, config.mask, clip_TCHW, seed=seed), Path(out), title=Path(video).name)


@torch.no_grad()
def predict(model: MAM2, targets: TargetMaker, tube: TubeMask, clip_TCHW: Tensor, *, seed: int = 0) -> Prediction:
    """Masks one clip and predicts what is hidden.

    Args:
        model: in eval mode.
        targets: made with the model's tokenizer; where that has a decoder, predicted codes become pictures.
        tube: the masking.
        clip_TCHW: uint8 (T, 3, H, W).
        seed: of the mask.
    """
    device = next(model.parameters()).device
    clip = to_float(clip_TCHW[None].to(device))
    patch_size = model.encoder.config.patch_size
    grid = (clip.shape[3] // patch_size, clip.shape[4] // patch_size)
    num_patches = grid[0] * grid[1]
    mask = tube(num_patches, sample_B=torch.zeros(1, dtype=torch.long), seed=seed).to(device)
    target = targets(clip)
    predicted = model.predict(clip, mask)

    codes_BTM = predicted.logits_BTMK.argmax(dim=-1)
    right_BTM = codes_BTM == take(target.codes_BTN[..., None], mask.masked_BM)[..., 0]
    codes_BTN = put(codes_BTM[..., None], mask.masked_BM, num_patches)[..., 0]
    decode = getattr(targets.tokenizer, "decode", None)
    appearance_TCHW = decode(codes_BTN[0], grid=grid).cpu() if decode else None

    motion_BTND = put(predicted.motion_BTMP[:, :-1].float(), mask.masked_BM, num_patches)
    if targets.config.motion_scale == "clip":  # the model predicts in units of the clip's standard deviation
        motion_BTND = motion_BTND * motion_scale(clip)[:, None, None, None]
    masked_N = torch.zeros(num_patches, dtype=torch.bool)
    masked_N[mask.masked_BM[0].cpu()] = True
    return Prediction(
        clip_TCHW=clip[0].cpu(),
        masked_N=masked_N,
        grid=grid,
        appearance_TCHW=appearance_TCHW,
        agreement_TN=put(right_BTM[..., None], mask.masked_BM, num_patches)[0, ..., 0].cpu(),
        motion_TCHW=unpatchify(motion_BTND[0], patch_size, grid).cpu(),
        true_motion_TCHW=(clip[0, 1:] - clip[0, :-1]).cpu(),
    )
