"""What is saved comes back to the bit, only whole checkpoints count, no file can run code. Also a run's log."""

import hashlib
import json
import pickle
import random
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mam2 import distributed
from mam2.config import UserError, to_json
from mam2.files import read_tensors, write_tensors, write_text
from mam2.model.classifier import Classifier, Pooling
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.load import load_encoder, read_encoder_config
from mam2.model.positions import time_at
from mam2.model.weights import (
    FORMAT_CLASSIFIER,
    FORMAT_ENCODER,
    copy_encoder,
    load_classifier,
    save_classifier,
    save_encoder,
)
from mam2.train import checkpoint
from mam2.train.optim import Optim, make_optimizer
from mam2.train.run import FREE_FIELDS, only_writer, open_run, read_run

TINY = EncoderConfig(width=8, depth=2, num_heads=2, frames=2, size=16, patch_size=8)


WRITER = """
import sys, time
from pathlib import Path
from mam2.train.run import only_writer
with only_writer(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""

FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from mam2.files import write_tensors, write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the system refuses larger files as on a full disk
for write in (
    lambda file: write_tensors(file, {"a": torch.zeros(10**5)}, {}),
    lambda file: write_text(file, "x" * 10**6),
):
    try:
        write(Path(sys.argv[1]))
    except OSError as error:
        print(error)
"""


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


def saved(folder: Path, *steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """An encoder and its optimiser, with checkpoints of these steps in a folder."""
    model, optimizer = trained(0)
    for number in steps:
        checkpoint.save(folder, model, optimizer, number, keep=2)
    return model, optimizer


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
    assert sorted(path.name for path in place.iterdir()) == ["model.safetensors", "optimizer.pt", "state.json"]
    state = json.loads((place / "state.json").read_text())
    assert state == {"step": 12, "optimizer": hashlib.sha256((place / "optimizer.pt").read_bytes()).hexdigest()}


def test_nothing_saved_is_step_0(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    before, _ = trained(0)
    assert checkpoint.load(tmp_path, model, optimizer) == 0
    assert same(model, before)


def test_machines_that_see_different_folders_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = saved(tmp_path, 5)
    monkeypatch.setattr(distributed, "gather", lambda value: [value, "no checkpoint"])
    with pytest.raises(UserError, match=r"no checkpoint here, step_00000005 there.*--out that they share"):
        checkpoint.load(tmp_path, model, optimizer)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 200, 1000)
    newest = ["step_00000200", "step_00001000"]
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == newest
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == newest


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, *trained(0), 5, keep=2)
    model, optimizer = trained(1)
    checkpoint.save(tmp_path, model, optimizer, 5, keep=2)
    other, other_optimizer = trained(2)
    checkpoint.load(tmp_path, other, other_optimizer)
    assert same(model, other)


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path, 5)
    half = tmp_path / "checkpoints" / ".part_00000010"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"cut sh")
    assert len(checkpoint.checkpoints(tmp_path)) == 1
    assert checkpoint.load(tmp_path, model, optimizer) == 5
    checkpoint.save(tmp_path, model, optimizer, 10, keep=2)  # the next try makes it whole
    assert not half.exists()
    assert checkpoint.load(tmp_path, model, optimizer) == 10


