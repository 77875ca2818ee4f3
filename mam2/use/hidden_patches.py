"""Predictions for the hidden patches of a clip, the model's own; or the attention of an encoder alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mam2.masks import MaskConfig, put
from mam2.model.encoder import VideoEncoder
from mam2.objectives.contract import Objective
from mam2.patches import to_float, unpatchify
from mam2.pictures.masks import masked_patches
from mam2.pictures.prediction import Prediction
from mam2.targets.maker import TargetMaker
from mam2.targets.motion import clip_scale
from mam2.targets.table import motion_row
from mam2.trained import Trained


def predict_middle(model: Trained, video: str | Path, *, seed: int) -> Prediction:
    """Prediction for the middle of a video; without an objective, the encoder's attention. `seed` is the mask's."""
    clip_TCHW = model.clip(video)
    if (whole := model.pretrained) is None:
        return attention_of(model.encoder, clip_TCHW)
    return predict_hidden(whole.objective, whole.targets, whole.mask, clip_TCHW, seed=seed)


@torch.no_grad()
def attention_of(encoder: VideoEncoder, clip_TCHW: Tensor) -> Prediction:
    """A clip, uint8 (T, 3, H, W), and the attention that an encoder in eval mode pays to its patches."""
    whole = to_float(clip_TCHW[None].to(encoder.patch_embed.weight.device))
    attention_TN = encoder.attention_received(whole)[0].float().cpu()
    tubelet = encoder.config.tubelet
    return Prediction(
        clip_TCHW=whole[0, ::tubelet].cpu(),
        masked_TN=torch.zeros_like(attention_TN, dtype=torch.bool),
        grid=encoder.layout(whole)[1],
        tubelet=tubelet,
        attention_TN=attention_TN,
    )


@torch.no_grad()
def predict_hidden(
    model: Objective, targets: TargetMaker, masking: MaskConfig, clip_TCHW: Tensor, *, seed: int
) -> Prediction:
    """Masks one clip, uint8 (T, 3, H, W), has the model (in eval mode) reconstruct it, and draws the result.

    The decoder of the targets' tokenizer, if any, turns predicted codes into pictures. `seed` is the mask's.
    """
    device = next(model.encoder.parameters()).device
    whole = to_float(clip_TCHW[None].to(device))
    patch_size = model.encoder.config.patch_size
    sample_B = torch.zeros(1, dtype=torch.long)
    clip = whole[:, :: model.encoder.config.tubelet]  # the targets are those of each tubelet's first frame
    grid = (clip.shape[3] // patch_size, clip.shape[4] // patch_size)
    num_patches = grid[0] * grid[1]
    everything = replace(masking, predicted=1.0, aligned=1.0)  # whatever share training predicts
    motion_BN = targets.motion_of(whole) if masking.is_guided else None
    mask = everything(clip.shape[1], grid, sample_B=sample_B, seed=seed, motion_BN=motion_BN).to(device)
    target = targets(whole, sample_B=sample_B, seed=seed)
    masked = target.at(mask)
    predicted = model.reconstruct(whole, mask, target)
    notes: list[str] = []

    appearance_TCHW = agreement_TN = None
    appearance_name = "Predicted appearance"
    appearance_BTMK = predicted.appearance_BTMK
    if appearance_BTMK is not None and targets.config.appearance.startswith("pixels"):
        appearance_name = "Predicted pixels, normalised per patch"
        first_BTMD = appearance_BTMK.unflatten(-1, (3, -1, patch_size**2))[..., 0, :].flatten(-2)  # of a tubelet
        pixels_BTND = put(first_BTMD.float(), mask.masked_BTM, num_patches)
        appearance_TCHW = unpatchify(0.5 + pixels_BTND[0] / 6, patch_size, grid).clamp(0, 1).cpu()  # ±3σ
    elif appearance_BTMK is not None and masked.appearance is not None and masked.appearance.is_floating_point():
        cosine = F.cosine_similarity(appearance_BTMK.float(), masked.appearance, dim=-1).mean().item()
        notes.append(f"Predicted {targets.config.appearance}: cosine {cosine:.2f} with the true numbers of a patch.")
    elif appearance_BTMK is not None and masked.appearance is not None:
        codes_BTM = appearance_BTMK.argmax(dim=-1)
        codes_BTN = put(codes_BTM[..., None], mask.masked_BTM, num_patches)[..., 0]
        right_BTM = torch.eq(codes_BTM, masked.appearance)
        agreement_TN = put(right_BTM[..., None], mask.masked_BTM, num_patches)[0, ..., 0].cpu()
        appearance_TCHW = draw_codes(targets, codes_BTN[0], grid, size=clip.shape[3:])

    motion_TCHW = true_motion_TCHW = None
    if masked.clip_order and predicted.motion is not None and masked.motion is not None:
        share = torch.eq(predicted.motion.argmax(dim=-1), masked.motion).float().mean().item()
        notes.append(f"Clip order: predicted rightly for {share:.0%} of the masked tubes.")
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
    """Codes decoded to pictures (T, 3, H, W) in [0, 1]; None if the tokenizer has no decoder."""
    if not (decode := getattr(targets.tokenizer, "decode", None)) or getattr(targets.tokenizer, "decoder", 0) is None:
        return None
    frames_TCHW = decode(codes_TN, grid=grid)
    return F.interpolate(frames_TCHW, size, mode="bilinear", antialias=True).cpu()


def motion_unit(targets: TargetMaker, clip_BTCHW: Tensor) -> tuple[float, str]:
    """The factor from motion targets to pixels (flow) or RGB in [0, 1], and a note about it."""
    kind = motion_row(targets.config.motion)
    unit = float(targets.patch_size) if kind.channels == 2 else 1.0  # flow is in patch sides
    match targets.config.motion_scale:
        case "clip" if targets.motion is not None:
            scale = clip_scale(targets.motion(clip_BTCHW), least=kind.still).item()
            return unit * scale, "Motion is predicted in units of the clip's own root mean square; both rows share it."
        case "patch":
            return 1.0, "Motion is normalised patch by patch, in both rows."
    return unit, ""
