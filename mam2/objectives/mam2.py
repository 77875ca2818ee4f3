"""MAM²: masked appearance-motion modelling (Sec. 2, Fig. 1); Table 2's rows are parts with one interface.

B clips, T frames, N patches per frame, V visible, M masked, A aligned, D width, K codes, P patch side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from mam2.config import Duration, Steps, UserError, check
from mam2.losses import BASELINE, Losses, Reduction, Standardisation, alignment_loss, average, zero_motion_loss
from mam2.masks import Mask, MaskConfig
from mam2.model.blocks import Start, init_weights, layer_norm
from mam2.model.clip_order import OrderDecoder
from mam2.model.decoders import AppearanceHead, Decoder, MotionHead, TargetHead
from mam2.model.encoder import EncoderConfig, Tokens, VideoEncoder, own_positions
from mam2.model.regressor import Context, Latent, make_regressor
from mam2.model.weights import copy_encoder
from mam2.objectives.contract import Proportion, Reconstruction
from mam2.targets.maker import Targets
from mam2.targets.table import TargetSizes


class MAM2(nn.Module):
    """Encoder, regressor and two disentangled decoders: `objective(clip, mask, targets, step) -> Losses`.

    Only the parts that the configuration uses are built; `sizes` are the targets', `TargetMaker.sizes`.
    """

    def __init__(
        self, config: MAM2Config, encoder: EncoderConfig, sizes: TargetSizes, *, steps_per_epoch: int = 1
    ) -> None:
        super().__init__()
        config.check_fits(encoder, sizes, same_mask_in_all_frames=True)
        self.config = config = config.sized_for(encoder)
        self.steps_per_epoch = steps_per_epoch
        self.encoder = VideoEncoder(encoder)
        # Table 1c: "a projection layer after the encoder", shared by visible features, targets and positions.
        self.project: nn.Module = nn.Identity()
        self.project_position: nn.Module = nn.Identity()
        if config.width != encoder.width:
            self.project = nn.Sequential(nn.Linear(encoder.width, config.width), layer_norm(config.width))
            self.project_position = nn.Linear(encoder.width, config.width)
        self.own_positions = own_positions(encoder)
        self.regressor = make_regressor(
            width=config.width, depth=config.regressor_depth, num_heads=config.num_heads, context=config.context
        )
        self.decoders = make_decoders(config, encoder, sizes)
        # Paper: not said; here: Xavier-uniform, or local, without which a small model learns no motion of real video.
        init_weights(self, config.start)
        self.alignment = Alignment(config, self.encoder) if config.aligns else NoAlignment()

    def forward(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets, step: int) -> Losses:
        """Eq. 4 for a batch of clips, uint8 or floats in [0, 1]; `step` counts from 0 over the run."""
        return average([self.loss(clip_BTCHW, each, targets, step) for each in mask.all()])

    def loss(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets, step: int) -> Losses:
        """Eq. 4 under one mask."""
        target = targets.at(mask)
        seen = self.predict(clip_BTCHW, mask, target.swapped_BM)
        parts = self.losses(seen, mask, target)
        weights = {"alignment": self.config.alpha(step, self.steps_per_epoch)}
        total = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()  # Eq. 4
        values = {name: part.detach() for name, part in parts.items()}
        if target.motion is not None:
            values["motion" + BASELINE] = zero_motion_loss(target.motion, self.config.motion_reduction)
        return Losses(total, values, seen.visible_BTVD.detach().float().mean(dim=2))

    def predict(self, clip_BTCHW: Tensor, mask: Mask, swapped_BM: Tensor | None = None) -> Predictions:
        """Fig. 1, left to right. `swapped_BM`, for clip order alone: the masked tubes whose halves to swap."""
        tokens = self.encoder.embed(clip_BTCHW)
        # Encoder: visible patches only.
        visible_BTVD = self.encoder.encode(tokens.at(mask.visible_BTV))
        # Regressor: mask queries gather from the visible patches of all frames. Table 2, w/o regressor: MaskTokens.
        latent = self.regressor(self.project(visible_BTVD), self.position(clip_BTCHW), mask)
        # Decoders: appearance and motion, from the latent alone. Table 2: one of them, or one with both heads.
        hidden = {name: decoder(latent, swapped_BM) for name, decoder in self.decoders.items()}
        # Alignment target: the encoder's own view of the masked patches, no gradient. Table 2, w/o: NoAlignment.
        target_BTAD = self.alignment.target(self, clip_BTCHW, tokens, mask)
        return Predictions(visible_BTVD, latent, hidden, target_BTAD)

    def position(self, clip_BTCHW: Tensor) -> Tensor:
        """Position embeddings (B, T, N, D) for regressor and decoders."""
        if self.own_positions is None:
            position_TND = self.encoder.position(clip_BTCHW)
        else:
            position_TND = self.own_positions(*self.encoder.layout(clip_BTCHW))
        return self.project_position(position_TND).expand(len(clip_BTCHW), -1, -1, -1)

    def losses(self, seen: Predictions, mask: Mask, target: Targets) -> dict[str, Tensor]:
        """The parts of Eq. 4 before weighting; `target` holds the targets of masked patches."""
        parts = {kind: head.loss(seen.hidden[name], target.of(kind)) for name, kind, head in self.heads()}
        return parts | self.alignment.losses(seen, mask)

    def heads(self) -> Iterator[tuple[str, str, TargetHead]]:
        """Names of the decoder and of the target, and the head, for every head."""
        for name, decoder in self.decoders.items():
            assert isinstance(decoder, Decoder | OrderDecoder)
            for kind, head in decoder.heads.items():
                assert isinstance(head, TargetHead)
                yield name, kind, head

    def reconstruct(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets) -> Reconstruction:
        """Predictions for masked patches, for pictures."""
        seen = self.predict(clip_BTCHW, mask, targets.at(mask).swapped_BM)
        made = {kind: head(seen.hidden[name]) for name, kind, head in self.heads()}
        return Reconstruction(made.get("appearance"), made.get("motion"))

    def start_from(self, encoder: VideoEncoder, name: str) -> None:
        """Copies the weights of an encoder, which messages call `name`; the other parts keep theirs."""
        copy_encoder(encoder, self.encoder, name)
        self.alignment.restart(self.encoder)

    def after_step(self) -> None:
        """Moves the teacher, if the method has one."""
        self.alignment.after_step(self.encoder)


@dataclass(frozen=True)
class Predictions:
    """Results of the stages of Fig. 1 for a batch.

    Attributes:
        visible_BTVD: the encoder's output for visible patches.
        latent: the regressor's output for masked patches; or visible features and mask tokens.
        hidden: output of each decoder for masked patches (B, T, M, D); for clip order (B, M, D).
        target_BTAD: alignment target of the aligned patches, without gradient; None without alignment.
    """

    visible_BTVD: Tensor
    latent: Latent
    hidden: dict[str, Tensor]
    target_BTAD: Tensor | None


class Alignment(nn.Module):
    """Pulls regressed representations towards the encoder's own of the same patches (Eq. 1)."""

    def __init__(self, config: MAM2Config, encoder: VideoEncoder) -> None:
        super().__init__()
        self.config = config
        self.teacher: VideoEncoder | None = None
        if config.teacher_momentum:
            self.teacher = VideoEncoder(replace(encoder.config, drop_path=0.0)).requires_grad_(False)
        self.restart(encoder)

    def restart(self, encoder: VideoEncoder) -> None:
        """Makes the teacher a copy of the encoder."""
        if self.teacher is not None:
            self.teacher.load_state_dict(encoder.state_dict())

    @torch.no_grad()
    def target(self, model: MAM2, clip_BTCHW: Tensor, tokens: Tokens, mask: Mask) -> Tensor:
        """Groundtruth of the aligned patches (Sec. 2.1): their features in `model`'s encoder, or in the teacher.

        `tokens` are the encoder's; a teacher embeds the clips itself.
        """
        if self.teacher is None:
            features_BTAD = model.encoder.encode(tokens.at(mask.aligned_BTA))
        else:
            features_BTAD = self.teacher.features_of(clip_BTCHW, mask.aligned_BTA)
        target_BTAD: Tensor = model.project(features_BTAD)
        return target_BTAD

    def losses(self, seen: Predictions, mask: Mask) -> dict[str, Tensor]:
        """{"alignment": Eq. 1}."""
        assert seen.target_BTAD is not None
        regressed_BTAD = mask.aligned(seen.latent.x_BTSD)  # all of a regressor's tokens are masked patches
        config = self.config
        loss = alignment_loss(regressed_BTAD, seen.target_BTAD, config.alignment_reduction, config.alignment_target)
        return {"alignment": loss}

    @torch.no_grad()
    def after_step(self, encoder: VideoEncoder) -> None:
        """Moves the teacher's weights towards the encoder's."""
        if self.teacher is not None:
            for slow, fast in zip(self.teacher.parameters(), encoder.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.config.teacher_momentum)


