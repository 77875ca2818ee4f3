"""Clips that one core makes per second: of H.264 videos, of folders of JPEG frames, and with other loaders.

    python benchmarks/loader.py --out loader.json

Three pipelines: pre-training (dense clips, MultiScaleCrop, flip), Table 8's fine-tuning (RandAugment, random resized
crop, two clips of each decoded video), and the test on 5 × 3 views. Beside pre-training run two others on the same
frames and the same crops: torchcodec's clip samplers with torchvision's crop, and decord with a crop by Pillow as in
VideoMAE's published loader; `pip install torchcodec decord2` adds them, and what is absent is named. All share one
core, in rounds that take turns, and are judged by the ratios within a round. A core's seconds are those that the
process used it, whatever else the machine did. Files are read from the system's cache, not from a disk.

T frames, C = 3 channels, H W pixels, S pixels on each side of a clip.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import torch
from common import machine
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms.v2 import functional

from mam2.config import seed_of
from mam2.data import sampling
from mam2.data.catalog import Catalog, Item, read_catalog
from mam2.data.clips import Data, train_clips, views_of
from mam2.data.loader import TrainLoader
from mam2.data.prepare.extract import write_frames
from mam2.data.shape import ClipShape, Listing
from mam2.data.video.index import read_index
from mam2.data.video.open import open_video
from mam2.data.video.pyav import PyAVVideo
from mam2.recipes.finetune import finetune_b_ucf101
from mam2.recipes.pretrain import mam2_b_k400

NUM_FRAMES, SIZE = 16, 224
HEIGHT, WIDTH, FPS, BITS_PER_SECOND = 256, 340, 30, 500_000  # of the videos written here; as Kinetics made smaller
MEAN_C, STD_C = (torch.tensor(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # ImageNet's
PRETRAIN, FINETUNE, TEST = "pre-training", "fine-tuning", "test"
FIRST, LATER, FRAMES = "H.264, first epoch", "H.264, later epochs", "JPEG frames"
PACKAGES = ("torch", "torchvision", "av", "pillow", "numpy", "torchcodec", "decord2", "decord", "eva-decord")
REFERENCE = {PRETRAIN: LATER, FINETUNE: LATER, TEST: FIRST}  # a test opens each video once


@dataclass(frozen=True)
class Source:
    """A way to make clips: (number of the video, its random numbers) -> what a training or test gets of it."""

    pipeline: str
    name: str
    make: Callable[[int, random.Random], Any]
    clips_per_video: int = 1
    share: float = 1.0  # of a round's videos that it makes; the slow ones make fewer


def texture(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """A colour picture with the spectrum of photographs, amplitude 1 / frequency: (3, height, width) in 0 .. 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(height, width)
    waves = np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency
    grey, *colours = np.fft.irfft2(waves, (height, width))
    channels = np.stack([grey + 0.3 * colour for colour in (colours[0], colours[1], -colours[0])])
    return torch.from_numpy(0.5 + 0.2 * channels / channels.std()).clamp(0, 1).float()


def filmed(num_frames: int, *, seed: int) -> Iterator[np.ndarray]:
    """Frames of a camera that pans and zooms over a texture, three textured things that pass, and a sensor's noise:
    uint8 (H, W, 3) each."""
    rng = np.random.default_rng(seed)
    background, things = texture(rng, 512, 680), texture(rng, 512, 680)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH), indexing="ij")
    grid_HW2 = torch.stack([columns, rows], -1)
    pan, zoom, places, courses = rng.uniform(-0.4, 0.4, 2), rng.uniform(-0.2, 0.2), *rng.uniform(-1, 1, (2, 3, 2))
    for clock in np.linspace(-1, 1, num_frames):
        seen_HW2 = 0.5 * (1 + zoom * clock) * grid_HW2 + torch.from_numpy(pan * clock).float()
        picture = grid_sample(background[None], seen_HW2[None], align_corners=False)[0]
        for place, course in zip(places, courses, strict=True):
            moved_HW2 = grid_HW2 - torch.from_numpy(place + course * clock).float()
            inside_HW = torch.sigmoid(40 * (0.35 - moved_HW2.norm(dim=-1)))
            thing = grid_sample(things[None], (0.4 * moved_HW2)[None], align_corners=False)[0]
            picture = picture.lerp(thing, inside_HW)
        noise = torch.from_numpy(rng.standard_normal((HEIGHT, WIDTH, 3), np.float32))
        yield (255 * picture.permute(1, 2, 0) + 2 * noise).round().clamp(0, 255).to(torch.uint8).numpy()


