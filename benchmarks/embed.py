"""Windows embedded per second: `mam2 embed` beside Hugging Face's VideoMAE with its processor, on the same videos.

    python benchmarks/embed.py --model vit_b --out embed.json

Both encoders have VideoMAE's shape (joint attention, tubelets of two frames) and random weights; both get the same
frames of the same windows, decoded by PyAV, and write a mean vector for each. Hugging Face's is the loop of its
documentation: decode, process, encode, one after another, in fp32; beside it the same with torchvision's video
processor, and in bf16. All may use all cores, in rounds that take turns, and are judged by the ratios within a round; a
core's seconds are those that the processes used it, whatever else the machine did.
`--model thin` is next to no encoder on clips of the usual size: what decoding and resizing allow, which a fast GPU
waits for. Each contender runs in the same process; models are loaded and warmed up before the clock starts, while
mam2's own look at the videos, the start of its decoding processes and its writing of the file are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import pyarrow.parquet as pq
import torch
from common import machine
from loader import FPS, filmed, write_h264
from rich.console import Console
from rich.table import Table

from mam2.data.catalog import read_catalog
from mam2.data.shape import Listing
from mam2.device import local_device
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import save_encoder
from mam2.use import embed as embedding
from mam2.use.embed import embed_file
from mam2.use.embedder import WINDOWS_AT_ONCE, Embed, load_embedder

STRIDE = 4
OURS, OURS_FP32 = "mam2 embed", "mam2 embed, fp32"
THEIRS, THEIRS_VIDEO, THEIRS_BF16 = "Hugging Face", "Hugging Face, video processor", "Hugging Face, bf16"
_SHAPE = {"tubelet": 2, "attention": "joint", "positions": "sequence"}
SIZES = {
    "tiny": EncoderConfig(width=32, depth=1, num_heads=2, frames=4, size=32, **_SHAPE),  # type: ignore[arg-type]
    "thin": EncoderConfig(width=32, depth=1, num_heads=2, **_SHAPE),  # type: ignore[arg-type]
    "vit_s": EncoderConfig(width=384, num_heads=6, **_SHAPE),  # type: ignore[arg-type]
    "vit_b": EncoderConfig(**_SHAPE),  # type: ignore[arg-type]
}


@dataclass(frozen=True)
class Contender:
    """A way to embed videos: the paths to the number of windows that were embedded."""

    name: str
    run: Callable[[Sequence[str]], int]


def ours(sizes: EncoderConfig, folder: Path, *, precision: str, num_workers: int) -> Callable[[Sequence[str]], int]:
    """`mam2 embed` into a new file each time."""
    source = folder / "encoder.safetensors"
    torch.manual_seed(0)
    save_encoder(source, VideoEncoder(sizes))
    config = replace(Embed(num_workers=num_workers), precision=precision)  # type: ignore[arg-type]
    listed = folder / "list.csv"
    out = folder / "features.parquet"
    loaded = load_embedder(str(source), config)

    def run(paths: Sequence[str]) -> int:
        listed.write_text("path\n" + "".join(f"{Path(path).absolute()}\n" for path in paths))
        out.unlink(missing_ok=True)
        with patch.object(embedding, "load_embedder", lambda *_: loaded):  # the model is loaded already
            embed_file(source, listed, out, config=config)
        return pq.read_metadata(out).num_rows

    return run


def windows(path: str, *, num_frames: int) -> Iterator[list[np.ndarray[Any, Any]]]:
    """The frames of each window of a video, in one pass of PyAV: those that mam2 takes, but for the last window, which
    is left out where it would not fit."""
    span = num_frames * STRIDE
    frames: list[np.ndarray[Any, Any]] = []
    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        for index, frame in enumerate(container.decode(video=0)):
            if index % STRIDE == 0:
                frames.append(frame.to_ndarray(format="rgb24"))
            if (index + 1) % span == 0:
                yield frames
                frames = []


def theirs(sizes: EncoderConfig, *, bf16: bool, video_processor: bool) -> Callable[[Sequence[str]], int]:
    """Hugging Face's VideoMAE: decode, process, encode."""
    from transformers import VideoMAEConfig, VideoMAEImageProcessor, VideoMAEModel, VideoMAEVideoProcessor

    shape = {"shortest_edge": sizes.size}, {"height": sizes.size, "width": sizes.size}
    kind = VideoMAEVideoProcessor if video_processor else VideoMAEImageProcessor
    processor = kind(size=shape[0], crop_size=shape[1])
    device = local_device()
    torch.manual_seed(0)
    model = VideoMAEModel(
        VideoMAEConfig(
            image_size=sizes.size,
            num_frames=sizes.frames,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.num_heads,
            intermediate_size=4 * sizes.width,
            use_mean_pooling=False,
        )
    )
    model = model.to(device).eval()

    @torch.no_grad()
    def encode(batch: list[list[np.ndarray[Any, Any]]]) -> torch.Tensor:
        videos = [np.stack(clip) for clip in batch] if video_processor else batch
        inputs = processor(videos, return_tensors="pt")
        pixels = next(iter(inputs.values())).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            return model(pixel_values=pixels).last_hidden_state.float().mean(dim=1).cpu()

    def run(paths: Sequence[str]) -> int:
        rows: list[torch.Tensor] = []
        batch: list[list[np.ndarray[Any, Any]]] = []
        for path in paths:
            for clip in windows(path, num_frames=sizes.frames):
                batch.append(clip)
                if len(batch) == WINDOWS_AT_ONCE:
                    rows.append(encode(batch))
                    batch = []
        rows += [encode(batch)] if batch else []
        vectors = torch.cat(rows)
        assert vectors.shape[1] == sizes.width
        return len(vectors)

    return run


