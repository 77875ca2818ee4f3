"""`mam2 cost`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, cast

from annotated_types import Ge, Gt, Le
from tyro.conf import arg

from mam2.cli import tables
from mam2.cli.parse import Flat, first_word, parse
from mam2.cli.recipe_options import NAMES, Scale, scale_of, start_page_of
from mam2.config import check
from mam2.recipes import RECIPES, get_recipe
from mam2.recipes.scales import scaled
from mam2.recipes.tables import NUM_TRAINING_VIDEOS
from mam2.train.pretrain import Pretrain

OWN_VIDEOS = ("mam2_tiny", "mam2_lite_b_k400", "mam2_b_k400_rp")
Machine = Annotated[Literal["h100", "a100", "cpu"], arg(help="machine to plan for, of which one is used")]
Share = Annotated[float, Gt(0), Le(1), arg(help="share of the peak that is reached")]
Videos = Annotated[int, Ge(0), arg(help="number of training videos, for hours of a run in epochs; 0 prints none")]


@dataclass(frozen=True, kw_only=True)
class CostCommand:
    """Estimate what pre-training takes, before anyone starts it."""

    config: Annotated[Pretrain, Flat]
    device: Machine = "h100"
    utilisation: Share = 0.4
    videos: Videos = 0
    scale: Scale = "base"

    def __post_init__(self) -> None:
        check(self, "")


def main(verb: str, arguments: list[str]) -> None:
    """Prints the cost of a recipe."""
    recipe, rest = first_word(verb, arguments, names=NAMES, page=first_page)
    command = parse(CostCommand, verb, rest, first=recipe, default=by_default(recipe, rest))
    tables.print_cost(
        recipe,
        command.config,
        device=command.device,
        utilisation=command.utilisation,
        num_videos=command.videos,
    )


def first_page() -> str:
    """The help page without a recipe."""
    return start_page_of("cost", OWN_VIDEOS, by_default(OWN_VIDEOS[0], []))


def by_default(recipe: str, arguments: list[str]) -> CostCommand:
    """The recipe at the scale that the arguments name, for as many videos as its data set has."""
    scale = scale_of(recipe, arguments)
    config = scaled(cast(Pretrain, get_recipe(recipe, Pretrain)), scale)
    videos = NUM_TRAINING_VIDEOS.get(RECIPES[recipe].data, 0) if recipe in RECIPES else 0
    return CostCommand(config=config, videos=videos, scale=scale)