def write_h264(path: Path, frames: Iterator[np.ndarray]) -> None:
    """Writes frames as x264 does it when little is asked of it: its usual preset and its usual, rare key frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = HEIGHT, WIDTH, "yuv420p", BITS_PER_SECOND
        stream.options = {"threads": "1"}
        for frame_HWC in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())


def crop_box(height: int, width: int, rng: random.Random) -> tuple[int, int, int, int]:
    """MultiScaleCrop's (top, left, height, width), drawn as Table 7's MultiScaleCrop: four scales of the short side, at
    most one apart, at one of 13 places."""
    sides = [int(scale * min(height, width)) for scale in (1, 0.875, 0.75, 0.66)]
    sides = [SIZE if abs(side - SIZE) < 3 else side for side in sides]
    crop_height, crop_width = rng.choice([(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) < 2])
    quarters = ["00", "04", "40", "44", "22", "02", "20", "24", "42", "11", "13", "31", "33"]
    down, right = map(int, rng.choice(quarters))
    return down * ((height - crop_height) // 4), right * ((width - crop_width) // 4), crop_height, crop_width


def torchcodec_clips(paths: Sequence[str], data: Data, *, seek_mode: str) -> Callable[[int, random.Random], Tensor]:
    """torchcodec's sampler, and torchvision's crop and flip: a function to uint8 (T, 3, S, S)."""
    decoders = importlib.import_module("torchcodec.decoders")
    samplers = importlib.import_module("torchcodec.samplers")

    def make(number: int, rng: random.Random) -> Tensor:
        decoder = decoders.VideoDecoder(paths[number], seek_mode=seek_mode, num_ffmpeg_threads=1)
        start, second = dense(decoder.metadata.num_frames, data, rng)[:2]
        clip_TCHW = samplers.clips_at_random_indices(
            decoder,
            num_frames_per_clip=NUM_FRAMES,
            num_indices_between_frames=second - start,
            sampling_range_start=start,  # so that all loaders decode the same frames
            sampling_range_end=start + 1,
        ).data[0]
        height, width = clip_TCHW.shape[-2:]
        box = crop_box(height, width, rng)
        clip_TCHW = functional.resized_crop(clip_TCHW, *box, [SIZE, SIZE], antialias=True)
        return (functional.horizontal_flip(clip_TCHW) if rng.random() < 0.5 else clip_TCHW).contiguous()

    return make


def decord_clips(paths: Sequence[str], data: Data, *, floats: bool) -> Callable[[int, random.Random], Tensor]:
    """decord, and Pillow's crop and flip frame by frame: a function to uint8 (T, 3, S, S), or to the normalised floats
    that VideoMAE's loader makes of it, four times as many bytes."""
    decord = importlib.import_module("decord")

    def make(number: int, rng: random.Random) -> Tensor:
        video = decord.VideoReader(paths[number], num_threads=1)
        frames_THWC = video.get_batch(dense(len(video), data, rng)).asnumpy()
        _, full_height, full_width, _ = frames_THWC.shape
        top, left, height, width = crop_box(full_height, full_width, rng)
        is_flipped, images = rng.random() < 0.5, []
        for frame_HWC in frames_THWC:
            image = Image.fromarray(frame_HWC).crop((left, top, left + width, top + height))
            image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            images.append(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_flipped else image)
        clip_TSSC = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        if floats:
            return clip_TSSC.float().div_(255).sub_(MEAN_C).div_(STD_C).permute(0, 3, 1, 2).contiguous()
        return clip_TSSC.permute(0, 3, 1, 2).contiguous()

    return make


