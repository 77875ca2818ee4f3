"""CVAT's XML exports: tracks and tagged frames, as labelled stretches of frames."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import cast
from xml.etree.ElementTree import Element, ParseError, XMLPullParser

from mam2.config import UserError
from mam2.data.prepare.labelled import Labelled, split_of

SHAPES = ("box", "ellipse", "polygon", "polyline", "points", "cuboid", "skeleton", "mask", "tag")


def read_cvat(file: Path) -> list[Labelled]:
    """Reads `CVAT for video 1.1`, stretches in which a track is seen, or `CVAT for images 1.1`, tagged frames."""
    tasks = list[dict[str, str]]()
    source = ""
    runs = defaultdict[tuple[str, str], list[tuple[int, int, int]]](list)  # (start, end, line) by task and label
    for line, element in _elements(file):
        place = f"{file}, line {line}"
        number = element.get("task_id", "")  # empty where the export is of one task
        task = _task(tasks, number)
        if element.tag == "track":
            for label, start, end in _stretches_of_track(element, task, place):
                runs[number, label].append((start, end, line))
        elif element.tag == "image":
            start = _frame_of_image(element, task, place)
            for shape in element:
                if shape.tag in SHAPES:
                    runs[number, _attribute(shape, "label", place)].append((start, start + _step(task), line))
        else:
            tasks += [_texts(inner) for inner in element.iter() if inner.tag in ("task", "job")]
            source = _texts(element).get("source", source)
    found = []
    for (number, label), stretches in runs.items():
        task = _task(tasks, number)
        video = task.get("source") or source or task.get("name", "")
        split = split_of(task.get("subset"))
        for start, end, line in _united(stretches):
            place = f"{file}, line {line}"
            found.append(Labelled(video=video, label=label, frames=(start, end), split=split, place=place))
    return found


def _elements(file: Path) -> Iterator[tuple[int, Element]]:
    """Reads the elements of <annotations> one at a time, each with the line on which it begins. Raises UserError for
    other files, and for a document type, whose entities may grow without end."""
    parser: XMLPullParser[Element] = XMLPullParser(("start", "end"))
    around = list[Element]()
    begun = 0
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(chain(lines, [b""]), start=1):
                if not around and b"<!DOCTYPE" in line.replace(b"\0", b""):  # UTF-16 has zeros in between
                    raise UserError(
                        f"{file}, line {number} declares a document type; CVAT declares none. Export it again."
                    )
                if line:
                    parser.feed(line)
                else:
                    parser.close()
                for event, element in cast(Iterator[tuple[str, Element]], parser.read_events()):
                    if event == "end":
                        around.pop()
                        if len(around) == 1:
                            yield begun, element
                            around[0].clear()  # exports can be large
                        continue
                    if not around and element.tag != "annotations":
                        raise UserError(
                            f"{file} is no export of CVAT: it begins with <{element.tag}>. Choose CVAT for video 1.1."
                        )
                    if len(around) == 1:
                        begun = number
                    around.append(element)
    except UserError:
        raise
    except (ParseError, LookupError, ValueError) as error:  # the last two: an encoding that Python does not know
        raise UserError(f"{file} is no XML: {error}. Export it again.") from error


def _texts(element: Element) -> dict[str, str]:
    """Texts of an element's children by their names: for a task, its id, name, source, subset, start_frame."""
    return {child.tag: (child.text or "").strip() for child in element}


def _task(tasks: list[dict[str, str]], number: str) -> dict[str, str]:
    """Texts of the task with a number; of the first task if the number is empty."""
    return next((task for task in tasks if not number or task.get("id") == number), {})


def _step(task: dict[str, str]) -> int:
    """Frames of the video from one frame of a task to the next."""
    found = re.search(r"step *= *([0-9]{1,9})", task.get("frame_filter", ""))
    return max(1, int(found[1])) if found else 1


def _stretches_of_track(track: Element, task: dict[str, str], place: str) -> list[tuple[str, int, int]]:
    """Label, start and end of the stretches in which a track is seen: each shape holds until the next one."""
    label = _attribute(track, "label", place)
    shapes = [shape for shape in track.iter() if shape.tag in SHAPES and "frame" in shape.attrib]
    frames = sorted((_number(shape, "frame", place), shape.get("outside") == "1") for shape in shapes)
    ends = [frame for frame, _ in frames[1:]] + [frame + _step(task) for frame, _ in frames[-1:]]
    return [(label, start, end) for (start, unseen), end in zip(frames, ends, strict=True) if not unseen]


def _frame_of_image(image: Element, task: dict[str, str], place: str) -> int:
    """Number of an image's frame in the video: CVAT names it frame_000012, or counts the task's frames."""
    if found := re.search(r"frame_([0-9]{6,9})", image.get("name", "")):
        return int(found[1])
    start = task.get("start_frame", "")
    return (int(start) if start.isdecimal() else 0) + _step(task) * _number(image, "id", place)


def _attribute(element: Element, name: str, place: str) -> str:
    if not (text := element.get(name, "").strip()):
        raise UserError(f"{place}: <{element.tag}> has no {name}. Export it again.")
    return text


def _number(element: Element, name: str, place: str) -> int:
    text = _attribute(element, name, place)
    if not text.isdecimal() or len(text) > 9:
        raise UserError(f"{place}: {name} is {text!r:.40}; accepted: a frame, from 0.")
    return int(text)


def _united(runs: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Runs of frames (start, end, line), with those that touch or overlap made one: two cars are one stretch of car."""
    united = list[tuple[int, int, int]]()
    for start, end, line in sorted(runs):
        if united and start <= united[-1][1]:
            first, last, line = united.pop()
            start, end = first, max(last, end)
        united.append((start, end, line))
    return united
