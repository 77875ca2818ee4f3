"""Official lists of the four benchmarks: their videos, with class and split (Table 6)."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mam2.config import UserError, did_you_mean
from mam2.data.benchmarks import BENCHMARKS
from mam2.data.catalog import SPLIT_WORDS, VIDEO_SUFFIXES
from mam2.files import parse_json


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Video as an official list names it.

    Attributes:
        stems: names that its file may have, without folder and ending, the most exact first.
        label: name of its class.
        split: "train", "val", or "" for a video of the benchmark that is in neither.
    """

    stems: tuple[str, ...]
    label: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Contents of a benchmark's official lists: its classes, in their order, and its videos."""

    classes: tuple[str, ...]
    videos: tuple[Listed, ...]


def read_lists(name: str, folder: Path, *, split: int = 1) -> Lists:
    """Reads a benchmark's official lists, as they are published; Windows line ends and byte order marks are accepted.

    k400: the CSVs `label,youtube_id,time_start,time_end,split`; else lists of `path label`, with spaces or commas,
        whose names hold train, val or test. Numbers become names where a list of the classes is there.
    ssv2: labels.json, train.json, validation.json and, so that its videos do not count as extra, test.json.
    ucf101: classInd.txt, trainlist0N.txt, testlist0N.txt.
    hmdb51: CLASS_test_splitN.txt with 1 for training, 2 for testing, 0 for neither.

    Args:
        name: one of BENCHMARKS.
        folder: folder that holds the lists, at any depth; a single file is accepted too.
        split: N, from 1.

    Raises:
        UserError: an unknown benchmark or split; a list that is missing, unreadable, of another kind, or that
            contradicts another.
    """
    if name not in BENCHMARKS:
        raise UserError(f"{name!r} is no benchmark. {did_you_mean(name, BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if split not in range(1, benchmark.num_splits + 1):
        accepted = ", ".join(map(str, range(1, benchmark.num_splits + 1)))
        raise UserError(f"The split is {split!r}; {benchmark.title} has {accepted}.")
    readers = {"k400": _read_k400, "ssv2": _read_ssv2, "ucf101": _read_ucf101, "hmdb51": _read_hmdb51}
    classes, videos = readers[name](_Folder(folder, benchmark.title), split)
    if len(classes) > benchmark.num_classes:
        raise UserError(
            f"The lists in {folder} hold {len(classes)} classes; {benchmark.title} has {benchmark.num_classes}. "
            "Give the lists of that benchmark."
        )
    return Lists(classes=classes, videos=_each_once(videos, folder))


def same_name(text: str) -> str:
    """Normalises a file's name for comparisons: telephones and some file systems write an é as two characters."""
    return unicodedata.normalize("NFC", text)


_Read = tuple[tuple[str, ...], list[Listed]]  # classes, videos
_PATH_AND_LABEL = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))\"?[\s,]+(\S.*)", re.IGNORECASE)
_K400_CLASSES = re.compile(r"(k|kinetics)_?400(_labels|_classes|_label_map)?\.(txt|csv)|label_map_k400\.txt")


class _Folder:
    """Text files in a folder, those near the top first."""

    def __init__(self, folder: Path, title: str) -> None:
        self.place = folder
        self.title = title
        if not folder.exists():
            raise UserError(f"{folder} does not exist. Give the folder with the official lists of {title}.")
        found = [folder] if folder.is_file() else [Path(top) / f for top, _, fs in os.walk(folder) for f in fs]
        found = [file for file in found if file.suffix in (".txt", ".csv", ".json") and not file.name.startswith(".")]
        self.files = sorted(found, key=lambda file: (len(file.parts), file))

    def find(self, pattern: str) -> Path | None:
        """First file whose whole name matches."""
        return next((file for file in self.files if re.fullmatch(pattern, file.name)), None)

    def need(self, pattern: str, name: str) -> Path:
        """First file whose whole name matches; an error without one."""
        file = self.find(pattern)
        if file is None:
            raise UserError(
                f"{self.place} holds no {name}, an official list of {self.title}. Give the folder that holds it as "
                "`annotations`."
            )
        return file


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}. Make it readable.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Place, for messages, and text of each line that is not empty."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            yield f"{file}, line {number}", line.strip()


