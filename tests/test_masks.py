"""A mask splits every frame's patches in two, exactly, and belongs to the sample, not to the batch it comes in."""

import pytest
import torch
from torch import Tensor

from mam2.config import UserError
from mam2.masks import MASKS, MaskConfig, put, take


def as_image(positions_TM: Tensor, grid: tuple[int, int]) -> Tensor:
    """bool (T, high, wide), True at the positions."""
    image = torch.zeros(len(positions_TM), grid[0] * grid[1], dtype=torch.bool)
    return image.scatter(1, positions_TM, True).unflatten(1, grid)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(
    ("ratio", "grid", "num_masked"),
    [(0.75, (14, 14), 147), (0.4, (14, 14), 78), (0.9, (14, 14), 176), (0.5, (3, 3), 4), (0.6, (4, 16), 38)],
)
def test_visible_and_masked_partition_the_patches(
    kind: str, ratio: float, grid: tuple[int, int], num_masked: int
) -> None:
    mask = MaskConfig(kind=kind, ratio=ratio)(6, grid, sample_B=torch.arange(9), seed=0)
    num_patches = grid[0] * grid[1]
    assert mask.masked_BTM.shape == (9, 6, num_masked)
    assert mask.visible_BTV.shape == (9, 6, num_patches - num_masked)
    assert mask.visible_BTV.dtype == mask.masked_BTM.dtype == torch.int64
    both = torch.cat([mask.visible_BTV, mask.masked_BTM], dim=2).sort(dim=2).values
    assert torch.equal(both, torch.arange(num_patches).expand(9, 6, -1))
    for positions in (mask.visible_BTV, mask.masked_BTM):
        assert (positions.diff(dim=2) > 0).all()


def test_tube_and_cube_are_the_same_in_all_frames_and_random_is_not() -> None:
    for kind, same in (("tube", True), ("cube", True), ("random", False)):
        mask = MaskConfig(kind=kind)(4, (8, 8), sample_B=torch.arange(3), seed=0)
        assert mask.same_in_all_frames() is same
        assert torch.equal(mask.visible_BTV[:, 0], mask.visible_BTV[:, 3]) is same


def test_a_cube_is_made_of_blocks() -> None:
    """A masked patch has more masked neighbours than in a tube mask of the same ratio."""

    def neighbours(kind: str) -> float:
        mask = MaskConfig(kind=kind, ratio=0.4)(1, (14, 14), sample_B=torch.arange(200), seed=0)
        image = as_image(mask.masked_BTM[:, 0], (14, 14))
        return (image[:, 1:] & image[:, :-1]).sum().item() / image[:, 1:].sum().item()

    assert neighbours("tube") == pytest.approx(0.4, abs=0.02)
    assert neighbours("cube") > 0.75


def test_the_blocks_of_a_cube_are_as_beits() -> None:
    """Of about 16 patches, with aspects from 0.3 to 1 / 0.3: with 14 to mask, the first block alone is enough."""
    mask = MaskConfig(kind="cube", ratio=14 / 196)(1, (14, 14), sample_B=torch.arange(300), seed=0)
    images = as_image(mask.masked_BTM[:, 0], (14, 14))
    sizes = {(image.any(1).sum().item(), image.any(0).sum().item()) for image in images}
    assert sizes >= {(2, 7), (7, 2), (4, 4)}
    assert min(min(size) for size in sizes) >= 2


@pytest.mark.parametrize("kind", MASKS)
def test_a_sample_has_the_same_mask_in_every_batch(kind: str) -> None:
    make = MaskConfig(kind=kind)
    whole = make(3, (8, 8), sample_B=torch.arange(100, 108), seed=3)
    for part in (torch.tensor([105]), torch.tensor([107, 100, 103])):
        rows = part - 100
        mask = make(3, (8, 8), sample_B=part, seed=3)
        assert torch.equal(mask.masked_BTM, whole.masked_BTM[rows])
        assert torch.equal(mask.visible_BTV, whole.visible_BTV[rows])