def dense(num_frames: int, data: Data, rng: random.Random) -> list[int]:
    """The frames that `train_clips` would take with the same random numbers."""
    return sampling.dense(num_frames, clip_frames=NUM_FRAMES, stride_frames=data.stride_frames, rng=rng)


def sources_of(videos: Sequence[str], folders: Sequence[str]) -> tuple[list[Source], dict[str, str]]:
    """All that is measured; and what is left out, with the reason."""
    pretrain, tuning = mam2_b_k400().data, finetune_b_ucf101()
    shape = ClipShape(NUM_FRAMES, SIZE)

    def training(paths: Sequence[str], data: Data, *, is_first: bool = False) -> Callable[[int, random.Random], Any]:
        def make(number: int, rng: random.Random) -> list[Tensor]:
            if is_first:
                read_index.cache_clear()
            return train_clips(paths[number], data, shape, rng=rng).clips

        return make

    def testing(paths: Sequence[str]) -> Callable[[int, random.Random], Any]:
        def make(number: int, rng: random.Random) -> Tensor:
            read_index.cache_clear()
            return views_of(paths[number], tuning.data, shape, clips=tuning.clips, crops=tuning.crops).views_VTCHW

        return make

    sources = []
    for pipeline, data in ((PRETRAIN, pretrain), (FINETUNE, tuning.data)):
        sources.append(Source(pipeline, LATER, training(videos, data), data.repeats))
        sources.append(Source(pipeline, FIRST, training(videos, data, is_first=True), data.repeats))
        sources.append(Source(pipeline, FRAMES, training(folders, data), data.repeats))
    views = tuning.clips * tuning.crops
    sources.append(Source(TEST, FIRST, testing(videos), views, share=0.25))
    sources.append(Source(TEST, FRAMES, testing(folders), views, share=0.25))
    rivals: dict[str, Callable[[], Callable[[int, random.Random], Tensor]]] = {
        "torchcodec samplers, exact": lambda: torchcodec_clips(videos, pretrain, seek_mode="exact"),
        "torchcodec samplers, approximate": lambda: torchcodec_clips(videos, pretrain, seek_mode="approximate"),
        "decord + Pillow, uint8": lambda: decord_clips(videos, pretrain, floats=False),
        "decord + Pillow, floats": lambda: decord_clips(videos, pretrain, floats=True),
    }
    left_out = {}
    for name, load in rivals.items():
        try:
            sources.append(Source(PRETRAIN, name, load()))
        except (ImportError, OSError, RuntimeError) as error:  # torchcodec looks for FFmpeg when it is imported
            left_out[name] = str(error).strip().splitlines()[0]
    return sources, left_out


@contextmanager
def one_core() -> Iterator[None]:
    """One thread of torch and, where the system lets us choose, one core for all threads of the process."""
    process, num_threads = psutil.Process(), torch.get_num_threads()
    cores = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None
    torch.set_num_threads(1)
    if cores:
        process.cpu_affinity(cores[-1:])
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        if cores:
            process.cpu_affinity(cores)


