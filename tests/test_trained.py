"""open_model: one function decides whose file a source is, which data settings, which dtype and which device."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TINY, write_video

import mam2
from mam2.config import UserError
from mam2.data.clips import Data
from mam2.data.shape import ClipShape, Listing
from mam2.data.windows import clip_between
from mam2.model.classifier import Classifier
from mam2.model.encoder import EncoderConfig, Origin, VideoEncoder
from mam2.model.load import load_encoder
from mam2.model.weights import encoder_digest, load_classifier, save_classifier, save_encoder
from mam2.train.engine import Loop
from mam2.train.finetune import Finetune
from mam2.train.run import open_run
from mam2.trained import open_model

SIZES = EncoderConfig(width=16, depth=1, num_heads=2, frames=4, size=16, patch_size=8)
CLASSES = ("dark", "grey", "bright")


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """The folder of a fine-tuning with settings that are not the defaults."""
    torch.manual_seed(0)
    classifier = Classifier(VideoEncoder(SIZES, origin=Origin(source="timm:vit", licence="mit")), 3, "multilabel")
    torch.nn.init.normal_(classifier.head.weight)
    data = Data(stride_frames=2, decode_short_side=20, num_workers=0)
    config = Finetune(encoder=SIZES, data=data, clips=3, crops=1, loop=Loop(precision="bf16", seed=7))
    folder = tmp_path / "tuned"
    open_run(folder, "finetune", config, resume=False, classes=CLASSES)
    save_classifier(folder / "classifier.safetensors", classifier, CLASSES)
    return folder


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "video.mp4", num_frames=40)


def test_a_fine_tuned_run_brings_its_own_settings(tuned: Path) -> None:
    model = open_model(tuned)
    assert model.file == tuned / "classifier.safetensors"
    assert model.classifier is not None
    assert model.classifier.encoder is model.encoder
    assert (model.classes, model.kind, model.shape) == (CLASSES, "multilabel", ClipShape(4, 16))
    assert model.data == Data(stride_frames=2, decode_short_side=20, num_workers=0)
    assert model.settings is not None
    assert (model.settings.kind, model.settings.views, model.settings.seed) == ("finetune", (3, 1), 7)
    assert (model.dtype, model.device) == (torch.bfloat16, torch.device("cpu"))
    assert model.origin == Origin(source="timm:vit", licence="mit")
    assert model.digest == encoder_digest(load_encoder(tuned))
    assert not model.encoder.training
    assert not model.classifier.training


def test_what_is_asked_for_goes_before_the_run(tuned: Path) -> None:
    assert open_model(tuned, precision="fp32").dtype is None
    assert open_model(tuned, device="meta").device == torch.device("meta")


def test_features_and_scores_are_the_models(tuned: Path) -> None:
    model = open_model(tuned, precision="fp32")
    clip_BTCHW = torch.randint(256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model.features(clip_BTCHW), load_encoder(tuned)(clip_BTCHW))
        logits_BK = load_classifier(tuned)[0](clip_BTCHW)
    torch.testing.assert_close(model.scores(clip_BTCHW), logits_BK.sigmoid())
    half = open_model(tuned)
    assert half.features(clip_BTCHW).dtype == half.scores(clip_BTCHW).dtype == torch.float32
    assert not torch.equal(half.features(clip_BTCHW), model.features(clip_BTCHW)), "the run's bf16 is used"
    assert not model.features(clip_BTCHW).requires_grad


def test_a_clip_is_cut_as_its_training_cuts(tuned: Path, video: Path) -> None:
    model = open_model(tuned)
    assert model.clip(video).shape == (4, 3, 16, 16)
    assert model.clip(video).dtype == torch.uint8
    at_half = clip_between(str(video), model.data, model.shape, start=0.5, end=None)
    assert torch.equal(model.clip(video, start=0.5), at_half)
    wider = replace(model, data=Data(stride_frames=4, decode_short_side=20, num_workers=0))
    assert torch.equal(model.clip(video, start=0.5)[0], wider.clip(video, start=0.5)[0])
    assert not torch.equal(model.clip(video, start=0.5)[1], wider.clip(video, start=0.5)[1])
    whole = model.clip(video, start=0.0, end=40 / 30)
    assert torch.equal(whole, replace(model, data=Data(num_workers=0, decode_short_side=20)).clip(video, end=40 / 30))
    with pytest.raises(UserError, match="has no frames from 9 to its end"):
        model.clip(video, start=9)


def test_a_weight_file_alone_has_the_defaults(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder.safetensors", VideoEncoder(SIZES))
    model = open_model(tmp_path / "encoder.safetensors")
    assert (model.classifier, model.classes, model.settings, model.pretrained) == (None, (), None, None)
    assert (model.data, model.dtype, model.kind) == (Data(), None, "classes")
    with pytest.raises(UserError, match=r"encoder\.safetensors holds no classifier\. Fine-tune one first"):
        model.scores(torch.zeros(1, 4, 3, 16, 16))


def test_a_published_encoder_does_not_take_the_settings_of_the_folder_one_stands_in(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tuned)
    (tmp_path / "plugin.py").write_text(
        "from mam2.model.encoder import EncoderConfig, VideoEncoder\n"
        "def make(file): return VideoEncoder(EncoderConfig(width=16, depth=1, num_heads=2, frames=4, size=16))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = open_model("plugin:make")
    assert (model.settings, model.file, model.data) == (None, None, Data())
    assert model.address == "plugin:make"


def test_a_whole_pre_training_run(tmp_path: Path, videos: Path, run) -> None:
    options = ["--data.root", videos, "--out", tmp_path / "mine", "--loop.duration", "2 steps", *TINY]
    assert run("pretrain", "mam2_tiny", *options, "--optim.warmup", "1 steps")[0] == 0
    model = open_model(tmp_path / "mine", whole=True)
    assert model.pretrained is not None
    assert model.pretrained.objective.encoder is model.encoder
    assert model.digest == open_model(tmp_path / "mine").digest
    assert open_model(tmp_path / "mine").pretrained is None


def test_a_damaged_run_json_is_not_passed_over(tuned: Path) -> None:
    record = json.loads((tuned / "run.json").read_text())
    for damage in ({"data": 3}, {"data": {"stride_frames": "x"}}, {"loop": []}, {"clips": "many"}):
        (tuned / "run.json").write_text(json.dumps(record | {"config": record["config"] | damage}))
        with pytest.raises(UserError, match=r"run\.json"):
            open_model(tuned)


def test_nothing_there() -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_model("/nowhere/at/all")


def test_the_verbs_decide_nothing_of_it_themselves() -> None:
    root = Path(mam2.__file__).parent
    decided = {"load_encoder", "load_classifier", "settings_of", "load_run", "autocast_dtype", "own_file"}
    for folder in ("use", "share", "pictures"):
        for file in (root / folder).rglob("*.py"):
            tree = ast.parse(file.read_text("utf-8"))
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
            assert not names & decided, file


def test_a_listing_is_what_a_configuration_asks_for() -> None:
    data = Data(root="list.csv", split="val", path_column="file", label_column="grade")
    assert data.listing == Listing(root="list.csv", split="val", path_column="file", label_column="grade")
    assert str(ClipShape(16, 224)) == "16 frames of 224²"
    assert ClipShape.of(SIZES) == ClipShape(4, 16)
