"""Manifests of the official data sets, journals, and faulty videos."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import manifest_rows

from mam2.config import UserError
from mam2.data.benchmarks import BENCHMARKS
from mam2.data.catalog import read_catalog
from mam2.data.prepare import inspect as journals
from mam2.data.prepare.manifest import Prepare, Report, prepare
from mam2.data.prepare.official_lists import read_lists
from mam2.data.shape import Listing
from mam2.data.synthetic import render, write_video


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """A whole video of 16 frames, 24 x 24, 10 frames a second."""
    path = tmp_path_factory.mktemp("video") / "long.mp4"
    write_video(path, render("left", seed=0, num_frames=16, size=24))
    return path


@pytest.fixture(scope="session")
def short_video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    write_video(path, render("left", seed=1, num_frames=15, size=24))
    return path


@pytest.fixture
def tree(tmp_path, video):
    """Makes files below `data`: a text as it is, None a link to the whole video, a path a copy of it."""

    def make(files):
        for name, content in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_bytes(content.encode())
            elif content is None:
                os.link(video, path)
            else:
                shutil.copyfile(content, path)
        return tmp_path / "data"

    return make


@pytest.fixture
def opened(monkeypatch):
    """The names of the videos that are opened, in this process."""
    names = []
    original = journals.inspect_video

    def probe(path):
        names.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(journals, "inspect_video", probe)
    return names


def rows_of(report: Report) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in manifest_rows(report)}


def labels_and_splits(report: Report) -> dict[str, tuple[str, str]]:
    return {path: (row["label"], row["split"]) for path, row in rows_of(report).items()}


UCF101 = {
    "ucfTrainTestlist/classInd.txt": "\ufeff1 ApplyEyeMakeup\r\n2 HandstandPushups \r\n\r\n",
    "ucfTrainTestlist/trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g08_c01.avi 2  \r\n",
    "ucfTrainTestlist/testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n",
    "ucfTrainTestlist/trainlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\n",
    "ucfTrainTestlist/testlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi\n"
    "HandstandPushups/v_HandStandPushups_g08_c01.avi\n",
}
UCF101_VIDEOS = {
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": None,
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.mp4": None,  # re-encoded
    "HandStandPushups/v_HandStandPushups_g08_c01.avi": None,  # so it is in the official archive
}
SSV2 = {
    "labels/labels.json": json.dumps({"Holding something": "1", "Attaching something to something": "0"}),
    "labels/train.json": json.dumps(
        [{"id": "2", "label": "holding pen", "template": "Holding [something]", "placeholders": ["pen"]}]
    ),
    "labels/validation.json": json.dumps([{"id": "10", "template": "Attaching [something] to [something]"}]),
    "labels/test.json": json.dumps([{"id": "30"}]),
}


def test_ucf101(tree, opened):
    root = tree(UCF101 | UCF101_VIDEOS | {"Other/v_Other_g01_c01.avi": None})
    report = prepare(Prepare(name="ucf101", root=root, num_workers=0))
    assert report.manifest == root / "ucf101_split1.csv"
    assert labels_and_splits(report) == {
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": ("ApplyEyeMakeup", "train"),
        "HandStandPushups/v_HandStandPushups_g08_c01.avi": ("HandstandPushups", "train"),
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.mp4": ("ApplyEyeMakeup", "val"),
    }
    row = rows_of(report)["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.mp4"]
    assert [row[name] for name in ("frames", "fps", "width", "height")] == ["16", "10", "24", "24"]
    train, val = report.splits
    assert (train.split, train.listed, train.written, train.table6) == ("train", 2, 2, 9_500)
    assert (val.split, val.listed, val.written, val.table6) == ("val", 1, 1, 3_500)
    assert train.mean_seconds == pytest.approx(1.6)
    assert (report.extra.count, report.extra.first) == (1, (str(root / "Other/v_Other_g01_c01.avi"),))
    assert report.duplicates.count == 2
    assert "g01_c01.mp4 (val) is " in report.duplicates.first[0], "what is in two splits comes first"
    assert report.duplicates.first[0].endswith("(train)")
    assert (report.missing.count, report.unreadable.count, report.short.count) == (0, 0, 0)
    assert report.notes == (
        "train: 2 videos; Table 6 has about 9500 for UCF101.",
        "val: 1 videos; Table 6 has about 3500 for UCF101.",
        "The lists hold 2 classes; UCF101 has 101.",
    )
    assert (report.num_read, len(opened)) == (3, 3)
    second = prepare(Prepare(name="ucf101", root=root, split=2, num_workers=0))
    assert (second.num_read, len(opened)) == (0, 3), "another split opens no video again"
    assert Counter(row["split"] for row in rows_of(second).values()) == {"train": 1, "val": 2}
    catalog = read_catalog(Listing(root=second.manifest, split="train"), labelled=True)
    assert catalog.classes == ("ApplyEyeMakeup", "HandstandPushups")
    assert [item.path for item in catalog.items] == [str(root / "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.mp4")]


def test_the_manifest_moves_with_its_folder_or_lies_elsewhere(tree, tmp_path):
    root = tree(UCF101 | UCF101_VIDEOS)
    report = prepare(Prepare(name="ucf101", root=root, out=tmp_path / "new" / "list.csv", num_workers=0))
    assert all(Path(path).is_absolute() for path in rows_of(report))
    assert (tmp_path / "new" / "ucf101.journal.jsonl").is_file()
    assert len(read_catalog(Listing(root=report.manifest, split="train"), labelled=True).items) == 2
    report = prepare(Prepare(name="ucf101", root=root, num_workers=0))
    moved = root.rename(tmp_path / "moved")
    assert len(read_catalog(Listing(root=moved / report.manifest.name, split="train"), labelled=True).items) == 2
    assert prepare(Prepare(name="ucf101", root=moved, num_workers=0)).num_read == 0


def test_hmdb51_names_that_are_not_plain(tree):
    odd = "Hair__[_NEW_]_UPDATED!!!!_(x)&é_wave_h_cm_np1_fr_goo_0"
    decomposed = odd.replace("é", "e\u0301")
    root = tree(
        {
            "splits/class_list.txt": "chew\nwave",
            "splits/wave_test_split2.txt": f"{odd}.avi 1 \nb_wave.avi 2 \nc_wave.avi 0 \n",
            "splits/chew_test_split2.txt": "d.avi 2 \r\n",
            f"wave/{decomposed}.avi": None,
            "wave/b_wave.avi": None,
            "wave/c_wave.avi": None,
            "wave/d.avi": None,  # chew's is missing; the same name in another class is another video
        }
    )
    report = prepare(Prepare(name="hmdb51", root=root, split=2, num_workers=0, max_missing_share=0.5))
    assert labels_and_splits(report) == {
        f"wave/{decomposed}.avi": ("wave", "train"),
        "wave/b_wave.avi": ("wave", "val"),
    }
    assert report.missing.first == ("chew/d",)
    assert report.extra.first == (str(root / "wave/d.avi"),), "one that is set aside is no stranger"


def test_something_something(tree):
    root = tree(SSV2 | {"20bn/2.webm": None, "20bn/10.webm": None, "20bn/30.webm": None, "20bn/31.webm": None})
    report = prepare(Prepare(name="ssv2", root=root, num_workers=0))
    assert labels_and_splits(report) == {
        "20bn/2.webm": ("Holding something", "train"),
        "20bn/10.webm": ("Attaching something to something", "val"),
    }
    assert [Path(name).name for name in report.extra.first] == ["31.webm"]
    assert report.num_classes == 2
    prefixed = {f"labels/something-something-v2-{Path(name).name}": text for name, text in SSV2.items()}
    shutil.rmtree(root / "labels")
    assert read_lists("ssv2", tree(prefixed)).classes == ("Attaching something to something", "Holding something")


def test_kinetics_by_its_official_csv(tree):
    root = tree(
        {
            "lists/train.csv": "label,youtube_id,time_start,time_end,split\r\n"
            "abseiling,-3B32lodo2M,59,69,train\r\n"
            '"air drumming",_dbcJuKJQNs,40,50,train \r\n'
            '"air drumming",missing_one,0,10,train\r\n',
            "lists/validate.csv": "label,youtube_id,time_start,time_end,split,is_cc\n"
            "abseiling,7cIhg_uLmQ,7,17,validate,0\n",
            "lists/test.csv": "youtube_id,time_start,time_end,split\n0123456789a,7,17,test\n",
            "train/abseiling/-3B32lodo2M_000059_000069.mp4": None,
            "train/air_drumming/_dbcJuKJQNs.mp4": None,
            "7cIhg_uLmQ_000007_000017.mkv": None,
            "test/0123456789a_000007_000017.mp4": None,
            "train/abseiling/7cIhg_uLmQ.mp4": None,
        }
    )
    report = prepare(Prepare(name="k400", root=root, num_workers=0, max_missing_share=0.25))
    assert labels_and_splits(report) == {
        "train/abseiling/-3B32lodo2M_000059_000069.mp4": ("abseiling", "train"),
        "train/air_drumming/_dbcJuKJQNs.mp4": ("air drumming", "train"),
        "train/abseiling/7cIhg_uLmQ.mp4": ("abseiling", "val"),  # a class folder tells more than none
    }
    assert report.missing.first == ("air drumming/missing_one_000000_000010",)
    assert report.extra.first == (str(root / "7cIhg_uLmQ_000007_000017.mkv"),)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("train/air drumming/a b.mp4 1\r\n/elsewhere/c,d.MP4 0 \r\n", ("air drumming", "abseiling")),
        ("train/air drumming/a b.mp4,1\n/elsewhere/c,d.MP4,0\n", ("air drumming", "abseiling")),
        ('"a b.mp4","air drumming"\n"c,d.MP4", abseiling\n', ("air drumming", "abseiling")),
    ],
)
def test_kinetics_by_lists_of_paths(tree, text, labels):
    folder = tree(
        {"kinetics400_train_list.txt": text, "labels/kinetics_400_labels.csv": "id,name\n0,abseiling\n1,air drumming\n"}
    )
    lists = read_lists("k400", folder)
    assert [(video.stems, video.label, video.split) for video in lists.videos] == [
        (("a b",), labels[0], "train"),
        (("c,d",), labels[1], "train"),
    ]
    assert lists.classes == ("abseiling", "air drumming")


def test_kinetics_numbers_stay_where_no_names_are(tree):
    folder = tree({"train.csv": "x/a.mp4 399\n", "val.csv": "x/b.mp4 0\n", "test.csv": "x/b.mp4 0\nx/c.mp4 0\n"})
    lists = read_lists("k400", folder)
    assert {video.stems[0]: (video.label, video.split) for video in lists.videos} == {
        "a": ("399", "train"),
        "b": ("0", "val"),
        "c": ("0", ""),
    }


@pytest.mark.parametrize("split", [1, 2, 3])
def test_the_official_lists(real_data, split):
    folder = real_data / "annotations"
    for name, counts in (("ucf101", {"": 0}), ("hmdb51", {"train": 3570, "val": 1530, "": 1666})):
        lists = read_lists(name, folder, split=split)
        found = Counter(video.split for video in lists.videos)
        assert len(lists.classes) == BENCHMARKS[name].num_classes
        assert sorted(lists.classes) == sorted((folder / "labels" / f"{name}.txt").read_text().split())
        assert all(found[word] == number for word, number in counts.items())
        # Table 6 has 3.5k for UCF101; the official split 1 has 3,783.
        assert found["train"] == pytest.approx(BENCHMARKS[name].num_train, rel=0.03)
        assert found["val"] == pytest.approx(BENCHMARKS[name].num_val, rel=0.09)
    if split == 1:
        assert Counter(v.split for v in read_lists("ucf101", folder).videos) == {"train": 9537, "val": 3783}


@pytest.mark.parametrize(("name", "counts"), [("ucf101", [9537, 3783]), ("hmdb51", [3570, 1530])])
def test_a_whole_benchmark(real_data, tmp_path, video, monkeypatch, name, counts):
    for listed in read_lists(name, real_data / "annotations").videos:
        path = tmp_path / listed.label / f"{listed.stems[0]}.avi"
        path.parent.mkdir(exist_ok=True)
        os.link(video, path)
    probe, numbers = journals.inspect_video(str(video)), iter(range(99_999))
    monkeypatch.setattr(journals, "inspect_video", lambda path: dataclasses.replace(probe, digest=str(next(numbers))))
    report = prepare(Prepare(name=name, root=tmp_path, annotations=real_data / "annotations", num_workers=0))
    assert [count.written for count in report.splits] == counts
    assert (report.missing.count, report.extra.count, report.duplicates.count, report.notes) == (0, 0, 0, ())
    assert report.num_read == sum(counts)
    second = prepare(Prepare(name=name, root=tmp_path, annotations=real_data / "annotations", num_workers=0, split=2))
    assert second.num_read == (0 if name == "ucf101" else len(rows_of(second).keys() - rows_of(report).keys()))
    val = read_catalog(Listing(root=second.manifest, split="val"), labelled=True)
    assert len(val.classes) == report.num_classes == BENCHMARKS[name].num_classes
    assert {item.label for item in val.items} == set(range(report.num_classes))


def test_all_labels_of_something_something(real_data, tree):
    names = (real_data / "annotations" / "labels" / "sthv2.txt").read_text().splitlines()
    templates = [name.replace("something", "[something]") for name in names]
    entries = [{"id": str(number), "template": template} for number, template in enumerate(templates)]
    files = SSV2 | {
        "labels/labels.json": json.dumps({name: str(number) for number, name in enumerate(names)}),
        "labels/train.json": json.dumps(entries[:100]),
        "labels/validation.json": json.dumps(entries[100:]),
    }
    lists = read_lists("ssv2", tree(files))
    assert list(lists.classes) == names
    assert [video.label for video in lists.videos if video.split] == names


def test_real_clips(real_data, tmp_path):
    root = tmp_path / "clips"
    root.mkdir()
    for clip in (real_data / "clips").iterdir():
        (root / clip.name.removeprefix("hmdb51_")).symlink_to(clip)
    options = {"annotations": real_data / "annotations", "num_workers": 0, "max_missing_share": 1.0}
    hmdb51 = prepare(Prepare(name="hmdb51", root=root, **options))
    assert sum(count.written for count in hmdb51.splits) + hmdb51.extra.count <= 10
    assert {row["label"] for row in rows_of(hmdb51).values()} == {"cartwheel", "wave"}
    assert (hmdb51.unreadable.count, hmdb51.short.count) == (0, 0)
    assert hmdb51.num_classes == 51
    ucf101 = prepare(Prepare(name="ucf101", root=root, **options))
    assert labels_and_splits(ucf101) == {
        "v_SoccerJuggling_g23_c01.avi": ("SoccerJuggling", "train"),
        "v_SoccerJuggling_g24_c01.avi": ("SoccerJuggling", "train"),
    }
    row = rows_of(ucf101)["v_SoccerJuggling_g23_c01.avi"]
    assert [row[name] for name in ("frames", "fps", "width", "height")] == ["240", "29.97", "320", "240"]
    assert ucf101.splits[0].mean_seconds == pytest.approx(8.19, abs=0.01)
    assert (ucf101.missing.count, ucf101.extra.count) == (9537 + 3783 - 2, 8)


def test_own_folder_with_splits_in_two_processes(tree, short_video, capfd):
    root = tree(
        {
            "Train/run/a.mp4": None,
            "Train/run/deep/b.mp4": short_video,
            "validation/jump, high/c.mp4": None,
            "validation/jump, high/broken.mp4": "no video",
        }
    )
    report = prepare(Prepare(name="folder", root=root, max_missing_share=0.25))
    assert report.manifest == root / "manifest.csv"
    assert labels_and_splits(report) == {
        "Train/run/a.mp4": ("run", "train"),
        "Train/run/deep/b.mp4": ("run", "train"),
        "validation/jump, high/c.mp4": ("jump, high", "val"),
    }
    assert report.short.first == (f"{root}/Train/run/deep/b.mp4 (15 frames)",)
    assert "broken.mp4 can't be decoded" in report.unreadable.first[0]
    assert [(s.split, s.listed, s.written, s.table6) for s in report.splits] == [
        ("train", 2, 2, None),
        ("val", 2, 1, None),
    ]
    assert (report.num_classes, report.notes, report.num_read) == (2, (), 4)
    assert "Reading videos" in capfd.readouterr().err
    assert [item.label for item in read_catalog(Listing(root=report.manifest, split="train"), labelled=True).items] == [
        1,
        1,
    ]
    (root / "Train/run/a.mp4").unlink()
    shutil.copyfile(short_video, root / "Train/run/a.mp4")
    again = prepare(Prepare(name="folder", root=root, max_missing_share=0.25))
    assert again.num_read == 2, "what changed, and what could not be read"
    assert again.short.count == 2


def test_own_folders_without_splits_or_labels(tree):
    assert labels_and_splits(
        prepare(Prepare(name="folder", root=tree({"b/a.mp4": None, "c.mp4": None}), num_workers=0))
    ) == {
        "b/a.mp4": ("b", "train"),
        "c.mp4": ("", "train"),
    }


def test_own_csv(tree):
    root = tree(
        {
            "list.csv": "path,fps,label,split\nx/a.mp4,30,run,valid\nx/b.mp4,30,jump,\nnone.mp4,30,run,test\n",
            "x/a.mp4": None,
            "x/b.mp4": None,
        }
    )
    with pytest.raises(UserError, match=r"^1 of the 3 listed videos are missing .* \(33\.3%\); the first: .*none\.mp4"):
        prepare(Prepare(name="folder", root=root / "list.csv", num_workers=0))
    report = prepare(Prepare(name="folder", root=root / "list.csv", num_workers=0, max_missing_share=0.5))
    assert report.manifest == root / "list_manifest.csv"
    assert labels_and_splits(report) == {"x/a.mp4": ("run", "val"), "x/b.mp4": ("jump", "train")}
    assert [(s.split, s.listed, s.written) for s in report.splits] == [("train", 1, 1), ("test", 1, 0), ("val", 1, 1)]


def test_a_killed_run_goes_on(tree, monkeypatch, opened):
    root = tree({f"x/{i}.mp4": None for i in range(6)})
    original = journals.inspect_video

    def killed_at_the_fourth(path):
        if path.endswith("3.mp4"):
            raise KeyboardInterrupt
        return original(path)

    with monkeypatch.context() as patch:
        patch.setattr(journals, "inspect_video", killed_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            prepare(Prepare(name="folder", root=root, num_workers=0))
    journal = root / "folder.journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])  # killed while it wrote the third line
    assert not (root / "manifest.csv").exists()
    opened.clear()
    report = prepare(Prepare(name="folder", root=root, num_workers=0))
    assert opened == ["2.mp4", "3.mp4", "4.mp4", "5.mp4"]
    assert report.num_read == 4
    assert len(rows_of(report)) == 6
    assert prepare(Prepare(name="folder", root=root, num_workers=0)).num_read == 0, (
        "no line is lost behind the one cut short"
    )


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_what_was_read(tree, monkeypatch, opened):
    root = tree({"a.mp4": None, "b.mp4": None})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match=r"manifest\.csv can't be written: No space left.*Make room.*is kept in .*jsonl"
        ):
            prepare(Prepare(name="folder", root=root, num_workers=0))
    assert sorted(path.name for path in root.iterdir()) == ["a.mp4", "b.mp4", "folder.journal.jsonl"]
    opened.clear()
    assert len(rows_of(prepare(Prepare(name="folder", root=root, num_workers=0)))) == 2
    assert opened == []


def test_a_manifest_is_replaced_whole_or_not_at_all(tree, monkeypatch):
    root = tree({"a.mp4": None})
    before = prepare(Prepare(name="folder", root=root, num_workers=0)).manifest.read_bytes()
    tree({"b.mp4": None})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            prepare(Prepare(name="folder", root=root, num_workers=0))
    assert (root / "manifest.csv").read_bytes() == before


def test_a_full_disk_while_the_journal_grows(tree, monkeypatch, opened):
    root = tree({"a.mp4": None, "b.mp4": None})
    (root / "folder.journal.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"folder\.journal\.jsonl can't be written: No space left"):
        prepare(Prepare(name="folder", root=root, num_workers=0))
    assert opened == ["a.mp4"]


def test_what_can_not_be_written_is_said_before_anything_is_read(tree, opened):
    root = tree({"a.mp4": None, "file": "no folder"})
    with pytest.raises(UserError, match=r"file/folder\.journal\.jsonl can't be written: .*`out`"):
        prepare(Prepare(name="folder", root=root, out=root / "file" / "m.csv", num_workers=0))
    if os.geteuid() != 0:
        (root / "locked").mkdir(mode=0o500)
        with pytest.raises(UserError, match=r"can't be written: Permission denied"):
            prepare(Prepare(name="folder", root=root, out=root / "locked" / "m.csv", num_workers=0))
    assert opened == []


def test_names_that_a_csv_can_not_hold(tree):
    root = tree({"a.mp4": None, " b.mp4": None})
    bad = os.fsdecode(b"\xe9.mp4")
    shutil.copyfile(root / "a.mp4", root / bad)
    (root / "nowhere.mp4").symlink_to(root / "gone.mp4")
    with pytest.raises(UserError, match=r"^1 of the 4 listed videos .*nowhere\.mp4\. At most"):
        prepare(Prepare(name="folder", root=root, num_workers=0))
    report = prepare(Prepare(name="folder", root=root, num_workers=0, max_missing_share=0.75))
    assert list(rows_of(report)) == ["a.mp4"]
    lost = [*report.missing.first, *report.unreadable.first]
    assert len(lost) == 3
    assert all(text.isprintable() and text.encode() for text in lost)
    assert sum("Rename it" in text for text in lost) == 2


@pytest.mark.parametrize("fault", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_video_that_ends_or_stalls_its_reader_is_unreadable(tree, monkeypatch, fault):
    root = tree({f"{i}.mp4": None for i in range(3)})
    honest = journals.open_video

    def treacherous(path):
        if path.endswith("1.mp4"):
            os.kill(os.getpid(), signal.SIGKILL) if fault == "dies" else time.sleep(60)
        return honest(path)

    monkeypatch.setattr(journals, "open_video", treacherous)
    report = prepare(Prepare(name="folder", root=root, num_workers=1, timeout_seconds=2, max_missing_share=0.5))
    said = {"dies": "ends the process that decodes it", "hangs": "could not be decoded within 2 seconds"}[fault]
    assert report.unreadable.count == 1
    assert said in report.unreadable.first[0]
    assert [item.path for item in read_catalog(Listing(root=report.manifest), labelled=False).items] == [
        str(root / name) for name in ("0.mp4", "2.mp4")
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"trainlist01.txt": UCF101["ucfTrainTestlist/testlist01.txt"]},
            r"trainlist01\.txt, line 1 .* as in a testlist",
        ),
        (
            {"testlist01.txt": UCF101["ucfTrainTestlist/trainlist02.txt"]},
            r"testlist01\.txt, line 1 .* as in a trainlist",
        ),
        ({"trainlist01.txt": "Jump/v_Jump_g01_c01.avi 1\n"}, r"line 1: 'Jump' is not a class of this benchmark\. Acc"),
        ({"trainlist01.txt": "ApplyEyeMakeup/v.avi 2\n"}, r"gives ApplyEyeMakeup number 2; in classInd\.txt it has 1"),
        ({"trainlist01.txt": "v.avi\n"}, r"line 1 is 'v\.avi'; a video is written as Class/"),
        (
            {"classInd.txt": "ApplyEyeMakeup\n"},
            r"classInd\.txt, line 1 is 'ApplyEyeMakeup'; a class is written as its n",
        ),
        (
            {"trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\n"},
            r"name v_ApplyEyeMakeup_g01_c01 twice: i",
        ),
        ({"trainlist01.txt": "", "testlist01.txt": ""}, r"name no videos for training or validation"),
    ],
)
def test_wrong_lists_of_ucf101(tree, files, message):
    folder = tree(UCF101 | {f"ucfTrainTestlist/{name}": text for name, text in files.items()})
    with pytest.raises(UserError, match=message):
        read_lists("ucf101", folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"labels.json": '["Holding something"]'}, r'labels\.json must be an object of .*; it is \["Holding'),
        ({"labels.json": '{"a": "x"}'}, r"labels\.json must be an object"),
        ({"train.json": '{"id": "2"}'}, r"train\.json must be a list of videos; it is {"),
        ({"train.json": '[{"id": "2"}]'}, r"train\.json, video 1 must be an object with id and template; it is"),
        (
            {"train.json": '[{"id": "2", "template": "Holding [a thing]"}]'},
            r"\(id 2\): 'Holding a thing' is not a class.*Did",
        ),
        ({"validation.json": "[{"}, r"validation\.json is not JSON: .*Fetch it again"),
    ],
)
def test_wrong_lists_of_something_something(tree, files, message):
    folder = tree(SSV2 | {f"labels/{name}": text for name, text in files.items()})
    with pytest.raises(UserError, match=message):
        read_lists("ssv2", folder)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("hmdb51", {"wave_test_split1.txt": "a.avi 3 \n"}, r"line 1 is 'a\.avi 3'; a video is its file name and 1"),
        (
            "hmdb51",
            {"wave_test_split2.txt": "a.avi 1 \n"},
            r"holds no wave_test_split1\.txt, an official list of HMDB51",
        ),
        ("hmdb51", {"wave_test_split1.txt": "a.avi 1\n", "class_list.txt": "chew\n"}, r"'wave' is not a class"),
        ("hmdb51", {"x.txt": ""}, r"holds no CLASS_test_split1\.txt"),
        ("ssv2", {"x.txt": ""}, r"holds no labels\.json, an official list of Something-Something V2\. Give the folder"),
        ("k400", {"x.txt": ""}, r"holds no CSV with the columns label,youtube_id"),
        ("k400", {"train.csv": "x/a.mp4 400\n"}, r"line 1: class 400; there are 400, counted from 0"),
        ("k400", {"train.csv": "a.mp4 x\n", "kinetics400.txt": "y\n"}, r"line 1: 'x' is not a class"),
        ("k400", {"train.csv": "x/a 300 4\n"}, r"line 1 is 'x/a 300 4'; a video is written as its path"),
        (
            "k400",
            {"train.csv": "".join(f"{i}.mp4 c{i}\n" for i in range(401))},
            r"hold 401 classes; Kinetics-400 has 400",
        ),
        (
            "k400",
            {"a.csv": "label,youtube_id,time_start,time_end,split\nx,y,0,10,trian\n"},
            r"line 2: split 'trian'\. D",
        ),
        ("k400", {"a.csv": "label,youtube_id,time_start,time_end,split\nx,y,,10,train\n"}, r"line 2 has no time_start"),
        ("k400", {"a.csv": "label,youtube_id,time_start,time_end,split\n,y,0,10,train\n"}, r"line 2 has no label"),
    ],
)
def test_wrong_lists(tree, name, files, message):
    with pytest.raises(UserError, match=message):
        read_lists(name, tree(files))


def test_splits_that_are_not_there(tree):
    with pytest.raises(UserError, match=r"The split is 4; UCF101 has 1, 2, 3\."):
        prepare(Prepare(name="ucf101", root=tree(UCF101 | UCF101_VIDEOS), split=4))
    with pytest.raises(UserError, match=r"The split is 2; Kinetics-400 has 1\."):
        prepare(Prepare(name="k400", root=tree({}), split=2))
    with pytest.raises(UserError, match=r"holds no trainlist03\.txt, an official list of UCF101"):
        prepare(Prepare(name="ucf101", root=tree({}), split=3))


def test_too_many_missing(tree, opened):
    root = tree(UCF101 | {"ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": None})
    with pytest.raises(UserError, match=r"2 of the 3 listed .*\(66\.7%\); the first: HandstandPushups/.*At most 5\.0%"):
        prepare(Prepare(name="ucf101", root=root, num_workers=0))
    assert opened == [], "known before any video is opened"
    assert prepare(Prepare(name="ucf101", root=root, num_workers=0, max_missing_share=0.67)).missing.count == 2


def test_nothing_to_prepare(tree, tmp_path):
    with pytest.raises(UserError, match=r"holds no videos"):
        prepare(Prepare(name="ucf101", root=tree(UCF101)))
    with pytest.raises(UserError, match=r"^0 of the 1 listed .* and 1 can't be read \(100\.0%\)"):
        prepare(
            Prepare(name="folder", root=tree({"own/x.mp4": "no video"}) / "own", num_workers=0, max_missing_share=1)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ucf11"}, r"'ucf11' is no data set that prepare knows\. Did you mean ucf101"),
        (
            {"root": "nowhere"},
            r"nowhere does not exist\. Accepted: a folder of videos, or a \.csv with the column path",
        ),
        ({"root": "file"}, r"file is no such thing"),
        ({"num_workers": -1}, r"num_workers is -1; accepted: at least 0"),
        ({"max_missing_share": 5.0}, r"max_missing_share is 5\.0; accepted: at least 0, at most 1"),
        ({"split": 2}, r"The split is 2; only UCF101 and HMDB51 have more than one"),
        ({"out": "manifest.txt"}, r"The manifest can't be manifest\.txt\. Give a new file"),
        ({"root": "list.csv", "out": "list.csv"}, r"The manifest can't be list\.csv\. Give a new file"),
        (
            {"name": "ucf101", "annotations": "nowhere"},
            r"nowhere does not exist\. Give the folder with the official lists",
        ),
    ],
)
def test_arguments(tree, monkeypatch, arguments, message):
    monkeypatch.chdir(tree({"a.mp4": None, "file": "", "list.csv": "path\na.mp4\n"}))
    with pytest.raises(UserError, match=message):
        prepare(Prepare(**{"name": "folder", "root": "."} | arguments))
