"""What a user sees: each wrong input is one clear paragraph on stderr and exit status 2, and nothing saved is lost."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers import TINY, TINY_ENCODER
from safetensors.torch import load_file
from torchvision.models.optical_flow import raft_small

import mam2
import mam2.use.evaluate_run as testing
from mam2.__main__ import main
from mam2.config import to_json
from mam2.data.synthetic import render, write_video
from mam2.model.encoder import Origin
from mam2.model.load import load_encoder
from mam2.model.weights import load_classifier, read_origin
from mam2.recipes import get_recipe
from mam2.studies.builtin import STUDIES
from mam2.targets.tokenizers.codes import save_tokenizer
from mam2.targets.tokenizers.vqgan import VQGAN, VQGANConfig
from mam2.train.finetune import Finetune
from mam2.verbs import VERBS

PRETRAIN = ("pretrain", "mam2_tiny", *TINY, "--loop.duration", "2 steps")
FINETUNE = ("finetune", "finetune_tiny", *TINY_ENCODER, "--loop.duration", "2 steps")


@pytest.fixture(scope="module")
def pretrained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was pre-trained for two steps."""
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mam2", *PRETRAIN, "--data.root", str(videos), "--out", str(out)])
        main()
    return out


def refused(result: tuple[int, str, str], *parts: str) -> None:
    status, _, err = result
    assert status == 2
    assert "Traceback" not in err
    for part in parts:
        assert part in err, err


