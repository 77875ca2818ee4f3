"""Catalogs from folders and CSV files: labels, splits, and what is refused."""

from pathlib import Path

import pytest

from mam2.config import UserError
from mam2.data.catalog import Catalog, Item, few_shot, read_catalog
from mam2.data.shape import Listing


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
    catalog = read_catalog(Listing(root=folder), labelled=False)
    names = ("a (run)/deep/é.mkv", "a (run)/x & y!.webm", "b jump/1.avi", "b jump/2.MP4")
    assert catalog.items == tuple(Item(path=str(folder / name), label=None) for name in names)
    assert catalog.classes == ()
    assert read_catalog(Listing(root=str(folder)), labelled=False) == catalog


def test_a_folder_of_classes(folder):
    catalog = read_catalog(Listing(root=folder), labelled=True)
    assert catalog.classes == ("a (run)", "b jump")
    assert [item.label for item in catalog.items] == [0, 0, 1, 1]


def test_links_to_folders_are_followed(folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "jump").symlink_to(folder / "b jump")
    assert len(read_catalog(Listing(root=tmp_path / "data"), labelled=True).items) == 2


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
    catalog = read_catalog(Listing(root=folder), labelled=False)
    assert [Path(item.path).name for item in catalog.items] == ["é.mkv", "x & y!.webm", "1.avi", "2.MP4", "3.mp4"]
    assert f"{folder}/b jump/up is a link to {folder}, which is read already" in caplog.text


def test_the_classes_of_a_checkpoint_keep_their_numbers(folder):
    catalog = read_catalog(Listing(root=folder), labelled=True, classes=("b jump", "walk", "a (run)"))
    assert catalog.classes == ("b jump", "walk", "a (run)")
    assert [item.label for item in catalog.items] == [2, 2, 0, 0]
    with pytest.raises(UserError, match=r"x & y!\.webm|é\.mkv.*'a \(run\)' is not a known class. Did you mean a \(ran"):
        read_catalog(Listing(root=folder), labelled=True, classes=("b jump", "a (ran)"))


def test_csv_with_names_keeps_its_order(folder, write_csv):
    path = write_csv(f"label,path,fps\njump,b jump/2.MP4,30\nrun,{folder}/a (run)/deep/é.mkv,25\n")
    catalog = read_catalog(Listing(root=path), labelled=True)
    assert catalog.classes == ("jump", "run")
    assert catalog.items == (
        Item(path=str(folder / "b jump/2.MP4"), label=0),
        Item(path=str(folder / "a (run)/deep/é.mkv"), label=1),
    )


@pytest.fixture
def listed(folder):
    """A list whose videos have the given labels, one each."""

    def write(*labels: str) -> Path:
        for number in range(len(labels)):
            (folder / f"v{number}.mp4").touch()
        rows = [f"v{number}.mp4,{label}\n" for number, label in enumerate(labels)]
        (folder / "list.csv").write_text("path,label\n" + "".join(rows))
        return folder / "list.csv"

    return write


