"""Positions: separable learnable ones, e^t and e^s (Sec. 2.1), and those of published encoders.

T frames, N patches per frame, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PositionKind = Literal["separable", "sequence", "full", "rotary", "rotary_space"]
"""Learned for time and for space (the paper); fixed sines and cosines of a token's place in the sequence of all
tokens, frame after frame (VideoMAE); learned for each place in the clip; rotary: queries and keys turn by angles for
frame, row and column (V-JEPA 2); learned for time and rotary for row and column (DINOv3)."""

SPACE_BASE = 100.0
"""Ratio of the longest period, which is left out, to the shortest of rotary positions in space; the shortest is half
a picture (DINOv3)."""


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
        return time_at(self.time_TD, num_frames)[:, None] + self.space(grid)[None]

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
        return table_at(self.table_SD, self.trained, (num_frames, *grid))


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
        return table_at(self.table_TND.flatten(0, 1), (len(self.table_TND), *self.grid), (num_frames, *grid))


class RotaryPositions(nn.Module):
    """Angles by which queries and keys turn: frame, row and column have a third of a head's channels each (V-JEPA 2).

    The channels that three equal even parts leave over stay as they are.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width

    def forward(self, num_frames: int, grid: tuple[int, int]) -> Tensor:
        """Zeros (T, N, 1): nothing is added to tokens."""
        return torch.zeros(num_frames, grid[0] * grid[1], 1)

    def angles(self, patch_BTV: Tensor, grid: tuple[int, int]) -> Tensor:
        """The angle of each channel (B, T, V, D/heads) for patches of each frame, int64 (B, T, V)."""
        part = 2 * (self.head_width // 3 // 2)
        steps = torch.arange(part // 2, device=patch_BTV.device) / (part / 2)
        frame_BTV = torch.arange(patch_BTV.shape[1], device=patch_BTV.device)[:, None].expand_as(patch_BTV)
        angles = [
            axis[..., None] * torch.exp(-math.log(10_000) * steps)
            for axis in (frame_BTV, patch_BTV // grid[1], patch_BTV % grid[1])
        ]
        # V-JEPA 2: the angles are set side by side twice, while neighbouring channels form a pair; so it was trained.
        angle_BTVd = torch.cat([angle for axis in angles for angle in (axis, axis)], dim=-1)
        return F.pad(angle_BTVd, (0, self.head_width - 3 * part))


class SpaceRotaryPositions(nn.Module):
    """Angles by which queries and keys turn in space: row and column have half of a head's channels each (DINOv3); and
    a learned embedding per frame, which is added.

    Rows and columns count from -1 at one edge of the picture to 1 at the other: no grid needs interpolation.
    """

    def __init__(self, num_frames: int, width: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.time_TD = nn.Parameter(torch.empty(num_frames, width))

    def reset(self, *, local: bool = False) -> None:
        """Fills the table as separable positions begin."""
        waves = local_sine_cosine if local else sine_cosine
        num_frames, width = self.time_TD.shape
        with torch.no_grad():
            self.time_TD.copy_(waves(torch.arange(num_frames), width))

    def forward(self, num_frames: int, grid: tuple[int, int]) -> Tensor:
        """Positions (T, N, D) that are added, for any number of frames: the same for all patches of a frame."""
        return time_at(self.time_TD, num_frames)[:, None].expand(-1, grid[0] * grid[1], -1)

    def angles(self, patch_BTV: Tensor, grid: tuple[int, int]) -> Tensor:
        """The angle of each channel (B, T, V, D/heads) for patches of each frame, int64 (B, T, V)."""
        part = self.head_width // 4
        frequencies = math.tau * SPACE_BASE ** -(torch.arange(part, device=patch_BTV.device) / part)
        places = (patch_BTV // grid[1] + 0.5) / grid[0], (patch_BTV % grid[1] + 0.5) / grid[1]
        angle_BTVp = torch.cat([(2 * place[..., None] - 1) * frequencies for place in places], dim=-1)
        return angle_BTVp.repeat_interleave(2, dim=-1)  # both channels of a pair


AddedPositions = Positions | SequencePositions | FullPositions


def make_positions(kind: PositionKind, num_frames: int, grid: tuple[int, int], width: int) -> AddedPositions:
    """Positions that are added to tokens: `positions(num_frames, grid) -> (T, N, D)`.

    With a rotary encoder, the other parts use separable positions.
    """
    kinds: dict[PositionKind, type[AddedPositions]] = {"sequence": SequencePositions, "full": FullPositions}
    return kinds.get(kind, Positions)(num_frames, grid, width)


def is_interpolated(kind: PositionKind, *, frames: bool, grid: bool) -> bool:
    """True if clips of another number of `frames`, or of another `grid`, need interpolated positions."""
    return (frames and kind != "rotary") or (grid and kind not in ("rotary", "rotary_space"))


def time_at(time_TD: Tensor, num_frames: int) -> Tensor:
    """One embedding per frame (T, D), interpolated where the number is not the trained one."""
    if num_frames == len(time_TD):
        return time_TD
    return F.interpolate(time_TD.T[None], size=num_frames, mode="linear")[0].T


def table_at(table_SD: Tensor, trained: tuple[int, int, int], wanted: tuple[int, int, int]) -> Tensor:
    """Embeddings (T, N, D) of all places of a clip from those of the trained (frames, rows, columns)."""
    if wanted == trained:
        return table_SD.unflatten(0, (wanted[0], -1))
    volume = table_SD.T.unflatten(1, trained)[None]
    return F.interpolate(volume, size=wanted, mode="trilinear")[0].flatten(2).permute(1, 2, 0)


def sine_cosine(places: Tensor, width: int, *, shortest: float = math.tau, longest: float = 1e4 * math.tau) -> Tensor:
    """Sine-cosine embedding (len(places), width) with wavelengths in equal ratios from `shortest`, included, to
    `longest`, excluded; `width` must be even."""
    half = width // 2
    places = places if places.is_floating_point() else places.float()
    steps = torch.arange(half, dtype=places.dtype, device=places.device) / half
    angles = places[:, None] * (math.tau / shortest) * torch.exp(-math.log(longest / shortest) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def local_sine_cosine(places: Tensor, width: int) -> Tensor:
    """Sine-cosine embedding with wavelengths from 2 to 16 places: neighbours differ in most channels.

    Two thirds of the usual wavelengths are so long that all places of a clip look the same.
    """
    return sine_cosine(places, width, shortest=2.0, longest=16.0)
