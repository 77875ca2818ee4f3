"""Probes of a frozen encoder: a linear layer, ridge regression, an attentive pooler or nearest neighbours.

Each video goes through the encoder once. Settings are chosen on held-out training videos; the test videos are used
once, at the end (docs/probes.md).

N videos, V views per video, T frames, S squares that a frame's patches are averaged over, D width, F features,
K classes, B samples.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from mam2 import distributed
from mam2.config import UserError, check, seed_of, to_json
from mam2.data.catalog import Catalog, few_shot, read_catalog
from mam2.data.clips import Data, Sampling
from mam2.data.shape import Listing
from mam2.device import local_device
from mam2.evaluate import Evaluation
from mam2.files import write_text
from mam2.model.classifier import Pooling
from mam2.model.encoder import VideoEncoder
from mam2.model.pooling import AttentiveHead, PoolingConfig, Standardise, save_pooling
from mam2.probe.features import Extraction, Features, extract
from mam2.probe.heads import WEIGHTS, hold_out, knn_votes, linear, probabilities, train_head
from mam2.ridge import ridge
from mam2.train.optim import Optim
from mam2.train.run import settings_of
from mam2.trained import open_model

log = logging.getLogger("mam2")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A complete probe.

    Attributes:
        encoder: a run's folder, an encoder.safetensors file, or a public encoder; by default the first word.
        train: labelled videos: class folders, or a CSV with path,label.
        test: labelled videos with the same classes.
        train_split, test_split: rows of a CSV that has several splits; empty takes all of a CSV with one.
        path_column: name of the CSV's column of paths.
        label_column: name of the CSV's column of labels.
        kind: "linear" layer, "ridge" (a linear layer too, in closed form, so in seconds), "attentive" pooler with one
            learned query and a linear layer, or "knn".
        pooling: all but attentive: "space" averages over space and keeps the frames side by side (T × D features),
            "all" averages over time too (D features).
        baseline: also probe an untrained encoder of the same configuration.
        shots: labelled training videos per class, drawn by the seed; 0 takes all.
        train_clips, train_crops: views per training video, each of them a sample.
        test_clips, test_crops: views per test video, whose probabilities are averaged.
        sampling: "dense" clips, or "uniform" ones for Something-Something V2.
        stride_frames: distance between neighbouring frames of a dense clip; pre-training's.
        token_grid: attentive: a frame's patches are averaged to at most this many squares per side.
        held_out: share of the training videos of each class on which a setting of the sweep is judged.
        trials: number of such shares that a setting is judged on; their mean decides.
        strengths: ridge: penalties of the sweep, as shares of the features' mean square norm.
        learning_rates: learning rates of the sweep, for a batch of 256; the rate used is × batch size / 256.
        weight_decays: weight decays of the sweep.
        epochs: passes over the training samples.
        batch_size: training samples per step.
        neighbours: knn: numbers of neighbours k; the first gives the result, the others are reported too.
        temperature: knn: a neighbour votes with exp(cosine / temperature).
        precision: precision of the encoder; "auto" is bf16 where the hardware is fast at it.
        seed: seed of everything random.
        num_workers: processes that decode; 0 decodes in this one.
        max_bad_share: largest accepted share of unusable videos.

    Raises:
        UserError: a value outside its range.
    """

    encoder: str = ""
    train: str = ""
    test: str = ""
    train_split: str = ""
    test_split: str = ""
    path_column: str = "path"
    label_column: str = "label"
    kind: Literal["linear", "ridge", "attentive", "knn"] = "linear"
    pooling: Pooling = "space"
    baseline: bool = True
    shots: Annotated[int, Ge(0)] = 0
    train_clips: Annotated[int, Ge(1)] = 3
    train_crops: Annotated[int, Ge(1)] = 1
    test_clips: Annotated[int, Ge(1)] = 5
    test_crops: Annotated[int, Ge(1)] = 1
    sampling: Sampling = "dense"
    stride_frames: Annotated[int, Ge(1)] = 4
    token_grid: Annotated[int, Ge(1)] = 7
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.2
    trials: Annotated[int, Ge(1)] = 5
    strengths: tuple[Annotated[float, Gt(0)], ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
    learning_rates: tuple[Annotated[float, Gt(0)], ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    weight_decays: tuple[Annotated[float, Ge(0)], ...] = (1e-2, 1.0)
    epochs: Annotated[int, Ge(1)] = 100
    batch_size: Annotated[int, Ge(1)] = 256
    neighbours: tuple[Annotated[int, Ge(1)], ...] = (20, 10, 100, 200)
    temperature: Annotated[float, Gt(0)] = 0.07
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    num_workers: Annotated[int, Ge(0)] = 2
    max_bad_share: Annotated[float, Ge(0), Le(1)] = 0.05

    def __post_init__(self) -> None:
        check(self, "")
        for name in ("strengths", "learning_rates", "weight_decays", "neighbours"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty; accepted: one or more numbers.")

    def listing(self, root: str, split: str) -> Listing:
        """The train or the test videos, as `read_catalog` takes them."""
        return Listing(root=root, split=split, path_column=self.path_column, label_column=self.label_column)

    def extraction(self, encoder: VideoEncoder, clips: int, crops: int, dtype: torch.dtype | None) -> Extraction:
        """Settings for extracting an encoder's features of so many views per video."""
        squares = min(self.token_grid, *encoder.config.grid) if self.kind == "attentive" else 1
        data = Data(
            sampling=self.sampling,
            stride_frames=self.stride_frames,
            num_workers=self.num_workers,
            max_bad_share=self.max_bad_share,
        )
        return Extraction(data=data, clips=clips, crops=crops, squares=squares, dtype=dtype)


def default_probe(encoder: str) -> Probe:
    """The configuration to probe an encoder with, at the stride of its training, if known."""
    settings = settings_of(encoder)
    config = Probe(encoder=encoder)
    return replace(config, stride_frames=settings.data.stride_frames) if settings else config


def probe_encoder(config: Probe, out: str | Path) -> dict[str, Any]:
    """Probes an encoder and writes probe_KIND.json into `out`; the features are kept in `out`/features.

    An attentive head is kept too, in probe_attentive.safetensors.

    Returns:
        The contents of the file: kind, top1, top5, num_train, num_videos (tested), chosen (the setting), sweep (all
        settings with their held-out results; for knn with their test results), baseline (top1, top5, chosen and sweep
        of the untrained encoder, or None), per_class, confusion, bad_videos, config.

    Raises:
        UserError: no encoder, no or unlabelled videos, unknown classes, too few videos of a class.
    """
    train, test = _videos(config)
    folder = Path(out)
    model = open_model(config.encoder, precision=config.precision)
    encoder = model.encoder
    train_settings = config.extraction(encoder, config.train_clips, config.train_crops, model.dtype)
    test_settings = config.extraction(encoder, config.test_clips, config.test_crops, model.dtype)

    def features_of(encoder: VideoEncoder, title: str) -> tuple[Features, Features]:
        return (
            extract(encoder, train, train_settings, folder / "features", title=f"{title}, train"),
            extract(encoder, test, test_settings, folder / "features", title=f"{title}, test"),
        )

    judged = partial(judge, config, num_classes=len(train.classes), num_heads=encoder.config.num_heads)
    seen, seen_test = features_of(encoder, "features")
    summary, result, head = judged(seen, seen_test)
    baseline = None
    if config.baseline:
        torch.manual_seed(seed_of(config.seed, WEIGHTS))
        baseline = judged(*features_of(VideoEncoder(encoder.config), "untrained encoder"))[0]
    report = {
        "kind": config.kind,
        "num_train": len(seen.label_N),
        "num_videos": len(seen_test.label_N),
        **summary,
        "per_class": result.per_class(train.classes),
        "confusion": result.confusion().tolist(),
        "baseline": baseline,
        "bad_videos": {**seen.bad, **seen_test.bad},
        "config": to_json(config),
    }
    if distributed.rank() == 0:
        if config.kind == "attentive" and head is not None:
            sizes = PoolingConfig(
                encoder=model.digest,
                width=encoder.config.width,
                num_heads=encoder.config.num_heads,
                squares=train_settings.squares,
                classes=train.classes,
            )
            save_pooling(folder / "probe_attentive.safetensors", head, sizes)
        write_text(folder / f"probe_{config.kind}.json", json.dumps(report, indent=2))
    return report


def _videos(config: Probe) -> tuple[Catalog, Catalog]:
    """The training and the test videos."""
    for name in ("encoder", "train", "test"):
        if not getattr(config, name):
            raise UserError(
                f"{name} is empty. Give an encoder (a run's folder or its encoder.safetensors), and labelled videos "
                "(class folders, or a .csv with path,label) to train on and to test on."
            )
    catalog = read_catalog(config.listing(config.train, config.train_split), labelled=True)
    train = few_shot(catalog, shots=config.shots, seed=config.seed)
    test = read_catalog(config.listing(config.test, config.test_split), labelled=True, classes=catalog.classes)
    if both := {item.path for item in train.items} & {item.path for item in test.items}:
        log.warning(f"{len(both)} videos are in both train and test, such as {min(both)}: the result is too high.")
    return train, test


def judge(
    config: Probe, train: Features, test: Features, *, num_classes: int, num_heads: int
) -> tuple[dict[str, Any], Evaluation, nn.Module | None]:
    """Chooses on the training features, fits, and tests once.

    Args:
        train: every view is a sample (linear, ridge, attentive), or the views' mean is one (knn).
        test: the views' probabilities are averaged (linear, ridge, attentive), or their features (knn).
        num_classes: number of classes, K.
        num_heads: attention heads of the attentive pooler.

    Returns:
        {"top1", "top5", "chosen", "sweep"}, the evaluation of the chosen setting, and the head (knn has none).

    Raises:
        UserError: several settings and nothing to judge them on.
    """
    x_NV = samples(train, config)
    test_NV = samples(test, config)
    evaluated = partial(Evaluation, label_B=test.label_N, index_B=test.index_N, bad=test.bad)
    head = None
    if config.kind == "knn":
        vote = partial(knn_votes, x_NV.mean(dim=1), train.label_N, test_NV.mean(dim=1), num_classes=num_classes)
        results = {k: evaluated(vote(k=k, temperature=config.temperature)) for k in config.neighbours}
        sweep = [{"k": k, "top1": result.top(1), "top5": result.top(5)} for k, result in results.items()]
        chosen: dict[str, float] = {"k": config.neighbours[0]}
        result = results[config.neighbours[0]]
    else:
        make = partial(fit_head, config, num_classes=num_classes, num_heads=num_heads)
        sweep, chosen = _choose(config, make, x_NV, train.label_N)
        head = make(x_NV, train.label_N, chosen)
        result = evaluated(probabilities(head, test_NV))
    return {"top1": result.top(1), "top5": result.top(5), "chosen": chosen, "sweep": sweep}, result, head


def samples(features: Features, config: Probe) -> Tensor:
    """The head's input for each view: tokens (N, V, T × S, D) for attentive, else a vector (N, V, F)."""
    x_NVTSD = features.x_NVTSD
    if config.kind == "attentive":
        return x_NVTSD.flatten(2, 3)
    x_NVTD = x_NVTSD.mean(dim=3)
    return x_NVTD.mean(dim=2) if config.pooling == "all" else x_NVTD.flatten(2)


def _choose(
    config: Probe, make: Callable[..., nn.Module], x_NV: Tensor, label_N: Tensor
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The sweep's rows, each a setting with its result on held-out training videos, and the best setting."""
    rates_and_decays = product(config.learning_rates, config.weight_decays)
    settings = [{"learning_rate": rate, "weight_decay": decay} for rate, decay in rates_and_decays]
    if config.kind == "ridge":
        settings = [{"strength": strength} for strength in config.strengths]
    if len(settings) == 1:
        return [], settings[0]
    parts = [hold_out(label_N, share=config.held_out, seed=config.seed, trial=i) for i in range(config.trials)]
    if not parts[0].any():
        raise UserError(
            f"With one training video per class nothing can be held out to judge {len(settings)} settings on. Give one "
            "--learning-rates and one --weight-decays (ridge: one of --strengths), two --shots or more, or --kind knn."
        )
    rows = []
    for number in range(distributed.rank(), len(settings), distributed.world_size()):
        top1 = 0.0
        loss = 0.0
        for held_N in parts:
            head = make(x_NV[~held_N], label_N[~held_N], settings[number])
            p_NK = probabilities(head, x_NV[held_N])
            truth_N = label_N[held_N]
            top1 += (p_NK.argmax(dim=1) == truth_N).float().mean().item() / len(parts)
            loss += F.nll_loss(p_NK.clamp(min=1e-12).log(), truth_N).item() / len(parts)
        rows.append((number, top1, loss))
    rows = sorted(row for part in distributed.gather(rows) for row in part)
    best = max(rows, key=lambda row: (row[1], -row[2]))[0]
    sweep = [{**settings[number], "held_out_top1": top1, "held_out_loss": loss} for number, top1, loss in rows]
    return sweep, settings[best]


def fit_head(
    config: Probe, x_NV: Tensor, label_N: Tensor, setting: dict[str, float], *, num_classes: int, num_heads: int
) -> nn.Module:
    """A head fitted to all views: ridge in closed form, others by AdamW."""
    device = local_device()
    width = x_NV.shape[-1]
    x_B = x_NV.flatten(0, 1)
    label_B = label_N.repeat_interleave(x_NV.shape[1])
    if config.kind == "ridge":
        standardise = Standardise(x_NV)
        layer = ridge(standardise(x_B), label_B, num_classes=num_classes, strength=setting["strength"])
        return nn.Sequential(standardise, layer.float()).to(device).eval()
    torch.manual_seed(seed_of(config.seed, WEIGHTS))
    head = AttentiveHead(width, num_heads, num_classes) if config.kind == "attentive" else linear(width, num_classes)
    model = nn.Sequential(Standardise(x_NV), head).to(device)
    optim = Optim(base_lr=setting["learning_rate"], weight_decay=setting["weight_decay"], min_lr=0, betas=(0.9, 0.999))
    train_head(model, x_B, label_B, optim, epochs=config.epochs, batch_size=config.batch_size, seed=config.seed)
    return model.eval()
