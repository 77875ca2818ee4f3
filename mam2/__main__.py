"""The command line: one verb, one function; no logic. `mam2 VERB --help` tells each verb's options.

Exit status: 0 done (also after SIGTERM, with everything saved), 2 an error the user can mend, told on stderr.
"""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from mam2.config import Duration, UserError, did_you_mean, to_json

Positional = tyro.conf.Positional
Flat = tyro.conf.arg(name="")  # --data.root rather than --config.data.root


def pretrain(recipe: str, arguments: list[str]) -> None:
    """mam2 pretrain RECIPE --data.root DIR --out RUN: pre-train on a folder of videos, or a CSV with `path`."""
    from mam2.recipes import get_recipe
    from mam2.train.pretrain import Pretrain
    from mam2.train.pretrain import pretrain as run

    def command(config: Annotated[Pretrain, Flat], out: Path, resume: bool = True) -> None:
        run(config, out, resume=resume)

    _run_with_recipe(command, "pretrain", recipe, get_recipe(recipe, Pretrain), arguments)


def finetune(recipe: str, arguments: list[str]) -> None:
    """mam2 finetune RECIPE --init RUN|FILE|scratch --data.root DIR --out RUN: fine-tune on class folders or a CSV."""
    from mam2.recipes import get_recipe
    from mam2.train.finetune import Finetune
    from mam2.train.finetune import finetune as run

    def command(config: Annotated[Finetune, Flat], out: Path, resume: bool = True) -> None:
        run(config, out, resume=resume)

    _run_with_recipe(command, "finetune", recipe, get_recipe(recipe, Finetune), arguments)


def evaluate(
    run: Annotated[Path, Positional],
    data_root: Annotated[str, tyro.conf.arg(name="data.root")],
    clips: int | None = None,
    crops: int | None = None,
    out: Path | None = None,
) -> None:
    """Test a fine-tuned run on labelled videos: evaluate.json, confusion.png.

    Args:
        run: the folder of a `mam2 finetune`.
        data_root: class folders, or a CSV with path,label.
        clips: windows a video; the run's own protocol if left out.
        crops: squares a window; the run's own protocol if left out.
        out: where to write; the run's folder if left out.
    """
    from mam2 import distributed
    from mam2.train.finetune import evaluate_run
    from mam2.visualize import confusion_picture

    out = out or run
    result, classes = evaluate_run(run, data_root, clips=clips, crops=crops, out=out)
    if distributed.rank() > 0:
        return
    title = f"{len(result.label_B)} videos, top-1 {result.top(1):.3f}"
    confusion_picture(result.confusion(), list(classes), out / "confusion.png", title=title)
    print(f"top-1 {result.top(1):.4f}  top-5 {result.top(5):.4f}  of {len(result.label_B)} videos: {out}/evaluate.json")


