"""Training of a small VQ tokenizer on one's own frames (targets/tokenizers/vq.py)."""

from __future__ import annotations

import logging
from pathlib import Path

from mam2.config import UserError
from mam2.data.catalog import Catalog
from mam2.data.clips import Data
from mam2.data.loader import TrainLoader
from mam2.data.shape import ClipShape
from mam2.device import local_device
from mam2.targets.tokenizers.codes import save_tokenizer
from mam2.targets.tokenizers.vq import VQConfig, train_vq

log = logging.getLogger("mam2")
FRAMES_PER_VIDEO = 4  # neighbouring frames are alike: many videos with few frames each make a better codebook
VIDEOS_PER_STEP = 8


def train_tokenizer(
    catalog: Catalog, data: Data, config: VQConfig, file: Path, *, size: int, num_steps: int, seed: int
) -> dict[str, float]:
    """Trains a VQ tokenizer on random frames and writes it.

    Args:
        catalog: the videos.
        data: how clips are made of them.
        config: the tokenizer's sizes.
        file: the file to write (.safetensors).
        size: height and width of the frames, pixels.
        num_steps: optimiser steps, of 32 frames each.
        seed: seed of weights and frames.

    Returns:
        `mse` of pixels in [0, 1], `mse_of_mean` (of the mean patch), `usage` and `perplexity` of the codebook.

    Raises:
        UserError: the file exists already, or the videos can't be used.
    """
    if file.exists():
        raise UserError(f"{file} exists already; a run may depend on it. Give another --out, or remove it.")
    loader = TrainLoader(
        catalog,
        data,
        ClipShape(FRAMES_PER_VIDEO, size),
        batch_size=VIDEOS_PER_STEP,
        num_steps=num_steps + 4 * config.num_codes // VIDEOS_PER_STEP,
        seed=seed,
    )
    log.info(f"Training a VQ tokenizer with {config.num_codes} codes on {len(catalog.items)} videos.")
    frames = (batch.clip_BTCHW.flatten(0, 1) for batch in loader)
    vq, report = train_vq(frames, config, num_steps=num_steps, seed=seed, device=local_device())
    file.parent.mkdir(parents=True, exist_ok=True)
    save_tokenizer(vq.state_dict(), file, config=vq.config)
    log.info(f"Wrote {file}: {', '.join(f'{name} {value:.4g}' for name, value in report.items())}.")
    return report
