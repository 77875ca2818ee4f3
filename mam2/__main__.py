"""The command line: one verb, one function; no logic. `mam2 VERB --help` tells each verb's options.

Exit status: 0 done (also after SIGTERM, with everything saved), 2 an error the user can mend, told on stderr.
"""

import inspect
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from tyro.conf import arg

from mam2.config import Duration, UserError, did_you_mean, to_json

Positional = tyro.conf.Positional
Flat = arg(name="")  # --data.root rather than --config.data.root
Out = Annotated[Path, arg(help="the run's folder: a new one, or that of the same run, which goes on")]
Resume = Annotated[bool, arg(help="whether a run that is there may go on")]


def pretrain(recipe: str, arguments: list[str]) -> None:
    """mam2 pretrain RECIPE --data.root DIR --out RUN: pre-train on a folder of videos, or a CSV with `path`."""
    from mam2.recipes import get_recipe
    from mam2.train.pretrain import Pretrain
    from mam2.train.pretrain import pretrain as run

    def command(config: Annotated[Pretrain, Flat], out: Out, resume: Resume = True) -> None:
        run(config, out, resume=resume)

    _run_with_recipe(command, "pretrain", recipe, get_recipe(recipe, Pretrain), arguments)


def finetune(recipe: str, arguments: list[str]) -> None:
    """mam2 finetune RECIPE --init RUN|FILE|scratch --data.root DIR --out RUN: fine-tune on class folders or a CSV."""
    from mam2.recipes import get_recipe
    from mam2.train.finetune import Finetune
    from mam2.train.finetune import finetune as run

    def command(config: Annotated[Finetune, Flat], out: Out, resume: Resume = True) -> None:
        run(config, out, resume=resume)

    _run_with_recipe(command, "finetune", recipe, get_recipe(recipe, Finetune), arguments)


def probe(encoder: str, arguments: list[str]) -> None:
    """mam2 probe RUN --train DIR --test DIR --kind linear|attentive|knn: what a frozen encoder knows."""
    from mam2.probe.probe import Probe
    from mam2.probe.probe import probe_encoder as run

    place = Path(encoder)

    def command(config: Annotated[Probe, Flat], out: Path) -> None:
        report = run(config, out)
        lines = [("pre-trained", report), ("untrained", report["baseline"])]
        table = Table("encoder", "top-1", "top-5", title=f"{config.kind}, {report['num_videos']} videos")
        for name, found in lines:
            if found:
                table.add_row(name, f"{found['top1']:.4f}", f"{found['top5']:.4f}")
        _print(table, f"Wrote {out}/probe_{config.kind}.json")

    default_out = (place if place.is_dir() else place.parent) / "probe"
    command.__defaults__ = (Probe(encoder=encoder), default_out)
    tyro.cli(command, args=arguments, prog=f"mam2 probe {encoder}", description=probe.__doc__)


