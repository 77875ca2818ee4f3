"""Pre-training recipes: Table 7, row by row. Results and fine-tuning recipes stand in `tables.py`.

A setting that is missing here is the paper's, by default in the configuration.
"""

from __future__ import annotations

from dataclasses import replace

from mam2.config import Epochs, Steps
from mam2.data.clips import Data
from mam2.masks import MaskConfig
from mam2.model.encoder import EncoderConfig, vit_l
from mam2.objectives.mam2 import MAM2Config
from mam2.targets.table import TargetsConfig
from mam2.train.engine import Loop
from mam2.train.optim import Optim
from mam2.train.pretrain import Pretrain


def mam2_b_k400() -> Pretrain:
    """Tables 3 and 7: ViT-B, Kinetics-400, 800 epochs. Needs the VQGAN file."""
    return Pretrain()


def mam2_l_k400() -> Pretrain:
    """Tables 3 and 7: ViT-L, Kinetics-400, 800 epochs. Needs the VQGAN file.

    Paper: regressor and decoder width for ViT-L not given; here: the encoder's, which Table 1c finds best.
    """
    return Pretrain(encoder=vit_l())


def mam2_l_k400_600() -> Pretrain:
    """Table 3: `mam2_l_k400` with 600 epochs. Needs the VQGAN file."""
    base = mam2_l_k400()
    return replace(base, loop=replace(base.loop, duration=Epochs(600)))


def mam2_b_ssv2() -> Pretrain:
    """Tables 4 and 7: ViT-B, Something-Something V2, 1200 epochs, no flip. Needs the VQGAN file."""
    return Pretrain(data=Data(flip=False), optim=Optim(warmup=Epochs(30)), loop=Loop(duration=Epochs(1200)))


def mam2_b_ucf101() -> Pretrain:
    """Tables 5 and 7: ViT-B, UCF101, 1200 epochs (800 in the ablations). Needs the VQGAN file."""
    return Pretrain(optim=Optim(warmup=Epochs(30)), loop=Loop(batch_size=32, duration=Epochs(1200)))


def mam2_b_hmdb51() -> Pretrain:
    """Tables 5 and 7: ViT-B, HMDB51, 1600 epochs. Needs the VQGAN file."""
    return Pretrain(optim=Optim(warmup=Epochs(40)), loop=Loop(batch_size=32, duration=Epochs(1600)))


def mam2_b_k400_rp() -> Pretrain:
    """Not the paper's: `mam2_b_k400` with random-projection tokens, which need no download."""
    return replace(mam2_b_k400(), targets=TargetsConfig(appearance="random_projection"))


def mam2_lite_b_k400() -> Pretrain:
    """Not the paper's: `mam2_b_k400` for 24 % of its operations; then `finetune_lite_b_k400`. Needs no download.

    Tubelets of 2 frames, a quarter of the masked tubes aligned, random-projection tokens. Effects at a small
    size: docs/results.md.
    """
    return _lite(mam2_b_k400())


def mam2_lite_l_k400() -> Pretrain:
    """Not the paper's: `mam2_l_k400` for 23 % of its operations; then `finetune_lite_l_k400`. Needs no download.

    As `mam2_lite_b_k400`, with regressor and decoders as wide as ViT-B's.
    """
    return replace(_lite(mam2_l_k400()), objective=MAM2Config(width=768, num_heads=12))


def _lite(base: Pretrain) -> Pretrain:
    return replace(
        base,
        encoder=replace(base.encoder, tubelet=2),
        mask=replace(base.mask, aligned=0.25),
        targets=TargetsConfig(appearance="random_projection"),
    )


def mam2_flash_b_k400() -> Pretrain:
    """Not the paper's: motion first, for 7 % of `mam2_b_k400`'s operations, 1.4 times VideoMAE's. Needs no download.

    Patches come with their difference to the next frame, attention starts local, and Eq. 3 is summed, so that motion is
    learned and outweighs appearance, which is pixels. Nine tenths of the tubes are masked. One decoder of one block
    predicts both, without regressor and alignment. Results at a small size: docs/results.md.
    """
    return _flash(mam2_b_k400())


def mam2_flash_l_k400() -> Pretrain:
    """Not the paper's: `mam2_flash_b_k400` with ViT-L. Needs no download."""
    return _flash(mam2_l_k400())


def _flash(base: Pretrain) -> Pretrain:
    return replace(
        base,
        encoder=replace(base.encoder, differences=True),
        objective=MAM2Config(
            width=384, num_heads=6, regressor_depth=0, appearance_depth=1, decoders="coupled",
            alignment_weight=0.0, motion_reduction="sum", start="local",
        ),
        mask=MaskConfig(ratio=0.9),
        targets=TargetsConfig(appearance="pixels", motion_scale="clip"),
    )  # fmt: skip


def mam2_teacher_b() -> Pretrain:
    """Not the paper's: `mam2_b_k400` whose appearance target is the features of a frozen encoder, such as an image ViT.

    Needs --targets.file ENCODER. Cheaper than the VQGAN, and the strongest published pre-trainings learn so.
    """
    return replace(mam2_b_k400(), targets=TargetsConfig(appearance="teacher"))


def mam2_adapt_b() -> Pretrain:
    """Not the paper's: an image ViT adapted to one's own videos by MAM², in 40 epochs.

    Give --init ENCODER, such as timm:vit_base_patch16_siglip_224.webli, or the same with --targets.file to hold on to
    what it knows. Copied blocks learn at lower rates the deeper they lie; new parts warm up first.
    """
    return replace(
        mam2_b_k400_rp(),
        optim=Optim(base_lr=1.5e-4, min_lr=1e-6, warmup=Epochs(4), layer_decay=0.75, freeze_encoder_for=Epochs(2)),
        loop=Loop(batch_size=256, duration=Epochs(40)),
    )


def mam2_adapt_video_b() -> Pretrain:
    """Not the paper's: VideoMAE's encoder adapted to one's own videos by MAM², in 40 epochs.

    Give --init ENCODER, such as hf:MCG-NJU/videomae-base.
    """
    base = mam2_adapt_b()
    encoder = replace(base.encoder, attention="joint", tubelet=2, positions="sequence", norm_eps=1e-12)
    return replace(base, encoder=encoder)


def mam2_tiny() -> Pretrain:
    """Not the paper's: for a laptop and any folder of videos; needs no download.

    1.1 M parameters in the encoder, 8 frames of 48², some ten minutes on two cores. A small VQ tokenizer is trained on
    the videos first. Steps are many and small, and the alignment ramps up, for reasons in docs/log/learning.md.
    """
    return Pretrain(
        data=Data(stride_frames=4),
        encoder=EncoderConfig(width=128, depth=4, num_heads=4, frames=8, size=48, patch_size=8),
        objective=MAM2Config(
            width=128, num_heads=4, regressor_depth=1, appearance_depth=1, motion_depth=1,
            alignment_ramp=Steps(1500),
        ),
        targets=TargetsConfig(appearance="vq", num_codes=128, vq_steps=200, motion_scale="clip"),
        optim=Optim(base_lr=3.2e-2, min_lr=0.0, warmup=Steps(50), max_grad_norm=3.0),
        loop=Loop(batch_size=8, duration=Steps(3000), save_every=Steps(500)),
    )  # fmt: skip
