"""Equations 1, 2 and 3 as plain functions, in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """What an objective returns.

    Attributes:
        total: the scalar to minimise.
        parts: its parts by name, before weighting, detached.
        features_BTD: the encoder's features averaged over the patches of a frame, detached: for health figures; None
            where these say nothing.
    """

    total: Tensor
    parts: dict[str, Tensor]
    features_BTD: Tensor | None


def alignment_loss(regressed_BTMD: Tensor, target_BTMD: Tensor) -> Tensor:
    """Eq. 1. Paper: summed over channels; here: their mean, as CAE has it with the same weight of 2."""
    return F.mse_loss(regressed_BTMD.float(), target_BTMD.float())


def appearance_loss(logits_BTMK: Tensor, codes_BTM: Tensor) -> Tensor:
    """Eq. 2: cross-entropy against the tokenizer's codes, averaged over masked patches."""
    return F.cross_entropy(logits_BTMK.flatten(0, 2).float(), codes_BTM.flatten())


def motion_loss(predicted_BTMD: Tensor, target_BTMD: Tensor) -> Tensor:
    """Eq. 3: squared error over masked patches of all frames that have a target, i.e. all but the last.

    Paper: summed over channels; here: their mean (docs/decisions.md, 3).

    Args:
        predicted_BTMD: (B, T, M, C·P·P), the motion decoder's output for all T frames.
        target_BTMD: (B, T-1, M, C·P·P).
    """
    return F.mse_loss(predicted_BTMD[:, : target_BTMD.shape[1]].float(), target_BTMD.float())
