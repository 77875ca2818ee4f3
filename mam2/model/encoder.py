"""The encoder: space-time attention over visible patches (Sec. 2.1, Table 9).

B clips, T frames, C channels, H W pixels, N patches per frame, V visible patches, D width.
"""

from __future__ import annotations

import functools
import itertools
import logging
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from mam2.config import UserError, check
from mam2.masks import take
from mam2.model.attention import AttentionKind, Rotation
from mam2.model.blocks import (
    BLOCKS,
    NORM_EPS,
    Activation,
    BlockOptions,
    JointBlock,
    LearnedTokens,
    SpaceTimeBlock,
    init_weights,
    layer_norm,
)
from mam2.model.positions import (
    AddedPositions,
    PositionKind,
    RotaryPositions,
    SpaceRotaryPositions,
    is_interpolated,
    make_positions,
)
from mam2.patches import IMAGENET_MEAN, IMAGENET_STD, scaled_differences, to_float

log = logging.getLogger("mam2")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of a VideoEncoder; the defaults are the paper's ViT-B on 16 × 224².

    Attributes:
        width: D, channels of a token.
        depth: number of blocks.
        num_heads: attention heads (the paper's models have 64 channels per head).
        frames: T, frames per clip.
        size: height and width of a clip, pixels.
        patch_size: P, side of a patch, pixels.
        tubelet: frames that a patch spans: 1, the paper's (1×16×16), or 2, VideoMAE's, for half the tokens. Above 1,
            T counts tubelets in tensor names, and targets are those of each tubelet's first frame.
        attention: "factorised" over time and then space, the paper's, or "joint" over all tokens, as in VideoMAE.
            The decoders follow it.
        positions: "separable", learned for time and for space, the paper's; "sequence", VideoMAE's fixed ones; "full",
            learned for each place in the clip; "rotary", V-JEPA 2's turns of queries and keys, with joint attention;
            "rotary_space", learned for time, with DINOv3's turns for space.
        differences: adds to each patch its RGB difference to the first frame of the next tubelet, as three more
            channels of about the scale of the others. The paper has none; motion is then 2 % of the mean square.
        prefix_tokens: [CLS] and register tokens, which attend with the patches of each frame and are not among the
            features. 0 is the paper's; published encoders have up to 5.
        prefix_per: "frame", prefix tokens for each frame, as for an image; or "clip", for the clip (TimeSformer).
        pre_norm: adds a LayerNorm before the first block (CLIP).
        norm_eps: epsilon of every LayerNorm.
        mlp_ratio: width inside an MLP, in widths of a token.
        activation: activation of the MLPs.
        layer_scale: initial value of a learned scale on every branch of a block (CAE: 0.1); 0, the paper's, adds none.
        drop_path: stochastic depth, rising linearly from 0 to this in the last block; 0 in pre-training.
    """

    # Upper bounds keep what a damaged weight file states from growing without end.
    width: Annotated[int, Ge(1), Le(65536)] = 768
    depth: Annotated[int, Ge(1), Le(1024)] = 12
    num_heads: Annotated[int, Ge(1)] = 12
    frames: Annotated[int, Ge(1), Le(65536)] = 16
    size: Annotated[int, Ge(1), Le(65536)] = 224
    patch_size: Annotated[int, Ge(1), Le(1024)] = 16
    tubelet: Annotated[int, Ge(1), Le(1024)] = 1
    attention: AttentionKind = "factorised"
    positions: PositionKind = "separable"
    differences: bool = False
    layer_scale: Annotated[float, Ge(0)] = 0.0
    drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0
    prefix_tokens: Annotated[int, Ge(0), Le(1024)] = 0
    prefix_per: Literal["frame", "clip"] = "frame"
    pre_norm: bool = False
    norm_eps: Annotated[float, Gt(0)] = NORM_EPS
    mlp_ratio: Annotated[float, Gt(0), Le(64)] = 4.0
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        check(self, "encoder.")
        if self.size % self.patch_size:
            raise UserError(f"size {self.size} is no multiple of patch_size {self.patch_size}; change one of them.")
        if self.frames % self.tubelet:
            raise UserError(f"frames {self.frames} is no multiple of tubelet {self.tubelet}; change one of them.")
        if self.width % self.num_heads or self.width % 4:
            raise UserError(f"width {self.width} must be a multiple of num_heads ({self.num_heads}) and of 4.")
        if self.positions == "rotary" and (self.attention != "joint" or self.prefix_tokens):
            raise UserError(
                "positions 'rotary' go with attention 'joint' and no prefix_tokens; here attention is "
                f"{self.attention!r} with {self.prefix_tokens} prefix tokens. Change one of them."
            )
        if self.positions == "rotary_space" and self.width // self.num_heads % 4:
            raise UserError(
                f"positions 'rotary_space' need heads of a multiple of 4 channels; here width {self.width} with "
                f"num_heads {self.num_heads} gives {self.width // self.num_heads}. Change one of them."
            )
        if self.prefix_per == "clip" and self.attention != "factorised":
            raise UserError("prefix_per 'clip' goes with attention 'factorised'. Change one of them.")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (high, wide) in a frame."""
        return (self.size // self.patch_size,) * 2

    def block_options(self, index: int) -> BlockOptions:
        """Options of the block with this number, from 0: the fields of the same names, and its drop path."""
        shared = {field.name: getattr(self, field.name) for field in fields(BlockOptions)}
        return BlockOptions(**shared | {"drop_path": self.drop_path * index / max(self.depth - 1, 1)})

    @property
    def tubelets(self) -> int:
        """Patches in time."""
        return self.frames // self.tubelet


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Source and licence of published weights that an encoder began with.

    Attributes:
        source: name or file of the published encoder.
        licence: licence of its weights, which holds for all that is made of them.
    """

    source: str
    licence: str


@dataclass(frozen=True)
class Tokens:
    """Embedded patches and their places: `encoder.embed(clip)` makes them, `encoder.encode(tokens)` takes them.

    Attributes:
        x_BTVD: one token per patch, with the positions that are added to it.
        grid: patches (high, wide) in a frame.
        patch_BTV: place of each token in its frame, int64 (B, T, V); None: all N patches, in order.
    """

    x_BTVD: Tensor
    grid: tuple[int, int]
    patch_BTV: Tensor | None = None

    def at(self, patch_BTV: Tensor) -> Tokens:
        """The tokens of some patches of each frame, int64 (B, T, V), from those of all patches."""
        assert self.patch_BTV is None, "some of some patches: their places would be mixed up"
        return Tokens(take(self.x_BTVD, patch_BTV), self.grid, patch_BTV)


def vit_b() -> EncoderConfig:
    """ViT-B: 12 blocks of width 768."""
    return EncoderConfig()


def vit_l() -> EncoderConfig:
    """ViT-L: 24 blocks of width 1024."""
    return EncoderConfig(width=1024, depth=24, num_heads=16)


class VideoEncoder(nn.Module):
    """Clips to features: `encoder(clip_BTCHW) -> (B, T, N, D)`, T tubelets of `config.tubelet` frames each.

    Clips are uint8 in [0, 255] or floats in [0, 1], RGB; ImageNet normalisation happens inside. Any number of frames
    and any size, multiples of tubelet and patch, are accepted: positions are interpolated, and a log line says so.

    Attributes:
        config: sizes of the encoder.
        origin: the published encoder that its weights began with; None: random weights.
    """

    def __init__(self, config: EncoderConfig, *, origin: Origin | None = None) -> None:
        super().__init__()
        self.config = config
        self.origin = origin
        size = config.patch_size
        # Paper: patches of 1 × 16 × 16 pixels; here: the same, with their motion as more channels if asked for.
        channels = 3 * (config.tubelet + config.differences)
        self.patch_embed = nn.Conv2d(channels, config.width, kernel_size=size, stride=size)
        head_width = config.width // config.num_heads
        if config.positions == "rotary":
            self.positions: nn.Module = RotaryPositions(head_width)
        elif config.positions == "rotary_space":
            self.positions = SpaceRotaryPositions(config.tubelets, config.width, head_width)
        else:
            self.positions = make_positions(config.positions, config.tubelets, config.grid, config.width)
        self.prefix = LearnedTokens(config.prefix_tokens, config.width) if config.prefix_tokens else None
        self.pre_norm = layer_norm(config.width, config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            BLOCKS[config.attention](config.width, config.num_heads, config.block_options(i))
            for i in range(config.depth)
        )
        self.norm = layer_norm(config.width, config.norm_eps)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        init_weights(self)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        """Features (B, T, N, D) of whole clips, after the final LayerNorm."""
        return self.encode(self.embed(clip_BTCHW))

    def features_of(self, clip_BTCHW: Tensor, patch_BTV: Tensor) -> Tensor:
        """Features (B, T, V, D) of some patches of each frame, int64 (B, T, V), which see only each other."""
        return self.encode(self.embed(clip_BTCHW).at(patch_BTV))

    def embed(self, clip_BTCHW: Tensor) -> Tokens:
        """Tokens of all patches with their positions; UserError for a clip of another shape than (B, T, 3, H, W)."""
        patch_size = self.config.patch_size
        tubelet = self.config.tubelet
        if not isinstance(clip_BTCHW, Tensor):
            raise UserError(f"A clip is a torch.Tensor, not {type(clip_BTCHW).__name__}. Use torch.as_tensor(clip).")
        shape = tuple(clip_BTCHW.shape)
        multiples = len(shape) == 5 and not (shape[1] % tubelet or shape[3] % patch_size or shape[4] % patch_size)
        if not multiples or shape[2] != 3 or 0 in shape:
            raise UserError(
                f"A clip of shape {shape} can't be encoded; accepted: (B, T, 3, H, W) with T a multiple of {tubelet}, "
                f"H and W of {patch_size}, uint8 or floats in [0, 1]."
            )
        clip = to_float(clip_BTCHW)
        x = (clip - self.mean) / self.std
        x = x.reshape(-1, 3 * tubelet, *shape[3:])  # a tubelet's frames as channels
        if self.config.differences:
            x = torch.cat([x, scaled_differences(clip[:, ::tubelet]).flatten(0, 1)], dim=1)
        x_BTDhw = self.patch_embed(x.to(self.patch_embed.weight.dtype)).unflatten(0, (shape[0], -1))
        x_BTND = x_BTDhw.flatten(3).transpose(2, 3) + self.position(clip_BTCHW)
        return Tokens(x_BTND, grid=self.layout(clip_BTCHW)[1])

    def position(self, clip_BTCHW: Tensor) -> Tensor:
        """Position embeddings (T, N, D) for clips of this shape; zeros (T, N, 1) where positions are rotary."""
        config = self.config
        _, frames, _, height, width = clip_BTCHW.shape
        num_tubelets, grid = self.layout(clip_BTCHW)
        if is_interpolated(config.positions, frames=frames != config.frames, grid=grid != config.grid):
            warn_of_interpolation(config, frames, height, width)
        position_TND: Tensor = self.positions(num_tubelets, grid).to(self.patch_embed.weight.device)
        return position_TND

    def layout(self, clip_BTCHW: Tensor) -> tuple[int, tuple[int, int]]:
        """Tubelets and patches (high, wide) of clips of this shape."""
        patch_size = self.config.patch_size
        grid = (clip_BTCHW.shape[3] // patch_size, clip_BTCHW.shape[4] // patch_size)
        return clip_BTCHW.shape[1] // self.config.tubelet, grid

    def rotation(self, tokens: Tokens) -> Rotation | None:
        """The rotary positions of tokens, prefix tokens first in each frame; None where `embed` adds all positions."""
        if not isinstance(self.positions, RotaryPositions | SpaceRotaryPositions):
            return None
        joint = self.config.attention == "joint"
        patch_BTV = tokens.patch_BTV
        if patch_BTV is None:  # frames that attend each by itself turn alike: one stands for all
            patch_BTV = torch.arange(tokens.x_BTVD.shape[2], device=tokens.x_BTVD.device)
            patch_BTV = patch_BTV.expand(1, tokens.x_BTVD.shape[1] if joint else 1, -1)
        angle_BTVd = self.positions.angles(patch_BTV, tokens.grid)
        angle_BTVd = F.pad(angle_BTVd, (0, 0, self.config.prefix_tokens, 0))  # prefix tokens do not turn
        return Rotation.by(angle_BTVd.flatten(1, 2) if joint else angle_BTVd.flatten(0, 1))

    def encode(self, tokens: Tokens, *, norm: bool = True) -> Tensor:
        """Features (B, T, V, D) of the tokens of `embed`, or of some, `.at` patches of each frame, which then see only
        each other. `norm` applies the final LayerNorm."""
        x_BTVD, _ = self.through(tokens, self.config.depth)
        x_BTVD = x_BTVD[:, :, self.config.prefix_tokens :]
        return self.norm(x_BTVD) if norm else x_BTVD

    def through(self, tokens: Tokens, num_blocks: int) -> tuple[Tensor, Rotation | None]:
        """Tokens (B, T, P + V, D) after the first blocks, prefix tokens first, and their rotary positions."""
        rotation = self.rotation(tokens)
        x_BTVD = self.begin(tokens.x_BTVD)
        for block in itertools.islice(self.blocks, num_blocks):
            x_BTVD = block(x_BTVD, rotation)
        return x_BTVD, rotation

    def begin(self, x_BTVD: Tensor) -> Tensor:
        """The input of the first block: prefix tokens before the patches of each frame, and the pre-norm if any."""
        if self.prefix is not None:
            prefix_BTPD = self.prefix.value_PD.expand(*x_BTVD.shape[:2], -1, -1).to(x_BTVD.dtype)
            x_BTVD = torch.cat([prefix_BTPD, x_BTVD], dim=2)
        begun_BTVD: Tensor = self.pre_norm(x_BTVD)
        return begun_BTVD

    @torch.no_grad()
    def attention_received(self, clip_BTCHW: Tensor) -> Tensor:
        """Attention that each patch of a frame receives in the last block: (B, T, N), sums to 1 over N."""
        x_BTND, rotation = self.through(self.embed(clip_BTCHW), self.config.depth - 1)
        last = self.blocks[-1]
        assert isinstance(last, SpaceTimeBlock | JointBlock)
        received_BTN = last.received(x_BTND, rotation)[:, :, self.config.prefix_tokens :]
        return received_BTN / received_BTN.sum(dim=2, keepdim=True) if self.prefix is not None else received_BTN


def own_positions(config: EncoderConfig) -> AddedPositions | None:
    """Separable positions for the regressor and decoders of a rotary encoder; None where they share the encoder's.

    Rotary positions can't be added to queries; and what "rotary_space" adds for time does not tell patches apart.
    """
    if config.positions in ("rotary", "rotary_space"):
        return make_positions("separable", config.tubelets, config.grid, config.width)
    return None


@functools.cache
def warn_of_interpolation(config: EncoderConfig, frames: int, height: int, width: int) -> None:
    """Logs, once per shape, that clips differ in shape from those the encoder was trained on."""
    log.warning(
        f"Positions are interpolated: the encoder was trained on {config.frames} frames of {config.size}², "
        f"this clip has {frames} frames of {height}×{width}."
    )