class NoAlignment(nn.Module):
    """Table 2's "w/o alignment", in the place of Alignment."""

    def target(self, model: MAM2, clip_BTCHW: Tensor, tokens: Tokens, mask: Mask) -> None:
        return None

    def losses(self, seen: Predictions, mask: Mask) -> dict[str, Tensor]:
        return {}

    def restart(self, encoder: VideoEncoder) -> None:
        pass

    def after_step(self, encoder: VideoEncoder) -> None:
        pass


def make_decoders(config: MAM2Config, encoder: EncoderConfig, sizes: TargetSizes) -> nn.ModuleDict:
    """The decoders of Table 2's rows, by name."""

    def decoder(depth: int, *kinds: str) -> Decoder:
        width = config.width
        heads: dict[str, TargetHead] = {}
        if "appearance" in kinds:
            heads["appearance"] = AppearanceHead(width, sizes.appearance, sizes.distance)
        if "motion" in kinds:
            heads["motion"] = MotionHead(width, sizes.motion, config.motion_reduction)
        return Decoder(width=width, depth=depth, num_heads=config.num_heads, attention=encoder.attention, heads=heads)

    decoders: dict[str, nn.Module] = {}
    if config.decoders == "coupled":
        decoders["shared"] = decoder(config.appearance_depth, "appearance", "motion")
    if config.decoders in ("disentangled", "appearance"):
        decoders["appearance"] = decoder(config.appearance_depth, "appearance")
    if config.decoders in ("disentangled", "motion"):
        motion = decoder(config.motion_depth, "motion")
        decoders["motion"] = OrderDecoder(motion, config.width) if sizes.clip_order else motion
    return nn.ModuleDict(decoders)


