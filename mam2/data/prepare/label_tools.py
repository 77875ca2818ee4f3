"""Exports of labelling tools, Label Studio and CVAT, read from a file or from a folder of them."""

from __future__ import annotations

from pathlib import Path

from mam2.config import UserError
from mam2.data.prepare.cvat import read_cvat
from mam2.data.prepare.label_studio import read_label_studio
from mam2.data.prepare.labelled import Labelled

TOOLS = {"label_studio": ".json", "cvat": ".xml"}
"""Tools whose exports can be read, with the ending of their files."""


def read_exports(tool: str, source: Path, *, control: str = "") -> list[Labelled]:
    """Reads the labels in an export, or in all exports of a folder.

    Args:
        tool: "label_studio" or "cvat".
        source: the file, or the folder.
        control: name of the Label Studio control whose labels to take; needed where several are used.

    Raises:
        UserError: no export of this tool, or one without a video or labels.
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
        found += read_label_studio(file, control) if tool == "label_studio" else read_cvat(file)
    if not found:
        raise UserError(f"{source} holds no labels. Label some videos, and export again.")
    return found
