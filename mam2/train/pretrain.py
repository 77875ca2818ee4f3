"""Pre-training in three acts: open the data and the run, build targets and model, fit (Sec. 2, Table 7)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from mam2 import distributed
from mam2.config import UserError, from_json, to_json
from mam2.data.catalog import Catalog, read_catalog
from mam2.data.clips import Data
from mam2.data.loader import Batch, steps_per_epoch
from mam2.data.video.segment_path import fingerprint
from mam2.device import local_device
from mam2.files import digest
from mam2.losses import Losses
from mam2.masks import MaskConfig
from mam2.model.encoder import EncoderConfig
from mam2.model.load import load_encoder, read_encoder_config
from mam2.model.weights import read_origin, save_encoder
from mam2.objectives import ObjectiveChoice
from mam2.objectives.contract import Objective, ObjectiveConfig
from mam2.objectives.mam2 import MAM2Config
from mam2.targets.cache import MOST_CODES, TokenCache
from mam2.targets.maker import TargetMaker
from mam2.targets.table import TargetsConfig, TargetSizes, Tokenizer, appearance_row, target_sizes
from mam2.targets.teacher import Teacher, check_tubelets
from mam2.targets.tokenizers.vq import VQConfig
from mam2.train import checkpoint
from mam2.train.begin import begin
from mam2.train.engine import Events, Loop, LossOf, Training, fit
from mam2.train.online_probe import Watch, Watcher
from mam2.train.optim import Optim, make_optimizer
from mam2.train.run import only_writer, open_run, read_run
from mam2.train.tokenizer import train_tokenizer

log = logging.getLogger("mam2")
CHANGE_NO_CLIP = ("root", "split", "path_column", "label_column", "num_workers", "timeout_seconds", "max_bad_share")
"""Fields of `Data` that a token cache does not depend on."""


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """A complete pre-training run; the defaults are the paper's ViT-B on Kinetics-400.

    Attributes:
        init: initial weights of the encoder: a run, a file, or a published encoder (`mam2 import --help`); by default
            random. Regressor and decoders start from random weights.
    """

    init: str = ""
    data: Data = field(default_factory=Data)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    objective: ObjectiveChoice = field(default_factory=MAM2Config)
    mask: MaskConfig = field(default_factory=MaskConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    optim: Optim = field(default_factory=Optim)
    loop: Loop = field(default_factory=Loop)
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        encoder = self.encoder
        if encoder.tubelets < 2 and self.objective.needs_motion:
            raise UserError(
                f"encoder.frames is {encoder.frames} and encoder.tubelet {encoder.tubelet}; motion needs clips of at "
                "least 2 tubelets."
            )
        if self.data.short == "repeat" and self.objective.needs_motion:
            raise UserError(
                "data.short is 'repeat', but between a frame and its copy there is no motion to predict. Use "
                "--data.short shrink or skip in pre-training."
            )
        if self.data.images and self.objective.needs_motion:
            raise UserError(
                "data.images are still, and this objective predicts motion. Use one that does not, such as a recipe "
                "videomae_..., or --objective.decoders appearance."
            )
        if self.targets.cache and not self.data.fixed_clips:
            raise UserError(
                "targets.cache keeps the codes of fixed clips; say how many per video: --data.fixed-clips 4."
            )
        mask = self.mask(encoder.tubelets, encoder.grid, sample_B=torch.tensor([0]), seed=0)
        same = all(each.same_in_all_frames() for each in mask.all())
        if encoder.attention == "factorised" and not same:
            raise UserError(
                f"The mask {self.mask.kind!r} differs from frame to frame, but factorised attention follows a patch "
                "through time. Use --encoder.attention joint, or --mask.kind tube."
            )
        if encoder.differences and not same:
            raise UserError(
                f"The mask {self.mask.kind!r} differs from frame to frame, and encoder.differences would show what it "
                "hides in the next frame. Use --mask.kind tube, or --encoder.no-differences."
            )
        sizes = target_sizes(self.targets, patch_size=encoder.patch_size, tubelet=encoder.tubelet)
        self.objective.check_fits(encoder, sizes, same_mask_in_all_frames=same)

    @property
    def has_teacher(self) -> bool:
        """True if it learns the features of a frozen encoder."""
        return self.objective.needs_appearance and self.targets.by_teacher

    def idle_options(self) -> list[str]:
        """Options that are set but without effect, because of others."""
        targets = self.targets
        appearance = self.objective.needs_appearance
        flow = (self.objective.needs_motion or self.mask.is_guided) and targets.motion == "optical_flow"
        idle = {
            "targets.cache": targets.cache and not appearance,
            "targets.file": targets.file and not (appearance and appearance_row(targets.appearance).weights != "none"),
            "targets.flow_file": targets.flow_file and not flow,
        }
        return [*self.objective.idle_options(self.mask), *(name for name, is_idle in idle.items() if is_idle)]


def pretrain(config: Pretrain, out: str | Path, *, resume: bool = True) -> bool:
    """Pre-trains, or resumes the run in `out`.

    Writes run.json, log.jsonl, checkpoints/ and encoder.safetensors into `out`; with an online probe, the best encoder
    too.

    Returns:
        True at the end of the run, False if SIGTERM or SIGHUP ended it early (everything is saved).

    Raises:
        UserError: no videos, a missing tokenizer, another run in `out`, a loss that is not finite.
    """
    with open_pretraining(config, Path(out), resume=resume) as (training, loss_of, events):
        return fit(training, loss_of, events)


@contextmanager
def open_pretraining(
    config: Pretrain, folder: Path, *, resume: bool = True
) -> Iterator[tuple[Training[Batch], LossOf[Batch], Events]]:
    """The arguments of `fit` for a pre-training. Its folder is locked while it is open."""
    # Open: the videos, the run's folder, and the tokenizer, if it is trained on those videos.
    catalog = read_catalog(config.data.listing, labelled=False)
    config.loop.check_batch()
    with only_writer(folder):
        if distributed.rank() == 0:
            open_run(folder, "pretrain", config, resume=resume, videos=[item.path for item in catalog.items])
            if trains_tokenizer(config):
                make_tokenizer(config, catalog, folder / "tokenizer.safetensors")
        distributed.barrier()
        # Build: targets, model, optimiser.
        device = local_device()
        targets = make_targets(config, folder, device)
        if config.targets.cache and targets.tokenizer:
            targets.cache = token_cache(config, catalog, targets.tokenizer)
        per_epoch = steps_per_epoch(len(catalog.items), config.loop.batch_size)
        model = build(config, targets.sizes, steps_per_epoch=per_epoch).to(device)
        module = cast(nn.Module, model)
        by_layer = config.optim.layer_decay < 1 or config.optim.freeze_encoder_for.value > 0
        optimizer = make_optimizer(module, config.optim, depth=config.encoder.depth, by_layer=by_layer)
        # Begin: at the newest checkpoint, or with the weights of init.
        training = begin(config, catalog, module, optimizer, folder=folder, title="pre-training")
        start = training.start_step
        if config.init and start == 0:
            model.start_from(load_encoder(config.init), config.init)
        elif (folder / "encoder.safetensors").exists():
            model.encoder.origin = read_origin(folder / "encoder.safetensors")
        watcher = None
        if distributed.rank() == 0:
            if config.watch.labelled:
                seed = config.loop.seed
                watcher = Watcher(config.watch, config.data, model.encoder, folder=folder, seed=seed, start_step=start)
            millions = sum(parameter.numel() for parameter in module.parameters()) / 1e6
            log.info(
                f"Pre-training, steps {start} to {training.loader.num_steps}: {len(catalog.items)} videos, "
                f"{millions:.1f} M parameters, on {device}."
            )
            if idle := config.idle_options():
                log.warning(f"Without effect beside the other settings: {', '.join(idle)}.")
        events = Events(
            on_save=lambda: save_encoder(folder / "encoder.safetensors", model.encoder),
            on_step=model.after_step,
            on_eval=watcher,
            eval_every=config.watch.every,
        )
        yield training, pretraining_loss(config.encoder, config.mask, targets, seed=config.loop.seed), events


def pretraining_loss(encoder: EncoderConfig, mask: MaskConfig, targets: TargetMaker, *, seed: int) -> LossOf[Batch]:
    """The loss of a batch at a step: draws masks, makes targets, and calls the model."""

    def loss_of(model: nn.Module, batch: Batch, step: int) -> Losses:
        motion_BN = targets.motion_of(batch.clip_BTCHW) if mask.is_guided else None
        drawn = mask(encoder.tubelets, encoder.grid, sample_B=batch.sample_B, seed=seed, motion_BN=motion_BN)
        target = targets(batch.clip_BTCHW, sample_B=batch.sample_B, seed=seed, fixed_B=batch.fixed_B)
        losses: Losses = model(batch.clip_BTCHW, drawn.to(batch.clip_BTCHW.device), target, step)
        return losses

    return loss_of


def trains_tokenizer(config: Pretrain) -> bool:
    """True if the run trains a small VQ tokenizer on its own videos."""
    return config.objective.needs_appearance and config.targets.appearance == "vq" and not config.targets.file


def make_tokenizer(config: Pretrain, catalog: Catalog, file: Path) -> None:
    """Trains the run's own tokenizer, unless its file is there already."""
    if not file.exists():
        vq = VQConfig(patch_size=config.encoder.patch_size, num_codes=config.targets.num_codes)
        num_steps = config.targets.vq_steps
        size = config.encoder.size
        train_tokenizer(catalog, config.data, vq, file, size=size, num_steps=num_steps, seed=config.loop.seed)


