"""Cross-entropy of a linear head without all logits in memory.

S tokens, D width, K codes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_AT_ONCE = 2**23
"""Size of a chunk of logits: 32 MiB in fp32."""


def linear_cross_entropy(x_SD: Tensor, weight_KD: Tensor, bias_K: Tensor, target_S: Tensor) -> Tensor:
    """`F.cross_entropy(F.linear(x, weight, bias).float(), target)` without all logits, or their gradients, in memory.

    The logits (147 MiB per clip for the paper's ViT-B in fp32, several times) are computed in chunks, and with each
    chunk its share of the gradients. Arithmetic and types are the same, autocast's included; sums have another order.

    Args:
        x_SD: tokens (S, D).
        weight_KD, bias_K: parameters of the head.
        target_S: int64 (S,), 0 .. K - 1.
    """
    dtype = F.linear(x_SD[:0], weight_KD[:1], bias_K[:1]).dtype  # autocast's, where that is on
    loss: Tensor = _LinearCrossEntropy.apply(x_SD, weight_KD, bias_K, target_S, dtype)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in `forward`, from the logits at hand, and scales them in place in `backward`, which
    therefore works once."""

    @staticmethod
    def forward(
        ctx: Any, x_SD: Tensor, weight_KD: Tensor, bias_K: Tensor, target_S: Tensor, dtype: torch.dtype
    ) -> Tensor:
        num_tokens = len(x_SD)
        rows = max(1, LOGITS_AT_ONCE // len(weight_KD))
        wants_gradients = any(ctx.needs_input_grad[:3])
        weight = weight_KD.to(dtype)
        bias = bias_K.to(dtype)
        loss = torch.zeros((), device=x_SD.device)
        if wants_gradients:
            by_x_SD = torch.empty_like(x_SD)
            by_weight_KD = torch.zeros_like(weight_KD, dtype=torch.float32)
            by_bias_K = torch.zeros_like(bias_K, dtype=torch.float32)
        for start in range(0, num_tokens, rows):
            x = x_SD[start : start + rows].to(dtype)
            target = target_S[start : start + rows, None]
            logits = F.linear(x, weight, bias).float()
            top = logits.amax(dim=1, keepdim=True)
            at_target = logits.gather(1, target)
            odds = logits.sub_(top).exp_()  # in place, as all that follows
            sum_of_odds = odds.sum(dim=1, keepdim=True)
            loss += (top + sum_of_odds.log() - at_target).sum()
            if wants_gradients:
                by_logits = odds.div_(sum_of_odds)
                by_logits.scatter_add_(1, target, torch.full_like(top, -1.0)).div_(num_tokens)
                by_bias_K += by_logits.sum(dim=0)
                by_logits = by_logits.to(dtype)
                by_x_SD[start : start + rows] = by_logits @ weight
                by_weight_KD += by_logits.T @ x
        if wants_gradients:
            ctx.gradients = [by_x_SD, by_weight_KD.to(weight_KD.dtype), by_bias_K.to(bias_K.dtype)]
        return loss / num_tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, []
        if not gradients:
            raise RuntimeError("linear_cross_entropy has gone backward already; compute it again for a second time.")
        return *(by.mul_(gradient) for by in gradients), None, None
