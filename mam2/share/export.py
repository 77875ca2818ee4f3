"""Encoders and classifiers as files that run without this package: ONNX, torch.export, AOTInductor.

B clips, T frames, C channels, H W pixels, N patches per frame, D width, K classes.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from mam2.config import UserError, check
from mam2.data.clips import views_of
from mam2.data.synthetic import MOTIONS, render
from mam2.model.classifier import Classifier, scores_of
from mam2.model.encoder import VideoEncoder
from mam2.trained import Trained, open_model
from mam2.version import __version__

Format = Literal["onnx", "pt2", "aoti"]
ExportHead = Literal["auto", "none", "probabilities", "logits"]
ExportPool = Literal["none", "mean"]
ExportDevice = Literal["cpu", "cuda"]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}
ABOUT = "mam2.json"
"""Extra file of a torch.export program with its input and output; the other formats have them as metadata."""

_NEEDED: dict[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "aoti": ()}
_NUM_CLIPS = 3
_LOUD = ("torch.onnx", "torch.export", "torch._inductor", "torch._dynamo", "torch.utils.cpp_extension", "onnxscript")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Settings of an export.

    Attributes:
        format: "onnx"; "pt2", a program of torch.export; or "aoti", compiled for this machine's processor or GPU.
        head: "probabilities" or "logits" of a classifier, or "none" for features; "auto" is probabilities for a
            classifier, else none.
        pool: "none" for features of every patch, (B, T, N, D), or their "mean", (B, D).
        device: device that an aoti package is compiled for; the other formats run anywhere.
        clip: video to compare the file and the model on; by default rendered clips.
        tolerance: largest difference accepted, as a share of the model's largest number.
    """

    format: Format
    head: ExportHead = "auto"
    pool: ExportPool = "none"
    device: ExportDevice = "cpu"
    clip: Path | None = None
    tolerance: Annotated[float, Ge(0), Lt(1)] = 1e-3

    def __post_init__(self) -> None:
        check(self, "")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Result of an export: the file, and its comparison with the model.

    Attributes:
        file: the file.
        takes: description of the input: any number of clips; frames and size are fixed.
        gives: description of the output.
        clip: video of the comparison.
        difference: largest difference between the outputs.
        largest: largest number of the model's own output.
    """

    file: Path
    takes: str
    gives: str
    clip: str
    difference: float
    largest: float


def export(
    source: str | Path,
    out: str | Path,
    *,
    format: Format,
    head: ExportHead = "auto",
    pool: ExportPool = "none",
    device: ExportDevice = "cpu",
    clip: str | Path | None = None,
    tolerance: float = 1e-3,
) -> Exported:
    """Writes an encoder or a classifier as a file that runs without this package, if it gives the model's numbers.

    The input are clips, uint8 (B, T, 3, H, W), RGB from 0 to 255: the normalisation is inside. B is free; T, H and W
    are those of the encoder.

    Args:
        source: a source of `load_encoder` or `load_classifier`.
        out: the file: .onnx, or .pt2 for the other two formats.
        format, head, pool, device, clip, tolerance: as in `Export`.

    Raises:
        UserError: an argument that does not fit, a missing package or compiler, or other numbers than the model's.
    """
    video = None if clip is None else Path(clip)
    config = Export(format=format, head=head, pool=pool, device=device, clip=video, tolerance=tolerance)
    return export_file(source, Path(out), config=config)


def export_file(source: str | Path, out: Path, *, config: Export) -> Exported:
    """Writes a model as a file that runs without this package; see `export`."""
    _check(out, config)
    trained = open_model(source, device="cpu", precision="fp32")
    model = _with_head(trained, head=config.head, pool=config.pool)
    clips_BTCHW, clip_name = _clips(trained, config.clip)
    with torch.no_grad():
        expected = model(clips_BTCHW)
    about = _about(trained, model.gives, expected, clips_BTCHW)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        part = Path(folder) / out.name
        with _quietly(), torch.no_grad():
            _write(config.format, model.to(config.device), clips_BTCHW[:2].to(config.device), part, about)
            run = load_exported(config.format, part)
        with torch.no_grad():
            found = torch.cat([run(clips_BTCHW), run(clips_BTCHW[:1])])  # together, and one alone
        difference = (found - torch.cat([expected, expected[:1]])).abs().max().item()
        largest = expected.abs().max().item()
        if not difference <= config.tolerance * max(largest, 1e-6):
            raise UserError(
                f"The exported file gives other numbers than the model: they differ by up to {difference:.2g}, where "
                f"the model's largest is {largest:.2g}; accepted: {config.tolerance:g} of that. {out} is not "
                "written. Try another format, or a newer PyTorch."
            )
        for path in sorted(Path(folder).iterdir(), key=lambda path: path == part):  # ONNX above 2 GB has two files
            path.replace(out.parent / path.name)
    return Exported(
        file=out, takes=about["input"], gives=about["output"], clip=clip_name, difference=difference, largest=largest
    )


class _Model(nn.Module):
    """An encoder or a classifier with what follows it: uint8 (B, T, 3, H, W) to float32."""

    def __init__(self, inner: VideoEncoder | Classifier, *, gives: str) -> None:
        super().__init__()
        self.inner = inner
        self.gives = gives

    def forward(self, clip: Tensor) -> Tensor:
        found = self.inner(clip)
        if self.gives == "mean":
            return found.mean(dim=(1, 2))
        if self.gives in ("probabilities", "numbers"):
            assert isinstance(self.inner, Classifier), "only a classifier has them"
            return scores_of(found, self.inner.kind)
        return found


def _with_head(trained: Trained, *, head: ExportHead, pool: ExportPool) -> _Model:
    if head == "auto":
        head = "probabilities" if trained.classifier else "none"
    if head == "none":
        return _Model(trained.encoder, gives="features" if pool == "none" else pool).eval()
    if pool != "none":
        raise UserError(f"A classifier pools by itself; leave pool {pool!r} out, or give head 'none' for its encoder.")
    classifier = trained.need_classifier()
    return _Model(classifier, gives="numbers" if classifier.kind == "regression" else head).eval()


def _clips(trained: Trained, clip: Path | None) -> tuple[Tensor, str]:
    """Clips to compare on, uint8 (B, T, 3, H, W): windows of a video, or rendered motions."""
    shape = trained.shape
    if clip is not None:
        return views_of(str(clip), trained.data, shape, clips=_NUM_CLIPS, crops=1).views_VTCHW, str(clip)
    rendered = [render(motion, seed=0, num_frames=shape.frames, size=shape.size) for motion in MOTIONS[:_NUM_CLIPS]]
    return torch.stack(rendered), "rendered clips"


def _about(trained: Trained, gives: str, expected: Tensor, clips_BTCHW: Tensor) -> dict[str, str]:
    """Facts for a user of the file, written into it."""
    frames, _, height, width = clips_BTCHW.shape[1:]
    about = {
        "mam2": __version__,
        "source": trained.source,
        "input": f"clip: uint8 (batch, {frames}, 3, {height}, {width}), RGB from 0 to 255; "
        f"any batch, exactly {frames} frames of {height} × {width} pixels",
        "output": f"{gives}: float32 (batch, {', '.join(map(str, expected.shape[1:]))})",
    }
    if trained.settings:
        about["stride_frames"] = str(trained.data.stride_frames)
    if gives in ("probabilities", "logits", "numbers"):
        about["classes"] = json.dumps(trained.classes, ensure_ascii=False)
    return about


def _check(out: Path, config: Export) -> None:
    format = config.format
    suffix = SUFFIXES[format]
    if out.suffix.lower() != suffix:
        raise UserError(f"{out} can't hold {format}. Give a name that ends in {suffix}.")
    if out.is_dir():
        raise UserError(f"{out} is a folder. Give the name of a file.")
    missing = [name for name in _NEEDED[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"The format {format} needs {', '.join(missing)}. Install it: pip install 'mam2[export]'.")
    if config.device == "cuda" and (format != "aoti" or not torch.cuda.is_available()):
        why = "there is no GPU" if format == "aoti" else f"a file of the format {format} runs on any device"
        raise UserError(f"The device is cuda, but {why}. Leave it out.")
    compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    if format == "aoti" and not any(map(shutil.which, filter(None, compilers))):
        raise UserError("AOTInductor needs a C++ compiler. Install g++ or clang++, or choose the format pt2 or onnx.")


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences the exporters' internal messages: nobody who exports can act on them."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write(format: Format, model: nn.Module, clips_BTCHW: Tensor, part: Path, about: dict[str, str]) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (clips_BTCHW,), dynamic_shapes={"clip": {0: batch}})
    if format == "pt2":
        torch.export.save(program, part, extra_files={ABOUT: json.dumps(about)})
    elif format == "aoti":
        configs = {"aot_inductor.metadata": about}
        torch._inductor.aoti_compile_and_package(program, package_path=str(part), inductor_configs=configs)
    else:
        onnx = torch.onnx.export(
            program,
            dynamo=True,
            dynamic_shapes=({0: "batch"},),  # the name of the axis in the file
            input_names=["clip"],
            output_names=[about["output"].split(":")[0]],
            verbose=False,
        )
        assert onnx is not None, "the dynamo exporter gives a program"
        onnx.model.metadata_props.update(about)
        onnx.save(part)


def load_exported(format: Format, part: Path) -> Callable[[Tensor], Tensor]:
    """A written file as a function on the CPU."""
    if format == "pt2":
        return torch.export.load(part).module()
    if format == "aoti":
        run = torch._inductor.aoti_load_package(str(part))
        device = run.get_metadata()["AOTI_DEVICE_KEY"]
        return lambda clips_BTCHW: run(clips_BTCHW.to(device)).cpu()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
    return lambda clips_BTCHW: torch.from_numpy(session.run(None, {"clip": clips_BTCHW.numpy()})[0])
