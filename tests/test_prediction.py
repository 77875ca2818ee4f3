"""Contact sheets and animations: predictions on masked patches only, in one scale."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from PIL import Image

from mam2.config import UserError
from mam2.data.video.pyav import PyAVVideo
from mam2.pictures.canvas import BLUE, ORANGE, FrameRow, Page, enlarge, patch_mask
from mam2.pictures.prediction import (
    Prediction,
    agreement_to_rgb,
    animation,
    attention_to_rgb,
    colour_wheel,
    contact_sheet,
    hatching,
    motion_scale,
    motion_to_rgb,
    prediction_rows,
)

GRID = (2, 4)
LABEL_WIDTH, TOP, GAP, LINE = 215, 2 * 19 + 12, 6, 19  # of a sheet with a one-line title and panels up to 150 high


def fake(*, num_frames: int = 4, decoder: bool = True, flow: bool = False, attention: bool = False) -> Prediction:
    """A clip of 16x32 with patches of 8, and a mask that differs from frame to frame."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(num_frames, 3, 16, 32, generator=generator)
    true_motion = 4 * torch.randn(num_frames - 1, 2, 16, 32, generator=generator) if flow else clip[1:] - clip[:-1]
    masked = torch.stack([torch.randperm(8, generator=generator) < 6 for _ in range(num_frames)])
    return Prediction(
        clip_TCHW=clip,
        masked_TN=masked,
        grid=GRID,
        appearance_TCHW=torch.rand(clip.shape, generator=generator) if decoder else None,
        agreement_TN=torch.rand(num_frames, 8, generator=generator) < 0.5,
        motion_TCHW=true_motion + torch.randn(true_motion.shape, generator=generator) / 4,
        true_motion_TCHW=true_motion,
        attention_TN=torch.rand(num_frames, 8, generator=generator).softmax(dim=1) if attention else None,
    )


def rows_by_name(prediction: Prediction, zoom: int = 1) -> dict[str, FrameRow]:
    return {row.name: row for row in prediction_rows(prediction, zoom)}


def png(path: Path) -> np.ndarray:
    return (imread(path)[..., :3] * 255).round().astype(int)


def as_bytes(picture_CHW: torch.Tensor) -> np.ndarray:
    return (picture_CHW * 255).round().int().permute(1, 2, 0).numpy()


# --- colours


def test_differences_are_symmetrical_about_grey() -> None:
    motion = torch.tensor([-9.0, -0.2, -0.1, 0.0, 0.1, 0.2, 9.0]).view(1, 1, 1, 7).expand(1, 3, 1, 7)
    expected = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
    assert torch.allclose(motion_to_rgb(motion, 0.2), expected.expand(1, 3, 1, 7))


def test_no_flow_is_white_and_over_range_is_the_full_colour() -> None:
    flow = torch.zeros(2, 2, 3, 8)
    angle = torch.arange(8) / 8 * 2 * torch.pi
    for row, length in enumerate((0.0, 2.0, 50.0)):
        flow[:, :, row] = length * torch.stack([angle.cos(), angle.sin()])
    colours = motion_to_rgb(flow, 2.0)
    assert colours.shape == (2, 3, 3, 8)
    assert (colours[:, :, 0] == 1).all()
    assert (colours[:, :, 1].amin(dim=1) < 0.02).all()  # a full hue lacks one of red, green and blue
    assert torch.allclose(colours[:, :, 1], colours[:, :, 2], atol=1.1 / 255)
    assert len(colours[0, :, 1].round(decimals=2).unique(dim=1).T) == 8


def test_flow_colours_depend_on_the_scale_alone_not_on_other_flow() -> None:
    generator = torch.Generator().manual_seed(0)
    flow = torch.randn(2, 2, 8, 8, generator=generator)
    alone, faster = motion_to_rgb(flow[:1], 3.0), flow.clone()
    faster[1] *= 10
    assert torch.equal(motion_to_rgb(faster, 3.0)[:1], alone)
    assert not torch.equal(motion_to_rgb(flow[:1], 4.0), alone)
    assert motion_to_rgb(flow[:0], 3.0).shape == (0, 3, 8, 8)  # a clip of one frame


