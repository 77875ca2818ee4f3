"""`mam2 demo`."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from tyro.conf import Positional

from mam2.cli.parse import parse
from mam2.config import check
from mam2.use.demo.page import demo


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Try a run on a local web page: upload or choose a video, and see what the model makes of it.

    Attributes:
        source: the folder of a pre-training or fine-tuning run; or an encoder, as `mam2 embed` takes it.
        features: a file that `mam2 embed` wrote with this encoder, whose windows most like the video are shown; empty
            shows none.
        videos: videos to choose from: a folder, a CSV with path, or a video; empty offers none.
        port: port of the page; 0 is the first free one from 7860 up.
    """

    source: Positional[str]
    features: str = ""
    videos: str = ""
    port: Annotated[int, Ge(0), Le(65535)] = 0

    def __post_init__(self) -> None:
        check(self, "")


def main(verb: str, arguments: list[str]) -> None:
    """Serves the page until it is interrupted."""
    command = parse(DemoCommand, verb, arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # or uploads would stay
    demo(command.source, features=command.features, videos=command.videos, port=command.port)
