"""The classifier: an encoder with mean pooling and a linear head (App. B).

B clips, T frames or tubelets, N patches per frame, D width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mam2.config import UserError
from mam2.model.blocks import layer_norm
from mam2.model.encoder import VideoEncoder

Pooling = Literal["all", "space"]
"""Pooling of features for a head: their mean over space and time, or over space, the frames one after another."""

OutputKind = Literal["classes", "multilabel", "regression"]
"""Meaning of the outputs: one class of all; a probability for each class; a number. As the kinds of labels."""


class Classifier(nn.Module):
    """A video encoder with mean pooling, a new LayerNorm and a linear head; the pre-training's final norm is unused.

    `classifier(clip_BTCHW) -> logits (B, num_classes)`; `kind` gives their meaning (`scores_of`). With `pooling`
    "space", the head gets T × D numbers, which keep the order of frames.
    """

    def __init__(
        self, encoder: VideoEncoder, num_classes: int, kind: OutputKind = "classes", *, pooling: Pooling = "all"
    ) -> None:
        super().__init__()
        self.kind = kind
        self.pooling = pooling
        self.encoder = encoder
        self.encoder.norm.requires_grad_(False)
        self.norm = layer_norm(encoder.config.width)
        num_pooled = encoder.config.tubelets if pooling == "space" else 1
        self.head = nn.Linear(num_pooled * encoder.config.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02 * 0.001)  # as VideoMAE's init_scale
        nn.init.zeros_(self.head.bias)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        """Logits (B, num_classes); with pooling "space", UserError for a clip of another length than the encoder's."""
        encoder = self.encoder
        if self.pooling == "space" and clip_BTCHW.shape[1] != encoder.config.frames:
            raise UserError(
                f"The clip has {clip_BTCHW.shape[1]} frames; this classifier, whose pooling is 'space', takes "
                f"{encoder.config.frames}."
            )
        features_BTND = encoder.encode(encoder.embed(clip_BTCHW), norm=False)
        pooled_BTD = features_BTND.mean(dim=2)
        if self.pooling == "space":
            return self.head(self.norm(pooled_BTD).flatten(1))
        return self.head(self.norm(pooled_BTD.mean(dim=1)))


def scores_of(logits_BK: Tensor, kind: OutputKind) -> Tensor:
    """Scores from a classifier's outputs: probabilities that sum to 1, a probability for each class, or a number."""
    if kind == "regression":
        return logits_BK
    return logits_BK.softmax(dim=1) if kind == "classes" else logits_BK.sigmoid()