def test_half_the_flow_is_half_as_strong() -> None:
    flow = torch.tensor([[3.0, 1.5], [0.0, 0.0]]).view(1, 2, 1, 2)
    full, half = (1 - motion_to_rgb(flow, 3.0))[0, :, 0].T
    assert torch.allclose(full / 2, half, atol=1.1 / 255)


def test_the_motion_scale_looks_at_moving_pixels_only() -> None:
    motion = torch.zeros(3, 3, 64, 64)
    assert motion_scale(motion) == 0.02
    assert motion_scale(motion[:0]) == 0.02  # a clip of one frame
    motion[0, :, 3, 3:6] = torch.tensor([0.4, -0.4, 0.4])
    assert motion_scale(motion) == pytest.approx(0.4)
    motion = torch.full((1, 3, 20, 20), 0.1)
    motion[0, 0, 0, 0] = -1.0  # one wild pixel does not fade the rest
    assert motion_scale(motion) == pytest.approx(0.1)


def test_the_scale_of_flow_is_a_length_in_pixels() -> None:
    flow = torch.zeros(3, 2, 64, 64)
    assert motion_scale(flow) == motion_scale(flow[:0]) == 0.5
    flow[1, :, 2:5, 7] = torch.tensor([3.0, -4.0])[:, None]
    assert motion_scale(flow) == pytest.approx(5.0)


def test_the_colour_wheel_shows_each_direction_where_it_points() -> None:
    wheel = colour_wheel(41)
    assert (wheel[:, 20, 20] == 1).all()
    assert (wheel[:, 0, 0] == 1).all()  # outside the disc
    for y, x in ((22, 37), (3, 20), (35, 8)):
        flow = torch.tensor([(x - 20) / 20, (y - 20) / 20]).view(1, 2, 1, 1)
        assert torch.allclose(wheel[:, y, x], motion_to_rgb(7 * flow, 7.0).flatten(), atol=1.1 / 255)
    red, green, blue = wheel[:, 20, 39]  # rightward is red
    assert red > 0.9
    assert max(green, blue) < 0.3


def test_agreement_has_three_colours_in_each_frame() -> None:
    masked = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]]).bool()
    hit = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]).bool()
    pictures = agreement_to_rgb(hit, masked, GRID, (16, 32))
    right, wrong = (torch.tensor(to_rgb(colour))[:, None, None].expand(3, 8, 8) for colour in (BLUE, ORANGE))
    left_out = hatching((16, 32)).expand(3, 16, 32)
    assert torch.equal(pictures[0, :, :8, :8], right)
    assert torch.equal(pictures[0, :, :8, 8:16], wrong)
    assert torch.equal(pictures[0, :, :8, 16:24], left_out[:, :8, 16:24])
    assert torch.equal(pictures[1, :, :8, :8], left_out[:, :8, :8])
    assert torch.equal(pictures[1, :, :8, 8:16], right)


def test_attention_is_brightest_where_most_and_grey_where_none() -> None:
    attention = torch.zeros(2, 8)
    attention[0, 3], attention[0, 4], attention[1, 0] = 0.75, 0.25, 0.5
    clip = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    heat = attention_to_rgb(attention, clip, GRID)
    means = heat.unflatten(2, (2, 8)).unflatten(4, (4, 8)).mean(dim=(1, 3, 5)).flatten(1)
    assert means[0].argmax() == 3
    assert means[1].argmax() == 0
    assert means[0, 3] > means[1, 0]  # one scale for the clip
    colour_spread = heat.amax(dim=1) - heat.amin(dim=1)
    assert colour_spread[0, :8, :8].max() < 0.01  # no attention: grey
    assert colour_spread[0, :8, 24:].min() > 0.3
    assert attention_to_rgb(torch.zeros(2, 8), clip, GRID).isfinite().all()


# --- rows


