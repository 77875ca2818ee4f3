"""MAM2: masked appearance-motion modelling (Sec. 2, Fig. 1); Table 2's rows are fields of its configuration.

B clips, T frames, N patches a frame, V visible, M masked, D width, K codes, P patch side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.config import Duration, Steps, UserError, check
from mam2.losses import Losses, Reduction, alignment_loss, appearance_loss, motion_loss, motion_loss_of_none
from mam2.masks import Mask, take
from mam2.model.blocks import init_weights, layer_norm
from mam2.model.decoders import Decoder, OrderDecoder
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.regressor import Context, Regressor
from mam2.targets.maker import Targets
from mam2.targets.table import TargetSizes


@dataclass(frozen=True, kw_only=True)
class MAM2Config:
    """What is around the encoder in pre-training; the defaults are the paper's.

    Attributes:
        width: width of regressor and decoders; where it differs from the encoder's, one linear layer leads there.
        num_heads: attention heads of regressor and decoders.
        regressor_depth: cross-attention blocks of the regressor. 0 is Table 2's "w/o regressor": the decoders get
            visible features and mask queries, as in MAE, and nothing is left to align.
        appearance_depth: blocks of the appearance decoder.
        motion_depth: blocks of the motion decoder.
        decoders: "disentangled"; "coupled", one decoder (the appearance decoder) with two heads, Table 2's MAM²-c;
            "appearance" or "motion", that one alone, Table 2's "w/o motion" and "w/o appearance".
        context: what the regressor's queries attend to: "visible" tokens, or "concat", those and the queries (CAE).
        alignment_weight: α in Eq. 4; 0 is Table 2's "w/o alignment".
        alignment_ramp: α rises linearly from 0 over this duration. The paper's is constant, `0 steps`; a ramp keeps
            small models from collapsing (docs/log.md).
        alignment_target: "plain" aligns with the encoder's output, as the paper does; "batch" standardises each
            channel of that target over the batch first, "layer_norm" each token over its channels.
        teacher_momentum: 0 aligns with the encoder itself, the paper's; above 0 with a moving average of its weights,
            which keeps this share of itself in every step.
        loss_reduction: "mean" or "sum" over the channels of a token in Eq. 1 and 3.
    """

    width: int = 768
    num_heads: int = 12
    regressor_depth: int = 4
    appearance_depth: int = 4
    motion_depth: int = 2
    decoders: Literal["disentangled", "coupled", "appearance", "motion"] = "disentangled"
    context: Context = "visible"
    alignment_weight: float = 2.0
    alignment_ramp: Duration = Steps(0)
    alignment_target: Literal["plain", "batch", "layer_norm"] = "plain"
    teacher_momentum: float = 0.0
    loss_reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        if min(self.width, self.num_heads) < 1 or self.width % self.num_heads:
            raise UserError(f"objective.width {self.width} must be a multiple of objective.num_heads {self.num_heads}.")
        check(self, "objective.")
        if min(self.regressor_depth, self.appearance_depth, self.motion_depth) < 0:
            raise UserError(
                f"objective.regressor_depth {self.regressor_depth}, appearance_depth {self.appearance_depth} and "
                f"motion_depth {self.motion_depth} must all be at least 0."
            )
        if not 0 <= self.alignment_weight < math.inf:
            raise UserError(f"objective.alignment_weight is {self.alignment_weight}; it must be from 0 (off) up.")
        if not 0 <= self.teacher_momentum < 1:
            raise UserError(
                f"objective.teacher_momentum is {self.teacher_momentum}; it must be from 0 (off) to below 1."
            )

    @property
    def needs_appearance(self) -> bool:
        """Whether an appearance target is predicted."""
        return self.decoders != "motion"

    @property
    def needs_motion(self) -> bool:
        """Whether a motion target is predicted."""
        return self.decoders != "appearance"

    @property
    def aligns(self) -> bool:
        """Whether regressed representations are aligned with the encoder's."""
        # Paper: Table 2 ticks alignment for "w/o regressor"; here: there is nothing to align without one.
        return self.alignment_weight > 0 and self.regressor_depth > 0

    def check_sizes(self, sizes: TargetSizes) -> None:
        """Raises UserError unless targets of these sizes can be predicted."""
        alone = self.decoders != "coupled" and self.regressor_depth
        if sizes.clip_order and self.needs_motion and not alone:
            raise UserError(
                "Clip order is predicted by a motion decoder of its own from what a regressor puts out. Use "
                "--objective.decoders disentangled or motion, and --objective.regressor-depth of at least 1."
            )

    def alpha(self, step: int, steps_per_epoch: int) -> float:
        """α of Eq. 4 at a step."""
        ramp = self.alignment_ramp.steps(steps_per_epoch)
        return self.alignment_weight * min(1.0, (step + 1) / ramp if ramp else 1.0)


