"""Inflation of an encoder of images to one of video: patch kernel of a tubelet, positions in time, temporal attention.

D width, N positions in space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mam2.config import UserError
from mam2.model.encoder import EncoderConfig
from mam2.model.importers.facts import Inflation
from mam2.model.importers.tensors import Tensors, paired
from mam2.model.positions import SPACE_BASE


def inflated(kernel: Tensor, inflation: Inflation) -> Tensor:
    """The patch kernel over the frames of a tubelet, as channels of a picture: (D, T·3, P, P)."""
    if kernel.ndim == 5:
        return kernel.transpose(1, 2).flatten(1, 2)
    tubelet = inflation.tubelet
    shares = torch.full((tubelet,), 1 / tubelet)
    if inflation.kernel == "center":
        shares = torch.zeros(tubelet)
        shares[tubelet // 2] = 1.0
    return torch.cat([share * kernel for share in shares], dim=1)


def place_positions(made: dict[str, Tensor], tensors: Tensors, config: EncoderConfig) -> None:
    """Positions, and prefix tokens with theirs added."""
    prefix = [tensors.take(name).reshape(-1, config.width) for name in ("cls_token", "reg_token") if name in tensors]
    prefix_PD = torch.cat(prefix) if prefix else None
    if "pos_embed" in tensors:
        table = tensors.take("pos_embed").reshape(-1, config.width)
        if config.positions == "full":
            made["positions.table_TND"] = table.unflatten(0, (config.tubelets, -1))
        else:
            num_patches = config.grid[0] * config.grid[1]
            extra = len(table) - num_patches
            if extra:
                assert prefix_PD is not None, "their number is that of the prefix tokens"
                prefix_PD = torch.cat([prefix_PD[:extra] + table[:extra], prefix_PD[extra:]])
            made["positions.space_ND"] = table[extra:]
            no_time_TD = torch.zeros(config.tubelets, config.width)
            time_TD = tensors.take("time_embed") if "time_embed" in tensors else no_time_TD
            made["positions.time_TD"] = time_TD.reshape(-1, config.width)
    if config.positions == "rotary_space":
        made["positions.time_TD"] = torch.zeros(config.tubelets, config.width)
        if "rope_embed.periods" in tensors:
            check_periods(tensors.take("rope_embed.periods"), config, source=tensors.source)
    if prefix_PD is not None:
        made["prefix.value_PD"] = prefix_PD


def check_periods(periods: Tensor, config: EncoderConfig, *, source: str) -> None:
    """UserError unless the periods of rotary positions in DINOv3's original, which are rounded, are those we make."""
    part = config.width // config.num_heads // 4
    expected = SPACE_BASE ** (torch.arange(part) / part)
    if periods.shape != expected.shape or not torch.allclose(periods, expected, rtol=0.01):
        raise UserError(
            f"{source} has rotary positions of other periods than DINOv3's for {config.num_heads} heads. Accepted: "
            f"{part} of them, from 1 on towards {SPACE_BASE:g}. Give --num-heads if there are more or fewer heads."
        )


def place_block(made: dict[str, Tensor], tensors: Tensors, i: int, config: EncoderConfig, *, divided: bool) -> None:
    """One block. An image encoder's temporal attention is a copy of the spatial one, whose output is zero."""
    block = f"blocks.{i}"
    attention = "joint" if config.attention == "joint" else "space"

    def put(name: str, layer: tuple[Tensor, Tensor]) -> None:
        made[f"{block}.{name}.weight"], made[f"{block}.{name}.bias"] = layer

    norm = tensors.take_both(f"{block}.norm1")
    qkv = tensors.take_qkv(f"{block}.attn")
    out = tensors.take_both(f"{block}.attn.proj")
    if config.positions == "rotary_space":
        qkv = paired(qkv, config.num_heads)
    put(f"norm_{attention}", norm)
    put(f"{attention}.qkv", qkv)
    put(f"{attention}.out", out)
    put("norm_mlp", tensors.take_both(f"{block}.norm2"))
    put("mlp.0", tensors.take_both(f"{block}.mlp.fc1"))
    put("mlp.2", tensors.take_both(f"{block}.mlp.fc2"))
    if divided:
        put("norm_time", tensors.take_both(f"{block}.temporal_norm1"))
        put("time.qkv", tensors.take_qkv(f"{block}.temporal_attn"))
        weight, bias = tensors.take_both(f"{block}.temporal_attn.proj")
        fc_weight, fc_bias = tensors.take_both(f"{block}.temporal_fc")
        put("time.out", (fc_weight @ weight, fc_weight @ bias + fc_bias))
    elif attention == "space":
        put("norm_time", norm)
        put("time.qkv", qkv)
        put("time.out", (torch.zeros_like(out[0]), torch.zeros_like(out[1])))
    if config.layer_scale:
        made[f"{block}.add_{attention}.scale_D"] = tensors.take(f"{block}.ls1.gamma")
        made[f"{block}.add_mlp.scale_D"] = tensors.take(f"{block}.ls2.gamma")
        if attention == "space":
            made[f"{block}.add_time.scale_D"] = torch.ones(config.width)
