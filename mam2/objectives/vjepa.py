"""V-JEPA: predicts the features that the encoder's moving average has of masked patches (docs/rivals.md).

B clips, T frames or tubelets, N patches per frame, V visible, M masked, D the encoder's width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from mam2.config import Duration, Epochs, check
from mam2.losses import Losses, average
from mam2.masks import Mask, take
from mam2.model.blocks import init_weights
from mam2.model.decoders import MaskDecoder
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import copy_encoder
from mam2.objectives.contract import ObjectiveConfig, Proportion, Reconstruction, check_heads
from mam2.targets.maker import Targets
from mam2.targets.table import TargetSizes


@dataclass(frozen=True, kw_only=True)
class VJEPAConfig(ObjectiveConfig):
    """Predictor and moving average; the defaults are V-JEPA's.

    Attributes:
        width: width of the predictor; linear layers map the encoder's features to it and back.
        depth: blocks of the predictor.
        num_heads: attention heads of the predictor.
        momentum: share that the moving average of the encoder keeps of itself in the first step.
        final_momentum: that share at the end of its linear rise.
        momentum_rise: duration of the rise (V-JEPA: a quarter more than the run).
    """

    width: Annotated[int, Ge(1)] = 384
    depth: Annotated[int, Ge(1)] = 12
    num_heads: Annotated[int, Ge(1)] = 12
    momentum: Annotated[float, Ge(0), Le(1)] = 0.998
    final_momentum: Annotated[float, Ge(0), Le(1)] = 1.0
    momentum_rise: Duration = Epochs(1000)

    def __post_init__(self) -> None:
        check(self, "objective.")
        check_heads(self.width, self.num_heads)

    @property
    def needs_appearance(self) -> bool:
        """False: the target is the encoder's own features."""
        return False

    def build(self, encoder: EncoderConfig, sizes: TargetSizes, *, steps_per_epoch: int = 1) -> VJEPA:
        return VJEPA(self, encoder, steps_per_epoch=steps_per_epoch)

    def scaled(self, to: Proportion, duration: Duration) -> VJEPAConfig:
        """Width and depth in proportion, and a momentum that rises over a quarter more than the run."""
        width, num_heads = to.width(self.width, self.num_heads)
        rise = duration.times(1.25)
        return replace(self, width=width, num_heads=num_heads, depth=to.depth(self.depth), momentum_rise=rise)

    def stretched(self, share: float) -> VJEPAConfig:
        """The rise of the momentum in proportion to the run."""
        return replace(self, momentum_rise=self.momentum_rise.times(share))

    def without_parts(self) -> dict[str, VJEPAConfig]:
        """The method with one block of the predictor."""
        return {"predictor, all but a block": replace(self, depth=1)} if self.depth > 1 else {}

    def momentum_at(self, step: int, steps_per_epoch: int) -> float:
        """Share that the moving average keeps of itself in a step."""
        progress = min(1.0, step / max(1, self.momentum_rise.steps(steps_per_epoch)))
        return self.momentum + (self.final_momentum - self.momentum) * progress


class VJEPA(nn.Module):
    """Encoder, predictor, and the encoder's moving average: `objective(clip, mask, targets, step) -> Losses`."""

    def __init__(self, config: VJEPAConfig, encoder: EncoderConfig, *, steps_per_epoch: int = 1) -> None:
        super().__init__()
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.encoder = VideoEncoder(encoder)
        # V-JEPA has a mask token for each of a clip's two masks; here: one, as positions tell the masks apart.
        self.predictor = MaskDecoder(
            encoder,
            width=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            bias=True,
            num_outputs=encoder.width,
        )
        init_weights(self)
        self.teacher = VideoEncoder(replace(encoder, drop_path=0.0)).requires_grad_(False)
        self.restart()
        self.step = 0

    def restart(self) -> None:
        """Makes the moving average a copy of the encoder."""
        self.teacher.load_state_dict(self.encoder.state_dict())

    def forward(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets, step: int) -> Losses:
        """Mean absolute error of the predicted features, averaged over the masks; `step` counts from 0 over the run."""
        self.step = step
        features_BTND = self.target(clip_BTCHW)
        return average([self.loss(clip_BTCHW, each, features_BTND) for each in mask.all()])

    @torch.no_grad()
    def target(self, clip_BTCHW: Tensor) -> Tensor:
        """The moving average's features (B, T, N, D) of the whole clip, each token standardised."""
        features_BTND = self.teacher(clip_BTCHW).float()
        return F.layer_norm(features_BTND, features_BTND.shape[-1:])

    def loss(self, clip_BTCHW: Tensor, mask: Mask, target_BTND: Tensor) -> Losses:
        """The loss under one mask."""
        visible_BTVD = self.encoder.features_of(clip_BTCHW, mask.visible_BTV)
        hidden_BTMD = self.predictor(visible_BTVD, mask, self.encoder.layout(clip_BTCHW))
        loss = F.l1_loss(self.predictor.head(hidden_BTMD).float(), take(target_BTND, mask.masked_BTM))
        return Losses(loss, {"features": loss.detach()}, visible_BTVD.detach().float().mean(dim=2))

    def reconstruct(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets) -> Reconstruction:
        """No predictions: features can't be drawn."""
        return Reconstruction(None, None)

    def start_from(self, encoder: VideoEncoder, name: str) -> None:
        """Copies the weights of an encoder, which messages call `name`; the moving average starts from them too."""
        copy_encoder(encoder, self.encoder, name)
        self.restart()

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the average towards the encoder."""
        keep = self.config.momentum_at(self.step, self.steps_per_epoch)
        for slow, fast in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)
