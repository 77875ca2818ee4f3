"""The picture at the top of the README: what a small MAM² model predicts for a video that it has not seen.

Renders landscapes in which a car drives past a house and a tree and a balloon drifts, pre-trains on a thousand of them,
and draws the predictions for others. An interrupted run resumes; a finished one is only drawn.

    python benchmarks/readme_picture.py --out runs/picture

B clips, T tubelets of U frames, C channels, H W pixels, N patches per frame, P patch side.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mam2.config import Steps
from mam2.data.clips import Data
from mam2.data.synthetic import write_video
from mam2.files import written_whole
from mam2.masks import MaskConfig, put
from mam2.model.encoder import EncoderConfig
from mam2.objectives.mam2 import MAM2Config
from mam2.patches import patchify, to_float, unpatchify
from mam2.pictures.canvas import Page, page_of_rows, patch_mask, zoom_to
from mam2.pictures.prediction import Prediction, prediction_rows
from mam2.targets.pixels import num_pixels
from mam2.targets.table import Appearance, TargetsConfig
from mam2.train.engine import Loop
from mam2.train.optim import Optim
from mam2.train.pretrain import Pretrain, pretrain
from mam2.trained import Trained, open_model
from mam2.use.hidden_patches import predict_middle

NUM_VIDEOS, NUM_UNSEEN = 1000, 12
NUM_FRAMES = 18  # of a video
SIDE = 128  # of a video, pixels
FINE = 4  # drawn pixels per pixel and axis, for smooth edges

Colour = tuple[int, int, int]
SKIES = (((92, 160, 228), (206, 232, 250)), ((244, 150, 96), (252, 222, 160)), ((88, 92, 168), (230, 170, 190)))
FIELDS = ((104, 168, 72), (146, 176, 64), (70, 146, 96))
PAINTS = ((214, 48, 40), (36, 92, 190), (246, 196, 36), (250, 250, 245), (122, 62, 150))
WALLS = ((244, 226, 190), (232, 236, 240), (226, 160, 120))
ROOFS = ((168, 58, 44), (84, 70, 78), (52, 96, 110))
SUN, ROAD, LINE, TYRE = (255, 240, 170), (92, 92, 98), (228, 226, 210), (38, 38, 44)
GLASS, WOOD, LEAVES = (176, 220, 240), (108, 74, 46), (40, 108, 56)


# --- scenes: lengths and places are shares of a frame's side ------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A landscape, with a car and a balloon.

    Attributes:
        sky: colours of its top and of the horizon.
        field, car_paint, wall, roof: colours.
        balloon_paint: colours of its stripes.
        sun: its place.
        hills: height, phase and number of waves of their ridge.
        house, tree: places from the left.
        car: place from the left in the middle of the video.
        car_speed: way per frame, below 0 to the left.
        balloon: its place in the middle of the video.
        balloon_speed: way per frame, to the right and down.
    """

    sky: tuple[Colour, Colour]
    field: Colour
    car_paint: Colour
    wall: Colour
    roof: Colour
    balloon_paint: tuple[Colour, Colour]
    sun: tuple[float, float]
    hills: tuple[float, float, float]
    house: float
    tree: float
    car: float
    car_speed: float
    balloon: tuple[float, float]
    balloon_speed: tuple[float, float]


def random_scene(seed: int) -> Scene:
    """The landscape of a seed."""
    rng = random.Random(seed)
    outer, inner = rng.sample(PAINTS, 2)
    house = rng.uniform(0.2, 0.8)
    return Scene(
        sky=rng.choice(SKIES),
        field=rng.choice(FIELDS),
        car_paint=rng.choice(PAINTS),
        wall=rng.choice(WALLS),
        roof=rng.choice(ROOFS),
        balloon_paint=(outer, inner),
        sun=(rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.3)),
        hills=(rng.uniform(0.03, 0.08), rng.uniform(0, 2 * math.pi), rng.uniform(1.0, 2.0)),
        house=house,
        tree=house + rng.uniform(0.3, 0.4) * (1 if house < 0.5 else -1),
        car=rng.uniform(0.35, 0.65),
        car_speed=rng.choice((-1, 1)) * rng.uniform(0.026, 0.04),
        balloon=(rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.3)),
        balloon_speed=(rng.choice((-1, 1)) * rng.uniform(0.01, 0.02), rng.uniform(-0.008, 0.008)),
    )


