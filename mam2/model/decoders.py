"""The decoders (Sec. 2.1, Sec. 2.2, Table 9). B clips, T frames, M masked patches, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mam2.model.attention import AttentionKind
from mam2.model.blocks import BLOCKS, layer_norm


class Decoder(nn.Module):
    """Self-attention among masked tokens, then a linear projection: the appearance and the motion decoder.

    `num_outputs` is the number of codes K for the appearance decoder, C·P·P numbers of a patch for the motion decoder.
    """

    def __init__(self, *, width: int, depth: int, num_heads: int, attention: AttentionKind, num_outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BLOCKS[attention](width, num_heads) for _ in range(depth))
        self.norm = layer_norm(width)
        self.project = nn.Linear(width, num_outputs)

    def forward(self, x_BTMD: Tensor, *, position_BTMD: Tensor) -> Tensor:
        """Predictions (B, T, M, num_outputs) for regressed representations (B, T, M, D)."""
        return self.project(self.decode(x_BTMD, position_BTMD=position_BTMD))

    def decode(self, x_BTMD: Tensor, *, position_BTMD: Tensor) -> Tensor:
        """What the projection is made of: (B, T, M, D)."""
        x_BTMD = x_BTMD + position_BTMD
        for block in self.blocks:
            x_BTMD = block(x_BTMD)
        return self.norm(x_BTMD)


class OrderDecoder(nn.Module):
    """Tells for each masked tube whether its two halves in time were swapped: clip order prediction (Sec. 2.2).

    A [CLS] token for each tube stands before the tube's frames and attends with them; `decoder` has 2 outputs.
    """

    def __init__(self, decoder: Decoder, width: int) -> None:
        super().__init__()
        self.cls_D = nn.Parameter(torch.empty(width))
        self.decoder = decoder

    def forward(self, x_BTMD: Tensor, *, position_BTMD: Tensor, swapped_BM: Tensor) -> Tensor:
        """Logits (B, M, 2) of "as it was" and "swapped".

        Args:
            x_BTMD: regressed representations in their true order.
            position_BTMD: positions of the places in the sequence; they do not move with the halves.
            swapped_BM: int64 or bool, whose halves to swap.
        """
        half = x_BTMD.shape[1] // 2
        other_BTMD = torch.cat([x_BTMD[:, half:], x_BTMD[:, :half]], dim=1)
        x_BTMD = torch.where(swapped_BM.bool()[:, None, :, None], other_BTMD, x_BTMD)
        where_BTMD = torch.cat([position_BTMD.mean(dim=1, keepdim=True), position_BTMD], dim=1)
        cls_BTMD = self.cls_D.expand_as(x_BTMD[:, :1])
        hidden_BTMD = self.decoder.decode(torch.cat([cls_BTMD, x_BTMD], dim=1), position_BTMD=where_BTMD)
        return self.decoder.project(hidden_BTMD[:, 0])
