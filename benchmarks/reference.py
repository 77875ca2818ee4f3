"""`PlainMAM2`: MAM2's step as one would first write it, to compare with.

It computes the same loss and gradients (tests/test_benchmarks.py compares them with the library's) from torch's own
modules: `nn.MultiheadAttention`, all logits at once in float32, `torch.optim.AdamW` as it comes.

B clips, T frames, V visible and M masked patches, D width, K codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.masks import Mask
from mam2.model.encoder import EncoderConfig
from mam2.objectives.mam2 import MAM2, MAM2Config
from mam2.patches import IMAGENET_MEAN, IMAGENET_STD
from mam2.targets.table import TargetSizes


def norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


def attention(width: int, num_heads: int) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(width, num_heads, batch_first=True)


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Block(nn.Module):
    """Attention over time, over space, MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_time, self.norm_space, self.norm_mlp = norm(width), norm(width), norm(width)
        self.time, self.space, self.mlp = attention(width, num_heads), attention(width, num_heads), mlp(width)

    def forward(self, x_BTVD: Tensor) -> Tensor:
        num_clips, frames, patches, width = x_BTVD.shape
        along_time = self.norm_time(x_BTVD).permute(0, 2, 1, 3).reshape(num_clips * patches, frames, width)
        along_time, _ = self.time(along_time, along_time, along_time, need_weights=False)
        x_BTVD = x_BTVD + along_time.view(num_clips, patches, frames, width).permute(0, 2, 1, 3)
        of_frames = self.norm_space(x_BTVD).reshape(num_clips * frames, patches, width)
        of_frames, _ = self.space(of_frames, of_frames, of_frames, need_weights=False)
        x_BTVD = x_BTVD + of_frames.view(x_BTVD.shape)
        return x_BTVD + self.mlp(self.norm_mlp(x_BTVD))


class Encoder(nn.Module):
    """Patches of every frame through the blocks."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)
        self.positions = nn.ParameterDict(
            {
                "time_TD": torch.zeros(config.frames, config.width),
                "space_ND": torch.zeros(config.grid[0] * config.grid[1], config.width),
            }
        )
        self.blocks = nn.ModuleList(Block(config.width, config.num_heads) for _ in range(config.depth))
        self.norm = norm(config.width)

    def position(self) -> Tensor:
        return self.positions["time_TD"][:, None] + self.positions["space_ND"][None]

    def embed(self, clip_BTCHW: Tensor) -> Tensor:
        mean, std = (torch.tensor(x, device=clip_BTCHW.device).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        x = (clip_BTCHW.float() / 255 - mean) / std
        x = self.patch_embed(x.flatten(0, 1)).flatten(2).transpose(1, 2)
        return x.unflatten(0, clip_BTCHW.shape[:2]) + self.position()

    def forward(self, x_BTVD: Tensor) -> Tensor:
        for block in self.blocks:
            x_BTVD = block(x_BTVD)
        return self.norm(x_BTVD)


class CrossBlock(nn.Module):
    """Queries gather from visible tokens, then an MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_query, self.norm_key, self.norm_value, self.norm_mlp = (norm(width) for _ in range(4))
        self.cross, self.mlp = attention(width, num_heads), mlp(width)

    def forward(self, x: Tensor, context: Tensor, position: Tensor, context_position: Tensor) -> Tensor:
        query, key = self.norm_query(x + position), self.norm_key(context + context_position)
        gathered, _ = self.cross(query, key, self.norm_value(context), need_weights=False)
        x = x + gathered
        return x + self.mlp(self.norm_mlp(x))


class Regressor(nn.Module):
    def __init__(self, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(width, num_heads) for _ in range(depth))
        self.norm = norm(width)


