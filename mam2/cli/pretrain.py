"""`mam2 pretrain`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, cast

import tyro

from mam2.cli.parse import Flat, finished
from mam2.cli.recipe_options import FIRST_RECIPES, Out, Resume, ScaleOption, initial, parse_with_recipe, scale_of
from mam2.model.load import read_encoder_config
from mam2.recipes import RECIPES, get_recipe
from mam2.recipes.scales import scaled
from mam2.train.pretrain import Pretrain, pretrain


@dataclass(frozen=True, kw_only=True)
class PretrainCommand:
    """Pre-train on a folder of videos, or a CSV with `path`."""

    config: Annotated[Pretrain, Flat]
    out: Out
    scale: ScaleOption = "base"
    resume: Resume = True


def main(verb: str, arguments: list[str]) -> None:
    """Pre-trains by a recipe."""
    recipe, command = parse_with_recipe(PretrainCommand, verb, arguments, first=FIRST_RECIPES, by_default=by_default)
    run = command.out
    if pretrain(command.config, run, resume=command.resume):
        same = "" if command.scale == "base" else f" --scale {command.scale}"
        tune = f"mam2 finetune {finetune_recipe(recipe)}{same} --init {run} --data.root LABELLED --out {run}_tuned"
        finished(f"{run}/encoder.safetensors, log.jsonl, checkpoints/", tune, f"mam2 show {run} VIDEO")


def by_default(recipe: str, arguments: list[str]) -> PretrainCommand:
    """The recipe at the scale that the arguments name, with the sizes of the encoder that --init names."""
    scale = scale_of(recipe, arguments)
    config = scaled(cast(Pretrain, get_recipe(recipe, Pretrain)), scale)
    if place := initial(arguments):
        encoder = replace(read_encoder_config(place), drop_path=config.encoder.drop_path)
        config = replace(config, encoder=encoder)
    return PretrainCommand(config=config, out=cast(Path, tyro.MISSING), scale=scale)


def finetune_recipe(recipe: str) -> str:
    """The fine-tuning recipe that belongs to a pre-training recipe."""
    name = f"finetune_{recipe.removeprefix('mam2_').removesuffix('_rp').removesuffix('_600')}"
    return name if name in RECIPES else "finetune_b_ucf101"