def core_seconds() -> float:
    """Seconds that this process and those that it started and that have ended used a core."""
    return sum(os.times()[:4])


def rates_of(
    contenders: Sequence[Contender], paths: Sequence[str], *, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Windows a second, and a core's second, of each contender in each round; each round starts with another one."""
    rates: dict[str, dict[str, list[float]]] = {contender.name: {"wall": [], "core": []} for contender in contenders}
    for contender in contenders:
        contender.run(paths[:1])  # the warm-up
    for turn in range(rounds):
        for place in range(len(contenders)):
            contender = contenders[(place + turn) % len(contenders)]
            wall, core = time.perf_counter(), core_seconds()
            count = contender.run(paths)
            rates[contender.name]["wall"].append(count / (time.perf_counter() - wall))
            rates[contender.name]["core"].append(count / (core_seconds() - core))
    return rates


def summary(rates: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Each contender's rates, and how many times as fast mam2 was in the same round."""
    result: dict[str, Any] = {name: {} for name in rates}
    for name, of_name in rates.items():
        for kind, values in of_name.items():
            ratios = [a / b for a, b in zip(rates[OURS][kind], values, strict=True)]
            result[name] |= {
                f"windows_per_{kind}_second": statistics.median(values),
                f"rounds_{kind}": values,
                f"mam2_over_it_{kind}": statistics.median(ratios),
            }
    return result


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the benchmark; writes what it needs into `folder`."""
    sizes = SIZES[options.model]
    if options.videos:
        paths = [
            item.path for item in read_catalog(Listing(root=options.videos), labelled=False).items[: options.num_videos]
        ]
    else:
        span = sizes.frames * STRIDE
        count = max(1, round(options.seconds * FPS / span)) * span  # whole windows
        paths = [str(folder / f"{number}.mp4") for number in range(options.num_videos)]
        write_h264(Path(paths[0]), filmed(count, seed=0))
        for path in paths[1:]:  # filming takes longer than embedding
            shutil.copy(paths[0], path)
    workers = options.num_workers
    contenders = [
        Contender(OURS, ours(sizes, folder, precision="auto", num_workers=workers)),
        Contender(OURS_FP32, ours(sizes, folder, precision="fp32", num_workers=workers)),
        Contender(THEIRS, theirs(sizes, bf16=False, video_processor=False)),
        Contender(THEIRS_VIDEO, theirs(sizes, bf16=False, video_processor=True)),
        Contender(THEIRS_BF16, theirs(sizes, bf16=True, video_processor=True)),
    ]
    packages = ("torch", "torchvision", "av", "transformers", "pyarrow")
    result: dict[str, Any] = {"machine": machine(local_device(), packages=packages), "encoder": asdict(sizes)}
    return result | {"num_videos": len(paths), "rates": summary(rates_of(contenders, paths, rounds=options.rounds))}


def show(result: dict[str, Any], console: Console) -> None:
    """The result as a table."""
    table = Table(title=f"{result['model']}, windows of {result['encoder']['frames']} × {STRIDE} frames")
    for column in ("contender", "windows/s", "mam2 over it", "windows/core·s", "mam2 over it"):
        table.add_column(column)
    for name, row in result["rates"].items():
        cells = [[row[f"windows_per_{kind}_second"], row[f"mam2_over_it_{kind}"]] for kind in ("wall", "core")]
        table.add_row(name, *(f"{value:.2f}" for pair in cells for value in pair))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns what `--out` writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="vit_b")
    parser.add_argument("--videos", type=Path, help="a folder of videos, or a list; by default some are written")
    parser.add_argument("--num-videos", type=int, default=4, help="to write, or to take (default 4)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of those that are written (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--num-workers", type=int, default=2, help="decoding processes of mam2 (default 2)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    for name in ("num_videos", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1.")
    words = sys.argv[1:] if arguments is None else arguments
    result: dict[str, Any] = {"benchmark": "embed", "command": shlex.join(["python", "benchmarks/embed.py", *words])}
    result |= {"model": options.model, "rounds": options.rounds, "stride_frames": STRIDE}
    with tempfile.TemporaryDirectory() as folder:
        result |= measure(options, Path(folder))
    show(result, Console(width=100))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    main()
