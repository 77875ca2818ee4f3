"""`mam2 finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import tyro

from mam2.cli.parse import Flat, finished
from mam2.cli.recipe_options import Out, Resume, ScaleOption, initial, parse_with_recipe, scale_of
from mam2.recipes import get_recipe
from mam2.recipes.scales import scaled_finetune
from mam2.train.finetune import Finetune, as_pretrained, finetune


@dataclass(frozen=True, kw_only=True)
class FinetuneCommand:
    """Fine-tune on class folders, or a CSV with `path,label`."""

    config: Annotated[Finetune, Flat]
    out: Out
    scale: ScaleOption = "base"
    resume: Resume = True


def main(verb: str, arguments: list[str]) -> None:
    """Fine-tunes by a recipe."""
    _, command = parse_with_recipe(FinetuneCommand, verb, arguments, first=("finetune_tiny",), by_default=by_default)
    run = command.out
    if finetune(command.config, run, resume=command.resume):
        files = f"{run}/classifier.safetensors, log.jsonl, checkpoints/"
        finished(files, f"mam2 evaluate {run} --data.root TEST")


def by_default(recipe: str, arguments: list[str]) -> FinetuneCommand:
    """The recipe at the scale that the arguments name, with the sizes of the encoder that --init names."""
    scale = scale_of(recipe, arguments)
    config = scaled_finetune(cast(Finetune, get_recipe(recipe, Finetune)), scale)
    if place := initial(arguments):
        config = as_pretrained(config, place)
    return FinetuneCommand(config=config, out=cast(Path, tyro.MISSING), scale=scale)
