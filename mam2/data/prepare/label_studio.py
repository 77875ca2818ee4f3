"""Label Studio's JSON exports: choices and ranges of a timeline, as labelled stretches of frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from mam2.config import UserError
from mam2.data.catalog import VIDEO_SUFFIXES
from mam2.data.prepare.labelled import Labelled, split_of
from mam2.files import first_line, parse_json

CONTROLS = ("choices", "timelinelabels")  # those that name classes


def read_label_studio(file: Path, control: str) -> list[Labelled]:
    """Reads tasks with annotations: a choice labels the whole video, a range of a timeline some of its frames."""
    try:
        tasks = parse_json(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {first_line(error)}. Export it again.") from error
    if not isinstance(tasks, list):
        raise UserError(f"{file} is no list of tasks. In Label Studio choose Export, JSON.")
    found = []
    used = dict[str, str]()
    for number, task in enumerate(tasks, start=1):
        place = f"{file}, task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise UserError(
                f"{place} has no data. In Label Studio choose Export, JSON; JSON-MIN leaves out what is needed."
            )
        annotations = _annotations(task, place)
        labels = [(name, _results(task, one, f"{place}, {name}", control, used)) for name, one in annotations]
        for name, other in labels:
            first, same = labels[0]
            if _contents(other) != _contents(same):
                raise UserError(
                    f"{place}: {first} and {name} differ, and neither is marked as ground truth. Mark one of them in "
                    "Label Studio, and export again."
                )
        found += labels[0][1] if labels else []
    if not control and len(used) > 1:
        places = "; ".join(f"{name!r} in {place}" for name, place in used.items())
        raise UserError(f"{file} has labels of several controls: {places}. Name the one to take: control.")
    if control and control not in used:
        names = ", ".join(map(repr, used)) or "none"
        raise UserError(f"{file} has no labels of the control {control!r}. Those that it has: {names}.")
    return found


def _annotations(task: dict[str, Any], place: str) -> list[tuple[str, dict[str, Any]]]:
    """Annotations of a task that count, with their names: those that are ground truth, if any is."""
    listed = task.get("annotations", task.get("completions"))  # the name before version 1.0
    if not isinstance(listed, list) or not all(isinstance(annotation, dict) for annotation in listed):
        raise UserError(f"{place} has no list of annotations. In Label Studio choose Export, JSON.")
    named = [(f"annotation {one.get('id', number)}", one) for number, one in enumerate(listed, start=1)]
    kept = [(name, one) for name, one in named if not one.get("was_cancelled")]
    return [(name, one) for name, one in kept if one.get("ground_truth")] or kept


def _results(
    task: dict[str, Any], annotation: dict[str, Any], place: str, control: str, used: dict[str, str]
) -> list[Labelled]:
    """Labels of one annotation; `used` collects the names of the controls that gave labels."""
    results = annotation.get("result")
    if not isinstance(results, list):
        raise UserError(f"{place} has no list of results. In Label Studio choose Export, JSON.")
    found = []
    for number, result in enumerate(results, start=1):
        where = f"{place}, result {number}"
        kind = result.get("type") if isinstance(result, dict) else None
        if kind not in CONTROLS:
            continue  # boxes, texts, ratings
        name = str(result.get("from_name", ""))
        used.setdefault(name, where)
        if control and name != control:
            continue
        value = result.get("value")
        labels = value.get(kind) if isinstance(value, dict) else None
        if not isinstance(labels, list) or not labels:
            raise UserError(f"{where} has no {kind}. Correct it in Label Studio, and export again.")
        video = _video_of(task, where)
        split = task["data"].get("split")
        ranges = value.get("ranges", [None])
        for one in ranges if isinstance(ranges, list) else [ranges]:
            frames = _frames_of(one, where)
            found += [
                Labelled(video=video, label=str(label).strip(), frames=frames, split=split_of(split), place=where)
                for label in labels
            ]
    return found


def _contents(found: Iterable[Labelled]) -> set[tuple[str, tuple[int, int] | None]]:
    return {(one.label, one.frames) for one in found}


def _frames_of(range_: Any, place: str) -> tuple[int, int] | None:
    """First frame from 0, and the one after the last; Label Studio counts from 1, the last included."""
    if range_ is None:
        return None
    first, last = (range_.get("start"), range_.get("end")) if isinstance(range_, dict) else (None, None)
    if type(first) is not int or type(last) is not int or not 1 <= first <= last:
        raise UserError(
            f"{place} has the range {str(range_)[:60]}; accepted are frames, start and end, from 1, the end not before "
            "the start. Correct it in Label Studio, and export again."
        )
    return first - 1, last


def _video_of(task: dict[str, Any], place: str) -> str:
    """Name of a task's video: an upload, a local file, or an address."""
    for text in [*task["data"].values(), task.get("file_upload")]:
        if not isinstance(text, str):
            continue
        try:
            address = urlsplit(text)
        except ValueError:  # a text that looks like an address
            continue
        local = parse_qs(address.query).get("d", [])  # /data/local-files/?d=folder/clip.mp4
        for name in (*local, unquote(address.netloc + address.path)):
            if name.lower().endswith(VIDEO_SUFFIXES):
                return name.replace("\\", "/")
    raise UserError(
        f"{place}: the task's data names no video: {', '.join(map(str, task['data']))}. Accepted: a path or an address "
        f"that ends in {', '.join(VIDEO_SUFFIXES[:4])}, ..."
    )
