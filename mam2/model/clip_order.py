"""Clip order prediction (Sec. 2.2, Table 1f): the decoder that swaps halves of masked tubes and tells which were.

B clips, T frames, M masked patches, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mam2.model.blocks import LearnedToken
from mam2.model.decoders import Decoder
from mam2.model.regressor import Latent


class OrderDecoder(nn.Module):
    """Clip order prediction (Sec. 2.2): for each masked tube, whether its two halves in time were swapped.

    A [CLS] token for each tube stands before the tube's frames and attends with them:
    `decoder(latent, swapped_BM) -> hidden_BMD`, the [CLS] tokens.
    """

    def __init__(self, decoder: Decoder, width: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.cls = LearnedToken(width)

    @property
    def heads(self) -> nn.ModuleDict:
        return self.decoder.heads

    def forward(self, latent: Latent, swapped_BM: Tensor) -> Tensor:
        """Hidden states (B, M, D) of masked patches in their true order; `swapped_BM`, int64 or bool, is true for tubes
        whose halves to swap, while the positions of places in the sequence do not move."""
        x_BTMD = latent.x_BTSD
        half = x_BTMD.shape[1] // 2
        other_BTMD = torch.cat([x_BTMD[:, half:], x_BTMD[:, :half]], dim=1)
        x_BTMD = torch.where(swapped_BM.bool()[:, None, :, None], other_BTMD, x_BTMD)
        position_BTMD = torch.cat([latent.position_BTSD.mean(dim=1, keepdim=True), latent.position_BTSD], dim=1)
        cls_BTMD = self.cls.value_D.expand_as(x_BTMD[:, :1])
        hidden_BTMD: Tensor = self.decoder.decode(torch.cat([cls_BTMD, x_BTMD], dim=1) + position_BTMD)
        return hidden_BTMD[:, 0]
