"""Importers of public encoders: their tensors are found, renamed, and placed in a VideoEncoder."""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType

from mam2.config import is_plug_in, load_plug_in
from mam2.model.encoder import Origin
from mam2.model.importers.build import Imported, build_encoder, with_clip_shape
from mam2.model.importers.facts import Inflation, Stated, Triple
from mam2.model.importers.own import as_timm, is_of_images
from mam2.model.importers.recognise import find_published
from mam2.model.weights import PUBLIC, load_own_encoder, own_file


def import_encoder(
    source: str,
    *,
    file: str = "",
    inflation: Inflation | None = None,
    num_heads: int = 0,
    mean: Triple | None = None,
    std: Triple | None = None,
    licence: str = "",
) -> Imported:
    """A published encoder as ours; at the start it computes what the published one does (docs/public_weights.md).

    Args:
        source: `timm:NAME`; `hf:NAME` or `hf:FOLDER`; a folder with config.json and weights; or a file of weights, of
            timm, Hugging Face or the original VideoMAE, ViTMAE, DINO, V-JEPA 2, TimeSformer. Pickles are read without
            running anything of them. Or a run of this project: an encoder of single frames is inflated too. Or a
            function of one's own package, `package.module:name`, that takes `file` and returns a VideoEncoder.
        inflation: clips, tubelets and attention; by default 16 frames, the source's size, factorised.
        file, num_heads, licence: as in `Stated`.
        mean, std: `pixel_mean` and `pixel_std` of `Stated`.

    Raises:
        UserError: nothing there, nothing that is known, no network, a tensor that is missing or that nothing is known
            of, sizes that do not fit.
    """
    stated = Stated(file=file, num_heads=num_heads, pixel_mean=mean, pixel_std=std, licence=licence)
    return import_as(source, inflation or Inflation(), stated)


def import_as(source: str, inflation: Inflation, stated: Stated) -> Imported:
    """A published encoder as ours; see `import_encoder`."""
    if is_plug_in(source) and not source.startswith(PUBLIC):
        encoder = load_plug_in(source, FunctionType)(stated.file)
        return with_clip_shape(encoder, inflation, source=source)
    own = None if stated.file else own_file(source)
    if own is not None:
        encoder = load_own_encoder(own)
        if not is_of_images(encoder.config):
            return with_clip_shape(encoder, inflation, source=source)
        tensors, facts = as_timm(encoder, source)
    else:
        tensors, facts = find_published(source, file=stated.file)
    mean, std = stated.pixel_mean, stated.pixel_std
    num_heads = stated.num_heads or facts.num_heads
    facts = replace(facts, num_heads=num_heads, mean=mean or facts.mean, std=std or facts.std)
    if mean and std:
        facts = replace(facts, assumed=tuple(words for words in facts.assumed if "pixel" not in words))
    if stated.licence:
        facts = replace(facts, origin=Origin(source=facts.origin.source, licence=stated.licence))
    return build_encoder(tensors, facts, inflation)
