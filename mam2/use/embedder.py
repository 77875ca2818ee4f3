"""The network that makes vectors of windows: an encoder with its pooling, or a classifier.

B windows, T frames or tubelets, N patches per frame, D width, F numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from mam2.config import UserError, check
from mam2.data.clips import Data
from mam2.data.shape import Listing
from mam2.data.windows import Length, Planned, WindowBatch, plan_windows
from mam2.device import send
from mam2.files import digest
from mam2.model.pooling import AttentivePooling, load_pooling
from mam2.trained import Trained, open_model
from mam2.use.features_file import Identity, Pool, Precision, Provenance, check_identity

WINDOWS_AT_ONCE = 16  # decoded by a process together
CLIPS_AT_ONCE = {"cuda": 16, "cpu": 4}  # on the device


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Settings of an embedding.

    Attributes:
        window: length of the sliding windows, `64 frames` or `2.5 s`; empty takes the span of a pre-training clip.
        hop: distance from one window to the next, likewise; empty takes the window's length, so that none overlap.
        pool: "mean" of a clip's features over time and space, D numbers; "frames": mean over space for each tubelet
            in time, T × D numbers; "attentive": attention pooling by `mam2 probe --kind attentive`, D numbers.
        probe: folder of the probe for pool "attentive"; empty takes the one in the run's folder.
        dtype: storage type of the embeddings.
        labelled: write the videos' labels too: the names of class folders, or a list's column.
        split: rows of a CSV that has several splits; empty takes all of a CSV with one.
        path_column: name of the CSV's column of paths.
        label_column: name of the CSV's column of labels.
        precision: precision of the encoder; "auto" is bf16 where the hardware is fast at it.
        num_workers: processes that decode; 0 decodes in this one.

    Raises:
        UserError: a value outside its range.
    """

    window: str = ""
    hop: str = ""
    pool: Pool = "mean"
    probe: str = ""
    dtype: Precision = "float16"
    labelled: bool = False
    split: str = ""
    path_column: str = "path"
    label_column: str = "label"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    num_workers: Annotated[int, Ge(0)] = 2

    def __post_init__(self) -> None:
        check(self, "")
        for length in (self.window, self.hop):
            if length:
                Length.parse(length)
        if self.probe and self.pool != "attentive":
            raise UserError(f"A probe is of pool 'attentive', not of {self.pool!r}. Leave one of the two out.")

    def listing(self, videos: str) -> Listing:
        """The videos, as `read_catalog` takes them."""
        return Listing(root=videos, split=self.split, path_column=self.path_column, label_column=self.label_column)


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A network that makes a vector of each window: an encoder with its pooling, or a classifier.

    `vectors_of` maps clips, uint8 (B, T, 3, size, size) on `device`, to float32 (B, F).
    """

    vectors_of: Callable[[Tensor], Tensor]
    device: torch.device
    provenance: Provenance
    data: Data

    def plan(self, paths: Sequence[str]) -> Iterator[Planned | tuple[str, str]]:
        """The windows of videos; of an unusable one, its path and the reason."""
        identity = self.provenance.identity
        window, hop = Length.parse(identity.window), Length.parse(identity.hop)
        return plan_windows(paths, self.data, window=window, hop=hop, num_frames=identity.frames)

    @torch.no_grad()
    def embed(self, loader: Iterable[WindowBatch]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Places and vectors, float32 (B, F), of clips; one chunk late, so that a GPU does not wait for the copy."""
        num_clips = CLIPS_AT_ONCE[self.device.type]
        before: tuple[tuple[int, ...], Tensor] | None = None
        for batch in loader:
            for first in range(0, len(batch.places), num_clips):
                part = slice(first, first + num_clips)
                now = batch.places[part], self.vectors_of(send(batch.clip_BTCHW[part], self.device))
                if before:
                    yield before[0], before[1].cpu()
                before = now
        if before:
            yield before[0], before[1].cpu()


