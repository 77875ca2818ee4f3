"""Saving and loading: atomic, safetensors or weights-only, nothing that can execute code.

A run folder holds run.json (the whole configuration), log.jsonl, checkpoints/step_00001000/ (model.safetensors,
optimizer.pt, state.json), and encoder.safetensors, which carries its own configuration and needs no other file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mam2 import distributed
from mam2.config import UserError, from_json, to_json
from mam2.model.encoder import Classifier, EncoderConfig, VideoEncoder

FORMAT_ENCODER = "mam2.encoder"
FORMAT_CLASSIFIER = "mam2.classifier"
# May differ between the two sittings of one run: they do not touch its numbers, but for rounding (and, with
# accumulated parts, for the partners of mixup and cutmix; when compiled, for what drop path draws).
FREE_FIELDS = (
    *("data.root", "data.num_workers", "data.timeout_seconds", "data.backend", "data.max_bad_share"),
    *("loop.accumulate", "loop.compile", "loop.recompute", "loop.log_every", "loop.save_every", "loop.keep"),
    *("targets.cache", "clips", "crops"),
)


@dataclass(frozen=True)
class State:
    """Where a checkpoint stands: so many steps are done."""

    step: int


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A number, in hexadecimal, that follows from names and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes safetensors whole or not at all."""
    part = path.with_name(path.name + ".part")
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        part,
        metadata=metadata,
    )
    _sync(part)
    part.replace(path)


