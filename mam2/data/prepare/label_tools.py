"""Exports of labelling tools, Label Studio's JSON and CVAT's XML, as labelled stretches of frames."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.parsers import expat

from mam2.config import UserError
from mam2.data.catalog import SPLIT_WORDS, VIDEO_SUFFIXES
from mam2.files import first_line, parse_json

TOOLS = {"label_studio": ".json", "cvat": ".xml"}
"""The tools whose exports can be read, and what the exports' names end in."""

_CONTROLS = ("choices", "timelinelabels")  # of Label Studio: those that name classes
_SHAPES = ("box", "ellipse", "polygon", "polyline", "points", "cuboid", "skeleton", "mask", "tag")  # of CVAT


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A video, or a stretch of its frames, with a label.

    Attributes:
        video: the video as the export names it, in which paths may be those of another machine.
        label: the class.
        frames: the first frame, from 0, and the one after the last; None for the whole video.
        split: "train", "val", or another word that the export gives.
        place: where it was found, for messages.
    """

    video: str
    label: str
    frames: tuple[int, int] | None
    split: str
    place: str


def read_exports(tool: str, source: Path, *, control: str = "") -> list[Labelled]:
    """The labels in an export, or in all exports that a folder holds.

    Args:
        tool: "label_studio" or "cvat".
        source: the file, or the folder.
        control: of Label Studio: the name of the control whose labels to take; needed where several are used.

    Raises:
        UserError: nothing there, no export of this tool, or one that names no video or no labels; it names the place.
    """
    suffix = TOOLS[tool]
    if control and tool != "label_studio":
        raise UserError(f"The control {control!r} is named; only Label Studio's exports have any. Leave it out.")
    files = sorted(source.glob(f"*{suffix}")) if source.is_dir() else [source]
    if not files or not source.exists() or (source.is_file() and source.suffix.lower() != suffix):
        problem = "holds none" if source.is_dir() else "is none" if source.exists() else "does not exist"
        raise UserError(
            f"{source} {problem}. Give the tool's export, a {suffix} file or a folder of them, as annotations."
        )
    found = list[Labelled]()
    for file in files:
        found += _read_label_studio(file, control) if tool == "label_studio" else _read_cvat(file)
    if not found:
        raise UserError(f"{source} holds no labels. Label some videos, and export again.")
    return found


# Label Studio


def _read_label_studio(file: Path, control: str) -> list[Labelled]:
    """Tasks with annotations: a choice is a label of the whole video, a range of a timeline one of its frames."""
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
        per_annotation = [
            _results(task, annotation, f"{place}, {name}", control, used) for name, annotation in annotations
        ]
        for (name, _), other in zip(annotations[1:], per_annotation[1:], strict=True):
            if _contents(other) != _contents(per_annotation[0]):
                raise UserError(
                    f"{place}: {annotations[0][0]} and {name} differ, and neither is marked as ground truth. Mark one "
                    "of them in Label Studio, and export again."
                )
        found += per_annotation[0] if per_annotation else []
    if not control and len(used) > 1:
        places = "; ".join(f"{name!r} in {place}" for name, place in used.items())
        raise UserError(f"{file} has labels of several controls: {places}. Name the one to take: control.")
    if control and control not in used:
        names = ", ".join(map(repr, used)) or "none"
        raise UserError(f"{file} has no labels of the control {control!r}. Those that it has: {names}.")
    return found


def _annotations(task: dict[str, Any], place: str) -> list[tuple[str, dict[str, Any]]]:
    """The annotations of a task that count, with their names: those that are ground truth, if any is."""
    listed = task.get("annotations", task.get("completions"))  # the name before version 1.0
    if not isinstance(listed, list) or not all(isinstance(annotation, dict) for annotation in listed):
        raise UserError(f"{place} has no list of annotations. In Label Studio choose Export, JSON.")
    named = [(f"annotation {one.get('id', number)}", one) for number, one in enumerate(listed, start=1)]
    kept = [(name, one) for name, one in named if not one.get("was_cancelled")]
    return [(name, one) for name, one in kept if one.get("ground_truth")] or kept


def _results(
    task: dict[str, Any], annotation: dict[str, Any], place: str, control: str, used: dict[str, str]
) -> list[Labelled]:
    """The labels of one annotation; `used` collects the names of the controls that gave labels."""
    results = annotation.get("result")
    if not isinstance(results, list):
        raise UserError(f"{place} has no list of results. In Label Studio choose Export, JSON.")
    found = []
    for number, result in enumerate(results, start=1):
        where = f"{place}, result {number}"
        kind = result.get("type") if isinstance(result, dict) else None
        if kind not in _CONTROLS:
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
                Labelled(video=video, label=str(label).strip(), frames=frames, split=_split(split), place=where)
                for label in labels
            ]
    return found


def _contents(found: Iterable[Labelled]) -> set[tuple[str, tuple[int, int] | None]]:
    return {(one.label, one.frames) for one in found}


def _frames_of(range_: Any, place: str) -> tuple[int, int] | None:
    """Label Studio counts frames from 1, the last included."""
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
    """The video that a task names: an upload, a local file, or an address."""
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


def _split(word: Any) -> str:
    text = str(word or "").strip()
    return SPLIT_WORDS.get(text.lower(), text) or "train"


# CVAT


def _read_cvat(file: Path) -> list[Labelled]:
    """`CVAT for video 1.1`: stretches in which a track of the label is seen; `CVAT for images 1.1`: tagged frames."""
    reader = _CvatReader(file)
    reader.read()
    found = []
    for (task, label), runs in reader.runs.items():
        texts = reader.texts_of(task)
        video = texts.get("source") or reader.source or texts.get("name", "")
        for start, end, line in _united(runs):
            place = f"{file}, line {line}"
            found.append(
                Labelled(video=video, label=label, frames=(start, end), split=_split(texts.get("subset")), place=place)
            )
    return found


def _united(runs: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Runs of frames (start, end, line), with those that touch or overlap made one: two cars are one stretch of car."""
    united = list[tuple[int, int, int]]()
    for start, end, line in sorted(runs):
        if united and start <= united[-1][1]:
            first, last, line = united.pop()
            start, end = first, max(last, end)
        united.append((start, end, line))
    return united


