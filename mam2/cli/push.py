"""`mam2 push`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from mam2.cli.parse import finished, parse
from mam2.share.hub import push


@dataclass(frozen=True, kw_only=True)
class PushCommand:
    """Share an encoder or a classifier on the Hugging Face hub, with a model card made from its run.

    Attributes:
        source: a run's folder, or an encoder.safetensors or classifier.safetensors.
        name: USER/NAME on the hub.
        private: only you, or your organisation, can see it.
        folder: a folder to write instead; nothing is uploaded.
        license: of the weights, such as apache-2.0; by default what the weight file says.
    """

    source: Positional[str]
    name: Positional[str]
    private: bool = False
    folder: Path | None = None
    license: str = ""


def main(verb: str, arguments: list[str]) -> None:
    """Shares a model."""
    start = time.monotonic()
    command = parse(PushCommand, verb, arguments)
    place = push(command.source, command.name, folder=command.folder, private=command.private, license=command.license)
    load = place if command.folder else f"hf://{command.name}"
    finished(place, start, f'python -c "import mam2; mam2.load_encoder({load!r})"')
