"""Fine-tuning: a pre-trained encoder with a new head in the same loop (Table 8), and its test."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import nn

from mam2 import distributed
from mam2.config import Epochs, UserError, check, from_json, seed_of
from mam2.data.catalog import Catalog, few_shot
from mam2.data.clips import Data, catalog_of
from mam2.data.loader import Batch
from mam2.data.mixing import mix
from mam2.data.views import ViewLoader
from mam2.device import autocast_dtype, local_device
from mam2.evaluate import Evaluation, evaluate
from mam2.files import write_text, written_whole
from mam2.losses import Losses
from mam2.model.classifier import Classifier, layer_id
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import (
    copy_encoder,
    load_classifier,
    load_encoder,
    read_encoder_config,
    read_origin,
    save_classifier,
)
from mam2.train import checkpoint
from mam2.train.batches import train_loader
from mam2.train.engine import Loop, fit
from mam2.train.optim import Optim, make_optimizer
from mam2.train.run import data_of, only_writer, open_run, read_run

log = logging.getLogger("mam2")
_MIX = 0x313  # keeps the seeds of mixing apart from others


def _table_8_optim() -> Optim:
    return Optim(base_lr=5e-4, min_lr=1e-6, betas=(0.9, 0.999), warmup=Epochs(5), layer_decay=0.75)


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """A complete fine-tuning run; the defaults are Table 8's for ViT-B on Kinetics-400.

    Attributes:
        init: a pre-training run's folder, an encoder.safetensors file, a published encoder (`mam2 import --help`), or
            "scratch".
        shots: labelled videos per class, drawn by the loop's seed; 0 takes all.
        label_smoothing: as in Szegedy et al. (2016).
        mixup: λ ~ Beta(mixup, mixup) of two clips added; 0 is off.
        cutmix: λ ~ Beta(cutmix, cutmix) for a box of one clip in another; 0 is off. Half the batches get each.
        clips: windows per video in testing (the paper's protocol: 7 clips × 3 crops on Kinetics-400).
        crops: squares per window in testing.
    """

    init: str = ""
    shots: Annotated[int, Ge(0)] = 0
    data: Data = field(
        default_factory=lambda: Data(augment="random_resized_crop", rand_augment_ops=2, repeats=2)  # Table 8
    )
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(drop_path=0.1))
    optim: Optim = field(default_factory=_table_8_optim)
    loop: Loop = field(default_factory=lambda: Loop(batch_size=256, duration=Epochs(100)))
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1
    mixup: Annotated[float, Ge(0)] = 0.8
    cutmix: Annotated[float, Ge(0)] = 1.0
    clips: Annotated[int, Ge(1)] = 7
    crops: Annotated[int, Ge(1)] = 3

    def __post_init__(self) -> None:
        check(self, "")


def finetune(config: Finetune, out: str | Path, *, resume: bool = True) -> bool:
    """Fine-tunes on labelled videos, or resumes the run in `out`.

    Writes run.json, log.jsonl, checkpoints/ and classifier.safetensors into `out`.

    Returns:
        True at the end of the run, False if SIGTERM or SIGHUP ended it early (everything is saved).

    Raises:
        UserError: unlabelled or no videos, an `init` of another architecture, another run in `out`.
    """
    folder = Path(out)
    # Open: the videos and the run's folder.
    catalog = catalog_of(config.data, labelled=True)
    catalog = few_shot(catalog, shots=config.shots, seed=config.loop.seed)
    config.loop.check_batch()
    # Build: classifier and optimiser, before the folder is claimed: a wrong --init leaves none behind. A run that goes
    # on needs its init no more.
    device = local_device()
    starts = not checkpoint.checkpoints(folder)
    classifier = build(config if starts else replace(config, init="scratch"), num_classes=len(catalog.classes)).to(
        device
    )
    optimizer = make_optimizer(classifier, config.optim, depth=config.encoder.depth, layer_id=layer_id)
    with only_writer(folder):
        if distributed.rank() == 0:
            videos = [item.path for item in catalog.items]
            open_run(folder, "finetune", config, resume=resume, videos=videos, classes=catalog.classes)
        distributed.barrier()
        # Fit.
        start = checkpoint.load(folder, classifier, optimizer)
        if (folder / "classifier.safetensors").exists():
            classifier.encoder.origin = read_origin(folder / "classifier.safetensors")
        loader = train_loader(catalog, config.data, config.encoder, config.loop, start_step=start)
        if distributed.rank() == 0:
            found = data_of(config.init) if starts else None
            if found and config.data.sampling != "uniform" and found.stride_frames != config.data.stride_frames:
                log.warning(
                    f"data.stride_frames is {config.data.stride_frames}; the pre-training's is {found.stride_frames}."
                )
            log.info(
                f"Fine-tuning from {config.init}, steps {start} to {loader.num_steps}: {len(catalog.items)} videos of "
                f"{len(catalog.classes)} classes, on {device}."
            )
        return fit(
            classifier,
            loss_function(config, num_classes=len(catalog.classes)),
            loader,
            optimizer,
            loop=config.loop,
            optim=config.optim,
            start_step=start,
            folder=folder,
            title="fine-tuning",
            dtype=autocast_dtype(config.loop.precision, device, width=config.encoder.width),
            on_save=lambda: save_classifier(folder / "classifier.safetensors", classifier, catalog.classes),
        )


def as_pretrained(config: Finetune, init: str | Path) -> Finetune:
    """The configuration with the sizes of the encoder that `init` names, and with its stride where a run.json tells it.

    Args:
        config: a recipe's; its drop path stays.
        init: a run's folder, of pre-training or fine-tuning, or a weight file.
    """
    encoder = replace(read_encoder_config(init), drop_path=config.encoder.drop_path)
    found = data_of(init)
    data = (
        replace(config.data, stride_frames=found.stride_frames, target_fps=found.target_fps) if found else config.data
    )
    return replace(config, encoder=encoder, data=data)


def loss_function(config: Finetune, *, num_classes: int) -> Callable[[nn.Module, Batch, int], Losses]:
    """The loss of a batch: cross-entropy against the soft targets of mixup, cutmix and label smoothing."""

    def loss_of(model: nn.Module, batch: Batch, step: int) -> Losses:
        clip_BTCHW, target_BK = mix(
            batch.clip_BTCHW,
            batch.label_B,
            num_classes=num_classes,
            rng=random.Random(seed_of(config.loop.seed, _MIX, int(batch.sample_B[0]))),
            mixup=config.mixup,
            cutmix=config.cutmix,
            smoothing=config.label_smoothing,
        )
        logits_BK = model(clip_BTCHW).float()
        loss = F.cross_entropy(logits_BK, target_BK)
        accuracy = (logits_BK.argmax(dim=1) == batch.label_B).float().mean()
        return Losses(loss, {"cross_entropy": loss.detach(), "accuracy": accuracy}, features_BTD=None)

    return loss_of


def evaluate_run(
    run: str | Path,
    root: str,
    *,
    split: str = "",
    path_column: str = "",
    label_column: str = "",
    clips: int | None = None,
    crops: int | None = None,
    out: str | Path | None = None,
) -> tuple[Evaluation, tuple[str, ...]]:
    """Tests a fine-tuned run on labelled videos; writes evaluate.json, and every video's probabilities.

    Args:
        run: the folder of a fine-tuning run.
        root: class folders or a CSV with path,label; its classes must be among the run's.
        split: which rows of a CSV that has several splits.
        path_column, label_column: of the CSV; the run's own names if empty.
        clips: windows per video; the run's own protocol if None.
        crops: squares per window; the run's own protocol if None.
        out: the folder for evaluate.json and predictions.npz (path, label, probability, classes); the run's if None.

    Returns:
        The evaluation and the class names.

    Raises:
        UserError: no fine-tuned run, unknown labels, no usable videos.
    """
    run, out = Path(run), Path(out or run)
    read_run(run)  # or nothing is made in its name
    if distributed.rank() == 0:
        out.mkdir(parents=True, exist_ok=True)  # or fail before hours of testing
    columns = {"path_column": path_column, "label_column": label_column}
    result, catalog, views = run_on(run, root, labelled=True, split=split, **columns, clips=clips, crops=crops)
    classes, (clips, crops) = catalog.classes, views
    report = {
        "top1": result.top(1),
        "top5": result.top(5),
        "num_videos": len(result.label_B),
        "clips": clips,
        "crops": crops,
        "single_view": result.single_view,
        "per_class": result.per_class(classes),
        "confusion": result.confusion().tolist(),
        "bad_videos": result.bad,
    }
    if distributed.rank() == 0:
        write_text(out / "evaluate.json", json.dumps(report, indent=2))
        with written_whole(out / "predictions.npz") as part, part.open("wb") as file:
            np.savez_compressed(
                file,
                path=np.array([catalog.items[i].path for i in result.index_B.tolist()]),
                label=result.label_B.numpy(),
                probability=result.probabilities_BK.numpy(),
                classes=np.array(classes),
            )
    return result, classes


def run_on(
    run: Path,
    root: str,
    *,
    labelled: bool,
    split: str = "",
    path_column: str = "",
    label_column: str = "",
    clips: int | None = None,
    crops: int | None = None,
) -> tuple[Evaluation, Catalog, tuple[int, int]]:
    """What a fine-tuned run says of videos, with labels or without; see `evaluate_run`.

    Returns:
        Each video's probabilities; the catalog, with the run's classes; and the numbers of clips and crops used.
    """
    record = read_run(run)
    classifier, classes = load_classifier(run)
    config = from_json(Finetune, record["config"])
    clips = config.clips if clips is None else clips
    crops = config.crops if crops is None else crops
    data = replace(
        config.data,
        root=root,
        split=split,
        path_column=path_column or config.data.path_column,
        label_column=label_column or config.data.label_column,
    )
    try:
        catalog = catalog_of(data, labelled=labelled, classes=classes)
    except UserError as error:
        if labelled and _can_be_read(data):
            raise UserError(f"{error} `mam2 predict` takes videos without labels.") from error
        raise
    device = local_device()
    loader = ViewLoader(
        catalog,
        config.data,
        num_frames=config.encoder.frames,
        size=config.encoder.size,
        clips=clips,
        crops=crops,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    result = evaluate(
        classifier.to(device),
        loader,
        num_videos=len(catalog.items),
        dtype=autocast_dtype(config.loop.precision, device, width=config.encoder.width),
    )
    return result, replace(catalog, classes=classes), (clips, crops)


def _can_be_read(data: Data) -> bool:
    """Whether the videos are there, whatever their labels."""
    try:
        return bool(catalog_of(data, labelled=False).items)
    except UserError:
        return False


def build(config: Finetune, *, num_classes: int) -> Classifier:
    """The classifier with its initial weights: a new head on the encoder that `init` names.

    Raises:
        UserError: no init, or one of another architecture than the configuration's.
    """
    if not config.init:
        raise UserError(
            "Nothing to fine-tune: give --init RUN (the folder of a `mam2 pretrain`), an encoder.safetensors file, "
            "or --init scratch to train from random weights."
        )
    torch.manual_seed(config.loop.seed)
    encoder = VideoEncoder(config.encoder)
    if config.init != "scratch":
        copy_encoder(load_encoder(config.init), encoder, config.init)
    return Classifier(encoder, num_classes)
