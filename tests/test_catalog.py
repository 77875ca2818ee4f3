"""Catalogs from folders and CSV files: labels, splits, and what is refused."""

from pathlib import Path

import pytest

from mam2.config import UserError
from mam2.data.catalog import Catalog, Item, few_shot, read_catalog


@pytest.fixture
def folder(tmp_path):
    """Four videos in two classes, with the clutter that real folders have."""
    for name in ("b jump/2.MP4", "b jump/1.avi", "a (run)/x & y!.webm", "a (run)/deep/é.mkv"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("README.md", "a (run)/._x & y!.webm", "a (run)/notes.txt"):
        (tmp_path / "videos" / name).touch()
    (tmp_path / "videos" / "empty class").mkdir()
    (tmp_path / "videos" / ".cache").mkdir()
    (tmp_path / "videos" / ".cache" / "z.mp4").touch()
    return tmp_path / "videos"


@pytest.fixture
def write_csv(folder):
    def write(text: str, encoding: str = "utf-8"):
        path = folder / "list.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_a_folder_without_labels(folder):
    catalog = read_catalog(folder, labelled=False)
    names = ("a (run)/deep/é.mkv", "a (run)/x & y!.webm", "b jump/1.avi", "b jump/2.MP4")
    assert catalog.items == tuple(Item(path=str(folder / name), label=None) for name in names)
    assert catalog.classes == ()
    assert read_catalog(str(folder), labelled=False) == catalog


def test_a_folder_of_classes(folder):
    catalog = read_catalog(folder, labelled=True)
    assert catalog.classes == ("a (run)", "b jump")
    assert [item.label for item in catalog.items] == [0, 0, 1, 1]


def test_links_to_folders_are_followed(folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "jump").symlink_to(folder / "b jump")
    assert len(read_catalog(tmp_path / "data", labelled=True).items) == 2


def test_links_that_lead_back_multiply_no_videos(folder, tmp_path, caplog):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "3.mp4").touch()
    for name, target in {
        "b jump/up": "..",
        "b jump/beside": "../a (run)",
        "b jump/above": "../..",
        "c": "../elsewhere",
        "d": "../elsewhere/deep",
    }.items():
        (folder / name).symlink_to(target)
    (tmp_path / "elsewhere" / "around").symlink_to("../videos")
    (tmp_path / "elsewhere" / "self").symlink_to(".")
    catalog = read_catalog(folder, labelled=False)
    assert [Path(item.path).name for item in catalog.items] == ["é.mkv", "x & y!.webm", "1.avi", "2.MP4", "3.mp4"]
    assert f"{folder}/b jump/up is a link to {folder}, which is read already" in caplog.text


def test_the_classes_of_a_checkpoint_keep_their_numbers(folder):
    catalog = read_catalog(folder, labelled=True, classes=("b jump", "walk", "a (run)"))
    assert catalog.classes == ("b jump", "walk", "a (run)")
    assert [item.label for item in catalog.items] == [2, 2, 0, 0]
    with pytest.raises(UserError, match=r"x & y!\.webm|é\.mkv.*'a \(run\)' is not a known class. Did you mean a \(ran"):
        read_catalog(folder, labelled=True, classes=("b jump", "a (ran)"))


def test_csv_with_names_keeps_its_order(folder, write_csv):
    path = write_csv(f"label,path,fps\njump,b jump/2.MP4,30\nrun,{folder}/a (run)/deep/é.mkv,25\n")
    catalog = read_catalog(path, labelled=True)
    assert catalog.classes == ("jump", "run")
    assert catalog.items == (
        Item(path=str(folder / "b jump/2.MP4"), label=0),
        Item(path=str(folder / "a (run)/deep/é.mkv"), label=1),
    )


def test_csv_with_numbers(write_csv):
    catalog = read_catalog(write_csv("path,label\nb jump/2.MP4,10\nb jump/1.avi,2\n"), labelled=True)
    assert catalog.classes == tuple(map(str, range(11)))
    assert [item.label for item in catalog.items] == [10, 2]
    named = read_catalog(write_csv("path,label\nb jump/1.avi,1\n"), labelled=True, classes=("run", "jump"))
    assert named.items[0].label == 1
    assert named.classes == ("run", "jump")


def test_csv_from_a_spreadsheet(write_csv):
    catalog = read_catalog(write_csv('path, label\r\n"b jump/2.MP4",jump\r\n\r\n', "utf-8-sig"), labelled=True)
    assert [item.label for item in catalog.items] == [0]
    assert catalog.classes == ("jump",)


def test_csv_without_labels_needs_only_paths(write_csv):
    assert read_catalog(write_csv("path\nb jump/1.avi\n"), labelled=False).items[0].label is None
    assert read_catalog(write_csv("path,label\nb jump/1.avi,\n"), labelled=False).classes == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,label\nb jump/1.avi,x\n",
            r"list\.csv has no column 'path'; its first line is 'file,label'\. Write pa",
        ),
        ("path\nb jump/1.avi\n", r"list\.csv has no column 'label'"),
        ("", r"has no column 'path'"),
        ("path,label\n", r"list\.csv lists no videos"),
        ("path,label\nb jump/1.avi,x\nb jump/2.MP4, \n", r"list\.csv, line 3 has no label\. Write one"),
        ("path,label\nb jump/1.avi\n", r"list\.csv, line 2 has no label"),
        (
            "path,label\nb jump/1.avi,x\nnone.avi,x\nnowhere.avi,x\n",
            r"list\.csv, line 3: .*none\.avi does not exist \(2 of 3 videos are missing\)\. Paths must be",
        ),
    ],
)
def test_csv_mistakes_are_named(write_csv, text, message):
    with pytest.raises(UserError, match=message):
        read_catalog(write_csv(text), labelled=True)


