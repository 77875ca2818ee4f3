"""A prediction for a clip, drawn as a contact sheet or an animation: the model's own, nothing added back.

Nothing here runs a model; use/hidden_patches.py makes a `Prediction`. T frames, C channels, H W, N patches per frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mam2.config import UserError
from mam2.data.synthetic import write_video
from mam2.files import written_whole
from mam2.pictures.canvas import (
    BLUE,
    ORANGE,
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

FPS = 4  # of animations


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """A model's prediction for one clip, on the CPU.

    Attributes:
        clip_TCHW: input, float in [0, 1]; the first frame of each tubelet.
        masked_TN: mask over the N patches of each frame, bool.
        grid: patches high, patches wide; their product is N.
        appearance_TCHW: predicted appearance, float in [0, 1], valid on masked patches only; None for codes without a
            decoder, or without a prediction.
        agreement_TN: predicted code = true code, bool, valid on masked patches only; None without codes.
        motion_TCHW: predicted motion, float, valid on masked patches only: (T-1, 3, H, W) RGB difference of pixels in
            [0, 1], or (T-1, 2, H, W) optical flow in pixels, x and y; None without motion.
        true_motion_TCHW: motion of the clip itself, valid everywhere; None without motion.
        appearance_name: title of the row of appearance.
        tubelet: frames that a token spans; motion leads to the first frame of the next tubelet.
        attention_TN: attention that each patch gets, float, sums to 1 over each frame; None without.
        notes: more lines for the footer.

    Raises:
        UserError: shapes or types that do not fit each other.
    """

    clip_TCHW: Tensor
    masked_TN: Tensor
    grid: tuple[int, int]
    appearance_TCHW: Tensor | None = None
    agreement_TN: Tensor | None = None
    motion_TCHW: Tensor | None = None
    true_motion_TCHW: Tensor | None = None
    appearance_name: str = "Predicted appearance"
    tubelet: int = 1
    attention_TN: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        num_frames, _, height, width = self.clip_TCHW.shape
        high, wide = self.grid
        if height % high or width % wide:
            raise UserError(f"A frame of {height}x{width} cannot be cut into {high}x{wide} equal patches. Fix `grid`.")
        patches = (num_frames, high * wide)
        channels = 2 if self.is_flow() else 3
        for name, shape in {
            "masked_TN": patches,
            "appearance_TCHW": tuple(self.clip_TCHW.shape),
            "agreement_TN": patches,
            "motion_TCHW": (num_frames - 1, channels, height, width),
            "true_motion_TCHW": (num_frames - 1, channels, height, width),
            "attention_TN": patches,
        }.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise UserError(
                    f"Prediction.{name} has shape {tuple(value.shape)}; the clip and `grid` ask for {shape}."
                )
            if value is not None and name in ("masked_TN", "agreement_TN") and value.dtype != torch.bool:
                raise UserError(f"Prediction.{name} is {value.dtype}; it must be torch.bool.")

    def is_flow(self) -> bool:
        """True if the motion is optical flow, False if it is RGB difference."""
        return self.true_motion_TCHW is not None and self.true_motion_TCHW.shape[1] == 2


# --- colours ------------------------------------------------------------------------------------------------


def hatching(size: tuple[int, int]) -> Tensor:
    """A light striped image (H, W) that stands for `left out`, so that no one takes it for a prediction."""
    height, width = size
    stripe = (torch.arange(height)[:, None] + torch.arange(width)) % 8 < 2
    return torch.where(stripe, 0.80, 0.94)


def motion_scale(motion_TCHW: Tensor) -> float:
    """The motion drawn in full colour: the 99th percentile of moving pixels; at least 0.02, for flow 0.5 pixels.

    The largest would let one hard edge fade the rest; the percentile of all pixels is zero for a small object on a
    still background. Moving: RGB differences above one grey level, flow above 0.1 pixels.
    """
    if motion_TCHW.shape[1] == 2:
        size, still, least = motion_TCHW.norm(dim=1).flatten(), 0.1, 0.5
    else:
        size, still, least = motion_TCHW.abs().flatten(), 1 / 255, 0.02
    moving = size[size > still]
    if len(moving) == 0:
        return least
    return max(moving.kthvalue(math.ceil(0.99 * len(moving))).values.item(), least)


def motion_to_rgb(motion_TCHW: Tensor, scale: float) -> Tensor:
    """Motion as colours (T, 3, H, W) in [0, 1].

    RGB differences: -scale is 0, no motion is mid grey 0.5, +scale is 1. Optical flow: the hue is the direction,
    no motion is white, `scale` pixels and more are the full colour.
    """
    if motion_TCHW.shape[1] != 2:
        return (0.5 + motion_TCHW / (2 * scale)).clamp(0, 1)
    if len(motion_TCHW) == 0:
        return motion_TCHW.new_zeros(0, 3, *motion_TCHW.shape[2:])
    flow_TCHW = motion_TCHW / motion_TCHW.norm(dim=1, keepdim=True).clamp(min=scale)
    # flow_to_image divides by the largest flow it is given: a column of length one, cut off again, makes that one.
    one_TCH1 = torch.zeros_like(flow_TCHW[..., :1])
    one_TCH1[:, 0] = 1
    from torchvision.utils import flow_to_image  # which takes seconds

    return flow_to_image(torch.cat([flow_TCHW, one_TCH1], dim=3).float())[..., :-1] / 255


def colour_wheel(side: int) -> Tensor:
    """The legend of flow (3, side, side): each direction's colour where it points to, faint near the middle."""
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    wheel_CHW = motion_to_rgb(torch.stack([x, y])[None], 1.0)[0]
    return torch.where(torch.hypot(x, y) <= 1, wheel_CHW, 1.0)


