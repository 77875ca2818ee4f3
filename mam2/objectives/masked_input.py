"""MaskFeat, BEiT and BEVT: mask tokens in the encoder's input, a linear head on its output (docs/rivals.md).

B clips, T frames or tubelets, M masked patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mam2.losses import Losses, average
from mam2.masks import Mask, put, take
from mam2.model.blocks import LearnedToken, init_weights
from mam2.model.decoders import AppearanceHead
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import copy_encoder
from mam2.objectives.contract import ObjectiveConfig, Reconstruction
from mam2.targets.maker import Targets
from mam2.targets.table import TargetSizes


@dataclass(frozen=True, kw_only=True)
class MaskedInputConfig(ObjectiveConfig):
    """Masked prediction by the encoder itself, without options. HOG targets make it MaskFeat, codes BEiT and BEVT."""

    def build(self, encoder: EncoderConfig, sizes: TargetSizes, *, steps_per_epoch: int = 1) -> MaskedInput:
        return MaskedInput(encoder, sizes)


class MaskedInput(nn.Module):
    """An encoder, a mask token and a linear head: `objective(clip, mask, targets, step) -> Losses`."""

    def __init__(self, encoder: EncoderConfig, sizes: TargetSizes) -> None:
        super().__init__()
        self.encoder = VideoEncoder(encoder)
        self.mask_token = LearnedToken(encoder.width)
        self.head = AppearanceHead(encoder.width, sizes.appearance, sizes.distance)
        init_weights(self)

    def forward(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets, step: int) -> Losses:
        """The loss of a batch, averaged over its masks; `step` is unused."""
        return average([self.loss(clip_BTCHW, each, targets) for each in mask.all()])

    def loss(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets) -> Losses:
        """The squared error of masked patches' numbers, or the cross-entropy of their codes."""
        features_BTND = self.predict(clip_BTCHW, mask)
        hidden_BTMD = take(features_BTND, mask.masked_BTM)
        loss = self.head.loss(hidden_BTMD, targets.at(mask).of("appearance"))
        return Losses(loss, {"appearance": loss.detach()}, features_BTND.detach().float().mean(dim=2))

    def predict(self, clip_BTCHW: Tensor, mask: Mask) -> Tensor:
        """The encoder's output (B, T, N, D) for a clip whose masked patches are mask tokens."""
        tokens = self.encoder.embed(clip_BTCHW)
        position_TND = self.encoder.position(clip_BTCHW)
        visible = torch.ones_like(mask.visible_BTV, dtype=torch.bool)
        visible_BTN1 = put(visible[..., None], mask.visible_BTV, tokens.x_BTVD.shape[2])
        masked_TND = self.mask_token.value_D + position_TND
        return self.encoder.encode(replace(tokens, x_BTVD=torch.where(visible_BTN1, tokens.x_BTVD, masked_TND)))

    def reconstruct(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets) -> Reconstruction:
        """Predictions for masked patches, for pictures."""
        return Reconstruction(self.head(take(self.predict(clip_BTCHW, mask), mask.masked_BTM)), None)

    def start_from(self, encoder: VideoEncoder, name: str) -> None:
        """Copies the weights of an encoder, which messages call `name`."""
        copy_encoder(encoder, self.encoder, name)

    def after_step(self) -> None:
        """Does nothing: only the optimiser moves weights."""