@dataclass(frozen=True, kw_only=True)
class MAM2Config:
    """Regressor, decoders and alignment around the encoder in pre-training; the defaults are the paper's.

    Attributes:
        width: width of regressor and decoders; 0 is the encoder's, the paper's. Others are reached by a linear layer.
        num_heads: attention heads of regressor and decoders; 0 is the encoder's number.
        regressor_depth: cross-attention blocks; 0 is Table 2's "w/o regressor": mask queries as in MAE, no alignment.
        appearance_depth: blocks of the appearance decoder.
        motion_depth: blocks of the motion decoder.
        decoders: "disentangled", two; "coupled", Table 2's MAM²-c, one with two heads, as deep as the appearance
            decoder; "appearance" or "motion", one alone, Table 2's "w/o motion" and "w/o appearance".
        context: keys of the regressor's queries: "visible" tokens, or "concat", those and the queries (CAE).
        alignment_weight: α in Eq. 4; 0 is Table 2's "w/o alignment".
        alignment_ramp: duration over which α rises linearly from 0; `0 steps`, a constant α, is the paper's. A ramp
            keeps small models from collapsing (docs/log/learning.md).
        alignment_target: "plain", the encoder's output, is the paper's; "batch" standardises each channel of it over
            the batch, "layer_norm" each token over its channels.
        teacher_momentum: share that a moving average of the encoder, the teacher, keeps of itself in every step; the
            target is the teacher's then. 0, the paper's, has no teacher.
        alignment_reduction: "mean" or "sum" over the channels of a token in Eq. 1.
        motion_reduction: "mean" or "sum" over the numbers of a patch in Eq. 3; the sum, the paper's to the letter, is
            768 times larger.
        start: initial weights: "xavier", or "local": attention to near positions, and no motion predicted, at first.
    """

    width: Annotated[int, Ge(0)] = 0
    num_heads: Annotated[int, Ge(0)] = 0
    regressor_depth: Annotated[int, Ge(0)] = 4
    appearance_depth: Annotated[int, Ge(0)] = 4
    motion_depth: Annotated[int, Ge(0)] = 2
    decoders: Literal["disentangled", "coupled", "appearance", "motion"] = "disentangled"
    context: Context = "visible"
    alignment_weight: Annotated[float, Ge(0)] = 2.0
    alignment_ramp: Duration = Steps(0)
    alignment_target: Standardisation = "plain"
    teacher_momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    alignment_reduction: Reduction = "mean"
    motion_reduction: Reduction = "mean"
    start: Start = "xavier"

    def __post_init__(self) -> None:
        check(self, "objective.")

    @property
    def needs_appearance(self) -> bool:
        """True if an appearance target is predicted."""
        return self.decoders != "motion"

    @property
    def needs_motion(self) -> bool:
        """True if a motion target is predicted."""
        return self.decoders != "appearance"

    @property
    def aligns(self) -> bool:
        """True if regressed representations are aligned with the encoder's."""
        # Paper: Table 2 ticks alignment for "w/o regressor"; here: there is nothing to align without one.
        return self.alignment_weight > 0 and self.regressor_depth > 0

    def sized_for(self, encoder: EncoderConfig) -> MAM2Config:
        """The configuration with its width and heads in numbers; UserError if they don't fit each other."""
        sized = replace(self, width=self.width or encoder.width, num_heads=self.num_heads or encoder.num_heads)
        if sized.width % sized.num_heads:
            raise UserError(
                f"objective.width {sized.width} must be a multiple of objective.num_heads {sized.num_heads}. Set both."
            )
        return sized

    def check_fits(self, encoder: EncoderConfig, sizes: TargetSizes, *, same_mask_in_all_frames: bool) -> None:
        """Raises UserError unless the method works with this encoder, these targets and masks."""
        self.sized_for(encoder)
        if not (sizes.clip_order and self.needs_motion):
            return
        if self.decoders == "coupled" or not self.regressor_depth:
            raise UserError(
                "Clip order is predicted by a motion decoder of its own from a regressor's output. Use "
                "--objective.decoders disentangled or motion, and --objective.regressor-depth of at least 1."
            )
        if not same_mask_in_all_frames:
            raise UserError(
                "The masks differ from frame to frame, but clip order is predicted for whole tubes. Use another "
                "--targets.motion, or --mask.kind tube."
            )

    def idle_options(self, mask: MaskConfig) -> list[str]:
        """Options that are set and have no effect, because nothing is aligned."""
        idle = {"mask.aligned": mask.aligned < 1, "objective.teacher_momentum": self.teacher_momentum > 0}
        return [name for name, is_set in idle.items() if is_set and not self.aligns]

    def build(self, encoder: EncoderConfig, sizes: TargetSizes, *, steps_per_epoch: int = 1) -> MAM2:
        """The model with random weights."""
        return MAM2(self, encoder, sizes, steps_per_epoch=steps_per_epoch)

    def without_parts(self) -> dict[str, MAM2Config]:
        """The configuration without each part, by name of the part."""
        parts = {}
        if self.aligns:
            parts["alignment target"] = replace(self, alignment_weight=0.0)
        if self.decoders == "disentangled":
            parts["appearance decoder and head"] = replace(self, decoders="motion")
            parts["motion decoder"] = replace(self, decoders="appearance")
        return parts

    def alpha(self, step: int, steps_per_epoch: int) -> float:
        """α of Eq. 4 at a step."""
        ramp = self.alignment_ramp.steps(steps_per_epoch)
        return self.alignment_weight * min(1.0, (step + 1) / ramp if ramp else 1.0)

    def scaled(self, to: Proportion, duration: Duration) -> MAM2Config:
        """Widths and depths in proportion, and a ramp over half the run."""
        width, num_heads = to.width(self.width or to.base.width, self.num_heads or to.base.num_heads)
        return replace(
            self,
            width=width if self.width else 0,
            num_heads=num_heads if self.num_heads else 0,
            regressor_depth=to.depth(self.regressor_depth),
            appearance_depth=to.depth(self.appearance_depth),
            motion_depth=to.depth(self.motion_depth),
            alignment_ramp=duration.times(0.5),  # a constant α can make small models collapse
        )

    def stretched(self, share: float) -> MAM2Config:
        """The ramp in proportion to the run."""
        return replace(self, alignment_ramp=self.alignment_ramp.times(share))
