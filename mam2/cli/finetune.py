"""`mam2 finetune`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import tyro

from mam2.cli.parse import Flat, finished, first_word, parse
from mam2.cli.recipe_options import NAMES, Out, Resume, Scale, initial, scale_of, start_page_of
from mam2.recipes import get_recipe
from mam2.recipes.scales import scaled_finetune
from mam2.train.finetune import Finetune, as_pretrained, finetune


@dataclass(frozen=True, kw_only=True)
class FinetuneCommand:
    """Fine-tune on class folders, or a CSV with `path,label`."""

    config: Annotated[Finetune, Flat]
    out: Out
    scale: Scale = "base"
    resume: Resume = True


def main(verb: str, arguments: list[str]) -> None:
    """Fine-tunes by a recipe."""
    start = time.monotonic()
    recipe, rest = first_word(verb, arguments, names=NAMES, page=first_page)
    command = parse(FinetuneCommand, verb, rest, first=recipe, default=by_default(recipe, rest))
    run = command.out
    if finetune(command.config, run, resume=command.resume):
        files = f"{run}/classifier.safetensors, log.jsonl, checkpoints/"
        finished(files, start, f"mam2 evaluate {run} --data.root TEST")


def first_page() -> str:
    """The help page without a recipe."""
    return start_page_of("finetune", ("finetune_tiny",), by_default("finetune_tiny", []))


def by_default(recipe: str, arguments: list[str]) -> FinetuneCommand:
    """The recipe at the scale that the arguments name, with the sizes of the encoder that --init names."""
    scale = scale_of(recipe, arguments)
    config = scaled_finetune(cast(Finetune, get_recipe(recipe, Finetune)), scale)
    if place := initial(arguments):
        config = as_pretrained(config, place)
    return FinetuneCommand(config=config, out=cast(Path, tyro.MISSING), scale=scale)
