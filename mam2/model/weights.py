"""Encoders and classifiers as files: safetensors that carry their own configuration."""

from __future__ import annotations

import hashlib
import json
import logging
import typing
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from mam2 import files
from mam2.config import RENAMED_WORDS, UserError, from_json, is_plug_in, to_json
from mam2.model.classifier import Classifier, OutputKind, Pooling
from mam2.model.encoder import EncoderConfig, Origin, VideoEncoder
from mam2.model.positions import FullPositions, Positions, SpaceRotaryPositions, is_interpolated, time_at
from mam2.model.weight_file import CLASSIFIER_FILE, HUB, weight_file

log = logging.getLogger("mam2")
FORMAT_ENCODER = "mam2.encoder"
FORMAT_CLASSIFIER = "mam2.classifier"
PUBLIC = ("timm:", "hf:")
"""Prefixes of published encoders' names: the place of publication."""


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Copies tensors into a model; UserError, naming the first few, unless all fit and are finite."""
    where = f"{file} is a checkpoint of another architecture; use the settings it was trained with"
    files.check_tensors(tensors, files.shapes_of(model), where=where)
    files.check_finite(tensors, file=file)
    model.load_state_dict(tensors)


def save_encoder(file: Path, encoder: VideoEncoder) -> None:
    """Writes an encoder, its configuration, and where its weights come from, into one file."""
    files.write_tensors(file, encoder.state_dict(), _metadata(encoder, FORMAT_ENCODER))


def load_own_encoder(file: Path) -> VideoEncoder:
    """The encoder of a file that this project wrote, a classifier's too, in eval mode on the CPU.

    UserError for another kind of file, a damaged one, or weights that are not finite.
    """
    tensors, metadata = files.read_tensors(file)
    config = _encoder_config(metadata, file)
    if metadata["format"] == FORMAT_CLASSIFIER:
        tensors = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
    return files.model_with(lambda: VideoEncoder(config, origin=_origin_of(metadata, file)), tensors, file=file)


def read_own_config(file: Path) -> EncoderConfig:
    """The configuration of the encoder in a file that this project wrote; its weights are not read."""
    return _encoder_config(files.read_metadata(file), file)


def own_file(source: str | Path) -> Path | None:
    """The file of this project's encoder or classifier that `source` names; None where it is somebody else's."""
    if str(source).startswith(HUB):
        return weight_file(source)
    if str(source).startswith(PUBLIC) or is_plug_in(str(source)):
        return None
    path = Path(source)
    if path.is_dir():
        own = weight_file(path)
        return own if own.exists() or not (path / "config.json").exists() else None
    is_own = not path.is_file() or (
        path.suffix == ".safetensors" and files.read_metadata(path).get("format", "").startswith("mam2.")
    )
    return path if is_own else None


def _metadata(encoder: VideoEncoder, file_format: str) -> dict[str, str]:
    metadata = {"format": file_format, "config": json.dumps(to_json(encoder.config))}
    return metadata if encoder.origin is None else metadata | {"origin": json.dumps(to_json(encoder.origin))}


def _origin_of(metadata: dict[str, str], file: Path) -> Origin | None:
    """Source of the weights of a file; None: this project."""
    try:
        return from_json(Origin, files.parse_json(metadata["origin"])) if "origin" in metadata else None
    except ValueError as error:
        raise UserError(f"{file} is damaged: its origin can't be read ({files.first_line(error)}).") from error


def read_origin(file: Path) -> Origin | None:
    """Source of the weights in an encoder's or classifier's file; None: this project."""
    return _origin_of(files.read_metadata(file), file)


def encoder_digest(encoder: VideoEncoder) -> str:
    """A hash of an encoder's configuration and weights, which decide its features."""
    settings = sorted((name, value) for name, value in to_json(encoder.config).items() if name != "drop_path")
    return hashlib.sha256(repr((settings, files.digest(encoder.state_dict()))).encode()).hexdigest()


def _encoder_config(metadata: dict[str, str], file: Path) -> EncoderConfig:
    if metadata.get("format") not in (FORMAT_ENCODER, FORMAT_CLASSIFIER):
        raise UserError(
            f"{file} holds no encoder of mam2 (format {metadata.get('format')}). Give a run's encoder.safetensors."
        )
    return files.config_of(metadata, EncoderConfig, file=file)