def test_another_architecture_is_named(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    for other, message in (
        (replace(TINY, depth=3), r"18 missing: blocks\.2\.\S+, .*, \.\.\."),
        (replace(TINY, depth=1), r"unexpected: blocks\.1\."),
        (replace(TINY, frames=4), r"positions\.time_TD \(2, 8\) instead of \(4, 8\)"),
    ):
        encoder = VideoEncoder(other)
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        with pytest.raises(UserError, match=rf"model\.safetensors is a checkpoint of another architecture.*{message}"):
            checkpoint.load(tmp_path, encoder, make_optimizer(encoder, Optim()))
        assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_an_optimizer_file_with_code_is_not_run(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path, 5)
    canary = tmp_path / "canary"
    torch.save({"state": Bomb(canary), "param_groups": []}, tmp_path / "checkpoints/step_00000005/optimizer.pt")
    (tmp_path / "checkpoints/step_00000005/state.json").write_text('{"step": 5}')  # no checksum that would refuse it
    with pytest.raises(UserError, match=r"optimizer\.pt can't be read"):
        checkpoint.load(tmp_path, model, optimizer)
    assert not canary.exists()


FILES = ("model.safetensors", "optimizer.pt", "state.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_offered(tmp_path: Path, name: str, damage: str) -> None:
    model, optimizer = saved(tmp_path, 4, 5)
    place = tmp_path / "checkpoints" / "step_00000005"
    whole = (place / name).read_bytes()
    (place / name).write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    with pytest.raises(UserError, match=rf"{name}.*remove \S+step_00000005 to resume from step_00000004"):
        checkpoint.load(tmp_path, model, optimizer)
    shutil.rmtree(place)
    assert checkpoint.load(tmp_path, model, optimizer) == 4


@pytest.mark.parametrize("name", FILES[:2])
def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(tmp_path: Path, name: str) -> None:
    model, optimizer = saved(tmp_path, 5)
    file = tmp_path / "checkpoints" / "step_00000005" / name
    whole = file.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=name):
            checkpoint.load(tmp_path, model, optimizer)
    file.write_bytes(whole)
    assert checkpoint.load(tmp_path, model, optimizer) == 5


@pytest.mark.parametrize("state", ["{}", "[]", "null", '{"step": "5"}', '{"step": 4}', '{"step": 5000000}', "[" * 9999])
def test_a_state_that_is_not_the_folders_is_refused(tmp_path: Path, state: str) -> None:
    model, optimizer = saved(tmp_path, 5)
    (tmp_path / "checkpoints/step_00000005/state.json").write_text(state)
    with pytest.raises(UserError, match=r"state\.json is damaged.*start again, as there is no other"):
        checkpoint.load(tmp_path, model, optimizer)


def test_copies_that_a_user_made_are_neither_loaded_nor_removed(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    mine = [tmp_path / "checkpoints" / name for name in ("step_best", "step_00000009_mine", "step_9")]
    for place in mine:
        place.mkdir(parents=True)
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, model, optimizer, number, keep=1)
    checkpoint.remove_leftovers(tmp_path)
    assert checkpoint.load(tmp_path, model, optimizer) == 3
    assert all(place.is_dir() for place in mine)


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    shutil.copytree(tmp_path / "checkpoints/step_00000005", tmp_path / "checkpoints/.part_00000007")
    (tmp_path / "encoder.safetensors.0a1b2c3d.part").write_bytes(b"cut sh")
    (tmp_path / "notes.txt").write_text("mine")
    with only_writer(tmp_path / "new"):
        pass
    checkpoint.remove_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "new", "notes.txt"]


def test_a_checkpoint_without_checksums_loads(tmp_path: Path) -> None:
    """Those of version 0.1."""
    model, _ = saved(tmp_path, 5)
    place = tmp_path / "checkpoints" / "step_00000005"
    save_file(model.state_dict(), place / "model.safetensors")
    (place / "state.json").write_text('{"step": 5}')
    assert checkpoint.load(tmp_path, *trained(1)) == 5


# One run, one writer


def test_a_second_process_is_kept_out_until_the_first_ends_however_it_does(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=rf"in use by process {first.pid} on "), only_writer(tmp_path):
            pass
        first.kill()
    with only_writer(tmp_path):
        assert open_run(tmp_path, "pretrain", FakeRun(), resume=True) is False


def test_no_lock_is_left_in_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="no run's folder"), only_writer(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# Tensor files


def test_equal_tensor_files_have_equal_bytes_whatever_the_order_of_metadata(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.tensor(2, dtype=torch.bfloat16)}
    metadata = {"format": "x", "config": '{"é": "\u0007"}', "classes": "[]", "more": "1"}
    for number in range(8):
        order = random.Random(number).sample(sorted(metadata), len(metadata))
        write_tensors(tmp_path / f"{number}", tensors, {name: metadata[name] for name in order})
    assert len({(tmp_path / f"{number}").read_bytes() for number in range(8)}) == 1
    found, read = read_tensors(tmp_path / "0")
    assert read == metadata
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_the_checksum_covers_names_shapes_types_and_metadata(tmp_path: Path) -> None:
    write_tensors(tmp_path / "whole", {"ab": torch.zeros(2, 3)}, {"classes": "one"})
    tensors = load_file(tmp_path / "whole")
    with safe_open(tmp_path / "whole", "pt") as opened:
        metadata = opened.metadata()
    for changed, written in (
        ({"ac": tensors["ab"]}, metadata),
        ({"ab": tensors["ab"].T.contiguous()}, metadata),
        ({"ab": tensors["ab"].to(torch.int32)}, metadata),
        ({"ab": tensors["ab"] + 1e-9}, metadata),
        (tensors, metadata | {"classes": "two"}),
    ):
        save_file(changed, tmp_path / "changed", metadata=written)
        with pytest.raises(UserError, match=r"changed is damaged.*checksum"):
            read_tensors(tmp_path / "changed")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    classifier = Classifier(VideoEncoder(TINY), 2)
    with torch.no_grad():
        classifier.encoder.norm.weight[1] = value
    save_classifier(tmp_path / "classifier.safetensors", classifier, ("a", "b"))
    save_encoder(tmp_path / "encoder.safetensors", classifier.encoder)
    checkpoint.save(tmp_path, classifier, make_optimizer(classifier, Optim()), 5, keep=1)
    with pytest.raises(UserError, match=r"model\.safetensors holds weights that are not finite: encoder\.norm\.weight"):
        checkpoint.load(tmp_path, classifier, make_optimizer(classifier, Optim()))
    for load in (load_classifier, load_encoder):
        with pytest.raises(
            UserError, match=r"classifier\.safetensors holds weights that are not finite: \S*norm\.weight"
        ):
            load(tmp_path)
    with pytest.raises(UserError, match=r"encoder\.safetensors holds weights that are not finite: norm\.weight\."):
        load_encoder(tmp_path / "encoder.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        '{"width": 1000000000, "depth": 1, "num_heads": 1}',
        '{"width": 65536, "depth": 1024, "num_heads": 1}',
        '{"frames": 60000, "size": 65536, "tubelet": 1}',
        '{"depth": 100000000}',
        '{"patch_size": 0}',
        "{",
        "[" * 50_000,
        "3",
    ],
)
def test_a_file_that_states_other_sizes_than_it_holds_is_refused_before_memory_is_asked_for(
    tmp_path: Path, config: str
) -> None:
    file = tmp_path / "encoder.safetensors"
    save_file({"a": torch.zeros(1)}, file, metadata={"format": "mam2.encoder", "config": config})
    tracemalloc.start()
    with pytest.raises(UserError, match=r"encoder\.safetensors is damaged"):
        load_encoder(file)
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()


