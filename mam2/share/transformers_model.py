"""Encoders and classifiers as models of the transformers library: AutoModel loads the folders of `mam2 push`.

B clips, T frames, C channels, H W pixels, N patches per frame, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from mam2.config import from_json, to_json
from mam2.files import write_text
from mam2.model.classifier import Classifier, Pooling
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weight_file import CLASSIFIER_FILE, ENCODER_FILE, HUB
from mam2.model.weights import save_classifier, save_encoder
from mam2.share.auto_model import CODE, CODE_FILE
from mam2.trained import open_model


class Mam2Config(PreTrainedConfig):  # type: ignore[misc]  # mypy takes transformers for untyped
    """The configuration in a folder that `mam2 push` wrote.

    `encoder` holds the fields of an EncoderConfig, `pooling` is a classifier's. transformers needs the `**kwargs`, here
    and below.
    """

    model_type = "mam2"

    def __init__(self, encoder: dict[str, Any] | None = None, pooling: Pooling = "all", **kwargs: Any) -> None:
        self.encoder = to_json(EncoderConfig()) if encoder is None else encoder
        self.pooling = pooling
        self.hidden_size = self.encoder["width"]
        super().__init__(**kwargs)

    def encoder_config(self) -> EncoderConfig:
        """`encoder` as the dataclass."""
        return from_json(EncoderConfig, self.encoder)


class _Mam2(PreTrainedModel):  # type: ignore[misc]  # likewise
    """Reads and writes weights by this package: strictly, with their checksum, without a second layout."""

    config_class = Mam2Config
    main_input_name = "pixel_values"
    inner: nn.Module

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: Mam2Config | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> Self:
        """The model of a folder, or of USER/NAME on the hub, in eval mode. Other arguments have no effect."""
        source = str(pretrained_model_name_or_path)
        config = config or cls.config_class.from_pretrained(source, revision=revision)
        if not Path(source).is_dir():
            source = f"{HUB}{source}@{revision}" if revision else f"{HUB}{source}"
        model = cls(config, inner=cls._read(source))
        if isinstance(dtype, torch.dtype):
            model.to(dtype)
        if device_map not in (None, "auto"):
            model.to(device_map)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes config.json, the code for AutoModel and the weights; `mam2 push --folder` adds a model card."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.json", self.config.to_json_string())
        write_text(folder / CODE_FILE, CODE)
        self._write(folder)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: modules initialise themselves."""

    @staticmethod
    def _read(source: str) -> nn.Module:
        raise NotImplementedError  # by each model below

    def _write(self, folder: Path) -> None:
        raise NotImplementedError  # by each model below


class Mam2Model(_Mam2):
    """A video encoder: `model(pixel_values).last_hidden_state` (B, T·N, D), `.pooler_output` (B, D), their mean.

    `pixel_values` are (B, T, 3, H, W), uint8 or floats from 0 to 1: the normalisation is inside.
    """

    def __init__(self, config: Mam2Config, inner: VideoEncoder | None = None) -> None:
        super().__init__(config)
        self.inner = inner or VideoEncoder(config.encoder_config())
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Features and their mean."""
        features_BSD = self.inner(pixel_values).flatten(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=features_BSD, pooler_output=features_BSD.mean(dim=1))

    @staticmethod
    def _read(source: str) -> VideoEncoder:
        return open_model(source, device="cpu").encoder

    def _write(self, folder: Path) -> None:
        assert isinstance(self.inner, VideoEncoder), "made by __init__"
        save_encoder(folder / ENCODER_FILE, self.inner)


class Mam2ForVideoClassification(_Mam2):
    """A fine-tuned classifier: `model(pixel_values).logits` (B, K); `config.id2label` names the classes."""

    def __init__(self, config: Mam2Config, inner: Classifier | None = None) -> None:
        super().__init__(config)
        self.inner = inner or Classifier(
            VideoEncoder(config.encoder_config()), config.num_labels, pooling=config.pooling
        )
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ImageClassifierOutput:
        """Logits of the classes."""
        return ImageClassifierOutput(logits=self.inner(pixel_values))

    @staticmethod
    def _read(source: str) -> Classifier:
        return open_model(source, device="cpu").need_classifier()

    def _write(self, folder: Path) -> None:
        assert isinstance(self.inner, Classifier), "made by __init__"
        names: Sequence[str] = [self.config.id2label[number] for number in range(self.config.num_labels)]
        save_classifier(folder / CLASSIFIER_FILE, self.inner, tuple(names))
