"""Several classes per video, and numbers: lists, losses, tests; class weights and frozen blocks."""

import csv
import json
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY_ENCODER, mam2
from torch import nn

from mam2.config import UserError, from_json, to_json
from mam2.data.catalog import Catalog, Item, few_shot, read_catalog
from mam2.data.loader import Batch
from mam2.data.shape import Listing
from mam2.evaluate import average_precision, errors_of
from mam2.files import read_tensors, write_tensors
from mam2.model.classifier import Classifier
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import load_classifier, save_classifier
from mam2.share.export import export
from mam2.share.hub import push
from mam2.studies.compare import compared
from mam2.train.finetune import Finetune, Task, build_classifier, finetuning_loss, in_units, task_of
from mam2.train.optim import make_optimizer

TINY = EncoderConfig(width=16, depth=2, num_heads=2, frames=2, size=8, patch_size=4)
PLAIN = Finetune(encoder=TINY, mixup=0, cutmix=0, label_smoothing=0, init="scratch")


@pytest.fixture
def listed(videos, tmp_path):
    """Writes a list of the eight videos with these labels."""
    paths = sorted(videos.rglob("*.mp4"))

    def write(labels, name="list.csv", column="label"):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([("path", column), *zip(paths, labels, strict=False)])
        return tmp_path / name

    return write


SEVERAL = ["run;jump", "run", "", "jump | fall", "fall", "run; fall", "jump", "run"]
NUMBERS = ["1.5", "-2", "3", "4.25", "0", "1", "2", "10"]


def targets(catalog):
    return [item.target for item in catalog.items]


def test_a_list_with_several_classes(listed, caplog):
    caplog.set_level("INFO", logger="mam2")
    catalog = read_catalog(Listing(root=listed(SEVERAL)), labelled=True, kind="auto")
    assert (catalog.kind, catalog.classes) == ("multilabel", ("fall", "jump", "run"))
    assert targets(catalog)[:4] == [(0, 1, 1), (0, 0, 1), (0, 0, 0), (1, 1, 0)]
    assert {item.label for item in catalog.items} == {None}
    assert "videos have several classes each, such as 'run;jump'" in caplog.text
    assert "1 of 8 videos have no label: they count as none of the classes" in caplog.text
    known = read_catalog(
        Listing(root=listed(["run", "jump"])), labelled=True, kind="multilabel", classes=catalog.classes
    )
    assert targets(known) == [(0, 0, 1), (0, 1, 0)], "one class each is a case of several"
    with pytest.raises(UserError, match=r"line 2: 'jmup' is not a known class\. Did you mean jump"):
        read_catalog(Listing(root=listed(["jmup"])), labelled=True, kind="multilabel", classes=catalog.classes)
    with pytest.raises(UserError, match=r"names no class at all"):
        read_catalog(Listing(root=listed([";", "|"])), labelled=True, kind="auto")


def test_a_list_with_numbers(listed, caplog):
    caplog.set_level("INFO", logger="mam2")
    catalog = read_catalog(
        Listing(root=listed(NUMBERS, column="grade"), label_column="grade"), labelled=True, kind="auto"
    )
    assert (catalog.kind, catalog.classes) == ("regression", ("grade",))
    assert targets(catalog) == [(float(label),) for label in NUMBERS]
    assert "the labels are numbers, such as 1.5" in caplog.text
    with pytest.raises(UserError, match=r"line 3: the label 'x' is no number, as the others are\. Correct it"):
        read_catalog(Listing(root=listed(["1.5", "x"])), labelled=True, kind="regression")
    with pytest.raises(UserError, match=r"line 2 has no label"):
        read_catalog(Listing(root=listed(["", "1.5"])), labelled=True, kind="regression")


@pytest.mark.parametrize("labels", [["0", "1", "1"], ["1.0", "2.0"], ["a", "1.5"], ["inf", "1.5"], ["a-b", "c"]])
def test_lists_of_one_class_each_stay_what_they_were(listed, labels):
    assert read_catalog(Listing(root=listed(labels)), labelled=True, kind="auto").kind == "classes"


def test_what_a_list_must_be_can_be_said(listed, videos):
    assert read_catalog(Listing(root=listed(SEVERAL[:2])), labelled=True, kind="classes").classes == ("run", "run;jump")
    assert targets(read_catalog(Listing(root=listed(["3", "5"])), labelled=True, kind="regression")) == [(3,), (5,)]
    assert read_catalog(Listing(root=videos), labelled=True, kind="auto").kind == "classes"
    with pytest.raises(UserError, match=r"is a folder: its labels are classes, not regression\. Give a \.csv"):
        read_catalog(Listing(root=videos), labelled=True, kind="regression")
    several = read_catalog(Listing(root=listed(SEVERAL)), labelled=True, kind="multilabel")
    assert few_shot(several, shots=0, seed=0) is several
    with pytest.raises(UserError, match=r"but the labels are multilabel\. Leave shots out"):
        few_shot(several, shots=2, seed=0)


