"""`mam2 prepare`, `mam2 tokenizer convert` and `mam2 tokenizer train`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from mam2.cli import tables
from mam2.cli.parse import finished, parse, say
from mam2.data.catalog import read_catalog
from mam2.data.clips import Data
from mam2.data.prepare.extract import Extract, write_all_frames
from mam2.data.prepare.manifest import Prepare, prepare
from mam2.data.shape import Listing
from mam2.targets.tokenizers.convert import convert_checkpoint
from mam2.targets.tokenizers.vq import VQConfig
from mam2.train.tokenizer import train_tokenizer
from mam2.use.show import show_reconstruction


@dataclass(frozen=True, kw_only=True)
class PrepareCommand:
    """Check a data set against its official lists and write its manifest, a CSV for --data.root; extract its frames.

    Attributes:
        name: k400, ssv2, ucf101, hmdb51, folder for your own; label_studio or cvat for that with a tool's labels.
        root: the folder of the videos; your own can also be a CSV with path, label, split, start, end.
        split: the official split of UCF101 and HMDB51, 1 to 3.
        annotations: the folder of the official lists; by default looked for in the root. Of a tool: its export.
        control: of Label Studio, the control whose labels to take; needed where several are used.
        label_fps: frames per second by which the tool counted; 0 is each video's own.
        out: the manifest; by default in the root, named after the data set.
        frames: a folder to extract all frames to, with a manifest of their own.
        short_side: of the frames, pixels (256 or 320 are usual).
        quality: of the frames' JPEG files, 1 to 100.
        num_workers: processes.
        timeout_seconds: time to open a video; one that takes longer is unreadable. Its frames can take 30 times as
            long.
        max_missing_share: share of the listed videos that can be missing or unreadable.
    """

    name: Positional[str]
    root: Path
    split: int = 1
    annotations: Path | None = None
    control: str = ""
    label_fps: float = 0.0
    out: Path | None = None
    frames: Path | None = None
    short_side: int = 256
    quality: int = 90
    num_workers: int = 2
    timeout_seconds: int = 120
    max_missing_share: float = 0.05


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Convert an official VQGAN or DALL-E checkpoint to safetensors; nothing in it is executed.

    Attributes:
        checkpoint: the official last.ckpt of a VQGAN, or encoder.pkl of DALL-E.
        out: the .safetensors to write.
        decoder: DALL-E's decoder.pkl, which only pictures need.
    """

    checkpoint: Positional[Path]
    out: Path
    decoder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerCommand:
    """Train a small VQ tokenizer on your own videos, and draw what its codes keep of them beside it (.png).

    Attributes:
        root: a folder of videos, or a CSV with `path`.
        out: the .safetensors to write.
        num_codes: size of the codebook.
        patch_size: pixels; the encoder's.
        size: height and width of the frames, pixels.
        num_steps: optimiser steps of 32 frames.
        split: which rows of a CSV that has several splits.
        seed: of weights and frames.
    """

    root: Positional[str]
    out: Path
    num_codes: int = 1024
    patch_size: int = 16
    size: int = 224
    num_steps: int = 400
    split: str = ""
    seed: int = 0


def main(verb: str, arguments: list[str]) -> None:
    """Prepares a data set, or a tokenizer."""
    match verb:
        case "prepare":
            prepare_data_set(parse(PrepareCommand, verb, arguments))
        case "tokenizer convert":
            convert = parse(ConvertCommand, verb, arguments)
            summary = convert_checkpoint(convert.checkpoint, convert.out, decoder=convert.decoder)
            print(json.dumps(summary, indent=2))
        case "tokenizer train":
            train(parse(TrainTokenizerCommand, verb, arguments))


def prepare_data_set(command: PrepareCommand) -> None:
    """Writes a manifest, and frames if asked."""
    config = Prepare(
        name=command.name,
        root=command.root,
        split=command.split,
        annotations=command.annotations,
        control=command.control,
        label_fps=command.label_fps,
        out=command.out,
        num_workers=command.num_workers,
        timeout_seconds=command.timeout_seconds,
        max_missing_share=command.max_missing_share,
    )
    report = prepare(config)
    tables.print_prepared(report)
    if command.frames:
        done = write_all_frames(
            report.manifest,
            Extract(frames=command.frames, short_side=command.short_side, quality=command.quality),
            num_workers=command.num_workers,
            timeout_seconds=30 * command.timeout_seconds,
            max_bad_share=command.max_missing_share,
        )
        say(f"{done.num_videos} videos as frames, {len(done.bad)} left out: {done.manifest}")


def train(command: TrainTokenizerCommand) -> None:
    """Trains a tokenizer and draws what it keeps."""
    start = time.monotonic()
    catalog = read_catalog(Listing(root=command.root, split=command.split), labelled=False)
    config = VQConfig(patch_size=command.patch_size, num_codes=command.num_codes)
    report = train_tokenizer(
        catalog,
        Data(),
        config,
        command.out,
        size=command.size,
        num_steps=command.num_steps,
        seed=command.seed,
    )
    picture = command.out.with_suffix(".png")
    show_reconstruction(command.out, [item.path for item in catalog.items], picture, size=command.size)
    print(json.dumps(report | {"picture": str(picture)}, indent=2))
    use = f"--targets.appearance vq --targets.file {command.out}"
    pretrain = f"mam2 pretrain RECIPE --data.root {command.root} {use} --out RUN"
    finished(f"{command.out}, {picture}", start, pretrain, file=sys.stderr)  # stdout is JSON
