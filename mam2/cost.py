"""Cost of pre-training: operations and memory of a step, counted on empty tensors before a run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from mam2.config import UserError, from_json, to_json
from mam2.data.loader import steps_per_epoch
from mam2.device import autocast_dtype
from mam2.files import parse_json, write_text
from mam2.model.blocks import recompute_blocks
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.load import read_encoder_config
from mam2.targets.cache import row_bytes
from mam2.targets.maker import Targets
from mam2.targets.table import appearance_row, motion_row
from mam2.train.pretrain import Pretrain, build, sizes_of
from mam2.version import __version__

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

COUNTING_DTYPE = torch.float16
"""Autocast dtype while counting: as wide as bfloat16, with which the CPU's attention has other FLOPs than a GPU's."""
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A GPU or a processor to plan for.

    Attributes:
        title: its name.
        peak_tflops: TFLOP/s of dense matrix products in bf16, by the data sheet.
        memory_gib: its own memory.
    """

    title: str
    peak_tflops: float
    memory_gib: float


MACHINES = {
    "h100": Machine(title="H100 SXM", peak_tflops=989, memory_gib=80),
    "a100": Machine(title="A100", peak_tflops=312, memory_gib=80),
}


def this_cpu(*, width: int) -> Machine:
    """This computer's processor. Its peak is measured: the best of 5 products of 2048² matrices, in the dtype that an
    encoder of this width is trained in."""
    dtype = autocast_dtype("auto", torch.device("cpu"), width=width) or torch.float32
    a = torch.randn(2048, 2048).to(dtype)
    b = torch.randn(2048, 2048).to(dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return Machine(
        title=f"CPU such as this, {torch.get_num_threads()} threads",
        peak_tflops=2 * 2048**3 / min(seconds) / 1e12,
        memory_gib=psutil.virtual_memory().total / 2**30,
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a step. Operations and bytes are counted exactly; hardware adds its own.

    Attributes:
        train_tflop: forward, backward and alignment target, per clip; 2 for a multiplication and addition.
        targets_tflop: tokenizer and RAFT, per clip.
        clip_gib: activations kept for the backward pass in bf16 autocast, per clip.
        state_gib: weights, gradients and AdamW's two moments in fp32, whatever the batch.
    """

    train_tflop: float
    targets_tflop: float
    clip_gib: float
    state_gib: float

    @property
    def tflop(self) -> float:
        """The whole step, per clip."""
        return self.train_tflop + self.targets_tflop


def estimate(config: Pretrain) -> Cost:
    """Cost of a step, counted in a few seconds on fake tensors, without weights or data."""
    encoder = config.encoder
    sizes = sizes_of(config)
    real = config.mask(encoder.tubelets, encoder.grid, sample_B=torch.tensor([0]), seed=0)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with counting(lambda: cast(nn.Module, build(config, sizes)), recompute=config.loop.recompute) as (model, counter):
        mask = real.map(lambda x: torch.zeros(x.shape, dtype=torch.int64))
        clip_BTCHW = torch.empty(1, encoder.frames, 3, encoder.size, encoder.size, dtype=torch.uint8)
        targets = _empty_targets(config)
        with torch.autocast("cpu", COUNTING_DTYPE), saved_tensors_hooks(keep, lambda tensor: tensor):
            total = model(clip_BTCHW, mask, targets, 0).total
        total.backward()
        learned = [p for p in model.parameters() if p.requires_grad]
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        clip_bytes = sum(storage.nbytes() for key, storage in kept.items() if key not in weights)
        state_bytes = 4 * sum(p.numel() for p in model.parameters()) + 12 * sum(p.numel() for p in learned)
    return Cost(
        train_tflop=counter.get_total_flops() / 1e12,
        targets_tflop=sum(_targets_gflop(config)) / 1e3,
        clip_gib=clip_bytes / 2**30,
        state_gib=state_bytes / 2**30,
    )


@contextlib.contextmanager
def counting(make: Callable[[], ModuleT], *, recompute: bool = False) -> Iterator[tuple[ModuleT, FlopCounterMode]]:
    """A module of fake tensors on the CPU, and a counter of its operations."""
    from torch.utils.flop_counter import FlopCounterMode  # it takes a tenth of a second

    with torch.device("meta"):
        module = make()
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        module = module.to_empty(device=torch.device("cpu"))
        if recompute:
            recompute_blocks(module)
        yield module, counter


def remembered(config: Pretrain) -> Cost:
    """`estimate`, counted once per version of this package and of torch and kept in `$XDG_CACHE_HOME/mam2`
    (`~/.cache/mam2`). Empty that folder after changes to a model's code."""
    fields = to_json(config)
    counted = [fields[name] for name in ("encoder", "objective", "mask", "targets")]
    key = hashlib.sha256(json.dumps([__version__, torch.__version__, config.loop.recompute, *counted]).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mam2"
    file = folder / f"cost_{key.hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError):  # not there yet, or damaged
        return from_json(Cost, parse_json(file.read_text()))
    cost = estimate(config)
    with contextlib.suppress(OSError, UserError):  # a home that can't be written to
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(cost)))
    return cost


def tflop_by_part(config: Pretrain) -> dict[str, float]:
    """TFLOP per clip of a step, by part; their sum is `estimate(config).tflop`.

    A part's cost is the difference that leaving it out makes; the encoder is counted by itself.
    """
    whole = estimate(config)
    parts = {"encoder, visible patches": _encoder_tflop(config)}
    for name, objective in config.objective.without_parts().items():
        parts[name] = whole.train_tflop - estimate(replace(config, objective=objective)).train_tflop
    parts["rest"] = whole.train_tflop - sum(parts.values())
    appearance, motion = _targets_gflop(config)
    parts |= {
        f"{config.targets.appearance}, target": appearance / 1e3,
        f"{config.targets.motion}, target": motion / 1e3,
    }
    return {name: tflop for name, tflop in parts.items() if tflop > 1e-9}


def run_folder_gib(config: Pretrain, cost: Cost) -> float:
    """Largest size of a run's folder, in GiB: checkpoints of weights and both moments, with one being written, and the
    encoder."""
    return cost.state_gib * 12 / 16 * (config.loop.keep + 1) + cost.state_gib * 4 / 16


def _encoder_tflop(config: Pretrain) -> float:
    """TFLOP per clip of the encoder on visible patches, forward and backward."""
    sizes = config.encoder
    mask = config.mask(sizes.tubelets, sizes.grid, sample_B=torch.tensor([0]), seed=0)
    with counting(lambda: VideoEncoder(sizes), recompute=config.loop.recompute) as (encoder, counter):
        clip_BTCHW = torch.empty(1, sizes.frames, 3, sizes.size, sizes.size, dtype=torch.uint8)
        for each in mask.all():
            visible_BTV = torch.zeros(each.visible_BTV.shape, dtype=torch.int64)
            with torch.autocast("cpu", COUNTING_DTYPE):
                features_BTVD = encoder.features_of(clip_BTCHW, visible_BTV)
            features_BTVD.sum().backward()
    return counter.get_total_flops() / 1e12


def gpu_hours(config: Pretrain, cost: Cost, *, num_videos: int, tflops: float) -> float:
    """Hours of one GPU for the whole run, at `tflops` achieved; an upper bound if a token cache saves work.

    Args:
        config: the run.
        cost: cost of a step.
        num_videos: number of training videos; 0, unknown, will do for a run whose length is in steps.
        tflops: TFLOP/s that the GPU achieves.

    Raises:
        UserError: `tflops` is not above 0.
    """
    if tflops <= 0:
        raise UserError(f"tflops is {tflops}; a GPU achieves more than 0, such as 125.")
    per_epoch = steps_per_epoch(num_videos, config.loop.batch_size)
    num_clips = config.loop.duration.steps(per_epoch) * config.loop.batch_size * config.data.repeats
    caches = config.targets.cache and num_videos
    num_tokenised = min(num_clips, num_cached(config, num_videos)) if caches else num_clips
    tokenizer_tflop = _targets_gflop(config)[0] / 1e3
    return (num_clips * (cost.tflop - tokenizer_tflop) + num_tokenised * tokenizer_tflop) / tflops / 3600


def num_cached(config: Pretrain, num_videos: int) -> int:
    """Number of fixed clips of all videos, whose codes a token cache keeps."""
    return num_videos * config.data.fixed_clips * config.data.repeats


def cache_gib(config: Pretrain, num_videos: int) -> float:
    """Size of a full token cache, in GiB."""
    encoder = config.encoder
    shape = (encoder.tubelets, encoder.grid[0] * encoder.grid[1])
    return num_cached(config, num_videos) * row_bytes(shape) / 2**30


def _empty_targets(config: Pretrain) -> Targets:
    """Targets of the right shapes and types for one clip."""
    encoder = config.encoder
    objective = config.objective
    frames = encoder.tubelets
    num_patches = encoder.grid[0] * encoder.grid[1]
    sizes = sizes_of(config)
    appearance = motion = None
    if objective.needs_appearance and appearance_row(config.targets.appearance).load:
        appearance = torch.zeros(1, frames, num_patches, dtype=torch.int64)
    elif objective.needs_appearance:
        appearance = torch.zeros(1, frames, num_patches, sizes.appearance)
    if objective.needs_motion and sizes.clip_order:
        motion = torch.zeros(1, num_patches, dtype=torch.int64)
    elif objective.needs_motion:
        motion = torch.zeros(1, frames - 1, num_patches, sizes.motion)
    return Targets(appearance, motion)


def _targets_gflop(config: Pretrain) -> tuple[float, float]:
    """GFLOP of a clip's appearance and motion targets: the figures for 16 × 224², in proportion to the patches
    (tokenizers) or pixels (flow)."""
    encoder = config.encoder
    targets = config.targets
    objective = config.objective
    patches = encoder.tubelets * encoder.grid[0] * encoder.grid[1] / (16 * 196)
    pixels = encoder.tubelets * encoder.size**2 / (16 * 224**2)
    motion_gflop = motion_row(targets.motion).gflop
    if targets.motion == "optical_flow" and targets.flow_model == "raft_small":
        motion_gflop = 264
    appearance = patches * appearance_row(targets.appearance).gflop if objective.needs_appearance else 0.0
    if config.has_teacher:
        appearance = _teacher_gflop(config)
    return appearance, pixels * motion_gflop if objective.needs_motion else 0.0


def _teacher_gflop(config: Pretrain) -> float:
    """GFLOP of a teacher's features per clip; one that is not named yet counts as the paper's ViT-B."""
    learner = config.encoder
    teacher = read_encoder_config(config.targets.file) if config.targets.file else EncoderConfig()
    num_frames = learner.tubelets * min(teacher.tubelet, learner.tubelet)
    side = learner.grid[0] * teacher.patch_size
    sizes = replace(teacher, frames=num_frames, size=side)
    with (
        counting(lambda: VideoEncoder(sizes)) as (encoder, counter),
        torch.no_grad(),
        torch.autocast("cpu", COUNTING_DTYPE),
    ):
        encoder(torch.empty(1, num_frames, 3, side, side, dtype=torch.uint8))
    return counter.get_total_flops() / 1e9
