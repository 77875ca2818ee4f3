"""Still image as a video of one frame, for training on images and videos (OmniMAE)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from mam2.config import UserError
from mam2.data.video.index import MAX_PIXELS, VideoError, reason_of, scaled_down

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def image_paths(root: str) -> list[str]:
    """Images of a folder, at any depth, sorted. Raises UserError for a folder without any."""
    found = sorted(str(path) for path in Path(root).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"{root} holds no images. Accepted: files ending in {', '.join(IMAGE_SUFFIXES)}, at any depth.")
    return found


def read_image(path: str, *, short_side: int) -> torch.Tensor:
    """Reads an image, upright: RGB, uint8 (3, H, W), scaled down to a short side; 0 leaves it as it is. Raises
    VideoError for other files, and damaged or enormous images."""
    try:
        with Image.open(path) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise ValueError(f"it is said to have {image.width} × {image.height} pixels")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            height, width = scaled_down(upright.height, upright.width, short_side)
            if (height, width) != (upright.height, upright.width):
                upright = upright.resize((width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow raises errors of many kinds
        raise VideoError(
            f"{path} can't be read as an image: {reason_of(error)}. Remove it, or fetch it again."
        ) from error
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
