"""The run folder: run.json, the whole configuration, claims it; another run in it is refused.

It also holds log.jsonl, checkpoints/, and encoder.safetensors or classifier.safetensors, which need no other file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mam2 import distributed
from mam2.config import Duration, UserError, from_json, to_json
from mam2.data.clips import Data
from mam2.files import first_line, flat, parse_json, read_object, write_text
from mam2.train import checkpoint

log = logging.getLogger("mam2")
LOCK = ".lock"  # the file whose lock the writing process holds

# Fields that may change when a run is resumed: they do not affect results beyond rounding. Exceptions: accumulated
# parts change the partners of mixup and cutmix, and compiling changes what drop path draws.
FREE_FIELDS = (
    *("data.root", "data.num_workers", "data.timeout_seconds", "data.backend", "data.max_bad_share"),
    *("loop.accumulate", "loop.compile", "loop.recompute", "loop.log_every", "loop.save_every", "loop.keep"),
    "loop.track",
    *("targets.cache", "watch.labelled", "watch.every", "watch.shots", "clips", "crops"),
)


def open_run(
    folder: Path, kind: str, config: Any, *, resume: bool, videos: Sequence[str] = (), classes: tuple[str, ...] = ()
) -> bool:
    """Claims a run folder. A run that has neither logged nor saved anything yet gives way to other settings.

    Args:
        folder: new, empty, or the folder of the same run.
        kind: "pretrain" or "finetune".
        config: the run's configuration; written to run.json.
        resume: resumes a run that is there already.
        videos: the data set's paths, in order; a run resumes only with the same ones, wherever they lie.
        classes: the data set's classes, in order.

    Returns:
        True if the folder holds this run already.

    Raises:
        UserError: the folder holds another run, other files, or the same run while `resume` is off.
    """
    check_run_folder(folder)
    record = folder / "run.json"
    wanted = {"kind": kind, "config": to_json(config), "classes": list(classes)}
    wanted |= {"num_videos": len(videos), "videos": _digest_of_names(videos)}
    if record.exists():
        found = read_run(folder)
        found.setdefault("videos", wanted["videos"])  # missing in files of version 0.1
        with contextlib.suppress(UserError, KeyError):  # fields that did not exist when it was written have defaults
            found["config"] = to_json(from_json(type(config), found["config"]))
        changed = _differences(found, wanted)
        rows = folder / "log.jsonl"
        if changed and resume and not checkpoint.checkpoints(folder) and not (rows.exists() and rows.stat().st_size):
            (folder / "tokenizer.safetensors").unlink(missing_ok=True)  # trained for the other settings
            write_text(record, json.dumps(wanted, indent=2))
            return False
        if resume and changed == ["loop.duration"] and (lengthened := _lengthened(found, wanted)):
            log.warning(lengthened)
            write_text(record, json.dumps(wanted, indent=2))
            return True
        if changed:
            raise UserError(
                f"{folder} holds another run, which differs in {', '.join(changed[:5])}"
                f"{' and more' if len(changed) > 5 else ''}. Give another --out, or the same settings to resume it."
            )
        if not resume:
            raise UserError(
                f"{folder} holds this run already. Give another --out, or leave out --no-resume to resume it."
            )
        return True
    folder.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(wanted, indent=2))
    return False


def check_run_folder(folder: Path) -> None:
    """Raises UserError for an existing folder that is not a run's."""
    if not folder.exists() or (folder / "run.json").exists():
        return
    # A kill in the middle of the first write leaves the lock and run.json's half behind.
    if not folder.is_dir() or any(p.name != LOCK and not p.name.startswith("run.json.") for p in folder.iterdir()):
        raise UserError(f"{folder} exists and is no run's folder (it has no run.json). Give another --out.")


class InUse(UserError):
    """Another process writes in the folder."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Makes the folder of a run and keeps other processes out of it, on rank 0.

    The lock is the system's: it ends with the process that holds it, and reaches other machines through most network
    file systems, such as NFS.

    Raises:
        UserError: another process writes there (InUse), or the folder is not a run's.
    """
    if distributed.rank() != 0:
        yield
        return
    check_run_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        checkpoint.remove_leftovers(folder)
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of an existing folder.

    Raises:
        InUse: another process holds it.
    """
    with (folder / LOCK).open("a+") as lock:
        try:
            # This kind is not inherited by the loader's processes, which may outlive a killed trainer by seconds.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                log.warning(f"{folder} can't be locked ({error.strerror}): see that no other run writes there.")
            else:
                lock.seek(0)
                raise InUse(
                    f"{folder} is in use by {lock.read().strip() or 'another process'}. Wait for its end, stop it, or "
                    "give another --out."
                ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def read_run(folder: Path) -> dict[str, Any]:
    """The contents of run.json: {"kind", "config", ...}.

    Raises:
        UserError: the folder is not a run's, or its run.json is damaged.
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} is no run's folder: it has no run.json. Give the --out of an earlier run.")
    return read_object(folder / "run.json", {"kind": str, "config": dict})


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of a run that matter when its model is used.

    Attributes:
        kind: "pretrain" or "finetune".
        data: how clips are made.
        precision: precision of its training.
        views: clips and crops per video that a fine-tuning is tested on; (1, 1) for a pre-training.
        seed: seed of the run.
    """

    kind: str
    data: Data
    precision: str
    views: tuple[int, int]
    seed: int


def settings_of(source: str | Path) -> RunSettings | None:
    """Settings of the run that a folder, or a weight file in it, belongs to; None without a run.json."""
    place = Path(source)
    folder = place if place.is_dir() else place.parent
    if not place.exists() or not (folder / "run.json").is_file():
        return None
    record = read_run(folder)
    config = record["config"]
    try:
        return RunSettings(
            kind=record["kind"],
            data=from_json(Data, config["data"]),
            precision=str(config["loop"].get("precision", "auto")),
            views=(int(config.get("clips", 1)), int(config.get("crops", 1))),
            seed=int(config["loop"].get("seed", 0)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'run.json'} is damaged: its settings can't be read ({first_line(error)}). Give the weight file "
            "in a folder of its own to do without them."
        ) from error


def _lengthened(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """A warning for a run that is made longer; empty for others."""
    before, now = (Duration.parse(record["config"]["loop"]["duration"]) for record in (found, wanted))
    if before.unit != now.unit or now.value < before.value:
        return ""
    return (
        f"The run is lengthened from {before} to {now}. From here on the learning rate follows the schedule of the new "
        "length, which is higher at this step: it rises at once, and falls again over the steps that are left."
    )


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Dotted names of the fields that differ, except FREE_FIELDS, sorted."""
    first = flat(found)
    second = flat(wanted)
    names = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    return sorted({name.removeprefix("config.") for name in names} - set(FREE_FIELDS))


def _digest_of_names(paths: Sequence[str]) -> str:
    """A hash of the paths below the folder that they have in common."""
    whole = [Path(path).absolute() for path in paths]
    root = os.path.commonpath([path.parent for path in whole]) if whole else ""
    names = (path.relative_to(root).as_posix() for path in whole)
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a log.jsonl. A last line that was cut off, as a killed run leaves it, is dropped.

    Raises:
        UserError: any other line that is no JSON object.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise UserError(f"{path}, line {number}, is no JSON object: {line[:60]!r}. Fix or delete that line.")
    return rows
