"""`mam2 recipes`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tyro.conf import Positional

from mam2.cli import tables
from mam2.cli.parse import parse
from mam2.config import UserError, to_json
from mam2.recipes import get_recipe
from mam2.recipes.scales import ScaleName


@dataclass(frozen=True, kw_only=True)
class RecipesCommand:
    """List the recipes, print one's whole configuration as JSON, or the rows of one of the paper's tables.

    Attributes:
        name: a recipe; by default all are listed.
        table: table of the paper, such as 1d: its rows with the paper's numbers, commands and estimated cost; by
            default none.
        tflops: TFLOP/s that a GPU achieves, for the estimate. 125, the default, is 40 % of an A100's 312 in bf16.
        scale: sizes of the table's recipes: nano or tiny for a laptop, small for a GPU, base as printed.
    """

    name: Positional[str] = ""
    table: str = ""
    tflops: float = 125.0
    scale: ScaleName = "base"


def main(verb: str, arguments: list[str]) -> None:
    """Lists the recipes, or prints one, or a table of the paper."""
    command = parse(RecipesCommand, verb, arguments)
    if command.table and command.name:
        raise UserError("Give a recipe's name or --table, not both.")
    if command.table:
        tables.print_paper_table(command.table, command.tflops, command.scale)
    elif command.name:
        print(json.dumps(to_json(get_recipe(command.name)), indent=2))
    else:
        tables.print_recipes()
