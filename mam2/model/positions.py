"""Positions: separable learnable ones, e^t and e^s (Sec. 2.1), and those of encoders that are published elsewhere.

T frames, N patches per frame, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.model.attention import Rotation

PositionKind = Literal["separable", "sequence", "full", "rotary"]
"""Learned, for time and for space (the paper); fixed sines and cosines of a token's place in the sequence of all
tokens, frame after frame (VideoMAE); learned, one for each place in the clip; or none that is added: queries and keys
turn by angles for frame, row and column (V-JEPA 2)."""


class Positions(nn.Module):
    """Separable learnable positions: one embedding per frame plus one per patch (Sec. 2.1), shared by every part.

    Initialised with sines and cosines: from small random values, training stayed on a plateau for hundreds of steps
    (docs/log/learning.md).
    """

    def __init__(self, num_frames: int, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.grid = grid
        self.time_TD = nn.Parameter(torch.empty(num_frames, width))
        self.space_ND = nn.Parameter(torch.empty(grid[0] * grid[1], width))

    def reset(self, *, local: bool = False) -> None:
        """Fills both tables with sines and cosines; `local` ones have wavelengths of the size of a clip."""
        waves = local_sine_cosine if local else sine_cosine
        width = self.time_TD.shape[1]
        rows, columns = torch.meshgrid(torch.arange(self.grid[0]), torch.arange(self.grid[1]), indexing="ij")
        with torch.no_grad():
            self.time_TD.copy_(waves(torch.arange(len(self.time_TD)), width))
            halves = [waves(axis.flatten(), width // 2) for axis in (rows, columns)]
            self.space_ND.copy_(torch.cat(halves, dim=1))

    def forward(self, num_frames: int, grid: tuple[int, int]) -> Tensor:
        """Positions (T, N, D) for any number of frames and any grid (patches high, wide)."""
        return self.time(num_frames)[:, None] + self.space(grid)[None]

    def time(self, num_frames: int) -> Tensor:
        """One embedding per frame (T, D), interpolated where the number is not the trained one."""
        if num_frames == len(self.time_TD):
            return self.time_TD
        return F.interpolate(self.time_TD.T[None], size=num_frames, mode="linear")[0].T

    def space(self, grid: tuple[int, int]) -> Tensor:
        """One embedding per patch (N, D), interpolated where the grid is not the trained one."""
        if grid == self.grid:
            return self.space_ND
        image = self.space_ND.T.unflatten(1, self.grid)[None]
        return F.interpolate(image, size=grid, mode="bicubic").flatten(2)[0].T


class SequencePositions(nn.Module):
    """Fixed sines and cosines of a token's place in the sequence of all tokens, frame after frame (VideoMAE)."""

    def __init__(self, num_frames: int, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.trained = (num_frames, *grid)
        self.table_SD: Tensor
        self.register_buffer("table_SD", torch.empty(math.prod(self.trained), width), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Fills the table: sines in the even channels, cosines in the odd ones."""
        num_places, width = self.table_SD.shape
        places = torch.arange(num_places, dtype=torch.float64, device=self.table_SD.device)  # float32 is 1e-4 off
        sine_SD, cosine_SD = sine_cosine(places, width).chunk(2, dim=1)
        self.table_SD.copy_(torch.stack([sine_SD, cosine_SD], dim=2).flatten(1))

    def forward(self, num_frames: int, grid: tuple[int, int]) -> Tensor:
        """Positions (T, N, D), interpolated where number and grid are not the trained ones."""
        shape = (num_frames, *grid)
        if shape == self.trained:
            return self.table_SD.unflatten(0, (num_frames, -1))
        volume = self.table_SD.T.unflatten(1, self.trained)[None]
        return F.interpolate(volume, size=shape, mode="trilinear")[0].flatten(2).permute(1, 2, 0)


class FullPositions(nn.Module):
    """A learned embedding for each place in a clip, frame by frame."""

    def __init__(self, num_frames: int, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.grid = grid
        self.table_TND = nn.Parameter(torch.empty(num_frames, grid[0] * grid[1], width))

    def reset(self, *, local: bool = False) -> None:
        """Fills the table as separable positions begin."""
        num_frames, _, width = self.table_TND.shape
        begin = Positions(num_frames, self.grid, width)
        begin.reset(local=local)
        with torch.no_grad():
            self.table_TND.copy_(begin(num_frames, self.grid))

    def forward(self, num_frames: int, grid: tuple[int, int]) -> Tensor:
        """Positions (T, N, D), interpolated where number and grid are not the trained ones."""
        if (num_frames, grid) == (len(self.table_TND), self.grid):
            return self.table_TND
        volume = self.table_TND.permute(2, 0, 1).unflatten(2, self.grid)[None]
        return F.interpolate(volume, size=(num_frames, *grid), mode="trilinear")[0].flatten(2).permute(1, 2, 0)


class RotaryPositions(nn.Module):
    """Angles by which queries and keys turn: frame, row and column have a third of a head's channels each (V-JEPA 2).

    The channels that three equal even parts leave over stay as they are.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width

    def forward(self, num_frames: int, grid: tuple[int, int]) -> Tensor:
        """Nothing that is added to tokens: zeros (T, N, 1)."""
        return torch.zeros(num_frames, grid[0] * grid[1], 1)

    def rotation(self, place_BS: Tensor, grid: tuple[int, int]) -> Rotation:
        """The rotation of tokens whose places in the clip, counted frame after frame, are int64 (B or 1, S)."""
        num_patches = grid[0] * grid[1]
        patch_BS = place_BS % num_patches
        part = 2 * (self.head_width // 3 // 2)
        steps = torch.arange(part // 2, device=place_BS.device) / (part / 2)
        angles = [
            axis[..., None] * torch.exp(-math.log(10_000) * steps)
            for axis in (place_BS // num_patches, patch_BS // grid[1], patch_BS % grid[1])
        ]
        # V-JEPA 2: the angles are set side by side twice, while neighbouring channels form a pair; so it was trained.
        angle_BSd = torch.cat([angle for axis in angles for angle in (axis, axis)], dim=-1)
        angle_BSd = F.pad(angle_BSd, (0, self.head_width - 3 * part))
        return Rotation(angle_BSd.cos()[:, None], angle_BSd.sin()[:, None])


AddedPositions = Positions | SequencePositions | FullPositions


def make_positions(kind: PositionKind, num_frames: int, grid: tuple[int, int], width: int) -> AddedPositions:
    """Positions of a kind, which are added to tokens: `positions(num_frames, grid) -> (T, N, D)`.

    Beside an encoder of rotary positions, other parts have separable ones.
    """
    kinds: dict[PositionKind, type[AddedPositions]] = {
        "separable": Positions,
        "sequence": SequencePositions,
        "full": FullPositions,
        "rotary": Positions,
    }
    return kinds[kind](num_frames, grid, width)


def sine_cosine(places: Tensor, width: int, *, shortest: float = math.tau, longest: float = 1e4 * math.tau) -> Tensor:
    """Sine-cosine embedding (len(places), width) with wavelengths in equal ratios from `shortest`, which is in, to
    `longest`, which is not; `width` must be even."""
    half = width // 2
    places = places if places.is_floating_point() else places.float()
    steps = torch.arange(half, dtype=places.dtype, device=places.device) / half
    angles = places[:, None] * (math.tau / shortest) * torch.exp(-math.log(longest / shortest) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def local_sine_cosine(places: Tensor, width: int) -> Tensor:
    """Sine-cosine embedding with wavelengths from 2 to 16 places: neighbours differ in most channels.

    Of the usual wavelengths, two thirds are so long that all places of a clip look the same.
    """
    return sine_cosine(places, width, shortest=2.0, longest=16.0)