def rates_of(sources: Sequence[Source], videos: Sequence[str], *, rounds: int, per_round: int) -> list[dict[str, Any]]:
    """Clips a second of each source in each round; each round starts with another source, and has clips of its own."""
    rows: list[dict[str, Any]] = [{"pipeline": s.pipeline, "source": s.name, "core": [], "wall": []} for s in sources]
    for source in sources:
        source.make(0, random.Random(0))  # the warm-up
    for turn in range(rounds):
        for place in range(len(sources)):
            which = (place + turn) % len(sources)
            source, count = sources[which], max(1, round(per_round * sources[which].share))
            for path in videos:
                with open_video(path):  # its index is now remembered; those that must not know it forget it
                    pass
            core, wall = time.process_time(), time.perf_counter()
            for i in range(count):
                source.make((turn * per_round + i) % len(videos), random.Random(seed_of(turn, i)))
            core, wall = time.process_time() - core, time.perf_counter() - wall
            num_clips = count * source.clips_per_video
            rows[which]["core"].append(num_clips / core)
            rows[which]["wall"].append(num_clips / wall)
            rows[which] |= {"clips_a_round": num_clips, "clips_per_video": source.clips_per_video}
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each source's rates, and how many times as fast its pipeline's reference was in the same round."""
    summed = []
    for row in rows:
        of_same = (other for other in rows if other["pipeline"] == row["pipeline"])
        ours = next(other for other in of_same if other["source"] == REFERENCE[row["pipeline"]])
        ratios = [a / b for a, b in zip(ours["core"], row["core"], strict=True)]
        kept = {name: row[name] for name in ("pipeline", "source", "clips_a_round", "clips_per_video")}
        kept |= {"clips_per_core_second": spread(row["core"]), "clips_per_second": spread(row["wall"])}
        summed.append(kept | {"reference": ours["source"], "reference_over_it": spread(ratios), "rounds": row["core"]})
    return summed


def worker_memory(videos: Sequence[str], data: Data, *, num_clips: int, batch_size: int = 8) -> dict[str, Any]:
    """MiB resident in the one worker of a TrainLoader, after each batch; `growth_mib` is what the medians of the second
    and the last quarter differ by, as in the first the worker still warms up."""
    catalog = Catalog(items=tuple(Item(path=path, label=None) for path in videos), classes=())
    steps = math.ceil(num_clips / batch_size)
    loader = TrainLoader(
        catalog,
        replace(data, num_workers=1),
        ClipShape(NUM_FRAMES, SIZE),
        batch_size=batch_size,
        seed=0,
        num_steps=steps,
    )
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    mib: list[float] = []
    for _ in loader:
        workers = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        sizes = []
        for worker in workers:
            try:
                sizes.append(worker.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:  # it has made the last batch and ended
                continue
        if sizes:
            mib.append(max(sizes))
    quarter = max(1, len(mib) // 4)
    early, late = statistics.median(mib[quarter : 2 * quarter] or mib), statistics.median(mib[-quarter:])
    kept = [round(value, 1) for value in mib[:: max(1, len(mib) // 100)]]
    clips = len(mib) * batch_size
    return {"clips": clips, "early_mib": early, "late_mib": late, "growth_mib": late - early, "mib": kept}


def about(path: str) -> dict[str, Any]:
    """What kind of video it is; key frames decide how much must be decoded for a clip."""
    with PyAVVideo(path) as video, av.open(path) as container:
        keys = sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
        seconds = video.num_frames / (video.fps or FPS)
        codec, kbit = container.streams.video[0].codec_context.name, os.path.getsize(path) * 8 / seconds / 1000
        size = {"width": video.width, "height": video.height, "frames": video.num_frames, "key_frames": keys}
    return {"codec": codec, **size, "fps": video.fps, "kbit_per_second": round(kbit)}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the benchmark; writes what it needs into `folder`."""
    if options.videos:
        catalog = read_catalog(Listing(root=options.videos), labelled=False)
        videos = [item.path for item in catalog.items[: options.num_videos]]
    else:
        videos = [str(folder / f"{number}.mp4") for number in range(options.num_videos)]
        for number, path in enumerate(videos):
            write_h264(Path(path), filmed(round(options.seconds * FPS), seed=number))
    folders = [write_frames(path, folder / f"frames_{number}").path for number, path in enumerate(videos)]
    ffmpeg = {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()}
    result: dict[str, Any] = {
        "pyav_ffmpeg": ffmpeg,
        "machine": machine(torch.device("cpu"), packages=PACKAGES),
        "videos": [about(path) for path in videos],
    }
    result["frame_folder_bytes_over_video"] = statistics.median(
        sum(file.stat().st_size for file in Path(frames).iterdir()) / os.path.getsize(path)
        for frames, path in zip(folders, videos, strict=True)
    )
    data = mam2_b_k400().data
    # Before others are imported, whose threads and memory a forked worker would begin with.
    memory = {FRAMES: worker_memory(folders, data, num_clips=options.memory_clips)}
    memory["H.264"] = worker_memory(videos, data, num_clips=options.memory_clips)
    sources, result["left_out"] = sources_of(videos, folders)
    rows = rates_of(sources, videos, rounds=options.rounds, per_round=options.clips)
    pipelines = {PRETRAIN: asdict(data), FINETUNE: asdict(finetune_b_ucf101().data)}
    return result | {"rates": summary(rows), "worker_memory": memory, "pipelines": pipelines}