def test_what_a_full_disk_stops_names_the_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"a": torch.zeros(4)}, {})
    before = file.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.count(f"{file} can't be written: ") == 2
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


# Encoders and classifiers


def test_a_loaded_encoder_is_the_saved_one(tmp_path: Path) -> None:
    model, _ = trained(0)
    assert isinstance(model, VideoEncoder)
    save_encoder(tmp_path / "encoder.safetensors", model)
    clip = torch.rand(1, 2, 3, 16, 16)
    for source in (tmp_path, str(tmp_path), tmp_path / "encoder.safetensors"):
        loaded = load_encoder(source)
        assert loaded.config == TINY
        assert read_encoder_config(source) == TINY
        assert not loaded.training
        assert same(loaded, model)
        assert torch.equal(loaded(clip), model.eval()(clip))
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.safetensors"]


@pytest.mark.parametrize("pooling", ["all", "space"])
def test_a_loaded_classifier_is_the_saved_one(tmp_path: Path, pooling: Pooling) -> None:
    torch.manual_seed(0)
    classifier = Classifier(VideoEncoder(replace(TINY, drop_path=0.1)), 3, pooling=pooling).eval()
    save_classifier(tmp_path / "classifier.safetensors", classifier, ("run", "ünlü", "walk"))
    loaded, classes = load_classifier(tmp_path)
    assert classes == ("run", "ünlü", "walk")
    assert same(loaded, classifier)
    assert loaded.encoder.config == classifier.encoder.config
    assert loaded.pooling == pooling
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
    with pytest.raises(UserError, match="holds no known encoder"):
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
    with pytest.raises(UserError, match="damaged: its tensors are not those that its configuration states"):
        load_encoder(tmp_path)


def test_an_encoder_is_copied_with_its_positions_interpolated(caplog: pytest.LogCaptureFixture) -> None:
    source, _ = trained(0)
    assert isinstance(source, VideoEncoder)
    for changes, lines in (({"drop_path": 0.5}, 0), ({"frames": 4}, 1), ({"size": 32}, 1)):
        caplog.clear()
        target = VideoEncoder(replace(TINY, **changes))
        copy_encoder(source, target, "x")
        found, wanted = target.state_dict(), source.state_dict()
        wanted["positions.time_TD"] = time_at(source.positions.time_TD, target.config.frames)
        wanted["positions.space_ND"] = source.positions.space(target.config.grid)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert len(caplog.records) == lines
    target = VideoEncoder(replace(TINY, depth=3, num_heads=1, frames=4))
    message = (
        r"^x is an .*: depth 2 \(here 3\), num_heads 2 \(here 1\)\. .*, or --encoder\.depth 2 --encoder\.num-heads 2\.$"
    )
    with pytest.raises(UserError, match=message):
        copy_encoder(source, target, "x")


@pytest.mark.parametrize("classes", [None, "{", "3"])
def test_a_classifier_without_names_of_its_classes_is_refused(tmp_path: Path, classes: str | None) -> None:
    model = Classifier(VideoEncoder(TINY), 2)
    metadata = {"format": FORMAT_CLASSIFIER, "config": json.dumps(to_json(TINY))}
    metadata |= {} if classes is None else {"classes": classes}
    write_tensors(tmp_path / "classifier.safetensors", model.state_dict(), metadata)
    with pytest.raises(UserError, match="the names of its classes can't be read"):
        load_classifier(tmp_path)
    write_tensors(tmp_path / "classifier.safetensors", model.state_dict(), metadata | {"config": "{"})
    for load in (load_classifier, load_encoder, read_encoder_config):
        with pytest.raises(UserError, match=r"classifier\.safetensors is damaged"):
            load(tmp_path)


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
