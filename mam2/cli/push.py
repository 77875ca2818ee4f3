"""`mam2 push`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional

from mam2.cli.parse import Flat, finished, parse
from mam2.share.hub import Push, share


@dataclass(frozen=True, kw_only=True)
class PushCommand:
    """Share an encoder or a classifier on the Hugging Face hub, with a model card made from its run.

    Attributes:
        source: a run's folder, or an encoder.safetensors or classifier.safetensors.
        name: USER/NAME on the hub.
    """

    source: Positional[str]
    name: Positional[str]
    config: Annotated[Push, Flat] = field(default_factory=Push)


def main(verb: str, arguments: list[str]) -> None:
    """Shares a model."""
    command = parse(PushCommand, verb, arguments)
    place = share(command.source, command.name, config=command.config)
    load = place if command.config.folder else f"hf://{command.name}"
    finished(place, f'python -c "import mam2; mam2.load_encoder({load!r})"')
