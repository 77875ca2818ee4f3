"""Encoders from any source: our own files first, published ones by the importers."""

from __future__ import annotations

import logging
from pathlib import Path

from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import load_own_encoder, own_file, read_own_config

log = logging.getLogger("mam2")


def load_encoder(source: str | Path) -> VideoEncoder:
    """A pre-trained encoder, in eval mode on the CPU: `load_encoder("RUN")(clip) -> features`.

    Args:
        source: a run's folder, or an encoder.safetensors or classifier.safetensors file; `hf://USER/NAME`, written by
            `mam2 push`; or a published encoder, as `import_encoder` takes it: `timm:NAME`, `hf:NAME`, a folder or file
            of its weights.

    Returns:
        A VideoEncoder: clips (B, T, 3, H, W), uint8 in [0, 255] or floats in [0, 1], to features (B, T, N, D). For
        another number of frames or another size than the trained one it interpolates positions, and logs a warning.

    Raises:
        UserError: nothing there, another kind of file, a damaged one, weights that are not finite, or an unknown
            published encoder.
    """
    file = own_file(source)
    if file is not None:
        return load_own_encoder(file)
    from mam2.model.importers import import_encoder  # its tables of names are only read for published encoders

    imported = import_encoder(str(source))
    log.info(f"Imported {source}. `mam2 import {source} --out FILE` says what became of each tensor.")
    return imported.encoder


def read_encoder_config(source: str | Path) -> EncoderConfig:
    """The configuration of the encoder that `load_encoder` loads; only published ones have their weights read."""
    file = own_file(source)
    return load_encoder(source).config if file is None else read_own_config(file)
