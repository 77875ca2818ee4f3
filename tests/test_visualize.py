from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from mam2.config import UserError
from mam2.visualize import (
    Prediction,
    agreement_to_rgb,
    confusion_picture,
    contact_sheet,
    frames_shown,
    hatching,
    keep_patches,
    loss_curves,
    motion_scale,
    motion_to_rgb,
    paint_mask,
    patch_mask,
    sheet_rows,
    smooth,
)

GRID = (2, 4)
LABEL_WIDTH, TOP, GAP = 215, 2 * 19 + 12, 6  # of a sheet with a one-line title and panels up to 150 high


def fake(*, num_frames: int = 4, patch: int = 8, decoder: bool = True, seed: int = 0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    high, wide = GRID
    clip = torch.rand(num_frames, 3, high * patch, wide * patch, generator=generator)
    return Prediction(
        clip_TCHW=clip,
        masked_N=torch.tensor([1, 1, 0, 1, 1, 0, 1, 1]).bool(),
        grid=GRID,
        appearance_TCHW=torch.rand(clip.shape, generator=generator) if decoder else None,
        agreement_TN=torch.rand(num_frames, high * wide, generator=generator) < 0.5,
        motion_TCHW=torch.rand(clip[1:].shape, generator=generator) - 0.5,
        true_motion_TCHW=clip[1:] - clip[:-1],
    )


def png(path: Path) -> np.ndarray:
    return (imread(path)[..., :3] * 255).round().astype(int)


# --- pixels


def test_patches_lie_in_row_major_order():
    mask = patch_mask(torch.arange(8) == 6, GRID, (16, 32))
    assert mask[8:16, 16:24].all()
    assert mask.sum() == 64


def test_masked_patches_are_grey_and_visible_ones_untouched():
    p = fake()
    painted = paint_mask(p.clip_TCHW, p.masked_N, GRID)
    masked = patch_mask(p.masked_N, GRID, (16, 32)).expand_as(painted)
    assert (painted[masked] == 0.5).all()
    assert torch.equal(painted[~masked], p.clip_TCHW[~masked])


def test_kept_and_filled_pixels_are_a_partition():
    p, fill = fake(), hatching((16, 32))
    kept = keep_patches(p.clip_TCHW, p.masked_N, GRID, fill=fill)
    other = keep_patches(fill.expand_as(p.clip_TCHW), p.masked_N, GRID, fill=0.0)
    masked = patch_mask(p.masked_N, GRID, (16, 32)).expand_as(kept)
    assert torch.equal(kept[masked], p.clip_TCHW[masked])
    assert torch.equal(kept[~masked], fill.expand_as(kept)[~masked])
    assert (other[~masked] == 0).all()


def test_motion_colours_are_symmetrical_about_grey():
    motion = torch.tensor([-9.0, -0.2, -0.1, 0.0, 0.1, 0.2, 9.0])
    expected = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
    assert torch.allclose(motion_to_rgb(motion, 0.2), expected)


def test_the_motion_scale_looks_at_moving_pixels_only():
    motion = torch.zeros(3, 3, 64, 64)
    assert motion_scale(motion) == 0.02
    assert motion_scale(motion[:0]) == 0.02  # a clip of one frame
    motion[0, :, 3, 3:6] = torch.tensor([0.4, -0.4, 0.4])
    assert motion_scale(motion) == pytest.approx(0.4)
    motion = torch.full((1, 1, 20, 20), 0.1)
    motion[0, 0, 0, 0] = -1.0  # one wild pixel does not fade the rest
    assert motion_scale(motion) == pytest.approx(0.1)


def test_agreement_has_three_colours():
    masked = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]).bool()
    hit = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0]]).bool()
    picture = agreement_to_rgb(hit, masked, GRID, (16, 32))[0]
    red, blue = picture[0], picture[2]
    assert (blue[:8, :8] > red[:8, :8]).all()  # right
    assert (blue[:8, 8:16] < red[:8, 8:16]).all()  # wrong
    assert torch.equal(picture[:, :8, 16:24], hatching((16, 32))[:8, 16:24].expand(3, 8, 8))  # visible


@pytest.mark.parametrize(
    ("num_frames", "max_frames", "expected"),
    [(3, 8, [0, 1, 2]), (16, 8, [0, 2, 4, 6, 8, 10, 12, 14]), (9, 1, [0]), (1, 8, [0])],
)
def test_frames_shown(num_frames, max_frames, expected):
    assert frames_shown(num_frames, max_frames) == expected


# --- contact sheets


@pytest.mark.parametrize("decoder", [True, False])
def test_prediction_rows_never_hold_the_visible_input(decoder):
    p = fake(decoder=decoder)
    visible = ~patch_mask(p.masked_N, GRID, (16, 32))
    clip = torch.where(visible, 1 - p.clip_TCHW, p.clip_TCHW)
    leaky_motion = torch.where(visible, p.motion_TCHW + 0.3, p.motion_TCHW)
    leaky_appearance = None if p.appearance_TCHW is None else torch.where(visible, clip, p.appearance_TCHW)
    other = replace(p, clip_TCHW=clip, appearance_TCHW=leaky_appearance, motion_TCHW=leaky_motion)
    rows, others = sheet_rows(p, [0, 1, 2, 3], 2), sheet_rows(other, [0, 1, 2, 3], 2)
    same = [torch.equal(a[2], b[2]) for a, b in zip(rows, others, strict=True)]
    assert same == [False, False, True, True, True]
    assert [row[0] for row in rows[2:3]] == ["Predicted appearance" if decoder else "Predicted codes"]


