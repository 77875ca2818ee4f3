"""`mam2 tokenizer convert` and `mam2 tokenizer train`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from mam2.cli.parse import finished, parse
from mam2.data.catalog import read_catalog
from mam2.data.clips import Data
from mam2.data.shape import Listing
from mam2.targets.tokenizers.convert import convert_checkpoint
from mam2.targets.tokenizers.vq import VQConfig
from mam2.train.tokenizer import train_tokenizer
from mam2.use.show import show_reconstruction


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Convert an official VQGAN or DALL-E checkpoint to safetensors; nothing in it is executed.

    Attributes:
        checkpoint: the official last.ckpt of a VQGAN, or encoder.pkl of DALL-E.
        out: .safetensors file to write.
        decoder: DALL-E's decoder.pkl, which only pictures need; by default none.
    """

    checkpoint: Positional[Path]
    out: Path
    decoder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerCommand:
    """Train a small VQ tokenizer on your own videos, and draw what its codes keep of them (.png, in the same folder).

    Attributes:
        root: a folder of videos, or a CSV with `path`.
        out: .safetensors file to write.
        num_codes: size of the codebook.
        patch_size: side of a patch, pixels; the encoder's.
        size: height and width of the frames, pixels.
        num_steps: number of optimiser steps, of 32 frames each.
        split: rows of a CSV that has several splits; empty takes all of a CSV with one.
        seed: seed of weights and frames.
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
    """Converts a tokenizer, or trains one."""
    if verb == "tokenizer train":
        train(parse(TrainTokenizerCommand, verb, arguments))
    else:
        command = parse(ConvertCommand, verb, arguments)
        summary = convert_checkpoint(command.checkpoint, command.out, decoder=command.decoder)
        print(json.dumps(summary, indent=2))


def train(command: TrainTokenizerCommand) -> None:
    """Trains a tokenizer and draws what it keeps."""
    catalog = read_catalog(Listing(root=command.root, split=command.split), labelled=False)
    report = train_tokenizer(
        catalog,
        Data(),
        VQConfig(patch_size=command.patch_size, num_codes=command.num_codes),
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
    finished(f"{command.out}, {picture}", pretrain, file=sys.stderr)  # stdout is JSON