def read(path: Path, classes: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], list[int | None]]:
    catalog = read_catalog(Listing(root=path), labelled=True, classes=classes)
    return catalog.classes, [item.label for item in catalog.items]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers", "said"),
    [
        (("b", "a", "b"), ("a", "b"), [1, 0, 1], ""),
        (("2", "0", "1"), ("0", "1", "2"), [2, 0, 1], ""),
        (("00", "01"), ("0", "1"), [0, 1], ""),
        (("0", "3", "3", "0", "1"), ("0", "1", "2", "3"), [0, 3, 3, 0, 1], "of which 1 have no video"),
        (("0", "3"), ("0", "1", "2", "3"), [0, 3], "of which 2 have no video"),
        (("1", "2", "10"), ("1", "2", "10"), [0, 1, 2], "do not count from 0; they are read as the names of 3"),
        (("2019", "2021", "2019"), ("2019", "2021"), [0, 1, 0], "names of 2 classes"),
        (("17325712345678901234567890", "3"), ("3", "17325712345678901234567890"), [1, 0], "names of 2 classes"),
    ],
)
def test_labels_of_a_training_list_are_names_or_numbers_as_a_whole(listed, caplog, labels, classes, numbers, said):
    caplog.set_level("INFO", logger="mam2")
    assert read(listed(*labels)) == (classes, numbers)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("0", "walk", "1"), r"mixes numbers and names.*line 2 has '0', .*line 3 has 'walk'"),
        (("-1", "0"), r"mixes numbers and names"),
        (
            ("0", "1", "1732571234567"),
            r"3 videos with 3 different numbers.*line 4: 1732571234567\. As numbers .*1\.73257e\+12",
        ),
        (("0", "9" * 5000), r"2 videos with 2 different numbers"),
        (("0", "10000000000"), r"as names, of 2\. Write names"),
        (("nan", "a"), r"line 2 has the label 'nan', which is how programs write none"),
        (("a", "NaN"), r"line 3 has the label 'NaN'"),
    ],
)
def test_labels_that_are_neither_are_refused(listed, labels, message):
    with pytest.raises(UserError, match=message):
        read(listed(*labels))


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        (("run", "jump"), ("1", "0"), [1, 0]),
        (("run", "jump"), ("jump", "run"), [1, 0]),
        (("0", "1", "2"), ("2", "0"), [2, 0]),
        (("1", "2", "3"), ("0", "1", "2"), [0, 1, 2]),
        (("1", "2", "3"), ("1", "2", "3"), [0, 1, 2]),
        (("2019", "2021"), ("2021",), [1]),
        (("2019", "2021"), ("1",), [1]),
        (("3", "1", "0"), ("3", "0"), [0, 2]),
        (
            ("1", "2", "3"),
            ("1", "2"),
            r"two ways: .*line 2 has '1', which is the name of class 0, and the .* class '2'",
        ),
        (("1", "2", "x"), ("0", "x"), r"mixes names and numbers of classes: .*line 3 has 'x', .*line 2 has '0'"),
        (
            ("run", "jump"),
            ("1", "2"),
            r"line 3: '2' is not a known class\. Accepted: jump, run\. Or write numbers from 0 to 1",
        ),
        (("run", "jump"), ("jmp",), r"Did you mean jump\?"),
        (("run", "jump"), ("9" * 5000,), r"line 2: '9{59} is not a known class"),
    ],
)
def test_labels_of_a_test_list_are_read_against_the_runs_classes(listed, classes, labels, expected):
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            read(listed(*labels), classes)
    else:
        assert read(listed(*labels), classes) == (classes, expected)