@pytest.mark.parametrize("kind", MASKS)
def test_masks_leave_the_global_random_numbers_alone(kind: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    MaskConfig(kind=kind)(3, (8, 8), sample_B=torch.arange(4), seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", MASKS)
def test_masks_differ_between_samples_and_seeds(kind: str) -> None:
    make, samples = MaskConfig(kind=kind), torch.arange(8)
    first, second = (make(1, (8, 8), sample_B=samples, seed=seed) for seed in (0, 1))
    rows = {tuple(row) for mask in (first, second) for row in mask.masked_BTM[:, 0].tolist()}
    assert len(rows) == 16 or kind == "long_range"  # a block of 70 % has few places
    assert len(rows) > 8


@pytest.mark.parametrize("kind", ["tube", "random"])
def test_every_position_is_masked_equally_often(kind: str) -> None:
    mask = MaskConfig(kind=kind)(1, (4, 4), sample_B=torch.arange(2000), seed=0)
    share = torch.bincount(mask.masked_BTM.flatten(), minlength=16) / 2000
    # Five standard deviations of a share of 0.75 over 2000 draws.
    torch.testing.assert_close(share, torch.full((16,), 0.75), atol=0.05, rtol=0)


def test_cubes_lie_anywhere() -> None:
    """No position is left out, no side of the frame preferred."""
    mask = MaskConfig(kind="cube", ratio=0.4)(1, (14, 14), sample_B=torch.arange(2000), seed=0)
    share = (torch.bincount(mask.masked_BTM.flatten(), minlength=196) / 2000).view(14, 14)
    assert share.min() > 0.02  # corners lie in few blocks
    torch.testing.assert_close(share, share.flip(1), atol=0.08, rtol=0)
    torch.testing.assert_close(share, share.T, atol=0.08, rtol=0)


CUBES = """
.########### .......####.
.########### .......##...
........#### ...###......
......###### ...########.
......###### ...########.
...######### ..#########.
...#........ ..#########.
............ ..#####.....
"""


def test_the_masks_of_a_seed_stay_what_they_are() -> None:
    """Or else a run that goes on under a later version, or that is repeated, sees others."""
    cubes = MaskConfig(kind="cube", ratio=0.5)(2, (8, 12), sample_B=torch.tensor([0, 202]), seed=0)
    for column in range(2):
        rows = [line.split()[column] for line in CUBES.strip().splitlines()]
        image = as_image(cubes.masked_BTM[column], (8, 12))[1]
        assert ["".join(".#"[int(cell)] for cell in row) for row in image] == rows
    tubes = MaskConfig(ratio=0.5, predicted=0.5, aligned=0.5)(2, (4, 4), sample_B=torch.tensor([0, 1]), seed=0)
    assert tubes.masked_BTM[:, 1].tolist() == [[3, 9, 12, 14], [2, 6, 13, 14]]
    assert tubes.aligned_BA.tolist() == [[0, 2], [2, 3]]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 75.0])
def test_impossible_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=r"^mask\.ratio .*accepted: above 0, below 1"):
        MaskConfig(ratio=ratio)


def test_a_misspelt_kind_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean tube"):
        MaskConfig(kind="tub")


@pytest.mark.parametrize(("ratio", "grid"), [(0.75, (1, 1)), (0.95, (2, 2)), (0.1, (2, 2))])
def test_frames_with_too_few_patches_are_refused(ratio: float, grid: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="both are needed"):
        MaskConfig(ratio=ratio)(2, grid, sample_B=torch.tensor([0]), seed=0)


def test_a_mask_of_ones_own_must_mask_as_many_in_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASKS, "mine", lambda frames, grid, num, generator: torch.ones(frames, 16, dtype=torch.bool))
    with pytest.raises(UserError, match="exactly 12"):
        MaskConfig(kind="mine")(2, (4, 4), sample_B=torch.tensor([0]), seed=0)


def test_take_picks_each_frames_positions() -> None:
    tokens_BTND = torch.arange(2 * 3 * 4).view(2, 3, 4, 1)
    same = torch.tensor([[0, 3], [1, 2]])[:, None].expand(2, 3, 2)
    expected = [[[0, 3], [4, 7], [8, 11]], [[13, 14], [17, 18], [21, 22]]]
    assert take(tokens_BTND, same)[..., 0].tolist() == expected
    other = torch.tensor([[[0], [1], [2]]])
    assert take(tokens_BTND[:1], other)[..., 0].tolist() == [[[0], [5], [10]]]


