"""MAM²: masked appearance-motion modelling (Sec. 2, Fig. 1); Table 2's rows are parts with one interface.

B clips, T frames, N patches per frame, V visible, M masked, A aligned, D width, K codes, P patch side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from mam2.config import Duration, Steps, UserError, check
from mam2.losses import Losses, Reduction, alignment_loss, average, motion_loss_of_none
from mam2.masks import Mask, MaskConfig, take
from mam2.model.attention import AttentionKind
from mam2.model.blocks import Start, init_weights, layer_norm
from mam2.model.decoders import AppearanceHead, Decoder, Head, MotionHead, OrderDecoder
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.positions import make_positions
from mam2.model.regressor import Context, Latent, MaskTokens, Regressor
from mam2.model.weights import copy_encoder
from mam2.objectives.contract import Reconstruction
from mam2.targets.maker import Targets
from mam2.targets.table import TargetSizes


@dataclass(frozen=True, kw_only=True)
class MAM2Config:
    """Regressor, decoders and alignment around the encoder in pre-training; the defaults are the paper's.

    Attributes:
        width: width of regressor and decoders; a linear layer leads there where it differs from the encoder's. 0 is
            the encoder's, the paper's.
        num_heads: attention heads of regressor and decoders; 0 is as many as the encoder has.
        regressor_depth: cross-attention blocks of the regressor. 0 is Table 2's "w/o regressor": the decoders get
            visible features and mask queries, as in MAE, and nothing is left to align.
        appearance_depth: blocks of the appearance decoder.
        motion_depth: blocks of the motion decoder.
        decoders: two "disentangled"; "coupled", one decoder with two heads, Table 2's MAM²-c, as deep as the appearance
            decoder; "appearance" or "motion", that one alone, Table 2's "w/o motion" and "w/o appearance".
        context: what the regressor's queries attend to: "visible" tokens, or "concat", those and the queries (CAE).
        alignment_weight: α in Eq. 4; 0 is Table 2's "w/o alignment".
        alignment_ramp: duration over which α rises linearly from 0. The paper's α is constant, `0 steps`; a ramp keeps
            small models from collapsing (docs/log/learning.md).
        alignment_target: "plain" aligns with the encoder's output, as the paper does; "batch" standardises each
            channel of that target over the batch first, "layer_norm" each token over its channels.
        teacher_momentum: 0 aligns with the encoder itself, as the paper does; above 0, with a moving average of its
            weights, which keeps this share of itself in every step.
        alignment_reduction: "mean" or "sum" over the channels of a token in Eq. 1.
        start: "xavier" weights, or "local" ones: tokens attend to tokens at near positions from the first step, and
            motion starts from predicting none. The paper does not say how weights start.
        motion_reduction: "mean" or "sum" over the numbers of a patch in Eq. 3; the sum, the paper's to the letter, is
            768 times larger.
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
    alignment_target: Literal["plain", "batch", "layer_norm"] = "plain"
    teacher_momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    alignment_reduction: Reduction = "mean"
    motion_reduction: Reduction = "mean"
    start: Start = "xavier"

    def __post_init__(self) -> None:
        check(self, "objective.")

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

    def sized_for(self, encoder: EncoderConfig) -> MAM2Config:
        """The configuration with its width and heads in numbers; UserError if they don't fit each other."""
        sized = replace(self, width=self.width or encoder.width, num_heads=self.num_heads or encoder.num_heads)
        if sized.width % sized.num_heads:
            raise UserError(
                f"objective.width {sized.width} must be a multiple of objective.num_heads {sized.num_heads}. Set both."
            )
        return sized

    def check_fits(self, encoder: EncoderConfig, sizes: TargetSizes, *, same_mask_in_all_frames: bool) -> None:
        """Raises UserError unless this encoder, targets of these sizes, and these masks can be used."""
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
        """By name of a part, the same configuration without it."""
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


@dataclass(frozen=True)
class Predictions:
    """The stages of Fig. 1 for a batch.

    Attributes:
        visible_BTVD: the encoder's output for visible patches.
        latent: the regressor's output for masked patches; or mask tokens beside visible features.
        hidden: by decoder, its output for masked patches (B, T, M, D); for clip order (B, M, D).
        target_BTAD: the alignment target of the aligned patches, no gradient; None without alignment.
    """

    visible_BTVD: Tensor
    latent: Latent
    hidden: dict[str, Tensor]
    target_BTAD: Tensor | None


