"""A frozen encoder's features as appearance targets (SALT, SIGMA, SMILE).

B clips, T tubelets of U frames, C channels, H W pixels, N patches per frame, D the teacher's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.config import UserError
from mam2.device import autocast_dtype
from mam2.patches import rescaled


@dataclass(frozen=True)
class Teacher:
    """A frozen encoder: clips to features of the learner's patches.

    Attributes:
        encoder: a module, clips (B, T, 3, H, W) in [0, 1] to features (B, T / tubelet, N, D); on its device, in eval
            mode, without gradients.
        width: D.
        patch_size, tubelet: side of its patches, pixels, and the frames that they span.
    """

    encoder: nn.Module
    width: int
    patch_size: int
    tubelet: int

    def __call__(self, clip_BTUCHW: Tensor, patch_size: int) -> Tensor:
        """Features (B, T, N, D) of the learner's patches, each token to mean 0 and variance 1.

        The teacher sees the same picture at the size that gives it a patch for each of the learner's; of a tubelet, as
        many first frames as its own spans; where its own spans more, all frames, and each feature counts for several.
        UserError if neither tubelet fits into the other.
        """
        tubelet = clip_BTUCHW.shape[2]
        check_tubelets(self.tubelet, tubelet)
        frames_BTCHW = clip_BTUCHW[:, :, : self.tubelet].flatten(1, 2)
        frames_FCHW = rescaled(frames_BTCHW.flatten(0, 1), self.patch_size / patch_size)
        frames_BTCHW = frames_FCHW.unflatten(0, frames_BTCHW.shape[:2])
        device = frames_BTCHW.device
        dtype = autocast_dtype("auto", device, width=self.width)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            features_BTND = self.encoder(frames_BTCHW).float()
        features_BTND = features_BTND.repeat_interleave(max(1, self.tubelet // tubelet), dim=1)
        return F.layer_norm(features_BTND, features_BTND.shape[-1:])


def check_tubelets(teacher: int, learner: int) -> None:
    """UserError unless one tubelet fits into the other a whole number of times."""
    if teacher % learner and learner % teacher:
        raise UserError(
            f"The teacher's tubelets have {teacher} frames, the encoder's {learner}; one must be a multiple of the "
            "other. Set --encoder.tubelet."
        )
