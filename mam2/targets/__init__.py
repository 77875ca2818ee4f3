"""What is predicted; nothing here has a gradient (Sec. 2.2).

A TargetMaker is not part of the trained model: it is never wrapped for distributed training nor saved with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mam2.config import UserError
from mam2.targets.motion import rgb_difference
from mam2.targets.pixels import to_float
from mam2.targets.vq import VQ, RandomProjection, load_vq
from mam2.targets.vqgan import VQGAN, load_vqgan


@dataclass(frozen=True)
class Targets:
    """Targets of a batch.

    Attributes:
        codes_BTN: int64 (B, T, N), the tokenizer's code of every patch.
        motion_BTND: (B, T-1, N, C·P·P), the motion target of every patch of all frames but the last.
    """

    codes_BTN: Tensor
    motion_BTND: Tensor


@dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """The defaults are the paper's.

    Attributes:
        appearance: "vqgan", the ImageNet VQGAN f16 with 16384 codes (needs `file`); "vq", a small VQ model of
            one's own frames, from `file` (see `mam2 tokenizer train`) or, without one, trained at the start of the
            run; "random_projection", which needs nothing.
        file: the tokenizer's weights (.safetensors) where it has any.
        num_codes: K of the random projection or of the VQ model to train; files state their own.
        vq_steps: steps of 32 frames for which that VQ model is trained.
        motion_scale: "raw", RGB differences as they are; "clip", divided by each clip's standard deviation.
    """

    appearance: Literal["vqgan", "vq", "random_projection"] = "vqgan"
    file: str = ""
    num_codes: int = 8192
    vq_steps: int = 400
    motion_scale: Literal["raw", "clip"] = "raw"


def load_tokenizer(config: TargetsConfig, *, patch_size: int) -> RandomProjection | VQ | VQGAN:
    """The frozen appearance tokenizer: `tokenizer(frames_FCHW in [0, 1]) -> codes (F, N)`, with `num_codes`.

    Raises:
        UserError: a missing or wrong file, or one made for another patch size.
    """
    if config.appearance == "random_projection":
        return RandomProjection(patch_size=patch_size, num_codes=config.num_codes)
    tokenizer: VQ | VQGAN = load_vqgan(config.file) if config.appearance == "vqgan" else load_vq(config.file)
    if tokenizer.patch_size != patch_size:
        raise UserError(
            f"The tokenizer {config.file} has patches of {tokenizer.patch_size} pixels, the encoder of {patch_size}. "
            f"Use a tokenizer of the encoder's patch size, or set --encoder.patch-size {tokenizer.patch_size}."
        )
    return tokenizer


class TargetMaker:
    """Clips to targets: `maker(clip_BTCHW) -> Targets`."""

    def __init__(self, config: TargetsConfig, *, patch_size: int, device: torch.device) -> None:
        self.config = config
        self.patch_size = patch_size
        tokenizer = load_tokenizer(config, patch_size=patch_size)
        self.num_codes = tokenizer.num_codes
        self.tokenizer = tokenizer.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, clip_BTCHW: Tensor) -> Targets:
        """Targets of clips that are uint8 or floats in [0, 1], computed in float32."""
        clip = to_float(clip_BTCHW)
        codes_FN = self.tokenizer(clip.flatten(0, 1))
        motion = rgb_difference(clip, self.patch_size, unit_scale=self.config.motion_scale == "clip")
        return Targets(codes_FN.unflatten(0, clip.shape[:2]), motion)