class MAM2(nn.Module):
    """Encoder, regressor and two disentangled decoders: `objective(clip, mask, targets, step) -> Losses`.

    Only what the configuration uses is built.

    Args:
        config: regressor, decoders and alignment.
        encoder: the encoder's sizes.
        sizes: what the targets ask of the decoders, `TargetMaker.sizes`.
        steps_per_epoch: for an α that rises over epochs.
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
        same = config.width == encoder.width
        self.project = nn.Identity() if same else projection(encoder.width, config.width)
        self.project_position = nn.Identity() if same else nn.Linear(encoder.width, config.width)
        # Rotary positions are none that can be added to queries; time alone does not tell patches apart.
        rotary = encoder.positions in ("rotary", "rotary_space")
        self.own_positions = (
            make_positions("separable", encoder.tubelets, encoder.grid, encoder.width) if rotary else None
        )
        self.regressor = make_regressor(config)
        self.decoders = make_decoders(config, sizes, encoder.attention)
        self.init_weights()
        self.alignment = Alignment(config, self.encoder) if config.aligns else NoAlignment()

    def init_weights(self) -> None:
        """Sets every parameter to where training starts."""
        # Paper: not said; here: Xavier-uniform, or local, without which a small model learns no motion of real video.
        init_weights(self, self.config.start)
        if self.config.start == "local":
            for _, kind, head in self.heads():
                if kind == "motion":
                    nn.init.zeros_(head.project.weight)

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
        features_BTD = seen.visible_BTVD.detach().float().mean(dim=2)
        return Losses(total, {name: part.detach() for name, part in parts.items()} | self.metrics(target), features_BTD)

    def predict(self, clip_BTCHW: Tensor, mask: Mask, swapped_BM: Tensor | None = None) -> Predictions:
        """Fig. 1, left to right. `swapped_BM` says which masked tubes' halves to swap, for clip order alone."""
        tokens_BTND = self.encoder.embed(clip_BTCHW)
        # Encoder: visible patches only.
        visible_BTVD = self.encoder.encode(
            take(tokens_BTND, mask.visible_BTV), self.encoder.rotation(clip_BTCHW, mask.visible_BTV)
        )
        # Regressor: mask queries gather from the visible patches of all frames. Table 2, w/o regressor: MaskTokens.
        latent = self.regressor(self.project(visible_BTVD), self.position(clip_BTCHW), mask)
        # Decoders: appearance and motion, from the latent alone. Table 2: one of them, or one with both heads.
        hidden = {name: decoder(latent, swapped_BM) for name, decoder in self.decoders.items()}
        # Alignment target: the encoder's own view of the masked patches, no gradient. Table 2, w/o: NoAlignment.
        target_BTAD = self.alignment.target(self.encoder, self.project, clip_BTCHW, tokens_BTND, mask)
        return Predictions(visible_BTVD, latent, hidden, target_BTAD)

    def position(self, clip_BTCHW: Tensor) -> Tensor:
        """Position embeddings (B, T, N, D) as regressor and decoders see them."""
        position_TND = (
            self.encoder.position(clip_BTCHW)
            if self.own_positions is None
            else self.own_positions(*self.encoder.layout(clip_BTCHW))
        )
        position_TND = self.project_position(position_TND)
        return position_TND.expand(len(clip_BTCHW), -1, -1, -1)

    def losses(self, seen: Predictions, mask: Mask, target: Targets) -> dict[str, Tensor]:
        """The parts of Eq. 4 before weighting; `target` is that of masked patches."""
        parts = {kind: head.loss(seen.hidden[name], target.of(kind)) for name, kind, head in self.heads()}
        return parts | self.alignment.losses(seen, mask)

    def metrics(self, target: Targets) -> dict[str, Tensor]:
        """Values to judge the losses by: the motion loss of predicting no motion."""
        if target.motion is None:
            return {}
        return {"motion_of_none": motion_loss_of_none(target.motion, self.config.motion_reduction)}

    def heads(self) -> Iterator[tuple[str, str, Head]]:
        """Each head: its decoder's name, the target that it predicts, and itself."""
        for name, decoder in self.decoders.items():
            for kind, head in cast(Decoder | OrderDecoder, decoder).heads.items():
                yield name, kind, cast(Head, head)

    def reconstruct(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets) -> Reconstruction:
        """Predictions for masked patches, for pictures."""
        seen = self.predict(clip_BTCHW, mask, targets.at(mask).swapped_BM)
        made = {kind: head(seen.hidden[name]) for name, kind, head in self.heads()}
        return Reconstruction(made.get("appearance"), made.get("motion"))

    def start_from(self, encoder: VideoEncoder, name: str) -> None:
        """Takes over the weights of an encoder, which messages call `name`; the other parts keep theirs."""
        copy_encoder(encoder, self.encoder, name)
        self.alignment.restart(self.encoder)

    def after_step(self) -> None:
        """Moves the teacher, if there is one; the loop calls it after each step of the optimiser."""
        self.alignment.after_step(self.encoder)


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
        """The teacher, if there is one, begins as a copy of the encoder."""
        if self.teacher is not None:
            self.teacher.load_state_dict(encoder.state_dict())

    @torch.no_grad()
    def target(
        self, encoder: VideoEncoder, project: nn.Module, clip_BTCHW: Tensor, tokens_BTND: Tensor, mask: Mask
    ) -> Tensor:
        """The groundtruth masked patches, those that are aligned, through the encoder or the teacher (Sec. 2.1)."""
        if self.teacher is not None:
            encoder = self.teacher
            tokens_BTND = encoder.embed(clip_BTCHW)
        aligned_BTA = mask.aligned(mask.masked_BTM[..., None])[..., 0]
        features_BTAD = encoder.encode(take(tokens_BTND, aligned_BTA), encoder.rotation(clip_BTCHW, aligned_BTA))
        target_BTAD: Tensor = project(features_BTAD)
        return target_BTAD

    def losses(self, seen: Predictions, mask: Mask) -> dict[str, Tensor]:
        """{"alignment": Eq. 1}."""
        assert seen.target_BTAD is not None
        regressed_BTAD = mask.aligned(seen.latent.x_BTSD)  # all of a regressor's tokens are masked patches
        target_BTAD = self.standardise(seen.target_BTAD.float())
        return {"alignment": alignment_loss(regressed_BTAD, target_BTAD, self.config.alignment_reduction)}

    def standardise(self, target_BTAD: Tensor) -> Tensor:
        """The target as `alignment_target` of the configuration asks for it."""
        match self.config.alignment_target:
            case "plain":
                return target_BTAD
            case "batch":
                std, mean = torch.std_mean(target_BTAD, dim=(0, 1, 2))
                return (target_BTAD - mean) / (std + 1e-3)
            case "layer_norm":
                return F.layer_norm(target_BTAD, target_BTAD.shape[-1:])

    @torch.no_grad()
    def after_step(self, encoder: VideoEncoder) -> None:
        """The teacher's weights move towards the encoder's."""
        if self.teacher is not None:
            for slow, fast in zip(self.teacher.parameters(), encoder.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.config.teacher_momentum)