def make_targets(config: Pretrain, folder: Path, device: torch.device) -> TargetMaker:
    """The target maker of the run; a tokenizer that the run trains lies in its folder."""
    targets = config.targets
    if trains_tokenizer(config):
        targets = replace(targets, file=str(folder / "tokenizer.safetensors"))
    return TargetMaker(
        targets,
        patch_size=config.encoder.patch_size,
        tubelet=config.encoder.tubelet,
        device=device,
        appearance=config.objective.needs_appearance,
        motion=config.objective.needs_motion,
        guide=config.mask.is_guided,
        teacher=load_teacher(config, device) if config.has_teacher else None,
    )


def load_teacher(config: Pretrain, device: torch.device) -> Teacher:
    """The frozen encoder that `targets.file` names; UserError for a missing one, or one that does not fit."""
    if not config.targets.file:
        raise UserError(
            "targets.appearance 'teacher' needs an encoder: --targets.file RUN, FILE, or a published one such as "
            "timm:vit_base_patch16_siglip_224.webli."
        )
    encoder = load_encoder(config.targets.file).to(device).requires_grad_(False)
    sizes = encoder.config
    check_tubelets(sizes.tubelet, config.encoder.tubelet)
    return Teacher(encoder, width=sizes.width, patch_size=sizes.patch_size, tubelet=sizes.tubelet)


