"""Features of a clip as one vector: an attentive probe's pooling, and its file.

B clips, T frames or tubelets, N patches of a frame, S tokens, D width, F features, K classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.config import UserError, to_json
from mam2.files import config_of, model_with, read_tensors, write_tensors
from mam2.model.blocks import init_weights, layer_norm

FORMAT = "mam2.attentive_probe"


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


def average_squares(features_BTND: Tensor, grid: tuple[int, int], squares: int) -> Tensor:
    """Patches averaged to `squares` by `squares` per frame: (B, T, N, D) to (B, T, S, D)."""
    image_BTDhw = features_BTND.transpose(2, 3).unflatten(3, grid)
    averaged_bDS = F.adaptive_avg_pool2d(image_BTDhw.flatten(0, 1), squares).flatten(2)
    return averaged_bDS.transpose(1, 2).unflatten(0, features_BTND.shape[:2])


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


@dataclass(frozen=True, kw_only=True)
class PoolingConfig:
    """Sizes of an attentive probe's head.

    Attributes:
        encoder: digest of the encoder that it was fitted on.
        width, num_heads: sizes of that encoder.
        squares: squares per side of a frame; patches are averaged over each.
        classes: names of the classes, in the order of the logits.
    """

    encoder: str
    width: int
    num_heads: int
    squares: int
    classes: tuple[str, ...]


class AttentivePooling(nn.Module):
    """An attentive probe up to its linear layer: features (B, T, N, D) to (B, D)."""

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__()
        self.config = config
        self.standardise = Standardise(torch.zeros(1, config.width))
        self.head = AttentiveHead(config.width, config.num_heads, len(config.classes))

    def forward(self, features_BTND: Tensor, grid: tuple[int, int]) -> Tensor:
        x_BTSD = average_squares(features_BTND.float(), grid, self.config.squares)
        return self.head.norm(self.head.pool(self.standardise(x_BTSD.flatten(1, 2))))


def save_pooling(file: Path, fitted: nn.Module, config: PoolingConfig) -> None:
    """Writes the head of an attentive probe, (Standardise, AttentiveHead), with its configuration."""
    names = ("standardise", "head")
    tensors = {f"{names[int(n.split('.')[0])]}.{n.split('.', 1)[1]}": x for n, x in fitted.state_dict().items()}
    write_tensors(file, tensors, {"format": FORMAT, "config": json.dumps(to_json(config))})


def load_pooling(source: str | Path, *, encoder: str) -> AttentivePooling:
    """The pooling of a finished attentive probe, in eval mode on the CPU.

    Args:
        source: folder of a `mam2 probe`, or of the run that it lies in.
        encoder: digest of the encoder that it must have been fitted on.

    Raises:
        UserError: no such probe, one of another encoder, or a damaged file.
    """
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    files = [place / "probe_attentive.safetensors" for place in (folder, folder / "probe")]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise UserError(
            f"{folder} holds no attentive probe. Make one first: mam2 probe {source} --train LABELLED --test TEST "
            "--kind attentive; or name its folder."
        )
    tensors, metadata = read_tensors(file)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{file} holds no attentive probe (format {metadata.get('format')}).")
    config = config_of(metadata, PoolingConfig, file=file)
    if config.encoder != encoder:
        raise UserError(
            f"{file} was fitted on encoder {config.encoder[:12]}, not on {encoder[:12]}. Probe this encoder, or give "
            "the one that belongs to it."
        )
    return model_with(lambda: AttentivePooling(config), tensors, file=file)
