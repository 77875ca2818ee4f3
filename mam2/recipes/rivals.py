"""Rivals' recipes, by their papers and code; differences from them stand in docs/rivals.md.

Each is pre-trained in this project's loop, and fine-tuned by the same recipes as MAM².
"""

from __future__ import annotations

from dataclasses import replace

from mam2.config import Epochs, Steps
from mam2.data.clips import Data
from mam2.masks import MaskConfig
from mam2.model.encoder import EncoderConfig, vit_b, vit_l
from mam2.objectives.mae import MAEConfig
from mam2.objectives.masked_input import MaskedInputConfig
from mam2.objectives.vjepa import VJEPAConfig
from mam2.recipes.pretrain import mam2_adapt_b
from mam2.targets.table import TargetsConfig
from mam2.train.engine import Loop
from mam2.train.optim import Optim
from mam2.train.pretrain import Pretrain


def _joint(encoder: EncoderConfig) -> EncoderConfig:
    return replace(encoder, attention="joint", tubelet=2)


def videomae_b_k400() -> Pretrain:
    """Table 3: VideoMAE, ViT-B, Kinetics-400, 1600 epochs."""
    return Pretrain(
        data=Data(flip=False),
        encoder=replace(_joint(vit_b()), positions="sequence"),
        objective=MAEConfig(),
        mask=MaskConfig(ratio=0.9),
        targets=TargetsConfig(appearance="pixels_of_tubelets"),
        optim=Optim(warmup=Epochs(40)),
        loop=Loop(batch_size=2048, duration=Epochs(1600)),
    )


def videomae_adapt_b() -> Pretrain:
    """Not the paper's: a given encoder adapted to one's own videos by VideoMAE, with `mam2_adapt_b`'s optimiser.

    Give --init ENCODER.
    """
    adapt = mam2_adapt_b()
    return replace(videomae_b_k400(), optim=adapt.optim, loop=adapt.loop)


def videomae_l_k400() -> Pretrain:
    """Table 3: VideoMAE, ViT-L, Kinetics-400, 1600 epochs."""
    return replace(
        videomae_b_k400(),
        encoder=replace(_joint(vit_l()), positions="sequence"),
        objective=MAEConfig(width=512, depth=12, num_heads=8),
    )


def videomae_b_ssv2() -> Pretrain:
    """Table 4: VideoMAE, ViT-B, Something-Something V2, 2400 epochs."""
    base = videomae_b_k400()
    return replace(base, data=replace(base.data, stride_frames=2), loop=replace(base.loop, duration=Epochs(2400)))


def videomae_b_ucf101() -> Pretrain:
    """Table 5: VideoMAE, ViT-B, UCF101, 3200 epochs."""
    base = videomae_b_k400()
    return replace(
        base,
        mask=MaskConfig(ratio=0.75),
        optim=replace(base.optim, base_lr=3e-4),
        loop=replace(base.loop, batch_size=192, duration=Epochs(3200)),
    )


def videomae_b_hmdb51() -> Pretrain:
    """Table 5: VideoMAE, ViT-B, HMDB51, 4800 epochs."""
    base = videomae_b_ucf101()
    return replace(base, loop=replace(base.loop, duration=Epochs(4800)))


def omnimae_b_k400() -> Pretrain:
    """Table 3: OmniMAE, ViT-B, on Kinetics-400 and images alike, 800 epochs.

    Needs --data.images: ImageNet-1k in the original.
    """
    base = videomae_b_k400()
    return replace(base, mask=MaskConfig(ratio=0.95), loop=replace(base.loop, duration=Epochs(800)))


def omnimae_b_ssv2() -> Pretrain:
    """Table 4: OmniMAE, ViT-B, on Something-Something V2 and images alike."""
    base = omnimae_b_k400()
    return replace(base, data=replace(base.data, stride_frames=2))


def stmae_b_k400() -> Pretrain:
    """Table 3: ST-MAE, ViT-B, Kinetics-400, 800 epochs of one clip each."""
    return Pretrain(
        data=Data(repeats=4),
        encoder=_joint(vit_b()),
        objective=MAEConfig(width=512, num_heads=16),
        mask=MaskConfig(kind="random", ratio=0.9),
        targets=TargetsConfig(appearance="pixels"),
        optim=Optim(base_lr=6.4e-3, min_lr=0.0, warmup=Epochs(10), max_grad_norm=0.02),  # 1.6e-3 for 256 clips
        loop=Loop(batch_size=128, duration=Epochs(200)),
    )


def stmae_l_k400() -> Pretrain:
    """Table 3: ST-MAE, ViT-L, Kinetics-400, 800 epochs of one clip each."""
    return replace(stmae_b_k400(), encoder=_joint(vit_l()))


def maskfeat_b_k400() -> Pretrain:
    """Table 3: MaskFeat's HOG targets, ViT-B, Kinetics-400, 300 epochs; the paper's row has MViT-L."""
    return Pretrain(
        encoder=_joint(vit_b()),
        objective=MaskedInputConfig(),
        mask=MaskConfig(kind="cube", ratio=0.4),
        targets=TargetsConfig(appearance="hog"),
        optim=Optim(base_lr=8e-4, min_lr=8e-6, betas=(0.9, 0.999), warmup=Epochs(10), max_grad_norm=0.02),
        loop=Loop(batch_size=512, duration=Epochs(300)),
    )


def tokens_b_k400() -> Pretrain:
    """Table 3: BEVT's prediction of tokens alone, with ViT-B for 800 epochs; the paper's row has Swin-B.

    Needs the DALL-E file.
    """
    return Pretrain(
        objective=MaskedInputConfig(),
        mask=MaskConfig(kind="cube", ratio=0.4),
        targets=TargetsConfig(appearance="dalle"),
    )


def vjepa_b_k400() -> Pretrain:
    """Not the paper's: V-JEPA with ViT-B, on one's own or Kinetics' videos for 90,000 steps of 3072 clips."""
    return Pretrain(
        encoder=_joint(vit_b()),
        objective=VJEPAConfig(momentum_rise=Steps(112_500)),
        mask=MaskConfig(kind="short_range", ratio=0.63, second_kind="long_range", second_ratio=0.82),
        optim=Optim(
            base_lr=5.2e-5,
            min_lr=6.2e-6,
            betas=(0.9, 0.999),
            weight_decay=0.04,
            weight_decay_end=0.366,
            warmup=Steps(12_000),
            max_grad_norm=10.0,
        ),
        loop=Loop(batch_size=3072, duration=Steps(90_000), save_every=Steps(1000)),
    )


def salt_teacher_b_k400() -> Pretrain:
    """Not the paper's: SALT's first step, VideoMAE's pixels under V-JEPA's masks; its encoder is the next's teacher."""
    base = videomae_b_k400()
    return replace(base, mask=vjepa_b_k400().mask)


def salt_b_k400() -> Pretrain:
    """Not the paper's: SALT's second step, V-JEPA's predictor and a teacher that stays as it is.

    Needs --targets.file: the run of `salt_teacher_b_k400`, or any encoder.
    """
    base = vjepa_b_k400()
    return replace(
        base,
        objective=MAEConfig(width=384, depth=12, num_heads=12),
        targets=TargetsConfig(appearance="teacher", teacher_loss="l1"),
    )
