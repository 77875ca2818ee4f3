"""Contract of a pre-training method: its configuration, and the module that the loop trains.

Other rooms know a method by these Protocols only.

B clips, T frames, M masked patches, K codes, D numbers per patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor

from mam2.config import Duration, UserError
from mam2.losses import Losses
from mam2.masks import Mask, MaskConfig
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.targets.maker import Targets
from mam2.targets.table import TargetSizes


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """Sizes in proportion to an encoder: what is as large as `base` becomes as large as `to`.

    Attributes:
        base: the encoder that sizes are printed for, ViT-B.
        to: the encoder of another scale.
    """

    base: EncoderConfig
    to: EncoderConfig

    def width(self, width: int, num_heads: int) -> tuple[int, int]:
        """Width and heads of a transformer; the width is a multiple of the heads and of 4."""
        heads = max(1, round(num_heads * self.to.num_heads / self.base.num_heads))
        step = math.lcm(4, heads)
        return step * max(1, round(width * self.to.width / self.base.width / step)), heads

    def depth(self, depth: int) -> int:
        """Number of blocks, rounded up."""
        return math.ceil(depth * self.to.depth / self.base.depth)


@dataclass(frozen=True)
class Reconstruction:
    """Predictions for masked patches; None for those that the method does not make.

    Attributes:
        appearance_BTMK: logits of codes, or pixels.
        motion: (B, T, M, D), the last frame without a target; for clip order, logits (B, M, 2).
    """

    appearance_BTMK: Tensor | None
    motion: Tensor | None


def check_heads(width: int, num_heads: int) -> None:
    """Raises UserError unless an objective's width is a multiple of its heads, and of 4."""
    if width % num_heads or width % 4:
        raise UserError(f"objective.width {width} must be a multiple of objective.num_heads {num_heads}, and of 4.")


class Objective(Protocol):
    """An `nn.Module` with an encoder and a loss: `objective(clip, mask, targets, step) -> Losses`."""

    @property
    def encoder(self) -> VideoEncoder:
        """The encoder that is kept after pre-training."""

    def __call__(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets, step: int) -> Losses:
        """The loss of a batch of clips, uint8 or floats in [0, 1]; `step` counts from 0 over the run."""

    def start_from(self, encoder: VideoEncoder, name: str) -> None:
        """Copies the weights of an encoder, which messages call `name`; UserError if it is of another architecture."""

    def after_step(self) -> None:
        """Called after each step of the optimiser."""

    def reconstruct(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets) -> Reconstruction:
        """Predictions for masked patches, for pictures."""

    # The part of nn.Module that is used.
    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...

    def to(self, device: Any) -> Self: ...

    def state_dict(self) -> Mapping[str, Any]: ...


class ObjectiveConfig(Protocol):
    """The configuration of a method: a frozen dataclass. One that inherits from this class inherits its defaults."""

    @property
    def needs_appearance(self) -> bool:
        """True if an appearance target is predicted."""
        return True

    @property
    def needs_motion(self) -> bool:
        """True if a motion target is predicted."""
        return False

    def check_fits(self, encoder: EncoderConfig, sizes: TargetSizes, *, same_mask_in_all_frames: bool) -> None:
        """Raises UserError unless the method works with this encoder, these targets and masks; by default it does."""
        return None

    def idle_options(self, mask: MaskConfig) -> list[str]:
        """Options that are set but without effect; by default those of alignment."""
        return ["mask.aligned"] if mask.aligned < 1 else []

    def build(self, encoder: EncoderConfig, sizes: TargetSizes, *, steps_per_epoch: int) -> Objective:
        """The method with random weights; its decoders' outputs have the targets' sizes.

        Args:
            steps_per_epoch: number of steps in an epoch, for settings that change over epochs.
        """
        ...

    def scaled(self, to: Proportion, duration: Duration) -> Self:
        """The method for an encoder of another scale and a run of this duration; by default unchanged."""
        return self

    def stretched(self, share: float) -> Self:
        """The method for a run that is `share` times as long; by default unchanged."""
        return self

    def without_parts(self) -> dict[str, Self]:
        """The method without each part, by name of the part, to measure what the part costs; by default no parts."""
        return {}