def open_run(
    folder: Path, kind: str, config: Any, *, resume: bool, videos: Sequence[str] = (), classes: tuple[str, ...] = ()
) -> bool:
    """Claims a run folder. A run that has neither logged nor saved anything yet gives way to other settings.

    Args:
        folder: new, empty, or the folder of the same run.
        kind: "pretrain" or "finetune".
        config: the run's configuration; written to run.json, with what tells the next two.
        resume: whether a run that is there already may be continued.
        videos: the data set's paths, in order; wherever they are, with others a resumed run would not be the same run.
        classes: of the data set, in their order.

    Returns:
        True if the folder holds this run already.

    Raises:
        UserError: the folder holds another run, other files, or the same run while `resume` is off.
    """
    record = folder / "run.json"
    wanted = {"kind": kind, "config": to_json(config), "classes": list(classes)}
    wanted |= {"num_videos": len(videos), "videos": _digest_of_names(videos)}
    if record.exists():
        found = _read_json(record)
        found.setdefault("videos", wanted["videos"])  # it was written before this was
        with contextlib.suppress(UserError, KeyError):  # fields that did not exist when it was written have defaults
            found["config"] = to_json(from_json(type(config), found["config"]))
        changed, rows = sorted(_differences(found, wanted)), folder / "log.jsonl"
        if changed and resume and not checkpoints(folder) and not (rows.exists() and rows.stat().st_size):
            (folder / "tokenizer.safetensors").unlink(missing_ok=True)  # trained for the other settings
            write_text(record, json.dumps(wanted, indent=2))
            return False
        if changed:
            raise UserError(
                f"{folder} holds another run, which differs in {', '.join(changed[:5])}"
                f"{' and more' if len(changed) > 5 else ''}. Give another --out, or the same settings to continue it."
            )
        if not resume:
            raise UserError(
                f"{folder} holds this run already. Give another --out, or leave --no-resume away to continue."
            )
        return True
    # A kill in the middle of the first write leaves run.json.part behind.
    if folder.exists() and (not folder.is_dir() or any(p.name != "run.json.part" for p in folder.iterdir())):
        raise UserError(f"{folder} exists and is no run's folder (it has no run.json). Give another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(wanted, indent=2))
    return False


def read_run(folder: Path) -> dict[str, Any]:
    """The contents of run.json: {"kind", "config"}.

    Raises:
        UserError: the folder is no run.
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} is no run's folder: it has no run.json. Give the --out of an earlier run.")
    return _read_json(folder / "run.json")


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, *, keep: int) -> None:
    """Writes checkpoints/step_N beside the older ones, then removes all but the newest `keep`."""
    place = folder / "checkpoints"
    part = place / f".part_{state.step:08d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, part / "model.safetensors")
    torch.save(optimizer.state_dict(), part / "optimizer.pt")
    (part / "state.json").write_text(json.dumps({"step": state.step}))
    for file in part.iterdir():
        _sync(file)
    final = place / f"step_{state.step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    part.replace(final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """A run's finished checkpoints, oldest first."""
    return sorted((folder / "checkpoints").glob("step_*"))


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Continues from the newest checkpoint; State(0) where there is none.

    Raises:
        UserError: the checkpoint is damaged or of another architecture, or processes see different ones.
    """
    found = checkpoints(folder)
    seen = set(distributed.gather(found[-1].name if found else "no checkpoint"))
    if len(seen) > 1:
        raise UserError(
            f"{folder} is not the same on all machines: {' here, '.join(sorted(seen))} there. Give an --out that they "
            "share."
        )
    if not found:
        return State(0)
    load_model(found[-1] / "model.safetensors", model)
    try:
        optimizer.load_state_dict(torch.load(found[-1] / "optimizer.pt", weights_only=True, map_location="cpu"))
    except Exception as error:  # torch names no common class for what a damaged file raises
        raise UserError(
            f"{found[-1] / 'optimizer.pt'} can't be read ({_first_line(error)}). "
            f"Remove {found[-1]} to continue from the checkpoint before it."
        ) from error
    return State(_read_json(found[-1] / "state.json")["step"])


def load_model(file: Path, model: nn.Module) -> None:
    """Loads a state dict strictly.

    Raises:
        UserError: no safetensors file, or one of another architecture.
    """
    tensors, _ = read_tensors(file)
    load_strictly(model, tensors, file)


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Copies tensors into a model whose names and shapes must all match.

    Raises:
        UserError: naming the first few tensors that do not fit.
    """
    wanted = model.state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in wanted]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        raise UserError(
            f"{file} is a checkpoint of another architecture: {'; '.join(wrong[:3])}"
            f"{f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. Use the settings it was trained with."
        )
    model.load_state_dict(tensors)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: the file is missing, or is no safetensors file; a pickle is never opened.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist. Give a run's folder or a .safetensors file that mam2 wrote.")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        return load_file(file), metadata
    except SafetensorError as error:
        raise UserError(
            f"{file} is no safetensors file ({_first_line(error)}). Accepted is encoder.safetensors of a run; pickled "
            "checkpoints are not opened, since they can run code."
        ) from error


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
        UserError: nothing there, no safetensors file, or a file of another kind.
    """
    source = Path(source)
    if source.is_dir():
        classifier = source / "classifier.safetensors"
        source = classifier if classifier.exists() else source / "encoder.safetensors"
    tensors, metadata = read_tensors(source)
    if metadata.get("format") not in (FORMAT_ENCODER, FORMAT_CLASSIFIER):
        raise UserError(
            f"{source} holds no encoder of mam2 (format {metadata.get('format')}). Give a run's encoder.safetensors."
        )
    encoder = VideoEncoder(from_json(EncoderConfig, json.loads(metadata["config"])))
    if metadata["format"] == FORMAT_CLASSIFIER:
        tensors = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
    load_strictly(encoder, tensors, source)
    return encoder.eval()


def save_classifier(file: Path, classifier: Classifier, classes: tuple[str, ...]) -> None:
    """Writes a classifier, its encoder's configuration and its class names into one file."""
    config = json.dumps(to_json(classifier.encoder.config))
    metadata = {"format": FORMAT_CLASSIFIER, "config": config, "classes": json.dumps(classes)}
    write_tensors(file, classifier.state_dict(), metadata)


def load_classifier(source: str | Path) -> tuple[Classifier, tuple[str, ...]]:
    """A fine-tuned classifier in eval mode on the CPU, and its class names, from a run's folder or its file.

    Raises:
        UserError: nothing there, or no classifier.
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
    classes = tuple(json.loads(metadata["classes"]))
    classifier = Classifier(VideoEncoder(from_json(EncoderConfig, json.loads(metadata["config"]))), len(classes))
    load_strictly(classifier, tensors, file)
    return classifier.eval(), classes


def _differences(found: Any, wanted: Any, where: str = "") -> set[str]:
    """Dotted names of what differs between two JSON values, but for FREE_FIELDS."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = set()
        for name in found.keys() | wanted.keys():
            names |= _differences(found.get(name), wanted.get(name), f"{where}.{name}" if where else name)
        return names
    where = where.removeprefix("config.")
    return {where} if found != wanted and where not in FREE_FIELDS else set()


def _digest_of_names(paths: Sequence[str]) -> str:
    """A number, in hexadecimal, that follows from the paths below the folder that they have in common."""
    whole = [Path(path).absolute() for path in paths]
    root = os.path.commonpath([path.parent for path in whole]) if whole else ""
    names = (path.relative_to(root).as_posix() for path in whole)
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({_first_line(error)}). Restore it, or start anew with another --out."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:150] if str(error) else type(error).__name__


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
