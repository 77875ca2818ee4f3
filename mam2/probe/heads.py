"""Heads on frozen features, their training and their answers; the attentive pooler is in model/pooling.py.

B samples, V views of a video, F features, K classes, N training samples or videos.
"""

from __future__ import annotations

import random
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.config import seed_of
from mam2.device import local_device
from mam2.train.optim import Optim, learning_rate, make_optimizer, set_learning_rate

VIDEOS_AT_ONCE = 64  # on the device, in testing
HOLD_OUT, ORDER, WEIGHTS = range(1, 4)  # keep the seeds of the draws apart


def linear(width: int, num_classes: int) -> nn.Linear:
    """A linear layer that starts at zero; the problem is convex."""
    layer = nn.Linear(width, num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def knn_votes(
    bank_NF: Tensor, label_N: Tensor, query_BF: Tensor, *, k: int, temperature: float, num_classes: int
) -> Tensor:
    """Votes (B, K), 1 in sum: each of the k training videos of largest cosine votes with exp(cosine / temperature).

    DINO's vote (Caron et al., 2021); a training set smaller than k votes as a whole.
    """
    bank_NF = F.normalize(bank_NF.float(), dim=1)
    query_BF = F.normalize(query_BF.float(), dim=1)
    votes_BK = torch.zeros(len(query_BF), num_classes)
    for places in torch.arange(len(query_BF)).split(1024):
        cosine_Bk, nearest_Bk = (query_BF[places] @ bank_NF.T).topk(min(k, len(bank_NF)), dim=1)
        weight_Bk = (cosine_Bk / temperature).softmax(dim=1)
        votes_BK[places] = torch.zeros(len(places), num_classes).scatter_add(1, label_N[nearest_Bk], weight_Bk)
    return votes_BK


def hold_out(label_N: Tensor, *, share: float, seed: int, trial: int = 0) -> Tensor:
    """Held-out videos, bool (N,): `share` of each class, at least one, never all; others in each trial."""
    held_N = torch.zeros(len(label_N), dtype=torch.bool)
    for label in label_N.unique().tolist():
        places = (label_N == label).nonzero()[:, 0].tolist()
        random.Random(seed_of(seed, HOLD_OUT, label)).shuffle(places)
        count = min(max(1, round(share * len(places))), len(places) - 1)
        for i in range(trial * count, (trial + 1) * count):
            held_N[places[i % len(places)]] = True
    return held_N


def train_head(
    head: nn.Module, x_B: Tensor, label_B: Tensor, optim: Optim, *, epochs: int, batch_size: int, seed: int
) -> None:
    """Trains a head by AdamW, with a cosine from the learning rate to 0.

    AdamW rather than a solver, so that all heads are trained alike and a step needs one batch in memory.
    """
    device = local_device()
    optimizer = make_optimizer(head, optim)
    num_steps = epochs * -(-len(x_B) // batch_size)
    rate_of = partial(learning_rate, optim, batch_size=batch_size, warmup_steps=0, num_steps=num_steps)
    step = 0
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed_of(seed, ORDER, epoch))
        for some in torch.randperm(len(x_B), generator=generator).split(batch_size):
            set_learning_rate(optimizer, rate_of(step))
            optimizer.zero_grad()
            F.cross_entropy(head(x_B[some].to(device)), label_B[some].to(device)).backward()
            optimizer.step()
            step += 1


@torch.no_grad()
def probabilities(head: nn.Module, x_NV: Tensor) -> Tensor:
    """Probabilities (N, K) of each video, averaged over its views."""
    parts = []
    for part_NV in x_NV.split(VIDEOS_AT_ONCE):
        logits_BK = head(part_NV.flatten(0, 1).to(local_device()))
        parts.append(logits_BK.softmax(dim=1).unflatten(0, part_NV.shape[:2]).mean(dim=1).cpu())
    return torch.cat(parts)