def test_masked_patches_are_grey_and_visible_ones_untouched() -> None:
    p = fake()
    painted = rows_by_name(p)["Input with mask"].frames_TCHW
    masked = patch_mask(p.masked_TN, GRID, (16, 32)).expand_as(painted)
    assert (painted[masked] == 0.5).all()
    assert torch.equal(painted[~masked], p.clip_TCHW[~masked])


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("decoder", [True, False])
def test_prediction_rows_never_hold_the_visible_input(decoder, flow) -> None:
    p = fake(decoder=decoder, flow=flow)
    visible = ~patch_mask(p.masked_TN, GRID, (16, 32))
    clip = torch.where(visible, 1 - p.clip_TCHW, p.clip_TCHW)
    leaky_motion = torch.where(visible[:-1], p.motion_TCHW + 0.3, p.motion_TCHW)
    leaky_appearance = None if p.appearance_TCHW is None else torch.where(visible, clip, p.appearance_TCHW)
    other = replace(p, clip_TCHW=clip, appearance_TCHW=leaky_appearance, motion_TCHW=leaky_motion)
    rows, others = rows_by_name(p, 2), rows_by_name(other, 2)
    same = [torch.equal(rows[name].frames_TCHW, others[name].frames_TCHW) for name in rows]
    assert same == [False, False, True, True, True]
    assert list(rows)[2] == ("Predicted appearance" if decoder else "Predicted codes")
    for name in list(rows)[2:5:2]:
        frames = rows[name].frames_TCHW
        hidden = visible[: len(frames)].repeat_interleave(2, 2).repeat_interleave(2, 3).expand_as(frames)
        assert torch.equal(frames[hidden], hatching((32, 64)).expand_as(frames)[hidden])


@pytest.mark.parametrize("flow", [False, True])
def test_equal_motions_have_equal_colours_whatever_is_predicted_elsewhere(flow) -> None:
    p = fake(flow=flow)
    motion = p.true_motion_TCHW.clone()
    motion[-1] *= 20  # a prediction far off does not change the scale
    rows = rows_by_name(replace(p, motion_TCHW=motion))
    true, predicted = rows["True motion"].frames_TCHW[:-1], rows["Predicted motion"].frames_TCHW[:-1]
    masked = patch_mask(p.masked_TN[:-2], GRID, (16, 32)).expand_as(true)
    assert torch.equal(true[masked], predicted[masked])


def test_descriptions_name_the_shared_scale() -> None:
    p = fake()
    rows = rows_by_name(p)
    scale = f"±{motion_scale(p.true_motion_TCHW):.2f}"
    assert scale in rows["True motion"].description
    assert scale in rows["Predicted motion"].description
    assert rows["True motion"].legend_CHW is None
    rows = rows_by_name(fake(flow=True))
    scale = f"{motion_scale(fake(flow=True).true_motion_TCHW):.1f} pixels"
    assert scale in rows["True motion"].description
    assert scale in rows["Predicted motion"].description
    assert torch.equal(rows["True motion"].legend_CHW, colour_wheel(40))


def test_what_a_prediction_lacks_has_no_row() -> None:
    p = fake(attention=True)
    everything = ["Input", "Input with mask", "Pixels", "True motion", "Predicted motion", "Attention"]
    assert list(rows_by_name(replace(p, appearance_name="Pixels"))) == everything
    no_motion = replace(p, motion_TCHW=None, true_motion_TCHW=None, attention_TN=None)
    assert list(rows_by_name(no_motion)) == ["Input", "Input with mask", "Predicted appearance"]
    assert list(rows_by_name(replace(no_motion, appearance_TCHW=None, agreement_TN=None))) == everything[:2]


