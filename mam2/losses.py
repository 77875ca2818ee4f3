"""Equations 1, 2 and 3, in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.cross_entropy import linear_cross_entropy

Reduction = Literal["mean", "sum"]
"""Reduction over the channels of a token. Paper: summed in Eq. 1 and 3; here: by default the mean (decision 3)."""

Standardisation = Literal["plain", "batch", "layer_norm"]
"""A target as it is; each channel standardised over the batch; each token over its channels."""

BASELINE = "_of_none"
"""Ending of a baseline's name among `Losses.parts`: "motion_of_none" is the zero-motion baseline, the motion loss of
predicting no motion."""

Distance = Literal["squared", "l1", "smooth_l1", "cosine"]
"""Distance of the predicted and the true numbers of a patch: squared error, absolute error, the smooth one between, or
1 - the cosine of their angle."""


@dataclass(frozen=True)
class Losses:
    """Losses of a batch, as an objective returns them.

    Attributes:
        total: the scalar to minimise.
        parts: parts of the total by name, before weighting, detached; and metrics to judge them by.
        features_BTD: the encoder's features averaged over the patches of a frame, detached: for health metrics; None
            where they mean nothing.
    """

    total: Tensor
    parts: dict[str, Tensor]
    features_BTD: Tensor | None


def average(losses: Sequence[Losses]) -> Losses:
    """The mean of the losses of a batch under several masks; features are those of the first."""
    if len(losses) == 1:
        return losses[0]
    parts = {name: torch.stack([each.parts[name] for each in losses]).mean() for name in losses[0].parts}
    return Losses(torch.stack([each.total for each in losses]).mean(), parts, losses[0].features_BTD)


def squared_error(predicted: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """||predicted - target||² of a token (..., D), or its mean over channels, averaged over all tokens."""
    mean = F.mse_loss(predicted.float(), target.float())
    return mean * target.shape[-1] if reduction == "sum" else mean


def standardised(target_BTMD: Tensor, kind: Standardisation) -> Tensor:
    """The target of an alignment, standardised."""
    match kind:
        case "plain":
            return target_BTMD
        case "batch":
            std, mean = torch.std_mean(target_BTMD, dim=(0, 1, 2))
            return (target_BTMD - mean) / (std + 1e-3)
        case "layer_norm":
            return F.layer_norm(target_BTMD, target_BTMD.shape[-1:])


def alignment_loss(
    regressed_BTMD: Tensor,
    target_BTMD: Tensor,
    reduction: Reduction = "mean",
    standardisation: Standardisation = "plain",
) -> Tensor:
    """Eq. 1, against a target that is standardised first."""
    return squared_error(regressed_BTMD, standardised(target_BTMD.float(), standardisation), reduction)


def distance_of(predicted: Tensor, target: Tensor, distance: Distance) -> Tensor:
    """The distance of numbers (..., D), averaged over all tokens and, unless it is an angle, over D."""
    predicted = predicted.float()
    target = target.float()
    match distance:
        case "squared":
            return squared_error(predicted, target)
        case "l1":
            return F.l1_loss(predicted, target)
        case "smooth_l1":
            return F.smooth_l1_loss(predicted, target)
        case "cosine":
            return 1 - F.cosine_similarity(predicted, target, dim=-1).mean()


def appearance_loss(hidden_BTMD: Tensor, head: nn.Linear, target: Tensor, distance: Distance = "squared") -> Tensor:
    """Eq. 2 of the head's outputs: cross-entropy against codes int64 (B, T, M), or a distance from numbers
    (B, T, M, K)."""
    if target.is_floating_point():
        return distance_of(head(hidden_BTMD), target, distance)
    return linear_cross_entropy(hidden_BTMD.flatten(0, -2), head.weight, head.bias, target.flatten())


def motion_loss(predicted: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Eq. 3: squared error over masked patches of all frames but the last, which has no target.

    Args:
        predicted: (B, T, M, D), the motion decoder's output for all T frames; for clip order (B, M, 2).
        target: (B, T-1, M, D); for clip order int64 (B, M), for which the loss is a cross-entropy.
    """
    if target.is_floating_point():
        return squared_error(predicted[:, : target.shape[1]], target, reduction)
    return F.cross_entropy(predicted.flatten(0, 1).float(), target.flatten())


def zero_motion_loss(target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Zero-motion baseline: the motion loss of predicting no motion, or of guessing the order."""
    if target.is_floating_point():
        return squared_error(target.new_zeros(()).expand_as(target), target, reduction)
    return torch.full((), math.log(2), device=target.device)
