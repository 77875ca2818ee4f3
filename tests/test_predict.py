"""Labels along videos: each row is what the classifier says of its window, in each format, and computed once."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import mam2, write_video
from PIL import Image
from torch import Tensor

import mam2.use.sliding_windows as along
from mam2 import predict, read_clip
from mam2.config import UserError
from mam2.data.clips import Data
from mam2.data.labels import LabelKind
from mam2.model.classifier import Classifier, scores_of
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import load_classifier, save_classifier
from mam2.pictures.timeline import GREY, columns_of, labels_shown, scores_figure, title_of
from mam2.train.finetune import Finetune
from mam2.train.run import open_run
from mam2.use.features_file import parts_folder
from mam2.use.predict import Predict, predict_file

SIZES = EncoderConfig(width=16, depth=1, num_heads=2, frames=4, size=16, patch_size=8)
WINDOWS = Predict(window="16 frames", hop="8 frames", top_k=3)
Run = Callable[..., tuple[int, str, str]]

KILLED = """
import os, signal, sys
from pathlib import Path
import mam2.use.sliding_windows as along
from mam2.model.classifier import Classifier
from mam2.use.predict import Predict, predict_file

along.WINDOWS_AT_ONCE, along.PART_SECONDS = 1, 0.0
forward, seen = Classifier.forward, []

def stopping(self, clip):
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(clip)
    return forward(self, clip)

Classifier.forward = stopping
predict_file(*map(Path, sys.argv[1:4]), config=Predict(window="16 frames", hop="8 frames", top_k=3))
"""


def write_grey(path: Path, greys: list[int]) -> Path:
    """A video with a frame of each grey level, 10 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for grey in greys:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_run(folder: Path, kind: LabelKind, classes: tuple[str, ...]) -> Path:
    """The folder of a run whose classifier gives its first output to dark clips, and its second to bright ones."""
    torch.manual_seed(0)
    classifier = Classifier(VideoEncoder(SIZES), len(classes), kind).eval()
    dark, bright = (torch.full((1, 4, 3, 16, 16), grey, dtype=torch.uint8) for grey in (20, 235))
    inputs = []
    classifier.head.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0]))
    with torch.no_grad():
        classifier(dark)
        classifier(bright)
        difference = inputs[1] - inputs[0]
        weight = 8 * difference / difference.square().sum()
        classifier.head.weight.normal_(std=0.1)
        classifier.head.bias.zero_()
        for number, sign in ((0, -1), (len(classes) - 1, 1)):
            classifier.head.weight[number] = sign * weight
            classifier.head.bias[number] = -sign * weight @ (inputs[0] + inputs[1]) / 2
    open_run(folder, "finetune", Finetune(encoder=SIZES, data=Data(num_workers=0)), resume=False, classes=classes)
    save_classifier(folder / "classifier.safetensors", classifier, classes)
    return folder


