"""The latent contextual regressor (Sec. 2.1, Table 9). B clips, S tokens, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mam2.model.layers import CrossBlock, layer_norm


class Regressor(nn.Module):
    """Predicts the representations of masked tubes from the visible ones, all frames together.

    Mask queries attend to visible tokens only. Its output is aligned with the encoder's own representation of the
    masked patches (Eq. 1) and is all that the decoders get to see.
    """

    def __init__(self, *, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        # Paper: "mask queries learnable"; here: one vector, told apart by its position (docs/decisions.md).
        self.mask_query = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(CrossBlock(width, num_heads) for _ in range(depth))
        self.norm = layer_norm(width)

    def forward(self, context_BSD: Tensor, *, context_position_BSD: Tensor, query_position_BSD: Tensor) -> Tensor:
        """Regressed representations, one for each query position: (B, S, D)."""
        x = self.mask_query.expand_as(query_position_BSD)
        for block in self.blocks:
            x = block(x, context_BSD, query_position=query_position_BSD, context_position=context_position_BSD)
        return self.norm(x)