def cost(recipe: str, arguments: list[str]) -> None:
    """mam2 cost RECIPE [--device h100|a100|cpu]: what pre-training will take, before anyone starts it."""
    from mam2 import cost as costs
    from mam2.recipes import RECIPES, get_recipe
    from mam2.recipes.tables import NUM_TRAINING_VIDEOS
    from mam2.train.pretrain import Pretrain

    start = get_recipe(recipe, Pretrain)

    def command(
        config: Annotated[Pretrain, Flat],
        device: Annotated[Literal["h100", "a100", "cpu"], arg(help="the CPU's peak is measured")] = "h100",
        utilisation: Annotated[float, arg(help="the share of the peak that is reached")] = 0.4,
        videos: Annotated[int, arg(help="to train on; 0: no hours are told")] = NUM_TRAINING_VIDEOS.get(
            RECIPES[recipe].data, 0
        ),
    ) -> None:
        if videos < 0 or not 0 < utilisation <= 1:
            raise UserError(
                f"videos is {videos} and utilisation {utilisation}; accepted are a number of training videos, and a "
                "share of the peak above 0, up to 1."
            )
        on = costs.this_cpu(width=config.encoder.width) if device == "cpu" else costs.DEVICES[device]
        estimate, parts = costs.estimate(config), costs.parts_of(config)
        table = Table("part of a step", "TFLOP a clip", "share", title=recipe)
        for name, tflop in sorted(parts.items(), key=lambda part: -part[1]):
            table.add_row(name, f"{tflop:.4g}", f"{tflop / estimate.tflop:.0%}")
        table.add_section()
        table.add_row("whole step", f"{estimate.tflop:.4g}", "")
        achieved = utilisation * on.peak_tflops
        run = f"{on.title}: give --videos N, your number of training videos, for hours."
        if videos:
            hours = costs.gpu_hours(config, estimate, num_videos=videos, tflops=achieved)
            run = (
                f"{on.title}: {hours:,.4g} hours of one, for {config.loop.duration} of {videos:,} videos at "
                f"{achieved:.3g} TFLOP/s ({utilisation:.0%} of {on.peak_tflops:.3g})."
            )
        disk = f"Disk: up to {costs.run_folder_gib(config, estimate):.2f} GiB for the run's folder"
        if config.targets.cache and videos:
            disk += f", {costs.cache_gib(config, videos):.2f} GiB for the token cache"
        fits = max(0, int((0.9 * on.memory_gib - estimate.state_gib) / estimate.clip_gib))
        _print(
            table,
            run,
            f"Memory: {estimate.state_gib:.2f} GiB for weights, gradients and AdamW, {estimate.clip_gib:.3g} GiB for "
            f"each clip, besides the tokenizer's own: some {fits} clips fit in 90 % of {on.memory_gib:.0f} GiB.",
            f"{disk}.",
        )

    _run_with_recipe(command, "cost", recipe, start, arguments)


def evaluate(
    run: Annotated[Path, Positional],
    data_root: Annotated[str, arg(name="data.root")],
    data_split: Annotated[str, arg(name="data.split")] = "",
    clips: int | None = None,
    crops: int | None = None,
    out: Path | None = None,
) -> None:
    """Test a fine-tuned run on labelled videos: evaluate.json, predictions.npz, confusion.png.

    Args:
        run: the folder of a `mam2 finetune`.
        data_root: class folders, or a CSV with path,label.
        data_split: which rows of a CSV that has several splits.
        clips: windows a video; the run's own protocol if left out.
        crops: squares a window; the run's own protocol if left out.
        out: where to write; the run's folder if left out.
    """
    from mam2 import distributed
    from mam2.pictures.charts import confusion_picture
    from mam2.train.finetune import evaluate_run

    out = out or run
    result, classes = evaluate_run(run, data_root, split=data_split, clips=clips, crops=crops, out=out)
    if distributed.rank() > 0:
        return
    title = f"{len(result.label_B)} videos, top-1 {result.top(1):.3f}"
    confusion_picture(result.confusion(), list(classes), out / "confusion.png", title=title)
    report = json.loads((out / "evaluate.json").read_text())
    table = Table("views", "top-1", "top-5", title=f"{len(result.label_B)} videos")
    if result.single_view:
        table.add_row("1, on average", *(f"{share:.4f}" for share in result.single_view))
    table.add_row(f"{report['clips']} × {report['crops']}", f"{result.top(1):.4f}", f"{result.top(5):.4f}")
    _print(table, f"Wrote {out}/evaluate.json, predictions.npz, confusion.png")


def show(
    run: Annotated[Path, Positional],
    video: Annotated[Path, Positional],
    out: Path | None = None,
    gif: Path | None = None,
    mp4: Path | None = None,
    augment: bool = False,
    seed: int = 0,
) -> None:
    """Draw what a pre-trained run predicts for a video, or what a run's training gets to see of it.

    Args:
        run: the folder of a `mam2 pretrain`; with --augment, of a `mam2 finetune` too.
        video: any video file.
        out: the PNG; next to where you are, by the video's name, if left out.
        gif: an animation of the same to write too.
        mp4: an animation of the same to write too.
        augment: draw four clips of the video as the run's training gets them, not predictions.
        seed: of the mask, or of the augmentation.
    """
    from mam2.pictures.show import show as draw
    from mam2.pictures.show import show_augmented

    if augment and (gif or mp4):
        raise UserError("--augment draws a picture only; leave --gif and --mp4 out.")
    if out and out.suffix.lower() != ".png":
        raise UserError(f"{out} is no PNG's name. Give --out a name that ends in .png.")
    if augment:
        show_augmented(run, video, out or Path(f"{video.stem}.png"), seed=seed)
        print(f"Wrote {out or f'{video.stem}.png'}")
        return
    out, animations = out or Path(f"{video.stem}.png"), tuple(path for path in (gif, mp4) if path)
    draw(run, video, out, animations=animations, seed=seed)
    print(f"Wrote {', '.join(map(str, (out, *animations)))}")


