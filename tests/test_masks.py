"""A tube mask splits the patches in two, exactly, and belongs to the sample, not to the batch it comes in."""

import pytest
import torch

from mam2.config import UserError
from mam2.masks import TubeMask, put, take


def test_visible_and_masked_partition_the_patches() -> None:
    mask = TubeMask()(196, sample_B=torch.arange(5), seed=0)
    assert mask.visible_BV.shape == (5, 49)
    assert mask.masked_BM.shape == (5, 147)
    assert mask.visible_BV.dtype == mask.masked_BM.dtype == torch.int64
    both = torch.cat([mask.visible_BV, mask.masked_BM], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(196).expand(5, -1))
    for positions in (mask.visible_BV, mask.masked_BM):
        assert (positions.diff(dim=1) > 0).all()


@pytest.mark.parametrize(
    ("ratio", "num_patches", "num_masked"), [(0.75, 16, 12), (0.9, 196, 176), (0.5, 9, 4), (0.6, 64, 38)]
)
def test_counts_are_exact(ratio: float, num_patches: int, num_masked: int) -> None:
    mask = TubeMask(ratio=ratio)(num_patches, sample_B=torch.arange(3), seed=1)
    assert mask.masked_BM.shape == (3, num_masked)
    assert mask.visible_BV.shape == (3, num_patches - num_masked)


def test_a_sample_has_the_same_mask_in_every_batch() -> None:
    make = TubeMask()
    whole = make(64, sample_B=torch.arange(100, 108), seed=3)
    for part in (torch.tensor([105]), torch.tensor([107, 100, 103])):
        rows = part - 100
        mask = make(64, sample_B=part, seed=3)
        assert torch.equal(mask.masked_BM, whole.masked_BM[rows])
        assert torch.equal(mask.visible_BV, whole.visible_BV[rows])


def test_masks_leave_the_global_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    TubeMask()(64, sample_B=torch.arange(4), seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_masks_differ_between_samples_and_seeds() -> None:
    make, samples = TubeMask(), torch.arange(8)
    first, second = make(64, sample_B=samples, seed=0), make(64, sample_B=samples, seed=1)
    rows = {tuple(row) for mask in (first, second) for row in mask.masked_BM.tolist()}
    assert len(rows) == 16


def test_every_position_is_masked_equally_often() -> None:
    num_samples, num_patches = 2000, 16
    mask = TubeMask()(num_patches, sample_B=torch.arange(num_samples), seed=0)
    share = torch.bincount(mask.masked_BM.flatten(), minlength=num_patches) / num_samples
    # Five standard deviations of a share of 0.75 over 2000 draws.
    torch.testing.assert_close(share, torch.full((num_patches,), 0.75), atol=0.05, rtol=0)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 75.0])
def test_impossible_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        TubeMask(ratio=ratio)


@pytest.mark.parametrize(("ratio", "num_patches"), [(0.75, 1), (0.95, 4), (0.1, 4)])
def test_frames_with_too_few_patches_are_refused(ratio: float, num_patches: int) -> None:
    with pytest.raises(UserError, match="both are needed"):
        TubeMask(ratio=ratio)(num_patches, sample_B=torch.tensor([0]), seed=0)


def test_take_picks_the_same_positions_in_every_frame() -> None:
    tokens_BTND = torch.arange(2 * 3 * 4).view(2, 3, 4, 1)
    taken = take(tokens_BTND, torch.tensor([[0, 3], [1, 2]]))
    assert taken[..., 0].tolist() == [[[0, 3], [4, 7], [8, 11]], [[13, 14], [17, 18], [21, 22]]]


def test_put_is_the_inverse_of_take() -> None:
    tokens_BTND = torch.randn(3, 4, 16, 5)
    mask = TubeMask()(16, sample_B=torch.arange(3), seed=0)
    halves = [put(take(tokens_BTND, p), p, 16) for p in (mask.visible_BV, mask.masked_BM)]
    assert torch.equal(halves[0] + halves[1], tokens_BTND)
    assert torch.equal(take(halves[0], mask.visible_BV), take(tokens_BTND, mask.visible_BV))
    assert not take(halves[0], mask.masked_BM).any()


def test_mask_moves_to_a_device() -> None:
    mask = TubeMask()(16, sample_B=torch.arange(2), seed=0).to(torch.device("meta"))
    assert mask.visible_BV.is_meta
    assert mask.masked_BM.is_meta