def test_names_of_folders_are_names_whatever_they_are(tmp_path):
    for name in ("1", "2019", "nan"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()
    assert read(tmp_path) == (("1", "2019", "nan"), [0, 1, 2])
    assert read(tmp_path, ("nan", "2", "2019", "1")) == (("nan", "2", "2019", "1"), [3, 2, 0])


def test_a_video_with_two_labels_is_refused(write_csv):
    twice = "path,label\nb jump/1.avi,a\nb jump/2.MP4,b\n./b jump/1.avi,{}\n"
    assert len(read_catalog(Listing(root=write_csv(twice.format("a"))), labelled=True).items) == 3, "drawn more often"
    with pytest.raises(UserError, match=r"1\.avi has two labels: 'a' in .*line 2, and 'b' in .*line 4.*start and end"):
        read_catalog(Listing(root=write_csv(twice.format("b"))), labelled=True)
    assert len(read_catalog(Listing(root=write_csv(twice.format("b"))), labelled=False).items) == 3


def test_columns_can_have_other_names_and_unused_ones_are_named_once(write_csv, caplog):
    caplog.set_level("INFO", logger="mam2")
    path = write_csv("clip, path,action,label,fps,camera\nb jump/1.avi,x,jump,7,30,left\n")
    for _ in range(2):
        catalog = read_catalog(Listing(root=path, path_column="clip", label_column="action"), labelled=True)
    assert (Path(catalog.items[0].path).name, catalog.classes) == ("1.avi", ("jump",))
    assert caplog.text.count("columns that are ignored: path, label, camera.") == 1
    with pytest.raises(UserError, match=r"no column 'file'.*or name the column: --data\.path-column NAME"):
        read_catalog(Listing(root=path, path_column="file"), labelled=False)


def test_segments_of_a_video_are_videos(folder, write_csv):
    path = write_csv(
        "path,label,start,end\nb jump/1.avi,a,0,2.5\nb jump/1.avi,b,2.5,\n"
        "b jump/1.avi,c,,\nb jump/2.MP4,a, 3,100\n,,,\n"
    )
    catalog = read_catalog(Listing(root=path), labelled=True)
    first = str(folder / "b jump/1.avi")
    assert [item.path for item in catalog.items] == [
        *(f"{first}#t=0,2.5", f"{first}#t=2.5", first),
        str(folder / "b jump/2.MP4#t=3,100"),
    ]
    with pytest.raises(UserError, match=r"2\.MP4#t=0,1 has two labels"):
        read_catalog(
            Listing(root=write_csv("path,label,start,end\n" + "".join(f"b jump/2.MP4,{x},0,1\n" for x in "ab"))),
            labelled=True,
        )
    for start, end in (("3", "2"), ("-1", "2"), ("nan", "3"), ("0:10", "0:20"), ("2", "2")):
        with pytest.raises(UserError, match=rf"line 2 has start '{start}' and end '{end}'; accepted are seconds"):
            read_catalog(Listing(root=write_csv(f"path,start,end\nb jump/1.avi,{start},{end}\n")), labelled=False)


def test_csv_from_a_spreadsheet(write_csv):
    catalog = read_catalog(
        Listing(root=write_csv('path, label\r\n"b jump/2.MP4",jump\r\n\r\n', "utf-8-sig")), labelled=True
    )
    assert [item.label for item in catalog.items] == [0]
    assert catalog.classes == ("jump",)


def test_csv_without_labels_needs_only_paths(write_csv):
    assert read_catalog(Listing(root=write_csv("path\nb jump/1.avi\n")), labelled=False).items[0].label is None
    assert read_catalog(Listing(root=write_csv("path,label\nb jump/1.avi,\n")), labelled=False).classes == ()


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
        read_catalog(Listing(root=write_csv(text)), labelled=True)


def test_the_splits_of_a_csv(write_csv):
    path = write_csv("path,label,split\nb jump/1.avi,jump,train\nb jump/2.MP4,run,val\nnot here.avi,,test\n")
    (train,), (val,) = (
        read_catalog(Listing(root=path, split=split), labelled=True).items for split in ("train", "val")
    )
    assert (Path(train.path).name, train.label) == ("1.avi", 0)
    assert (Path(val.path).name, val.label) == ("2.MP4", 1), "a class has the same number in each split"
    assert read_catalog(Listing(root=path, split="val"), labelled=True).classes == ("jump", "run")
    with pytest.raises(UserError, match=r"line 4 has no label"):
        read_catalog(Listing(root=path, split="test"), labelled=True)
    with pytest.raises(UserError, match=r"line 4: .*not here\.avi does not exist \(1 of 1"):
        read_catalog(Listing(root=path, split="test"), labelled=False)
    with pytest.raises(
        UserError, match=r"list\.csv holds the splits test, train, val\. Name one of them, such as test"
    ):
        read_catalog(Listing(root=path), labelled=False)
    with pytest.raises(UserError, match=r"list\.csv has no split 'trian'\. Did you mean train"):
        read_catalog(Listing(root=path, split="trian"), labelled=True)


def test_where_a_split_need_not_be_named(folder, write_csv):
    path = write_csv("path,split\nb jump/1.avi,fold1\n")
    assert read_catalog(Listing(root=path), labelled=False) == read_catalog(
        Listing(root=path, split="fold1"), labelled=False
    )
    path = write_csv("path,split\nb jump/1.avi,\n")
    assert len(read_catalog(Listing(root=path), labelled=False).items) == 1
    with pytest.raises(UserError, match=r"list\.csv has no splits, but 'val' was named"):
        read_catalog(Listing(root=path, split="val"), labelled=False)
    with pytest.raises(UserError, match=r"line 2 has no split; others have val\. Write one"):
        read_catalog(
            Listing(root=write_csv("path,split\nb jump/1.avi,\nb jump/2.MP4,val\n"), split="val"), labelled=False
        )
    with pytest.raises(UserError, match=r"is a folder and has no split 'train'\. Give .*videos/train, or a \.csv"):
        read_catalog(Listing(root=folder, split="train"), labelled=False)


def test_csv_in_another_encoding_is_refused(write_csv):
    with pytest.raises(UserError, match=r"can't be read: .*UTF-8"):
        read_catalog(Listing(root=write_csv("path,label\né.avi,x\n", "latin-1")), labelled=True)


def test_csv_with_an_unknown_class(write_csv):
    path = write_csv("path,label\nb jump/1.avi,jmup\n")
    with pytest.raises(UserError, match=r"line 2: 'jmup' is not a known class\. Did you mean jump\?"):
        read_catalog(Listing(root=path), labelled=True, classes=("jump", "run"))
    path = write_csv("path,label\nb jump/1.avi,2\n")
    with pytest.raises(UserError, match=r"'2' is not a known class\. Accepted: jump, run\."):
        read_catalog(Listing(root=path), labelled=True, classes=("jump", "run"))


def test_what_is_no_data_set_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist\. Accepted: a folder of videos, or a \.csv"):
        read_catalog(Listing(root=tmp_path / "nowhere"), labelled=False)
    with pytest.raises(UserError, match=r"data\.root is empty"):
        read_catalog(Listing(root=""), labelled=False)
    with pytest.raises(UserError, match=r"README\.md is neither a folder nor a \.csv"):
        read_catalog(Listing(root=folder / "README.md"), labelled=False)
    with pytest.raises(UserError, match=r"empty class holds no videos\. Accepted: files ending in .*\.mp4"):
        read_catalog(Listing(root=folder / "empty class"), labelled=False)


def test_a_flat_folder_has_no_labels(folder):
    with pytest.raises(UserError, match=r"1\.avi has no label \(2 such videos\).*one folder for each class"):
        read_catalog(Listing(root=folder / "b jump"), labelled=True)


def test_splits_are_no_classes(folder):
    (folder / "a (run)").rename(folder / "train")
    (folder / "b jump").rename(folder / "val")
    with pytest.raises(UserError, match=r"train, val: these look like splits, not classes\. Give one of them"):
        read_catalog(Listing(root=folder), labelled=True)
    assert len(read_catalog(Listing(root=folder), labelled=False).items) == 4


def test_real_folders(real_data):
    train = read_catalog(Listing(root=real_data / "arid6" / "train"), labelled=True)
    assert train.classes == ("Jump", "Run", "Sit", "Stand", "Turn", "Walk")
    assert len(train.items) == 150
    listed = read_catalog(Listing(root=real_data / "arid6" / "labels.csv", split="train"), labelled=True)
    assert len(listed.items) == 150
    assert listed.classes == tuple("012345")
    by_path = {item.path: item.label for item in listed.items}
    assert all(by_path[item.path] == item.label for item in train.items)
    assert len(read_catalog(Listing(root=real_data / "arid6" / "labels.csv", split="val"), labelled=False).items) == 96
    with pytest.raises(UserError, match=r"labels\.csv holds the splits train, val\. Name one of them"):
        read_catalog(Listing(root=real_data / "arid6" / "labels.csv"), labelled=True)


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