def masks(
    video: Annotated[Path | None, Positional] = None, out: Path = Path("masks.png"), ratio: float = 0.75, seed: int = 0
) -> None:
    """Draw every kind of mask over a video, as Fig. 3.

    Args:
        video: any video file; a rendered one if left out.
        out: the PNG.
        ratio: share of patches that is masked.
        seed: of the masks.
    """
    from mam2.pictures.show import show_masks

    show_masks(video, out, ratio=ratio, seed=seed)
    print(f"Wrote {out}")


def recipes(name: Annotated[str, Positional] = "", table: str = "", tflops: float = 125.0) -> None:
    """List the recipes, print one's whole configuration as JSON, or the rows of one of the paper's tables.

    Args:
        name: a recipe.
        table: a table of the paper, such as 1d: its rows with the paper's numbers, commands and estimated cost.
        tflops: TFLOP/s that a GPU achieves, for the estimate; 125 is 40 % of an A100's 312 in bf16.
    """
    from mam2.recipes import RECIPES, get_recipe
    from mam2.recipes.tables import tables_of

    if table and name:
        raise UserError("Give a recipe's name or --table, not both.")
    if table:
        _paper_table(table, tflops)
        return
    if name:
        print(json.dumps(to_json(get_recipe(name)), indent=2))
        return
    listing = Table("recipe", "paper's tables", "data", "model", "length")
    for key, recipe in RECIPES.items():
        length = str(recipe.make().loop.duration)
        listing.add_row(key, ", ".join(tables_of(key)) or "-", recipe.data, recipe.model, length)
    _print(listing, "`mam2 recipes NAME` prints a recipe; `mam2 recipes --table 1d` a table of the paper, with costs.")


def _paper_table(number: str, tflops: float) -> None:
    from mam2.cost import estimate, gpu_hours
    from mam2.recipes import RECIPES
    from mam2.recipes.tables import NUM_TRAINING_VIDEOS, get_table
    from mam2.targets.table import APPEARANCES
    from mam2.train.pretrain import Pretrain

    table, costs, commands = get_table(number), ("TFLOP/clip", "GiB/clip", "GPU-hours"), []
    listing = Table("row", "recipe", "the paper's", *costs, title=f"Table {number}: {table.title}")
    for row in table.rows:
        config, figures = RECIPES[row.recipe].make(), ["-"] * 3
        verb = type(config).__name__.lower()
        commands.append(
            f"mam2 {verb} {row.recipe} --data.root DIR --out RUN" + " --init PRETRAINED" * (verb != "pretrain")
        )
        if isinstance(config, Pretrain):
            cost = estimate(config)
            hours = gpu_hours(config, cost, num_videos=NUM_TRAINING_VIDEOS[RECIPES[row.recipe].data], tflops=tflops)
            figures = [f"{cost.tflop:.2f}", f"{cost.clip_gib:.1f}", f"{hours:,.0f}"]
            needs = config.objective.needs_appearance and APPEARANCES[config.targets.appearance].weights != "none"
            commands[-1] += " --targets.file FILE" * needs
            commands[-1] += f" && mam2 finetune {row.finetune} --init RUN --data.root DIR --out TUNED"
            commands[-1] += " && mam2 evaluate TUNED --data.root TEST"
        listing.add_row(row.name, row.recipe, row.paper or "-", *figures)
    _print(
        listing,
        "Top-1 after fine-tuning as the paper has it; none has been rerun here. Estimates for pre-training: TFLOP with "
        "the targets; GiB kept for the backward pass in bf16, beside the weights; hours of one GPU at "
        f"{tflops:g} TFLOP/s.",
        *dict.fromkeys(commands),
    )


