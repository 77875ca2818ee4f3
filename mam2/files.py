"""Files written whole or not at all, tensor files, digests."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mam2.config import ConfigT, UserError, from_json

ModuleT = TypeVar("ModuleT", bound=nn.Module)

CHECKSUM = "checksum"
"""The entry of a tensor file's metadata that holds a hash of all others and of the tensors."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`, which takes its place at the end: a file is written whole or not at all.

    Example: `with written_whole(path) as part: part.write_bytes(data)`. An error leaves the old file as it was.

    Raises:
        OSError: naming `path`, where the system says no, such as on a full disk.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")  # two processes may write the same file
    try:
        yield part
        sync(part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.filename not in (None, str(part), part):
            raise  # about another file
        reason = getattr(error, "strerror", None) or first_line(error)
        raise OSError(f"{path} can't be written: {reason}") from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, in UTF-8."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, with a checksum, whole or not at all; equal contents give equal bytes."""
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(path) as part:
        save_file(on_host, part, metadata={**metadata, CHECKSUM: _checksum(on_host, metadata)})
        _sort_metadata(part)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A hash of all that a tensor file holds."""
    shapes = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in sorted(tensors.items())]
    contents = [sorted(metadata.items()), shapes, digest(tensors)]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _sort_metadata(file: Path) -> None:
    """Puts the metadata of a safetensors file in order: safetensors writes it in one that changes each time."""
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the same entries take the same room"
        opened.seek(8)
        opened.write(text.ljust(length))


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: a missing file, another kind of file, or one that was changed; a pickle is never opened.
    """
    metadata = read_metadata(file)
    with _safetensors_only(file):
        tensors = load_file(file)
    written = metadata.pop(CHECKSUM, None)  # files of other programs, and of version 0.1, have none
    if written is not None and written != _checksum(tensors, metadata):
        raise UserError(
            f"{file} is damaged: its contents are not those that were written (the checksum differs). Take a copy of "
            "it, or an earlier checkpoint."
        )
    return tensors, metadata


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file; errors are those of `read_tensors`."""
    if not file.is_file():
        raise UserError(f"{file} does not exist. Give a run's folder or a .safetensors file that mam2 wrote.")
    with _safetensors_only(file), safe_open(file, framework="pt") as opened:
        metadata: dict[str, str] = opened.metadata() or {}
        return metadata


@contextmanager
def _safetensors_only(file: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"{file} is no safetensors file ({first_line(error)}). Accepted are files that mam2 wrote: encoders, "
            "classifiers, tokenizers. Pickled checkpoints are not opened, since they can run code."
        ) from error


def config_of(metadata: Mapping[str, str], cls: type[ConfigT], *, file: Path) -> ConfigT:
    """The configuration that a tensor file carries in its metadata; UserError if it is missing or damaged."""
    try:
        return from_json(cls, parse_json(metadata["config"]))
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} is damaged: the configuration in it can't be used ({first_line(error)}).") from error


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Raises UserError, naming the first few, unless tensors have the expected names and shapes.

    The message begins with `where`.
    """
    wrong = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {tuple(found[name].shape)} instead of {shape}"
            for name, shape in expected.items()
            if name in found and tuple(found[name].shape) != shape
        ],
    }
    problems = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in wrong.items()
        if names
    ]
    if problems:
        raise UserError(f"{where}. {'; '.join(problems)}.")


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def shapes_on_meta(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a model that is made without memory: a damaged file may state any size."""
    with torch.device("meta"):
        return shapes_of(make())


def model_with(make: Callable[[], ModuleT], tensors: dict[str, Tensor], *, file: Path) -> ModuleT:
    """The model that a file's configuration makes, with the file's tensors, in eval mode.

    Raises:
        UserError: tensors that do not fit, or are not finite.
    """
    where = f"{file} is damaged: its tensors are not those that its configuration states"
    check_tensors(tensors, shapes_on_meta(make), where=where)
    check_finite(tensors, file=file)
    model = make()
    model.load_state_dict(tensors)
    return model.eval()


def check_finite(tensors: Mapping[str, Tensor], *, file: Path | str) -> None:
    """Raises UserError, naming the first few, if weights are not finite."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise UserError(
            f"{file} holds weights that are not finite: {', '.join(bad[:4])}{', ...' if len(bad) > 4 else ''}. The "
            "training that wrote it diverged, or the file is damaged. Take an earlier checkpoint, or train again."
        )


def read_object(path: Path, fields: dict[str, type]) -> dict[str, Any]:
    """The JSON object in a file that a run wrote, with at least these fields of these types.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    advice = "Restore it, or start again in another folder."
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({first_line(error)}). {advice}") from error
    if not isinstance(found, dict) or any(type(found.get(name)) is not kind for name, kind in fields.items()):
        wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
        raise UserError(f"{path} is damaged: it is not an object with {wanted}. {advice}")
    return found


def parse_json(text: str) -> Any:
    """Parsed JSON; whatever is wrong with it, its depth too, is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def flat(fields: dict[str, Any], before: str = "") -> dict[str, Any]:
    """A nested dict with dotted names: {"loop.seed": 0}."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def file_checksum(path: Path) -> str:
    """A hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a message of our own."""
    return str(error).splitlines()[0][:150] if str(error) else type(error).__name__


def sync(path: Path) -> None:
    """Waits until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
