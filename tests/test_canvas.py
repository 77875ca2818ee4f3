"""The canvas: patches as pixels, pages of rows of frames, and masks drawn on them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from mam2.pictures.canvas import (
    RED,
    FrameRow,
    Page,
    enlarge,
    frames_shown,
    keep_patches,
    page_of_rows,
    patch_mask,
    wrap_words,
    zoom_to,
)
from mam2.pictures.masks import mask_figure

GRID = (2, 4)
LABEL_WIDTH, TOP, GAP, LINE = 215, 19 + 12, 6, 19  # of a page without a title, its panels up to 150 high


def png(path: Path) -> np.ndarray:
    return (imread(path)[..., :3] * 255).round().astype(int)


def as_bytes(picture_CHW: torch.Tensor) -> np.ndarray:
    """(3, h, w) in [0, 1] as a picture's file holds it: (h, w, 3) of 0 to 255."""
    return (picture_CHW * 255).round().int().permute(1, 2, 0).numpy()


# --- pixels


def test_patches_lie_in_row_major_order_in_their_own_frame() -> None:
    mask = torch.zeros(3, 8).bool()
    mask[1, 6] = True
    pixels = patch_mask(mask, GRID, (16, 32))
    assert pixels.shape == (3, 1, 16, 32)
    assert pixels[1, 0, 8:16, 16:24].all()
    assert pixels.sum() == 64


def test_kept_and_filled_pixels_are_a_partition() -> None:
    generator = torch.Generator().manual_seed(0)
    clip, keep = torch.rand(3, 3, 16, 32, generator=generator), torch.rand(3, 8, generator=generator) < 0.5
    fill = torch.rand(16, 32, generator=generator)
    kept, kept_pixels = (
        keep_patches(clip, keep, GRID, fill=fill),
        patch_mask(keep, GRID, (16, 32)).expand_as(clip),
    )
    assert torch.equal(kept[kept_pixels], clip[kept_pixels])
    assert torch.equal(kept[~kept_pixels], fill.expand_as(clip)[~kept_pixels])
    assert (keep_patches(clip, keep, GRID, fill=0.5)[~kept_pixels] == 0.5).all()


@pytest.mark.parametrize(("size", "side", "zoom"), [((16, 32), 128, 8), ((224, 224), 128, 1), ((24, 20), 128, 7)])
def test_small_frames_grow_by_whole_pixels(size, side, zoom) -> None:
    clip = torch.rand(1, 3, *size)
    assert zoom_to(clip, side) == zoom
    large = enlarge(clip, zoom)
    assert min(large.shape[-2:]) >= side
    for offset in (0, zoom - 1):
        assert torch.equal(large[..., offset::zoom, offset::zoom], clip)


@pytest.mark.parametrize(
    ("num_frames", "max_frames", "expected"),
    [(3, 8, [0, 1, 2]), (16, 8, [0, 2, 4, 6, 8, 10, 12, 14]), (9, 1, [0]), (1, 8, [0])],
)
def test_frames_shown(num_frames, max_frames, expected) -> None:
    assert frames_shown(num_frames, max_frames) == expected


# --- pages


def test_a_page_holds_pictures_pixel_for_pixel_and_texts_where_asked(tmp_path) -> None:
    page, picture = Page(120, 80, text=1), torch.rand(3, 20, 30)
    page.paste(70, 10, picture)
    page.write(4, 50, "$words", bold=9)
    page.save(tmp_path / "new" / "page.png")
    shown = png(tmp_path / "new" / "page.png")
    assert shown.shape == (80, 120, 3)
    assert (shown[10:30, 70:100] == as_bytes(picture)).all()
    assert (shown == page.pixels().permute(1, 2, 0).numpy()).all()
    shown[10:30, 70:100] = 255
    dark_y, dark_x = (shown.min(axis=2) < 128).nonzero()
    assert 50 <= dark_y.min() < dark_y.max() < 70
    assert 4 <= dark_x.min() < dark_x.max() < 70


@pytest.mark.parametrize("words", ["Predicted pixels, normalised per patch", "same scale, 5.3 pixels; visible WWWW"])
@pytest.mark.parametrize("bold", [0, 8.6])
def test_wrapped_words_stay_within_their_width(words, bold) -> None:
    page = Page(400, 200, text=1)
    page.write(0, 0, wrap_words(words, 200, bold=bold), bold=bold)
    dark_x = (page.pixels().amin(dim=0) < 128).nonzero()[:, 1]
    assert 100 < dark_x.max() <= 200


def test_rows_stand_in_order_with_captions_below_and_the_legend_beside(tmp_path) -> None:
    first, second, legend = torch.rand(3, 3, 130, 140), torch.rand(2, 3, 130, 140), torch.rand(3, 40, 40)
    rows = [
        FrameRow(name="First", description="a description", frames_TCHW=first, captions=("one", "two", "three")),
        FrameRow(name="Second", description="another", frames_TCHW=second, legend_CHW=legend),
    ]
    page_of_rows(rows, [0, 2], title="", footer=[]).save(tmp_path / "page.png")
    shown, second_y = png(tmp_path / "page.png"), TOP + 130 + GAP + LINE
    assert shown.shape[1] == LABEL_WIDTH + 2 * (140 + GAP)
    captions = []
    for column, t in enumerate((0, 2)):
        x = LABEL_WIDTH + column * (140 + GAP)
        assert (shown[TOP : TOP + 130, x : x + 140] == as_bytes(first[t])).all()
        captions.append(shown[TOP + 130 : second_y, x : x + 140])
        assert captions[-1].min() < 160
    assert (captions[0] != captions[1]).any()  # "one" and "three"
    assert (shown[second_y : second_y + 130, LABEL_WIDTH : LABEL_WIDTH + 140] == as_bytes(second[0])).all()
    absent = shown[second_y : second_y + 130, LABEL_WIDTH + 140 + GAP : -GAP]
    assert (absent == 255).mean() > 0.9  # no frame there, but two lines that say why
    assert absent.min() < 160
    x, y = LABEL_WIDTH - 12 - 40, second_y + 45
    assert (shown[y : y + 40, x : x + 40] == as_bytes(legend)).all()


def test_the_mask_figure_tints_what_each_mask_masks_in_each_frame(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(4, 3, 16, 32, generator=generator)
    masks = {name: torch.rand(4, 8, generator=generator) < 0.6 for name in ("cube", "random")}
    mask_figure(masks, clip, GRID, tmp_path / "masks.png", title="a/b.mp4")
    shown, clip = png(tmp_path / "masks.png"), enlarge(clip, 8)
    tinted = 0.4 * clip + 0.6 * torch.tensor(to_rgb(RED))[:, None, None]
    for row, mask in enumerate([torch.zeros(4, 8).bool(), *masks.values()]):
        expected = torch.where(patch_mask(mask, GRID, (128, 256)), tinted, clip)
        for t in range(4):
            y, x = TOP + LINE + row * (128 + GAP), LABEL_WIDTH + t * (256 + GAP)
            assert (shown[y : y + 128, x : x + 256] == as_bytes(expected[t])).all(), (row, t)