@dataclass(kw_only=True)
class _Open:
    """A track or an image that is being read: its label, its task, its frames and whether nothing is seen from each."""

    label: str
    task: str
    line: int
    frames: list[tuple[int, bool]] = field(default_factory=list)


class _CvatReader:
    """Reads an export of CVAT element by element.

    Attributes:
        file: the export.
        source: the video, where the export says so outside of a task.
        tasks: texts of each task, by its number: id, name, source, subset, start_frame, frame_filter.
        runs: frames (start, end, line) by task and label; a task's number is empty where the export is of one task.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.source = ""
        self.tasks = list[dict[str, str]]()
        self.runs = defaultdict[tuple[str, str], list[tuple[int, int, int]]](list)
        self._names = list[str]()  # of the elements around
        self._text = ""
        self._open: _Open | None = None
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._refuse  # entities may grow without end, or read other files

    def read(self) -> None:
        """Reads the whole file.

        Raises:
            UserError: no XML, no export of CVAT, or a document type.
        """
        try:
            with self.file.open("rb") as opened:
                self._parser.ParseFile(opened)
        except expat.ExpatError as error:
            raise UserError(f"{self.file} is no XML: {error}. Export it again.") from error

    def texts_of(self, task: str) -> dict[str, str]:
        """What the export says of a task; the only one there is, unless it has a number."""
        return next((texts for texts in self.tasks if not task or texts.get("id") == task), {})

    def _step(self, task: str) -> int:
        """Frames of the video from one frame of a task to the next."""
        found = re.search(r"step *= *([0-9]{1,9})", self.texts_of(task).get("frame_filter", ""))
        return max(1, int(found[1])) if found else 1

    @property
    def _line(self) -> int:
        return self._parser.CurrentLineNumber

    def _refuse(self, *_: object) -> None:
        raise UserError(
            f"{self.file}, line {self._line} declares a document type; CVAT declares none. Export it again."
        )

    def _characters(self, text: str) -> None:
        self._text += text

    def _start(self, name: str, of: dict[str, str]) -> None:
        if not self._names and name != "annotations":
            raise UserError(f"{self.file} is no export of CVAT: it begins with <{name}>. Choose CVAT for video 1.1.")
        self._names.append(name)
        self._text = ""
        if name in ("task", "job"):
            self.tasks.append({})
        elif name == "track":
            self._open = _Open(label=self._of(of, "label"), task=of.get("task_id", ""), line=self._line)
        elif name == "image":
            self._open = _Open(label="", task=of.get("task_id", ""), line=self._line)
            self._open.frames.append((self._image_frame(of), False))
        elif name in _SHAPES and self._open and self._open.label and "frame" in of:
            self._open.frames.append((self._number(of, "frame"), of.get("outside") == "1"))
        elif name in _SHAPES and self._open and not self._open.label and self._names[-2] == "image":
            start, _ = self._open.frames[0]
            self._add(self._of(of, "label"), start, start + self._step(self._open.task), self._line)

    def _end(self, name: str) -> None:
        self._names.pop()
        parent = self._names[-1] if self._names else ""
        if parent in ("task", "job") and name in ("id", "name", "source", "subset", "start_frame", "frame_filter"):
            self.tasks[-1][name] = self._text.strip()
        elif parent == "meta" and name == "source":
            self.source = self._text.strip()
        elif name == "track" and self._open:
            frames = sorted(self._open.frames)
            ends = [frame for frame, _ in frames[1:]]
            ends += [frame + self._step(self._open.task) for frame, _ in frames[-1:]]
            for (start, unseen), end in zip(frames, ends, strict=True):
                if not unseen:
                    self._add(self._open.label, start, end, self._open.line)
        if name in ("track", "image"):
            self._open = None

    def _add(self, label: str, start: int, end: int, line: int) -> None:
        assert self._open is not None, "only called within a track or an image"
        self.runs[self._open.task, label].append((start, end, line))

    def _image_frame(self, of: dict[str, str]) -> int:
        """The video's frame that an image is: CVAT calls it frame_000012, or counts the task's frames."""
        if found := re.search(r"frame_([0-9]{6,9})", of.get("name", "")):
            return int(found[1])
        task = of.get("task_id", "")
        start = self.texts_of(task).get("start_frame", "")
        return (int(start) if start.isdecimal() else 0) + self._step(task) * self._number(of, "id")

    def _of(self, of: dict[str, str], name: str) -> str:
        if not (text := of.get(name, "").strip()):
            raise UserError(f"{self.file}, line {self._line}: <{self._names[-1]}> has no {name}. Export it again.")
        return text

    def _number(self, of: dict[str, str], name: str) -> int:
        text = self._of(of, name)
        if not text.isdecimal() or len(text) > 9:
            raise UserError(f"{self.file}, line {self._line}: {name} is {text!r:.40}; accepted: a frame, from 0.")
        return int(text)


# Videos


class VideoFinder:
    """Finds the videos that exports name among those that are there: by as much of the path as both have in common.

    Args:
        root: the folder of the videos, or the one video that the labels are of.
        paths: the videos in that folder, from there.
    """

    def __init__(self, root: Path, paths: Iterable[Path]) -> None:
        self._root = root
        self._by_name = defaultdict[str, list[Path]](list)
        for path in paths:
            self._by_name[path.name].append(path)
            self._by_name[path.stem].append(path)

    def find(self, labelled: Labelled) -> str:
        """The path of the labelled video; empty if it is not there.

        Raises:
            UserError: the export names no video, or several could be meant.
        """
        if self._root.is_file():
            return str(self._root)
        if not labelled.video:
            raise UserError(
                f"{labelled.place}: the export names no video, as those of a CVAT job do not. Give the video itself as "
                "root, or export the task."
            )
        parts = PurePosixPath(labelled.video).parts
        upload = re.sub(r"^[0-9a-f]{8}-", "", parts[-1])  # Label Studio's prefix of an upload
        for name in dict.fromkeys((parts[-1], upload, PurePosixPath(parts[-1]).stem, PurePosixPath(upload).stem)):
            found = self._by_name.get(name, [])
            common = [_num_common(path.parts[:-1], parts[:-1]) for path in found]
            best = [path for path, number in zip(found, common, strict=True) if number == max(common)]
            if len(best) > 1:
                raise UserError(
                    f"{labelled.place}: {labelled.video} can be {self._root / best[0]} or {self._root / best[1]}. Give "
                    "a root that holds one of them, or rename one."
                )
            if best:
                return str(self._root / best[0])
        return ""


def _num_common(parts: tuple[str, ...], others: tuple[str, ...]) -> int:
    """Folders that two paths have in common, from the videos upwards."""
    number = 0
    while number < min(len(parts), len(others)) and parts[-1 - number] == others[-1 - number]:
        number += 1
    return number


def seconds_of(frames: tuple[int, int], fps: float) -> tuple[float, float]:
    """The seconds from and up to which frames are shown that are numbered at a rate, half-way between frames: time
    stamps that a file rounds do not move one of them across."""
    start, end = frames
    return max(0.0, (start - 0.5) / fps), (end - 0.5) / fps