def test_tubelets_are_numbered_by_their_first_frames(tmp_path, monkeypatch) -> None:
    p, written = replace(fake(num_frames=3), tubelet=2), []
    rows = rows_by_name(p)
    assert rows["Input"].description == "a clip of 6 frames, the first of each tubelet of 2"
    assert rows["True motion"].description.startswith("first of the next tubelet minus this one")
    monkeypatch.setattr(Page, "write", lambda page, x, y, words, **_: written.append(words))
    contact_sheet(p, title="").save(tmp_path / "sheet.png")
    assert [words for words in written if words.startswith("frame ")] == ["frame 1", "frame 3", "frame 5"]
    written.clear()
    animation(p, tmp_path / "sheet.gif", title="")
    assert [words for words in written if words.startswith("frame ")] == [f"frame {t} of 6" for t in (1, 3, 5)]


def test_captions_are_the_share_of_right_codes_among_the_masked() -> None:
    p = fake(num_frames=2)
    masked = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [0] * 8]).bool()
    hit = torch.tensor([[1, 0, 0, 0, 1, 1, 1, 1], [1] * 8]).bool()
    rows = rows_by_name(replace(p, masked_TN=masked, agreement_TN=hit))
    assert rows["Predicted appearance"].captions == ("25% of codes right", "")
    assert rows_by_name(replace(p, agreement_TN=None))["Predicted appearance"].captions == ()


def test_attention_is_described_in_even_shares() -> None:
    p = replace(fake(), attention_TN=torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0]).expand(4, 8))
    assert "brightest: 4.0 times" in rows_by_name(p)["Attention"].description


def test_predictions_whose_shapes_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"agreement_TN has shape \(4, 7\).*\(4, 8\)"):
        replace(fake(), agreement_TN=torch.ones(4, 7).bool())
    with pytest.raises(UserError, match="16x32 cannot be cut into 3x4"):
        replace(fake(), grid=(3, 4))
    with pytest.raises(UserError, match=r"masked_TN has shape \(8,\)"):
        replace(fake(), masked_TN=torch.ones(8).bool())
    with pytest.raises(UserError, match=r"masked_TN is torch.float32"):
        replace(fake(), masked_TN=torch.ones(4, 8))
    with pytest.raises(UserError, match=r"motion_TCHW has shape \(3, 3, 16, 32\).*\(3, 2, 16, 32\)"):
        replace(fake(), true_motion_TCHW=fake(flow=True).true_motion_TCHW)


# --- contact sheets


@pytest.mark.parametrize("flow", [False, True])
def test_the_png_holds_the_rows_pixel_for_pixel(tmp_path, flow) -> None:
    p = fake(num_frames=3, flow=flow, attention=True)
    contact_sheet(p, title="A title").save(tmp_path / "new" / "sheet.png")
    picture = png(tmp_path / "new" / "sheet.png")
    height, width = 16 * 8, 32 * 8  # 16 x 32 enlarged eight times
    for number, row in enumerate(prediction_rows(p, 8)):
        y = TOP + number * (height + GAP) + (LINE if number > 2 else 0)
        for column, frame in enumerate(row.frames_TCHW):
            x = LABEL_WIDTH + column * (width + GAP)
            assert (picture[y : y + height, x : x + width] == as_bytes(frame)).all(), (number, column)
        if row.legend_CHW is not None:
            side = row.legend_CHW.shape[1]
            x, y = LABEL_WIDTH - 12 - side, y + (height - side) // 2
            assert (picture[y : y + side, x : x + side] == as_bytes(row.legend_CHW)).all()


def test_a_sheet_shows_eight_frames_with_their_own_motion(tmp_path) -> None:
    p = fake(num_frames=16)
    contact_sheet(p, title="A title").save(tmp_path / "sheet.png")  # 8 frames: 0, 2, 4 to 14
    picture = png(tmp_path / "sheet.png")
    x = LABEL_WIDTH + 2 * (256 + GAP)
    assert (picture[TOP : TOP + 128, x : x + 256] == as_bytes(enlarge(p.clip_TCHW[4:5], 8)[0])).all()
    y = TOP + 3 * (128 + GAP) + LINE
    motion = enlarge(motion_to_rgb(p.true_motion_TCHW[4:5], motion_scale(p.true_motion_TCHW)), 8)[0]
    assert (picture[y : y + 128, x : x + 256] == as_bytes(motion)).all()


