"""Clips to targets, without gradient (Sec. 2.2).

A TargetMaker is not part of the trained model: it is never wrapped for distributed training nor saved with it.

B clips, T frames, N patches per frame, M masked ones, D numbers of a patch, K codes, P patch side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mam2.device import send
from mam2.masks import Mask, take
from mam2.patches import normalise_patches, patchify, rescaled, to_float
from mam2.targets.cache import TokenCache
from mam2.targets.motion import clip_order, clip_scale, rgb_difference
from mam2.targets.table import TargetsConfig, appearance_row, motion_row, target_sizes
from mam2.targets.teacher import Teacher


@dataclass(frozen=True)
class Targets:
    """Targets of a batch; None where none is asked for.

    Attributes:
        appearance: code of every patch, int64 (B, T, N); or numbers (B, T, N, K), such as pixels.
        motion: motion of every patch of all frames but the last, (B, T-1, N, D); or clip order, int64 (B, N): 1 for a
            tube that is shown with its halves swapped.
    """

    appearance: Tensor | None
    motion: Tensor | None

    @property
    def clip_order(self) -> bool:
        """True if the motion target is clip order."""
        return self.motion is not None and not self.motion.is_floating_point()

    @property
    def swapped_BM(self) -> Tensor | None:
        """Masked tubes whose halves are swapped, taken from targets at a mask; None unless the target is clip order."""
        return self.motion if self.clip_order else None

    def of(self, kind: str) -> Tensor:
        """The "appearance" or the "motion" target, which must be there."""
        target = {"appearance": self.appearance, "motion": self.motion}[kind]
        assert target is not None, f"no {kind} target was made"
        return target

    def at(self, mask: Mask) -> Targets:
        """The targets of masked patches only: M in the place of N."""
        appearance = self.appearance
        motion = self.motion
        if appearance is not None:
            codes = appearance.ndim == 3
            appearance = take(appearance[..., None] if codes else appearance, mask.masked_BTM)
            appearance = appearance[..., 0] if codes else appearance
        if motion is not None:
            motion = (
                motion.gather(1, mask.masked_BTM[:, 0])
                if self.clip_order
                else take(motion, mask.masked_BTM[:, : motion.shape[1]])
            )
        return Targets(appearance, motion)


class TargetMaker:
    """Clips to targets: `maker(clip_BTCHW, sample_B=..., seed=...) -> Targets`.

    Args:
        config: the targets to predict.
        patch_size: the encoder's P, pixels.
        device: device that computes the targets.
        tubelet: frames of a token; targets are those of each tubelet's first frame, unless they say otherwise.
        appearance, motion: which targets to make.
        guide: also loads the network of `motion_of`, for motion-guided masks.
        teacher: the frozen encoder, where the appearance target is its features.

    Attributes:
        tokenizer: frames to codes; None for targets without codes.
        cache: codes that are known already; None without a cache.

    Raises:
        UserError: a missing or wrong file, or one made for another patch size.
    """

    def __init__(
        self,
        config: TargetsConfig,
        *,
        patch_size: int,
        device: torch.device,
        tubelet: int = 1,
        appearance: bool = True,
        motion: bool = True,
        guide: bool = False,
        teacher: Teacher | None = None,
    ) -> None:
        self.config = config
        self.patch_size = patch_size
        self.tubelet = tubelet
        self.sizes = target_sizes(config, patch_size=patch_size, tubelet=tubelet)
        self.has_appearance = appearance
        self.has_motion = motion
        load_codes = appearance_row(config.appearance).load
        load_motion = motion_row(config.motion).load
        self.tokenizer = load_codes(config, patch_size, device) if appearance and load_codes else None
        if self.tokenizer:
            self.sizes = replace(self.sizes, appearance=self.tokenizer.num_codes)  # a file states its own
        self.teacher = teacher
        if teacher:
            self.sizes = replace(self.sizes, appearance=teacher.width)
        self.motion = load_motion(config, patch_size, device) if (motion or guide) and load_motion else None
        self.cache: TokenCache | None = None

    @torch.no_grad()
    def __call__(self, clip_BTCHW: Tensor, *, sample_B: Tensor, seed: int, fixed_B: Tensor | None = None) -> Targets:
        """Targets of clips, uint8 or floats in [0, 1], computed in float32 unless `config` says otherwise.

        Args:
            clip_BTCHW: the clips, all frames of every tubelet.
            sample_B: int64 (B,), each clip's number in the whole run; the clip order follows from it.
            seed: the run's seed.
            fixed_B: int64 (B,), the clip's number among the fixed ones, for the cache.
        """
        with torch.autocast(clip_BTCHW.device.type, enabled=False):  # argmin over codes is not stable in bf16
            whole = to_float(clip_BTCHW)
            clip = whole[:, :: self.tubelet]
            appearance = None
            if self.has_appearance and self.tokenizer is None:
                appearance = self._values(whole)
            elif self.has_appearance and self.cache and fixed_B is not None:
                appearance = self._cached(clip, fixed_B, self.cache)
            elif self.has_appearance:
                appearance = self._codes(clip)
            motion = None
            if self.has_motion and self.motion is not None:
                motion = self._motion_patches(self.motion(clip))
            elif self.has_motion:
                num_patches = clip.shape[3] * clip.shape[4] // self.patch_size**2
                motion = send(clip_order(num_patches, sample_B=sample_B, seed=seed), clip.device)
            return Targets(appearance, motion)

    @torch.no_grad()
    def motion_of(self, clip_BTCHW: Tensor) -> Tensor:
        """Mean length of the motion in each patch position over the clip, (B, N): the motion target's field, or the RGB
        difference where that is clip order."""
        with torch.autocast(clip_BTCHW.device.type, enabled=False):
            clip = to_float(clip_BTCHW)[:, :: self.tubelet]
            field_BTCHW = (self.motion or rgb_difference)(clip)
            length_BTHW = field_BTCHW.norm(dim=2)
            return F.avg_pool2d(length_BTHW, self.patch_size).mean(dim=1).flatten(1)

    def _cached(self, clip_BTCHW: Tensor, fixed_B: Tensor, cache: TokenCache) -> Tensor:
        codes_BTN, found_B = cache.read(fixed_B)
        codes_BTN = send(codes_BTN, clip_BTCHW.device)
        missing = (~found_B).nonzero()[:, 0]
        if len(missing):
            there = send(missing, clip_BTCHW.device)
            codes_BTN[there] = made = self._codes(clip_BTCHW[there])
            cache.write(fixed_B[missing], made)
        return codes_BTN

    def _values(self, clip_BTCHW: Tensor) -> Tensor:
        row = appearance_row(self.config.appearance)
        values = row.values[0] if row.values else self.teacher
        assert values is not None, "a target without codes has numbers"
        return values(clip_BTCHW.unflatten(1, (-1, self.tubelet)), self.patch_size)

    def _codes(self, clip_BTCHW: Tensor) -> Tensor:
        assert self.tokenizer is not None
        # the same picture, at the size that gives a code per patch
        frames_FCHW = rescaled(clip_BTCHW.flatten(0, 1), self.tokenizer.patch_size / self.patch_size)
        with torch.autocast(frames_FCHW.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.tokenizer(frames_FCHW).unflatten(0, clip_BTCHW.shape[:2])

    def _motion_patches(self, motion_BTCHW: Tensor) -> Tensor:
        if self.config.motion_scale == "clip":
            motion_BTCHW = motion_BTCHW / clip_scale(motion_BTCHW, least=motion_row(self.config.motion).still)
        patches_BTND = patchify(motion_BTCHW, self.patch_size)
        return normalise_patches(patches_BTND) if self.config.motion_scale == "patch" else patches_BTND