@pytest.fixture(scope="module")
def tuned(videos: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run that was tested on two windows of three squares."""
    out = tmp_path_factory.mktemp("runs") / "tuned"
    data = ("--data.root", str(videos))
    with pytest.MonkeyPatch.context() as patch:
        for words in (
            (*FINETUNE, "--init", str(pretrained), *data, "--out", str(out)),
            ("evaluate", str(out), *data, "--clips", "2", "--crops", "3"),
        ):
            patch.setattr(sys, "argv", ["mam2", *words])
            main()
    return out


def test_pretraining_logs_every_step(pretrained) -> None:
    rows = [json.loads(line) for line in (pretrained / "log.jsonl").read_text().splitlines()]
    names = "step epoch loss appearance motion alignment lr clips_per_second data_seconds feature_std effective_rank"
    assert set(names.split()) <= rows[0].keys()
    assert [row["step"] for row in rows] == [1, 2]


def test_evaluate_reports_accuracy(tuned) -> None:
    report = json.loads((tuned / "evaluate.json").read_text())
    assert (report["num_videos"], report["clips"], report["crops"]) == (8, 2, 3)
    assert 0 <= report["top1"] <= report["top5"] == 1
    assert set(report["per_class"]) == {"approach", "left"}
    assert 0 <= report["single_view"][0] <= report["single_view"][1] <= 1
    assert (tuned / "confusion.png").stat().st_size > 1000


def test_evaluate_saves_predictions(tuned, videos) -> None:
    report = json.loads((tuned / "evaluate.json").read_text())
    with np.load(tuned / "predictions.npz") as saved:
        assert saved["classes"].tolist() == ["approach", "left"]
        assert sorted(saved["path"].tolist()) == sorted(map(str, videos.glob("*/*.mp4")))
        assert [Path(path).parent.name for path in saved["path"]] == saved["classes"][saved["label"]].tolist()
        right = saved["probability"].argmax(axis=1) == saved["label"]
        assert right.mean() == pytest.approx(report["top1"])
        np.testing.assert_allclose(saved["probability"].sum(axis=1), 1, rtol=1e-5)


def test_predict_names_the_classes_that_evaluation_found(run, tuned, videos, tmp_path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, video in enumerate(sorted(videos.rglob("*.mp4"))):
        (flat / f"{number} {video.parent.name}.mp4").symlink_to(video)
    (flat / "damaged.mp4").write_bytes(b"no video")
    out = tmp_path / "deep" / "classes.jsonl"
    status, shown, _ = run("predict", tuned, flat, "--out", out, "--clips", 2, "--crops", 3)
    assert status == 0
    assert "8 videos" in shown
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    found = {(Path(row["path"]).resolve().as_posix(), row["label"]): row["score"] for row in rows}
    assert len(found) == 16
    saved = np.load(tuned / "predictions.npz")
    for path, probability in zip(saved["path"], saved["probability"], strict=True):
        for name, value in zip(saved["classes"], probability, strict=True):
            assert found[str(Path(path).resolve()), str(name)] == pytest.approx(value, abs=1e-5)
    assert rows[0]["score"] >= rows[1]["score"]
    assert run("predict", tuned, flat, "--out", tmp_path / "one.csv", "--top-k", 1)[0] == 0
    assert (tmp_path / "one.csv").read_text().splitlines()[0] == "path,start,end,label,score"
    assert len((tmp_path / "one.csv").read_text().splitlines()) == 9
    refused(run("evaluate", tmp_path / "absent", "--data.root", flat), "is no run's folder")
    assert not (tmp_path / "absent").exists()
    refused(run("predict", tuned, flat, "--out", tmp_path / "x.txt"), "ending in .csv, .jsonl, .parquet")
    refused(run("predict", tuned, flat, "--out", tmp_path / "x.csv", "--top-k", 0), "at least 1 class")
    refused(run("evaluate", tuned, "--data.root", flat), "has no label", "`mam2 predict` takes videos without labels")


def test_evaluate_prints_accuracy(run, tuned, videos, tmp_path) -> None:
    status, out, _ = run("evaluate", tuned, "--data.root", videos, "--out", tmp_path)
    assert status == 0
    assert "top-1" in out


def test_show_draws_a_prediction(run, videos, pretrained, tmp_path) -> None:
    assert run("show", pretrained, videos / "left" / "0.mp4", "--out", tmp_path / "sheet.png")[0] == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_pretrained_encoder_loads_with_its_weights(pretrained) -> None:
    encoder = mam2.load_encoder(pretrained)
    features = encoder(torch.zeros(1, 3, 3, 16, 16, dtype=torch.uint8))
    assert features.shape == (1, 3, 16, 16)  # (B, T, N, D)
    weights = load_file(pretrained / "checkpoints" / "step_00000002" / "model.safetensors")
    assert torch.equal(encoder.positions.time_TD, weights["encoder.positions.time_TD"])


def in_a_new_process(code: str) -> set[str]:
    """The names of the modules that some code imports."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines())


def test_help_and_the_package_load_nothing_heavy() -> None:
    loaded = in_a_new_process("import sys, mam2.__main__ as m; sys.argv = ['mam2', '--help']; m.main()")
    assert "mam2.verbs" in loaded
    assert not loaded & {"torch", "numpy", "tyro", "rich", "av", "matplotlib"}
    loaded = in_a_new_process("import mam2; mam2.UserError")
    assert not loaded & {"torch", "numpy", "tyro", "rich", "av", "matplotlib"}
    loaded = in_a_new_process("from mam2.model.encoder import VideoEncoder; from mam2 import load_encoder")
    assert "torch" in loaded
    heavy = {"matplotlib", "tensorboard", "jinja2", "av", "torchvision", "vector_quantize_pytorch", "tyro", "rich"}
    assert not loaded & heavy


def test_every_public_name_is_there() -> None:
    assert {"pretrain", "load_encoder", "Steps", "build"} <= set(mam2.__all__)
    for name in mam2.__all__:
        assert getattr(mam2, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        mam2.absent  # noqa: B018


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "mam2", "recipes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None
    command.stdout.close()  # as `head` does
    _, errors = command.communicate(timeout=120)
    assert (command.returncode, errors) == (1, b"")


def test_version_and_usage(run) -> None:
    assert run("--version")[:2] == (0, f"mam2 {mam2.__version__}\n")
    status, out, _ = run("--help")
    assert status == 0
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "cost", "probe", "study"])
def test_help_without_a_recipe_shows_how_to_begin(run, verb) -> None:
    status, out, _ = run(verb, "--help")
    assert status == 0
    assert out.startswith(f"usage: mam2 {verb} ")
    assert ("mam2_tiny --help" in out) == (verb in ("pretrain", "cost"))
    examples = [line for line in out.splitlines() if line.startswith(f"  mam2 {verb} ")]
    assert len(examples) == 2
    assert ("--out PATH" in out) == (verb in ("pretrain", "finetune", "study"))
    assert ("--unlabelled" in out and "--data.root" not in out) == (verb == "study")
    assert all(f"  {name} " in out for name in STUDIES) == (verb == "study")
    assert "..." not in out  # wrapped, not cut
    assert len(out.splitlines()) < (55 if verb == "study" else 40)


@pytest.mark.parametrize("width", [60, 100])
def test_help_is_as_wide_as_the_terminal(run, monkeypatch, width) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run("pretrain", "mam2_tiny", "--help")
    options = out.splitlines()[1:]
    assert max(len(line) for line in options if len(line.split()) > 2) <= width
    assert "or a .csv with path,label" in " ".join(out.split())


def test_help_of_a_recipe_shows_the_options_of_everyone_first(run) -> None:
    status, out, _ = run("pretrain", "mam2_tiny", "--help")
    assert status == 0
    lines = out.splitlines()
    places = {name: next(i for i, line in enumerate(lines) if f"--{name} " in line) for name in ("data.root", "out")}
    assert max(places.values()) < 5
    assert next(i for i, line in enumerate(lines) if "--loop.duration" in line) < 10
    assert out.count("--data.root") == 2  # the usage line, and its own
    config = to_json(get_recipe("mam2_tiny"))
    for section, fields in config.items():
        for name in set(fields) - {"is"}:  # the choice of objective is the recipe's
            assert f"--{section}.{name}".replace("_", "-") in out or f"--{section}.no-{name}" in out, name


