"""Inflation of an encoder of images to one of video: the sizes of its clips, and the patch kernel of a tubelet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from mam2.config import check
from mam2.model.attention import AttentionKind


@dataclass(frozen=True, kw_only=True)
class Inflation:
    """Inflation of an encoder of images to one of video; for one of video, the new sizes of its clips.

    Attributes:
        frames: frames per clip; 0 is 16 for an encoder of images, its own for one of video. Positions are interpolated.
        size: height and width of a clip, pixels; 0 is the encoder's own.
        tubelet: frames that a patch spans, for an encoder of images.
        kernel: patch kernel of a tubelet: the "mean" over its frames, or its "center" frame alone.
        attention: "factorised", which begins as the image encoder frame by frame; or "joint".
    """

    frames: Annotated[int, Ge(0)] = 0
    size: Annotated[int, Ge(0)] = 0
    tubelet: Annotated[int, Ge(1)] = 1
    kernel: Literal["mean", "center"] = "mean"
    attention: AttentionKind = "factorised"

    def __post_init__(self) -> None:
        check(self, "")


def inflated(kernel: Tensor, inflation: Inflation) -> Tensor:
    """The patch kernel over the frames of a tubelet, as channels of a picture: (D, T·3, P, P)."""
    if kernel.ndim == 5:
        return kernel.transpose(1, 2).flatten(1, 2)
    tubelet = inflation.tubelet
    shares = torch.full((tubelet,), 1 / tubelet)
    if inflation.kernel == "center":
        shares = torch.zeros(tubelet)
        shares[tubelet // 2] = 1.0
    return torch.cat([share * kernel for share in shares], dim=1)