class Decoder(nn.Module):
    def __init__(self, width: int, depth: int, num_heads: int, num_outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = norm(width)
        self.project = nn.Linear(width, num_outputs)

    def forward(self, x_BTMD: Tensor) -> Tensor:
        for block in self.blocks:
            x_BTMD = block(x_BTMD)
        return self.project(self.norm(x_BTMD))


LOADED_NAMES = {"regressor.mask_query.value_D": "mask_query_D"}


class PlainMAM2(nn.Module):
    """The paper's objective with its defaults; all widths are the encoder's. `load(mam2)` takes over weights."""

    def __init__(self, config: MAM2Config, encoder: EncoderConfig, sizes: TargetSizes) -> None:
        super().__init__()
        width, heads = encoder.width, config.sized_for(encoder).num_heads
        self.alpha = config.alignment_weight
        self.encoder = Encoder(encoder)
        self.mask_query_D = nn.Parameter(torch.zeros(width))
        self.regressor = Regressor(width, config.regressor_depth, heads)
        self.appearance = Decoder(width, config.appearance_depth, heads, sizes.appearance)
        self.motion = Decoder(width, config.motion_depth, heads, sizes.motion)

    def forward(self, clip_BTCHW: Tensor, mask: Mask, codes_BTN: Tensor, motion_BTND: Tensor) -> Tensor:
        """The loss; `motion_BTND` is the RGB difference of all patches, of all frames but the last."""
        clips = torch.arange(len(clip_BTCHW), device=clip_BTCHW.device)[:, None, None]
        frames = torch.arange(clip_BTCHW.shape[1], device=clip_BTCHW.device)[None, :, None]
        visible, masked = (clips, frames, mask.visible_BTV), (clips, frames, mask.masked_BTM)
        tokens_BTND = self.encoder.embed(clip_BTCHW)
        visible_BTVD = self.encoder(tokens_BTND[visible])
        with torch.no_grad():
            target_BTMD = self.encoder(tokens_BTND[masked])

        position_BTND = self.encoder.position().expand_as(tokens_BTND)
        position_BTMD, context_position_BTVD = position_BTND[masked], position_BTND[visible]
        x = self.mask_query_D.expand_as(position_BTMD).flatten(1, 2)
        for block in self.regressor.blocks:
            x = block(x, visible_BTVD.flatten(1, 2), position_BTMD.flatten(1, 2), context_position_BTVD.flatten(1, 2))
        regressed_BTMD = self.regressor.norm(x).view(position_BTMD.shape)

        logits_BTMK = self.appearance(regressed_BTMD + position_BTMD)
        moved_BTMD = self.motion(regressed_BTMD + position_BTMD)[:, :-1]
        true_BTMD = motion_BTND[clips, frames[:, :-1], mask.masked_BTM[:, :-1]]
        appearance = F.cross_entropy(logits_BTMK.float().flatten(0, 2), codes_BTN[masked].flatten())
        alignment = F.mse_loss(regressed_BTMD.float(), target_BTMD.float())
        return appearance + F.mse_loss(moved_BTMD.float(), true_BTMD) + self.alpha * alignment

    def load(self, model: MAM2) -> PlainMAM2:
        """Takes over the library's weights, whose attention has other names."""
        mine = {}
        theirs = {LOADED_NAMES.get(name, name): tensor for name, tensor in model.state_dict().items()}
        for part in ("appearance", "motion"):
            theirs = {
                name.replace(f"decoders.{part}.heads.{part}.", f"{part}.").replace(
                    f"decoders.{part}.", f"{part}."
                ): tensor
                for name, tensor in theirs.items()
            }
        for name, tensor in theirs.items():
            head, _, leaf = name.rpartition(".")
            part, _, layer = head.rpartition(".")
            if layer == "qkv":
                mine[f"{part}.in_proj_{leaf}"] = tensor
            elif layer == "q":
                mine[f"{part}.in_proj_{leaf}"] = torch.cat([theirs[f"{part}.{which}.{leaf}"] for which in "qkv"])
            elif layer == "out":
                mine[f"{part}.out_proj.{leaf}"] = tensor
            elif layer not in ("k", "v"):
                mine[name] = tensor
        self.load_state_dict(mine)
        return self