def show(
    run: Annotated[Path, Positional],
    video: Annotated[Path, Positional],
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Draw what a pre-trained run predicts for a video.

    Args:
        run: the folder of a `mam2 pretrain`.
        video: any video file.
        out: the PNG; next to where you are, by the video's name, if left out.
        seed: of the mask.
    """
    from mam2.show import show as draw

    out = out or Path(f"{video.stem}.png")
    draw(run, video, out, seed=seed)
    print(f"Wrote {out}")


def recipes(name: Annotated[str, Positional] = "") -> None:
    """List the recipes, or print one's whole configuration as JSON.

    Args:
        name: a recipe.
    """
    from mam2.recipes import RECIPES, get_recipe

    if name:
        print(json.dumps(to_json(get_recipe(name)), indent=2))
        return
    table = Table("recipe", "paper's table", "data", "model", "length", "paper's number")
    for key, recipe in RECIPES.items():
        length = str(recipe.make().loop.duration)
        table.add_row(key, recipe.table or "-", recipe.data, recipe.model, length, recipe.paper or "-")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def quickstart(out: Path = Path("runs/quickstart")) -> None:
    """Render videos, pre-train, fine-tune, compare with training from scratch, write report.html. About 10 minutes.

    Args:
        out: a new folder, or that of a quickstart that was interrupted.
    """
    from mam2.quickstart import quickstart as run

    run(out)


def tokenizer_convert(checkpoint: Annotated[Path, Positional], out: Path) -> None:
    """Convert the official VQGAN checkpoint to safetensors; nothing in it is executed.

    Args:
        checkpoint: the official last.ckpt.
        out: the .safetensors to write.
    """
    from mam2.targets.convert import convert_checkpoint

    print(json.dumps(convert_checkpoint(checkpoint, out), indent=2, default=str))


def tokenizer_train(
    root: Annotated[str, Positional],
    out: Path,
    num_codes: int = 1024,
    patch_size: int = 16,
    size: int = 224,
    num_steps: int = 400,
    seed: int = 0,
) -> None:
    """Train a small VQ tokenizer on your own videos.

    Args:
        root: a folder of videos, or a CSV with `path`.
        out: the .safetensors to write.
        num_codes: size of the codebook.
        patch_size: pixels; the encoder's.
        size: height and width of the frames, pixels.
        num_steps: optimiser steps of 32 frames.
        seed: of weights and frames.
    """
    from mam2.data.catalog import read_catalog
    from mam2.data.loader import Data
    from mam2.targets.vq import VQConfig
    from mam2.train.tokenizer import train_tokenizer

    config = VQConfig(patch_size=patch_size, num_codes=num_codes)
    catalog = read_catalog(root, labelled=False)
    report = train_tokenizer(catalog, Data(), config, out, size=size, num_steps=num_steps, seed=seed)
    print(json.dumps(report, indent=2))


WITH_RECIPE = {"pretrain": pretrain, "finetune": finetune}
PLAIN: dict[str, Callable[..., None]] = {
    "evaluate": evaluate,
    "show": show,
    "recipes": recipes,
    "quickstart": quickstart,
    "tokenizer convert": tokenizer_convert,
    "tokenizer train": tokenizer_train,
}


def main() -> None:
    """Runs the verb that the command line names."""
    from mam2 import distributed

    logging.basicConfig(
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False, show_time=False)],
    )
    logging.getLogger("mam2").setLevel(logging.INFO)
    try:
        with distributed.session():
            _dispatch(sys.argv[1:])
    except UserError as error:
        print(f"mam2: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no permission, disk full, a file where a folder is wanted
        print(f"mam2: {error}. What was saved before is untouched.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("mam2: interrupted. What was saved is kept; the same command goes on from there.", file=sys.stderr)
        sys.exit(130)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    verb, rest = arguments[0], arguments[1:]
    if verb == "tokenizer" and rest and not rest[0].startswith("-"):
        verb, rest = f"tokenizer {rest[0]}", rest[1:]
    if verb in WITH_RECIPE:
        if not rest or rest[0].startswith("-"):
            raise UserError(f"Name a recipe: {WITH_RECIPE[verb].__doc__} `mam2 recipes` lists them.")
        WITH_RECIPE[verb](rest[0], rest[1:])
    elif verb in PLAIN:
        tyro.cli(PLAIN[verb], args=rest, prog=f"mam2 {verb}", registry=_registry())
    else:
        raise UserError(
            f"There is no command {verb!r}. {did_you_mean(verb, [*WITH_RECIPE, *PLAIN])} See `mam2 --help`."
        )


def _run_with_recipe(command: Callable[..., None], verb: str, recipe: str, config: Any, arguments: list[str]) -> None:
    command.__defaults__ = (config, tyro.MISSING, True)
    tyro.cli(
        command,
        args=arguments,
        prog=f"mam2 {verb} {recipe}",
        description=config.__doc__,
        registry=_registry(),
    )


def _registry() -> tyro.constructors.ConstructorRegistry:
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def duration(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if info.type is not Duration:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="DURATION",
            instance_from_str=lambda words: Duration.parse(words[0]),
            is_instance=lambda value: isinstance(value, Duration),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _usage() -> str:
    lines = ["usage: mam2 COMMAND ...", ""]
    for verb, function in {**WITH_RECIPE, **PLAIN}.items():
        lines.append(f"  {verb:<18} {(function.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "`mam2 COMMAND --help` lists a command's options; every field of a recipe is one."])


if __name__ == "__main__":
    main()
