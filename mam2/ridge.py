"""Ridge regression from features onto classes, in closed form.

N samples, F features, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def ridge(x_NF: Tensor, label_N: Tensor, *, num_classes: int, strength: float) -> nn.Linear:
    """A linear layer whose scores are nearest to one-hot labels, with a penalty on its weights.

    Args:
        x_NF: features; they are centred here.
        label_N: int64, classes from 0.
        num_classes: K.
        strength: strength of the penalty, as a share of the mean square norm of the centred features. Above 0.

    Returns:
        The layer, F to K, in double precision on the device of the features.
    """
    x_NF = x_NF.double()
    mean_F = x_NF.mean(dim=0)
    x_NF = x_NF - mean_F
    target_NK = F.one_hot(label_N.to(x_NF.device), num_classes).double()
    share_K = target_NK.mean(dim=0)
    penalty = strength * x_NF.square().sum(dim=1).mean().clamp(min=1e-12)
    # The smaller of the two systems: among samples, or among features.
    is_wide = x_NF.shape[0] <= x_NF.shape[1]
    gram = x_NF @ x_NF.T if is_wide else x_NF.T @ x_NF
    gram.diagonal().add_(penalty)
    right = target_NK - share_K if is_wide else x_NF.T @ (target_NK - share_K)
    solved = torch.linalg.solve(gram, right)
    weight_FK = x_NF.T @ solved if is_wide else solved
    layer = nn.Linear(len(mean_F), num_classes, dtype=torch.double, device=x_NF.device)
    with torch.no_grad():
        layer.weight.copy_(weight_FK.T)
        layer.bias.copy_(share_K - mean_F @ weight_FK)
    return layer