def targets() -> None:
    """List the appearance and motion targets: input size, range, number of codes, cost of a clip."""
    from mam2.targets.table import APPEARANCES, MOTIONS

    listing = Table("--targets.appearance", "what", "fed", "range", "K", "GFLOP/clip", "weights")
    for name, row in APPEARANCES.items():
        codes = str(row.num_outputs or ("-" if row.load is None else "yours"))
        listing.add_row(name, row.title, f"{row.size}²", row.range, codes, f"{row.gflop:,}", row.weights)
    motions = Table("--targets.motion", "what", "units", "numbers a patch of 16²", "GFLOP/clip")
    for name, motion in MOTIONS.items():
        numbers = str(motion.channels * 256) if motion.load else "2 a tube"
        motions.add_row(name, motion.title, motion.units, numbers, f"{motion.gflop:,}")
    _print(listing, "For a clip of 16 frames of 224².")
    _print(motions)


def _print(table: Table, *notes: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)  # file names may hold brackets


def quickstart(out: Path = Path("runs/quickstart")) -> None:
    """Render videos, pre-train, fine-tune, compare with training from scratch, write report.html. About 10 minutes.

    Args:
        out: a new folder, or that of a quickstart that was interrupted.
    """
    from mam2.quickstart import quickstart as run

    run(out)


def tokenizer_convert(checkpoint: Annotated[Path, Positional], out: Path, decoder: Path | None = None) -> None:
    """Convert an official VQGAN or DALL-E checkpoint to safetensors; nothing in it is executed.

    Args:
        checkpoint: the official last.ckpt of a VQGAN, or encoder.pkl of DALL-E.
        out: the .safetensors to write.
        decoder: DALL-E's decoder.pkl, which only pictures need.
    """
    from mam2.targets.tokenizers.convert import convert_checkpoint

    print(json.dumps(convert_checkpoint(checkpoint, out, decoder=decoder), indent=2, default=str))


def tokenizer_train(
    root: Annotated[str, Positional],
    out: Path,
    num_codes: int = 1024,
    patch_size: int = 16,
    size: int = 224,
    num_steps: int = 400,
    split: str = "",
    seed: int = 0,
) -> None:
    """Train a small VQ tokenizer on your own videos, and draw what its codes keep of them beside it (.png).

    Args:
        root: a folder of videos, or a CSV with `path`.
        out: the .safetensors to write.
        num_codes: size of the codebook.
        patch_size: pixels; the encoder's.
        size: height and width of the frames, pixels.
        num_steps: optimiser steps of 32 frames.
        split: which rows of a CSV that has several splits.
        seed: of weights and frames.
    """
    from mam2.data.catalog import read_catalog
    from mam2.data.clips import Data
    from mam2.pictures.show import show_reconstruction
    from mam2.targets.tokenizers.vq import VQConfig
    from mam2.train.tokenizer import train_tokenizer

    config = VQConfig(patch_size=patch_size, num_codes=num_codes)
    catalog = read_catalog(root, labelled=False, split=split)
    report = train_tokenizer(catalog, Data(), config, out, size=size, num_steps=num_steps, seed=seed)
    picture = out.with_suffix(".png")
    show_reconstruction(out, [item.path for item in catalog.items], picture, size=size)
    print(json.dumps(report | {"picture": str(picture)}, indent=2))


