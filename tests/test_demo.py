"""The demo: the values of each part of its page, and the whole page in a browser."""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TINY, TINY_ENCODER, opened, write_video
from PIL import Image

import mam2.use.demo.shown
from mam2.__main__ import main
from mam2.config import UserError
from mam2.data.clips import Data
from mam2.data.windows import Window, evenly
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.load import load_encoder
from mam2.model.weights import save_encoder
from mam2.trained import Trained, open_model
from mam2.use.demo.shown import (
    Scores,
    alike,
    classified,
    in_words,
    load_demo,
    moving_predictions,
    problem_of,
    scores_shown,
)
from mam2.use.embed import embed_file, read_clip
from mam2.use.embedder import Embed, span_of
from mam2.use.predict import Predict, scorer_of
from mam2.use.search import embed_query, search
from mam2.use.sliding_windows import VideoVectors, vectors_of_video

ROOT = Path(__file__).parents[1]
SIZES = EncoderConfig(width=16, depth=1, num_heads=2, frames=3, size=16, patch_size=4)


def command(*arguments: object) -> None:
    """Runs the command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mam2", *map(str, arguments)])
        main()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """A folder with a pre-training `mine`, a fine-tuning `tuned`, a library of videos, its features, and a query."""
    place = tmp_path_factory.mktemp("demo")
    short = ("--loop.duration", "2 steps")
    command("pretrain", "mam2_tiny", "--data.root", videos, "--out", place / "mine", *TINY, *short)
    tuned = ("--init", place / "mine", "--data.root", videos, "--out", place / "tuned", *TINY_ENCODER, *short)
    command("finetune", "finetune_tiny", *tuned)
    (place / "library").mkdir()
    for number in range(3):
        write_video(place / "library" / f"{number}.mp4", num_frames=30 + 7 * number, size=(48, 48 + 16 * number))
    write_video(place / "query <b>.mp4", num_frames=40)
    write_video(place / "short.mp4", num_frames=7)
    (place / "text.mp4").write_text("These are words.\n" * 99)
    config = Embed(num_workers=0, dtype="float32")
    embed_file(place / "mine", place / "library", place / "features.parquet", config=config)
    return place


def opened_picture(picture: tuple[bytes, str]) -> Image.Image:
    return Image.open(io.BytesIO(picture[0]))


def captions(pictures: list[tuple[bytes, str]]) -> list[str]:
    return [caption for _, caption in pictures]


# --- scores along a video -----------------------------------------------------------------------------------


def scores_along(model: Trained, video: Path, *, stride_frames: int = 4, max_windows: int = 64) -> VideoVectors:
    model = replace(model, data=Data(stride_frames=stride_frames, num_workers=0))
    scorer = scorer_of(model, Predict(window=str(span_of(model.data, model.shape.frames))))
    return vectors_of_video(scorer, video, max_windows=max_windows)


def test_scores_are_those_of_each_window_by_itself(place: Path) -> None:
    trained = open_model(place / "tuned")
    model = trained.need_classifier()
    torch.nn.init.normal_(model.head.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    path = place / "query <b>.mp4"
    line = scores_along(trained, path)
    assert [(window.first, window.last) for window in line.windows] == [(0, 12), (12, 24), (24, 36), (28, 40)]
    assert (line.num_windows, line.is_short, line.problem) == (4, False, "")
    clips = [read_clip(path, SIZES, start=window.start, end=window.end) for window in line.windows]
    with torch.no_grad():
        expected_WK = model(torch.stack(clips)).softmax(dim=1)
    torch.testing.assert_close(line.vector_BF, expected_WK, atol=1e-6, rtol=0)
    torch.testing.assert_close(line.vector_BF.sum(dim=1), torch.ones(4))
    assert line.vector_BF.std(dim=0).min() > 1e-3  # the windows differ


def test_a_long_video_is_looked_at_here_and_there(place: Path) -> None:
    windows = [Window(i, i + 1, i / 10, (i + 1) / 10) for i in range(10)]
    assert [window.first for window in evenly(windows, 4)] == [0, 3, 6, 9]
    assert evenly(windows, 10) == windows
    assert evenly(windows, 1) == windows[:1]
    model = open_model(place / "tuned")
    line = scores_along(model, place / "query <b>.mp4", stride_frames=1, max_windows=3)
    assert [window.first for window in line.windows] == [0, 18, 37]
    assert line.num_windows == 14
    notes = scores_shown(line, model.classes, model.kind).notes
    assert "3 of its 14 windows were looked at, spread evenly." in notes


def test_a_short_video_is_one_window(place: Path) -> None:
    model = open_model(place / "tuned")
    line = scores_along(model, place / "short.mp4")
    assert [(window.first, window.last) for window in line.windows] == [(0, 7)]
    [_, note] = scores_shown(line, model.classes, model.kind).notes
    assert note.startswith("The video is shorter than a clip of the training")


def scores_of(kind: str, scores: list[list[float]], classes: tuple[str, ...], problem: str = "") -> Scores:
    line = VideoVectors(
        path="/a & b/x.mp4",
        windows=tuple(Window(8 * i, 8 * i + 8, 0.5 * i, 0.5 * i + 0.5) for i in range(len(scores))),
        vector_BF=torch.tensor(scores),
        num_windows=len(scores),
        is_short=False,
        problem=problem,
    )
    return scores_shown(line, classes, kind)


def test_means_chart_and_table_hold_the_probabilities() -> None:
    found = scores_of(
        "classes", [[0.1, 0.25, 0.65], [0.7, 0.05, 0.25]], ("run", "<jump>", "sit"), "/a & b/x.mp4 is cut."
    )
    assert found.summary == pytest.approx({"run": 0.4, "<jump>": 0.15, "sit": 0.45})
    assert found.columns == ("from", "to", "sit", "run", "<jump>")
    assert found.rows == [
        ["0:00.0", "0:00.5", "65.0%", "10.0%", "25.0%"],
        ["0:00.5", "0:01.0", "25.0%", "70.0%", "5.0%"],
    ]
    assert [list(chart.y) for chart in found.figure.data[1:]] == [
        pytest.approx(heights) for heights in ([0.1, 0.7], [0.65, 0.25], [0.25, 0.05])
    ]
    assert found.notes[-2:] == ("Each window lasts 0.5 seconds.", "Left out: x.mp4 is cut.")


def test_several_classes_and_numbers() -> None:
    found = scores_of("multilabel", [[0.9, 0.8]], ("run", "jump"))
    assert "do not sum to 100%" in " ".join(found.notes)
    found = scores_of("regression", [[1.5], [-4.0]], ("number",))
    assert found.summary == "-1.25"
    assert found.rows == [["0:00.0", "0:00.5", "1.5"], ["0:00.5", "0:01.0", "-4"]]
    assert "%" not in " ".join(found.notes)


# --- predictions, similar windows ---------------------------------------------------------------------------


def test_predictions_are_moving_pictures_in_step(place: Path) -> None:
    shown = load_demo(place / "mine")
    found, again, other = (moving_predictions(shown, str(place / "query <b>.mp4"), seed=seed) for seed in (0, 0, 1))
    pictures, sheet_HWC, notes = found
    assert captions(pictures) == [
        "Input",
        "Input with mask",
        "Predicted codes",
        "True motion",
        "Predicted motion",
        "Attention",
    ]
    moving = [opened_picture(picture) for picture in pictures]
    assert [picture.size for picture in moving] == [(160, 160)] * 6
    assert [moving[row].n_frames for row in (0, 1, 3)] == [3, 3, 3]  # of motion, too; the others may stand still
    assert sheet_HWC.shape[1] > 3 * 128
    assert "Input with mask: masked patches grey (75%)." in notes
    assert re.fullmatch(r"Codes right in this clip: \d+\.\d%\.", notes[-1])
    assert pictures[1] == again[0][1] != other[0][1]  # the mask is the seed's


def test_an_encoder_alone_shows_its_attention(place: Path, tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder.safetensors", load_encoder(place / "mine"))
    shown = load_demo(tmp_path / "encoder.safetensors")
    assert (shown.scorer, shown.features) == (None, None)
    pictures, _, _ = moving_predictions(shown, str(place / "query <b>.mp4"), seed=0)
    assert captions(pictures) == ["Input", "Attention"]
    assert [line.partition(":")[0] for line in shown.missing] == [
        "Predicted appearance and motion",
        "Classes along the video",
        "Similar windows",
    ]


def test_similar_windows_are_those_of_search(place: Path) -> None:
    shown = load_demo(place / "mine", features=place / "features.parquet", videos=place / "library")
    hits = search(place / "features.parquet", place / "query <b>.mp4", top_k=8)
    asked, found, _ = alike(shown, str(place / "query <b>.mp4"))
    assert [re.match(r"([\d.]+), like .*: (\d\.mp4), ", caption).groups() for caption in captions(found)] == [
        (f"{hit.score:.3f}", Path(hit.found.path).name) for hit in hits
    ]
    assert len(asked) == len({hit.query for hit in hits})
    assert all(opened_picture(picture).n_frames > 1 for picture in asked + found)


def test_a_copy_finds_its_original_and_a_video_not_itself(place: Path, tmp_path: Path) -> None:
    shown = load_demo(place / "mine", features=place / "features.parquet", videos=place / "library")
    _, found, _ = alike(shown, shown.videos["0.mp4"])
    assert not [caption for caption in captions(found) if ": 0.mp4" in caption]
    _, found, notes = alike(shown, str(shutil.copy(place / "library" / "0.mp4", tmp_path)))
    assert re.match(r"1\.000, like .*: 0\.mp4", captions(found)[0])
    assert "An upload is a copy" in " ".join(notes)


def test_of_a_long_query_some_windows_are_embedded(place: Path) -> None:
    _, embedder = load_demo(place / "mine", features=place / "features.parquet").features
    whole = embed_query(str(place / "query <b>.mp4"), embedder)
    some = embed_query(str(place / "query <b>.mp4"), embedder, max_windows=2)
    assert len(whole.windows) == 4
    assert some.windows == (whole.windows[0], whole.windows[3])
    torch.testing.assert_close(some.x_QF, whole.x_QF[[0, 3]])


def test_windows_whose_file_is_gone_are_named(place: Path) -> None:
    shown = load_demo(place / "mine", features=place / "features.parquet")
    (place / "library").rename(place / "moved")
    try:
        _, found, notes = alike(shown, str(place / "query <b>.mp4"))
    finally:
        (place / "moved").rename(place / "library")
    assert found == []
    problems = [note for note in notes if "can't be shown: " in note]
    assert len(problems) == 8
    assert str(place) not in " ".join(problems)


def test_the_page_says_what_it_shows(place: Path) -> None:
    shown = load_demo(place / "tuned", videos=place / "library")
    assert shown.title == "Try tuned"
    assert shown.about == (
        "A classifier of 2 classes: 1 blocks, 16 wide. It looks at clips of 3 frames of 16 × 16 pixels, 4 frames of "
        "the video apart."
    )
    assert list(shown.videos) == ["0.mp4", "1.mp4", "2.mp4"]
    assert shown.videos["1.mp4"] == str(place / "library" / "1.mp4")
    assert len(shown.missing) == 2
    assert "A pre-trained model: " in load_demo(place / "mine").about


def test_of_many_videos_the_first_can_be_chosen(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mam2.use.demo.shown, "MAX_CHOICES", 2)
    assert list(load_demo(place / "mine", videos=place / "library").videos) == ["0.mp4", "1.mp4"]
    assert "has 3 videos; the page lets choose from the first 2" in caplog.text


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_problems_are_messages_that_name_no_folder(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    video = str(place / "text.mp4")
    with pytest.raises(UserError, match="can't be decoded") as error:
        classified(load_demo(place / "tuned"), video)
    assert in_words(error.value, video).startswith("text.mp4 can't be decoded: ")
    shown = load_demo(place / "mine", features=place / "features.parquet")
    with pytest.raises(UserError, match=r"short.mp4 has 7 frames, 0.233 seconds: the query is shorter than a window"):
        alike(shown, str(place / "short.mp4"))
    assert problem_of(video).startswith("text.mp4 can't be decoded: ")
    assert problem_of(str(place / "short.mp4")) == ""
    assert in_words(ZeroDivisionError(), "/secret/some.mp4") == (
        "Something is wrong in the program, so a part of some.mp4 can't be shown. Its terminal says more."
    )
    assert "ZeroDivisionError" in caplog.text


def test_features_of_another_encoder_are_refused(place: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_encoder(tmp_path / "other.safetensors", VideoEncoder(SIZES))
    with pytest.raises(UserError, match=r"holds other features: encoder differ. There: encoder \w{12}, .* Here: enc"):
        load_demo(tmp_path / "other.safetensors", features=place / "features.parquet")


def test_wrong_arguments_are_refused(place: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    status, _, err = run("demo", place / "absent")
    assert status == 2
    assert "absent does not exist. Give a run's folder" in err
    assert run("demo", place / "mine", "--features", place / "absent.parquet")[0] == 2
    status, _, err = run("demo", place / "mine", "--videos", place / "absent")
    assert status == 2
    assert "absent" in err
    assert run("demo", place / "mine", "--port", "70000")[0] == 2
    monkeypatch.setitem(sys.modules, "gradio", None)
    status, _, err = run("demo", place / "mine")
    assert (status, err) == (2, "mam2: The page needs the package gradio. Install it: pip install 'mam2[demo]'.")


# --- in a browser -------------------------------------------------------------------------------------------

# Runs at the start of the server: Ctrl-C ends it although pytest may ignore it; other machines are not asked.
AT_START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
def watch(event, arguments):
    place = arguments[1] if event == "socket.connect" else arguments if event == "socket.getaddrinfo" else None
    if isinstance(place, tuple) and str(place[0]) not in ("127.0.0.1", "localhost", "0.0.0.0", "::1", "None"):
        print("asks", event, place, flush=True)
sys.addaudithook(watch)
"""


