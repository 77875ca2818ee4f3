"""Exported encoders and classifiers give the numbers of the model, and say what they take."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY_ENCODER, mam2

from mam2.config import UserError
from mam2.data.synthetic import render, write_video
from mam2.model.classifier import Classifier
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.load import load_encoder
from mam2.model.weights import load_classifier, save_classifier, save_encoder
from mam2.share import export as exports
from mam2.share.export import ABOUT, export

CONFIGS = {
    "factorised": EncoderConfig(width=16, depth=2, num_heads=2, frames=3, size=16, patch_size=8),
    "rotary": EncoderConfig(
        width=16, depth=2, num_heads=2, frames=3, size=16, patch_size=8, prefix_tokens=2, positions="rotary_space"
    ),
    "joint": EncoderConfig(
        width=16, depth=1, num_heads=2, frames=4, size=16, patch_size=8, tubelet=2, attention="joint", layer_scale=0.1
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """encoder.safetensors and classifier.safetensors of both kinds of attention."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        save_encoder(folder / f"{name}.safetensors", VideoEncoder(config))
        classifier = Classifier(VideoEncoder(config), 3)
        torch.nn.init.normal_(classifier.head.weight)
        save_classifier(folder / f"{name}_classifier.safetensors", classifier, ("run", "jump", "fällt"))
    return folder


def clips(name, number):
    config = CONFIGS[name]
    shape = (number, config.frames, 3, config.size, config.size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


def run_onnx(file, clips_BTCHW):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    (found,) = session.run(None, {"clip": clips_BTCHW.numpy()})
    return torch.from_numpy(found)


def run_pt2(file, clips_BTCHW):
    return torch.export.load(file).module()(clips_BTCHW).detach()


def about(file):
    import onnxruntime

    if file.suffix == ".onnx":
        return onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
    extra = {ABOUT: ""}
    torch.export.load(file, extra_files=extra)
    return json.loads(extra[ABOUT])


RUN = {"onnx": (run_onnx, ".onnx"), "pt2": (run_pt2, ".pt2")}


@pytest.mark.parametrize("format", RUN)
@pytest.mark.parametrize("name", CONFIGS)
def test_an_encoder(files, tmp_path, name, format):
    run, suffix = RUN[format]
    source, out = files / f"{name}.safetensors", tmp_path / f"new/encoder{suffix}"
    done = export(source, out, format=format)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    config = CONFIGS[name]
    assert done.takes == (
        f"clip: uint8 (batch, {config.frames}, 3, 16, 16), RGB from 0 to 255; any batch, exactly {config.frames} "
        "frames of 16 × 16 pixels"
    )
    shape = (config.tubelets, 4, 16)
    assert done.gives == f"features: float32 (batch, {', '.join(map(str, shape))})"
    assert 0 <= done.difference < 1e-5 < done.largest
    assert about(out)["input"] == done.takes
    encoder = load_encoder(source)
    for number in (1, 2, 5):
        with torch.no_grad():
            expected = encoder(clips(name, number))
        assert expected.shape == (number, *shape)
        torch.testing.assert_close(run(out, clips(name, number)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("format", RUN)
def test_one_vector_per_clip(files, tmp_path, format):
    run, suffix = RUN[format]
    done = export(files / "joint.safetensors", tmp_path / f"x{suffix}", format=format, pool="mean")
    assert done.gives == "mean: float32 (batch, 16)"
    with torch.no_grad():
        expected = load_encoder(files / "joint.safetensors")(clips("joint", 4)).mean(dim=(1, 2))
    torch.testing.assert_close(run(done.file, clips("joint", 4)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("format", RUN)
def test_a_classifier(files, tmp_path, format):
    run, suffix = RUN[format]
    source = files / "factorised_classifier.safetensors"
    classifier, classes = load_classifier(source)
    with torch.no_grad():
        logits = classifier(clips("factorised", 4))
    done = export(source, tmp_path / f"p{suffix}", format=format)
    assert done.gives == "probabilities: float32 (batch, 3)"
    assert json.loads(about(done.file)["classes"]) == list(classes) == ["run", "jump", "fällt"]
    torch.testing.assert_close(run(done.file, clips("factorised", 4)), logits.softmax(dim=1), atol=1e-5, rtol=1e-4)
    done = export(source, tmp_path / f"l{suffix}", format=format, head="logits")
    torch.testing.assert_close(run(done.file, clips("factorised", 4)), logits, atol=1e-5, rtol=1e-4)
    done = export(source, tmp_path / f"e{suffix}", format=format, head="none", pool="mean")
    assert done.gives == "mean: float32 (batch, 16)"


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="AOTInductor needs a C++ compiler")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_compiled_package(files, tmp_path, name):
    done = export(files / f"{name}_classifier.safetensors", tmp_path / "x.pt2", format="aoti")
    run = torch._inductor.aoti_load_package(str(done.file))
    assert run.get_metadata()["input"] == done.takes
    with torch.no_grad():
        expected = load_classifier(files / f"{name}_classifier.safetensors")[0](clips(name, 5)).softmax(dim=1)
        torch.testing.assert_close(run(clips(name, 5)), expected, atol=1e-5, rtol=1e-4)


def test_another_clip_than_the_rendered_one(files, tmp_path):
    write_video(tmp_path / "v.mp4", render("up", seed=3, num_frames=30, size=32))
    done = export(files / "joint.safetensors", tmp_path / "x.pt2", format="pt2", clip=tmp_path / "v.mp4")
    assert (done.clip, done.difference) == (str(tmp_path / "v.mp4"), 0)
    with pytest.raises(UserError, match=r"nowhere\.mp4"):
        export(files / "joint.safetensors", tmp_path / "y.pt2", format="pt2", clip="nowhere.mp4")
    assert not (tmp_path / "y.pt2").exists()


def test_other_numbers_are_refused(files, tmp_path, monkeypatch):
    """A file whose numbers differ is not left behind, and the one that was there before is."""
    out = tmp_path / "x.pt2"
    out.write_text("before")
    monkeypatch.setattr(exports, "load_exported", lambda format, part: lambda x: torch.zeros(len(x), 16))
    with pytest.raises(UserError, match=r"differ by up to .*accepted: 0\.001 of that\. .*x\.pt2 is not written"):
        export(files / "joint.safetensors", out, format="pt2", pool="mean")
    monkeypatch.setattr(exports, "load_exported", lambda format, part: lambda x: torch.full((len(x), 16), torch.nan))
    with pytest.raises(UserError, match=r"differ by up to nan"):
        export(files / "joint.safetensors", out, format="pt2", pool="mean")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt2"]
    assert out.read_text() == "before"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "onx"}, r"format is 'onx'; accepted: onnx, pt2, aoti"),
        ({"out": "x.onnx"}, r"x\.onnx can't hold pt2\. Give a name that ends in \.pt2"),
        ({"head": "softmax"}, r"head is 'softmax'; accepted: auto, none, probabilities, logits"),
        ({"head": "logits"}, r"joint\.safetensors holds no classifier"),
        ({"pool": "max"}, r"pool is 'max'; accepted: none, mean"),
        ({"source": "joint_classifier.safetensors", "pool": "mean"}, r"A classifier pools by itself; .*head 'none'"),
        ({"device": "cuda"}, r"The device is cuda, but a file of the format pt2 runs on any device"),
        ({"device": "cuda", "format": "aoti"}, r"The device is cuda, but there is no GPU"),
        ({"tolerance": -1.0}, r"tolerance is -1\.0; accepted: at least 0, below 1"),
        ({"source": "nothing.safetensors"}, r"nothing\.safetensors does not exist"),
    ],
)
def test_wrong_arguments(files, tmp_path, arguments, message):
    given = {"source": "joint.safetensors", "out": "x.pt2", "format": "pt2"} | arguments
    with pytest.raises(UserError, match=message):
        export(files / given.pop("source"), tmp_path / given.pop("out"), **given)