def agreement_to_rgb(agreement_TN: Tensor, masked_TN: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(T, 3, H, W): blue where the predicted code is right, orange where wrong, hatching where visible."""
    from matplotlib.colors import to_rgb

    hit, miss = (torch.tensor(to_rgb(colour))[:, None, None] for colour in (BLUE, ORANGE))
    frames_TCHW = torch.where(patch_mask(agreement_TN, grid, size), hit, miss)
    return keep_patches(frames_TCHW, masked_TN, grid, fill=hatching(size))


def attention_to_rgb(attention_TN: Tensor, clip_TCHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """A heat map over the grey frames, (T, 3, H, W): nearly grey is none, bright yellow the most of the clip."""
    from matplotlib import colormaps
    from torchvision.transforms.v2.functional import rgb_to_grayscale  # which takes seconds

    share_TN = attention_TN.float() / attention_TN.max().clamp(min=1e-12)
    size = (clip_TCHW.shape[-2], clip_TCHW.shape[-1])
    share_T1HW = patch_mask(share_TN, grid, size)
    heat_THWC = torch.from_numpy(colormaps["inferno"](share_T1HW[:, 0].numpy())[..., :3]).float()
    weight_T1HW = 0.2 + 0.7 * share_T1HW
    return (1 - weight_T1HW) * 0.7 * rgb_to_grayscale(clip_TCHW) + weight_T1HW * heat_THWC.permute(0, 3, 1, 2)


# --- pictures -----------------------------------------------------------------------------------------------


def prediction_rows(prediction: Prediction, zoom: int) -> list[FrameRow]:
    """The rows of a picture, as far as the prediction holds them; frames enlarged `zoom` times."""
    p = prediction
    clip_TCHW = enlarge(p.clip_TCHW, zoom)
    size = (clip_TCHW.shape[-2], clip_TCHW.shape[-1])
    left_out = hatching(size)
    captions: tuple[str, ...] = ()
    if p.agreement_TN is not None:
        pairs = zip(p.agreement_TN, p.masked_TN, strict=True)
        captions = tuple(f"{hit_N[m_N].float().mean():.0%} of codes right" if m_N.any() else "" for hit_N, m_N in pairs)
    length = f"a clip of {len(clip_TCHW) * p.tubelet} frames"
    length += f", the first of each tubelet of {p.tubelet}" if p.tubelet > 1 else ""
    share = f"masked patches grey ({p.masked_TN.float().mean():.0%})"
    rows = [FrameRow(name="Input", description=length, frames_TCHW=clip_TCHW)]
    if p.masked_TN.any():
        seen_TCHW = keep_patches(clip_TCHW, ~p.masked_TN, p.grid, fill=0.5)
        rows.append(FrameRow(name="Input with mask", description=share, frames_TCHW=seen_TCHW))
    if p.appearance_TCHW is not None:
        words = "masked patches only; visible patches hatched"
        kept_TCHW = keep_patches(enlarge(p.appearance_TCHW, zoom), p.masked_TN, p.grid, fill=left_out)
        rows.append(FrameRow(name=p.appearance_name, description=words, frames_TCHW=kept_TCHW, captions=captions))
    elif p.agreement_TN is not None:
        words = "blue right, orange wrong; visible patches hatched"
        codes_TCHW = agreement_to_rgb(p.agreement_TN, p.masked_TN, p.grid, size)
        rows.append(FrameRow(name="Predicted codes", description=words, frames_TCHW=codes_TCHW, captions=captions))
    rows += _motion_rows(p, zoom, left_out)
    if p.attention_TN is not None:
        times = p.attention_TN.max().item() * p.attention_TN.shape[1]
        words = f"grey: none; brightest: {times:.1f} times an even share"
        heat_TCHW = attention_to_rgb(p.attention_TN, clip_TCHW, p.grid)
        rows.append(FrameRow(name="Attention", description=words, frames_TCHW=heat_TCHW))
    return rows


def _motion_rows(p: Prediction, zoom: int, left_out: Tensor) -> list[FrameRow]:
    """True and predicted motion in one scale, that of the true motion."""
    if p.motion_TCHW is None or p.true_motion_TCHW is None:
        return []
    scale = motion_scale(p.true_motion_TCHW)
    later = "next frame" if p.tubelet == 1 else "first of the next tubelet"
    span = f"{later} minus this one; grey: 0, full colour: ±{scale:.2f}"
    same = f"same scale, ±{scale:.2f}; visible patches hatched"
    if p.is_flow():
        span = f"optical flow; full colour: {scale:.1f} pixels"
        same = f"same scale, {scale:.1f} pixels; visible patches hatched"
    true_TCHW = enlarge(motion_to_rgb(p.true_motion_TCHW, scale), zoom)
    predicted_TCHW = enlarge(motion_to_rgb(p.motion_TCHW, scale), zoom)
    kept_TCHW = keep_patches(predicted_TCHW, p.masked_TN[:-1], p.grid, fill=left_out)
    legend_CHW = colour_wheel(max(40, len(left_out) // 4)) if p.is_flow() else None
    return [
        FrameRow(name="True motion", description=span, frames_TCHW=true_TCHW, legend_CHW=legend_CHW),
        FrameRow(name="Predicted motion", description=same, frames_TCHW=kept_TCHW),
    ]


def footer(prediction: Prediction) -> list[str]:
    """Instructions for reading the picture, and the prediction's own notes."""
    if not prediction.masked_TN.any():
        return ["Attention that patches get in the encoder's last block.", *prediction.notes]
    words = (
        "Predictions are the model's own, on masked patches; visible patches are left out, not filled in from the "
        "input."
    )
    if prediction.agreement_TN is not None:
        words += " Codes right: the share of masked patches whose code is predicted rightly."
    return [words, *prediction.notes]


def contact_sheet(prediction: Prediction, *, title: str) -> Page:
    """At most 8 frames of a clip, a column each: input, mask, appearance, both motions, attention.

    Visible patches of predictions are hatched, never filled in from the input. Without appearance, its row shows which
    codes are right. True and predicted motion share the scale of the true motion. Missing parts have no row.
    """
    shown = frames_shown(len(prediction.clip_TCHW), 8)
    rows = prediction_rows(prediction, zoom_to(prediction.clip_TCHW, 128))
    return page_of_rows(rows, shown, title=title, footer=footer(prediction), tubelet=prediction.tubelet)


def animation(prediction: Prediction, path: Path | str, *, title: str) -> None:
    """Draws a clip as a .gif or an .mp4 (H.264), 4 frames per second: the rows of its contact sheet side by side.

    Raises:
        UserError: another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise UserError(f"{path} ends with {path.suffix!r}; an animation is a .gif or an .mp4. Rename it.")
    rows = prediction_rows(prediction, zoom_to(prediction.clip_TCHW, 192))
    times = range(len(prediction.clip_TCHW))
    video_TCHW = torch.stack(
        [_moment(rows, t, title=title, footer=footer(prediction), tubelet=prediction.tubelet) for t in times]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        with written_whole(path) as part:
            write_video(part, video_TCHW, fps=FPS)
        return
    images = [Image.fromarray(page_HWC) for page_HWC in video_TCHW.permute(0, 2, 3, 1).contiguous().numpy()]
    # One palette for all frames, else still parts flicker; dithered, else flow turns into blots.
    sample_HWC = video_TCHW[:, :, ::3, ::3].permute(0, 2, 3, 1).flatten(0, 1).contiguous().numpy()
    palette = Image.fromarray(sample_HWC).quantize(256, method=Image.Quantize.FASTOCTREE)
    images = [image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for image in images]
    with written_whole(path) as part:
        images[0].save(part, format="GIF", save_all=True, append_images=images[1:], duration=1000 / FPS, loop=0)


def _moment(rows: list[FrameRow], t: int, *, title: str, footer: list[str], tubelet: int) -> Tensor:
    """Picture `t` of an animation, uint8 (3, height, width), both sides even."""
    num_frames, _, height, width = rows[0].frames_TCHW.shape
    gap = 10
    line = 17
    total_width = len(rows) * (width + gap) + gap
    legends = [(0, 0) if row.legend_CHW is None else row.legend_CHW.shape[1:] for row in rows]
    names = [wrap_words(row.name, width - legend[1], bold=8.6) for row, legend in zip(rows, legends, strict=True)]
    descriptions = [wrap_words(row.description, width) for row in rows]
    title = wrap_words(title, total_width - 150, bold=9.5)
    footer_text = "\n".join(wrap_words(x, total_width - 16) for x in footer)
    heads = [max(18 * (name.count("\n") + 1), legend[0]) for name, legend in zip(names, legends, strict=True)]
    top = 22 * (title.count("\n") + 1) + max(heads) + 18
    under = top + height + 6
    captions_y = under + line * max(words.count("\n") + 1 for words in descriptions)
    footer_y = captions_y + (line if any(row.captions for row in rows) else 0) + 8
    total_height = footer_y + line * (footer_text.count("\n") + 1) + 6
    page = Page(total_width + total_width % 2, total_height + total_height % 2, text=1)
    page.write(gap, 8, title, bold=9.5)
    page.write(total_width - gap, 8, f"frame {t * tubelet + 1} of {num_frames * tubelet}", ha="right", bold=8.6)
    page.write(gap, footer_y, footer_text)
    for column, (row, name, description) in enumerate(zip(rows, names, descriptions, strict=True)):
        x = gap + column * (width + gap)
        page.write(x, top - 6, name, va="bottom", bold=8.6)
        page.write(x, under, description)
        if row.legend_CHW is not None:
            page.paste(x + width - legends[column][1], top - 4 - legends[column][0], row.legend_CHW)
        page.place(x, top, row, t)
        if row.captions:
            page.write(x, captions_y, row.captions[t])
    return page.pixels()