def test_rows_show_the_frames_asked_for_with_their_own_motion():
    p = fake(num_frames=6)
    rows = sheet_rows(p, [1, 5], 1)
    scale = motion_scale(p.true_motion_TCHW)
    assert torch.equal(rows[0][2], p.clip_TCHW[[1, 5]])
    assert torch.equal(rows[3][2], motion_to_rgb(p.true_motion_TCHW[[1]], scale))  # frame 5 has no next one
    assert f"±{scale:.2f}" in rows[3][1]
    assert f"±{scale:.2f}" in rows[4][1]


def test_the_png_holds_the_rows_pixel_for_pixel(tmp_path):
    p = fake(num_frames=3)
    contact_sheet(p, tmp_path / "new" / "sheet.png", title="A title")
    picture = png(tmp_path / "new" / "sheet.png")
    height, width = 16 * 8, 32 * 8  # 16 x 32 enlarged eight times
    for row, (_, _, frames) in enumerate(sheet_rows(p, [0, 1, 2], 8)):
        y = TOP + row * (height + GAP) + (19 if row > 2 else 0)
        for column, frame in enumerate(frames):
            x = LABEL_WIDTH + column * (width + GAP)
            shown = picture[y : y + height, x : x + width]
            assert (shown == (frame * 255).round().int().permute(1, 2, 0).numpy()).all(), (row, column)
    masked = picture[TOP + height + GAP :][:64, LABEL_WIDTH : LABEL_WIDTH + 128]  # patches 0 and 1
    assert (masked == 128).all()


@pytest.mark.parametrize("num_frames", [1, 2, 20])
def test_sheets_of_any_length_keep_whole_pixels(tmp_path, num_frames):
    contact_sheet(fake(num_frames=num_frames, decoder=False), tmp_path / "sheet.png", max_frames=5)
    assert png(tmp_path / "sheet.png").shape[1] == LABEL_WIDTH + min(num_frames, 5) * (256 + GAP)


def test_a_contact_sheet_needs_a_frame(tmp_path):
    with pytest.raises(UserError, match="max_frames is 0"):
        contact_sheet(fake(), tmp_path / "sheet.png", max_frames=0)


def test_predictions_whose_shapes_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"agreement_TN has shape \(4, 7\).*\(4, 8\)"):
        replace(fake(), agreement_TN=torch.ones(4, 7).bool())
    with pytest.raises(UserError, match="16x32 cannot be cut into 3x4"):
        replace(fake(), grid=(3, 4))


# --- curves and confusion


def test_smoothing_keeps_lines_and_lags_behind_nothing():
    assert smooth(np.full(9, 2.5), 4) == pytest.approx(np.full(9, 2.5))
    assert smooth(np.arange(20.0), 5)[2:-2] == pytest.approx(np.arange(20.0)[2:-2])
    assert smooth(np.arange(3.0), 99) == pytest.approx([0.5, 1.0, 1.5])


def test_loss_curves_draw_each_known_part_once():
    rows = [{"step": s, "epoch": 0.1, "loss": 5 - s / 50, "lr": 1e-3, "unknown": 3} for s in range(200)]
    rows[5]["motion"] = 0.25
    rows[6]["loss"] = float("nan")
    rows += [{"step": 199, "loss": 7.0}, {"note": "no step"}]  # a resume: step 199 again
    figure = Figure()
    loss_curves(rows, figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["loss, total", "loss, motion", "learning rate"]
    raw, smoothed = figure.axes[0].lines
    assert len(raw.get_xdata()) == len(smoothed.get_xdata()) == 199  # the NaN is left out
    assert raw.get_ydata()[-1] == 7.0
    assert len(figure.axes[2].lines) == 1
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[5, 0.25]]


def test_loss_curves_of_an_empty_log_say_so(tmp_path):
    loss_curves([], tmp_path / "curves.png")
    figure = Figure()
    loss_curves([], figure)
    assert [text.get_text() for text in figure.texts] == ["nothing logged yet"]
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize("num_classes", [1, 3, 101])
def test_confusion_pictures(tmp_path, num_classes):
    confusion = torch.eye(num_classes).long() * 3
    confusion[-1] = 0  # a class without clips
    names = [f"a class with a very long name {k} $" for k in range(num_classes)]
    confusion_picture(confusion, names, tmp_path / "confusion.png", title="a $ title")
    assert png(tmp_path / "confusion.png").min() < 100


def test_a_confusion_matrix_must_fit_its_names(tmp_path):
    with pytest.raises(UserError, match=r"\(2, 2\), for 3 class names"):
        confusion_picture(torch.ones(2, 2), ["a", "b", "c"], tmp_path / "confusion.png", title="")
