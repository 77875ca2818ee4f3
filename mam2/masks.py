"""Masks: tube, cube and random ones (Sec. 2.1, App. E, Table 1d); rivals' blocks, and masks guided by motion.

A mask depends on the number of its sample in the run: neither the number of GPUs nor an interruption changes it.
To add a kind: one function and one line in MASKS (docs/add_a_mask.md).

B clips, T frames, N patches per frame, V visible and M masked ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Annotated

import torch
from annotated_types import Gt, Le, Lt
from torch import Generator, Tensor

from mam2.config import UserError, check, did_you_mean, is_plug_in, load_plug_in, seed_of
from mam2.device import send


@dataclass(frozen=True)
class Mask:
    """Visible and masked patch positions of a batch, the same number in every frame.

    Attributes:
        visible_BTV: int64 (B, T, V), in each frame the sorted positions in [0, N) that the encoder sees.
        masked_BTM: int64 (B, T, M), the sorted other positions, V + M = N; or those of them that are predicted.
        aligned_BA: int64 (B, A), indices of the aligned ones among the M (Eq. 1); None: all.
        second: another mask of the same clips, predicted separately (V-JEPA); None: one mask.
    """

    visible_BTV: Tensor
    masked_BTM: Tensor
    aligned_BA: Tensor | None = None
    second: Mask | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Mask:
        """The mask with all its tensors changed."""
        aligned_BA = None if self.aligned_BA is None else change(self.aligned_BA)
        second = None if self.second is None else self.second.map(change)
        return Mask(change(self.visible_BTV), change(self.masked_BTM), aligned_BA, second)

    def to(self, device: torch.device) -> Mask:
        """The same mask on another device."""
        return self.map(lambda x: send(x, device))

    def all(self) -> tuple[Mask, ...]:
        """The masks of the clips, one or two: a method averages its loss over them."""
        return (self,) if self.second is None else (self, self.second)

    @property
    def aligned_BTA(self) -> Tensor:
        """Positions of the aligned patches, int64 (B, T, A)."""
        return self.aligned(self.masked_BTM[..., None])[..., 0]

    def aligned(self, x_BTMD: Tensor) -> Tensor:
        """The tokens (B, T, A, D) of the aligned patches, from those of all masked patches (B, T, M, D)."""
        if self.aligned_BA is None:
            return x_BTMD
        return take(x_BTMD, self.aligned_BA[:, None].expand(-1, x_BTMD.shape[1], -1))

    def same_in_all_frames(self) -> bool:
        """True if a patch that is masked in one frame of a clip is masked in all, as factorised attention needs."""
        return bool((self.masked_BTM == self.masked_BTM[:, :1]).all())


def tube(num_frames: int, grid: tuple[int, int], num_masked: int, generator: Generator) -> Tensor:
    """Random positions, the same in all frames: bool (T, N), True where masked."""
    masked_N = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    masked_N[torch.randperm(len(masked_N), generator=generator)[:num_masked]] = True
    return masked_N.expand(num_frames, -1)


def cube(num_frames: int, grid: tuple[int, int], num_masked: int, generator: Generator) -> Tensor:
    """Blocks of at least 16 patches, the same in all frames: bool (T, N), True where masked.

    Paper: "block-wise" masks, whose share varies from clip to clip in BEiT's; here: exactly `num_masked` patches,
    for which the last block is cut short (docs/decisions.md).
    """
    masked = torch.zeros(grid, dtype=torch.bool)
    while (short := num_masked - int(masked.sum())) > 0:
        draw = torch.rand(4, generator=generator).tolist()
        area = 16 + draw[0] * max(0, short - 16)
        aspect = 0.3 ** (1 - 2 * draw[1])  # from 0.3 to 1 / 0.3, upright as often as lying
        _mask_block(masked, area, aspect, (draw[2], draw[3]), at_most=short)
    return masked.flatten().expand(num_frames, -1)


def _mask_block(masked: Tensor, area: float, aspect: float, place: tuple[float, float], *, at_most: int) -> None:
    """Masks a block of `area` patches, `aspect` times as high as wide, at a place in [0, 1)²; `at_most` new ones."""
    high, wide = masked.shape
    rows = min(high, max(1, round(math.sqrt(area * aspect))))
    columns = min(wide, max(1, round(math.sqrt(area / aspect))))
    top = int(place[0] * (high - rows + 1))
    left = int(place[1] * (wide - columns + 1))
    block = torch.zeros_like(masked)
    block[top : top + rows, left : left + columns] = True
    masked.view(-1)[(block & ~masked).flatten().nonzero()[:at_most, 0]] = True


def short_range(num_frames: int, grid: tuple[int, int], num_masked: int, generator: Generator) -> Tensor:
    """V-JEPA's short-range masks: some 8 blocks of 15 % of a frame, the same in all frames: bool (T, N)."""
    return _blocks(num_frames, grid, num_masked, generator, share=0.15)


