"""`mam2 probe`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from mam2 import distributed
from mam2.cli import tables
from mam2.cli.help import options_of, start_page
from mam2.cli.parse import Flat, finished, first_word, parse
from mam2.config import UserError
from mam2.model.weights import PUBLIC
from mam2.probe.probe import Probe, default_probe, probe_encoder


@dataclass(frozen=True, kw_only=True)
class ProbeCommand:
    """Probe a frozen encoder: a linear layer, an attentive pooler or nearest neighbours on its features."""

    config: Annotated[Probe, Flat]
    out: Annotated[Path, arg(help="folder to write to; features are kept there")]


def main(verb: str, arguments: list[str]) -> None:
    """Probes an encoder."""
    encoder, rest = first_word(verb, arguments, names="an encoder", page=first_page)
    place = Path() if encoder.startswith(PUBLIC) else Path(encoder)
    out = (place if place.is_dir() else place.parent) / "probe"
    default = ProbeCommand(config=default_probe(encoder), out=out)
    command = parse(ProbeCommand, verb, rest, first=encoder, default=default)
    if not place.exists():
        raise UserError(
            f"{place} does not exist. Give a run's folder, a .safetensors file, or a published encoder's name."
        )
    report = probe_encoder(command.config, command.out)
    if distributed.rank() == 0:
        tables.print_probe(command.config.kind, report)
    tune = f"mam2 finetune RECIPE --init {command.config.encoder} --data.root LABELLED --out TUNED"
    finished(f"{command.out}/probe_{command.config.kind}.json", tune)


def first_page() -> str:
    """The help page without an encoder."""
    heading = "mam2 probe ENCODER --help lists all options. The first:"
    return start_page("probe", heading, {}, options_of(Probe))
