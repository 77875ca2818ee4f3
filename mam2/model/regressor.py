"""The latent contextual regressor (Sec. 2.1, Table 9). B clips, S tokens, D width."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mam2.model.blocks import CrossBlock, layer_norm

Context = Literal["visible", "concat"]
"""What mask queries attend to: visible tokens, or visible tokens and the queries themselves, as in CAE."""


class Regressor(nn.Module):
    """Predicts the representations of masked tubes from the visible ones, all frames together.

    Its output is aligned with the encoder's own representation of the masked patches (Eq. 1) and is all that the
    decoders get to see.
    """

    def __init__(self, *, width: int, depth: int, num_heads: int, context: Context) -> None:
        super().__init__()
        self.context = context
        self.blocks = nn.ModuleList(CrossBlock(width, num_heads) for _ in range(depth))
        self.norm = layer_norm(width)

    def forward(
        self, query_BSD: Tensor, context_BSD: Tensor, *, query_position_BSD: Tensor, context_position_BSD: Tensor
    ) -> Tensor:
        """Regressed representations, one for each query: (B, S, D)."""
        concat, key_position_BSD = self.context == "concat", context_position_BSD
        if concat:
            key_position_BSD = torch.cat([context_position_BSD, query_position_BSD], dim=1)
        x = query_BSD
        for block in self.blocks:
            keys_BSD = torch.cat([context_BSD, x], dim=1) if concat else context_BSD
            x = block(x, keys_BSD, query_position=query_position_BSD, context_position=key_position_BSD)
        return self.norm(x)
