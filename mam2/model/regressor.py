"""The latent contextual regressor, and mask tokens in its place (Sec. 2.1, Table 2, Table 9).

B clips, T frames, N patches per frame, V visible and M masked ones, S tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mam2.masks import Mask, take
from mam2.model.blocks import CrossBlock, LearnedToken, layer_norm

Context = Literal["visible", "concat"]
"""Keys of the mask queries: visible tokens, or visible tokens and the queries themselves, as in CAE."""


@dataclass(frozen=True)
class Latent:
    """The decoders' input.

    Attributes:
        x_BTSD: tokens; the last M of each frame stand for the masked patches.
        position_BTSD: positions of the tokens.
        num_masked: M.
    """

    x_BTSD: Tensor
    position_BTSD: Tensor
    num_masked: int


def make_regressor(*, width: int, depth: int, num_heads: int, context: Context) -> Regressor | MaskTokens:
    """A regressor of `depth` blocks; without blocks, Table 2's "w/o regressor", mask tokens."""
    if not depth:
        return MaskTokens(width)
    return Regressor(width=width, depth=depth, num_heads=num_heads, context=context)


class Regressor(nn.Module):
    """Predicts the representations of masked tubes from the visible ones, all frames together.

    `regressor(visible_BTVD, position_BTND, mask) -> Latent` of masked patches only. Its output is aligned with the
    encoder's own representation of the masked patches (Eq. 1) and is all that the decoders get to see.
    """

    def __init__(self, *, width: int, depth: int, num_heads: int, context: Context) -> None:
        super().__init__()
        self.context = context
        # Paper: "mask queries learnable"; here: one vector, distinguished by its position (docs/decisions.md).
        self.mask_query = LearnedToken(width)
        self.blocks = nn.ModuleList(CrossBlock(width, num_heads) for _ in range(depth))
        self.norm = layer_norm(width)

    def forward(self, visible_BTVD: Tensor, position_BTND: Tensor, mask: Mask) -> Latent:
        position_BTMD = take(position_BTND, mask.masked_BTM)
        regressed_BSD = self.regress(
            self.mask_query.value_D.expand_as(position_BTMD).flatten(1, 2),
            visible_BTVD.flatten(1, 2),
            query_position_BSD=position_BTMD.flatten(1, 2),
            context_position_BSD=take(position_BTND, mask.visible_BTV).flatten(1, 2),
        )
        return Latent(regressed_BSD.view(position_BTMD.shape), position_BTMD, position_BTMD.shape[2])

    def regress(
        self, query_BSD: Tensor, context_BSD: Tensor, *, query_position_BSD: Tensor, context_position_BSD: Tensor
    ) -> Tensor:
        """Regressed representations, one for each query: (B, S, D)."""
        concat = self.context == "concat"
        key_position_BSD = context_position_BSD
        if concat:
            key_position_BSD = torch.cat([context_position_BSD, query_position_BSD], dim=1)
        x_BSD = query_BSD
        for block in self.blocks:
            keys_BSD = torch.cat([context_BSD, x_BSD], dim=1) if concat else context_BSD
            x_BSD = block(x_BSD, keys_BSD, query_position=query_position_BSD, context_position=key_position_BSD)
        return self.norm(x_BSD)


class MaskTokens(nn.Module):
    """Table 2's "w/o regressor", in its place: visible features and mask queries side by side, as in MAE.

    `mask_tokens(visible_BTVD, position_BTND, mask) -> Latent` of visible and masked patches.
    """

    # Paper: the decoders' input without a regressor is not described; here: MAE's.
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask_query = LearnedToken(width)

    def forward(self, visible_BTVD: Tensor, position_BTND: Tensor, mask: Mask) -> Latent:
        position_BTMD = take(position_BTND, mask.masked_BTM)
        query_BTMD = self.mask_query.value_D.expand_as(position_BTMD)
        x_BTSD = torch.cat([visible_BTVD, query_BTMD], dim=2)
        position_BTSD = torch.cat([take(position_BTND, mask.visible_BTV), position_BTMD], dim=2)
        return Latent(x_BTSD, position_BTSD, position_BTMD.shape[2])