class Brush:
    """Draws shapes on an image, FINE times as large as a frame, by their middle and their size."""

    def __init__(self, image: Image.Image) -> None:
        self.canvas = ImageDraw.Draw(image)

    def box(self, x: float, y: float, wide: float, high: float, colour: Colour) -> None:
        self.canvas.rectangle(_corners(x, y, wide, high), fill=colour)

    def ellipse(self, x: float, y: float, wide: float, high: float, colour: Colour) -> None:
        self.canvas.ellipse(_corners(x, y, wide, high), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self.canvas.polygon([(x * SIDE * FINE, y * SIDE * FINE) for x, y in points], fill=colour)


def _corners(x: float, y: float, wide: float, high: float) -> list[float]:
    return [SIDE * FINE * at for at in (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)]


def draw_frame(scene: Scene, time: float) -> Image.Image:
    """The scene `time` frames after the middle of the video, SIDE pixels high and wide."""
    image = Image.fromarray(_sky(scene.sky, SIDE * FINE))
    brush = Brush(image)
    brush.ellipse(*scene.sun, 0.17, 0.17, SUN)
    _draw_balloon(brush, scene, time)
    height, phase, waves = scene.hills
    ridge = [(x / 40, 0.55 + height * math.sin(phase + waves * 2 * math.pi * x / 40)) for x in range(41)]
    brush.polygon([*ridge, (1, 1), (0, 1)], _darker(scene.field, 0.72))
    brush.box(0.5, 0.84, 1, 0.4, scene.field)
    _draw_tree(brush, scene.tree)
    _draw_house(brush, scene)
    brush.box(0.5, 0.87, 1, 0.18, ROAD)
    for number in range(6):
        brush.box(0.02 + number * 0.19, 0.89, 0.09, 0.02, LINE)
    _draw_car(brush, scene, time)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _sky(colours: tuple[Colour, Colour], side: int) -> np.ndarray:
    """The sky's colours from its top to the horizon, uint8 (side, side, 3)."""
    share = np.linspace(0, 1 / 0.6, side).clip(max=1)[:, None, None]
    top, horizon = np.array(colours, dtype=float)
    return np.broadcast_to(((1 - share) * top + share * horizon).round().astype(np.uint8), (side, side, 3))


def _darker(colour: Colour, factor: float) -> Colour:
    red, green, blue = (round(factor * part) for part in colour)
    return red, green, blue


def _draw_balloon(brush: Brush, scene: Scene, time: float) -> None:
    x, y = (at + speed * time for at, speed in zip(scene.balloon, scene.balloon_speed, strict=True))
    outer, inner = scene.balloon_paint
    brush.polygon([(x - 0.14, y + 0.08), (x + 0.14, y + 0.08), (x + 0.04, y + 0.21), (x - 0.04, y + 0.21)], outer)
    for wide, colour in ((0.34, outer), (0.22, inner), (0.09, outer)):
        brush.ellipse(x, y, wide, 0.32, colour)
    brush.polygon([(x - 0.06, y + 0.12), (x + 0.06, y + 0.12), (x + 0.015, y + 0.21), (x - 0.015, y + 0.21)], inner)
    brush.box(x, y + 0.24, 0.09, 0.06, WOOD)


def _draw_tree(brush: Brush, x: float) -> None:
    brush.box(x, 0.68, 0.05, 0.2, WOOD)
    for dx, y, size in ((0, 0.48, 0.2), (-0.075, 0.57, 0.18), (0.075, 0.57, 0.18)):
        brush.ellipse(x + dx, y, size, size, LEAVES)


def _draw_house(brush: Brush, scene: Scene) -> None:
    x = scene.house
    brush.box(x, 0.63, 0.32, 0.28, scene.wall)
    brush.polygon([(x - 0.21, 0.5), (x, 0.33), (x + 0.21, 0.5)], scene.roof)
    brush.box(x - 0.07, 0.68, 0.09, 0.18, _darker(scene.roof, 0.8))
    brush.box(x + 0.075, 0.61, 0.11, 0.11, GLASS)


def _draw_car(brush: Brush, scene: Scene, time: float) -> None:
    middle, y = scene.car + scene.car_speed * time, 0.82
    forward = math.copysign(1, scene.car_speed)
    cabin = ((-0.2, 0.03), (-0.145, 0.16), (0.05, 0.16), (0.13, 0.03))
    rear_window = ((-0.17, 0.03), (-0.125, 0.135), (-0.05, 0.135), (-0.05, 0.03))
    front_window = ((-0.02, 0.03), (-0.02, 0.135), (0.035, 0.135), (0.1, 0.03))
    for shape, colour in ((cabin, scene.car_paint), (rear_window, GLASS), (front_window, GLASS)):
        brush.polygon([(middle + forward * dx, y - up) for dx, up in shape], colour)
    brush.ellipse(middle, y + 0.01, 0.5, 0.13, scene.car_paint)
    brush.box(middle, y + 0.03, 0.46, 0.08, scene.car_paint)
    for x in (middle - 0.13, middle + 0.13):
        brush.ellipse(x, y + 0.075, 0.15, 0.15, TYRE)
        brush.ellipse(x, y + 0.075, 0.07, 0.07, LINE)


def render(seed: int) -> Tensor:
    """The video of a seed, uint8 (NUM_FRAMES, 3, SIDE, SIDE)."""
    scene = random_scene(seed)
    frames = [np.array(draw_frame(scene, t - (NUM_FRAMES - 1) / 2)) for t in range(NUM_FRAMES)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def write_videos(folder: Path, seeds: range) -> None:
    """Writes `folder/SEED.mp4` for each seed; existing ones are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = folder / f"{seed:05d}.mp4"
        if not path.exists():
            with written_whole(path) as part:
                write_video(part, render(seed))


# --- pre-training -------------------------------------------------------------------------------------------


def plain_pixels(clip_BTUCHW: Tensor, patch_size: int) -> Tensor:
    """Pixels of each tubelet's first frame at about unit variance, (B, T, N, 3·P²).

    Not normalised patch by patch, as `pixels` are: predictions are colours, and nothing of the input is needed to draw
    them.
    """
    return patchify((clip_BTUCHW[:, :, 0] - 0.5) * 4, patch_size)


PLAIN = Appearance("pixels", 224, "[-2, 2]", 0, 0, "none", None, (plain_pixels, num_pixels))


def config(root: Path) -> Pretrain:
    """MAM² without alignment, which predictions do not need and which doubles a step; with differences, without which
    motion is learned later."""
    return Pretrain(
        data=Data(root=str(root), stride_frames=2, num_workers=0),
        encoder=EncoderConfig(width=128, depth=4, num_heads=4, frames=6, size=96, patch_size=8, differences=True),
        objective=MAM2Config(
            width=128, num_heads=4, regressor_depth=1, appearance_depth=1, motion_depth=1,
            alignment_weight=0.0, start="local",
        ),
        mask=MaskConfig(ratio=0.75),
        targets=TargetsConfig(appearance="readme_picture:PLAIN", motion_scale="clip"),
        optim=Optim(base_lr=6.4e-2, min_lr=0.0, warmup=Steps(50), max_grad_norm=3.0),
        loop=Loop(batch_size=8, duration=Steps(2300), save_every=Steps(100)),
    )  # fmt: skip


# --- the picture --------------------------------------------------------------------------------------------


@torch.no_grad()
def predicted(model: Trained, video: Path, *, seed: int) -> Prediction:
    """The prediction for the middle of a video, with its pixels as the appearance; the seed is the mask's."""
    whole, sizes = model.pretrained, model.encoder.config
    assert whole is not None
    clip_BTCHW = to_float(model.clip(video)[None]).to(model.device)
    sample_B = torch.zeros(1, dtype=torch.long)
    mask = whole.mask(sizes.tubelets, sizes.grid, sample_B=sample_B, seed=seed).to(model.device)
    target = whole.targets(clip_BTCHW, sample_B=sample_B, seed=seed)
    pixels_BTMD = whole.objective.reconstruct(clip_BTCHW, mask, target).appearance_BTMK
    assert pixels_BTMD is not None
    pixels_BTND = put(pixels_BTMD / 4 + 0.5, mask.masked_BTM, math.prod(sizes.grid))
    appearance_TCHW = unpatchify(pixels_BTND[0], sizes.patch_size, sizes.grid).clamp(0, 1).cpu()
    prediction = predict_middle(model, video, seed=seed)
    return replace(prediction, appearance_TCHW=appearance_TCHW, attention_TN=None)


def errors(prediction: Prediction) -> tuple[float, float]:
    """Squared errors on hidden patches.

    Returns:
        Appearance, over the variance of the pixels; motion, over the error of predicting none.
    """
    p = prediction
    assert p.appearance_TCHW is not None
    assert p.motion_TCHW is not None
    assert p.true_motion_TCHW is not None
    hidden = patch_mask(p.masked_TN, p.grid, (p.clip_TCHW.shape[2], p.clip_TCHW.shape[3])).expand_as(p.clip_TCHW)
    true, true_motion = p.clip_TCHW[hidden], p.true_motion_TCHW[hidden[:-1]]
    appearance = (p.appearance_TCHW[hidden] - true).square().mean() / true.var()
    motion = (p.motion_TCHW[hidden[:-1]] - true_motion).square().mean() / true_motion.square().mean()
    return appearance.item(), motion.item()


def sheet(prediction: Prediction) -> Page:
    """The rows of `mam2 show`, without the last frame, which has no motion."""
    rows = prediction_rows(prediction, zoom_to(prediction.clip_TCHW, 128))
    return page_of_rows(rows, list(range(len(prediction.clip_TCHW) - 1)), title="", footer=[])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for videos, the run and the pictures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    write_videos(args.out / "videos", range(NUM_VIDEOS))
    write_videos(args.out / "unseen", range(NUM_VIDEOS, NUM_VIDEOS + NUM_UNSEEN))
    if pretrain(config(args.out / "videos"), args.out / "run"):
        model = open_model(args.out / "run", whole=True)
        for video in sorted((args.out / "unseen").glob("*.mp4")):
            prediction = predicted(model, video, seed=0)
            sheet(prediction).save(video.with_suffix(".png"))
            print("{}: error of appearance {:.2f}, of motion {:.2f}".format(video.name, *errors(prediction)))


if __name__ == "__main__":
    main()
