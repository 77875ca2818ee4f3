"""Clips of a video: the settings, and one function each for training and for testing.

T frames, C = 3 channels, H = W = size pixels, V views.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Le, Lt

from mam2.config import UserError, check
from mam2.data import sampling, transforms
from mam2.data.sampling import Short
from mam2.data.shape import ClipShape, Listing
from mam2.data.video.open import open_video
from mam2.data.video.source import Backend, VideoSource
from mam2.data.video.still import read_image

Sampling = Literal["dense", "spread", "uniform"]
"""Window of frames `stride_frames` apart; such a window from its first frame to its last (SlowFast, VideoMAE's
fine-tuning); or frames of the whole video (TSN; App. B, SSv2)."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Videos, and how clips are made of them.

    Attributes:
        root: a folder of videos at any depth, a folder with a sub-folder per class, or a .csv with path,label.
        split: rows of a .csv that has several splits; empty takes all of a .csv with one.
        path_column: name of the .csv's column of paths.
        label_column: name of the .csv's column of labels.
        sampling: "dense", "spread" or "uniform".
        stride_frames: distance between neighbouring frames of a dense clip (App. B).
        target_fps: scales the stride by a video's own frame rate over this, as ST-MAE does with 30; 0 is off.
        rand_augment_ops: operations of RandAugment on each clip, before the crop; 0 is off (Table 8: 2).
        rand_augment_magnitude: their strength, up to 10, with a standard deviation of 0.5 (Table 8: 9).
        augment: the crop: "multi_scale_crop" for pre-training, "random_resized_crop" for fine-tuning.
        flip: mirror half of the clips; not where left and right matter, as in Something-Something V2.
        erasing: probability that a box is erased from a clip; 0 is off, as in Table 8 (VideoMAE: 0.25).
        repeats: clips of each decoded video, each with its own augmentation; a batch then holds as many times more
            clips (Table 8: 2).
        fixed_clips: number of fixed clips per video that training samples from (`targets.cache` needs them); 0 samples
            a new clip every time.
        short: handling of a video too short for the clip: "shrink" brings the clip's frames closer
            together, "repeat" repeats the last frame, "skip" does without the video.
        decode_short_side: short side, pixels, to which frames are scaled down while they are decoded, which saves
            memory; never below the encoder's size. 0 is off. Smaller frames stay as they are.
        images: folder of still images, at any depth, to train on with the videos (OmniMAE); "" is none. A clip of
            one repeats it, so nothing moves.
        image_share: share of the samples that are images.
        backend: decoder of video files: "pyav", or "torchcodec" where that is installed.
        num_workers: processes that decode; 0 decodes in the training process.
        timeout_seconds: a process that makes nothing for so long is replaced, and a video that is to blame is left out.
        max_bad_share: share of the videos that may be damaged or too short, and are replaced by others; one is always
            forgiven unless this is 0. More end the run.

    Raises:
        UserError: a value outside its range.
    """

    root: str = ""
    split: str = ""
    path_column: str = "path"
    label_column: str = "label"
    sampling: Sampling = "dense"
    stride_frames: Annotated[int, Ge(1)] = 4
    target_fps: Annotated[float, Ge(0), Le(1000)] = 0.0
    rand_augment_ops: Annotated[int, Ge(0)] = 0
    rand_augment_magnitude: Annotated[float, Ge(0), Le(10)] = 9.0
    augment: Literal["multi_scale_crop", "random_resized_crop"] = "multi_scale_crop"
    flip: bool = True
    erasing: Annotated[float, Ge(0), Le(1)] = 0.0
    repeats: Annotated[int, Ge(1)] = 1
    fixed_clips: Annotated[int, Ge(0)] = 0
    short: Short = "shrink"
    decode_short_side: Annotated[int, Ge(0)] = 320
    images: str = ""
    image_share: Annotated[float, Gt(0), Lt(1)] = 0.5
    backend: Backend = "pyav"
    num_workers: Annotated[int, Ge(0)] = 2
    timeout_seconds: Annotated[int, Ge(1)] = 120
    max_bad_share: Annotated[float, Ge(0), Le(1)] = 0.05

    def __post_init__(self) -> None:
        check(self, "data.")
        if self.images and self.fixed_clips:
            raise UserError("data.fixed_clips are of videos; leave them out, or data.images.")

    @property
    def listing(self) -> Listing:
        """Listing of the videos, as `read_catalog` takes it."""
        return Listing(root=self.root, split=self.split, path_column=self.path_column, label_column=self.label_column)


def opened(path: str, data: Data, *, size: int) -> VideoSource:
    """Opens a video whose frames are decoded as large as crops of `size` pixels need them."""
    return open_video(path, backend=data.backend, short_side=_short_side(data, size))


def _short_side(data: Data, size: int) -> int:
    return max(data.decode_short_side, size) if data.decode_short_side else 0


class TrainClips(NamedTuple):
    """Clips of one video for training.

    Attributes:
        clips: `data.repeats` clips of the same frames, uint8 (T, 3, size, size) each.
        is_shrunk: the video was too short for the stride, which was shrunk for it.
    """

    clips: list[torch.Tensor]
    is_shrunk: bool


def train_clips(path: str, data: Data, shape: ClipShape, *, rng: random.Random) -> TrainClips:
    """Clips of one video for training: one draw of frames, `data.repeats` augmentations of them. Raises UserError for
    one that can't be decoded or is too short."""
    is_shrunk = False
    with opened(path, data, size=shape.size) as video:
        if data.sampling == "uniform":
            if video.num_frames < shape.frames and data.short != "repeat":
                raise sampling.ShortVideo(
                    f"{path} has {video.num_frames} frames, fewer than the {shape.frames} of a clip. Use --data.short "
                    "repeat to take some of them twice, or leave the video out."
                )
            indices = sampling.uniform(video.num_frames, clip_frames=shape.frames, rng=rng)
        else:
            stride = stride_of(video.fps, data)
            indices = sampling.dense(
                video.num_frames,
                clip_frames=shape.frames,
                stride_frames=stride,
                rng=rng,
                short=data.short,
                spread=data.sampling == "spread",
                path=path,
            )
            is_shrunk = data.short == "shrink" and video.num_frames < shape.frames * stride
        frames_TCHW = video.frames(indices)
    return TrainClips(_repeated(frames_TCHW, data, size=shape.size, rng=rng), is_shrunk)


