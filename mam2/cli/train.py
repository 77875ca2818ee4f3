"""`mam2 pretrain` and `mam2 finetune`."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, cast, get_args

import tyro
from tyro.conf import arg

from mam2.cli.parse import OUT_HELP, Flat, finished, first_word, parse
from mam2.config import UserError
from mam2.model.load import read_encoder_config
from mam2.model.weights import PUBLIC
from mam2.recipes import RECIPES, get_recipe
from mam2.recipes.scales import ScaleName, scaled, scaled_finetune
from mam2.train.finetune import Finetune, as_pretrained, finetune
from mam2.train.pretrain import Pretrain, pretrain

Out = Annotated[Path, arg(help=OUT_HELP)]
Scale = Annotated[ScaleName, arg(help="other sizes and lengths: nano or tiny for a laptop, small for a GPU")]
Resume = Annotated[bool, arg(help="refuse a run that is there already, instead of resuming it")]


@dataclass(frozen=True, kw_only=True)
class PretrainCommand:
    """Pre-train on a folder of videos, or a CSV with `path`."""

    config: Annotated[Pretrain, Flat]
    out: Out
    scale: Scale = "base"
    resume: Resume = True


@dataclass(frozen=True, kw_only=True)
class FinetuneCommand:
    """Fine-tune on class folders, or a CSV with `path,label`."""

    config: Annotated[Finetune, Flat]
    out: Out
    scale: Scale = "base"
    resume: Resume = True


def main(verb: str, arguments: list[str]) -> None:
    """Trains by a recipe."""
    recipe, rest = first_word(verb, arguments, names="a recipe (`mam2 recipes` lists them)")
    start = time.monotonic()
    out = cast(Path, tyro.MISSING)
    scale = scale_of(recipe, rest)
    if verb == "pretrain":
        config = scaled(cast(Pretrain, get_recipe(recipe, Pretrain)), scale)
        if place := initial(rest):
            encoder = replace(read_encoder_config(place), drop_path=config.encoder.drop_path)
            config = replace(config, encoder=encoder)
        command = parse(
            PretrainCommand, f"pretrain {recipe}", rest, default=PretrainCommand(config=config, out=out, scale=scale)
        )
        run = command.out
        if pretrain(command.config, run, resume=command.resume):
            same = "" if scale == "base" else f" --scale {scale}"
            tune = f"mam2 finetune {finetune_recipe(recipe)}{same} --init {run} --data.root LABELLED --out {run}_tuned"
            look = f"mam2 show {run} VIDEO"
            finished(f"{run}/encoder.safetensors, log.jsonl, checkpoints/", start, tune, look)
    else:
        tuning = sized(scaled_finetune(cast(Finetune, get_recipe(recipe, Finetune)), scale), rest)
        tune_command = parse(
            FinetuneCommand, f"finetune {recipe}", rest, default=FinetuneCommand(config=tuning, out=out, scale=scale)
        )
        run = tune_command.out
        if finetune(tune_command.config, run, resume=tune_command.resume):
            test = f"mam2 evaluate {run} --data.root TEST"
            finished(f"{run}/classifier.safetensors, log.jsonl, checkpoints/", start, test)


def sized(config: Finetune, arguments: list[str]) -> Finetune:
    """The recipe with the sizes of the encoder that --init names."""
    place = initial(arguments)
    return as_pretrained(config, place) if place else config


def initial(arguments: list[str]) -> str:
    """The encoder that --init names, or that of the run in --out if it resumes without it; empty if neither is
    there."""
    init, out = option("--init", arguments), option("--out", arguments)
    weights = [place for place in (init, out) if Path(place).is_file() or any(Path(place or "-").glob("*.safetensors"))]
    if init.startswith(PUBLIC):
        return out if out in weights else init  # a resumed run asks nobody for it again
    if init and (Path(init) / "config.json").is_file():
        return init
    return weights[0] if init and weights else ""


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


def option(name: str, arguments: list[str]) -> str:
    """The value of an option before the command line is parsed; empty if it is not given."""
    for word, following in itertools.pairwise([*arguments, ""]):
        if word == name or word.startswith(f"{name}="):
            return following if word == name else word.removeprefix(f"{name}=")
    return ""


def finetune_recipe(recipe: str) -> str:
    """The fine-tuning recipe that belongs to a pre-training recipe."""
    name = f"finetune_{recipe.removeprefix('mam2_').removesuffix('_rp').removesuffix('_600')}"
    return name if name in RECIPES else "finetune_b_ucf101"
