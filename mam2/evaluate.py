"""Multi-view testing: averaged scores; top-1, top-5, confusion (Tables 3-5), average precision, errors of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mam2 import distributed
from mam2.config import UserError
from mam2.data.labels import LabelKind
from mam2.data.views import ViewLoader
from mam2.model.classifier import Classifier, scores_of
from mam2.progress import progress


@dataclass(frozen=True)
class Evaluation:
    """The result of a test.

    Attributes:
        probabilities_BK: float32, each video's probabilities averaged over its views; numbers (B, 1) in regression.
        label_B: int64, the true classes; -1 for unlabelled, multilabel and regression videos.
        index_B: int64, each video's place in the catalog, sorted.
        bad: path and reason of videos that could not be used.
        single_view: top-1 and top-5 of single views; None where views were not tested one by one, or labels are not
            classes.
        target_BK: float32, the true labels, if multilabel (1 or 0) or regression (B, 1).
        seconds_B: float64, each video's length; NaN if unknown.
    """

    probabilities_BK: Tensor
    label_B: Tensor
    index_B: Tensor
    bad: dict[str, str]
    single_view: tuple[float, float] | None = None
    target_BK: Tensor | None = None
    seconds_B: Tensor | None = None

    def top(self, k: int) -> float:
        """Share of videos whose class is among the k most probable ones."""
        return in_top(self.probabilities_BK, self.label_B, k).double().mean().item()

    def confusion(self) -> Tensor:
        """Counts (K, K): true class by predicted class."""
        num_classes = self.probabilities_BK.shape[1]
        pairs = self.label_B * num_classes + self.probabilities_BK.argmax(dim=1)
        return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)

    def per_class(self, classes: Sequence[str]) -> dict[str, float | None]:
        """Top-1 by class name; None for a class without videos."""
        counts = self.confusion()
        total = counts.sum(dim=1)
        return {c: counts[i, i].item() / total[i].item() if total[i] else None for i, c in enumerate(classes)}


def average_precision(score_B: Tensor, is_true_B: Tensor) -> float | None:
    """Area under precision over recall, in steps at each score that occurs; None if nothing is true.

    Args:
        score_B: scores, higher for more likely.
        is_true_B: bool, the truth.
    """
    order_B = score_B.argsort(descending=True)
    hits_B = is_true_B[order_B].double().cumsum(dim=0)
    if not hits_B[-1]:
        return None
    sorted_B = score_B[order_B]
    ends_B = torch.cat([sorted_B[1:] != sorted_B[:-1], torch.ones(1, dtype=torch.bool)])  # equal scores count at once
    hits = hits_B[ends_B]
    places = torch.arange(1, len(sorted_B) + 1)[ends_B]
    return (hits / places * hits.diff(prepend=hits.new_zeros(1))).sum().item() / hits[-1].item()


def errors_of(found_B: Tensor, truth_B: Tensor) -> dict[str, float | None]:
    """mae, rmse, and r2, the explained share of the truth's variance; None if that is 0."""
    error_B = found_B.double() - truth_B.double()
    spread = (truth_B.double() - truth_B.double().mean()).square().sum().item()
    return {
        "mae": error_B.abs().mean().item(),
        "rmse": error_B.square().mean().sqrt().item(),
        "r2": 1 - error_B.square().sum().item() / spread if spread else None,
    }


def in_top(scores_BK: Tensor, label_B: Tensor, k: int) -> Tensor:
    """True for rows whose class is among their k highest scores: bool (B,)."""
    best_Bk = scores_BK.topk(min(k, scores_BK.shape[1]), dim=1).indices
    return (best_Bk == label_B[:, None]).any(dim=1)


@torch.no_grad()
def evaluate(
    classifier: Classifier,
    loader: ViewLoader,
    *,
    num_videos: int,
    dtype: torch.dtype | None = None,
    kind: LabelKind = "classes",
) -> Evaluation:
    """Tests a classifier on every video of a loader, each seen in all its views; processes share the videos.

    Args:
        classifier: a classifier in eval mode, on its device.
        loader: this process's videos.
        num_videos: number of videos of all processes, for the progress bar.
        dtype: autocast dtype; None means float32.
        kind: kind of the classifier's labels.

    Raises:
        UserError: no video could be used.
    """
    device = next(classifier.parameters()).device
    rows: list[tuple[int, int, Tensor, Tensor, float]] = []
    for video in progress(loader, title="testing", total=-(-num_videos // distributed.world_size())):
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            logits_VK = torch.cat([classifier(part.to(device)) for part in video.views_VTCHW.split(8)])
        # Probabilities, not logits, are averaged, as VideoMAE does: about half a point on Kinetics-400.
        probabilities_VK = scores_of(logits_VK.float(), kind).cpu()
        label_V = torch.full((len(probabilities_VK),), video.label)
        single = torch.stack([in_top(probabilities_VK, label_V, k).double().mean() for k in (1, 5)])
        rows.append((video.index, video.label, probabilities_VK.mean(dim=0), single, video.seconds))
    bad = loader.bad.of_all_processes()  # each process has forgiven its own share only
    rows = sorted((row for part in distributed.gather(rows) for row in part), key=lambda row: row[0])
    if not rows:
        raise UserError("No video could be tested; see the reasons above. Check --data.root.")
    indices, labels, means, singles, seconds = zip(*rows, strict=True)
    top1, top5 = torch.stack(singles).mean(dim=0).tolist()
    return Evaluation(
        probabilities_BK=torch.stack(means),
        label_B=torch.tensor(labels),
        index_B=torch.tensor(indices),
        bad=bad,
        single_view=(top1, top5) if kind == "classes" else None,
        seconds_B=torch.tensor(seconds, dtype=torch.float64),
    )
