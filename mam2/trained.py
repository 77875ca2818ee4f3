"""A trained model from any source, ready to see videos: every command after training begins with `open_model`.

B clips, T frames, C channels, H W pixels, N patches per frame, D width, K classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mam2.config import UserError
from mam2.data.clips import Data, middle_clip
from mam2.data.labels import LabelKind
from mam2.data.shape import ClipShape
from mam2.data.windows import clip_between
from mam2.device import autocast_dtype, local_device, send
from mam2.files import read_metadata
from mam2.masks import MaskConfig
from mam2.model.classifier import Classifier, scores_of
from mam2.model.encoder import Origin, VideoEncoder
from mam2.model.load import load_encoder
from mam2.model.weights import FORMAT_CLASSIFIER, encoder_digest, load_classifier, own_file
from mam2.objectives.contract import Objective
from mam2.targets.maker import TargetMaker
from mam2.train.pretrain import load_run
from mam2.train.run import RunSettings, settings_of


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The whole model of a pre-training run: objective in eval mode, targets with its tokenizer, masks of training."""

    objective: Objective
    targets: TargetMaker
    mask: MaskConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A trained model in use: `open_model` makes one.

    Attributes:
        source: source that it was opened from.
        file: weight file, if this project wrote it; None for a published encoder.
        encoder: the encoder, in eval mode, on `device`.
        classifier: classifier around the same encoder, in eval mode; None for an encoder alone.
        classes: names of the classifier's outputs; empty for an encoder alone.
        pretrained: whole model of a pre-training run, if `open_model` was asked for it.
        data: settings by which its training read videos; the defaults if unknown.
        settings: settings in the run's run.json; None without one.
        dtype: autocast dtype; None means float32.
        device: device of the model.
    """

    source: str
    file: Path | None
    encoder: VideoEncoder
    classifier: Classifier | None
    classes: tuple[str, ...]
    pretrained: Pretrained | None
    data: Data
    settings: RunSettings | None
    dtype: torch.dtype | None
    device: torch.device

    @property
    def shape(self) -> ClipShape:
        """Frames and size of the clips that it was trained on."""
        return ClipShape.of(self.encoder.config)

    @property
    def address(self) -> str:
        """The source, with an absolute path where it is one: for files that name it."""
        return os.path.abspath(self.source) if os.path.exists(self.source) else self.source

    @property
    def kind(self) -> LabelKind:
        """Kind of the classifier's labels; "classes" for an encoder alone."""
        return self.classifier.kind if self.classifier else "classes"

    @property
    def origin(self) -> Origin | None:
        """Published weights that it was made from, with their licence; None: this project's own."""
        return self.encoder.origin

    @cached_property
    def digest(self) -> str:
        """A hash of what decides the encoder's features: its configuration and its weights."""
        return encoder_digest(self.encoder)

    def clip(self, video: str | Path, *, start: float | None = None, end: float | None = None) -> Tensor:
        """A clip of a video as in testing, uint8 (T, 3, H, W): the training's sampling and resize, the centre square.

        Args:
            video: a video file or a folder of frames; `long.mp4#t=12,20` is a segment.
            start: seconds from the first frame; the middle of the video if neither it nor `end` is given.
            end: end of the window that holds the frames, seconds; by default it is as long as a clip.

        Raises:
            UserError: a video that can't be decoded, or that ends before `start`.
        """
        return clip_of(video, self.data, self.shape, start=start, end=end)

    @torch.no_grad()
    def features(self, clip_BTCHW: Tensor) -> Tensor:
        """Features of clips, float32 (B, T, N, D), on the device; with tubelets, T is their number.

        Args:
            clip_BTCHW: uint8 in [0, 255] or floats in [0, 1], on any device.
        """
        with self._autocast():
            features_BTND = self.encoder(send(clip_BTCHW, self.device))
        return features_BTND.float()

    @torch.no_grad()
    def scores(self, clip_BTCHW: Tensor) -> Tensor:
        """Scores of clips, float32 (B, K), on the device: probabilities, or numbers in regression.

        Args:
            clip_BTCHW: uint8 in [0, 255] or floats in [0, 1], on any device.

        Raises:
            UserError: an encoder without a classifier.
        """
        classifier = self.need_classifier()
        with self._autocast():
            logits_BK = classifier(send(clip_BTCHW, self.device))
        return scores_of(logits_BK.float(), classifier.kind)

    def need_classifier(self) -> Classifier:
        """The classifier; raises UserError if the source has none."""
        if self.classifier is None:
            raise UserError(
                f"{self.source} holds no classifier. Fine-tune one first: mam2 finetune RECIPE --init {self.source} "
                "--out DIR."
            )
        return self.classifier

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)


def clip_of(
    video: str | Path, data: Data, shape: ClipShape, *, start: float | None = None, end: float | None = None
) -> Tensor:
    """A clip as in testing, uint8 (T, 3, H, W): the middle of a video, or a part if start or end (seconds) is given."""
    if start is None and end is None:
        return middle_clip(video, data, shape)
    return clip_between(str(video), data, shape, start=start or 0.0, end=end)


def open_model(
    source: str | Path,
    *,
    precision: str = "",
    device: str | torch.device | None = None,
    whole: bool = False,
) -> Trained:
    """A trained model from any source, ready to see videos.

        model = mam2.open_model("runs/tuned")
        clip = model.clip("video.mp4")
        features, scores = model.features(clip[None]), model.scores(clip[None])

    Args:
        source: a run's folder, an encoder.safetensors or classifier.safetensors file, `hf://USER/NAME`; or a published
            encoder as `import_encoder` takes it, such as `timm:NAME`.
        precision: "fp32", "bf16" or "auto", which is bf16 where the hardware is fast at it; empty is that of its run,
            "auto" without a run.
        device: device of the model; by default this process's GPU if there is one.
        whole: load the objective and the targets of a pre-training run too, where the source is one.

    Raises:
        UserError: nothing there, a damaged file, weights that are not finite, or a published encoder that is not known.
    """
    place = local_device() if device is None else torch.device(device)
    settings = settings_of(source)
    classifier = None
    classes: tuple[str, ...] = ()
    pretrained = None
    file = None
    if whole and settings is not None and settings.kind == "pretrain" and Path(source).is_dir():
        objective, targets, config = load_run(source, device=place)
        pretrained = Pretrained(objective=objective, targets=targets, mask=config.mask)
        encoder = objective.encoder
    else:
        file = own_file(source)
        if file is not None and file.exists() and read_metadata(file).get("format") == FORMAT_CLASSIFIER:
            classifier, classes = load_classifier(file)
            encoder = classifier.to(place).encoder
        else:
            encoder = load_encoder(source).to(place)
    wanted = precision or (settings.precision if settings else "auto")
    return Trained(
        source=str(source),
        file=file,
        encoder=encoder,
        classifier=classifier,
        classes=classes,
        pretrained=pretrained,
        data=settings.data if settings else Data(),
        settings=settings,
        dtype=autocast_dtype(wanted, place, width=encoder.config.width),
        device=place,
    )
