"""`mam2 cost`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, cast

from annotated_types import Ge, Gt, Le
from tyro.conf import arg

from mam2.cli import tables
from mam2.cli.parse import Flat
from mam2.cli.recipe_options import FIRST_RECIPES, ScaleOption, parse_with_recipe, scale_of
from mam2.config import check
from mam2.recipes import RECIPES, get_recipe
from mam2.recipes.scales import scaled
from mam2.recipes.tables import NUM_TRAINING_VIDEOS
from mam2.train.pretrain import Pretrain

MachineOption = Annotated[Literal["h100", "a100", "cpu"], arg(help="machine to plan for, one of them")]
ShareOption = Annotated[float, Gt(0), Le(1), arg(help="share of the peak that is reached")]
VideosOption = Annotated[int, Ge(0), arg(help="number of training videos, for hours of a run in epochs; 0 prints none")]


@dataclass(frozen=True, kw_only=True)
class CostCommand:
    """Estimate what pre-training takes, before anyone starts it."""

    config: Annotated[Pretrain, Flat]
    device: MachineOption = "h100"
    utilisation: ShareOption = 0.4
    videos: VideosOption = 0
    scale: ScaleOption = "base"

    def __post_init__(self) -> None:
        check(self, "")


def main(verb: str, arguments: list[str]) -> None:
    """Prints the cost of a recipe."""
    recipe, command = parse_with_recipe(CostCommand, verb, arguments, first=FIRST_RECIPES, by_default=by_default)
    tables.print_cost(
        recipe, command.config, device=command.device, utilisation=command.utilisation, num_videos=command.videos
    )


def by_default(recipe: str, arguments: list[str]) -> CostCommand:
    """The recipe at the scale that the arguments name, for as many videos as its data set has."""
    scale = scale_of(recipe, arguments)
    config = scaled(cast(Pretrain, get_recipe(recipe, Pretrain)), scale)
    videos = NUM_TRAINING_VIDEOS.get(RECIPES[recipe].data, 0) if recipe in RECIPES else 0
    return CostCommand(config=config, videos=videos, scale=scale)
