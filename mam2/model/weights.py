"""Encoders and classifiers as files: safetensors that carry their own configuration."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from mam2.config import UserError, to_json
from mam2.files import (
    check_finite,
    check_tensors,
    config_of,
    first_line,
    parse_json,
    read_metadata,
    read_tensors,
    shapes_of,
    write_tensors,
)
from mam2.model.classifier import Classifier
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.positions import Positions

log = logging.getLogger("mam2")
FORMAT_ENCODER = "mam2.encoder"
FORMAT_CLASSIFIER = "mam2.classifier"

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Copies tensors into a model whose names and shapes must all match.

    Raises:
        UserError: naming the first few tensors that do not fit, or are not finite.
    """
    where = f"{file} is a checkpoint of another architecture; use the settings it was trained with"
    check_tensors(tensors, shapes_of(model), where=where)
    check_finite(tensors, file=file)
    model.load_state_dict(tensors)


def _loaded(make: Callable[[], ModuleT], tensors: dict[str, Tensor], file: Path) -> ModuleT:
    """A model of the sizes that a file states, with its tensors, in eval mode.

    It is made without memory first: a damaged file may state any size.
    """
    with torch.device("meta"):
        expected = shapes_of(make())
    check_tensors(
        tensors, expected, where=f"{file} is damaged: its tensors are not those that its configuration states"
    )
    check_finite(tensors, file=file)
    model = make()
    model.load_state_dict(tensors)
    return model.eval()


def save_encoder(file: Path, encoder: VideoEncoder) -> None:
    """Writes an encoder and its configuration into one file."""
    metadata = {"format": FORMAT_ENCODER, "config": json.dumps(to_json(encoder.config))}
    write_tensors(file, encoder.state_dict(), metadata)


def load_encoder(source: str | Path) -> VideoEncoder:
    """A pre-trained encoder, in eval mode on the CPU: `load_encoder("RUN")(clip) -> features`.

    Args:
        source: a run's folder, or an encoder.safetensors or classifier.safetensors file.

    Returns:
        A VideoEncoder: clips (B, T, 3, H, W), uint8 in [0, 255] or floats in [0, 1], to features (B, T, N, D).
        Another number of frames or another size than the trained one interpolates the positions, and a warning in
        the log says so.

    Raises:
        UserError: nothing there, no safetensors file, a file of another kind or a damaged one, or weights that are
            not finite.
    """
    file = _encoder_file(source)
    tensors, metadata = read_tensors(file)
    config = _encoder_config(metadata, file)
    if metadata["format"] == FORMAT_CLASSIFIER:
        tensors = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
    return _loaded(lambda: VideoEncoder(config), tensors, file)


def read_encoder_config(source: str | Path) -> EncoderConfig:
    """The configuration of the encoder that `load_encoder` would load, without its weights."""
    file = _encoder_file(source)
    return _encoder_config(read_metadata(file), file)


def _encoder_file(source: str | Path) -> Path:
    source = Path(source)
    if not source.is_dir():
        return source
    classifier = source / "classifier.safetensors"
    return classifier if classifier.exists() else source / "encoder.safetensors"


def _encoder_config(metadata: dict[str, str], file: Path) -> EncoderConfig:
    if metadata.get("format") not in (FORMAT_ENCODER, FORMAT_CLASSIFIER):
        raise UserError(
            f"{file} holds no encoder of mam2 (format {metadata.get('format')}). Give a run's encoder.safetensors."
        )
    return config_of(metadata, EncoderConfig, file=file)


def save_classifier(file: Path, classifier: Classifier, classes: tuple[str, ...]) -> None:
    """Writes a classifier, its encoder's configuration and its class names into one file."""
    config = json.dumps(to_json(classifier.encoder.config))
    metadata = {"format": FORMAT_CLASSIFIER, "config": config, "classes": json.dumps(classes)}
    write_tensors(file, classifier.state_dict(), metadata)


def load_classifier(source: str | Path) -> tuple[Classifier, tuple[str, ...]]:
    """A fine-tuned classifier in eval mode on the CPU, and its class names, from a run's folder or its file.

    Raises:
        UserError: nothing there, no classifier, a damaged file, or weights that are not finite.
    """
    source = Path(source)
    file = source / "classifier.safetensors" if source.is_dir() else source
    if source.is_dir() and not file.exists():
        raise UserError(
            f"{source} holds no classifier. Fine-tune one first: mam2 finetune RECIPE --init {source} --out DIR."
        )
    tensors, metadata = read_tensors(file)
    if metadata.get("format") != FORMAT_CLASSIFIER:
        raise UserError(
            f"{file} holds no classifier (format {metadata.get('format')}). Give the folder of a `mam2 finetune`."
        )
    config = config_of(metadata, EncoderConfig, file=file)
    try:
        classes = tuple(map(str, parse_json(metadata["classes"])))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged: the names of its classes can't be read ({first_line(error)}).") from error
    return _loaded(lambda: Classifier(VideoEncoder(config), len(classes)), tensors, file), classes


def copy_encoder(source: VideoEncoder, target: VideoEncoder, name: str) -> None:
    """Copies weights; positions are interpolated where frames or size differ, and a line of the log says so.

    Raises:
        UserError: an encoder of another architecture; `name` is what the message calls it.
    """
    free = ("drop_path", "frames", "size")
    found, wanted = asdict(source.config), asdict(target.config)
    wrong = [f"{k} {found[k]} (here {wanted[k]})" for k in found if k not in free and found[k] != wanted[k]]
    if wrong:
        flags = " ".join(
            f"--encoder.{k.replace('_', '-')} {found[k]}" for k in found if k not in free and found[k] != wanted[k]
        )
        raise UserError(
            f"{name} is an encoder of another architecture: {', '.join(wrong)}. Use the recipe that belongs to it, "
            f"or {flags}."
        )
    tensors = source.state_dict()
    resized = (source.config.frames, source.config.size) != (target.config.frames, target.config.size)
    if resized and isinstance(source.positions, Positions):  # fixed ones are made anew
        log.warning(
            f"Positions are interpolated from {source.config.frames} frames of {source.config.size}² to "
            f"{target.config.frames} frames of {target.config.size}²."
        )
        tensors["positions.time_TD"] = source.positions.time(target.config.tubelets).detach()
        tensors["positions.space_ND"] = source.positions.space(target.config.grid).detach()
    target.load_state_dict(tensors)
