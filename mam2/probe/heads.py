"""Heads on frozen features: a linear layer, an attentive pooler, or nearest neighbours.

B samples, S tokens, D width, F features, K classes, N training samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.model.blocks import init_weights, layer_norm


class Standardise(nn.Module):
    """(x - mean) / standard deviation over all samples and tokens of the training features it is made from."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        count = x.numel() // x.shape[-1]
        parts = [part.flatten(0, -2) for part in x.split(256)]  # in doubles, not all at once
        mean_F = sum((part.double().sum(dim=0) for part in parts), torch.zeros(())) / count
        std_F = (sum(((part.double() - mean_F).square().sum(dim=0) for part in parts), torch.zeros(())) / count).sqrt()
        self.mean_F: Tensor
        self.std_F: Tensor
        self.register_buffer("mean_F", mean_F.float())
        self.register_buffer("std_F", torch.where(std_F > 1e-6, std_F, 1.0).float())  # a constant stays a constant

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean_F) / self.std_F


def linear(width: int, num_classes: int) -> nn.Linear:
    """A linear layer that starts at zero: the problem is convex, so nothing needs to be drawn."""
    layer = nn.Linear(width, num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class AttentiveHead(nn.Module):
    """One learned query attends to all tokens, LayerNorm, linear layer: tokens (B, S, D) to logits (B, K).

    Multi-head cross-attention as in CAE's attentive probe and V-JEPA's pooler (without the latter's MLP). With a single
    query the projections can be taken out of the sum over tokens: q·(W x) = (Wᵀq)·x, and Σ a (V x) = V Σ a x. The
    result is the same and the cost falls by the width; a key's bias would cancel in the softmax.
    """

    def __init__(self, width: int, num_heads: int, num_classes: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_D = nn.Parameter(torch.empty(width))
        self.key_DD = nn.Parameter(torch.empty(width, width))
        self.value = nn.Linear(width, width)
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, num_classes)
        init_weights(self)
        nn.init.xavier_uniform_(self.key_DD)
        nn.init.trunc_normal_(self.query_D, std=0.02)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.head(self.norm(self.pool(x_BSD)))

    def pool(self, x_BSD: Tensor) -> Tensor:
        """The query's weighted sum of tokens, (B, D)."""
        heads = (self.num_heads, -1)
        query_hD = torch.einsum("hd,hdD->hD", self.query_D.view(heads), self.key_DD.unflatten(0, heads))
        scores_BSh = x_BSD @ query_hD.T * (len(self.query_D) / self.num_heads) ** -0.5
        pooled_BhD = scores_BSh.softmax(dim=1).transpose(1, 2) @ x_BSD
        values_Bhd = torch.einsum("bhD,hdD->bhd", pooled_BhD, self.value.weight.unflatten(0, heads))
        return values_Bhd.flatten(1) + self.value.bias


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