def prepare(
    name: Annotated[str, Positional],
    root: Path,
    split: int = 1,
    annotations: Path | None = None,
    out: Path | None = None,
    frames: Path | None = None,
    short_side: int = 256,
    quality: int = 90,
    num_workers: int = 2,
    timeout_seconds: int = 120,
    max_missing_share: float = 0.05,
) -> None:
    """Check a data set against its official lists and write its manifest, a CSV for --data.root; extract its frames.

    Args:
        name: k400, ssv2, ucf101, hmdb51, or folder for your own.
        root: the folder of the videos; your own may also be a CSV with path, label, split.
        split: the official split of UCF101 and HMDB51, 1 to 3.
        annotations: the folder of the official lists; looked for in the root if left out.
        out: the manifest; in the root, named after the data set, if left out.
        frames: a folder to extract all frames to, with a manifest of their own.
        short_side: of the frames, pixels (256 or 320 are usual).
        quality: of the frames' JPEG files, 1 to 100.
        num_workers: processes.
        timeout_seconds: to open a video; one that takes longer is unreadable. Its frames may take 30 times as long.
        max_missing_share: of the listed videos, that may be missing or unreadable.
    """
    from mam2.data.prepare.extract import write_all_frames
    from mam2.data.prepare.manifest import prepare as run

    report = run(
        name,
        root,
        split=split,
        annotations=annotations,
        out=out,
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
        max_missing_share=max_missing_share,
    )
    listing = Table(
        "split", "listed", "in the manifest", "Table 6", "seconds a video", title=escape(str(report.manifest))
    )
    for of in report.splits:
        seconds = f"{of.mean_seconds:.1f}" if of.mean_seconds else "-"
        listing.add_row(of.split, f"{of.listed:,}", f"{of.written:,}", f"{of.table6:,}" if of.table6 else "-", seconds)
    problems = [
        f"{kind}: {problem.count:,}, such as {', '.join(problem.first)}"
        for kind in ("missing", "unreadable", "short", "extra", "duplicates")
        if (problem := getattr(report, kind)).count
    ]
    _print(listing, f"{report.num_classes} classes.", *problems, *report.notes)
    if frames:
        done = write_all_frames(
            report.manifest,
            frames,
            short_side=short_side,
            quality=quality,
            num_workers=num_workers,
            timeout_seconds=30 * timeout_seconds,
            max_bad_share=max_missing_share,
        )
        print(f"{done.num_videos} videos as frames, {len(done.bad)} left out: {done.manifest}")


WITH_NAME = {"pretrain": pretrain, "finetune": finetune, "probe": probe, "cost": cost}
PLAIN: dict[str, Callable[..., None]] = {
    "evaluate": evaluate,
    "show": show,
    "masks": masks,
    "recipes": recipes,
    "targets": targets,
    "quickstart": quickstart,
    "prepare": prepare,
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
    except torch.OutOfMemoryError as error:
        print(
            f"mam2: {str(error).splitlines()[0]} In training use --loop.accumulate 2 (or more), --loop.recompute, or a "
            "smaller --loop.batch-size; `mam2 cost RECIPE` tells how many clips fit. What was saved is kept.",
            file=sys.stderr,
        )
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
    if verb in WITH_NAME:
        if not rest or rest[0].startswith("-"):
            what = "an encoder" if verb == "probe" else "a recipe (`mam2 recipes` lists them)"
            raise UserError(f"Name {what}: {WITH_NAME[verb].__doc__}")
        WITH_NAME[verb](rest[0], rest[1:])
    elif verb in PLAIN:
        tyro.cli(PLAIN[verb], args=rest, prog=f"mam2 {verb}", registry=_registry())
    else:
        raise UserError(f"There is no command {verb!r}. {did_you_mean(verb, [*WITH_NAME, *PLAIN])} See `mam2 --help`.")


def _run_with_recipe(command: Callable[..., None], verb: str, recipe: str, config: Any, arguments: list[str]) -> None:
    from mam2.recipes import RECIPES

    given = command.__defaults__ or ()
    required = command.__code__.co_argcount - 1 - len(given)
    command.__defaults__ = (config, *[tyro.MISSING] * required, *given)
    tyro.cli(
        command,
        args=arguments,
        prog=f"mam2 {verb} {recipe}",
        description=inspect.cleandoc(RECIPES[recipe].make.__doc__ or ""),
        config=(tyro.conf.AvoidSubcommands,),  # a recipe says which objective it is
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
    for verb, function in {**WITH_NAME, **PLAIN}.items():
        lines.append(f"  {verb:<18} {(function.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "`mam2 COMMAND --help` lists a command's options; every field of a recipe is one."])


if __name__ == "__main__":
    main()
