"""Two nouns that travel together: the shape of a clip, and the list that says which videos there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class HasShape(Protocol):
    """Configuration with frames and a size, such as an encoder's."""

    @property
    def frames(self) -> int: ...

    @property
    def size(self) -> int: ...


@dataclass(frozen=True)
class ClipShape:
    """Shape of a clip: `frames` × `size`².

    Attributes:
        frames: frames per clip, T.
        size: pixels, both sides.
    """

    frames: int
    size: int

    @classmethod
    def of(cls, config: HasShape) -> ClipShape:
        """Shape of the clips that a configuration's encoder takes."""
        return cls(config.frames, config.size)

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.size}²"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a list of unlabelled videos.

    Attributes:
        split: rows of a .csv that has several splits; empty takes all of a .csv with one.
        path_column: name of the .csv's column of paths; empty takes the name that training used.
    """

    split: str = ""
    path_column: str = ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Videos that are asked for, as `read_catalog` reads them.

    Attributes:
        root: a folder of videos at any depth, a folder with a sub-folder per class, or a .csv with path,label.
        split: rows of a .csv that has several splits; empty takes all of a .csv with one.
        path_column: name of the .csv's column of paths.
        label_column: name of the .csv's column of labels.
    """

    root: str | Path
    split: str = ""
    path_column: str = "path"
    label_column: str = "label"