def test_average_precision():
    def precision(scores, truths):
        return average_precision(torch.tensor(scores), torch.tensor(truths, dtype=torch.bool))

    assert precision([0.9, 0.8, 0.7], [1, 1, 0]) == 1
    assert precision([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1]) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert precision([0.1, 0.2], [0, 0]) is None
    assert precision([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0]) == 0.25, "equal scores are no order"
    assert precision([0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1]) == 0.25
    assert precision([0.9, 0.5, 0.5], [1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)


def test_errors_of_numbers():
    found = errors_of(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 3.0, 2.0]))
    assert found == {"mae": pytest.approx(4 / 3), "rmse": pytest.approx(math.sqrt(10 / 3)), "r2": pytest.approx(-4)}
    assert errors_of(torch.ones(2), torch.ones(2)) == {"mae": 0, "rmse": 0, "r2": None}


def catalog_of(kind, values):
    if kind == "classes":
        items = [Item(path=str(i), label=value) for i, value in enumerate(values)]
        return Catalog(items=tuple(items), classes=("a", "b", "c"))
    items = [Item(path=str(i), label=None, target=value) for i, value in enumerate(values)]
    return Catalog(items=tuple(items), classes=("a", "b")[: len(values[0])], kind=kind)


def test_weights_of_rare_classes():
    weighted = Finetune(class_weights=True)
    weight = task_of(weighted, catalog_of("classes", [0, 0, 0, 1])).weight_K
    assert weight.tolist()[:2] == pytest.approx([4 / (2 * 3), 4 / 2])
    counts = torch.tensor([3, 1])
    assert (counts * weight[:2]).sum() / 4 == 1, "1 on average over the videos"
    several = catalog_of("multilabel", [(1.0, 0.0)] * 3 + [(0.0, 1.0)])
    assert task_of(weighted, several).weight_K.tolist() == pytest.approx([1 / 3, 3])
    never = catalog_of("multilabel", [(1.0, 0.0)] * 1000)
    assert task_of(weighted, never).weight_K.tolist() == pytest.approx([1 / 100, 100])
    assert task_of(Finetune(), several).weight_K is None
    with pytest.raises(UserError, match=r"Numbers have no class weights"):
        task_of(weighted, catalog_of("regression", [(1.0,), (2.0,)]))
    with pytest.raises(UserError, match=r"All 2 labels are 3: there is nothing to learn"):
        task_of(Finetune(), catalog_of("regression", [(3.0,), (3.0,)]))