def sizes_of(config: Pretrain) -> TargetSizes:
    """Sizes of the targets before they are loaded; a teacher that is not named yet counts as ViT-B."""
    encoder = config.encoder
    sizes = target_sizes(config.targets, patch_size=encoder.patch_size, tubelet=encoder.tubelet)
    if config.has_teacher and config.targets.file:
        return replace(sizes, appearance=read_encoder_config(config.targets.file).width)
    return sizes


def token_cache(config: Pretrain, catalog: Catalog, tokenizer: Tokenizer) -> TokenCache:
    """The codes of the run's fixed clips on disk, for this tokenizer, these videos and these data settings.

    Raises:
        UserError: more codes than two bytes hold, or no room on the disk.
    """
    if tokenizer.num_codes > MOST_CODES:
        raise UserError(
            f"targets.cache keeps codes of up to {MOST_CODES}; this tokenizer has {tokenizer.num_codes}. Leave "
            "--targets.cache out, or use fewer --targets.num-codes."
        )
    encoder = config.encoder
    identity = {
        "tokenizer": [config.targets.appearance, tokenizer.num_codes, digest(tokenizer.state_dict())],
        "precision": config.targets.precision,
        "videos": fingerprint(item.path for item in catalog.items),
        "data": {name: value for name, value in to_json(config.data).items() if name not in CHANGE_NO_CLIP},
        "clip": [encoder.frames, encoder.size, encoder.patch_size, encoder.tubelet],
        "seed": config.loop.seed,
    }
    num_clips = len(catalog.items) * config.data.fixed_clips * config.data.repeats
    shape = (encoder.tubelets, encoder.grid[0] * encoder.grid[1])
    cache = TokenCache(Path(config.targets.cache), identity=identity, num_clips=num_clips, shape=shape)
    if distributed.rank() == 0:
        log.info(f"Token cache: {cache.file}, up to {cache.num_bytes / 2**30:.2f} GiB for {num_clips:,} clips.")
    return cache


def build(config: Pretrain, sizes: TargetSizes | None = None, *, steps_per_epoch: int = 1) -> Objective:
    """The model of a pre-training with its initial weights, which depend on the run's seed only.

    Args:
        config: configuration of a run, such as `get_recipe("mam2_b_k400")`.
        sizes: sizes of the targets; by default those of the configuration.
        steps_per_epoch: number of steps in an epoch, for settings that change over epochs.

    Returns:
        An `nn.Module`: `model(clip_BTCHW, mask, targets, step) -> Losses`; `model.encoder` is kept after training.
    """
    torch.manual_seed(config.loop.seed)
    objective: ObjectiveConfig = config.objective
    return objective.build(config.encoder, sizes or sizes_of(config), steps_per_epoch=steps_per_epoch)


def load_run(folder: str | Path, *, device: torch.device | None = None) -> tuple[Objective, TargetMaker, Pretrain]:
    """The pre-trained model of a run in eval mode, with its targets, for pictures of its predictions.

    Raises:
        UserError: not the folder of a pre-training, or one without a checkpoint yet.
    """
    folder = Path(folder)
    record = read_run(folder)
    if record["kind"] != "pretrain" or not checkpoint.checkpoints(folder):
        raise UserError(
            f"{folder} holds no pre-trained model (kind {record['kind']}, {len(checkpoint.checkpoints(folder))} "
            "checkpoints). Give the --out of a `mam2 pretrain` that has saved at least once."
        )
    config = from_json(Pretrain, record["config"])
    device = device or local_device()
    targets = make_targets(config, folder, device)
    model = build(config, targets.sizes).to(device)
    checkpoint.load_model(checkpoint.checkpoints(folder)[-1] / checkpoint.MODEL, cast(nn.Module, model))
    return model.eval(), targets, config
