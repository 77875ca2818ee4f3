"""Models shared on the hub: folders, model cards, uploads, and what loads them; nothing here needs a network."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub
import pytest
import torch
import yaml
from helpers import mam2
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from torch.utils.data import DataLoader

from mam2.config import UserError, to_json
from mam2.data.clips import Data, views_of
from mam2.data.shape import ClipShape
from mam2.data.video.open import open_video
from mam2.model.classifier import Classifier
from mam2.model.encoder import EncoderConfig, Origin, VideoEncoder
from mam2.model.load import load_encoder
from mam2.model.weights import load_classifier, read_origin, save_classifier, save_encoder
from mam2.recipes import get_recipe
from mam2.share.hub import push
from mam2.share.mteb_encoder import MtebEncoder

CONFIG = EncoderConfig(width=16, depth=1, num_heads=2, frames=4, size=16, patch_size=8, tubelet=2, attention="joint")
CLIP = torch.randint(256, (2, 4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def write_run(folder, config, *, rows, classes=()):
    folder.mkdir()
    kind = "finetune" if classes else "pretrain"
    record = {"kind": kind, "config": to_json(config), "num_videos": 1500, "classes": list(classes), "videos": "x"}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pre-training, and a fine-tuning that starts from it and is tested."""
    folder = tmp_path_factory.mktemp("secret")
    torch.manual_seed(0)
    pretrain = get_recipe("mam2_tiny")
    data = replace(pretrain.data, root=str(folder / "wild videos"))
    row = {"step": 250, "loss": 3.25, "effective_rank": 9.5, "clips_per_second": 8.0, "lr": 1e-3}
    write_run(folder / "mine", replace(pretrain, data=data, encoder=CONFIG), rows=[row])
    save_encoder(folder / "mine/encoder.safetensors", VideoEncoder(CONFIG))
    tuned = replace(get_recipe("finetune_tiny"), init=str(folder / "mine"), encoder=CONFIG)
    rows = [{"step": 1, "loss": 1.5, "accuracy": 0.5, "clips_per_second": 1e3}]
    write_run(folder / "tuned", tuned, rows=rows, classes=("run", "jump"))
    classifier = Classifier(VideoEncoder(CONFIG), 2, pooling="space")
    torch.nn.init.normal_(classifier.head.weight)
    save_classifier(folder / "tuned/classifier.safetensors", classifier, ("run", "jump"))
    test = {"top1": 0.8125, "top5": 1.0, "num_videos": 96, "clips": 5, "crops": 1}
    (folder / "tuned/evaluate.json").write_text(json.dumps(test))
    return folder


def card_of(folder):
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def test_the_folder_of_an_encoder(runs, tmp_path):
    assert push(runs / "mine", "ada/lips", folder=tmp_path / "f", license="cc-by-4.0") == str(tmp_path / "f")
    names = {"README.md", "config.json", "encoder.safetensors", "modeling_mam2.py", "video_preprocessor_config.json"}
    assert {path.name for path in (tmp_path / "f").iterdir()} == names
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "f")(CLIP), load_encoder(runs / "mine")(CLIP))
    header, text = card_of(tmp_path / "f")
    assert header == {
        "license": "cc-by-4.0",
        "library_name": "mam2",
        "pipeline_tag": "feature-extraction",
        "tags": ["mam2", "video", "self-supervised-learning"],
    }
    repeats = get_recipe("mam2_tiny").data.repeats
    batch = get_recipe("mam2_tiny").loop.batch_size
    for line in (
        "# lips",
        "joint attention, 4 frames of 16 × 16 pixels, patches of 2 × 8 × 8.",
        'encoder = mam2.load_encoder("hf://ada/lips")',
        'model = AutoModel.from_pretrained("ada/lips", trust_remote_code=True)',
        "Pre-trained by `mam2` on 1,500 videos, `wild videos`:",
        "- at step 250: loss 3.25, effective rank 9.5;",
        f"- cost: {250 * batch * repeats / 8 / 60:.2g} minutes, at 8 clips per second.",
    ):
        assert line in text
    assert "secret" not in "".join(path.read_text("latin-1") for path in (tmp_path / "f").iterdir()), "the user's paths"
    push(runs / "mine", "ada/lips", folder=tmp_path / "f")
    assert card_of(tmp_path / "f")[0]["license"] == "unknown", "the folder is written again"


