"""The decoders and their heads; a head owns its loss (Sec. 2.1, Sec. 2.2, Table 9).

B clips, T frames, M masked patches, S tokens, D width, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mam2.losses import Distance, Reduction, appearance_loss, motion_loss
from mam2.masks import Mask
from mam2.model.attention import AttentionKind
from mam2.model.blocks import BLOCKS, layer_norm
from mam2.model.encoder import EncoderConfig
from mam2.model.positions import make_positions
from mam2.model.regressor import Latent, MaskTokens


class TargetHead(nn.Module):
    """A linear layer from hidden states of masked patches (B, T, M, D), and the loss of its outputs."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, num_outputs)

    def forward(self, hidden_BTMD: Tensor) -> Tensor:
        return self.project(hidden_BTMD)

    def loss(self, hidden_BTMD: Tensor, target: Tensor) -> Tensor:
        """The loss against a target, a scalar."""
        raise NotImplementedError


class AppearanceHead(TargetHead):
    """Codes of masked patches, or numbers such as pixels: logits or numbers (B, T, M, K)."""

    def __init__(self, width: int, num_outputs: int, distance: Distance = "squared") -> None:
        super().__init__(width, num_outputs)
        self.distance: Distance = distance

    def loss(self, hidden_BTMD: Tensor, target: Tensor) -> Tensor:
        """Eq. 2, without all logits in memory at once."""
        return appearance_loss(hidden_BTMD, self.project, target, self.distance)


class MotionHead(TargetHead):
    """Motion of masked patches, (B, T, M, numbers per patch); for clip order (B, M, 2)."""

    def __init__(self, width: int, num_outputs: int, reduction: Reduction = "mean") -> None:
        super().__init__(width, num_outputs)
        self.reduction: Reduction = reduction

    def start_local(self) -> None:
        """Fills the weights with zeros: no motion is predicted at first."""
        nn.init.zeros_(self.project.weight)

    def loss(self, hidden_BTMD: Tensor, target: Tensor) -> Tensor:
        """Eq. 3."""
        return motion_loss(self.project(hidden_BTMD), target, self.reduction)


class Decoder(nn.Module):
    """Self-attention among the latent's tokens: `decoder(latent, swapped_BM) -> hidden_BTMD` of masked patches.

    Args:
        heads: heads on `hidden_BTMD`, by target: appearance, motion, or, coupled (Table 2), both.
    """

    def __init__(
        self, *, width: int, depth: int, num_heads: int, attention: AttentionKind, heads: Mapping[str, TargetHead]
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BLOCKS[attention](width, num_heads) for _ in range(depth))
        self.norm = layer_norm(width)
        self.heads = nn.ModuleDict(heads)

    def forward(self, latent: Latent, swapped_BM: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, M, D); `swapped_BM` is OrderDecoder's."""
        return self.decode(latent.x_BTSD + latent.position_BTSD)[:, :, -latent.num_masked :]

    def decode(self, x_BTSD: Tensor) -> Tensor:
        """The blocks and the norm: (B, T, S, D)."""
        for block in self.blocks:
            x_BTSD = block(x_BTSD)
        return self.norm(x_BTSD)


class MaskDecoder(nn.Module):
    """MAE's decoder: visible features and mask tokens, with separate positions, to predictions for masked patches.

    `decoder(visible_BTVD, mask, layout) -> hidden_BTMD`; `decoder.head` makes predictions (B, T, M, K) of them.

    Args:
        encoder: configuration of the encoder; attention and positions follow it.
        width, depth, num_heads: sizes of the decoder.
        bias: adds a bias to the linear layer from the encoder's width.
        num_outputs: K.
        distance: distance of predicted and true numbers, for targets other than codes.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        *,
        width: int,
        depth: int,
        num_heads: int,
        bias: bool,
        num_outputs: int,
        distance: Distance = "squared",
    ) -> None:
        super().__init__()
        self.project = nn.Linear(encoder.width, width, bias=bias)
        self.positions = make_positions(encoder.positions, encoder.tubelets, encoder.grid, width)
        self.mask_tokens = MaskTokens(width)
        self.head = AppearanceHead(width, num_outputs, distance)
        self.transformer = Decoder(width=width, depth=depth, num_heads=num_heads, attention=encoder.attention, heads={})

    def forward(self, visible_BTVD: Tensor, mask: Mask, layout: tuple[int, tuple[int, int]]) -> Tensor:
        """Hidden states (B, T, M, D); `layout` is that of the clip, `VideoEncoder.layout`."""
        position_BTND = self.positions(*layout).expand(len(visible_BTVD), -1, -1, -1)
        return self.transformer(self.mask_tokens(self.project(visible_BTVD), position_BTND, mask))
