"""VideoMAE and ST-MAE: masked autoencoders of video, rivals of MAM² (docs/rivals.md).

The encoder sees the visible patches; a small decoder gets its output and mask tokens, and predicts the masked patches.
The two differ in masks, positions, targets and the decoder's size, which their recipes set.

B clips, T frames or tubelets, N patches per frame, V visible, M masked, D the decoder's width, K numbers of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from mam2.config import Duration, check
from mam2.losses import Losses, average
from mam2.masks import Mask
from mam2.model.blocks import init_weights
from mam2.model.decoders import MaskDecoder
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import copy_encoder
from mam2.objectives.contract import ObjectiveConfig, Proportion, Reconstruction, check_heads
from mam2.targets.maker import Targets
from mam2.targets.table import TargetSizes


@dataclass(frozen=True, kw_only=True)
class MAEConfig(ObjectiveConfig):
    """The decoder of a masked autoencoder; the defaults are VideoMAE's for ViT-B.

    Attributes:
        width: width of the decoder; a linear layer maps the encoder's features to it.
        depth: blocks of the decoder.
        num_heads: attention heads of the decoder.
    """

    width: Annotated[int, Ge(1)] = 384
    depth: Annotated[int, Ge(0)] = 4
    num_heads: Annotated[int, Ge(1)] = 6

    def __post_init__(self) -> None:
        check(self, "objective.")
        check_heads(self.width, self.num_heads)

    def build(self, encoder: EncoderConfig, sizes: TargetSizes, *, steps_per_epoch: int = 1) -> MAE:
        return MAE(self, encoder, sizes)

    def scaled(self, to: Proportion, duration: Duration) -> MAEConfig:
        """Width and depth in proportion."""
        width, num_heads = to.width(self.width, self.num_heads)
        return replace(self, width=width, num_heads=num_heads, depth=to.depth(self.depth))

    def without_parts(self) -> dict[str, MAEConfig]:
        """The method without decoder blocks."""
        return {"decoder": replace(self, depth=0)} if self.depth else {}


class MAE(nn.Module):
    """Encoder and decoder: `objective(clip, mask, targets, step) -> Losses`."""

    def __init__(self, config: MAEConfig, encoder: EncoderConfig, sizes: TargetSizes) -> None:
        super().__init__()
        self.config = config
        self.encoder = VideoEncoder(encoder)
        # Without a bias, as in VideoMAE. ST-MAE's changes nothing: mask token and positions can take it up.
        self.decoder = MaskDecoder(
            encoder,
            width=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            bias=False,
            num_outputs=sizes.appearance,
            distance=sizes.distance,
        )
        init_weights(self)

    def forward(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets, step: int) -> Losses:
        """The loss of a batch, averaged over its masks; `step` is unused."""
        return average([self.loss(clip_BTCHW, each, targets) for each in mask.all()])

    def loss(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets) -> Losses:
        """The squared error of masked patches' numbers, or the cross-entropy of their codes."""
        visible_BTVD, hidden_BTMD = self.predict(clip_BTCHW, mask)
        loss = self.decoder.head.loss(hidden_BTMD, targets.at(mask).of("appearance"))
        return Losses(loss, {"appearance": loss.detach()}, visible_BTVD.detach().float().mean(dim=2))

    def predict(self, clip_BTCHW: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """The encoder's output for visible patches, and the decoder's for masked ones."""
        visible_BTVD = self.encoder.features_of(clip_BTCHW, mask.visible_BTV)
        return visible_BTVD, self.decoder(visible_BTVD, mask, self.encoder.layout(clip_BTCHW))

    def reconstruct(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets) -> Reconstruction:
        """Predictions for masked patches, for pictures."""
        return Reconstruction(self.decoder.head(self.predict(clip_BTCHW, mask)[1]), None)

    def start_from(self, encoder: VideoEncoder, name: str) -> None:
        """Copies the weights of an encoder, which messages call `name`; the decoder keeps its own."""
        copy_encoder(encoder, self.encoder, name)

    def after_step(self) -> None:
        """Does nothing: only the optimiser moves weights."""