def test_the_folder_of_a_classifier(runs, tmp_path):
    push(runs / "tuned", "ada/lips", folder=tmp_path / "f")
    classifier, classes = load_classifier(tmp_path / "f")
    assert classes == ("run", "jump")
    with torch.no_grad():
        assert torch.equal(classifier(CLIP), load_classifier(runs / "tuned")[0](CLIP))
    header, text = card_of(tmp_path / "f")
    assert header["pipeline_tag"] == "video-classification"
    assert header["tags"] == ["mam2", "video", "self-supervised-learning"]
    assert text.index("Pre-trained by `mam2` on") < text.index("Fine-tuned on 1,500 videos")
    assert "starts from `mine`" in text
    assert "| fine-tuned, 5 × 1 views | 96 | top-1 81.2 %, top-5 100.0 % |" in text
    config = json.loads((tmp_path / "f/config.json").read_text())
    assert config["id2label"] == {"0": "run", "1": "jump"}
    assert config["encoder"] == to_json(CONFIG)


HOSTILE = "x`\n---\nlicense: mit\n---\n# head\n| a | <b>[l](m)"


def test_no_text_of_a_run_breaks_the_card(runs, tmp_path):
    shutil.copytree(runs / "mine", tmp_path / "mine")
    record = json.loads((tmp_path / "mine/run.json").read_text())
    record["config"]["init"] = record["config"]["data"]["root"] = record["config"]["data"]["split"] = HOSTILE
    record["config"]["loop"]["duration"] = HOSTILE
    record["config"]["objective"]["is"] = HOSTILE
    (tmp_path / "mine/run.json").write_text(json.dumps(record))
    (tmp_path / "mine/probe").mkdir()
    (tmp_path / "mine/probe/probe_a|<b>\n---.json").write_text(json.dumps({"num_videos": 3, "top1": 0.5}))
    encoder = load_encoder(runs / "mine")
    encoder.origin = Origin(source=HOSTILE, licence=HOSTILE)
    save_encoder(tmp_path / "mine/encoder.safetensors", encoder)
    push(tmp_path / "mine", "ada/lips", folder=tmp_path / "f")
    header, text = card_of(tmp_path / "f")
    assert header["license"] == "other"
    [tag] = header["tags"][3:]
    assert re.fullmatch(r"[\w.-]+", tag)
    text = re.sub(r"```\w+\n.*?\n```", "", text, flags=re.DOTALL)  # blocks of code, which JSON can't close
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        *("# lips", "## Use", "## Training", "## Results", "## Weights that it was made from")
    ]
    assert [line for line in lines if line.startswith("---")] == []
    assert [line for line in lines if line.startswith("| ")][2:] == [
        line for line in lines if line.startswith("| probe")
    ]
    [row] = [line for line in lines if line.startswith("| probe")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4
    plain = re.sub(r"(`+) ?.*?[^`]\1(?!`)", "", text)  # outside spans of code
    assert not re.search(r"(?<!\\)<b>|(?<!\\)\]\(", plain)


def test_the_snippet_of_the_card_runs(runs, tmp_path, monkeypatch):
    push(runs / "tuned", "ada/lips", folder=tmp_path / "f")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **arguments: str(tmp_path / "f"))
    snippet = card_of(tmp_path / "f")[1].split("```python\n")[1].split("```")[0]
    names = {}
    exec(snippet, names)
    assert names["probabilities"].shape == (2, 2)
    assert names["features"].shape == (2, 2, 4, 16)


def test_what_the_weights_say_of_where_they_come_from(runs, tmp_path):
    encoder = load_encoder(runs / "mine")
    encoder.origin = Origin(source="timm:vit_base_patch16_siglip_224.webli", licence="Apache-2.0")
    save_encoder(tmp_path / "e.safetensors", encoder)
    push(tmp_path / "e.safetensors", "ada/lips", folder=tmp_path / "f")
    header, text = card_of(tmp_path / "f")
    assert header["license"] == "apache-2.0"
    assert "- source: `timm:vit_base_patch16_siglip_224.webli`\n- licence: Apache-2.0" in text
    assert "## Training" not in text, "a file by itself has no run"
    assert read_origin(tmp_path / "f/encoder.safetensors") == encoder.origin


