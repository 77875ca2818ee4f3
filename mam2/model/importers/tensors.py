"""Tensors of a published ViT under timm's names, each taken once; inflate.py places them in our encoder.

T frames or tubelets, N patches per frame, P prefix tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mam2.config import UserError
from mam2.model.importers.facts import Facts
from mam2.model.importers.names import KNOWN, listed
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