def long_range(num_frames: int, grid: tuple[int, int], num_masked: int, generator: Generator) -> Tensor:
    """V-JEPA's long-range masks: some 2 blocks of 70 % of a frame, the same in all frames: bool (T, N)."""
    return _blocks(num_frames, grid, num_masked, generator, share=0.7)


def _blocks(num_frames: int, grid: tuple[int, int], num_masked: int, generator: Generator, *, share: float) -> Tensor:
    """Blocks of one size until exactly `num_masked` patches are masked, the last one cut short.

    V-JEPA draws a fixed number of blocks and cuts both parts to the shortest of the batch, so that a clip's mask
    depends on the other clips of its batch; here it does not.
    """
    masked = torch.zeros(grid, dtype=torch.bool)
    aspect = 0.75 + 0.75 * torch.rand(1, generator=generator).item()
    while (short := num_masked - int(masked.sum())) > 0:
        top, left = torch.rand(2, generator=generator).tolist()
        _mask_block(masked, share * masked.numel(), aspect, (top, left), at_most=short)
    return masked.flatten().expand(num_frames, -1)


def guided(motion_N: Tensor, num_frames: int, num_masked: int, generator: Generator) -> Tensor:
    """Tubes guided by motion (TrackMAE): bool (T, N), True where masked.

    The patches are split at the median of their motion, ties at random; half of the visible ones are drawn from each
    side.
    """
    num_patches = len(motion_N)
    shuffled = torch.randperm(num_patches, generator=generator)
    ranked = shuffled[motion_N[shuffled].argsort(stable=True)]
    num_visible = num_patches - num_masked
    masked_N = torch.ones(num_patches, dtype=torch.bool)
    for side, count in zip(
        ranked.tensor_split([num_patches // 2]), (num_visible // 2, num_visible - num_visible // 2), strict=True
    ):
        masked_N[side[torch.randperm(len(side), generator=generator)[:count]]] = False
    return masked_N.expand(num_frames, -1)


def random(num_frames: int, grid: tuple[int, int], num_masked: int, generator: Generator) -> Tensor:
    """Random positions, drawn again for every frame: bool (T, N), True where masked.

    As ST-MAE's space-time agnostic masks, but with the same count in every frame. Needs joint attention.
    """
    return torch.cat([tube(1, grid, num_masked, generator) for _ in range(num_frames)])


MASKS: dict[str, Callable[[int, tuple[int, int], int, Generator], Tensor]] = {
    "tube": tube,
    "cube": cube,
    "random": random,
    "short_range": short_range,
    "long_range": long_range,
}
GUIDED = "motion"
"""The kind of mask that needs the clip's motion."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Masking of patches; the defaults are the paper's.

    Attributes:
        kind: "tube", "cube", "random" (in space and time), "short_range" and "long_range" (V-JEPA's blocks), or
            "motion" (tubes; half of the visible ones where the clip moves more than its median, by `targets.motion`);
            or an import path, `package.module:name`, of a function.
        ratio: share of each frame's patches that is masked (the paper: 0.75, which is 147 of 196).
        predicted: share of the masked patches that is regressed and predicted, drawn at random (the paper: all); the
            others are left out, as in VideoMAE V2's dual masking.
        aligned: share of the predicted patches that is aligned, drawn at random (the paper: all).
        second_kind: kind of a second mask of each clip, over which the loss is averaged (V-JEPA); "" for one mask.
        second_ratio: share that the second mask masks.
    """

    kind: str = "tube"
    ratio: Annotated[float, Gt(0), Lt(1)] = 0.75
    predicted: Annotated[float, Gt(0), Le(1)] = 1.0
    aligned: Annotated[float, Gt(0), Le(1)] = 1.0
    second_kind: str = ""
    second_ratio: Annotated[float, Gt(0), Lt(1)] = 0.75

    def __post_init__(self) -> None:
        check(self, "mask.")
        for name, kind in (("kind", self.kind), ("second_kind", self.second_kind or self.kind)):
            if is_plug_in(kind):
                load_plug_in(kind, FunctionType)
            elif kind not in (kinds := [*MASKS, GUIDED]):
                raise UserError(f"mask.{name} is {kind!r}. {did_you_mean(kind, kinds)}")

    @property
    def is_guided(self) -> bool:
        """True if the masks depend on the motion of the clip."""
        return GUIDED in (self.kind, self.second_kind)

    def __call__(
        self, num_frames: int, grid: tuple[int, int], *, sample_B: Tensor, seed: int, motion_BN: Tensor | None = None
    ) -> Mask:
        """Draws the masks of a batch.

        Args:
            num_frames: T.
            grid: patches (high, wide) in a frame.
            sample_B: int64 (B,), number of each clip in the whole run.
            seed: seed of the run.
            motion_BN: motion of each patch position, for guided masks; None: equal everywhere.

        Raises:
            UserError: the frame has so few patches that none would be masked, or none visible.
        """
        if not self.second_kind:
            return self._mask(num_frames, grid, sample_B, seed, motion_BN)
        first = replace(self, second_kind="")(num_frames, grid, sample_B=sample_B, seed=seed, motion_BN=motion_BN)
        other = replace(self, second_kind="", kind=self.second_kind, ratio=self.second_ratio)
        second = other(num_frames, grid, sample_B=sample_B, seed=seed_of(seed, 1), motion_BN=motion_BN)
        return replace(first, second=second)

    def _mask(
        self, num_frames: int, grid: tuple[int, int], sample_B: Tensor, seed: int, motion_BN: Tensor | None
    ) -> Mask:
        num_patches = grid[0] * grid[1]
        num_masked = round(self.ratio * num_patches)
        if not 0 < num_masked < num_patches:
            raise UserError(
                f"A mask of {self.ratio:.0%} of {num_patches} patches leaves {num_masked} masked and "
                f"{num_patches - num_masked} visible; both are needed. Use a larger image or another mask ratio."
            )
        num_predicted = max(1, round(self.predicted * num_masked))
        num_aligned = max(1, round(self.aligned * num_predicted))
        clips = list[Tensor]()
        predicted = list[Tensor]()
        aligned = list[Tensor]()
        motion_BN = torch.zeros(len(sample_B), num_patches) if motion_BN is None else motion_BN.cpu()
        for sample, motion_N in zip(sample_B.tolist(), motion_BN, strict=True):
            generator = Generator().manual_seed(seed_of(seed, sample, 0x3A5C))
            if self.kind == GUIDED:
                clips.append(guided(motion_N, num_frames, num_masked, generator))
            else:
                draw = load_plug_in(self.kind, FunctionType) if is_plug_in(self.kind) else MASKS[self.kind]
                clips.append(draw(num_frames, grid, num_masked, generator))
            predicted.append(torch.randperm(num_masked, generator=generator)[:num_predicted].sort().values)
            aligned.append(torch.randperm(num_predicted, generator=generator)[:num_aligned].sort().values)
        masked_BTN = torch.stack(clips)
        if (masked_BTN.sum(dim=2) != num_masked).any():
            raise UserError(f"The mask {self.kind!r} must mask exactly {num_masked} patches in every frame.")
        order_BTN = masked_BTN.argsort(dim=2, stable=True)  # visible ones first, each part sorted
        predicted_BTM = torch.stack(predicted)[:, None].expand(-1, num_frames, -1)
        masked_BTM = order_BTN[..., -num_masked:].gather(2, predicted_BTM)
        return Mask(order_BTN[..., :-num_masked], masked_BTM, None if self.aligned == 1 else torch.stack(aligned))


def take(x_BTND: Tensor, positions_BTV: Tensor) -> Tensor:
    """The tokens (B, T, V, D) at the given positions of each frame of (B, T, N, D)."""
    return x_BTND.gather(2, positions_BTV[..., None].expand(-1, -1, -1, x_BTND.shape[3]))


def put(x_BTVD: Tensor, positions_BTV: Tensor, num_patches: int) -> Tensor:
    """The inverse of `take`: (B, T, N, D) with the tokens at their positions and zeros elsewhere."""
    num_clips, num_frames, _, width = x_BTVD.shape
    full = x_BTVD.new_zeros(num_clips, num_frames, num_patches, width)
    return full.scatter(2, positions_BTV[..., None].expand_as(x_BTVD), x_BTVD)