def image_clips(path: str, data: Data, shape: ClipShape, *, rng: random.Random) -> TrainClips:
    """Clips of a still image, as `train_clips`: it is repeated. Raises UserError if it can't be read."""
    frames_TCHW = read_image(path, short_side=_short_side(data, shape.size)).expand(shape.frames, -1, -1, -1)
    return TrainClips(_repeated(frames_TCHW, data, size=shape.size, rng=rng), False)


def _repeated(frames_TCHW: torch.Tensor, data: Data, *, size: int, rng: random.Random) -> list[torch.Tensor]:
    # Crops keep the decoder's layout, channels last.
    return [augmented(frames_TCHW, data, size=size, rng=rng).contiguous() for _ in range(data.repeats)]


def augmented(clip_TCHW: torch.Tensor, data: Data, *, size: int, rng: random.Random) -> torch.Tensor:
    """Augmentation of a training clip: RandAugment, crop, flip, erasing; one draw for all frames (Tables 7 and 8)."""
    if data.rand_augment_ops:
        from mam2.data.rand_augment import rand_augment  # and torchvision, which takes seconds

        clip_TCHW = rand_augment(
            clip_TCHW, rng=rng, magnitude=data.rand_augment_magnitude, num_ops=data.rand_augment_ops
        )
    is_multi_scale = data.augment == "multi_scale_crop"
    crop = transforms.multi_scale_crop if is_multi_scale else transforms.random_resized_crop
    clip_TCHW = crop(clip_TCHW, size=size, rng=rng)
    if data.flip:
        clip_TCHW = transforms.flip(clip_TCHW, rng)
    return transforms.random_erasing(clip_TCHW, rng=rng, prob=data.erasing) if data.erasing else clip_TCHW


class VideoViews(NamedTuple):
    """Views of one video for testing.

    Attributes:
        views_VTCHW: uint8 (clips · crops, T, 3, size, size); a clip's crops follow one another.
        seconds: the video's length, NaN if unknown.
    """

    views_VTCHW: torch.Tensor
    seconds: float


def views_of(path: str, data: Data, shape: ClipShape, *, clips: int, crops: int) -> VideoViews:
    """Views of one video for testing: `clips` windows evenly spaced in time, `crops` squares of each. Raises UserError
    if it can't be decoded."""
    with opened(path, data, size=shape.size) as video:
        stride = stride_of(video.fps, data)
        windows = view_frames(video.num_frames, data, clip_frames=shape.frames, stride_frames=stride, clips=clips)
        frames_TCHW = video.frames([i for window in windows for i in window])
        seconds = video.time_of(video.num_frames - video.num_missing) if video.fps else math.nan
    cropped = transforms.test_crops(frames_TCHW, size=shape.size, crops=crops)
    # Each crop holds the frames of all clips; the clip becomes the outer, the crop the inner dimension.
    views_VTCHW = torch.stack([crop.unflatten(0, (clips, shape.frames)) for crop in cropped], 1).flatten(0, 1)
    return VideoViews(views_VTCHW.contiguous(), seconds)


def view_frames(num_frames: int, data: Data, *, clip_frames: int, stride_frames: int, clips: int) -> list[list[int]]:
    """Frames of the `clips` windows that a video of `num_frames` frames is tested on."""
    if data.sampling == "uniform":
        return sampling.uniform_views(num_frames, clip_frames=clip_frames, clips=clips)
    spread = data.sampling == "spread"
    return sampling.views(num_frames, clip_frames=clip_frames, stride_frames=stride_frames, clips=clips, spread=spread)


def middle_clip(video: str | Path, data: Data, shape: ClipShape) -> torch.Tensor:
    """Clip in the middle of a video, as in testing with one view: uint8 (T, 3, size, size)."""
    return views_of(str(video), data, shape, clips=1, crops=1).views_VTCHW[0]


def stride_of(fps: float | None, data: Data) -> int:
    """Distance between frames of a dense clip, in a video of `fps` frames per second (None: unknown)."""
    return sampling.stride_at(fps or 0, data.stride_frames, data.target_fps) if data.target_fps else data.stride_frames
