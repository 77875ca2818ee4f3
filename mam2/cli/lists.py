"""`mam2 recipes`, `mam2 targets` and `mam2 cost`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal, cast

from tyro.conf import Positional, arg

from mam2.cli import tables
from mam2.cli.parse import Flat, first_word, parse
from mam2.cli.train import Scale, scale_of
from mam2.config import UserError, to_json
from mam2.recipes import RECIPES, get_recipe
from mam2.recipes.scales import ScaleName, scaled
from mam2.recipes.tables import NUM_TRAINING_VIDEOS
from mam2.train.pretrain import Pretrain


@dataclass(frozen=True, kw_only=True)
class RecipesCommand:
    """List the recipes, print one's whole configuration as JSON, or the rows of one of the paper's tables.

    Attributes:
        name: a recipe.
        table: a table of the paper, such as 1d: its rows with the paper's numbers, commands and estimated cost.
        tflops: TFLOP/s that a GPU achieves, for the estimate; 125 is 40 % of an A100's 312 in bf16.
        scale: of the table's recipes: nano or tiny for a laptop, small for a GPU, base as printed.
    """

    name: Positional[str] = ""
    table: str = ""
    tflops: float = 125.0
    scale: ScaleName = "base"


@dataclass(frozen=True, kw_only=True)
class TargetsCommand:
    """List the appearance and motion targets: input size, range, number of codes, cost per clip."""


@dataclass(frozen=True, kw_only=True)
class CostCommand:
    """Estimate what pre-training takes, before anyone starts it.

    Attributes:
        device: the machine to plan for; the CPU's peak is measured.
        utilisation: share of the peak that is reached.
        videos: number of training videos; for hours of a run whose length is in epochs.
        scale: of the recipe, as in `mam2 pretrain`.
    """

    config: Annotated[Pretrain, Flat]
    device: Annotated[Literal["h100", "a100", "cpu"], arg(help="the machine; a CPU's peak is measured")] = "h100"
    utilisation: Annotated[float, arg(help="share of the peak that is reached")] = 0.4
    videos: Annotated[int, arg(help="number of training videos, for hours of a run in epochs")] = 0
    scale: Scale = "base"


def main(verb: str, arguments: list[str]) -> None:
    """Prints a list, or a recipe's cost."""
    match verb:
        case "targets":
            parse(TargetsCommand, verb, arguments)
            tables.print_targets()
        case "recipes":
            recipes(parse(RecipesCommand, verb, arguments))
        case "cost":
            recipe, rest = first_word(verb, arguments, names="a recipe (`mam2 recipes` lists them)")
            scale = scale_of(recipe, rest)
            config = scaled(cast(Pretrain, get_recipe(recipe, Pretrain)), scale)
            videos = NUM_TRAINING_VIDEOS.get(RECIPES[recipe].data, 0) if recipe in RECIPES else 0
            default = CostCommand(config=config, videos=videos, scale=scale)
            cost(recipe, parse(CostCommand, f"cost {recipe}", rest, default=default))


def recipes(command: RecipesCommand) -> None:
    """Lists the recipes, or prints one, or a table of the paper."""
    if command.table and command.name:
        raise UserError("Give a recipe's name or --table, not both.")
    if command.table:
        tables.print_paper_table(command.table, command.tflops, command.scale)
    elif command.name:
        print(json.dumps(to_json(get_recipe(command.name)), indent=2))
    else:
        tables.print_recipes()


def cost(recipe: str, command: CostCommand) -> None:
    """Prints the cost of a recipe."""
    if command.videos < 0 or not 0 < command.utilisation <= 1:
        raise UserError(
            f"videos is {command.videos} and utilisation {command.utilisation}; accepted are a number of training "
            "videos, and a share of the peak above 0, up to 1."
        )
    tables.print_cost(
        recipe, command.config, device=command.device, utilisation=command.utilisation, num_videos=command.videos
    )
