"""Tensors of a published ViT, under timm's names, placed in our encoder: copied, inflated, each of them once.

T frames or tubelets, N patches per frame, P prefix tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mam2.config import UserError
from mam2.model.encoder import EncoderConfig
from mam2.model.importers.facts import Facts
from mam2.model.importers.names import KNOWN, listed
from mam2.model.positions import SPACE_BASE
from mam2.patches import IMAGENET_MEAN, IMAGENET_STD


class Tensors:
    """The tensors of an encoder under timm's names; each is taken once, and what is left over is an error."""

    def __init__(self, tensors: dict[str, Tensor], source: str) -> None:
        self.left = dict(tensors)
        self.source = source
        self.zero: list[str] = []  # names of missing biases, which are zero

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def take(self, name: str) -> Tensor:
        """A tensor, in float32; UserError if it is not there."""
        if name not in self.left:
            raise UserError(f"{self.source} has no {name}, which a plain ViT has. Known are {KNOWN}.")
        return self.left.pop(name).float()

    def take_bias(self, name: str, width: int) -> Tensor:
        """A bias that some encoders do without: zeros, noted, where it is not there."""
        if name in self:
            return self.take(name)
        self.zero.append(name)
        return torch.zeros(width)

    def take_both(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer."""
        return self.take(f"{name}.weight"), self.take(f"{name}.bias")

    def take_qkv(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of queries, keys and values, stored together or apart."""
        parts = [f"{name}.{part}" for part in ("q", "k", "v")]
        together = f"{name}.qkv.weight" in self
        weight = self.take(f"{name}.qkv.weight") if together else torch.cat([self.take(f"{x}.weight") for x in parts])
        if f"{name}.qkv.bias" in self:
            bias = self.take(f"{name}.qkv.bias")
            # DINOv3's original: zeros where a bias of keys would be.
            return weight, bias * self.take(f"{name}.qkv.bias_mask") if f"{name}.qkv.bias_mask" in self else bias
        return weight, torch.cat([self.take_bias(f"{x}.bias", len(weight) // 3) for x in parts])

    def finish(self) -> None:
        """UserError if a tensor is left over."""
        if self.left:
            raise UserError(
                f"{self.source} holds {listed(self.left)}, which no known encoder has: without them it would be "
                f"another. Known are {KNOWN}."
            )


def folded(kernel: Tensor, bias: Tensor, facts: Facts, *, tubelet: int) -> tuple[Tensor, Tensor]:
    """Kernel and bias for pixels of our statistics, which do what the source's do for pixels of its own.

    With x = (p - m) / s for a pixel p: x_source = x_ours · s_ours / s_source + (m_ours - m_source) / s_source.
    """
    ours_mean, ours_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    mean, std = torch.tensor(facts.mean), torch.tensor(facts.std)
    if torch.equal(mean, ours_mean) and torch.equal(std, ours_std):
        return kernel, bias
    shift_C = ((ours_mean - mean) / std).repeat(tubelet)
    scale_C = (ours_std / std).repeat(tubelet)
    return kernel * scale_C[:, None, None], bias + torch.einsum("dcij,c->d", kernel, shift_C)


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


def paired(layer: tuple[Tensor, Tensor], num_heads: int, *, back: bool = False) -> tuple[Tensor, Tensor]:
    """Weight and bias of queries, keys and values, whose queries and keys have pairs of channels side by side.

    DINOv3 turns channel i of a head with channel i + d/2, we with its neighbour. Attention is the same. `back` goes
    from our order to DINOv3's.
    """
    queries, keys, values = torch.arange(len(layer[0])).chunk(3)
    halves = (-1, 2) if back else (2, -1)
    order = [part.unflatten(0, (num_heads, *halves)).transpose(1, 2).flatten() for part in (queries, keys)]
    order_O = torch.cat([*order, values])
    return layer[0][order_O], layer[1][order_O]


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
