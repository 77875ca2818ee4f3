"""The appearance and the motion decoder (Sec. 2.1, Table 9). B clips, T frames, M masked patches, D width."""

from __future__ import annotations

from torch import Tensor, nn

from mam2.model.layers import SpaceTimeBlock, layer_norm


class Decoder(nn.Module):
    """Space-time blocks among masked tokens only, then a linear projection.

    `num_outputs` is the number of codes K for the appearance decoder, C·P·P numbers of a patch for the motion decoder.
    """

    def __init__(self, *, width: int, depth: int, num_heads: int, num_outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SpaceTimeBlock(width, num_heads) for _ in range(depth))
        self.norm = layer_norm(width)
        self.project = nn.Linear(width, num_outputs)

    def forward(self, x_BTMD: Tensor, *, position_BTMD: Tensor) -> Tensor:
        """Predictions (B, T, M, num_outputs) for regressed representations (B, T, M, D)."""
        x_BTMD = x_BTMD + position_BTMD
        for block in self.blocks:
            x_BTMD = block(x_BTMD)
        return self.project(self.norm(x_BTMD))