def test_what_is_not_installed_is_named(files, tmp_path, monkeypatch):
    monkeypatch.setattr(exports.importlib.util, "find_spec", lambda name: None if "onnx" in name else name)
    with pytest.raises(
        UserError, match=r"needs onnx, onnxscript, onnxruntime\. Install it: pip install 'mam2\[export\]'"
    ):
        export(files / "joint.safetensors", tmp_path / "x.onnx", format="onnx")
    monkeypatch.setattr(exports.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"AOTInductor needs a C\+\+ compiler"):
        export(files / "joint.safetensors", tmp_path / "x.pt2", format="aoti")


def test_the_snippets_of_the_page(files, tmp_path, monkeypatch):
    export(files / "joint.safetensors", tmp_path / "vector.onnx", format="onnx", pool="mean")
    export(files / "joint_classifier.safetensors", tmp_path / "classifier.pt2", format="pt2")
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
    assert names["vectors"].shape == (2, 16)
    assert names["best"][0] == names["best"][1]
    assert names["best"][0] in ("run", "jump", "fällt")


def test_the_command_says_what_goes_in_and_nothing_else(videos, tmp_path):
    tuned = tmp_path / "tuned"
    short = ("--init", "scratch", "--loop.duration", "1 steps")
    done = mam2("finetune", "finetune_tiny", *short, "--data.root", videos, "--out", tuned, *TINY_ENCODER)
    assert done.returncode == 0, done.stderr
    clip = videos / "left" / "0.mp4"
    done = mam2("export", tuned, "--format", "onnx", "--out", tmp_path / "x.onnx", "--clip", clip)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "Input  clip: uint8 (batch, 3, 3, 16, 16), RGB from 0 to 255; any batch, exactly 3 frames"
    )
    assert lines[1] == "Output probabilities: float32 (batch, 2)."
    assert lines[2].startswith("Largest difference from the model: ")
    assert lines[2].endswith(f"on {clip}.")
    assert lines[3].startswith(f"Wrote {tmp_path}/x.onnx in ")
    assert np.allclose(run_onnx(tmp_path / "x.onnx", clips("factorised", 2)).sum(dim=1), 1)
    assert about(Path(tmp_path / "x.onnx"))["stride_frames"] == "4"
    done = mam2("export", tuned, "--format", "onnx", "--out", tmp_path / "x.pt2")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
