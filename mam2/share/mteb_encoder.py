"""Encoders in mteb, the embedding benchmark: `mteb.evaluate(MtebEncoder("RUN"), tasks)` scores one on video tasks.

B videos, V windows of a video, T frames, C channels, S pixels on each side, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mam2.config import UserError
from mam2.data import sampling
from mam2.data.transforms import test_crops
from mam2.trained import open_model


class MtebEncoder:
    """One vector per video: the mean of the features of windows spread over it, sampled as in training.

    mteb calls it, so its methods take mteb's arguments and `**kwargs`; only the metadata needs mteb.

    Args:
        model_name: a source of `load_encoder`: a run's folder, a file, `hf://USER/NAME`.
        revision: revision of a repository on the hub; ignored for other sources.
        device: device of the encoder; None takes the GPU if there is one.
        windows: windows per video.
        stride_frames: distance between frames; None takes that of the run, or 4.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        windows: int = 3,
        stride_frames: int | None = None,
        **kwargs: Any,
    ) -> None:
        if windows < 1:
            raise UserError(f"windows is {windows}; at least 1 is needed.")
        self.name = f"{model_name}@{revision}" if revision and model_name.startswith("hf://") else model_name
        self.model = open_model(self.name, precision="fp32", device=device)
        self.windows = windows
        self.stride_frames = stride_frames or self.model.data.stride_frames

    @torch.inference_mode()
    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors (B, D) of the videos of mteb's loader, whose rows hold a torchcodec `VideoDecoder` as `video`.

        Raises:
            UserError: a row without a video.
        """
        inputs.collate_fn = self.collate
        vectors = [self.vectors(batch).cpu() for batch in inputs]
        return torch.cat(vectors).numpy()

    def collate(self, rows: list[dict[str, Any]]) -> list[Tensor]:
        """The windows of each row's video: uint8 (V, T, 3, S, S)."""
        for row in rows:
            if "video" not in row:
                raise UserError(f"A row of the task holds {', '.join(row)}; only tasks of videos alone can be scored.")
        return [self.clips(row["video"]) for row in rows]

    def clips(self, video: Any) -> Tensor:
        """The windows of an open video: uint8 (V, T, 3, S, S)."""
        shape = self.model.shape
        windows = sampling.views(
            len(video), clip_frames=shape.frames, stride_frames=self.stride_frames, clips=self.windows
        )
        frames_TCHW = video.get_frames_at([index for window in windows for index in window]).data
        (cropped,) = test_crops(frames_TCHW, size=shape.size, crops=1)
        return cropped.unflatten(0, (self.windows, shape.frames))

    def vectors(self, clips: list[Tensor]) -> Tensor:
        """One vector per video, (B, D)."""
        features_BTND = self.model.features(torch.cat(clips))
        return features_BTND.mean(dim=(1, 2)).unflatten(0, (len(clips), self.windows)).mean(dim=1)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of all pairs."""
        first, second = (F.normalize(torch.atleast_2d(torch.as_tensor(x).float())) for x in (embeddings1, embeddings2))
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of each with its own."""
        return F.cosine_similarity(torch.as_tensor(embeddings1).float(), torch.as_tensor(embeddings2).float())

    @property
    def mteb_model_meta(self) -> Any:
        """Metadata that mteb writes with the scores."""
        from mteb.models import ModelMeta

        num_parameters = sum(parameter.numel() for parameter in self.model.encoder.parameters())
        return ModelMeta(
            loader=MtebEncoder,
            name=f"mam2/{self.name.removeprefix('hf://').strip('/').replace('/', '_')}",
            revision=None,
            release_date=None,
            languages=None,
            n_parameters=num_parameters,
            memory_usage_mb=4 * num_parameters / 2**20,
            max_tokens=None,
            embed_dim=self.model.encoder.config.width,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["video"],
        )
