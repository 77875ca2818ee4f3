"""Which patches the encoder sees: tube masking (Sec. 2.1, App. E).

A mask is one set of patch positions for all frames of a clip. Its randomness depends on each sample's own number,
so that neither the number of GPUs nor an interruption changes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mam2.config import UserError, seed_of


@dataclass(frozen=True)
class Mask:
    """Visible and masked patch positions of a batch, the same in every frame.

    Attributes:
        visible_BV: int64 (B, V), sorted positions in [0, N) that the encoder sees.
        masked_BM: int64 (B, M), the sorted other positions; V + M = N.
    """

    visible_BV: Tensor
    masked_BM: Tensor

    def to(self, device: torch.device) -> Mask:
        """The same mask on another device."""
        return Mask(self.visible_BV.to(device), self.masked_BM.to(device))


@dataclass(frozen=True, kw_only=True)
class TubeMask:
    """Random tube masking: random positions, the same in all frames.

    Attributes:
        ratio: share of the patches that is masked (the paper: 0.75, which is 147 of 196).
    """

    ratio: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(f"mask ratio is {self.ratio}; it must lie between 0 and 1 (the paper's is 0.75).")

    def __call__(self, num_patches: int, *, sample_B: Tensor, seed: int) -> Mask:
        """Draws the masks of a batch.

        Args:
            num_patches: N, patches in a frame.
            sample_B: int64 (B,), each clip's number in the whole run.
            seed: the run's seed.

        Raises:
            UserError: the frame has so few patches that none would be masked, or none visible.
        """
        num_masked = round(self.ratio * num_patches)
        if not 0 < num_masked < num_patches:
            raise UserError(
                f"Masking {self.ratio:.0%} of {num_patches} patches leaves {num_masked} masked and "
                f"{num_patches - num_masked} visible; both are needed. Use a larger image or another mask ratio."
            )
        rows = []
        for sample in sample_B.tolist():
            generator = torch.Generator().manual_seed(seed_of(seed, sample, 0x3A5C))
            rows.append(torch.randperm(num_patches, generator=generator))
        order_BN = torch.stack(rows)
        return Mask(order_BN[:, num_masked:].sort(dim=1).values, order_BN[:, :num_masked].sort(dim=1).values)


def take(x_BTND: Tensor, positions_BV: Tensor) -> Tensor:
    """The tokens (B, T, V, D) at the given positions of every frame of (B, T, N, D)."""
    num_clips, num_frames, _, width = x_BTND.shape
    index = positions_BV[:, None, :, None].expand(num_clips, num_frames, positions_BV.shape[1], width)
    return x_BTND.gather(2, index)


def put(x_BTVD: Tensor, positions_BV: Tensor, num_patches: int) -> Tensor:
    """The inverse of `take`: (B, T, N, D) with the tokens at their positions and zeros elsewhere."""
    num_clips, num_frames, _, width = x_BTVD.shape
    full = x_BTVD.new_zeros(num_clips, num_frames, num_patches, width)
    return full.scatter(2, positions_BV[:, None, :, None].expand_as(x_BTVD), x_BTVD)