def _stem(path: str) -> str:
    return Path(path.replace("\\", "/")).stem


def _check_label(label: str, classes: Collection[str], place: str) -> None:
    if label not in classes:
        raise UserError(f"{place}: {label!r} is not a class of this benchmark. {did_you_mean(label, classes)}")


def _each_once(videos: list[Listed], folder: Path) -> tuple[Listed, ...]:
    """Keeps each video once; one that another list sets aside counts where it is used."""
    seen: dict[str, Listed] = {}
    for video in videos:
        before = seen.setdefault(video.stems[0], video)
        if not before.split:
            seen[video.stems[0]] = video
        elif video.split and video != before:
            raise UserError(
                f"The lists in {folder} name {video.stems[0]} twice: in {before.split} as {before.label}, in "
                f"{video.split} as {video.label}. One of the lists is not what its name says; fetch them again."
            )
    if not any(video.split for video in seen.values()):
        raise UserError(f"The lists in {folder} name no videos for training or validation. Give the official lists.")
    return tuple(seen.values())


def _read_ucf101(folder: _Folder, split: int) -> _Read:
    number_of = {}
    for place, line in _lines(folder.need(r"classInd\.txt", "classInd.txt")):
        number, _, label = line.partition(" ")
        if not number.isdecimal() or not label:
            raise UserError(f"{place} is {line!r}; a class is written as its number, from 1, and its name.")
        number_of[label.strip()] = int(number)
    videos = []
    for kind, use in (("trainlist", "train"), ("testlist", "val")):
        name = f"{kind}{split:02d}.txt"
        for place, line in _lines(folder.need(re.escape(name), name)):
            match = re.fullmatch(r"(.+)/(\S+\.\w+)(?:\s+(\d+))?", line)
            if match is None:
                raise UserError(f"{place} is {line!r}; a video is written as Class/v_Class_g01_c01.avi.")
            label, file, number = match.groups()
            if (number is not None) != (use == "train"):
                other = "trainlist" if number else "testlist"
                raise UserError(f"{place} is {line!r}, as in a {other}; this should be a {kind}. Fetch it again.")
            _check_label(label, number_of, place)
            if number is not None and int(number) != number_of[label]:
                raise UserError(f"{place} gives {label} number {number}; in classInd.txt it has {number_of[label]}.")
            videos.append(Listed(stems=(same_name(_stem(file)),), label=label, split=use))
    return tuple(number_of), videos


def _read_hmdb51(folder: _Folder, split: int) -> _Read:
    found = {match[1]: file for file in folder.files if (match := re.fullmatch(r"(.+)_test_split\d\.txt", file.name))}
    names = folder.find(r"class_list\.txt")
    classes = tuple(line for _, line in _lines(names)) if names else tuple(sorted(found))
    videos = []
    if not classes:
        folder.need(rf".+_test_split{split}\.txt", f"CLASS_test_split{split}.txt")
    for label, file in found.items():
        _check_label(label, classes, str(file))
    for label in classes:
        name = f"{label}_test_split{split}.txt"
        for place, line in _lines(folder.need(re.escape(name), name)):
            video, _, code = line.rpartition(" ")
            if code not in ("0", "1", "2") or not video:
                raise UserError(f"{place} is {line!r}; a video is its file name and 1 (training), 2 (test) or 0 (no).")
            use = {"0": "", "1": "train", "2": "val"}[code]
            videos.append(Listed(stems=(same_name(_stem(video.strip())),), label=label, split=use))
    return classes, videos