@pytest.mark.parametrize("num_frames", [1, 2, 20])
def test_sheets_of_any_length_keep_whole_pixels(tmp_path, num_frames) -> None:
    contact_sheet(fake(num_frames=num_frames, decoder=False, flow=True), title="").save(tmp_path / "sheet.png")
    assert png(tmp_path / "sheet.png").shape[1] == LABEL_WIDTH + min(num_frames, 8) * (256 + GAP)


def test_notes_stand_in_the_footer(tmp_path) -> None:
    p = fake(num_frames=2)
    heights = []
    for notes in ((), ("clip order: 83 % of tubes right",)):
        contact_sheet(replace(p, notes=notes), title="A title").save(tmp_path / "sheet.png")
        picture = png(tmp_path / "sheet.png")
        heights.append(len(picture))
        assert picture[-LINE - 4 :].min() < 160  # a line of text
    assert heights[1] == heights[0] + LINE


# --- animations


def frames_of(path: Path) -> np.ndarray:
    """The frames of a GIF, (T, height, width, 3)."""
    with Image.open(path) as image:
        frames = []
        for t in range(image.n_frames):
            image.seek(t)
            frames.append(np.array(image.convert("RGB")).astype(int))
        return np.stack(frames)


def difference(panel: np.ndarray, frame_CHW: torch.Tensor) -> float:
    """Of 255, the mean difference of a dithered panel's 12x12 blocks from those of the frame it should show."""
    blocks = [x.reshape(16, 12, 32, 12, 3).mean(axis=(1, 3)) for x in (panel, as_bytes(frame_CHW))]
    return float(np.abs(blocks[0] - blocks[1]).mean())


def test_a_gif_has_the_rows_side_by_side_frame_after_frame(tmp_path) -> None:
    p = fake(flow=True, attention=True)
    animation(p, tmp_path / "new" / "clip.gif", title="A title")
    rows = prediction_rows(p, 12)  # 16 x 32 becomes 192 x 384
    frames = frames_of(tmp_path / "new" / "clip.gif")
    assert frames.shape[0] == 4
    assert frames.shape[2] == 6 * (384 + 10) + 10
    with Image.open(tmp_path / "new" / "clip.gif") as image:
        assert image.info["duration"] == 250
        assert image.info["loop"] == 0
    tops = range(frames.shape[1] - 192)
    top = min(tops, key=lambda y: difference(frames[0, y : y + 192, 10:394], rows[0].frames_TCHW[0]))
    for column, row in enumerate(rows):
        x = 10 + column * 394
        for t in range(4):
            panel = frames[t, top : top + 192, x : x + 384]
            if t < len(row.frames_TCHW):
                assert difference(panel, row.frames_TCHW[t]) < 6, (column, t)
            else:
                assert (panel > 250).mean() > 0.9  # the last frame has no motion


def test_an_mp4_has_even_sides_and_every_frame(tmp_path) -> None:
    p = fake(num_frames=3)
    animation(p, tmp_path / "clip.mp4", title="A title")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 4
    with PyAVVideo(str(tmp_path / "clip.mp4")) as video:
        assert video.num_frames == 3
        frames = video.frames([0, 1, 2]).int()
    assert frames.shape[2] % 2 == frames.shape[3] % 2 == 0
    assert frames.shape[3] == 5 * (384 + 10) + 10
    assert (frames[:, :, 2:6, 2:6] > 250).all()
    changes = (frames[1:] - frames[:-1]).abs().amax(dim=(0, 1, 2))
    assert changes[10:394].float().mean() > 50  # the clip plays
    assert changes[:8].max() < 8  # and the page stands still


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.png"])
def test_animations_are_gif_or_mp4(tmp_path, name) -> None:
    with pytest.raises(UserError, match=r"a \.gif or an \.mp4"):
        animation(fake(), tmp_path / name, title="")
    assert not list(tmp_path.iterdir())
