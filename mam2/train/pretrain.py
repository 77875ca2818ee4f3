"""Pre-training: a configuration becomes loader, targets and objective, and goes through the loop (Sec. 2, Table 7)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from mam2 import distributed
from mam2.config import UserError, from_json
from mam2.data.catalog import read_catalog
from mam2.data.loader import Batch, Data, TrainLoader, steps_per_epoch
from mam2.losses import Losses
from mam2.masks import TubeMask
from mam2.model.encoder import EncoderConfig
from mam2.objectives.mam2 import MAM2, MAM2Config
from mam2.targets import TargetMaker, TargetsConfig
from mam2.targets.vq import VQConfig
from mam2.train import checkpoint
from mam2.train.engine import Loop, autocast_dtype, fit
from mam2.train.optim import Optim, make_optimizer
from mam2.train.tokenizer import train_tokenizer

log = logging.getLogger("mam2")


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """A complete pre-training run; the defaults are the paper's ViT-B on Kinetics-400."""

    data: Data = field(default_factory=Data)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    objective: MAM2Config = field(default_factory=MAM2Config)
    mask: TubeMask = field(default_factory=TubeMask)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    optim: Optim = field(default_factory=Optim)
    loop: Loop = field(default_factory=Loop)

    def __post_init__(self) -> None:
        if self.encoder.frames < 2:
            raise UserError(f"encoder.frames is {self.encoder.frames}; motion needs clips of at least 2 frames.")


def pretrain(config: Pretrain, out: str | Path, *, resume: bool = True) -> bool:
    """Pre-trains, or continues where the run in `out` stopped.

    Writes run.json, log.jsonl, checkpoints/ and encoder.safetensors into `out`.

    Returns:
        True at the end of the run, False if SIGTERM ended it early (everything is saved).

    Raises:
        UserError: no videos, a missing tokenizer, another run in `out`, a loss that is not finite.
    """
    folder = Path(out)
    catalog = read_catalog(config.data.root, labelled=False)
    device = distributed.device()
    config.loop.micro_batch_size()
    epoch = steps_per_epoch(len(catalog.items), config.loop.batch_size)
    if distributed.rank() == 0:
        checkpoint.open_run(folder, "pretrain", config, resume=resume, num_videos=len(catalog.items))
        own = folder / "tokenizer.safetensors"
        if config.targets.appearance == "vq" and not config.targets.file and not own.exists():
            vq = VQConfig(patch_size=config.encoder.patch_size, num_codes=config.targets.num_codes)
            size, steps, seed = config.encoder.size, config.targets.vq_steps, config.loop.seed
            train_tokenizer(catalog, config.data, vq, own, size=size, num_steps=steps, seed=seed)
    distributed.barrier()

    targets = make_targets(config, folder, device)
    model = build(config, targets).to(device)
    optimizer = make_optimizer(model, config.optim)
    start = checkpoint.load(folder, model, optimizer).step
    loader = TrainLoader(
        catalog,
        config.data,
        num_frames=config.encoder.frames,
        size=config.encoder.size,
        batch_size=config.loop.batch_size,
        num_steps=config.loop.duration.steps(epoch),
        seed=config.loop.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_step=start,
    )
    if distributed.rank() == 0:
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        log.info(
            f"Pre-training, steps {start} to {loader.num_steps}: {len(catalog.items)} videos, "
            f"{millions:.1f} M parameters, {targets.num_codes} codes, on {device}."
        )
    num_patches = config.encoder.grid[0] * config.encoder.grid[1]

    def loss_of(wrapped: nn.Module, batch: Batch, step: int) -> Losses:
        mask = config.mask(num_patches, sample_B=batch.sample_B, seed=config.loop.seed).to(device)
        with torch.autocast(device.type, enabled=False):  # argmin over codes is not stable in bf16
            target = targets(batch.clip_BTCHW)
        return wrapped(batch.clip_BTCHW, mask, target, config.objective.alpha(step, loader.steps_per_epoch))

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
        on_save=lambda: checkpoint.save_encoder(folder / "encoder.safetensors", model.encoder),
    )


def make_targets(config: Pretrain, folder: Path, device: torch.device) -> TargetMaker:
    """The run's target maker; a "vq" tokenizer without a file of its own lies in the run's folder."""
    targets = config.targets
    if targets.appearance == "vq" and not targets.file:
        targets = replace(targets, file=str(folder / "tokenizer.safetensors"))
    return TargetMaker(targets, patch_size=config.encoder.patch_size, device=device)


def build(config: Pretrain, targets: TargetMaker) -> MAM2:
    """The objective with the run's initial weights, which depend on its seed only."""
    torch.manual_seed(config.loop.seed)
    return MAM2(config.objective, config.encoder, num_codes=targets.num_codes)


def load_run(folder: str | Path) -> tuple[MAM2, TargetMaker, Pretrain]:
    """The whole pre-trained model of a run, in eval mode, with its targets: for pictures of what it predicts.

    Raises:
        UserError: the folder is no pre-training run, or has no checkpoint yet.
    """
    folder = Path(folder)
    record = checkpoint.read_run(folder)
    if record["kind"] != "pretrain" or not checkpoint.checkpoints(folder):
        raise UserError(
            f"{folder} holds no pre-trained model (kind {record['kind']}, {len(checkpoint.checkpoints(folder))} "
            "checkpoints). Give the --out of a `mam2 pretrain` that has saved at least once."
        )
    config = from_json(Pretrain, record["config"])
    device = distributed.device()
    targets = make_targets(config, folder, device)
    model = build(config, targets).to(device)
    checkpoint.load_model(checkpoint.checkpoints(folder)[-1] / "model.safetensors", model)
    return model.eval(), targets, config
