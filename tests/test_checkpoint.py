"""What is saved comes back to the bit, only whole checkpoints count, no file can run code. Also a run's log."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mam2 import distributed
from mam2.config import UserError, to_json
from mam2.files import write_tensors, write_text
from mam2.model.classifier import Classifier
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import FORMAT_ENCODER, load_classifier, load_encoder, save_classifier, save_encoder
from mam2.train import checkpoint
from mam2.train.optim import Optim, make_optimizer
from mam2.train.run import FREE_FIELDS, open_run, read_run

TINY = EncoderConfig(width=8, depth=2, num_heads=2, frames=2, size=16, patch_size=8)


class Bomb:
    """A pickle that writes a file when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.canary,)


def trained(seed: int, num_steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small encoder with an optimiser that has been somewhere."""
    torch.manual_seed(seed)
    model = VideoEncoder(TINY)
    optimizer = make_optimizer(model, Optim())
    for _ in range(num_steps):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.rand(2, 2, 3, 16, 16)).square().mean(dim=2).var().backward()
    optimizer.step()


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Checkpoints


def test_model_and_optimizer_come_back_to_the_bit(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    checkpoint.save(tmp_path, model, optimizer, 3, keep=2)
    other, other_optimizer = trained(1)
    assert not same(model, other)
    assert checkpoint.load(tmp_path, other, other_optimizer) == 3
    assert same(model, other)
    saved, loaded = optimizer.state_dict(), other_optimizer.state_dict()
    assert saved["param_groups"] == loaded["param_groups"]
    assert saved["state"].keys() == loaded["state"].keys()
    for number, state in saved["state"].items():
        assert {"step", "exp_avg", "exp_avg_sq"} <= state.keys()
        assert all(torch.equal(value, loaded["state"][number][name]) for name, value in state.items())
    # And they go on alike.
    for each in ((model, optimizer), (other, other_optimizer)):
        torch.manual_seed(5)
        step(*each)
    assert same(model, other)


def test_a_checkpoint_has_three_files(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, *trained(0), 12, keep=1)
    place = tmp_path / "checkpoints" / "step_00000012"
    assert sorted(path.name for path in place.iterdir()) == [
        "model.safetensors",
        "optimizer.pt",
        "state.json",
    ]
    assert json.loads((place / "state.json").read_text()) == {"step": 12}


def test_nothing_saved_is_step_0(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    before, _ = trained(0)
    assert checkpoint.load(tmp_path, model, optimizer) == 0
    assert same(model, before)


def test_machines_that_see_different_folders_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained(0)
    checkpoint.save(tmp_path, model, optimizer, 5, keep=2)
    monkeypatch.setattr(distributed, "gather", lambda value: [value, "no checkpoint"])
    with pytest.raises(UserError, match=r"no checkpoint here, step_00000005 there.*--out that they share"):
        checkpoint.load(tmp_path, model, optimizer)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    for number in (5, 10, 200, 1000):
        checkpoint.save(tmp_path, model, optimizer, number, keep=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000200", "step_00001000"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000200",
        "step_00001000",
    ]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, *trained(0), 5, keep=2)
    model, optimizer = trained(1)
    checkpoint.save(tmp_path, model, optimizer, 5, keep=2)
    other, other_optimizer = trained(2)
    checkpoint.load(tmp_path, other, other_optimizer)
    assert same(model, other)


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    checkpoint.save(tmp_path, model, optimizer, 5, keep=2)
    half = tmp_path / "checkpoints" / ".part_00000010"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"cut sh")
    assert len(checkpoint.checkpoints(tmp_path)) == 1
    assert checkpoint.load(tmp_path, model, optimizer) == 5
    checkpoint.save(tmp_path, model, optimizer, 10, keep=2)  # the next try makes it whole
    assert not half.exists()
    assert checkpoint.load(tmp_path, model, optimizer) == 10


def test_another_architecture_is_named(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    checkpoint.save(tmp_path, model, optimizer, 5, keep=2)
    for other, message in (
        (replace(TINY, depth=3), r"18 missing: blocks\.2\.\S+, .*, \.\.\."),
        (replace(TINY, depth=1), r"unexpected: blocks\.1\."),
        (replace(TINY, frames=4), r"positions\.time_TD \(2, 8\) instead of \(4, 8\)"),
    ):
        encoder = VideoEncoder(other)
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        with pytest.raises(UserError, match=message):
            checkpoint.load(tmp_path, encoder, make_optimizer(encoder, Optim()))
        assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_an_optimizer_file_with_code_is_not_run(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    checkpoint.save(tmp_path, model, optimizer, 5, keep=2)
    canary = tmp_path / "canary"
    torch.save({"state": Bomb(canary), "param_groups": []}, tmp_path / "checkpoints/step_00000005/optimizer.pt")
    with pytest.raises(UserError, match=r"optimizer\.pt can't be read"):
        checkpoint.load(tmp_path, model, optimizer)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_damaged_checkpoint_is_a_users_error(tmp_path: Path, name: str) -> None:
    model, optimizer = trained(0)
    checkpoint.save(tmp_path, model, optimizer, 5, keep=2)
    file = tmp_path / "checkpoints" / "step_00000005" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=name):
        checkpoint.load(tmp_path, model, optimizer)


# Encoders and classifiers


def test_a_loaded_encoder_is_the_saved_one(tmp_path: Path) -> None:
    model, _ = trained(0)
    assert isinstance(model, VideoEncoder)
    save_encoder(tmp_path / "encoder.safetensors", model)
    clip = torch.rand(1, 2, 3, 16, 16)
    for source in (tmp_path, str(tmp_path), tmp_path / "encoder.safetensors"):
        loaded = load_encoder(source)
        assert loaded.config == TINY
        assert not loaded.training
        assert same(loaded, model)
        assert torch.equal(loaded(clip), model.eval()(clip))
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_a_loaded_classifier_is_the_saved_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(VideoEncoder(replace(TINY, drop_path=0.1)), 3).eval()
    save_classifier(tmp_path / "classifier.safetensors", classifier, ("run", "ünlü", "walk"))
    loaded, classes = load_classifier(tmp_path)
    assert classes == ("run", "ünlü", "walk")
    assert same(loaded, classifier)
    assert loaded.encoder.config == classifier.encoder.config
    assert not loaded.training
    # A fine-tuned run gives its own encoder.
    assert same(load_encoder(tmp_path), classifier.encoder)


def test_a_pickle_given_as_an_encoder_is_not_run(tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / "encoder.safetensors"
    for write in (
        lambda: file.write_bytes(pickle.dumps(Bomb(canary))),
        lambda: torch.save({"patch_embed.weight": Bomb(canary)}, file),
    ):
        write()
        for load in (load_encoder, load_classifier):
            with pytest.raises(UserError, match="no safetensors file"):
                load(file)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Bomb(canary)))  # the bomb is live: the checks above can fail
    assert canary.exists()


def test_other_files_are_refused_as_encoders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_encoder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_encoder(tmp_path / "absent.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds no encoder"):
        load_encoder(tmp_path / "other.safetensors")
    model, _ = trained(0)
    assert isinstance(model, VideoEncoder)
    save_encoder(tmp_path / "encoder.safetensors", model)
    with pytest.raises(UserError, match="holds no classifier"):
        load_classifier(tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match="holds no classifier"):
        load_classifier(tmp_path)


def test_an_encoders_tensors_must_fit_its_configuration(tmp_path: Path) -> None:
    model, _ = trained(0)
    metadata = {"format": FORMAT_ENCODER, "config": json.dumps(to_json(replace(TINY, depth=3)))}
    write_tensors(tmp_path / "encoder.safetensors", model.state_dict(), metadata)
    with pytest.raises(UserError, match="another architecture"):
        load_encoder(tmp_path)


# Run folders


@dataclass(frozen=True, kw_only=True)
class FakeData:
    root: str = "videos"
    num_workers: int = 2
    size: int = 224


@dataclass(frozen=True, kw_only=True)
class FakeRun:
    data: FakeData = field(default_factory=FakeData)
    seed: int = 0


def test_a_new_folder_gets_the_whole_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    assert open_run(folder, "pretrain", FakeRun(), resume=False) is False
    config = {"data": {"root": "videos", "num_workers": 2, "size": 224}, "seed": 0}
    found = read_run(folder)
    assert len(found.pop("videos")) == 16
    assert found == {"kind": "pretrain", "config": config, "num_videos": 0, "classes": []}
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    (tmp_path / "empty").mkdir()
    assert open_run(tmp_path / "empty", "pretrain", FakeRun(), resume=True) is False


def test_the_same_run_may_go_on_unless_told_not_to(tmp_path: Path) -> None:
    open_run(tmp_path, "pretrain", FakeRun(), resume=True)
    assert open_run(tmp_path, "pretrain", FakeRun(), resume=True) is True
    with pytest.raises(UserError, match="holds this run already"):
        open_run(tmp_path, "pretrain", FakeRun(), resume=False)


def test_what_does_not_touch_the_numbers_may_change(tmp_path: Path) -> None:
    open_run(tmp_path, "pretrain", FakeRun(), resume=True)
    moved = FakeRun(data=FakeData(num_workers=16, root="/elsewhere"))
    assert open_run(tmp_path, "pretrain", moved, resume=True) is True


def test_a_run_of_an_earlier_version_goes_on_with_the_defaults_of_new_fields(tmp_path: Path) -> None:
    open_run(tmp_path, "pretrain", FakeRun(), resume=True)
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["config"]["data"]["size"], record["config"]["seed"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert open_run(tmp_path, "pretrain", FakeRun(), resume=True) is True
    with pytest.raises(UserError, match=r"differs in seed\."):
        open_run(tmp_path, "pretrain", FakeRun(seed=1), resume=True)


def test_another_run_is_refused_by_field(tmp_path: Path) -> None:
    open_run(tmp_path, "pretrain", FakeRun(), resume=True)
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)  # a run that has saved something
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UserError, match=r"differs in data\.size, seed\."):
        open_run(tmp_path, "pretrain", FakeRun(data=FakeData(size=112), seed=1), resume=True)
    with pytest.raises(UserError, match=r"differs in kind\."):
        open_run(tmp_path, "finetune", FakeRun(), resume=True)
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no run's folder"):
        open_run(tmp_path, "pretrain", FakeRun(), resume=True)
    with pytest.raises(UserError, match="is no run's folder"):
        open_run(tmp_path / "thesis.tex", "pretrain", FakeRun(), resume=True)
    with pytest.raises(UserError, match="is no run's folder"):
        read_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_run_file_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "pre')
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        open_run(tmp_path, "pretrain", FakeRun(), resume=True)


def test_free_fields_are_fields_of_a_run() -> None:
    from mam2.train.finetune import Finetune
    from mam2.train.pretrain import Pretrain

    plain = to_json(Finetune()) | to_json(Pretrain())
    for name in FREE_FIELDS:
        part, _, leaf = name.rpartition(".")
        assert leaf in (plain[part] if part else plain), name


def test_text_is_written_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    write_text(tmp_path / "a.json", "nü")
    assert (tmp_path / "a.json").read_text("utf-8") == "nü"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_run_that_saved_nothing_gives_way(tmp_path: Path) -> None:
    open_run(tmp_path, "pretrain", FakeRun(), resume=True)
    (tmp_path / "tokenizer.safetensors").write_bytes(b"of the other settings")
    assert open_run(tmp_path, "pretrain", FakeRun(seed=1), resume=True) is False
    assert read_run(tmp_path)["config"]["seed"] == 1
    assert not (tmp_path / "tokenizer.safetensors").exists()
    with pytest.raises(UserError, match="differs in seed"):  # not where a new run is asked for
        open_run(tmp_path, "pretrain", FakeRun(seed=2), resume=False)
    (tmp_path / "log.jsonl").write_text('{"step": 10}\n')
    with pytest.raises(UserError, match="differs in seed"):  # nor once it is under way
        open_run(tmp_path, "pretrain", FakeRun(seed=2), resume=True)


def test_a_run_goes_on_wherever_its_videos_are_but_not_on_others(tmp_path: Path) -> None:
    def open_with(*videos: str) -> bool:
        return open_run(tmp_path, "pretrain", FakeRun(), resume=True, videos=videos)

    assert not open_with("/data/left/0.mp4", "/data/right/\udcff.mp4")
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    assert open_with("/data/left/0.mp4", "/data/right/\udcff.mp4")
    assert open_with("/moved/there/left/0.mp4", "/moved/there/right/\udcff.mp4")
    with pytest.raises(UserError, match=r"differs in videos\."):
        open_with("/data/left/1.mp4", "/data/right/\udcff.mp4")
    with pytest.raises(UserError, match=r"differs in num_videos, videos\."):
        open_with("/data/left/0.mp4")
    record = json.loads((tmp_path / "run.json").read_text())
    del record["videos"]  # as an earlier version wrote it
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert open_with("/data/left/1.mp4", "/data/right/\udcff.mp4")