def show(result: dict[str, Any], console: Console) -> None:
    """The result as a table and a few lines."""
    table = Table(title=f"clips of {NUM_FRAMES} × {SIZE}² a core makes in a second, {result['rounds']} rounds")
    for column in ("pipeline", "source"):
        table.add_column(column)
    for column in ("clips/s: min", "median", "max", "wall", "reference over it: min", "median", "max"):
        table.add_column(column, justify="right")
    pipeline = PRETRAIN
    for row in sorted(result["rates"], key=lambda row: list(REFERENCE).index(row["pipeline"])):
        if row["pipeline"] != pipeline:
            table.add_section()
        pipeline = row["pipeline"]
        cells = [f"{value:.1f}" for value in row["clips_per_core_second"].values()]
        cells.append(f"{row['clips_per_second']['median']:.1f}")
        cells += [f"{value:.2f}" for value in row["reference_over_it"].values()]
        is_reference = row["source"] == row["reference"]
        table.add_row(pipeline, row["source"], *cells, style="bold" if is_reference else "")
    console.print(table)
    first = result["videos"][0]
    console.print(
        f"{len(result['videos'])} videos, the first {first['width']} × {first['height']}, {first['frames']} frames, "
        f"{first['key_frames']} key frames, {first['kbit_per_second']} kbit/s; folders of frames are "
        f"{result['frame_folder_bytes_over_video']:.0f} times as large. The reference (bold) over a source: above 1 "
        f"the source is slower."
    )
    for name, memory in result["worker_memory"].items():
        console.print(
            f"A worker's memory, {name}: {memory['early_mib']:.0f} MiB early, {memory['late_mib']:.0f} MiB after "
            f"{memory['clips']} clips ({memory['growth_mib']:+.1f})."
        )
    for name, reason in result["left_out"].items():
        console.print(f"Left out: {name} ({reason}).")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns what `--out` writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder of videos, or a list; by default some are written")
    parser.add_argument("--num-videos", type=int, default=4, help="to write, or to take (default 4)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="length of the videos that are written (default 10)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument("--clips", type=int, default=24, help="videos a source makes clips of in a round (default 24)")
    parser.add_argument("--memory-clips", type=int, default=400, help="clips made to watch a worker (default 400)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    for name in ("num_videos", "rounds", "clips", "memory_clips"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1.")
    if options.seconds * FPS < NUM_FRAMES:
        parser.error(f"--seconds is {options.seconds:g}; a clip of {NUM_FRAMES} frames needs {NUM_FRAMES / FPS:.2f}.")
    words = sys.argv[1:] if arguments is None else arguments
    result: dict[str, Any] = {"benchmark": "loader", "command": shlex.join(["python", "benchmarks/loader.py", *words])}
    result |= {"rounds": options.rounds, "num_frames": NUM_FRAMES, "size": SIZE}
    with tempfile.TemporaryDirectory() as folder, one_core():
        result |= measure(options, Path(folder))
    show(result, Console(width=120))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    main()
