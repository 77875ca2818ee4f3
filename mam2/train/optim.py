"""AdamW, its parameter groups, and the schedules of learning rate and weight decay (App. B, Tables 7 and 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn

from mam2.config import Duration, Epochs, Steps, check


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Settings of AdamW and its schedules; the defaults are Table 7's, for Kinetics-400.

    Attributes:
        base_lr: learning rate for a batch of 256 videos; the rate used is base_lr × batch size / 256.
        min_lr: learning rate at the end of the cosine, scaled likewise.
        weight_decay: weight decay of matrices; norms, biases, positions and the mask query have none.
        weight_decay_end: weight decay at the end of the run, reached by half a cosine; 0 keeps it constant.
        betas: momenta of AdamW.
        warmup: duration of the linear warm-up from 0, step by step.
        max_grad_norm: norm to which gradients are clipped; 0 is off.
        layer_decay: ratio of the learning rate of a block to that of the block above; 1 is off.
        freeze_encoder_for: duration, at the start, for which the encoder is frozen while the parts around it learn.
    """

    base_lr: Annotated[float, Gt(0)] = 1.5e-4
    min_lr: Annotated[float, Ge(0)] = 1e-5
    weight_decay: Annotated[float, Ge(0)] = 0.05
    weight_decay_end: Annotated[float, Ge(0)] = 0.0
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.95)
    warmup: Duration = Epochs(20)
    max_grad_norm: Annotated[float, Ge(0)] = 0.0
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    freeze_encoder_for: Duration = Steps(0)

    def __post_init__(self) -> None:
        check(self, "optim.")


def learning_rate(optim: Optim, step: int, *, batch_size: int, warmup_steps: int, num_steps: int) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine down to min_lr."""
    scale = batch_size / 256
    peak = optim.base_lr * scale
    low = min(optim.min_lr, optim.base_lr) * scale
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return _cosine(peak, low, (step - warmup_steps) / max(1, num_steps - warmup_steps))


def weight_decay(optim: Optim, step: int, *, num_steps: int) -> float:
    """The weight decay of a step: constant, or half a cosine to weight_decay_end."""
    if not optim.weight_decay_end:
        return optim.weight_decay
    return _cosine(optim.weight_decay, optim.weight_decay_end, step / num_steps)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, optim: Optim, *, depth: int = 0, by_layer: bool = False) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; each group has the `lr_scale` of its layer.

    Args:
        model: the model to train.
        optim: settings.
        depth: number of the encoder's blocks.
        by_layer: group parameters by `layer_id`, for layer-wise decay of the learning rate.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_id(name, depth) if by_layer else depth + 1
        decays = parameter.ndim > 1 and not {"positions", "prefix"} & set(name.split("."))
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "weight_decay": optim.weight_decay if decays else 0.0,
                "lr_scale": optim.layer_decay ** (depth + 1 - layer),
                "is_encoder": layer <= depth,
                "decays": decays,
            },
        )
        group["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=optim.base_lr, betas=optim.betas, eps=1e-8, fused=True)


def layer_id(name: str, depth: int) -> int:
    """The depth of a Classifier's parameter for layer-wise learning rate decay, from 0 to depth + 1.

    Patch embedding, all positions and prefix tokens are 0, block i is i + 1, everything above the blocks is depth + 1.
    (Code that matches positions by another name trains separable positions many times too fast.)
    """
    parts = name.removeprefix("encoder.").split(".")
    if name.startswith("encoder.") and parts[0] in ("patch_embed", "positions", "prefix", "pre_norm"):
        return 0
    if name.startswith("encoder.blocks."):
        return int(parts[1]) + 1
    return depth + 1


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, *, encoder_frozen: bool = False) -> None:
    """Sets the learning rate of each group to its share of the rate; 0 for the encoder's groups while it is frozen."""
    for group in optimizer.param_groups:
        waits = encoder_frozen and group.get("is_encoder", False)  # checkpoints of version 0.1 don't say
        group["lr"] = 0.0 if waits else rate * group["lr_scale"]


def set_weight_decay(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Sets the weight decay of the groups that have one."""
    for group in optimizer.param_groups:
        if group.get("decays", group["weight_decay"] > 0):  # checkpoints of version 0.1 don't say
            group["weight_decay"] = decay
