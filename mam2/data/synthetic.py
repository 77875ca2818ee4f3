"""Rendered videos whose label is their motion: tests, docs and the quickstart need no download.

A textured shape moves in front of a textured background that drifts, with sensor noise on top. Only the shape's
motion depends on the label. Position, size, angle, colours, drift and noise of a single frame are drawn alike for
every label, so that no single frame shows the class.
"""

from __future__ import annotations

import math
import random
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import torch
from torch import Tensor

from mam2.config import UserError, seed_of
from mam2.distributed import end_with_parent
from mam2.files import written_whole

MOTIONS = ("left", "right", "up", "down", "clockwise", "counter_clockwise", "approach", "recede")
TRAVEL = 0.7  # way of a shape to either side of the middle of the video; half the frame is 1
TURN = math.pi / 2  # its turn to either side, radians
GROWTH = 0.55  # log of its growth to either side
NUM_WAVES = 3  # waves per texture
NUM_PROCESSES = 2  # processes that render


def render(motion: str, *, seed: int, num_frames: int = 20, size: int = 48) -> Tensor:
    """Renders one video: uint8 (num_frames, 3, size, size). Everything but the motion, one of MOTIONS, follows from the
    seed. Raises UserError for an unknown motion."""
    if motion not in MOTIONS:
        raise UserError(f"{motion!r} is no motion; accepted: {', '.join(MOTIONS)}.")
    rng = random.Random(seed)
    clock_T = torch.linspace(-1, 1, num_frames)
    speed = rng.uniform(0.7, 1.0)

    def course(*names: str, reach: float) -> Tensor:
        """Course of a coordinate: moving if the motion is one of the names (backward, forward), else at rest somewhere
        on the same way."""
        if motion in names:
            return clock_T * speed * reach * (1 if motion == names[1] else -1)
        return torch.full_like(clock_T, rng.uniform(-1, 1) * speed * reach)

    x_T = rng.uniform(-0.2, 0.2) + course("left", "right", reach=TRAVEL)
    y_T = rng.uniform(-0.2, 0.2) + course("up", "down", reach=TRAVEL)
    angle_T = rng.uniform(-math.pi, math.pi) + course("counter_clockwise", "clockwise", reach=TURN)
    radius_T = 0.85 * torch.exp(rng.uniform(-0.15, 0.15) + course("recede", "approach", reach=GROWTH))

    drift = [rng.uniform(-0.15, 0.15) for _ in range(2)]
    axis = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    time = clock_T[:, None, None]
    background = _texture(columns + drift[0] * time, rows + drift[1] * time, rng)

    x = columns - x_T[:, None, None]
    y = rows - y_T[:, None, None]
    cos, sin = torch.cos(angle_T)[:, None, None], torch.sin(angle_T)[:, None, None]
    radius = radius_T[:, None, None]
    across, down = (cos * x + sin * y) / radius, (cos * y - sin * x) / radius
    lobes = rng.choice((0, 3, 4, 5))  # a disc, a rounded triangle, square or star
    edge = 1 + (0.2 * torch.cos(lobes * torch.atan2(down, across)) if lobes else 0)
    inside = torch.sigmoid((edge - torch.hypot(across, down)) * radius * size / 2)[:, None]
    video = inside * _texture(across, down, rng) + (1 - inside) * background

    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    video = video + 0.02 * torch.randn(video.shape, generator=generator)
    return (video.clamp(0, 1) * 255).round().to(torch.uint8)


def _texture(x: Tensor, y: Tensor, rng: random.Random) -> Tensor:
    """Draws a smooth colour pattern at coordinates (T, H, W): (T, 3, H, W) in [0, 1]. In fine patterns the difference
    between two frames would be noise that nothing can predict."""
    base = [rng.uniform(0.3, 0.7) for _ in range(3)]
    color = torch.tensor(base).view(1, 3, 1, 1).expand(len(x), 3, *x.shape[1:]).clone()
    for _ in range(NUM_WAVES):
        direction = rng.uniform(0, 2 * math.pi)
        frequency = rng.uniform(2.0, 4.5)
        phase = rng.uniform(0, 2 * math.pi)
        wave = torch.cos(frequency * (math.cos(direction) * x + math.sin(direction) * y) + phase)
        color += torch.tensor([rng.uniform(-0.25, 0.25) for _ in range(3)]).view(3, 1, 1) * wave[:, None]
    return color.clamp(0, 1)


def write_video(path: Path, clip_TCHW: Tensor, *, fps: int = 10) -> None:
    """Writes uint8 (T, 3, H, W), even H and W, as H.264 in an .mp4."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = clip_TCHW.shape[2:]
        stream.pix_fmt = "yuv420p"
        # With mbtree, x264's AVX-512 code gives other bytes each time.
        stream.options = {"crf": "16", "preset": "veryfast", "threads": "1", "mbtree": "0"}
        for frame_HWC in clip_TCHW.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


def write_dataset(
    folder: Path | str, *, videos_per_class: int, seed: int, num_frames: int = 20, size: int = 48
) -> None:
    """Writes class folders of videos: `folder/left/00000.mp4` and so on. Existing videos are kept."""
    folder = Path(folder)
    jobs = []
    for number, motion in enumerate(MOTIONS):
        (folder / motion).mkdir(parents=True, exist_ok=True)
        for i in range(videos_per_class):
            jobs.append((folder / motion / f"{i:05d}.mp4", motion, seed_of(seed, number, i)))
    with ProcessPoolExecutor(NUM_PROCESSES, initializer=_start_worker) as pool:
        list(pool.map(partial(_write_one, num_frames=num_frames, size=size), jobs, chunksize=16))


def _start_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def _write_one(job: tuple[Path, str, int], *, num_frames: int, size: int) -> None:
    path, motion, seed = job
    if not path.exists():
        with written_whole(path) as part:
            write_video(part, render(motion, seed=seed, num_frames=num_frames, size=size))
