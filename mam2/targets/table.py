"""Appearance and motion targets: the rows of Tables 1e and 1f, and ours (Sec. 2.2).

To add a target: one function or class, and one line in APPEARANCE_TARGETS or MOTION_TARGETS (docs/add_a_target.md). A
row's network is imported when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Protocol, TypeVar

import torch
from annotated_types import Ge
from torch import Tensor

from mam2.config import UserError, check, did_you_mean, is_plug_in, load_plug_in
from mam2.losses import Distance
from mam2.targets.hog import hog, num_hog
from mam2.targets.motion import rgb_difference
from mam2.targets.pixels import num_pixels, num_pixels_of_tubelets, pixels, pixels_of_tubelets


@dataclass(frozen=True)
class TargetSizes:
    """Numbers that the decoders must predict.

    Attributes:
        appearance: K logits of a patch, or K numbers of a target such as pixels.
        motion: numbers per patch and frame, or 2 for a tube's order.
        clip_order: true if the motion target is clip order.
        distance: distance of predicted and true numbers, for an appearance target without codes.
    """

    appearance: int
    motion: int
    clip_order: bool = False
    distance: Distance = "squared"


@dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """The defaults are the paper's. `mam2 targets` lists all names.

    Attributes:
        appearance: target of the appearance decoder: a name of APPEARANCE_TARGETS, or a plug-in, `package.module:name`.
        file: the tokenizer's weights (.safetensors); empty where it has none; for a teacher, its encoder: a run's
            folder, a file, or a published one such as timm:vit_base_patch16_siglip_224.webli.
        teacher_loss: distance to a teacher's features.
        num_codes: K of the random projection or of the VQ model to train; files state their own.
        vq_steps: steps of 32 frames for which that VQ model is trained.
        precision: numerical type of VQGAN and DALL-E. "bf16" halves the VQGAN's time on a CPU and gives 1 or 2 % of
            the patches other codes (docs/log/speed.md). The nearest-code search is always fp32. On a GPU, "fp32"
            convolutions use TF32, PyTorch's default.
        cache: a folder for the codes of `data.fixed_clips`, which are then computed once; "" is off.
        motion: target of the motion decoder: a name of MOTION_TARGETS, or a plug-in, `package.module:name`.
        motion_scale: "raw", the motion as it is, the paper's; "clip", divided by its root mean square over the clip,
            so that predicting none costs 1; "patch", each patch to mean 0 and variance 1.
        flow_model: the network for optical flow.
        flow_file: torchvision's official weights (.pth) for it; empty takes torchvision's own download.
    """

    appearance: str = "vqgan_16384"
    file: str = ""
    teacher_loss: Literal["smooth_l1", "l1", "cosine"] = "smooth_l1"
    num_codes: Annotated[int, Ge(1)] = 8192
    vq_steps: Annotated[int, Ge(1)] = 400
    precision: Literal["fp32", "bf16"] = "fp32"
    cache: str = ""
    motion: str = "rgb_difference"
    motion_scale: Literal["raw", "clip", "patch"] = "raw"
    flow_model: Literal["raft_large", "raft_small"] = "raft_large"
    flow_file: str = ""

    def __post_init__(self) -> None:
        check(self, "targets.")
        appearance_row(self.appearance)
        motion_row(self.motion)
        if self.cache and not appearance_row(self.appearance).load:
            raise UserError(
                f"targets.cache keeps codes; targets.appearance {self.appearance!r} has none. Leave --targets.cache "
                "out, or choose a tokenizer from `mam2 targets`."
            )

    @property
    def by_teacher(self) -> bool:
        """True if the appearance target is the features of a frozen encoder."""
        return self.appearance == "teacher"


RowT = TypeVar("RowT")
MotionField = Callable[[Tensor], Tensor]
"""Clips (B, T, 3, H, W) in [0, 1] to motion (B, T-1, channels, H, W)."""


class Tokenizer(Protocol):
    """A frozen module: frames (F, 3, H, W) in [0, 1] to codes int64 (F, N), one for every patch of `patch_size`."""

    patch_size: int
    num_codes: int

    def __call__(self, frames_FCHW: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Appearance:
    """A row of Table 1e, or one of ours.

    Attributes:
        title: name in print.
        size: side of the frames that its network sees for a 224² clip with patches of 16², pixels.
        range: range of the values that its network sees.
        num_outputs: K; 0 where the configuration or the patch side decides.
        gflop: cost of a forward pass, per clip of 16 frames.
        weights: source of its weights.
        load: makes the tokenizer for a configuration and patch side, on a device; None for targets without codes.
        values: for a target computed from pixels: the function, and its K for a patch side and a tubelet.
    """

    title: str
    size: int
    range: str
    num_outputs: int
    gflop: int
    weights: str
    load: Callable[[TargetsConfig, int, torch.device], Tokenizer] | None
    values: tuple[Callable[[Tensor, int], Tensor], Callable[[int, int], int]] | None = None


@dataclass(frozen=True)
class Motion:
    """A row of Table 1f, or one of ours.

    Attributes:
        title: name in print.
        units: units of its raw values.
        channels: number of channels of the motion field; 0 for clip order, which has none.
        still: root mean square below which a clip counts as still, for `motion_scale clip`.
        gflop: cost per clip of 16 frames of 224².
        load: makes the motion field for a configuration and patch side, on a device; None for clip order.
    """

    title: str
    units: str
    channels: int
    still: float
    gflop: int
    load: Callable[[TargetsConfig, int, torch.device], MotionField] | None


def _vqgan(
    config: TargetsConfig, patch_size: int, device: torch.device, quantizer: Literal["nearest", "gumbel"] = "nearest"
) -> Tokenizer:
    from mam2.targets.tokenizers.vqgan import load_vqgan

    return load_vqgan(config.file, quantizer=quantizer).to(device)


_gumbel = partial(_vqgan, quantizer="gumbel")


def _dalle(config: TargetsConfig, patch_size: int, device: torch.device) -> Tokenizer:
    from mam2.targets.tokenizers.dalle import load_dalle

    return load_dalle(config.file).to(device)


def _vq(config: TargetsConfig, patch_size: int, device: torch.device) -> Tokenizer:
    from mam2.targets.tokenizers.vq import load_vq

    tokenizer = load_vq(config.file)
    if tokenizer.patch_size != patch_size:
        raise UserError(
            f"The tokenizer {config.file} was trained on patches of {tokenizer.patch_size} pixels, the encoder has "
            f"{patch_size}. Train one of that size, or set --encoder.patch-size {tokenizer.patch_size}."
        )
    return tokenizer.to(device)


def _random_projection(config: TargetsConfig, patch_size: int, device: torch.device) -> Tokenizer:
    from mam2.targets.tokenizers.random_projection import RandomProjection

    return RandomProjection(patch_size=patch_size, num_codes=config.num_codes).to(device)


APPEARANCE_TARGETS: dict[str, Appearance] = {
    "vqgan_16384": Appearance(
        "VQGAN f16, ImageNet", 224, "[-1, 1]", 16384, 1721, "CompVis/taming-transformers", _vqgan
    ),
    "vqgan_8192": Appearance(
        "VQGAN f8 Gumbel, OpenImages", 112, "[-1, 1]", 8192, 528, "CompVis/taming-transformers", _gumbel
    ),
    "dalle": Appearance("DALL-E dVAE", 112, "[0.1, 0.9]", 8192, 834, "openai/DALL-E", _dalle),
    "vq": Appearance("small VQ of one's own video", 224, "[-2, 2]", 0, 2, "mam2 tokenizer train", _vq),
    "random_projection": Appearance("BEST-RQ random projection", 112, "[-1, 1]", 0, 1, "none", _random_projection),
    "pixels": Appearance(
        "pixels, normalised per patch (MAE)", 224, "mean 0, variance 1", 0, 0, "none", None, (pixels, num_pixels)
    ),
    "pixels_of_tubelets": Appearance(
        "pixels of all frames, normalised per channel (VideoMAE)",
        224,
        "mean 0, variance 1",
        0,
        0,
        "none",
        None,
        (pixels_of_tubelets, num_pixels_of_tubelets),
    ),
    "teacher": Appearance(
        "features of a frozen encoder, normalised", 224, "mean 0, variance 1", 768, 1126, "--targets.file ENCODER", None
    ),
    "hog": Appearance("gradients' directions (MaskFeat)", 224, "[0, 1]", 0, 0, "none", None, (hog, num_hog)),
}


def _rgb_difference(config: TargetsConfig, patch_size: int, device: torch.device) -> MotionField:
    return rgb_difference


def _optical_flow(config: TargetsConfig, patch_size: int, device: torch.device) -> MotionField:
    from mam2.targets.raft import OpticalFlow

    raft = OpticalFlow(model=config.flow_model, file=config.flow_file, device=device)
    return lambda clip_BTCHW: raft.flow(clip_BTCHW) / patch_size


MOTION_TARGETS: dict[str, Motion] = {
    "rgb_difference": Motion("next frame less this one", "RGB in [0, 1]", 3, 1 / 255, 0, _rgb_difference),
    "optical_flow": Motion("RAFT, 12 updates, frame t to t+1", "patch sides per frame", 2, 0.005, 1192, _optical_flow),
    "clip_order": Motion("are a tube's halves swapped", "2 classes", 0, 0.0, 0, None),
}


def appearance_row(name: str) -> Appearance:
    """The row of an appearance target; UserError for an unknown name."""
    return _row(name, APPEARANCE_TARGETS, Appearance, field="appearance")


def motion_row(name: str) -> Motion:
    """The row of a motion target; UserError for an unknown name."""
    return _row(name, MOTION_TARGETS, Motion, field="motion")


def _row(name: str, rows: dict[str, RowT], kind: type[RowT], *, field: str) -> RowT:
    if is_plug_in(name):
        return load_plug_in(name, kind)
    if name not in rows:
        raise UserError(f"targets.{field} is {name!r}. {did_you_mean(name, rows)} `mam2 targets` lists them.")
    return rows[name]


def target_sizes(config: TargetsConfig, *, patch_size: int, tubelet: int = 1) -> TargetSizes:
    """Numbers that the decoders must predict; UserError for a target that patches of this size do not allow."""
    appearance = appearance_row(config.appearance)
    motion = motion_row(config.motion)
    num_codes = appearance.num_outputs or config.num_codes
    return TargetSizes(
        appearance=appearance.values[1](patch_size, tubelet) if appearance.values else num_codes,
        motion=motion.channels * patch_size**2 if motion.load else 2,
        clip_order=motion.load is None,
        distance=config.teacher_loss if config.by_teacher else "squared",
    )