def _read_ssv2(folder: _Folder, split: int) -> _Read:
    file = folder.need(r"(.*[-_])?labels\.json", "labels.json")
    labels = _json(file)
    if not isinstance(labels, dict) or not all(str(number).isdecimal() for number in labels.values()):
        raise UserError(f'{file} must be an object of "name of the class": "its number"; it is {_short(labels)}.')
    classes = tuple(sorted(labels, key=lambda label: int(labels[label])))
    videos = []
    for word, use in (("train", "train"), ("validation", "val"), ("test", "")):
        pattern = rf"(.*[-_])?{word}\.json"
        if not use and folder.find(pattern) is None:
            continue
        file = folder.need(pattern, f"{word}.json")
        entries = _json(file)
        keys = {"id", "template"} if use else {"id"}
        if not isinstance(entries, list):
            raise UserError(f"{file} must be a list of videos; it is {_short(entries)}.")
        for number, entry in enumerate(entries, 1):
            place = f"{file}, video {number}"
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str | int) for key in keys):
                raise UserError(f"{place} must be an object with {' and '.join(sorted(keys))}; it is {_short(entry)}.")
            label = str(entry["template"]).replace("[", "").replace("]", "") if use else ""
            if use:
                _check_label(label, labels, f"{place} (id {entry['id']})")
            videos.append(Listed(stems=(str(entry["id"]),), label=label, split=use))
    return classes, videos


def _json(file: Path) -> Any:
    try:
        return parse_json(_text(file))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}. Fetch it again.") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _read_k400(folder: _Folder, split: int) -> _Read:
    names = folder.find(_K400_CLASSES.pattern)
    classes = tuple(line.partition(",")[2] or line for _, line in _lines(names)) if names else ()
    classes = classes[1:] if classes[:1] == ("name",) else classes  # kinetics_400_labels.csv: id,name
    official: list[Path] = []
    plain: list[tuple[Path, str]] = []
    for file in folder.files:
        if file.suffix in (".csv", ".txt") and file != names:
            first = next(_lines(file), ("", ""))[1].replace(" ", "").split(",")
            words = [word for word in ("train", "val", "test") if word in file.name]
            if "youtube_id" in first:
                official.append(file)
            elif words and "path" not in first:  # what `prepare` wrote is no official list
                plain.append((file, words[0]))
    if not official and not plain:
        folder.need("a^", "CSV with the columns label,youtube_id,time_start,time_end,split")
    read = [_k400_csv(file) for file in official] or [_k400_plain(file, word, classes) for file, word in plain]
    videos = []
    for place, video in itertools.chain(*read):
        if classes and video.split:
            _check_label(video.label, classes, place)
        videos.append(video)
    return classes or tuple(sorted({video.label for video in videos if video.split})), videos


def _k400_csv(file: Path) -> Iterator[tuple[str, Listed]]:
    reader = csv.DictReader(io.StringIO(_text(file), newline=""), skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    for record in reader:
        place = f"{file}, line {reader.line_num}"
        cells = {name: (record.get(name) or "").strip() for name in ("label", "youtube_id", "split")}
        use = SPLIT_WORDS.get(cells["split"])
        if use is None:
            raise UserError(f"{place}: split {cells['split']!r}. {did_you_mean(cells['split'], SPLIT_WORDS)}")
        use = "" if use == "test" else use  # published without labels
        try:
            start, end = (int(float(record[name] or "")) for name in ("time_start", "time_end"))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{place} has no time_start and time_end in seconds. Fetch the list again.") from error
        key = cells["youtube_id"]
        if not key or (use and not cells["label"]):
            raise UserError(f"{place} has no {'label' if key else 'youtube_id'}. Fetch the list again.")
        yield place, Listed(stems=(f"{key}_{start:06d}_{end:06d}", key), label=cells["label"], split=use)


def _k400_plain(file: Path, word: str, classes: tuple[str, ...]) -> Iterator[tuple[str, Listed]]:
    known = len(classes) or BENCHMARKS["k400"].num_classes
    for place, line in _lines(file):
        match = _PATH_AND_LABEL.fullmatch(line)
        if match is None:
            raise UserError(f"{place} is {line!r}; a video is written as its path and its class, a number or a name.")
        path, label = match[1].lstrip('"'), match[2].strip('"')
        if label.isdecimal():
            if int(label) >= known:
                raise UserError(f"{place}: class {label}; there are {known}, counted from 0. Give Kinetics-400's list.")
            label = classes[int(label)] if classes else label
        yield place, Listed(stems=(same_name(_stem(path)),), label=label, split="" if word == "test" else word)