@dataclass(frozen=True)
class Predictions:
    """All that MAM2 computes for a batch; None where the configuration leaves it out.

    Attributes:
        visible_BTVD: the encoder's output for visible patches.
        regressed_BTMD: the regressor's output for masked patches.
        target_BTMD: what it is aligned with, no gradient; of the aligned patches alone.
        appearance_BTMD: what the appearance decoder's projection sees.
        project_appearance: that projection; `appearance_BTMK` are its logits, or pixels.
        motion: the motion decoder's patches (B, T, M, ·), of which the last frame's are not used; for clip order its
            logits (B, M, 2).
    """

    visible_BTVD: Tensor
    regressed_BTMD: Tensor | None
    target_BTMD: Tensor | None
    appearance_BTMD: Tensor | None
    project_appearance: nn.Linear | None
    motion: Tensor | None

    @property
    def appearance_BTMK(self) -> Tensor | None:
        """The logits or pixels, made when asked for: the loss does without all of them at once."""
        if self.appearance_BTMD is None or self.project_appearance is None:
            return None
        pixels_or_logits: Tensor = self.project_appearance(self.appearance_BTMD)
        return pixels_or_logits


class MAM2(nn.Module):
    """Encoder, regressor and two disentangled decoders: `objective(clip, mask, targets, step) -> Losses`.

    Only what the configuration uses is built.

    Args:
        config: what is around the encoder.
        encoder: the encoder's sizes.
        sizes: what the targets ask of the decoders, `TargetMaker.sizes`.
        steps_per_epoch: for an α that rises over epochs.
    """

    def __init__(
        self, config: MAM2Config, encoder: EncoderConfig, sizes: TargetSizes, *, steps_per_epoch: int = 1
    ) -> None:
        super().__init__()
        self.config, self.steps_per_epoch = config, steps_per_epoch
        config.check_sizes(sizes)
        self.encoder = VideoEncoder(encoder)
        width, heads, attention = config.width, config.num_heads, encoder.attention
        # Table 1c: "a projection layer after the encoder", shared by visible features, targets and positions.
        same = width == encoder.width
        self.project = nn.Identity() if same else nn.Sequential(nn.Linear(encoder.width, width), layer_norm(width))
        self.project_position = nn.Identity() if same else nn.Linear(encoder.width, width)
        # Paper: "mask queries learnable"; here: one vector, told apart by its position (docs/decisions.md).
        self.mask_query_D = nn.Parameter(torch.empty(width))
        self.regressor: Regressor | None = None
        if config.regressor_depth:
            depth, context = config.regressor_depth, config.context
            self.regressor = Regressor(width=width, depth=depth, num_heads=heads, context=context)

        def decoder(depth: int, num_outputs: int) -> Decoder:
            return Decoder(width=width, depth=depth, num_heads=heads, attention=attention, num_outputs=num_outputs)

        self.appearance = decoder(config.appearance_depth, sizes.appearance) if config.needs_appearance else None
        self.motion: Decoder | OrderDecoder | None = None
        self.motion_head: nn.Linear | None = None
        if config.decoders == "coupled":
            self.motion_head = nn.Linear(width, sizes.motion)
        elif config.needs_motion:
            alone = decoder(config.motion_depth, sizes.motion)
            self.motion = OrderDecoder(alone, width) if sizes.clip_order else alone

        init_weights(self)
        nn.init.trunc_normal_(self.mask_query_D, std=0.02)
        if isinstance(self.motion, OrderDecoder):
            nn.init.trunc_normal_(self.motion.cls_D, std=0.02)
        self.teacher: VideoEncoder | None = None
        if config.teacher_momentum and config.aligns:
            self.teacher = VideoEncoder(replace(encoder, drop_path=0.0)).requires_grad_(False)
            self.teacher.load_state_dict(self.encoder.state_dict())

    def forward(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets, step: int) -> Losses:
        """Eq. 4 for a batch of clips, uint8 or floats in [0, 1]; `step` counts from 0 over the run."""
        reduction, masked = self.config.loss_reduction, targets.at(mask)
        swapped_BM = masked.motion if masked.clip_order else None
        predicted = self.predict(clip_BTCHW, mask, swapped_BM=swapped_BM)

        parts: dict[str, Tensor] = {}
        if self.appearance is not None and predicted.appearance_BTMD is not None and masked.appearance is not None:
            hidden_BTMD, head = predicted.appearance_BTMD, self.appearance.project
            parts["appearance"] = appearance_loss(hidden_BTMD, head, masked.appearance, reduction)
        if predicted.motion is not None and masked.motion is not None:
            parts["motion"] = motion_loss(predicted.motion, masked.motion, reduction)
        total = torch.stack(list(parts.values())).sum()
        if predicted.regressed_BTMD is not None and predicted.target_BTMD is not None:
            target_BTMD = self.standardise(predicted.target_BTMD)
            parts["alignment"] = alignment_loss(mask.aligned(predicted.regressed_BTMD), target_BTMD, reduction)
            total = total + self.config.alpha(step, self.steps_per_epoch) * parts["alignment"]  # Eq. 4
        if masked.motion is not None:
            parts["motion_of_none"] = motion_loss_of_none(masked.motion, reduction)
        features_BTD = predicted.visible_BTVD.detach().float().mean(dim=2)
        return Losses(total, {name: part.detach() for name, part in parts.items()}, features_BTD)

    def predict(self, clip_BTCHW: Tensor, mask: Mask, *, swapped_BM: Tensor | None = None) -> Predictions:
        """Fig. 1, left to right. `swapped_BM` says which masked tubes' halves to swap, for clip order alone."""
        tokens_BTND = self.encoder.embed(clip_BTCHW)
        visible_BTVD = self.encoder.encode(take(tokens_BTND, mask.visible_BTV))
        context_BTVD = self.project(visible_BTVD)
        target_BTMD = self.alignment_target(clip_BTCHW, tokens_BTND, mask) if self.config.aligns else None

        position_TND = self.project_position(self.encoder.position(clip_BTCHW))
        position_BTND = position_TND.expand(len(clip_BTCHW), -1, -1, -1)
        visible_position_BTVD = take(position_BTND, mask.visible_BTV)
        position_BTMD = take(position_BTND, mask.masked_BTM)
        query_BTMD = self.mask_query_D.expand_as(position_BTMD)

        num_masked, regressed_BTMD = mask.masked_BTM.shape[2], None
        if self.regressor is not None:
            regressed_BSD = self.regressor(
                query_BTMD.flatten(1, 2),
                context_BTVD.flatten(1, 2),
                query_position_BSD=position_BTMD.flatten(1, 2),
                context_position_BSD=visible_position_BTVD.flatten(1, 2),
            )
            latent, position = (regressed_BTMD := regressed_BSD.view(position_BTMD.shape)), position_BTMD
        else:  # Table 2, "w/o regressor": visible features and mask queries side by side, as in MAE
            latent = torch.cat([context_BTVD, query_BTMD], dim=2)
            position = torch.cat([visible_position_BTVD, position_BTMD], dim=2)

        hidden_BTMD = motion = head = None
        if self.appearance is not None:
            hidden_BTMD, head = self.appearance.decode(latent, position_BTMD=position), self.appearance.project
            hidden_BTMD = hidden_BTMD[:, :, -num_masked:]
            motion = self.motion_head(hidden_BTMD) if self.motion_head is not None else None
        if isinstance(self.motion, OrderDecoder):
            motion = self.motion(latent, position_BTMD=position, swapped_BM=swapped_BM)
        elif self.motion is not None:
            motion = self.motion(latent, position_BTMD=position)[:, :, -num_masked:]
        return Predictions(visible_BTVD, regressed_BTMD, target_BTMD, hidden_BTMD, head, motion)

    @torch.no_grad()
    def alignment_target(self, clip_BTCHW: Tensor, tokens_BTND: Tensor, mask: Mask) -> Tensor:
        """The groundtruth masked patches, those that are aligned, through the encoder, or through its moving average
        (Sec. 2.1)."""
        teacher = self.encoder
        if self.teacher is not None:
            teacher, tokens_BTND = self.teacher, self.teacher.embed(clip_BTCHW)
        return self.project(teacher.encode(mask.aligned(take(tokens_BTND, mask.masked_BTM))))

    def standardise(self, target_BTMD: Tensor) -> Tensor:
        """The alignment target as `alignment_target` of the configuration asks for it."""
        target_BTMD = target_BTMD.float()
        match self.config.alignment_target:
            case "plain":
                return target_BTMD
            case "batch":
                std, mean = torch.std_mean(target_BTMD, dim=(0, 1, 2))
                return (target_BTMD - mean) / (std + 1e-3)
            case "layer_norm":
                return F.layer_norm(target_BTMD, target_BTMD.shape[-1:])

    @torch.no_grad()
    def after_step(self) -> None:
        """What the loop calls after each step of the optimiser: moves the teacher, if there is one."""
        if self.teacher is not None:
            for slow, fast in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.config.teacher_momentum)
