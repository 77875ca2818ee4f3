"""Online probe: tests the encoder's features on labelled videos during pre-training.

N videos, K classes, D the encoder's width.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from mam2.config import Duration, Epochs, UserError, check
from mam2.data.catalog import few_shot, read_catalog
from mam2.data.clips import Data
from mam2.data.shape import ClipShape, Listing
from mam2.data.views import ViewLoader
from mam2.device import PROBED_AT_ONCE
from mam2.files import parse_json
from mam2.model.encoder import VideoEncoder
from mam2.model.weights import save_encoder
from mam2.ridge import ridge
from mam2.train.logs import step_of

log = logging.getLogger("mam2")
BEST = "encoder_best.safetensors"
NEIGHBOURS = 20
TEMPERATURE = 0.07
RIDGE = 1e-2  # strength of the penalty
FOLDS = 5
PATIENCE = 5


@dataclass(frozen=True, kw_only=True)
class Watch:
    """An online probe; off without `labelled`.

    Attributes:
        labelled: class folders, or a CSV with path,label: the middle clip of each video is kept in memory; empty is
            off.
        every: time between tests.
        shots: videos per class, drawn by the run's seed; 0 takes all.
    """

    labelled: str = ""
    every: Duration = Epochs(1)
    shots: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        check(self, "watch.")
        if self.labelled and self.every.value == 0:
            raise UserError("watch.every is 0; give a duration above 0, such as '500 steps'.")


class Watcher:
    """Tests an encoder in training, and keeps the best one as `encoder_best.safetensors` in the run's folder.

    Args:
        watch: the labelled videos.
        data: settings for making clips.
        encoder: the encoder in training.
        folder: run folder.
        seed: seed of the run.
        start_step: step at which the run resumes; results of earlier steps are read from its log.

    Raises:
        UserError: no labelled videos, a class with one video, too many unusable ones.
    """

    def __init__(
        self, watch: Watch, data: Data, encoder: VideoEncoder, *, folder: Path, seed: int, start_step: int
    ) -> None:
        self.encoder = encoder
        self.folder = folder
        catalog = few_shot(read_catalog(Listing(root=watch.labelled), labelled=True), shots=watch.shots, seed=seed)
        loader = ViewLoader(catalog, data, ClipShape.of(encoder.config), clips=1, crops=1)
        videos = list(loader)
        loader.bad.check()
        self.clip_NTCHW = torch.stack([video.views_VTCHW[0] for video in videos])
        self.label_N = torch.tensor([video.label for video in videos])
        if (counts := self.label_N.bincount()).min() < 2:
            few = catalog.classes[int(counts.argmin())]
            raise UserError(f"{watch.labelled} has one video of the class {few!r}; a probe needs two of each.")
        self.results = earlier(folder / "log.jsonl", up_to=start_step)
        self._warned = False

    def __call__(self, step: int) -> dict[str, float]:
        """The row for the log after a step: top-1 of nearest neighbours and of ridge regression; RankMe."""
        was_training = self.encoder.training
        features_ND = features(self.encoder.eval(), self.clip_NTCHW)
        self.encoder.train(was_training)
        row = {
            "probe_knn": leave_one_out(features_ND, self.label_N),
            "probe_ridge": cross_validated_ridge(features_ND, self.label_N),
            "rank_me": rank_me(features_ND),
        }
        best = max(self.results, default=-1.0)
        self.results.append(row["probe_ridge"])
        if row["probe_ridge"] > best:
            save_encoder(self.folder / BEST, self.encoder)
        elif len(self.results) - 1 - self.results.index(best) >= PATIENCE and not self._warned:
            self._warned = True
            log.warning(
                f"Step {step}: the online probe has not risen for {PATIENCE} looks; the best, {best:.3f}, is kept as "
                f"{self.folder / BEST}. Stop here, or try a lower --optim.base-lr or more videos."
            )
        return row


def earlier(log_file: Path, *, up_to: int) -> list[float]:
    """Results of ridge regression in a log, up to a step."""
    if not log_file.exists():
        return []
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [parse_json(line) for line in lines if step_of(line) <= up_to]
    return [float(row["probe_ridge"]) for row in rows if "probe_ridge" in row]


@torch.no_grad()
def features(encoder: VideoEncoder, clip_NTCHW: Tensor) -> Tensor:
    """Features averaged over space, frames side by side: (N, T·D), float32 on the CPU."""
    device = encoder.patch_embed.weight.device
    parts = [encoder(part.to(device)).float().mean(dim=2).flatten(1) for part in clip_NTCHW.split(PROBED_AT_ONCE)]
    return torch.cat(parts).cpu()


def leave_one_out(features_ND: Tensor, label_N: Tensor) -> float:
    """Top-1 of nearest neighbours, each video classified by all others: cosine similarity, DINO's votes."""
    x_ND = F.normalize(features_ND - features_ND.mean(dim=0), dim=1)
    cosine_NN = (x_ND @ x_ND.T).fill_diagonal_(-math.inf)
    near_Nk, place_Nk = cosine_NN.topk(min(NEIGHBOURS, len(x_ND) - 1), dim=1)
    votes_NK = torch.zeros(len(x_ND), int(label_N.max()) + 1)
    votes_NK.scatter_add_(1, label_N[place_Nk], (near_Nk / TEMPERATURE).softmax(dim=1))
    return (votes_NK.argmax(dim=1) == label_N).float().mean().item()


def cross_validated_ridge(features_ND: Tensor, label_N: Tensor) -> float:
    """Top-1 of ridge regression onto one-hot labels, fitted on four fifths of the videos, tested on the other."""
    # Videos of a class go to the folds in turn, so that each fold has all classes.
    rank_N = torch.stack([(label_N[:i] == label_N[i]).sum() for i in range(len(label_N))])
    num_classes = int(label_N.max()) + 1
    right = 0
    for fold in range(FOLDS):
        held_N = rank_N % FOLDS == fold
        if not held_N.any():
            continue
        layer = ridge(features_ND[~held_N], label_N[~held_N], num_classes=num_classes, strength=RIDGE)
        guess = layer(features_ND[held_N].double()).argmax(dim=1)
        right += int((guess == label_N[held_N]).sum())
    return right / len(label_N)


def rank_me(features_ND: Tensor) -> float:
    """RankMe (Garrido et al., 2023): the exponential of the entropy of the features' singular values."""
    values = torch.linalg.svdvals(features_ND.double())
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return math.exp(-(share * share.log()).sum().item())
