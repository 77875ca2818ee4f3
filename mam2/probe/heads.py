"""Heads on frozen features: a linear layer, nearest neighbours; the attentive one is in model/pooling.py.

B samples, T frames, N patches of a frame, S tokens, D width, F features, K classes, N training samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(width: int, num_classes: int) -> nn.Linear:
    """A linear layer that starts at zero: the problem is convex, so nothing needs to be drawn."""
    layer = nn.Linear(width, num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def neighbours(
    bank_NF: Tensor, label_N: Tensor, query_BF: Tensor, *, k: int, temperature: float, num_classes: int
) -> Tensor:
    """Votes (B, K), 1 in sum: each of the k training videos of largest cosine votes with exp(cosine / temperature).

    As DINO's (Caron et al., 2021); a training set smaller than k votes as a whole.
    """
    bank_NF, query_BF = F.normalize(bank_NF.float(), dim=1), F.normalize(query_BF.float(), dim=1)
    votes_BK = torch.zeros(len(query_BF), num_classes)
    for places in torch.arange(len(query_BF)).split(1024):
        cosine_Bk, nearest_Bk = (query_BF[places] @ bank_NF.T).topk(min(k, len(bank_NF)), dim=1)
        weight_Bk = (cosine_Bk / temperature).softmax(dim=1)
        votes_BK[places] = torch.zeros(len(places), num_classes).scatter_add(1, label_N[nearest_Bk], weight_Bk)
    return votes_BK