@pytest.mark.parametrize("kind", MASKS)
def test_put_is_the_inverse_of_take(kind: str) -> None:
    tokens_BTND = torch.randn(3, 4, 16, 5)
    mask = MaskConfig(kind=kind)(4, (4, 4), sample_B=torch.arange(3), seed=0)
    halves = [put(take(tokens_BTND, p), p, 16) for p in (mask.visible_BTV, mask.masked_BTM)]
    assert torch.equal(halves[0] + halves[1], tokens_BTND)
    assert torch.equal(take(halves[0], mask.visible_BTV), take(tokens_BTND, mask.visible_BTV))
    assert not take(halves[0], mask.masked_BTM).any()


def test_mask_moves_to_a_device() -> None:
    mask = MaskConfig(aligned=0.5)(2, (4, 4), sample_B=torch.arange(2), seed=0)
    moved, same = mask.to(torch.device("meta")), mask.to(torch.device("cpu"))
    for name in ("visible_BTV", "masked_BTM", "aligned_BA"):
        assert getattr(moved, name).is_meta
        assert torch.equal(getattr(same, name), getattr(mask, name))
    assert MaskConfig()(2, (4, 4), sample_B=torch.arange(2), seed=0).to(torch.device("cpu")).aligned_BA is None


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_gives_a_truth_value_for_each_patch(kind: str) -> None:
    masked_TN = MASKS[kind](3, (4, 5), 6, torch.Generator().manual_seed(0))
    assert (masked_TN.dtype, masked_TN.shape) == (torch.bool, (3, 20))
    assert masked_TN.sum(dim=1).tolist() == [6, 6, 6]


@pytest.mark.parametrize("kind", MASKS)
def test_a_share_of_the_masked_patches_is_predicted_and_a_share_of_those_aligned(kind: str) -> None:
    of = {"num_frames": 4, "grid": (8, 8), "sample_B": torch.arange(5), "seed": 0}
    whole, some = MaskConfig(kind=kind)(**of), MaskConfig(kind=kind, predicted=0.5, aligned=0.25)(**of)
    assert torch.equal(some.visible_BTV, whole.visible_BTV)
    assert some.masked_BTM.shape == (5, 4, 24)  # of 48
    assert some.aligned_BA.shape == (5, 6)
    assert (some.masked_BTM.diff(dim=2) > 0).all()
    assert (some.aligned_BA.diff(dim=1) > 0).all()
    assert some.same_in_all_frames() is whole.same_in_all_frames()
    for clip in range(5):
        for frame in range(4):
            assert set(some.masked_BTM[clip, frame].tolist()) < set(whole.masked_BTM[clip, frame].tolist())
    assert len({tuple(row.tolist()) for row in some.aligned_BA}) > 1  # another draw for every clip
    x_BTMD = torch.arange(5 * 4 * 24).view(5, 4, 24, 1)
    for clip in range(5):
        assert torch.equal(some.aligned(x_BTMD)[clip], x_BTMD[clip][:, some.aligned_BA[clip]])
    assert torch.equal(whole.aligned(x_BTMD), x_BTMD)


def test_one_patch_at_least_is_predicted_and_aligned() -> None:
    mask = MaskConfig(predicted=0.01, aligned=0.01)(2, (4, 4), sample_B=torch.arange(3), seed=0)
    assert (mask.masked_BTM.shape, mask.aligned_BA.shape) == ((3, 2, 1), (3, 1))
    mask = MaskConfig(aligned=0.01)(2, (4, 4), sample_B=torch.arange(3), seed=0)
    assert (mask.masked_BTM.shape, mask.aligned_BA.shape) == ((3, 2, 12), (3, 1))
    assert MaskConfig(ratio=0.25)(2, (2, 2), sample_B=torch.arange(3), seed=0).masked_BTM.shape == (3, 2, 1)


@pytest.mark.parametrize("shares", [{"predicted": 0.0}, {"predicted": 1.5}, {"aligned": 0.0}])
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(UserError, match="accepted: above 0, at most 1"):
        MaskConfig(**shares)