def test_the_splits_of_a_csv(write_csv):
    path = write_csv("path,label,split\nb jump/1.avi,jump,train\nb jump/2.MP4,run,val\nnot here.avi,,test\n")
    (train,), (val,) = (read_catalog(path, labelled=True, split=split).items for split in ("train", "val"))
    assert (Path(train.path).name, train.label) == ("1.avi", 0)
    assert (Path(val.path).name, val.label) == ("2.MP4", 1), "a class has the same number in each split"
    assert read_catalog(path, labelled=True, split="val").classes == ("jump", "run")
    with pytest.raises(UserError, match=r"line 4 has no label"):
        read_catalog(path, labelled=True, split="test")
    with pytest.raises(UserError, match=r"line 4: .*not here\.avi does not exist \(1 of 1"):
        read_catalog(path, labelled=False, split="test")
    with pytest.raises(
        UserError, match=r"list\.csv holds the splits test, train, val\. Name one of them, such as test"
    ):
        read_catalog(path, labelled=False)
    with pytest.raises(UserError, match=r"list\.csv has no split 'trian'\. Did you mean train"):
        read_catalog(path, labelled=True, split="trian")


def test_where_a_split_need_not_be_named(folder, write_csv):
    path = write_csv("path,split\nb jump/1.avi,fold1\n")
    assert read_catalog(path, labelled=False) == read_catalog(path, labelled=False, split="fold1")
    path = write_csv("path,split\nb jump/1.avi,\n")
    assert len(read_catalog(path, labelled=False).items) == 1
    with pytest.raises(UserError, match=r"list\.csv has no splits, but 'val' was named"):
        read_catalog(path, labelled=False, split="val")
    with pytest.raises(UserError, match=r"line 2 has no split; others have val\. Write one"):
        read_catalog(write_csv("path,split\nb jump/1.avi,\nb jump/2.MP4,val\n"), labelled=False, split="val")
    with pytest.raises(UserError, match=r"is a folder and has no split 'train'\. Give .*videos/train, or a \.csv"):
        read_catalog(folder, labelled=False, split="train")


def test_csv_in_another_encoding_is_refused(write_csv):
    with pytest.raises(UserError, match=r"can't be read: .*UTF-8"):
        read_catalog(write_csv("path,label\né.avi,x\n", "latin-1"), labelled=True)


def test_csv_with_an_unknown_class(write_csv):
    path = write_csv("path,label\nb jump/1.avi,jmup\n")
    with pytest.raises(UserError, match=r"line 2: 'jmup' is not a known class\. Did you mean jump\?"):
        read_catalog(path, labelled=True, classes=("jump", "run"))
    path = write_csv("path,label\nb jump/1.avi,2\n")
    with pytest.raises(UserError, match=r"'2' is not a known class\. Accepted: jump, run\."):
        read_catalog(path, labelled=True, classes=("jump", "run"))


def test_what_is_no_data_set_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist\. Accepted: a folder of videos, or a \.csv"):
        read_catalog(tmp_path / "nowhere", labelled=False)
    with pytest.raises(UserError, match=r"data\.root is empty"):
        read_catalog("", labelled=False)
    with pytest.raises(UserError, match=r"README\.md is neither a folder nor a \.csv"):
        read_catalog(folder / "README.md", labelled=False)
    with pytest.raises(UserError, match=r"empty class holds no videos\. Accepted: files ending in .*\.mp4"):
        read_catalog(folder / "empty class", labelled=False)


def test_a_flat_folder_has_no_labels(folder):
    with pytest.raises(UserError, match=r"1\.avi has no label \(2 such videos\).*one folder for each class"):
        read_catalog(folder / "b jump", labelled=True)


def test_splits_are_no_classes(folder):
    (folder / "a (run)").rename(folder / "train")
    (folder / "b jump").rename(folder / "val")
    with pytest.raises(UserError, match=r"train, val: these look like splits, not classes\. Give one of them"):
        read_catalog(folder, labelled=True)
    assert len(read_catalog(folder, labelled=False).items) == 4


def test_real_folders(real_data):
    train = read_catalog(real_data / "arid6" / "train", labelled=True)
    assert train.classes == ("Jump", "Run", "Sit", "Stand", "Turn", "Walk")
    assert len(train.items) == 150
    listed = read_catalog(real_data / "arid6" / "labels.csv", labelled=True, split="train")
    assert len(listed.items) == 150
    assert listed.classes == tuple("012345")
    by_path = {item.path: item.label for item in listed.items}
    assert all(by_path[item.path] == item.label for item in train.items)
    assert len(read_catalog(real_data / "arid6" / "labels.csv", labelled=False, split="val").items) == 96
    with pytest.raises(UserError, match=r"labels\.csv holds the splits train, val\. Name one of them"):
        read_catalog(real_data / "arid6" / "labels.csv", labelled=True)


def test_shots_are_so_many_of_each_class():
    items = tuple(Item(path=f"{i}.mp4", label=i % 3) for i in range(20))
    catalog = Catalog(items=items, classes=("a", "b", "c"))
    assert few_shot(catalog, shots=0, seed=0) is catalog
    five, other = (few_shot(catalog, shots=5, seed=seed).items for seed in (0, 1))
    assert [item.label for item in five] == [0] * 5 + [1] * 5 + [2] * 5
    assert len({item.path for item in five}) == 15
    assert five == few_shot(catalog, shots=5, seed=0).items != other
    with pytest.raises(UserError, match="6 training videos of class 'c'; 7 shots need as many"):
        few_shot(catalog, shots=7, seed=0)
