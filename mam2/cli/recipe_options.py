"""Parts that the commands with a recipe share: common options, and those that are read before the recipe is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast, get_args

from tyro.conf import arg

from mam2.cli.help import first_sentence, options_of, start_page
from mam2.cli.parse import CommandT, first_word, parse
from mam2.config import UserError
from mam2.model.weights import PUBLIC
from mam2.recipes import RECIPES
from mam2.recipes.scales import ScaleName

Out = Annotated[Path, arg(help="a new folder, or that of the same run, which resumes")]
ScaleOption = Annotated[ScaleName, arg(help="other sizes and lengths: nano or tiny for a laptop, small for a GPU")]
Resume = Annotated[bool, arg(help="refuse a run that is there already, instead of resuming it")]
FIRST_RECIPES = ("mam2_tiny", "mam2_lite_b_k400", "mam2_b_k400_rp")
"""Pre-trainings that need no download."""


def parse_with_recipe(
    command: type[CommandT],
    verb: str,
    arguments: list[str],
    *,
    first: tuple[str, ...],
    by_default: Callable[[str, list[str]], CommandT],
) -> tuple[str, CommandT]:
    """The recipe that the arguments begin with, and the command that they describe.

    Args:
        command: its dataclass.
        verb: its name.
        arguments: words after the name.
        first: recipes for one's own videos, which the help page without a recipe lists.
        by_default: makes the command from a recipe and the arguments after it.

    Raises:
        UserError: no recipe, or an unknown one.
    """

    def page() -> str:
        starts = {name: first_sentence(RECIPES[name].make.__doc__ or "") for name in first}
        heading = "Recipes for your own videos; `mam2 recipes` lists all:"
        return start_page(verb, heading, starts, options_of(command, by_default(first[0], [])))

    recipe, rest = first_word(verb, arguments, names="a recipe (`mam2 recipes` lists them)", page=page)
    return recipe, parse(command, verb, rest, first=recipe, default=by_default(recipe, rest))


def scale_of(recipe: str, arguments: list[str]) -> ScaleName:
    """The scale that the arguments name.

    Raises:
        UserError: no scale, or a recipe that has its own sizes.
    """
    scale = option("--scale", arguments) or "base"
    if scale not in (names := get_args(ScaleName)):
        raise UserError(f"--scale is {scale!r}; accepted: {', '.join(names)}.")
    if scale != "base" and recipe in RECIPES and not RECIPES[recipe].model.startswith("ViT"):
        raise UserError(f"{recipe} has sizes of its own; --scale is for recipes of ViT-B and ViT-L. Leave it out.")
    return cast(ScaleName, scale)


def initial(arguments: list[str]) -> str:
    """The encoder that --init names; where it is gone, that of the run in --out; else empty."""
    init, out = option("--init", arguments), option("--out", arguments)
    weights = [place for place in (init, out) if Path(place).is_file() or any(Path(place or "-").glob("*.safetensors"))]
    if init.startswith(PUBLIC):
        return out if out in weights else init  # a resumed run asks nobody for it again
    if init and (Path(init) / "config.json").is_file():
        return init
    return weights[0] if init and weights else ""


def option(name: str, arguments: list[str]) -> str:
    """The value of an option before the command line is parsed; empty if it is not given."""
    for word, following in itertools.pairwise([*arguments, ""]):
        if word == name or word.startswith(f"{name}="):
            return following if word == name else word.removeprefix(f"{name}=")
    return ""
