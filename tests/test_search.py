"""Search in a features file: as a brute force over all of it finds, and refused where it would mean nothing."""

import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import write_video
from PIL import Image

import mam2.use.features_file
import mam2.use.search
from mam2 import load_encoder, near_duplicates, read_clip, search
from mam2.config import UserError
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import save_encoder
from mam2.pictures.hits import Card, clock, stretch, write_cards
from mam2.use.embed import embed_file
from mam2.use.embedder import Embed, load_embedder

SIZES = EncoderConfig(width=16, depth=1, num_heads=2, frames=4, size=16, patch_size=8)
Run = Callable[..., tuple[int, str, str]]
HERE = Embed(num_workers=0, dtype="float32", window="16 frames", hop="8 frames")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, a library of videos of which one is a copy, their features, and a query."""
    place = tmp_path_factory.mktemp("search")
    torch.manual_seed(0)
    save_encoder(place / "encoder.safetensors", VideoEncoder(SIZES))
    (place / "library").mkdir()
    for number in range(4):
        write_video(place / "library" / f"{number}.mp4", num_frames=30 + 7 * number, size=(48, 48 + 16 * number))
    shutil.copy(place / "library" / "2.mp4", place / "library" / "<b>copy.mp4")
    write_video(place / "query.mp4", num_frames=36, size=(64, 48))
    embed_file(place / "encoder.safetensors", place / "library", place / "features.parquet", config=HERE)
    return place


@pytest.fixture
def run(run: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process; its tables' lines are joined."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status, out, err = run(*arguments)
        return status, " ".join(out.split()), err

    return call


def brute_force(file: Path) -> tuple[list[tuple[str, float, float]], np.ndarray]:
    """Windows of a file, and their embeddings with length 1, in double precision."""
    rows = pq.read_table(file).to_pylist()
    x = np.array([row["embedding"] for row in rows], np.float64)
    return [(row["path"], row["start"], row["end"]) for row in rows], x / np.linalg.norm(x, axis=1, keepdims=True)


def where(window: mam2.use.search.Place) -> tuple[str, float, float]:
    return window.path, window.start, window.end


@pytest.mark.parametrize("rows_at_once", [3, 10_000])
def test_hits_are_those_of_a_brute_force(place: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setattr(mam2.use.features_file, "ROWS_AT_ONCE", rows_at_once)
    windows, x = brute_force(place / "features.parquet")
    encoder = load_encoder(place / "encoder.safetensors")
    starts = [0, 8, 16, 20]
    with torch.no_grad():
        query = torch.stack(
            [
                encoder(read_clip(place / "query.mp4", SIZES, start=start / 30)[None]).mean(dim=(1, 2))[0]
                for start in starts
            ]
        )
    query = (query / query.norm(dim=1, keepdim=True)).double().numpy()
    score = (x @ query.T).max(axis=1)
    hits = search(place / "features.parquet", place / "query.mp4", top_k=7)
    assert [hit.score for hit in hits] == pytest.approx(sorted(score, reverse=True)[:7], abs=1e-6)
    for hit in hits:
        row = windows.index(where(hit.found))
        which = starts.index(round(hit.query.start * 30))
        assert x[row] @ query[which] == pytest.approx(hit.score, abs=1e-6)
        assert hit.score == pytest.approx(score[row], abs=1e-6)
    everything = search(place / "features.parquet", place / "query.mp4", top_k=1000)
    assert len(everything) == len(windows)


def test_a_query_does_not_find_itself(place: Path) -> None:
    """It finds its copy, window for window; a segment finds that in it."""
    library = place / "library"
    hits = search(place / "features.parquet", library / "2.mp4", top_k=5)
    for hit in hits:
        assert hit.found.path == str(library / "<b>copy.mp4")
        assert hit.score == pytest.approx(1)
    [best, *_] = search(place / "features.parquet", f"{library}/2.mp4#t=0.26,0.8", top_k=50)
    assert best.found.path == str(library / "<b>copy.mp4")
    assert best.found.start == pytest.approx(8 / 30)
    assert best.score == pytest.approx(1)


@pytest.mark.parametrize("block", [3, 2048])
def test_near_duplicates_are_those_of_a_brute_force(place: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(mam2.use.search, "BLOCK", block)
    windows, x = brute_force(place / "features.parquet")
    expected = {}
    for i, (path, start, end) in enumerate(windows):
        for j in range(i + 1, len(windows)):
            path2, start2, end2 = windows[j]
            if x[i] @ x[j] >= 0.98 and not (path == path2 and start < end2 and start2 < end):
                expected[windows[i], windows[j]] = x[i] @ x[j]
    pairs = near_duplicates(place / "features.parquet", threshold=0.98)
    found = {(where(pair.one), where(pair.other)): pair.score for pair in pairs}
    assert found.keys() == expected.keys()
    assert 0 < len(found) < len(windows) * (len(windows) - 1) / 2
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for key, score in found.items():
        assert score == pytest.approx(expected[key], abs=1e-6)
    same = near_duplicates(place / "features.parquet", threshold=1.0)
    num_windows = sum(path.endswith("2.mp4") for path, _, _ in windows)
    copies = [(pair.one.start, pair.other.start) for pair in same if {"2.mp4", "<b>copy.mp4"} == names(pair)]
    assert len([start for start, other in copies if start == other]) == num_windows


def names(pair: mam2.use.search.Pair) -> set[str]:
    return {Path(pair.one.path).name, Path(pair.other.path).name}


def test_of_too_many_pairs_the_best_are_kept(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    every = near_duplicates(place / "features.parquet", threshold=-1.0)
    few = near_duplicates(place / "features.parquet", threshold=-1.0, max_pairs=5)
    assert [pair.score for pair in few] == [pair.score for pair in every[:5]]
    assert f"{len(every)} of " in caplog.text
    with pytest.raises(UserError, match="threshold is 2"):
        near_duplicates(place / "features.parquet", threshold=2)


def test_lancedb_finds_the_same(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb")
    library = place / "library"
    for query in (place / "query.mp4", library / "2.mp4"):
        exact = search(place / "features.parquet", query, top_k=6)
        by_table = search(place / "features.parquet", query, top_k=6, lancedb=tmp_path / "lance")
        assert [hit.score for hit in by_table] == pytest.approx([hit.score for hit in exact], abs=1e-5)
        assert where(by_table[0].found) == where(exact[0].found) or exact[0].score == pytest.approx(exact[1].score)
    other = tmp_path / "other.parquet"
    embed_file(place / "encoder.safetensors", library / "3.mp4", other, config=HERE)
    hits = search(other, place / "query.mp4", lancedb=tmp_path / "lance")
    assert {Path(hit.found.path).name for hit in hits} == {"3.mp4"}


def test_without_lancedb_a_message_says_so(place: Path, run: Run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    status, _, err = run("search", place / "features.parquet", place / "query.mp4", "--lancedb", place / "lance")
    assert status == 2
    assert "--lancedb needs the package lancedb. Install it: pip install 'mam2[lancedb]'" in err


def test_the_command_writes_what_it_found(place: Path, run: Run, tmp_path: Path) -> None:
    file, out, page = place / "features.parquet", tmp_path / "deep" / "hits.json", tmp_path / "deep" / "hits.html"
    status, shown, _ = run("search", file, place / "query.mp4", "--top-k", 30, "--out", out, "--html", page)
    assert status == 0
    found = json.loads(out.read_text())
    hits = search(file, place / "query.mp4", top_k=30)
    assert [row["score"] for row in found] == [hit.score for hit in hits]
    assert found[0]["found"] == {
        "path": hits[0].found.path,
        "start": hits[0].found.start,
        "end": hits[0].found.end,
        "label": None,
    }
    assert f"{hits[0].score:.4f}" in shown
    text = page.read_text()
    num_queries = len({hit.query for hit in hits})
    assert text.count('src="data:image/webp;base64,') == len(hits) + num_queries
    assert "&lt;b&gt;copy.mp4" in text
    assert "<b>copy" not in text
    status, shown, _ = run("search", file, "--near-duplicates", "--threshold", 0.9999, "--top-k", 3, "--html", page)
    assert status == 0
    assert "more; --out hits.json writes all" in shown
    assert page.read_text().count("<h2>") == 3 + 2  # the facts, and what to type next
    status, shown, _ = run("search", place / "features.parquet", "--near-duplicates", "--threshold", 1, "--out", out)
    assert len(json.loads(out.read_text())) == len(near_duplicates(file, threshold=1))


def test_pictures_move_at_the_video_s_speed(place: Path, tmp_path: Path) -> None:
    data = stretch(str(place / "library" / "0.mp4"), start=8 / 30, end=24 / 30)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.n_frames == 16
        picture.seek(3)
        picture.load()
        assert picture.info["duration"] == 33
        grey = np.asarray(picture.convert("L"))[10:24].mean()
    assert grey == pytest.approx(20 + 5 * 11, abs=6)
    file = tmp_path / "page.html"
    card = Card(path=str(tmp_path / "gone.mp4"), start=0, end=1, words="<i>")
    write_cards(
        file,
        title="<script>",
        about="",
        rows=[("one", [card])],
        facts={"command": "mam2 <x>"},
        commands=["mam2 search"],
    )
    text = file.read_text()
    assert "gone.mp4 can&#39;t be decoded: No such file or directory" in text
    assert "&lt;script&gt;" in text
    assert "<i>" not in text
    assert "<td>mam2 &lt;x&gt;</td>" in text
    assert "<pre>mam2 search</pre>" in text
    assert [clock(seconds) for seconds in (1.26, 62.04, 3723.5)] == ["0:01.3", "1:02.0", "1:02:03.5"]


def test_what_makes_no_sense_is_refused(place: Path, run: Run, tmp_path: Path) -> None:
    file, query = place / "features.parquet", place / "query.mp4"
    torch.manual_seed(3)
    other = tmp_path / "other.safetensors"
    save_encoder(other, VideoEncoder(SIZES))
    one, two = (
        load_embedder(str(source), HERE).provenance.identity.encoder[:12]
        for source in (place / "encoder.safetensors", other)
    )
    short = write_video(tmp_path / "short.mp4", num_frames=15)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    for words, parts in (
        ((file, query, "--encoder", other), ("holds other features: encoder differ", one, two)),
        (
            (file, short),
            ("has 15 frames, 0.5 seconds: the query is shorter than a window", "16 frames"),
        ),
        ((file, tmp_path / "bad.mp4"), ("bad.mp4 can't be decoded",)),
        ((file, tmp_path / "absent.mp4"), ("absent.mp4 can't be decoded: No such file",)),
        ((tmp_path / "no.parquet", query), ("no.parquet does not exist. Write it first: mam2 embed",)),
        ((other, query), ("is no Parquet file",)),
        ((file,), ("Give a query video or --near-duplicates",)),
        ((file, query, "--near-duplicates"), ("Give a query video or --near-duplicates",)),
        ((file, query, "--top-k", 0), ("top_k is 0",)),
        ((file, query, "--out", "hits.csv"), ("ends in .json",)),
        ((file, query, "--html", "hits.txt"), ("ends in .html",)),
        ((file, "--near-duplicates", "--threshold", 3), ("threshold is 3",)),
        ((file, "--near-duplicates", "--lancedb", tmp_path), ("leave --lancedb and --encoder out",)),
    ):
        status, _, err = run("search", *words)
        assert status == 2, words
        for part in parts:
            assert part in err, (words, err)
    moved = tmp_path / "moved.safetensors"
    shutil.copy(place / "encoder.safetensors", moved)
    assert run("search", file, query, "--encoder", moved)[0] == 0
    elsewhere = tmp_path / "elsewhere.parquet"
    embed_file(moved, place / "library", elsewhere, config=replace(HERE, hop="16 frames"))
    moved.unlink()
    status, _, err = run("search", elsewhere, query)
    assert status == 2
    assert f"{moved} does not exist" in err
    assert "say where it is now, --encoder SOURCE" in err
    assert run("search", elsewhere, query, "--encoder", place / "encoder.safetensors")[0] == 0


def test_what_embed_refuses(place: Path, run: Run, tmp_path: Path, monkeypatch) -> None:
    encoder, library = place / "encoder.safetensors", place / "library"
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "f.parquet")
    for words, parts in (
        ((encoder, tmp_path / "empty", *out), ("holds no videos",)),
        ((encoder, tmp_path / "absent", *out), ("does not exist",)),
        ((tmp_path / "absent", library, *out), ("does not exist",)),
        ((encoder, library, "--out", tmp_path / "f.csv"), ("ends in .parquet",)),
        ((encoder, library, *out, "--window", "2"), ("'2' is no length", "'64 frames' or '2.5 s'")),
        ((encoder, library, "--out", place / "features.parquet"), ("hop, dtype differ", "every 8 frames")),
        ((encoder, library, *out, "--pool", "attentive"), ("holds no attentive probe. Make one first: mam2 probe",)),
    ):
        status, _, err = run("embed", *words)
        assert status == 2, words
        for part in parts:
            assert part in err, (words, err)
    assert sorted(os.listdir(tmp_path)) == ["empty"]

    def stopped(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoEncoder, "forward", stopped)
    status, _, err = run("embed", encoder, library, *out, "--num-workers", 0)
    assert status == 130
    assert "the same command resumes from there" in err
    assert sorted(os.listdir(tmp_path)) == ["empty"]


def test_a_full_disk_keeps_the_old_file(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    shutil.copy(place / "features.parquet", out)
    library = tmp_path / "library"
    shutil.copytree(place / "library", library)
    words = [sys.executable, "-m", "mam2", "embed", place / "encoder.safetensors", library, "--out", out]
    words += ["--dtype", "float32", "--window", "16 frames", "--hop", "8 frames", "--num-workers", "0"]
    done = subprocess.run(
        [*map(str, words)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        timeout=100,
    )
    assert done.returncode == 2, done.stderr
    message = " ".join(done.stderr.split())
    assert "can't be written: " in message
    assert "Traceback" not in message
    assert out.read_bytes() == (place / "features.parquet").read_bytes()