def save_classifier(file: Path, classifier: Classifier, classes: tuple[str, ...]) -> None:
    """Writes a classifier, its encoder's configuration and its class names into one file."""
    metadata = _metadata(classifier.encoder, FORMAT_CLASSIFIER) | {"classes": json.dumps(classes)}
    if classifier.kind != "classes":
        old_words = {new: old for old, new in RENAMED_WORDS.items()}  # version 0.1 reads the file too
        metadata["labels"] = old_words[classifier.kind]
    if classifier.pooling != "all":
        metadata["pooling"] = classifier.pooling
    files.write_tensors(file, classifier.state_dict(), metadata)


def load_classifier(source: str | Path) -> tuple[Classifier, tuple[str, ...]]:
    """A fine-tuned classifier in eval mode on the CPU, and its class names, from a source as `load_encoder` takes.

    Raises:
        UserError: nothing there, no classifier, a damaged file, or weights that are not finite.
    """
    file = weight_file(source, (CLASSIFIER_FILE,))
    if Path(source).is_dir() and not file.exists():
        raise UserError(
            f"{source} holds no classifier. Fine-tune one first: mam2 finetune RECIPE --init {source} --out DIR."
        )
    tensors, metadata = files.read_tensors(file)
    if metadata.get("format") != FORMAT_CLASSIFIER:
        raise UserError(
            f"{file} holds no classifier (format {metadata.get('format')}). Give the folder of a `mam2 finetune`."
        )
    config = files.config_of(metadata, EncoderConfig, file=file)
    try:
        classes = tuple(map(str, files.parse_json(metadata["classes"])))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} is damaged: the names of its classes can't be read ({files.first_line(error)})."
        ) from error
    kind = cast(OutputKind, _word(metadata, "labels", typing.get_args(OutputKind), file=file))
    pooling = cast(Pooling, _word(metadata, "pooling", typing.get_args(Pooling), file=file))
    origin = _origin_of(metadata, file)

    def make() -> Classifier:
        return Classifier(VideoEncoder(config, origin=origin), len(classes), kind, pooling=pooling)

    return files.model_with(make, tensors, file=file), classes


def _word(metadata: Mapping[str, str], name: str, accepted: tuple[str, ...], *, file: Path) -> str:
    """A word of a classifier's metadata; by default the first of the accepted ones."""
    word = metadata.get(name, accepted[0])
    word = RENAMED_WORDS.get(word, word)
    if word not in accepted:
        raise UserError(f"{file} is damaged: it states the {name} {word!r}; accepted: {', '.join(accepted)}.")
    return word


def _flag(name: str, value: object) -> str:
    """The option of the command line that sets a field of the encoder."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--encoder.{option}" if value else f"--encoder.no-{option}"
    return f"--encoder.{option} {value}"


def is_resampled(source: EncoderConfig, target: EncoderConfig) -> bool:
    """True if positions are interpolated for another's frames and size; fixed ones are computed again."""
    changes = is_interpolated(source.positions, frames=source.frames != target.frames, grid=source.size != target.size)
    return changes and source.positions != "sequence"


def copy_encoder(source: VideoEncoder, target: VideoEncoder, name: str) -> None:
    """Copies weights; positions are interpolated where frames or size differ, and a line of the log says so.

    UserError for another architecture; its message calls the source `name`.
    """
    found = asdict(source.config)
    wanted = asdict(target.config)
    wrong = [k for k in found if k not in ("drop_path", "frames", "size") and found[k] != wanted[k]]
    if wrong:
        differences = ", ".join(f"{k} {found[k]} (here {wanted[k]})" for k in wrong)
        raise UserError(
            f"{name} is an encoder of another architecture: {differences}. Use the recipe that belongs to it, "
            f"or {' '.join(_flag(k, found[k]) for k in wrong)}."
        )
    tensors = source.state_dict()
    if is_resampled(source.config, target.config):
        log.warning(
            f"Positions are interpolated from {source.config.frames} frames of {source.config.size}² to "
            f"{target.config.frames} frames of {target.config.size}²."
        )
    num_tubelets, grid = target.config.tubelets, target.config.grid
    if isinstance(source.positions, Positions | SpaceRotaryPositions):
        tensors["positions.time_TD"] = time_at(source.positions.time_TD, num_tubelets).detach()
    if isinstance(source.positions, Positions):
        tensors["positions.space_ND"] = source.positions.space(grid).detach()
    if isinstance(source.positions, FullPositions):
        tensors["positions.table_TND"] = source.positions(num_tubelets, grid).detach()
    target.load_state_dict(tensors)
    target.origin = source.origin