def load_embedder(source: str, config: Embed) -> Embedder:
    """The encoder of a source, set up by `config`; raises UserError for no encoder, a wrong probe or a short window."""
    model = open_model(source, precision=config.precision)
    head = _head(model, probe=config.probe, pool=config.pool)
    sizes = model.encoder.config
    identity = identity_of(
        model,
        pool=config.pool,
        head=_digest_of(head),
        window=config.window,
        hop=config.hop,
        embedding_dim=sizes.width * (sizes.tubelets if config.pool == "frames" else 1),
        dtype=config.dtype,
    )
    probe = os.path.abspath(config.probe) if config.probe else ""
    provenance = Provenance(identity=identity, source=model.address, probe=probe)
    return _embedder(model, head, provenance, num_workers=config.num_workers)


def load_embedder_of(provenance: Provenance, file: Path, *, source: str = "", num_workers: int = 2) -> Embedder:
    """The encoder that made a features file, to embed in the same way.

    Args:
        provenance: provenance that the file states.
        file: the features file, for messages.
        source: present place of the encoder; empty takes the stated one.
        num_workers: processes that decode; 0 decodes in this one.

    Raises:
        UserError: no encoder, or another one.
    """
    identity = provenance.identity
    try:
        model = open_model(source or provenance.source, precision="auto")
        head = _head(model, probe=provenance.probe, pool=identity.pool)
    except UserError as error:
        raise UserError(f"{error} {file} was made with it: say where it is now, --encoder SOURCE.") from error
    check_identity(file, replace(identity, encoder=model.digest, head=_digest_of(head)))
    return _embedder(model, head, provenance, num_workers=num_workers)


def _embedder(model: Trained, head: AttentivePooling | None, provenance: Provenance, *, num_workers: int) -> Embedder:
    identity = provenance.identity

    def vectors_of(clip_BTCHW: Tensor) -> Tensor:
        features_BTND = model.features(clip_BTCHW)
        if head is not None:
            return head(features_BTND, model.encoder.config.grid)
        return features_BTND.mean(dim=2).flatten(1) if identity.pool == "frames" else features_BTND.mean(dim=(1, 2))

    return Embedder(
        vectors_of=vectors_of,
        device=model.device,
        provenance=provenance,
        data=Data(sampling=identity.sampling, decode_short_side=identity.decode_short_side, num_workers=num_workers),
    )


def _head(model: Trained, *, probe: str, pool: Pool) -> AttentivePooling | None:
    """The head of pool "attentive", on the model's device."""
    if pool != "attentive":
        return None
    return load_pooling(probe or model.source, encoder=model.digest).to(model.device)


def _digest_of(head: AttentivePooling | None) -> str:
    return "" if head is None else digest(head.state_dict())


def identity_of(
    model: Trained, *, pool: Pool, head: str, window: str, hop: str, embedding_dim: int, dtype: Precision
) -> Identity:
    """Identity of the vectors of sliding windows; an empty window is the span of a clip, an empty hop the window.

    Raises:
        UserError: a window with fewer frames than a clip. One in seconds is checked per video.
    """
    shape = model.shape
    length = Length.parse(window) if window else span_of(model.data, shape.frames)
    if length.unit == "frames" and length.value < shape.frames:
        raise UserError(
            f"A window of {length} is shorter than a clip of {shape.frames} frames. Give a longer --window."
        )
    return Identity(
        encoder=model.digest,
        pool=pool,
        head=head,
        window=str(length),
        hop=str(Length.parse(hop) if hop else length),
        frames=shape.frames,
        size=shape.size,
        embedding_dim=embedding_dim,
        dtype=dtype,
        sampling=model.data.sampling,
        decode_short_side=model.data.decode_short_side,
    )


def span_of(data: Data, num_frames: int) -> Length:
    """Length of a dense clip; in seconds if the stride follows the frame rate."""
    frames = num_frames * data.stride_frames
    return Length(frames / data.target_fps, "s") if data.target_fps else Length(frames, "frames")