class NoAlignment(nn.Module):
    """In the alignment's place, Table 2's "w/o alignment"."""

    def target(
        self, encoder: VideoEncoder, project: nn.Module, clip_BTCHW: Tensor, tokens_BTND: Tensor, mask: Mask
    ) -> None:
        return None

    def losses(self, seen: Predictions, mask: Mask) -> dict[str, Tensor]:
        return {}

    def restart(self, encoder: VideoEncoder) -> None:
        pass

    def after_step(self, encoder: VideoEncoder) -> None:
        pass


def projection(width_in: int, width_out: int) -> nn.Sequential:
    """Table 1c's projection of features to the width of regressor and decoders."""
    return nn.Sequential(nn.Linear(width_in, width_out), layer_norm(width_out))


def make_regressor(config: MAM2Config) -> Regressor | MaskTokens:
    """The regressor, or mask tokens for Table 2's "w/o regressor"."""
    if not config.regressor_depth:
        return MaskTokens(config.width)
    return Regressor(
        width=config.width, depth=config.regressor_depth, num_heads=config.num_heads, context=config.context
    )


def make_decoders(config: MAM2Config, sizes: TargetSizes, attention: AttentionKind) -> nn.ModuleDict:
    """The decoders of Table 2's rows, by name."""

    def decoder(depth: int, heads: dict[str, Head]) -> Decoder:
        return Decoder(width=config.width, depth=depth, num_heads=config.num_heads, attention=attention, heads=heads)

    def appearance() -> dict[str, Head]:
        return {"appearance": AppearanceHead(config.width, sizes.appearance, sizes.distance)}

    def motion() -> dict[str, Head]:
        return {"motion": MotionHead(config.width, sizes.motion, config.motion_reduction)}

    def motion_decoder() -> Decoder | OrderDecoder:
        made = decoder(config.motion_depth, motion())
        return OrderDecoder(made, config.width) if sizes.clip_order else made

    match config.decoders:
        case "disentangled":
            decoders = {"appearance": decoder(config.appearance_depth, appearance()), "motion": motion_decoder()}
        case "coupled":
            decoders = {"shared": decoder(config.appearance_depth, appearance() | motion())}
        case "appearance":
            decoders = {"appearance": decoder(config.appearance_depth, appearance())}
        case "motion":
            decoders = {"motion": motion_decoder()}
    return nn.ModuleDict(decoders)