AUTO = """
import torch, mam2
from transformers import AutoModel, AutoModelForVideoClassification, AutoVideoProcessor

clip = torch.randint(256, (2, 4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    for folder in ("encoder", "classifier"):
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert not model.training and model.config.hidden_size == 16
        found, features = model(pixel_values=clip), mam2.load_encoder(folder)(clip)
        assert torch.equal(found.last_hidden_state, features.flatten(1, 2))
        torch.testing.assert_close(found.pooler_output, features.mean(dim=(1, 2)))
    tuned = AutoModelForVideoClassification.from_pretrained(folder, trust_remote_code=True)
    classifier, classes = mam2.load_classifier(folder)
    assert torch.equal(tuned(clip).logits, classifier(clip))
    assert type(tuned)(tuned.config).inner.pooling == classifier.pooling == "space"
    assert [tuned.config.id2label[i] for i in range(2)] == list(classes)
    assert tuned.to(torch.bfloat16)(clip).logits.dtype == torch.bfloat16
    tuned.float().save_pretrained("saved")
    again = AutoModelForVideoClassification.from_pretrained("saved", trust_remote_code=True, dtype=torch.float64)
    assert again.dtype == torch.float64
    processor = AutoVideoProcessor.from_pretrained(folder)
    pixels = processor([torch.full((4, 3, 20, 40), 255, dtype=torch.uint8)], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 4, 3, 16, 16) and pixels.min() == pixels.max() == 1
    assert torch.equal(mam2.load_encoder("hf://ada/lips@v1")(clip), mam2.load_encoder("encoder")(clip))
    assert torch.equal(mam2.load_encoder("hf://ada/lips")(clip), mam2.load_encoder("encoder")(clip))
try:
    mam2.load_encoder("hf://ada/other")
except mam2.UserError as error:
    print(error)
"""


def test_transformers_and_the_cache_without_a_network(runs, tmp_path):
    """In a process of its own, as both read their settings when they are imported."""
    push(runs / "mine", "ada/lips", folder=tmp_path / "encoder")
    push(runs / "tuned", "ada/lips", folder=tmp_path / "classifier")
    cached = tmp_path / "home/hub/models--ada--lips"
    commit = "0" * 40
    for name in ("main", "v1"):
        (cached / "refs").mkdir(parents=True, exist_ok=True)
        (cached / "refs" / name).write_text(commit)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / commit).symlink_to(tmp_path / "encoder")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.getcwd()
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", AUTO],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "hf://ada/other can't be loaded: classifier.safetensors or encoder.safetensors was not fetched before, and the "
        "hub can't be reached. Connect, or correct HF_HOME.\n"
    )


def failing(error):
    def fails(*_, **__):
        raise error

    return fails


RESPONSE = SimpleNamespace(headers={}, request=None, status_code=404)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("x"), r"encoder\.safetensors was not fetched before, and the hub can't be reached"),
        (
            RepositoryNotFoundError("x", response=RESPONSE),
            r"no such repository, or it is not open.*hf auth login",
        ),
        (RevisionNotFoundError("x", response=RESPONSE), r"the repository has no revision 'v2'"),
        (OSError("no room"), r"looking for classifier\.safetensors or encoder\.safetensors: no room"),
    ],
)
def test_addresses_that_lead_nowhere(monkeypatch, error, message):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(error))
    with pytest.raises(UserError, match=f"^hf://ada/lips@v2 can't be loaded: .*{message}"):
        load_encoder("hf://ada/lips@v2")


def test_addresses_of_other_things(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *name, **arguments: asked.append((name, arguments)) or tmp_path
    )
    with pytest.raises(UserError, match=r"holds no classifier\.safetensors or encoder\.safetensors\. Name a repo"):
        load_encoder("hf://ada/lips@v2")
    with pytest.raises(UserError, match=r"holds no classifier\.safetensors\. Name a repository"):
        load_classifier("hf://ada/lips")
    files = ["classifier.safetensors", "encoder.safetensors"]
    assert asked == [
        (("ada/lips",), {"revision": "v2", "allow_patterns": files}),
        (("ada/lips",), {"revision": None, "allow_patterns": files[:1]}),
    ]
    with pytest.raises(UserError, match=r"'lips' is no name on the hub; accepted: USER/NAME"):
        load_encoder("hf://lips")
    (tmp_path / "encoder.safetensors").write_text("x")
    with pytest.raises(UserError, match=r"is no safetensors file"):
        load_encoder("hf://ada/lips")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs the package huggingface_hub\. Install it: pip install 'mam2\[hf\]'"):
        load_encoder("hf://ada/lips")


class Api:
    """A stand-in for HfApi."""

    calls: ClassVar[list] = []
    public = False

    def create_repo(self, name, **arguments):
        self.calls.append((name, arguments))
        return f"https://hub/{name}"

    def repo_info(self, name):
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir()), commit_message))


