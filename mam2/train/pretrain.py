"""Pre-training: a configuration becomes loader, targets and objective, and goes through the loop (Sec. 2, Table 7)."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mam2 import distributed
from mam2.config import UserError, from_json, to_json
from mam2.data.catalog import Catalog, read_catalog
from mam2.data.clips import Data
from mam2.data.loader import Batch, steps_per_epoch
from mam2.device import autocast_dtype, local_device
from mam2.files import digest
from mam2.losses import Losses
from mam2.masks import MaskConfig
from mam2.model.encoder import EncoderConfig
from mam2.model.weights import save_encoder
from mam2.objectives import OBJECTIVES, ObjectiveConfig
from mam2.objectives.mam2 import MAM2Config
from mam2.targets.cache import MOST_CODES, TokenCache
from mam2.targets.maker import TargetMaker
from mam2.targets.table import APPEARANCES, TargetsConfig, TargetSizes, Tokenizer, target_sizes
from mam2.targets.tokenizers.vq import VQConfig
from mam2.train import checkpoint
from mam2.train.engine import Loop, fit, train_loader
from mam2.train.optim import Optim, make_optimizer
from mam2.train.run import open_run, read_run
from mam2.train.tokenizer import train_tokenizer

log = logging.getLogger("mam2")


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """A complete pre-training run; the defaults are the paper's ViT-B on Kinetics-400."""

    data: Data = field(default_factory=Data)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    objective: ObjectiveConfig = field(default_factory=MAM2Config)
    mask: MaskConfig = field(default_factory=MaskConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    optim: Optim = field(default_factory=Optim)
    loop: Loop = field(default_factory=Loop)

    def __post_init__(self) -> None:
        encoder = self.encoder
        if encoder.tubelets < 2:
            raise UserError(
                f"encoder.frames is {encoder.frames} and encoder.tubelet {encoder.tubelet}; motion needs clips of at "
                "least 2 tubelets."
            )
        if self.data.short == "repeat" and self.objective.needs_motion:
            raise UserError(
                "data.short is 'repeat', but between a frame and its copy there is no motion to predict. Use "
                "--data.short shrink or skip in pre-training."
            )
        if self.targets.cache and not self.data.fixed_clips:
            raise UserError("targets.cache keeps the codes of fixed clips; say how many a video: --data.fixed-clips 4.")
        mask = self.mask(encoder.tubelets, encoder.grid, sample_B=torch.tensor([0]), seed=0)
        sizes = target_sizes(self.targets, patch_size=encoder.patch_size)
        if isinstance(self.objective, MAM2Config):
            self.objective.check_sizes(sizes)
        needs_tubes = encoder.attention == "factorised" or (sizes.clip_order and self.objective.needs_motion)
        if needs_tubes and not mask.same_in_all_frames():
            raise UserError(
                f"The mask {self.mask.kind!r} differs from frame to frame, but factorised attention follows a patch "
                "through time, and clip order a tube. Use --encoder.attention joint and another --targets.motion, or "
                "--mask.kind tube."
            )

    def idle_options(self) -> list[str]:
        """Options that are set and do nothing, because of others."""
        targets, needs = self.targets, self.objective.needs_appearance
        unaligned = isinstance(self.objective, MAM2Config) and not self.objective.aligns
        idle = {
            "mask.aligned": unaligned and self.mask.aligned < 1,
            "objective.teacher_momentum": unaligned and self.objective.teacher_momentum > 0,
            "targets.cache": targets.cache and not needs,
            "targets.file": targets.file and not (needs and APPEARANCES[targets.appearance].weights != "none"),
            "targets.flow_file": targets.flow_file
            and not (self.objective.needs_motion and targets.motion == "optical_flow"),
        }
        return [name for name, does_nothing in idle.items() if does_nothing]


def pretrain(config: Pretrain, out: str | Path, *, resume: bool = True) -> bool:
    """Pre-trains, or continues where the run in `out` stopped.

    Writes run.json, log.jsonl, checkpoints/ and encoder.safetensors into `out`.

    Returns:
        True at the end of the run, False if SIGTERM ended it early (everything is saved).

    Raises:
        UserError: no videos, a missing tokenizer, another run in `out`, a loss that is not finite.
    """
    folder = Path(out)
    catalog = read_catalog(config.data.root, labelled=False, split=config.data.split)
    device = local_device()
    config.loop.check_batch()
    if distributed.rank() == 0:
        open_run(folder, "pretrain", config, resume=resume, videos=[i.path for i in catalog.items])
        own = folder / "tokenizer.safetensors"
        trains_vq = config.objective.needs_appearance and config.targets.appearance == "vq" and not config.targets.file
        if trains_vq and not own.exists():
            vq = VQConfig(patch_size=config.encoder.patch_size, num_codes=config.targets.num_codes)
            size, steps = config.encoder.size, config.targets.vq_steps
            train_tokenizer(catalog, config.data, vq, own, size=size, num_steps=steps, seed=config.loop.seed)
    distributed.barrier()

    targets = make_targets(config, folder, device)
    if config.targets.cache and targets.tokenizer:
        targets.cache = token_cache(config, catalog, targets.tokenizer)
    model = build(
        config, targets.sizes, steps_per_epoch=steps_per_epoch(len(catalog.items), config.loop.batch_size)
    ).to(device)
    optimizer = make_optimizer(model, config.optim)
    start = checkpoint.load(folder, model, optimizer).step
    loader = train_loader(catalog, config.data, config.encoder, config.loop, start_step=start)
    if distributed.rank() == 0:
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        log.info(
            f"Pre-training, steps {start} to {loader.num_steps}: {len(catalog.items)} videos, "
            f"{millions:.1f} M parameters, on {device}."
        )
        if idle := config.idle_options():
            log.warning(f"Set, and without effect beside the other settings: {', '.join(idle)}.")
    encoder, seed = config.encoder, config.loop.seed

    def loss_of(wrapped: nn.Module, batch: Batch, step: int) -> Losses:
        mask = config.mask(encoder.tubelets, encoder.grid, sample_B=batch.sample_B, seed=seed).to(device)
        first_BTCHW = batch.clip_BTCHW[:, :: encoder.tubelet]
        target = targets(first_BTCHW, sample_B=batch.sample_B, seed=seed, fixed_B=batch.fixed_B)
        return wrapped(batch.clip_BTCHW, mask, target, step)

    return fit(
        model,
        loss_of,
        loader,
        optimizer,
        loop=config.loop,
        optim=config.optim,
        start_step=start,
        folder=folder,
        title="pre-training",
        dtype=autocast_dtype(config.loop.precision, device, width=config.encoder.width),
        on_step=model.after_step,
        on_save=lambda: save_encoder(folder / "encoder.safetensors", model.encoder),
    )


def make_targets(config: Pretrain, folder: Path, device: torch.device) -> TargetMaker:
    """The run's target maker; a "vq" tokenizer without a file of its own lies in the run's folder."""
    targets = config.targets
    if targets.appearance == "vq" and not targets.file:
        targets = replace(targets, file=str(folder / "tokenizer.safetensors"))
    return TargetMaker(
        targets,
        patch_size=config.encoder.patch_size,
        device=device,
        dtype=autocast_dtype(config.loop.precision, device, width=config.encoder.width),
        appearance=config.objective.needs_appearance,
        motion=config.objective.needs_motion,
    )


def token_cache(config: Pretrain, catalog: Catalog, tokenizer: Tokenizer) -> TokenCache:
    """The codes of the run's fixed clips on disk: those of this tokenizer, these videos, this way to make clips.

    Raises:
        UserError: more codes than two bytes hold, or no room on the disk.
    """
    if tokenizer.num_codes > MOST_CODES:
        raise UserError(
            f"targets.cache keeps codes of up to {MOST_CODES}; this tokenizer has {tokenizer.num_codes}. Leave "
            "--targets.cache out, or use fewer --targets.num-codes."
        )
    data, encoder = to_json(config.data), config.encoder
    for name in ("root", "split", "num_workers", "timeout_seconds", "max_bad_share"):  # nothing in a clip
        del data[name]
    files = [(item.path, (s := Path(item.path).stat()).st_size, s.st_mtime_ns) for item in catalog.items]
    identity = {
        "tokenizer": [config.targets.appearance, tokenizer.num_codes, digest(tokenizer.state_dict())],
        "precision": config.targets.precision,
        "videos": hashlib.sha256(repr(files).encode()).hexdigest(),
        "data": data,
        "clip": [encoder.frames, encoder.size, encoder.patch_size, encoder.tubelet],
        "seed": config.loop.seed,
    }
    num_clips = len(files) * config.data.fixed_clips * config.data.repeats
    shape = (encoder.tubelets, encoder.grid[0] * encoder.grid[1])
    cache = TokenCache(Path(config.targets.cache), identity=identity, num_clips=num_clips, shape=shape)
    if distributed.rank() == 0:
        log.info(f"Token cache: {cache.file}, up to {cache.num_bytes / 2**30:.2f} GiB for {num_clips:,} clips.")
    return cache


def build(config: Pretrain, sizes: TargetSizes, *, steps_per_epoch: int = 1) -> Any:
    """The objective with the run's initial weights, which depend on its seed only.

    It has an `encoder`, `forward(clip, mask, targets, step) -> Losses` and `after_step()`.
    """
    torch.manual_seed(config.loop.seed)
    make = OBJECTIVES[type(config.objective)]
    return make(config.objective, config.encoder, sizes, steps_per_epoch=steps_per_epoch)


def load_run(folder: str | Path) -> tuple[Any, TargetMaker, Pretrain]:
    """The whole pre-trained model of a run, in eval mode, with its targets: for pictures of what it predicts.

    Raises:
        UserError: the folder is no pre-training run, or has no checkpoint yet.
    """
    folder = Path(folder)
    record = read_run(folder)
    if record["kind"] != "pretrain" or not checkpoint.checkpoints(folder):
        raise UserError(
            f"{folder} holds no pre-trained model (kind {record['kind']}, {len(checkpoint.checkpoints(folder))} "
            "checkpoints). Give the --out of a `mam2 pretrain` that has saved at least once."
        )
    config = from_json(Pretrain, record["config"])
    device = local_device()
    targets = make_targets(config, folder, device)
    model = build(config, targets.sizes).to(device)
    checkpoint.load_model(checkpoint.checkpoints(folder)[-1] / "model.safetensors", model)
    return model.eval(), targets, config