def batch_of(label_B):
    size = len(label_B)
    clip = torch.randint(256, (size, 2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(clip_BTCHW=clip, label_B=label_B, sample_B=torch.arange(size))


def model_of(num_classes, kind):
    torch.manual_seed(0)
    classifier = Classifier(VideoEncoder(TINY), num_classes, kind)
    nn.init.normal_(classifier.head.weight)
    return classifier.eval()


def test_the_loss_of_several_classes():
    label = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    task = Task(kind="multilabel", num_classes=2, weight_K=torch.tensor([2.0, 0.5]))
    model, batch = model_of(2, "multilabel"), batch_of(label)
    losses = finetuning_loss(Finetune(encoder=TINY, mixup=0, cutmix=0, label_smoothing=0.2), task)(model, batch, 0)
    p = model(batch.clip_BTCHW).sigmoid()
    soft = label * 0.8 + 0.1
    plain = -(torch.tensor([2.0, 0.5]) * soft * p.log() + (1 - soft) * (1 - p).log()).mean()
    torch.testing.assert_close(losses.total, plain)
    assert losses.parts == {"binary_cross_entropy": losses.total.detach()}
    mixed = finetuning_loss(Finetune(encoder=TINY, mixup=0.8, cutmix=0, label_smoothing=0), task)(model, batch, 0)
    assert mixed.total != losses.total


def test_the_loss_of_numbers():
    label = torch.tensor([[10.0], [16.0]])
    model, batch = model_of(1, "regression"), batch_of(label)
    losses = finetuning_loss(PLAIN, Task(kind="regression", num_classes=1, mean=12, std=4))(model, batch, 0)
    torch.testing.assert_close(losses.total, (model(batch.clip_BTCHW) - (label - 12) / 4).square().mean())
    assert losses.parts == {"squared_error": losses.total.detach()}


def test_the_loss_of_weighted_classes():
    model, batch = model_of(3, "classes"), batch_of(torch.tensor([0, 2]))
    weight = torch.tensor([1.0, 5.0, 3.0])
    losses = finetuning_loss(PLAIN, Task(kind="classes", num_classes=3, weight_K=weight))(model, batch, 0)
    each = F.cross_entropy(model(batch.clip_BTCHW), batch.label_B, reduction="none")
    torch.testing.assert_close(losses.total, (each * weight[batch.label_B]).mean())


def test_numbers_are_saved_in_their_own_units(tmp_path):
    model, clip = model_of(1, "regression"), batch_of(torch.zeros(2, 1)).clip_BTCHW
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(clip) * 4 + 12
    with in_units(model, Task(kind="regression", num_classes=1, mean=12, std=4)):
        save_classifier(tmp_path / "c.safetensors", model, ("grade",))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "training goes on"
    saved, classes = load_classifier(tmp_path / "c.safetensors")
    assert (saved.kind, classes) == ("regression", ("grade",))
    torch.testing.assert_close(saved(clip), expected)
    tensors, metadata = read_tensors(tmp_path / "c.safetensors")
    write_tensors(tmp_path / "c.safetensors", tensors, metadata | {"labels": "many"})
    with pytest.raises(UserError, match=r"is damaged: it states the labels 'many'; accepted: classes, multilabel"):
        load_classifier(tmp_path / "c.safetensors")


@pytest.mark.parametrize("freeze", [0, 1, 2])
def test_frozen_blocks_stay_as_they_were(freeze):
    config = Finetune(encoder=TINY, mixup=0, cutmix=0, init="scratch", freeze=freeze)
    model = build_classifier(config, num_classes=3)
    nn.init.normal_(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, config.optim)
    finetuning_loss(config, Task(kind="classes", num_classes=3))(
        model, batch_of(torch.tensor([0, 2])), 0
    ).total.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    frozen = [f"encoder.blocks.{i}." for i in range(freeze)]
    frozen += ["encoder.patch_embed.", "encoder.positions."] if freeze else []
    assert not [name for name in changed if name.startswith(tuple(frozen))]
    assert {"head.weight", "norm.weight"} <= changed
    for i in range(freeze, 2):
        assert f"encoder.blocks.{i}.mlp.0.weight" in changed
    assert ("encoder.patch_embed.weight" in changed) == (not freeze)


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match=r"freeze is 3; the encoder has 2 blocks"):
        Finetune(encoder=TINY, freeze=3)
    with pytest.raises(UserError, match=r"labels is 'many'; accepted"):
        Finetune(labels="many")
    assert from_json(Finetune, to_json(Finetune(labels="regression"))).labels == "regression"


def finetuned(root, out, *options):
    short = ("--init", "scratch", "--loop.duration", "2 steps", "--clips", "2", "--crops", "1")
    done = mam2("finetune", "finetune_tiny", *short, "--data.root", root, "--out", out, *TINY_ENCODER, *options)
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_with_several_classes(listed, tmp_path):
    root, run = listed(SEVERAL), tmp_path / "run"
    done = finetuned(root, run, "--class-weights", "--freeze", "1")
    assert "8 videos with any of 3 classes each" in " ".join(done.stderr.split())
    assert "binary_cross_entropy" in (run / "log.jsonl").read_text()
    done = mam2("evaluate", run, "--data.root", root)
    assert done.returncode == 0, done.stderr
    assert "mAP" in done.stdout
    report = json.loads((run / "evaluate.json").read_text())
    assert (report["labels"], report["num_videos"], list(report["per_class"])) == (
        "multilabel",
        8,
        ["fall", "jump", "run"],
    )
    assert 0 < report["map"] <= 1
    assert report["map"] == pytest.approx(sum(report["per_class"].values()) / 3)
    assert not (run / "confusion.png").exists()
    done = mam2("predict", run, root, "--out", tmp_path / "p.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert len(rows) == 24
    assert all(0 < float(row["score"]) < 1 for row in rows)
    assert sum(float(row["score"]) for row in rows[:3]) != pytest.approx(1, abs=1e-3), (
        "each has a probability of its own"
    )
    assert export(run, tmp_path / "x.pt2", format="pt2").gives == "probabilities: float32 (batch, 3)"
    push(run, "ada/several", folder=tmp_path / "hub")
    assert json.loads((tmp_path / "hub/config.json").read_text())["problem_type"] == "multi_label_classification"
    assert "| fine-tuned, 2 × 1 views | 8 | mAP " in (tmp_path / "hub/README.md").read_text()
    head, line = compared([run])
    assert (head[3], line[3]) == ("mAP", f"{100 * report['map']:.1f}")


def test_a_run_with_numbers(listed, tmp_path):
    root, run = listed(NUMBERS), tmp_path / "run"
    finetuned(root, run)
    done = mam2("evaluate", run, "--data.root", root)
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "evaluate.json").read_text())
    assert report["labels"] == "regression"
    mean = sum(map(float, NUMBERS)) / 8
    spread = sum(abs(float(label) - mean) for label in NUMBERS) / 8
    assert report["mae"] == pytest.approx(spread, rel=0.2), "so few steps predict the mean"
    assert report["r2"] == pytest.approx(0, abs=0.2)
    head, line = compared([run])
    assert (head[3], float(line[3])) == ("R²", pytest.approx(report["r2"], rel=5e-3))
    done = mam2("predict", run, root, "--out", tmp_path / "p.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["label"] * 8
    assert [float(row["score"]) for row in rows] == pytest.approx([mean] * 8, abs=1)
    assert export(run, tmp_path / "x.pt2", format="pt2").gives == "numbers: float32 (batch, 1)"
    done = mam2("finetune", "finetune_tiny", "--init", "scratch", "--data.root", root, "--out", tmp_path / "x",
                *TINY_ENCODER, "--labels", "classes")  # fmt: skip
    assert done.returncode == 2
    assert "mixes numbers and names" in done.stderr