RUNS: dict[LabelKind, tuple[str, ...]] = {
    "classes": ("night", "dawn", "day"),
    "multilabel": ("dark", "grey", "bright"),
    "regression": ("lux",),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[LabelKind, Path]:
    """A run with each kind of labels."""
    place = tmp_path_factory.mktemp("runs")
    return {kind: make_run(place / kind, kind, classes) for kind, classes in RUNS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos, of 40 and of 10 frames."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "long.mp4", num_frames=40)
    write_video(folder / "short.mp4", num_frames=10)
    return folder


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of clips that went through a classifier, call by call."""
    seen, forward = [], Classifier.forward

    def counted(self: Classifier, clip_BTCHW: Tensor) -> Tensor:
        seen.append(len(clip_BTCHW))
        return forward(self, clip_BTCHW)

    monkeypatch.setattr(Classifier, "forward", counted)
    return seen


def rows_of(file: Path) -> list[tuple[str, float, float | None, str, float]]:
    """Path, start, end, label and score of each row, from any format."""
    if file.suffix == ".parquet":
        rows = pq.read_table(file).to_pylist()
    elif file.suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        rows = list(csv.DictReader(file.read_text().splitlines()))
    assert all(list(row) == ["path", "start", "end", "label", "score"] for row in rows)
    times = ((row["start"], row["end"], row["score"]) for row in rows)
    return [
        (row["path"], float(start), None if end in ("", None) else float(end), row["label"], float(score))
        for row, (start, end, score) in zip(rows, times, strict=True)
    ]


@pytest.mark.parametrize("kind", RUNS)
def test_windows_are_what_the_classifier_says_of_them(
    runs: dict[LabelKind, Path], folder: Path, kind: LabelKind
) -> None:
    found = predict(runs[kind], folder, window="16 frames", hop="8 frames", top_k=3)
    classifier, classes = load_classifier(runs[kind])
    spans = list(dict.fromkeys((Path(of.path).name, round(30 * of.start), round(30 * of.end)) for of in found))
    long = [("long.mp4", start, start + 16) for start in (0, 8, 16, 24)]
    assert spans == [*long, ("short.mp4", 0, 10)]
    assert len(found) == 5 * len(classes)
    for first in range(0, len(found), len(classes)):
        window = found[first : first + len(classes)]
        clip = read_clip(window[0].path, SIZES, start=window[0].start, end=window[0].end)
        with torch.no_grad():
            expected = scores_of(classifier(clip[None]), kind)[0]
        assert {of.label: of.score for of in window} == {
            name: pytest.approx(score, abs=1e-6) for name, score in zip(classes, expected.tolist(), strict=True)
        }
        assert [of.score for of in window] == sorted((of.score for of in window), reverse=True)
    if kind == "multilabel":
        assert sum(of.score for of in found[:3]) != pytest.approx(1, abs=1e-3)


def test_a_video_whose_halves_are_of_two_classes(runs: dict[LabelKind, Path], tmp_path: Path) -> None:
    video = write_grey(tmp_path / "sunrise.mp4", [20] * 40 + [235] * 40)
    found = predict(runs["classes"], video, window="1 s", top_k=1)
    assert [(of.start, of.end) for of in found] == [(second, second + 1) for second in range(8)]
    assert [of.label for of in found] == ["night"] * 4 + ["day"] * 4
    assert min(of.score for of in found) > 0.9
    several = predict(runs["multilabel"], video, window="1 s")
    assert [round(of.score) for of in several if of.label == "bright"] == [0] * 4 + [1] * 4
    assert [round(of.score) for of in several if of.label == "dark"] == [1] * 4 + [0] * 4
    numbers = predict(runs["regression"], video, window="1 s")
    assert [of.label for of in numbers] == ["lux"] * 8
    assert [of.score for of in numbers] == pytest.approx([-4] * 4 + [4] * 4, abs=0.5)
    out, page = tmp_path / "sunrise.jsonl", tmp_path / "sunrise.html"
    predict_file(runs["classes"], video, out, config=Predict(window="1 s"), timeline=page)
    text = page.read_text()
    assert "<title>Labels along sunrise.mp4</title>" in text
    data = text[re.search(r'Plotly\.newPlot\(\s*"[\w-]+",\s*(?=\[)', text).end() :]
    strip, *charts = json.JSONDecoder().raw_decode(data)[0]
    assert strip["hovertext"] == ["night"] * 4 + ["day"] * 4
    names = re.findall(r'"text":"(\w+): up to', data)
    heights = {name: chart["y"] for name, chart in zip(names, charts, strict=True)}
    assert min(heights["night"][:4] + heights["day"][4:]) > 0.9
    assert max(heights["night"][4:] + heights["day"][:4] + heights["dawn"]) < 0.1


def test_whole_videos_have_their_length(runs: dict[LabelKind, Path], folder: Path, tmp_path: Path) -> None:
    whole = predict(runs["classes"], folder)
    assert [(Path(of.path).name, of.start, round(30 * of.end)) for of in whole[::3]] == [
        ("long.mp4", 0.0, 40),
        ("short.mp4", 0.0, 10),
    ]
    [best] = predict(runs["classes"], folder / "long.mp4", top_k=1)
    assert best == whole[0]
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,start,end\n{folder}/long.mp4,0.4,0.8\n")
    [of] = predict(runs["classes"], listed, top_k=1)
    assert of.path.endswith("long.mp4#t=0.4,0.8")
    assert (of.start, of.end) == (0.0, pytest.approx(0.4))


def test_folders_of_frames_have_no_times(runs: dict[LabelKind, Path], tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number in range(20):
        Image.fromarray(np.full((32, 32, 3), 235, np.uint8)).save(tmp_path / "frames" / f"{number:05d}.jpg")
    (tmp_path / "list.csv").write_text("path\nframes\n")
    for name in ("p.csv", "p.jsonl", "p.parquet"):
        predict_file(runs["classes"], tmp_path / "list.csv", tmp_path / name, config=Predict(top_k=1))
        [row] = rows_of(tmp_path / name)
        assert row[1:4] == (0.0, None, "day")
    with pytest.raises(UserError, match="does not say how many frames it has per second"):
        predict(runs["classes"], tmp_path / "list.csv", window="16 frames")


@pytest.mark.parametrize("config", [WINDOWS, Predict(top_k=2)], ids=["windows", "whole"])
def test_all_formats_hold_the_same_rows(
    runs: dict[LabelKind, Path], folder: Path, tmp_path: Path, config: Predict
) -> None:
    (folder / "mit Komma, und ü.mp4").symlink_to(folder / "short.mp4")
    files = [tmp_path / "out" / name for name in ("p.jsonl", "p.csv", "p.parquet")]
    for file in files:
        done = predict_file(runs["classes"], folder, file, config=config)
        assert (done.num_videos, done.num_windows, done.bad) == (3, 6 if config.window else 3, {})
    one, *others = map(rows_of, files)
    assert len(one) == (18 if config.window else 6)
    assert all(rows == one for rows in others)
    assert sorted(os.listdir(tmp_path / "out")) == ["p.csv", "p.jsonl", "p.parquet"]


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_a_kill_in_the_middle_loses_nothing(
    runs: dict[LabelKind, Path], folder: Path, tmp_path: Path, clips: list[int], monkeypatch, run: Run, how: str
) -> None:
    monkeypatch.setattr(along, "WINDOWS_AT_ONCE", 1)
    monkeypatch.setattr(along, "PART_SECONDS", 1000.0)
    out, whole = tmp_path / "p.jsonl", tmp_path / "whole.jsonl"
    predict_file(runs["classes"], folder, whole, config=WINDOWS)
    assert clips == [1] * 5
    out.write_text("of before\n")
    command = ("predict", runs["classes"], folder, "--out", out, "--window", "16 frames", "--hop", "8 frames")
    if how == "kill":
        words = [sys.executable, "-c", KILLED, runs["classes"], folder, out]
        assert subprocess.run(words, timeout=120, check=False).returncode == -signal.SIGKILL
    else:
        forward = Classifier.forward

        def stopping(self: Classifier, clip_BTCHW: Tensor) -> Tensor:
            if len(clips) == 8:
                raise KeyboardInterrupt
            return forward(self, clip_BTCHW)

        monkeypatch.setattr(Classifier, "forward", stopping)
        status, _, err = run(*command, "--top-k", 3)
        assert status == 130
        assert "the same command resumes from there" in err
        monkeypatch.setattr(Classifier, "forward", forward)
    assert out.read_text() == "of before\n"
    assert sum(pq.read_metadata(part).num_rows for part in parts_folder(out).glob("*.parquet")) == 2
    status, _, err = run(*command[:-1], "4 frames")
    assert status == 2
    assert "hop differ" in err
    assert f"remove {out}.parts" in err
    before = len(clips)
    done = predict_file(runs["classes"], folder, out, config=WINDOWS)
    assert (done.num_windows, len(clips) - before) == (5, 3)
    assert out.read_text() == whole.read_text()
    assert not parts_folder(out).exists()


def test_what_is_damaged_is_named_and_counted(
    runs: dict[LabelKind, Path], folder: Path, tmp_path, run: Run, caplog
) -> None:
    (folder / "bad.mp4").write_bytes(b"no video")
    out = tmp_path / "p.csv"
    for words, windows in ((("--window", "16 frames"), "4 windows of "), ((), "")):
        caplog.clear()
        status, shown, _ = run("predict", runs["classes"], folder, "--out", out, *words)
        assert status == 0
        assert f"p.csv, {windows}2 videos; of 1 something was left out, see above" in shown
        assert f"Left out: {folder}/bad.mp4 can't be decoded" in caplog.text
        assert len({row[0] for row in rows_of(out)}) == 2
    raw = os.fsencode(folder) + b"/\xff.mp4"
    os.symlink(folder / "short.mp4", raw)
    (folder / "bad.mp4").unlink()
    for words in (("--window", "16 frames"), ()):
        caplog.clear()
        status, shown, _ = run("predict", runs["classes"], folder, "--out", out, *words)
        assert status == 0
        assert "2 videos; of 1 something was left out" in shown
        assert "not UTF-8" in caplog.text


def test_what_can_not_be_done_is_said(runs: dict[LabelKind, Path], folder: Path, tmp_path: Path, run: Run) -> None:
    tuned, out = runs["classes"], tmp_path / "p.jsonl"

    def refused(*words: object, out: Path = out) -> str:
        status, _, err = run("predict", tuned, *words, "--out", out)
        assert status == 2
        assert "Traceback" not in err
        return err

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no videos" in refused(empty, "--window", "1 s")
    assert "shorter than a clip of 4 frames" in refused(folder, "--window", "3 frames")
    assert "None of the 2 videos can be used" in refused(folder, "--window", "0.1 s")
    assert "Give a longer --window" in refused(folder, "--window", "0.1 s")
    assert "is no length" in refused(folder, "--window", "long")
    assert "Give a --window too" in refused(folder, "--hop", "1 s")
    assert "a window has one view" in refused(folder, "--window", "1 s", "--clips", "2")
    assert "A timeline shows windows" in refused(folder, "--timeline", tmp_path / "t.html")
    assert "ends in .html" in refused(folder, "--window", "1 s", "--timeline", tmp_path / "t.png")
    features = tmp_path / "features.parquet"
    assert run("embed", tuned, folder, "--out", features, "--window", "1 s", "--num-workers", 0)[0] == 0
    kept = features.read_bytes()
    assert "holds the features of" in refused(folder, "--window", "1 s", out=features)
    assert features.read_bytes() == kept
    assert sorted(os.listdir(tmp_path)) == ["empty", "features.parquet", "videos"]
    with pytest.raises(UserError, match="is no run's folder"):
        predict(tmp_path / "absent", folder, window="1 s")


def test_a_full_disk_keeps_what_is_there(runs, folder: Path, tmp_path: Path, run: Run, monkeypatch, clips) -> None:
    out = tmp_path / "p.jsonl"
    out.write_text("of before\n")
    command = ("predict", runs["classes"], folder, "--out", out, "--window", "16 frames")

    def full(path: Path) -> None:
        if ".jsonl." in path.name and path.parent == tmp_path:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mam2.files.sync", full)
        status, _, err = run(*command)
    assert status == 2
    assert f"{out} can't be written: No space left on device" in err
    assert out.read_text() == "of before\n"
    assert run(*command)[0] == 0
    assert sum(clips) == 4, "no window is computed again"
    assert len(rows_of(out)) == 12


def test_processes_share_the_windows(runs: dict[LabelKind, Path], folder: Path, tmp_path: Path) -> None:
    for number in range(5):
        write_video(folder / f"{number}.mp4", num_frames=20 + number)
    (folder / "bad.mp4").write_bytes(b"no video")
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    predict_file(runs["classes"], folder, one, config=WINDOWS)
    words = ("--window", "16 frames", "--hop", "8 frames", "--top-k", 3, "--timeline", tmp_path / "t.html")
    done = mam2("predict", runs["classes"], folder, "--out", two, *words, processes=2)
    assert done.returncode == 0, done.stderr
    assert "15 windows of 7 videos; of 1 something was left out" in " ".join(done.stdout.split())
    assert [row[:4] for row in rows_of(two)] == [row[:4] for row in rows_of(one)]
    assert [row[4] for row in rows_of(two)] == pytest.approx([row[4] for row in rows_of(one)], abs=1e-5)
    assert "4.mp4" in (tmp_path / "t.html").read_text()


# --- the picture --------------------------------------------------------------------------------------------


def test_columns_share_the_time_of_windows_that_overlap() -> None:
    assert columns_of([(0, 4), (2, 6), (4, 8), (5, 9)]) == [(0, 3), (3, 5), (5, 6.5), (6.5, 9)]
    assert columns_of([(0, 4), (4, 5), (5, 9)]) == [(0, 4), (4, 5), (5, 9)]
    assert columns_of([(0, 2), (5, 7)]) == [(0, 2), (5, 7)], "what no window has is left free"
    assert columns_of([(0, 2)]) == [(0, 2)]


def test_labels_that_are_true_for_the_longest_are_shown() -> None:
    score = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.45, 0.55, 0.0]])
    columns = [(0.0, 10.0), (10.0, 12.0), (12.0, 13.0)]
    assert labels_shown(score, columns, "classes") == [0, 1, 2]
    assert labels_shown(score, [*columns[1:], (0.0, 1.0)], "classes")[:2] == [1, 0], "by their highest score"
    several = torch.tensor([[0.9, 0.6, 0.95], [0.2, 0.6, 0.1]])
    assert labels_shown(several, [(0, 1), (1, 2)], "multilabel") == [2, 0, 1]
    assert labels_shown(torch.rand(4, 30), [(i, i + 1) for i in range(4)], "classes")[8:] == []


def test_a_figure_has_the_most_probable_label_and_a_chart_for_each() -> None:
    spans = [(0.0, 2.0), (2.0, 4.0), (5.0, 8.0)]
    score = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.0, 1.0]])
    color_of = {}
    strip, first, second = scores_figure(spans, score, ("run", "<b>%{x}"), "classes", color_of).data
    assert color_of == {1: strip.marker.color[0], 0: strip.marker.color[1]}
    assert strip.hovertext == ("&lt;b&gt;%{x}", "run", "&lt;b&gt;%{x}"), "plotly reads tags, but not templates in texts"
    assert (first.y, second.y) == ((0.75, 0.0, 1.0), (0.25, 1.0, 0.0)), "for the longest first"
    assert [time[14:19] for time in first.x] == ["00:00", "00:02", "00:05"]
    assert first.width == (2000, 2000, 3000), "what no window has is left free"
    figure = scores_figure(spans, score, ("run", "jump"), "multilabel", color_of)
    assert [note.text for note in figure.layout.annotations] == [
        "run: up to 1.00 at 0:02.0",
        "jump: up to 1.00 at 0:05.0",
    ]
    [line] = scores_figure(spans, torch.tensor([[1.5], [-4.0], [2.0]]), ("weight",), "regression", {}).data
    assert line.y == (1.5, -4.0, 2.0)


def test_a_figure_of_many_labels_and_windows_stays_small(monkeypatch) -> None:
    monkeypatch.setattr("mam2.pictures.timeline.MAX_COLUMNS", 3)
    score = torch.rand(10, 30, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    strip, *charts = scores_figure(
        [(i, i + 1) for i in range(10)], score, [str(k) for k in range(30)], "classes", {}
    ).data
    assert len(charts) == 8
    assert {len(chart.y) for chart in charts} == {3}
    shown = labels_shown(score, [(i, i + 1) for i in range(10)], "classes")
    torch.testing.assert_close(torch.tensor(charts[0].y), torch.stack([x.amax() for x in score[:, shown[0]].split(4)]))
    assert set(strip.marker.color) <= {GREY, *(chart.marker.color[0] for chart in charts)}


def test_the_title_names_three_videos() -> None:
    assert title_of(["a/x.mp4"]) == "Labels along x.mp4"
    assert title_of([f"{i}.mp4" for i in range(9)]) == "Labels along 0.mp4, 1.mp4, 2.mp4 and 6 others"


def test_a_page_of_many_windows_and_of_names(runs: dict[LabelKind, Path], tmp_path: Path, monkeypatch) -> None:
    """Neighbours are drawn together; names are text; a page holds all that it shows."""
    monkeypatch.setattr("mam2.pictures.timeline.MAX_COLUMNS", 3)
    video = write_grey(tmp_path / "<b>&.mp4", [20] * 20 + [235] * 20)
    page = tmp_path / "t.html"
    for kind in RUNS:
        config = Predict(window="4 frames")
        predict_file(runs[kind], video, tmp_path / "p.csv", config=config, timeline=page)
        text = page.read_text()
        assert "<title>Labels along &lt;b&gt;&amp;.mp4</title>" in text
        assert "10 windows; each column shows the highest of 4" in text
        assert text.count("data:image/webp") == 8
        text = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)  # plotly's, and the figures
        assert "<b>" not in text
        assert not re.search(r"(src|href)=.(?!data:)", text)
