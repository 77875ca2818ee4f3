"""Fine-tuning: a pre-trained encoder with a new head in the same loop (Table 8)."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from mam2 import distributed
from mam2.config import Epochs, UserError, check, seed_of
from mam2.data.catalog import Catalog, few_shot, read_catalog
from mam2.data.clips import Data
from mam2.data.labels import LabelKind, LabelSetting
from mam2.data.loader import Batch
from mam2.data.mixing import mix
from mam2.device import local_device
from mam2.losses import Losses
from mam2.model.classifier import Classifier, Pooling
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.load import load_encoder, read_encoder_config
from mam2.model.weights import copy_encoder, read_origin, save_classifier
from mam2.train import checkpoint
from mam2.train.begin import begin
from mam2.train.engine import Events, Loop, LossOf, Training, fit
from mam2.train.optim import Optim, make_optimizer
from mam2.train.run import only_writer, open_run, settings_of

log = logging.getLogger("mam2")
_MIX = 0x313  # keeps the seeds of mixing apart from others
MOST_WEIGHT = 100.0  # weight of a rare class, at most
_IN_WORDS: dict[LabelKind, str] = {
    "classes": "of {} classes",
    "multilabel": "with any of {} classes each",
    "regression": "with a number each",
}


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """A complete fine-tuning run; the defaults are Table 8's for ViT-B on Kinetics-400.

    Attributes:
        init: a pre-training run's folder, an encoder.safetensors file, a published encoder (`mam2 import --help`), or
            "scratch".
        shots: labelled videos per class, drawn by the loop's seed; 0 takes all.
        labels: kind of labels: "classes", one for each video; "multilabel", several with ; or | between them in a
            .csv, or none; "regression", a number to be predicted; "auto" detects the kind from the labels.
        class_weights: weighs classes by how rare they are, for sets in which some are much rarer than others.
        freeze: number of blocks, from the first, that are not trained, along with the patch embedding and positions; 0
            trains all.
        pooling: pooling of features for the head: mean over "all", space and time, the paper's; or over "space", the
            frames one after another, where the order of what happens tells the class.
        label_smoothing: label smoothing of Szegedy et al. (2016); without effect on numbers.
        mixup: λ ~ Beta(mixup, mixup) of two clips added; 0 is off.
        cutmix: λ ~ Beta(cutmix, cutmix) for a box of one clip in another; 0 is off. Half the batches get each.
        clips: windows per video in testing (the paper's protocol: 7 clips × 3 crops on Kinetics-400).
        crops: squares per window in testing.
    """

    init: str = ""
    shots: Annotated[int, Ge(0)] = 0
    labels: LabelSetting = "auto"
    class_weights: bool = False
    freeze: Annotated[int, Ge(0)] = 0
    data: Data = field(
        default_factory=lambda: Data(augment="random_resized_crop", rand_augment_ops=2, repeats=2)  # Table 8
    )
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(drop_path=0.1))
    optim: Optim = field(
        default_factory=lambda: Optim(base_lr=5e-4, min_lr=1e-6, betas=(0.9, 0.999), warmup=Epochs(5), layer_decay=0.75)
    )
    loop: Loop = field(default_factory=lambda: Loop(batch_size=256, duration=Epochs(100)))
    pooling: Pooling = "all"
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1
    mixup: Annotated[float, Ge(0)] = 0.8
    cutmix: Annotated[float, Ge(0)] = 1.0
    clips: Annotated[int, Ge(1)] = 7
    crops: Annotated[int, Ge(1)] = 3

    def __post_init__(self) -> None:
        check(self, "")
        if self.freeze > self.encoder.depth:
            raise UserError(f"freeze is {self.freeze}; the encoder has {self.encoder.depth} blocks.")


def finetune(config: Finetune, out: str | Path, *, resume: bool = True) -> bool:
    """Fine-tunes on labelled videos, or resumes the run in `out`.

    Writes run.json, log.jsonl, checkpoints/ and classifier.safetensors into `out`.

    Returns:
        True at the end of the run, False if SIGTERM or SIGHUP ended it early (everything is saved).

    Raises:
        UserError: unlabelled or no videos, an `init` of another architecture, another run in `out`.
    """
    with open_finetuning(config, Path(out), resume=resume) as (training, loss_of, events):
        return fit(training, loss_of, events)


@contextmanager
def open_finetuning(
    config: Finetune, folder: Path, *, resume: bool = True
) -> Iterator[tuple[Training[Batch], LossOf[Batch], Events]]:
    """The arguments of `fit` for a fine-tuning. Its folder is locked while it is open."""
    # Open: the videos.
    catalog = read_catalog(config.data.listing, labelled=True, kind=config.labels)
    catalog = few_shot(catalog, shots=config.shots, seed=config.loop.seed)
    config.loop.check_batch()
    # Build: classifier and optimiser, before the folder is claimed: a wrong --init leaves none behind. A resumed run
    # ignores --init.
    device = local_device()
    starts = not checkpoint.checkpoints(folder)
    task = task_of(config, catalog)
    config_now = config if starts else replace(config, init="scratch")
    classifier = build_classifier(config_now, num_classes=len(catalog.classes), kind=catalog.kind).to(device)
    optimizer = make_optimizer(classifier, config.optim, depth=config.encoder.depth, by_layer=True)
    file = folder / "classifier.safetensors"
    with only_writer(folder):
        if distributed.rank() == 0:
            videos = [item.path for item in catalog.items]
            open_run(folder, "finetune", config, resume=resume, videos=videos, classes=catalog.classes)
        distributed.barrier()
        # Begin: at the newest checkpoint, or with the weights of init.
        training = begin(config, catalog, classifier, optimizer, folder=folder, title="fine-tuning")
        if file.exists():
            classifier.encoder.origin = read_origin(file)
        if distributed.rank() == 0:
            if starts:
                warn_of_stride(config)
            log.info(
                f"Fine-tuning from {config.init}, steps {training.start_step} to {training.loader.num_steps}: "
                f"{len(catalog.items)} videos {_IN_WORDS[catalog.kind].format(len(catalog.classes))}, on {device}."
            )

        def save() -> None:
            with in_units(classifier, task):
                save_classifier(file, classifier, catalog.classes)

        yield training, finetuning_loss(config, task), Events(on_save=save)


def warn_of_stride(config: Finetune) -> None:
    """Logs a stride that differs from the pre-training's."""
    found = settings_of(config.init)
    stride = config.data.stride_frames
    if found and config.data.sampling != "uniform" and found.data.stride_frames != stride:
        log.warning(f"data.stride_frames is {stride}; the pre-training's is {found.data.stride_frames}.")


def as_pretrained(config: Finetune, init: str | Path) -> Finetune:
    """The configuration with the sizes of the encoder that `init` names, and with the stride of its run, if known.

    Args:
        config: configuration of a run; its drop path stays.
        init: folder of a pre-training or a fine-tuning, or a weight file.
    """
    data = config.data
    if found := settings_of(init):
        data = replace(data, stride_frames=found.data.stride_frames, target_fps=found.data.target_fps)
    encoder = replace(read_encoder_config(init), drop_path=config.encoder.drop_path)
    return replace(config, encoder=encoder, data=data)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The labels to learn, with their statistics in the training set.

    Attributes:
        kind: kind of labels.
        num_classes: K; 1 for numbers.
        weight_K: weight of each class, by how rare it is; None weighs all alike.
        mean, std: mean and standard deviation of numbers, by which they are standardised.
    """

    kind: LabelKind
    num_classes: int
    weight_K: Tensor | None = None
    mean: float = 0.0
    std: float = 1.0


def task_of(config: Finetune, catalog: Catalog) -> Task:
    """The task of a training set.

    Weights are inverse to the number of videos. With one class per video, their mean over the videos is 1. With
    several, a weight is that of a video with the class relative to one without, at most MOST_WEIGHT.

    Raises:
        UserError: class weights of numbers, or numbers that are all equal.
    """
    num_classes = len(catalog.classes)
    if catalog.kind == "regression":
        if config.class_weights:
            raise UserError("Numbers have no class weights. Leave class_weights out.")
        values = torch.tensor([item.target[0] for item in catalog.items], dtype=torch.float64)
        std = values.std(correction=0).item()
        if std == 0:
            raise UserError(f"All {len(values)} labels are {values[0].item():g}: there is nothing to learn.")
        return Task(kind="regression", num_classes=1, mean=values.mean().item(), std=std)
    weight_K = None
    num_videos = len(catalog.items)
    if config.class_weights and catalog.kind == "classes":
        counts_K = torch.bincount(torch.tensor([item.class_number for item in catalog.items]), minlength=num_classes)
        weight_K = num_videos / (counts_K.count_nonzero() * counts_K.clamp(min=1))
    elif config.class_weights:
        counts_K = torch.tensor([item.target for item in catalog.items]).sum(dim=0)
        weight_K = ((num_videos - counts_K) / counts_K.clamp(min=1)).clamp(1 / MOST_WEIGHT, MOST_WEIGHT)
    return Task(kind=catalog.kind, num_classes=num_classes, weight_K=weight_K)


@contextmanager
def in_units(classifier: Classifier, task: Task) -> Iterator[None]:
    """Rescales a regression head to label units while it is saved."""
    if task.kind != "regression":
        yield
        return
    head = classifier.head
    classifier.head = copy.deepcopy(head)
    with torch.no_grad():
        classifier.head.weight.mul_(task.std)
        classifier.head.bias.mul_(task.std).add_(task.mean)
    try:
        yield
    finally:
        classifier.head = head


def finetuning_loss(config: Finetune, task: Task) -> LossOf[Batch]:
    """The loss of a batch against the targets of mixup, cutmix and label smoothing: cross-entropy for one class per
    video, binary cross-entropy for several, squared error for standardised numbers."""

    def target_of(label: Tensor) -> Tensor:
        if task.kind == "multilabel":
            return label * (1 - config.label_smoothing) + config.label_smoothing / 2
        return (label - task.mean) / task.std if task.kind == "regression" else label

    def loss_of(model: nn.Module, batch: Batch, step: int) -> Losses:
        clip_BTCHW, target_BK = mix(
            batch.clip_BTCHW,
            target_of(batch.label_B),
            num_classes=task.num_classes,
            rng=random.Random(seed_of(config.loop.seed, _MIX, int(batch.sample_B[0]))),
            mixup=config.mixup,
            cutmix=config.cutmix,
            smoothing=config.label_smoothing,
        )
        logits_BK = model(clip_BTCHW).float()
        weight_K = None if task.weight_K is None else task.weight_K.to(logits_BK.device)
        if task.kind == "multilabel":
            loss = F.binary_cross_entropy_with_logits(logits_BK, target_BK, pos_weight=weight_K)
            return Losses(loss, {"binary_cross_entropy": loss.detach()}, features_BTD=None)
        if task.kind == "regression":
            loss = F.mse_loss(logits_BK, target_BK)
            return Losses(loss, {"squared_error": loss.detach()}, features_BTD=None)
        loss = F.cross_entropy(logits_BK, target_BK, weight=weight_K)
        accuracy = (logits_BK.argmax(dim=1) == batch.label_B).float().mean()
        return Losses(loss, {"cross_entropy": loss.detach(), "accuracy": accuracy}, features_BTD=None)

    return loss_of


def build_classifier(config: Finetune, *, num_classes: int, kind: LabelKind = "classes") -> Classifier:
    """The classifier with its initial weights: a new head on the encoder that `init` names, whose first `freeze` blocks
    are frozen.

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
    if config.freeze:
        for part in (encoder.patch_embed, encoder.positions, *encoder.blocks[: config.freeze]):
            part.requires_grad_(False)
    return Classifier(encoder, num_classes, kind, pooling=config.pooling)