def test_training_ends_with_what_to_do_next(run, videos, tmp_path) -> None:
    out = tmp_path / "run"
    _, printed, _ = run(*PRETRAIN, "--data.root", videos, "--out", out)
    assert f"Wrote {out}/encoder.safetensors" in printed
    assert f"Next: mam2 finetune finetune_tiny --init {out} --data.root LABELLED" in printed
    _, printed, _ = run(*FINETUNE, "--init", out, "--data.root", videos, "--out", tmp_path / "tuned")
    assert f"Next: mam2 evaluate {tmp_path / 'tuned'} --data.root TEST" in printed


TUBELETS = ("--encoder.frames", "6", "--encoder.tubelet", "2")


@pytest.fixture(scope="module")
def tubelet_run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was pre-trained on tubelets."""
    out = tmp_path_factory.mktemp("runs") / "tubelets"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mam2", *PRETRAIN, *TUBELETS, "--data.root", str(videos), "--out", str(out)])
        main()
    return out


def test_tubelets_are_shown_and_probed(run, videos, tubelet_run, tmp_path) -> None:
    assert run("show", tubelet_run, videos / "left" / "0.mp4", "--out", tmp_path / "sheet.png")[0] == 0
    status, printed, _ = run("probe", tubelet_run, "--train", videos, "--test", videos, "--kind", "knn")
    assert status == 0
    assert f"Next: mam2 finetune RECIPE --init {tubelet_run} --data.root LABELLED" in printed
    assert mam2.load_encoder(tubelet_run)(torch.zeros(1, 8, 3, 16, 16, dtype=torch.uint8)).shape == (1, 4, 16, 16)


def test_tubelets_are_finetuned_and_evaluated(run, videos, tubelet_run, tmp_path) -> None:
    data = ("--data.root", videos)
    tune = (*FINETUNE, *TUBELETS, *data, "--init", tubelet_run)
    assert run(*tune, "--out", tmp_path / "tuned")[0] == 0
    assert run("evaluate", tmp_path / "tuned", *data)[0] == 0
    assert run(*tune, "--encoder.frames", 8, "--out", tmp_path / "longer")[0] == 0


def test_tubelets_of_another_size_are_refused(run, videos, tubelet_run, tmp_path) -> None:
    data = ("--data.root", videos)
    other = run(*FINETUNE, *data, "--encoder.tubelet", 1, "--init", tubelet_run, "--out", tmp_path / "tuned")
    refused(other, "tubelet 2 (here 1)", "--encoder.tubelet 2")
    too_short = run(*PRETRAIN, *TUBELETS, "--encoder.frames", 2, *data, "--out", tmp_path / "short")
    refused(too_short, "at least 2 tubelets")


def test_options_of_version_0_1_still_work(run, videos, tmp_path, caplog) -> None:
    data = ("--data.root", videos)
    table = tmp_path / "list.csv"
    rows = [f"{video},{number % 2}.5" for number, video in enumerate(sorted(videos.rglob("*.mp4")))]
    table.write_text("\n".join(["path,label", *rows]))
    waits = ("--optim.encoder-waits", "2 epochs")
    assert run(*PRETRAIN, *data, *waits, *waits, "--out", tmp_path / "two")[0] == 0
    said = [message for message in caplog.messages if "encoder-waits" in message]
    assert said == ["--optim.encoder-waits is called --optim.freeze-encoder-for now."]
    assert run(*PRETRAIN, *data, "--optim.encoder_waits=1 steps", "--out", tmp_path / "one")[0] == 0
    for name, duration in (("two", "2 epochs"), ("one", "1 steps")):
        config = json.loads((tmp_path / name / "run.json").read_text())["config"]
        assert config["optim"]["freeze_encoder_for"] == duration
    tune = (*FINETUNE, "--init", "scratch", "--data.root", table, "--mixup", 0, "--cutmix", 0)
    for name, labels, today in (
        ("a", ("--labels", "several"), "multilabel"),
        ("b", ("--labels", "numbers"), "regression"),
        ("c", ("--labels=numbers",), "regression"),
    ):
        assert run(*tune, *labels, "--out", tmp_path / name)[0] == 0
        assert json.loads((tmp_path / name / "run.json").read_text())["config"]["labels"] == today
        assert f"--labels {labels[-1].removeprefix('--labels=')} is called --labels {today} now." in caplog.messages


SHORT = ("--loop.duration", "1 steps", "--loop.batch-size", 4, "--data.num-workers", 0, "--optim.warmup", "0 steps")


def test_finetuning_takes_its_sizes_from_the_pretraining(run, videos, tmp_path, caplog) -> None:
    pre, data = tmp_path / "pre", ("--data.root", videos)
    assert run(*PRETRAIN, *data, "--out", pre, "--data.stride-frames", 2, "--encoder.layer-scale", 0.2)[0] == 0
    tune = ("finetune", "finetune_tiny", *SHORT, *data)
    assert run(*tune, "--init", pre, "--out", tmp_path / "as_it_is")[0] == 0
    config = json.loads((tmp_path / "as_it_is" / "run.json").read_text())["config"]
    assert config["encoder"] == json.loads((pre / "run.json").read_text())["config"]["encoder"] | {
        "drop_path": get_recipe("finetune_tiny", Finetune).encoder.drop_path
    }
    assert config["data"]["stride_frames"] == 2
    assert "interpolated" not in caplog.text
    # The file alone tells all but the stride; what is given differs, and is said.
    sizes = ("--encoder.frames", 4, "--data.stride-frames=3")
    assert run(*tune, *sizes, "--init", pre, "--out", tmp_path / "given")[0] == 0
    config = json.loads((tmp_path / "given" / "run.json").read_text())["config"]
    assert (config["encoder"]["frames"], config["encoder"]["size"], config["data"]["stride_frames"]) == (4, 16, 3)
    assert "interpolated from 3 frames of 16² to 4 frames of 16²" in caplog.text
    assert "data.stride_frames is 3; the pre-training's is 2" in caplog.text
    # A run goes on without its init.
    shutil.move(pre, tmp_path / "moved")
    longer = (*tune, "--init", pre, "--out", tmp_path / "as_it_is", "--loop.duration", "2 steps")
    assert run(*longer)[0] == 0
    assert "lengthened from 1 steps to 2 steps" in caplog.text
    assert len((tmp_path / "as_it_is" / "log.jsonl").read_text().splitlines()) == 2


def test_a_pretraining_can_start_from_another_and_be_lengthened(run, videos, pretrained, tmp_path, caplog) -> None:
    out, data = tmp_path / "on", ("--data.root", videos)
    start = ("pretrain", "mam2_tiny", *SHORT, "--targets.appearance", "random_projection", "--init", pretrained, *data)
    no_rate = ("--optim.base-lr", 1e-30, "--optim.min-lr", 0, "--objective.teacher-momentum", 0.5)
    first = run(*start, *no_rate, "--out", out)
    assert first[0] == 0, first
    began, there = (load_file(folder / "encoder.safetensors") for folder in (pretrained, out))
    assert began.keys() == there.keys()
    assert all(torch.equal(began[name], there[name]) for name in began)
    saved = load_file(out / "checkpoints" / "step_00000001" / "model.safetensors")
    assert torch.equal(saved["alignment.teacher.patch_embed.weight"], began["patch_embed.weight"])
    longer = (*start, *no_rate, "--out", out, "--loop.duration", "3 steps")
    assert run(*longer)[0] == 0
    assert "lengthened from 1 steps to 3 steps. From here on the learning rate follows" in caplog.text
    assert json.loads((out / "run.json").read_text())["config"]["loop"]["duration"] == "3 steps"
    refused(run(*start, *no_rate, "--out", out), "differs in loop.duration")
    refused(run(*longer, "--mask.ratio", 0.5), "differs in mask.ratio")


def test_table_8_trains_resumes_and_is_shown(run, videos, tmp_path) -> None:
    augmented = ("--data.repeats", 2, "--data.rand-augment-ops", 2, "--data.erasing", 0.25)
    table_8 = ("--mixup", 0.8, "--cutmix", 1.0, *augmented)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = (*FINETUNE, *table_8, "--init", "scratch", "--data.root", videos, "--loop.save-every", "1 steps", "--out")
    assert run(*command, whole)[0] == 0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step_00000002")
    assert run(*command, parts)[0] == 0
    weights = [load_file(out / "classifier.safetensors") for out in (whole, parts)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    picture = tmp_path / "augmented.png"
    assert run("show", whole, videos / "left" / "0.mp4", "--augment", "--out", picture)[0] == 0
    assert picture.stat().st_size > 1000


def test_recipes_are_listed_and_printed(run) -> None:
    status, out, _ = run("recipes")
    assert status == 0
    assert "mam2_b_k400" in out
    assert "800 epochs" in out
    status, out, _ = run("recipes", "mam2_b_k400")
    assert json.loads(out)["encoder"]["width"] == 768


def test_tables_of_the_paper_are_listed_with_commands_and_costs(run) -> None:
    status, out, _ = run("recipes", "--table", "5")
    assert status == 0
    for part in ("UCF101, 1200 epochs", "91.5", "62.5", "GPU-hours", "mam2 pretrain mam2_b_hmdb51 --data.root"):
        assert part in out
    assert "finetune finetune_b_hmdb51 --init RUN --data.root DIR --out TUNED && mam2 evaluate TUNED" in out
    status, out, _ = run("recipes", "--table", "8")
    assert "mam2 finetune finetune_b_ssv2 --data.root DIR --out RUN --init PRETRAINED" in out
    refused(run("recipes", "--table", "9"), "no table '9'", "1a, 1b")


def test_targets_are_listed(run) -> None:
    status, out, _ = run("targets")
    assert status == 0
    for part in ("vqgan_8192", "112²", "8192", "dalle", "optical_flow", "clip_order", "1,192"):
        assert part in out


def test_masks_are_drawn(run, videos, tmp_path) -> None:
    video = tmp_path / "long.mp4"
    write_video(video, render("left", seed=0, num_frames=64, size=64))
    for words in ((video, "--ratio", 0.6), ()):
        assert run("masks", *words, "--out", tmp_path / "masks.png")[0] == 0
        assert (tmp_path / "masks.png").stat().st_size > 10_000
        (tmp_path / "masks.png").unlink()


VARIANTS = {
    "coupled": ("--objective.decoders", "coupled"),
    "appearance": ("--objective.decoders", "appearance"),
    "motion": ("--objective.decoders", "motion"),
    "no regressor": ("--objective.regressor-depth", 0),
    "no alignment": ("--objective.alignment-weight", 0),
    "teacher": ("--objective.teacher-momentum", 0.9),
    "concat": ("--objective.context", "concat", "--objective.alignment-target", "layer_norm"),
    "sum": (
        *("--objective.motion-reduction", "sum", "--objective.alignment-reduction", "sum"),
        *("--encoder.layer-scale", 0.1, "--encoder.drop-path", 0.1),
    ),
    "clip order": ("--targets.motion", "clip_order"),
    "pixels": ("--targets.appearance", "pixels", "--targets.motion-scale", "patch"),
    "cube": ("--mask.kind", "cube", "--mask.ratio", 0.5),
    "random": ("--mask.kind", "random", "--encoder.attention", "joint"),
    "vqgan": ("--targets.appearance", "vqgan_16384", "--targets.file", "VQGAN"),
    "gumbel": ("--targets.appearance", "vqgan_8192", "--targets.file", "GUMBEL"),
    "flow": ("--targets.motion", "optical_flow", "--targets.flow-model", "raft_small", "--targets.flow-file", "RAFT"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_train_resume_and_are_shown(run, videos, tmp_path, name) -> None:
    torch.manual_seed(0)
    files = {"RAFT": tmp_path / "raft.pth", "VQGAN": tmp_path / "f4.safetensors", "GUMBEL": tmp_path / "f2.safetensors"}
    if name == "flow":
        torch.save(raft_small(weights=None).state_dict(), files["RAFT"])
    for key, levels, quantizer in (("VQGAN", (1, 1, 2), "nearest"), ("GUMBEL", (1, 1), "gumbel")):
        if name == key.lower():  # f2 under patches of 4²: it is shown a smaller picture, and draws one
            sizes = VQGANConfig(
                ch=32, ch_mult=levels, num_res_blocks=1, z_channels=32, embed_dim=8, num_codes=23, quantizer=quantizer
            )
            save_tokenizer(VQGAN(sizes).state_dict(), files[key], config=sizes)
    options = [files.get(option, option) for option in VARIANTS[name]]
    command = (*PRETRAIN, *options, "--loop.save-every", "1 steps", "--data.root", videos, "--out")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*command, whole)[0] == 0
    row = json.loads((whole / "log.jsonl").read_text().splitlines()[-1])
    assert ("motion" in row) == ("motion_of_none" in row) == (name != "appearance")
    assert ("appearance" in row) == (name != "motion")
    assert ("alignment" in row) == (name not in ("no regressor", "no alignment"))

    # What the first step left behind, the second goes on from: a moving average too.
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step_00000002")
    assert run(*command, parts)[0] == 0
    weights = [load_file(out / "checkpoints" / "step_00000002" / "model.safetensors") for out in (whole, parts)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])

    pictures = {suffix: tmp_path / f"sheet.{suffix}" for suffix in ("png", "gif", "mp4")}
    drawn = ("--out", pictures["png"], "--gif", pictures["gif"], "--mp4", pictures["mp4"])
    assert run("show", whole, videos / "left" / "0.mp4", *drawn)[0] == 0
    assert all(picture.stat().st_size > 1000 for picture in pictures.values())


def test_tokenizer_train_draws_what_its_codes_keep(run, videos, tmp_path) -> None:
    file = tmp_path / "vq.safetensors"
    sizes = ("--patch-size", 8, "--size", 16, "--num-codes", 8, "--num-steps", 3)
    status, out, err = run("tokenizer", "train", videos, "--out", file, *sizes)
    assert status == 0
    assert f"Next: mam2 pretrain RECIPE --data.root {videos} --targets.appearance vq --targets.file {file}" in err
    report = json.loads(out)
    assert report.keys() == {"mse", "mse_of_mean", "usage", "perplexity", "picture"}
    assert (tmp_path / "vq.png").stat().st_size > 1000
    refused(run("tokenizer", "train", videos, "--out", file, *sizes), "exists already")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("pretrian",), ("no command 'pretrian'", "pretrain")),
        (("pretrain", "mam2_tyni"), ("no recipe 'mam2_tyni'", "Did you mean mam2_tiny")),
        (("pretrain", "finetune_tiny"), ("finetune_tiny is a recipe of `mam2 finetune`",)),
        (("pretrain",), ("Name a recipe",)),
        (("probe",), ("Name an encoder",)),
        (("probe", "absent", "--train", "x", "--test", "y"), ("absent",)),
        (("prepare", "k401", "--root", "x"), ("k401", "k400")),
        (("recipes", "mam2_large"), ("no recipe",)),
        ((*PRETRAIN, "--data.rot", "x", "--out", "y"), ("Unrecognized options", "--data.root")),
        ((*PRETRAIN, "--out", "y", "--data.root", "absent"), ("absent does not exist",)),
        ((*PRETRAIN, "--out", "y", "--data.root", "a", "--optim.warmup", "3"), ("warmup", "500 steps")),
        ((*FINETUNE, "--out", "y", "--data.root", "absent", "--init", "scratch"), ("absent does not exist",)),
        (("show", "absent", "x.mp4"), ("absent does not exist", "a run's folder")),
        ((*PRETRAIN, "--data.root", "x", "--out", "y", "--mask.kind", "tub"), ("mask.kind is 'tub'", "mean tube")),
        ((*PRETRAIN, "--data.root", "x", "--out", "y", "--mask.kind", "random"), ("--encoder.attention joint",)),
        (
            (*PRETRAIN, "--data.root", "x", "--out", "y", "--targets.appearance", "vqgan"),
            ("targets.appearance is 'vqgan'", "vqgan_16384"),
        ),
    ],
)
def test_wrong_words(run, arguments, parts) -> None:
    refused(run(*arguments), *parts)


def test_wrong_videos(run, videos, tmp_path) -> None:
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(run(*PRETRAIN, "--data.root", empty, "--out", out), "empty", ".mp4")

    text = tmp_path / "text"
    text.mkdir()
    (text / "notes.mp4").write_text("not a video")
    refused(run(*PRETRAIN, "--data.root", text, "--out", out), "notes.mp4 can't be decoded")

    cut = tmp_path / "cut"
    cut.mkdir()
    whole = (videos / "left" / "0.mp4").read_bytes()
    (cut / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    refused(run(*PRETRAIN, "--data.root", cut, "--out", tmp_path / "out2"), "cut.mp4")

    shutil.copy(videos / "left" / "1.mp4", empty / "short.mp4")
    long_clip = ("--encoder.frames", "16")
    refused(
        run(*PRETRAIN, "--data.root", empty, "--out", tmp_path / "out3", *long_clip),
        "short.mp4 has 10 frames; a 16-frame clip needs at least 16",
        "--data.short repeat",
    )


@pytest.mark.parametrize("name", [b"\x1b]0;pwned\x07\x1b[2J.mp4", b"caf\xe9.mp4"])
def test_odd_names_come_out_harmless(run, videos, pretrained, tmp_path, name) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(videos, mixed)
    good, bad = (mixed / folder / os.fsdecode(name) for folder in sorted(os.listdir(videos))[:2])
    shutil.copy(videos / "left" / "0.mp4", good)
    bad.write_text("not a video")
    wide = ("--max-missing-share", 0.5, "--num-workers", 0)
    results = [
        run(*PRETRAIN, "--data.root", mixed, "--out", tmp_path / "out", "--loop.duration", "4 steps"),
        run("prepare", "folder", "--root", mixed, "--out", tmp_path / "m.csv", *wide),
        run("show", pretrained, good, "--out", tmp_path / "show.png"),
        run("show", pretrained, bad, "--out", tmp_path / "bad.png"),
        run("masks", good, "--out", good.with_suffix(".png")),
    ]
    assert [status for status, _, _ in results] == [0, 0, 0, 2, 0]
    shown = "".join(out + err for _, out, err in results)
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown
    assert ("\\x1b" if b"pwned" in name else "caf\\udce9") in shown


def test_a_damaged_video_among_good_ones_is_left_out(run, videos, tmp_path, caplog) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(videos, mixed)
    (mixed / "left" / "bad.mp4").write_text("not a video")
    out = tmp_path / "out"
    status, _, _ = run(*PRETRAIN, "--data.root", mixed, "--out", out, "--loop.duration", "4 steps")
    assert status == 0
    assert "bad.mp4 can't be decoded" in caplog.text
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["bad_videos"] == 1
    strict = (*PRETRAIN, "--data.root", mixed, "--out", tmp_path / "strict", "--data.max-bad-share", 0)
    refused(run(*strict, "--loop.duration", "4 steps"), "1 of 9 videos can't be used", "bad.mp4")


def test_wrong_csv(run, videos, tmp_path) -> None:
    table = tmp_path / "list.csv"
    out = tmp_path / "out"
    good = videos / "left" / "0.mp4"
    table.write_text(f"path,label\n{good},left\n{good},\n")
    refused(run(*FINETUNE, "--init", "scratch", "--data.root", table, "--out", out), "line 3", "label")
    table.write_text(f"path,label\n{good},left\n/absent/b.mp4,right\n")
    refused(run(*PRETRAIN, "--data.root", table, "--out", out), "/absent/b.mp4", "line 3")


def test_wrong_checkpoints(run, videos, pretrained, tmp_path) -> None:
    wide = ("--encoder.width", "32")
    out = tmp_path / "out"
    other = run(*FINETUNE, *wide, "--init", pretrained, "--data.root", videos, "--out", out)
    refused(other, "another architecture", "width 16 (here 32)", "--encoder.width 16")

    canary = tmp_path / "canary"
    bomb = tmp_path / "bomb.pt"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (canary,)

    bomb.write_bytes(pickle.dumps(Bomb()))
    refused(run(*FINETUNE, "--init", bomb, "--data.root", videos, "--out", out), "cannot be read as a checkpoint")
    refused(run("tokenizer", "convert", bomb, "--out", tmp_path / "t.safetensors"), "bomb.pt")
    assert not canary.exists()

    needs_file = ("pretrain", "mam2_b_k400", "--data.root", videos, "--out", tmp_path / "vqgan")
    refused(run(*needs_file), "no VQGAN file", "mam2 tokenizer convert", "mam2_tiny")
    refused(run("evaluate", pretrained, "--data.root", videos), "holds no classifier")


def test_the_folder_of_another_run_is_not_touched(run, videos, pretrained, tmp_path) -> None:
    before = {p: p.read_bytes() for p in pretrained.rglob("*") if p.is_file()}
    again = (*PRETRAIN, "--data.root", videos, "--out", pretrained)
    refused(run(*again, "--optim.base-lr", "0.5"), "holds another run, which differs in optim.base_lr")
    refused(run(*again, "--no-resume"), "holds this run already")
    refused(run(*FINETUNE, "--init", "scratch", "--data.root", videos, "--out", pretrained), "holds another run")
    assert {p: p.read_bytes() for p in pretrained.rglob("*") if p.is_file()} == before
    (tmp_path / "letter.txt").write_text("mine")
    refused(run(*PRETRAIN, "--data.root", videos, "--out", tmp_path), "no run's folder")
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_a_loss_that_is_not_finite_is_never_saved(run, videos, tmp_path) -> None:
    out = tmp_path / "hot"
    hot = ("--optim.base-lr", "1e30", "--optim.warmup", "0 steps", "--optim.max-grad-norm", "0")
    result = run(*PRETRAIN, "--data.root", videos, "--out", out, *hot, "--loop.duration", "20 steps")
    refused(result, "not finite", "loss")
    for file in out.glob("checkpoints/*/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


def test_a_start_that_failed_does_not_bind_the_folder(run, videos, tmp_path) -> None:
    out = tmp_path / "out"
    wrong = ("--targets.appearance", "vq", "--targets.file", tmp_path / "absent.safetensors")
    refused(run(*PRETRAIN, "--data.root", videos, "--out", out, *wrong), "absent.safetensors")
    assert run(*PRETRAIN, "--data.root", videos, "--out", out)[0] == 0


def test_a_run_is_not_continued_on_other_videos(run, videos, tmp_path) -> None:
    out, fewer = tmp_path / "out", tmp_path / "fewer"
    assert run(*PRETRAIN, "--data.root", videos, "--out", out)[0] == 0
    shutil.copytree(videos / "left", fewer)
    refused(run(*PRETRAIN, "--data.root", fewer, "--out", out), "differs in num_videos")


def test_as_many_other_videos_are_other_videos(run, videos, tmp_path) -> None:
    out, left, approach = tmp_path / "out", tmp_path / "a", tmp_path / "b"
    shutil.copytree(videos / "left", left)
    assert run(*PRETRAIN, "--data.root", left, "--out", out)[0] == 0
    shutil.move(left, tmp_path / "moved")
    assert run(*PRETRAIN, "--data.root", tmp_path / "moved", "--out", out)[0] == 0
    shutil.copytree(videos / "approach", approach)
    (approach / "0.mp4").rename(approach / "4.mp4")
    refused(run(*PRETRAIN, "--data.root", approach, "--out", out), "differs in videos")


def test_options_without_effect_are_reported(run, videos, tmp_path, caplog) -> None:
    idle = ("--objective.alignment-weight", 0, "--mask.aligned", 0.5, "--targets.file", "some.safetensors")
    assert run(*PRETRAIN, "--data.root", videos, "--out", tmp_path / "out", *idle)[0] == 0
    assert "Without effect beside the other settings: mask.aligned, targets.file." in caplog.text
    assert "learning rate will not come down" in caplog.text  # 50 steps of warm-up, 2 of training
    caplog.clear()
    assert run(*PRETRAIN, "--data.root", videos, "--out", tmp_path / "2", "--optim.warmup", "1 steps")[0] == 0
    assert "Without effect" not in caplog.text
    assert "come down" not in caplog.text


def test_a_full_gpu_is_reported_with_what_helps(run, videos, tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    monkeypatch.setattr(mam2.objectives.mam2.MAM2, "forward", full)
    parts = ("Tried to allocate 2 GiB", "--loop.accumulate 2", "--loop.recompute", "mam2 cost RECIPE")
    refused(run(*PRETRAIN, "--data.root", videos, "--out", tmp_path / "out"), *parts)


def test_an_unwritable_place_is_an_error_not_a_traceback(run, videos, pretrained, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    refused(run("show", pretrained, videos / "left" / "0.mp4", "--out", tmp_path / "file" / "a.png"), "file")
    assert run(*FINETUNE, "--init", "scratch", "--data.root", videos, "--out", tmp_path / "tuned")[0] == 0
    monkeypatch.setattr(testing, "evaluate", pytest.fail)  # it fails before testing, not after
    refused(run("evaluate", tmp_path / "tuned", "--data.root", videos, "--out", tmp_path / "file" / "b"), "file")


def test_the_cost_of_a_recipe(run) -> None:
    status, out, _ = run("cost", "mam2_tiny", "--device", "a100", "--videos", "150", "--mask.predicted", "0.5")
    assert status == 0
    for part in (
        "alignment target",
        "whole step",
        "A100",
        "seconds on one A100, for 3000 steps at 125 TFLOP/s (40% of 312)",
        "clips fit",
        "for the run's folder",
    ):
        assert part in out
    refused(run("cost", "mam2_b_k400", "--utilisation", "0"), "utilisation is 0.0", "above 0, at most 1")
    refused(run("cost", "mam2_b_k400", "--utilisation", "2"), "utilisation is 2.0", "at most 1")
    for length, said in (("9 epochs", "give --videos N"), ("900000 steps", "hours on one H100 SXM, for 900000 steps")):
        status, out, _ = run("cost", "mam2_tiny", "--loop.duration", length)
        assert status == 0
        assert said in out
    status, out, _ = run("cost", "mam2_b_k400_rp", "--scale", "tiny")
    assert status == 0
    assert "for 3000 steps" in out
    assert "0.002672" in out  # TFLOP per clip; the paper's size takes 2.5
    refused(run("cost", "mam2_tiny", "--scale", "tiny"), "has sizes of its own")
    refused(run("cost", "mam2_b_k4000"), "mam2_b_k400")
    refused(run("cost"), "Name a recipe")


def test_a_public_encoder_from_its_folder_to_predictions(run, videos, tmp_path, monkeypatch) -> None:
    """Import, adapt, fine-tune, evaluate and probe, from a folder as Hugging Face writes it."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    vit = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=8))
    vit.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    source, file = f"hf:{tmp_path / 'vit'}", tmp_path / "encoder.safetensors"
    status, out, _ = run("import", source, "--frames", 4, "--out", file)
    assert status == 0
    assert "zero, as the file has none" not in out
    assert "new: temporal attention" in out
    assert f"Wrote {file}: 4 frames of 16², factorised attention. Licence: apache-2.0." in out
    data = ("--data.root", videos, "--data.stride-frames", 1, "--data.num-workers", 0)
    short = ("--loop.batch-size", 4, "--loop.duration", "2 steps", "--optim.warmup", "1 steps")
    start = ("--encoder.frames", 4, "--init", source)
    adapt = ("pretrain", "mam2_adapt_b", *data, *short, *start, "--out", tmp_path / "a")
    assert run(*adapt)[0] == 0
    origin = read_origin(tmp_path / "a" / "encoder.safetensors")
    assert origin == Origin(source=str(tmp_path / "vit"), licence="apache-2.0")
    start, end = load_encoder(file), load_encoder(tmp_path / "a")
    assert torch.equal(start.blocks[0].space.qkv.weight, end.blocks[0].space.qkv.weight)  # it waits for two epochs
    monkeypatch.chdir(tmp_path)
    quick = ("--kind", "knn", "--no-baseline", "--train-clips", 1, "--test-clips", 1)
    assert run("probe", source, "--train", videos, "--test", videos, *quick)[0] == 0
    assert (tmp_path / "probe" / "probe_knn.json").exists()  # not in a folder called hf:
    shutil.rmtree(tmp_path / "vit")  # a run goes on without what it began with
    assert run(*adapt, "--optim.freeze-encoder-for", "0 steps")[0] == 2  # another run
    assert run(*adapt)[0] == 0
    tune = ("finetune", "finetune_tiny", *data, *short, "--init", tmp_path / "a", "--out", tmp_path / "t")
    assert run(*tune)[0] == 0
    assert load_classifier(tmp_path / "t")[0].encoder.origin == origin
    assert run("evaluate", tmp_path / "t", "--data.root", videos)[0] == 0
    probe = ("probe", file, "--train", videos, "--test", videos, "--kind", "knn", "--out", tmp_path / "p")
    assert run(*probe)[0] == 0
    for number, alone in enumerate((file, tmp_path / "t")):
        picture = tmp_path / f"{number}.png"
        assert run("show", alone, videos / "left" / "0.mp4", "--out", picture)[0] == 0
        assert picture.stat().st_size > 1000
    refused(run("import", "hf:nobody/nothing", "--file", file, "--out", file), "--file goes with a name of timm")
    refused(run("import", tmp_path / "absent", "--out", file), "does not exist")
    refused(
        run("pretrain", "mam2_adapt_b", *data, "--init", "timm:vit_bas", "--out", tmp_path / "x"), "timm has no model"
    )