def test_the_upload(runs, monkeypatch):
    monkeypatch.setattr(Api, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push(runs / "mine", "ada/lips", private=True) == "https://hub/ada/lips"
    created, uploaded = Api.calls
    assert created == ("ada/lips", {"private": True, "exist_ok": True})
    names = ["README.md", "config.json", "encoder.safetensors", "modeling_mam2.py", "video_preprocessor_config.json"]
    assert uploaded == ("ada/lips", names, "Push by mam2 0.2.0")
    push(runs / "mine", "ada/lips")
    assert Api.calls[2] == ("ada/lips", {"private": None, "exist_ok": True})


def test_uploads_that_fail(runs, monkeypatch):
    monkeypatch.setattr(Api, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "public", True)
    with pytest.raises(UserError, match=r"ada/lips is there already and public\. Make it private"):
        push(runs / "mine", "ada/lips", private=True)
    assert len(Api.calls) == 1, "nothing is uploaded"
    monkeypatch.setattr(Api, "create_repo", failing(OSError("401 no token")))
    with pytest.raises(UserError, match=r"ada/lips can't be uploaded: 401 no token Log in with `hf auth login`"):
        push(runs / "mine", "ada/lips")


def test_what_can_not_be_shared(runs, tmp_path):
    with pytest.raises(UserError, match=r"'lips' is no name on the hub"):
        push(runs / "mine", "lips", folder=tmp_path / "f")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"own exists and is no folder that `mam2 push` wrote\. Give another --folder"):
        push(runs / "mine", "ada/lips", folder=tmp_path / "own")
    with pytest.raises(UserError, match=r"The license 'all mine' is no identifier"):
        push(runs / "mine", "ada/lips", folder=tmp_path / "f2", license="all mine")
    with pytest.raises(UserError, match=r"nothing/encoder\.safetensors|nothing does not exist"):
        push(tmp_path / "nothing", "ada/lips", folder=tmp_path / "f3")
    assert not (tmp_path / "f2").exists()
    assert not (tmp_path / "f3").exists()
    (tmp_path / "damaged").mkdir()
    bytes_of = bytearray((runs / "mine/encoder.safetensors").read_bytes())
    bytes_of[-1] ^= 1
    (tmp_path / "damaged/encoder.safetensors").write_bytes(bytes_of)
    with pytest.raises(UserError, match=r"is damaged: its contents are not those that were written"):
        push(tmp_path / "damaged", "ada/lips", folder=tmp_path / "f4")
    assert not (tmp_path / "f4").exists()


def test_the_command(runs, tmp_path):
    done = mam2("push", runs / "mine", "ada/lips", "--folder", tmp_path / "f")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1] == f"Next: python -c \"import mam2; mam2.load_encoder('{tmp_path}/f')\""
    done = mam2("push", runs / "mine", "lips")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


class Decoder:
    """A stand-in for torchcodec's VideoDecoder, as mteb's tasks give them."""

    def __init__(self, path):
        self.path = str(path)

    def __len__(self):
        with open_video(self.path) as video:
            return video.num_frames

    def get_frames_at(self, indices):
        with open_video(self.path) as video:
            return SimpleNamespace(data=video.frames(indices))


def test_the_encoder_for_mteb(runs, videos, monkeypatch):
    """Its vectors are the means of the features of the views that this package tests on."""
    encoder = MtebEncoder(str(runs / "mine"), "1", device="cpu", windows=2, stride_frames=2)
    assert encoder.name == str(runs / "mine")
    paths = sorted(videos.rglob("*.mp4"))[:3]
    rows = [{"video": Decoder(path), "label": 0} for path in paths]
    loader = DataLoader(rows, batch_size=2)
    vectors = encoder.encode(loader, task_metadata=None, hf_split="test", hf_subset="default", show_progress_bar=False)
    data, shape = Data(stride_frames=2), ClipShape(4, 16)
    views = [views_of(str(path), data, shape, clips=2, crops=1).views_VTCHW for path in paths]
    with torch.no_grad():
        features = load_encoder(runs / "mine")(torch.cat(views)).mean(dim=(1, 2))
    expected = features.unflatten(0, (3, 2)).mean(dim=1)
    torch.testing.assert_close(torch.from_numpy(vectors), expected)
    cosines = encoder.similarity(vectors, expected[:2])
    assert cosines.shape == (3, 2)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(2))
    torch.testing.assert_close(encoder.similarity_pairwise(vectors, expected), torch.ones(3))
    monkeypatch.setitem(sys.modules, "mteb", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mteb.models", SimpleNamespace(ModelMeta=lambda **fields: fields))
    meta = encoder.mteb_model_meta
    num_parameters = sum(parameter.numel() for parameter in load_encoder(runs / "mine").parameters())
    assert (meta["embed_dim"], meta["modalities"], meta["n_parameters"]) == (16, ["video"], num_parameters)
    with pytest.raises(UserError, match=r"A row of the task holds audio; only tasks of videos alone"):
        encoder.encode(DataLoader([{"audio": 0}], batch_size=1))
    with pytest.raises(UserError, match=r"windows is 0"):
        MtebEncoder(str(runs / "mine"), windows=0)


def test_the_names_of_version_0_1_lead_to_the_files_of_today() -> None:
    old, new = (importlib.import_module(f"mam2.{room}.transformers_model") for room in ("use", "share"))
    assert old.__file__ == new.__file__
    assert old.Mam2Model.__name__ == "Mam2Model"
