"""MAM2: masked appearance-motion modelling (Sec. 2, Fig. 1).

B clips, T frames, N patches a frame, V visible, M masked, D width, K codes, P patch side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mam2.config import Duration, Steps, UserError
from mam2.losses import Losses, alignment_loss, appearance_loss, motion_loss
from mam2.masks import Mask, take
from mam2.model.decoders import Decoder
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.layers import init_weights, layer_norm
from mam2.model.regressor import Regressor
from mam2.targets import Targets


@dataclass(frozen=True, kw_only=True)
class MAM2Config:
    """What is around the encoder in pre-training; the defaults are the paper's.

    Attributes:
        width: width of regressor and decoders; where it differs from the encoder's, one linear layer leads there.
        num_heads: attention heads of regressor and decoders.
        regressor_depth: cross-attention blocks of the regressor.
        appearance_depth: space-time blocks of the appearance decoder.
        motion_depth: space-time blocks of the motion decoder.
        alignment_weight: α in Eq. 4.
        alignment_ramp: α rises linearly from 0 over this duration. The paper's is constant, `0 steps`; a ramp keeps
            small models from collapsing (docs/log.md).
        alignment_target: "plain" aligns with the encoder's output, as the paper does; "batch" standardises each
            channel of that target over the batch first.
    """

    width: int = 768
    num_heads: int = 12
    regressor_depth: int = 4
    appearance_depth: int = 4
    motion_depth: int = 2
    alignment_weight: float = 2.0
    alignment_ramp: Duration = Steps(0)
    alignment_target: Literal["plain", "batch"] = "plain"

    def __post_init__(self) -> None:
        if min(self.width, self.num_heads) < 1 or self.width % self.num_heads:
            raise UserError(f"objective.width {self.width} must be a multiple of objective.num_heads {self.num_heads}.")

    def alpha(self, step: int, steps_per_epoch: int) -> float:
        """α of Eq. 4 at a step."""
        ramp = self.alignment_ramp.steps(steps_per_epoch)
        return self.alignment_weight * min(1.0, (step + 1) / ramp if ramp else 1.0)


@dataclass(frozen=True)
class Predictions:
    """All that MAM2 computes for a batch.

    Attributes:
        visible_BTVD: the encoder's output for visible patches.
        regressed_BTMD: the regressor's output for masked patches.
        target_BTMD: what it is aligned with, no gradient.
        logits_BTMK: the appearance decoder's logits.
        motion_BTMP: the motion decoder's patches, (B, T, M, C·P·P); the last frame's is not used.
    """

    visible_BTVD: Tensor
    regressed_BTMD: Tensor
    target_BTMD: Tensor
    logits_BTMK: Tensor
    motion_BTMP: Tensor


class MAM2(nn.Module):
    """Encoder, regressor and two disentangled decoders: `objective(clip, mask, targets, alpha) -> Losses`."""

    def __init__(self, config: MAM2Config, encoder: EncoderConfig, *, num_codes: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = VideoEncoder(encoder)
        width, heads = config.width, config.num_heads
        # Table 1c: "a projection layer after the encoder", shared by visible features, targets and positions.
        same = width == encoder.width
        self.project = nn.Identity() if same else nn.Sequential(nn.Linear(encoder.width, width), layer_norm(width))
        self.project_position = nn.Identity() if same else nn.Linear(encoder.width, width)
        self.regressor = Regressor(width=width, depth=config.regressor_depth, num_heads=heads)
        self.appearance = Decoder(width=width, depth=config.appearance_depth, num_heads=heads, num_outputs=num_codes)
        self.motion = Decoder(
            width=width, depth=config.motion_depth, num_heads=heads, num_outputs=3 * encoder.patch_size**2
        )
        init_weights(self)
        nn.init.trunc_normal_(self.regressor.mask_query, std=0.02)

    def forward(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets, alpha: float) -> Losses:
        """Eq. 4 for a batch of clips, uint8 or floats in [0, 1]; `alpha` weighs the alignment."""
        predicted = self.predict(clip_BTCHW, mask)
        parts = {
            "appearance": appearance_loss(
                predicted.logits_BTMK, take(targets.codes_BTN[..., None], mask.masked_BM)[..., 0]
            ),
            "motion": motion_loss(predicted.motion_BTMP, take(targets.motion_BTND, mask.masked_BM)),
            "alignment": alignment_loss(predicted.regressed_BTMD, self.standardise(predicted.target_BTMD)),
        }
        total = parts["appearance"] + parts["motion"] + alpha * parts["alignment"]  # Eq. 4
        features_BTD = predicted.visible_BTVD.detach().float().mean(dim=2)
        return Losses(total, {name: part.detach() for name, part in parts.items()}, features_BTD)

    def predict(self, clip_BTCHW: Tensor, mask: Mask) -> Predictions:
        """Fig. 1, left to right."""
        tokens_BTND = self.encoder.embed(clip_BTCHW)
        visible_BTVD = self.encoder.encode(take(tokens_BTND, mask.visible_BV))
        context_BTVD = self.project(visible_BTVD)
        with torch.no_grad():  # the groundtruth masked patches through the same encoder (Sec. 2.1)
            target_BTMD = self.project(self.encoder.encode(take(tokens_BTND, mask.masked_BM)))

        position_TND = self.project_position(self.encoder.position(clip_BTCHW))
        position_BTND = position_TND.expand(len(clip_BTCHW), -1, -1, -1)
        masked_position_BTMD = take(position_BTND, mask.masked_BM)

        regressed_BSD = self.regressor(
            context_BTVD.flatten(1, 2),
            context_position_BSD=take(position_BTND, mask.visible_BV).flatten(1, 2),
            query_position_BSD=masked_position_BTMD.flatten(1, 2),
        )
        regressed_BTMD = regressed_BSD.unflatten(1, masked_position_BTMD.shape[1:3])
        return Predictions(
            visible_BTVD,
            regressed_BTMD,
            target_BTMD,
            logits_BTMK=self.appearance(regressed_BTMD, position_BTMD=masked_position_BTMD),
            motion_BTMP=self.motion(regressed_BTMD, position_BTMD=masked_position_BTMD),
        )

    def standardise(self, target_BTMD: Tensor) -> Tensor:
        """The alignment target as `alignment_target` asks for it."""
        if self.config.alignment_target == "plain":
            return target_BTMD
        std, mean = torch.std_mean(target_BTMD.float(), dim=(0, 1, 2))
        return (target_BTMD - mean) / (std + 1e-3)