@contextmanager
def server(folder: Path, *arguments: object) -> Iterator[str]:
    """Starts a server and gives its address. Ctrl-C ends it; no uploads are left, and no other machine was asked."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    (folder / "start").mkdir()
    (folder / "start" / "sitecustomize.py").write_text(AT_START)
    (folder / "temporary").mkdir()
    places = {"PYTHONPATH": f"{folder / 'start'}{os.pathsep}{ROOT}", "TMPDIR": str(folder / "temporary")}
    with (folder / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, **places},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        line = process.stdout.readline()
        assert line.startswith("Open http://"), line + (folder / "stderr.txt").read_text()
        yield line.split()[1]
        assert list((folder / "temporary").rglob("*.mp4"))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert rest == ""
        assert not list((folder / "temporary").rglob("*.mp4"))
        assert process.returncode in (130, -signal.SIGINT)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_scores_and_messages_in_a_browser(place: Path, tmp_path: Path, chromium) -> None:
    run = ("-m", "mam2", "demo", place / "tuned", "--videos", place / "library")
    with server(tmp_path, *run) as address, opened(chromium, address, width=390) as page:
        assert page.inner_text("h1") == "Try tuned"
        assert "motion: tuned is no pre-training run. The folder of a mam2 pretrain shows" in page.inner_text("body")
        page.set_input_files("input[type=file]", place / "text.mp4")
        page.wait_for_selector("text=text.mp4 can't be decoded: ")
        page.click("[aria-label=Clear]")
        page.wait_for_selector("text=The model's output appears here.")
        page.set_input_files("input[type=file]", place / "query <b>.mp4")
        page.wait_for_selector("text=Attention of the encoder")
        page.wait_for_selector("text=Most probable")
        assert page.locator("b").count() == 0, "the file's name is text"
        page.wait_for_selector("img[alt=Attention]")
        page.click("input[aria-label='or one of these']")
        page.click("text=2.mp4")
        page.wait_for_selector("text=Drop File Here")  # the upload gives way to the choice
        page.wait_for_selector("text=Most probable")
        assert str(place) not in page.content()


@pytest.mark.slow
def test_predictions_and_similar_windows_in_a_browser(place: Path, tmp_path: Path, chromium) -> None:
    """The script of docs/demo.md, as a Space starts it."""
    [script] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "demo.md").read_text(), re.DOTALL)
    (tmp_path / "app.py").write_text(script)
    shutil.copytree(place / "mine", tmp_path / "run")
    shutil.copytree(place / "library", tmp_path / "videos")
    shutil.copy(place / "features.parquet", tmp_path)
    with server(tmp_path, "app.py") as address, opened(chromium, address, width=1200) as page:
        assert page.inner_text("h1") == "Try run"
        page.set_input_files("input[type=file]", place / "query <b>.mp4")
        page.wait_for_selector("text=Similar windows >> visible=true")
        images = page.locator(".thumbnail-item img")
        shown = "count => document.querySelectorAll('.thumbnail-item img').length >= count"
        page.wait_for_function(shown, arg=6 + 1 + 8)
        widths = "all => Promise.all(all.map(x => (x.loading = 'eager', x.decode()).then(() => x.naturalWidth)))"
        assert min(images.evaluate_all(widths)) >= 16
        mask = page.get_attribute("img[alt='Input with mask']", "src")
        page.click("text=Another mask")
        page.wait_for_function("mask => document.querySelector(\"img[alt='Input with mask']\").src != mask", arg=mask)
        page.wait_for_function(shown, arg=6 + 1 + 8)


def test_a_port_that_is_taken_is_refused(place: Path, run) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, out, err = run("demo", place / "mine", "--port", port)
    assert (status, out) == (2, "")
    assert err.startswith(f"mam2: Port {port} of 127.0.0.1 can't be used (Address already in use). Give another --port")
