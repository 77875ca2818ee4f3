"""Exports of Label Studio and CVAT, written by hand in the official formats, as manifests."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import mam2, manifest_rows, write_video

from mam2.config import UserError
from mam2.data.catalog import read_catalog
from mam2.data.prepare.label_tools import read_exports
from mam2.data.prepare.labelled import seconds_of
from mam2.data.prepare.manifest import Prepare, prepare
from mam2.data.shape import Listing
from mam2.data.video.open import open_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of 40 frames, 30 a second, whose frame i has the grey level 20 + 5 i."""
    root = tmp_path_factory.mktemp("labelled")
    for name in ("ring.mp4", "day/match one.mp4", "night/match one.mp4"):
        (root / name).parent.mkdir(exist_ok=True)
        write_video(root / name)
    return root


def grey_levels(path: str) -> list[int]:
    """The numbers of a video's frames, by their grey level."""
    with open_video(path) as video:
        frames = video.frames(range(video.num_frames))
    return [round((level - 20) / 5) for level in frames[:, :, 20, 30].float().mean(dim=1).tolist()]


def timeline(start, end, *labels, name="actions"):
    value = {"ranges": [{"start": start, "end": end}], "timelinelabels": list(labels)}
    return {"id": "xY1", "type": "timelinelabels", "from_name": name, "to_name": "video", "value": value}


def choice(*labels, name="class"):
    return {"id": "aB2", "type": "choices", "from_name": name, "to_name": "video", "value": {"choices": list(labels)}}


def task(video, *results, **annotation):
    kept = {"id": 41, "was_cancelled": False, "ground_truth": False, "result": list(results), **annotation}
    return {"id": 7, "data": {"text": "http://[x", "video": video}, "annotations": [kept], "predictions": []}


@pytest.fixture
def export(tmp_path):
    def write(*tasks):
        file = tmp_path / "export.json"
        file.write_text(json.dumps(list(tasks)))
        return file

    return write


def test_label_studio(folder, export, tmp_path):
    box = {"type": "videorectangle", "value": {"labels": ["ball"], "sequence": []}}
    file = export(
        task("/data/upload/3/0a1b2c3d-ring.mp4", timeline(1, 10, "jump"), box, timeline(16, 40, "fall")),
        task("/data/local-files/?d=videos/night/match%20one.mp4", timeline(5, 5, "jump")),
        task("s3://bucket/gone.mp4", timeline(5, 9, "jump")),
    )
    out = tmp_path / "manifest.csv"
    report = prepare(
        Prepare(name="label_studio", root=folder, annotations=file, out=out, num_workers=0, max_missing_share=0.5)
    )
    assert report.manifest == out
    assert report.missing.first == (f"bucket/gone.mp4 ({file}, task 3, annotation 41, result 1)",)
    assert (report.num_classes, report.num_read, report.splits[0].listed, report.splits[0].written) == (2, 2, 4, 3)
    rows = manifest_rows(report)
    assert [(row["label"], row["frames"], row["split"]) for row in rows] == [
        *(("jump", "10", "train"), ("fall", "25", "train"), ("jump", "1", "train"))
    ]
    items = read_catalog(Listing(root=out), labelled=True).items
    frames = [grey_levels(item.path) for item in items]
    assert frames == [list(range(10)), list(range(15, 40)), [4]]
    assert items[2].path.startswith(str(folder / "night" / "match one.mp4#t=0.11"))


def test_choices_are_of_whole_videos_and_a_task_may_name_its_split(folder, export, tmp_path):
    first = task("ring.mp4", choice("indoors "))
    first["data"]["split"] = "validation"
    file = export(first, task("https://host/x/day/match%20one.mp4?sig=1", choice("outdoors")))
    report = prepare(Prepare(name="label_studio", root=folder, annotations=file, out=tmp_path / "m.csv", num_workers=0))
    assert [(row["path"], row["label"], row["split"], row["frames"]) for row in manifest_rows(report)] == [
        (str(folder / "ring.mp4"), "indoors", "val", "40"),
        (str(folder / "day/match one.mp4"), "outdoors", "train", "40"),
    ]


def test_several_labels_of_the_same_frames_are_one_line(folder, export, tmp_path):
    results = [timeline(1, 3, "jump"), timeline(1, 3, "fall"), timeline(1, 3, "jump"), timeline(2, 3, "run", "fall")]
    report = prepare(
        Prepare(
            name="label_studio",
            root=folder,
            annotations=export(task("ring.mp4", *results)),
            out=tmp_path / "m.csv",
            num_workers=0,
        )
    )
    assert [row["label"] for row in manifest_rows(report)] == ["jump;fall", "run;fall"]
    assert (report.num_classes, report.splits[0].listed) == (3, 2)
    assert report.notes == ("2 lines have several labels, such as 'jump;fall'.",)
    catalog = read_catalog(Listing(root=report.manifest), labelled=True, kind="auto")
    assert (catalog.kind, catalog.classes) == ("multilabel", ("fall", "jump", "run"))


def test_frames_counted_at_another_rate(folder, export, tmp_path):
    """Label Studio counts by the frameRate of its configuration: its frame 13 of 24 a second is shown after 0.5 s."""
    file = export(task("ring.mp4", timeline(13, 24, "jump")))
    report = prepare(
        Prepare(name="label_studio", root=folder, annotations=file, label_fps=24, out=tmp_path / "m.csv", num_workers=0)
    )
    (item,) = read_catalog(Listing(root=report.manifest), labelled=True).items
    assert grey_levels(item.path) == list(range(15, 30))


def test_of_several_annotations_the_ground_truth_counts(export):
    both = task("a.mp4", timeline(1, 9, "jump"))
    skipped = {"id": 42, "was_cancelled": True, "result": []}
    other = {"id": 43, "result": [timeline(1, 8, "jump")]}
    both["annotations"] += [skipped]
    assert [one.frames for one in read_exports("label_studio", export(both))] == [(0, 9)]
    both["annotations"] += [other]
    with pytest.raises(UserError, match=r"task 1: annotation 41 and annotation 43 differ.*Mark one"):
        read_exports("label_studio", export(both))
    other["ground_truth"] = True
    assert [one.frames for one in read_exports("label_studio", export(both))] == [(0, 8)]


def test_of_several_controls_one_is_named(export):
    file = export(task("a.mp4", timeline(1, 9, "jump"), choice("rain", name="weather")))
    with pytest.raises(UserError, match=r"several controls: 'actions' in .*result 1; 'weather' in .*result 2\. Name"):
        read_exports("label_studio", file)
    assert [one.label for one in read_exports("label_studio", file, control="weather")] == ["rain"]
    with pytest.raises(UserError, match=r"no labels of the control 'wether'\. Those that it has: 'actions', 'weather'"):
        read_exports("label_studio", file, control="wether")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", r"export\.json is not JSON: .*Export it again"),
        ("[" * 100_000, r"export\.json is not JSON: it is nested too deeply"),
        ("{}", r"export\.json is no list of tasks\. In Label Studio choose Export, JSON"),
        ('[{"video": "a.mp4", "choice": "x"}]', r"task 1 has no data.*JSON-MIN"),
        ('[{"data": {"video": "a.mp4"}}]', r"task 1 has no list of annotations"),
        ('[{"data": {"video": "a.mp4"}, "annotations": [{}]}]', r"task 1, annotation 1 has no list of results"),
        ('[{"data": {"video": "a.mp4"}, "annotations": []}]', r"holds no labels\. Label some"),
        (json.dumps([task("a.mp4", timeline(9, 8, "x"))]), r"result 1 has the range .*'end': 8}; accepted are frames"),
        (json.dumps([task("a.mp4", timeline(0, 8, "x"))]), r"accepted are frames, start and end, from 1"),
        (json.dumps([task("a.mp4", timeline(0.5, 8, "x"))]), r"accepted are frames, start and end, from 1"),
        (json.dumps([task("a.mp4", timeline(1, 8))]), r"result 1 has no timelinelabels"),
        (json.dumps([task("a.wav", choice("x"))]), r"the task's data names no video: text, video"),
    ],
)
def test_wrong_exports_of_label_studio(tmp_path, text, message):
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_exports("label_studio", tmp_path / "export.json")


TASK = "<id>4</id><name>match</name><size>40</size><mode>interpolation</mode><source>ring.mp4</source>"


def cvat(*elements, meta=f"<task>{TASK}</task>"):
    start = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    return f"{start}<meta>{meta}</meta>\n" + "\n".join(elements) + "\n</annotations>\n"


def track(label, *frames, task=""):
    """Frames are numbers; a negative one is marked as outside, as CVAT does where an object leaves."""
    boxes = "".join(
        f'<box frame="{abs(frame)}" keyframe="1" outside="{int(frame < 0)}" occluded="0" xtl="1.00" ytl="2.00" '
        f'xbr="9.00" ybr="9.00" z_order="0"><attribute name="side">left</attribute></box>'
        for frame in frames
    )
    return f'<track id="0" label="{label}" source="manual"{task and f" task_id={task!r}"}>{boxes}</track>'


@pytest.fixture
def xml(tmp_path):
    def write(text, name="annotations.xml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def stretches(file):
    return [(one.video, one.label, one.frames) for one in read_exports("cvat", file)]


def test_tracks_of_cvat(folder, xml, tmp_path):
    file = xml(cvat(track("jump", 3, 4, -5, 20, 29, -30), track("jump", 28, 35), track("a &amp; b", 39)))
    assert stretches(file) == [
        ("ring.mp4", "jump", (3, 5)),
        ("ring.mp4", "jump", (20, 36)),  # two tracks that overlap; the last is seen in its last frame
        ("ring.mp4", "a & b", (39, 40)),
    ]
    report = prepare(Prepare(name="cvat", root=folder, annotations=file, out=tmp_path / "m.csv", num_workers=0))
    paths = [item.path for item in read_catalog(Listing(root=report.manifest), labelled=True).items]
    assert [grey_levels(path) for path in paths] == [[3, 4], list(range(20, 36)), [39]]
    assert read_exports("cvat", file)[1].place == f"{file}, line 5"


def test_a_cvat_task_of_every_fifth_frame(xml):
    meta = f"<task>{TASK}<start_frame>10</start_frame><frame_filter>step=5</frame_filter></task>"
    file = xml(cvat(track("jump", 10, 15), track("fall", 20, -25), meta=meta))
    assert [one[1:] for one in stretches(file)] == [("jump", (10, 20)), ("fall", (20, 25))]
    images = '<image id="1" name="x.jpg" width="64" height="48"><tag label="jump" source="manual"></tag></image>'
    assert [one[1:] for one in stretches(xml(cvat(images, meta=meta)))] == [("jump", (15, 20))]


def test_tags_and_shapes_of_frames(xml):
    """CVAT for images: the format that has tags."""
    images = [
        f'<image id="{i}" name="frame_{i:06d}" width="64" height="48">'
        f'<tag label="{"jump" if i < 4 else "fall"}" source="manual"></tag></image>'
        for i in (1, 2, 3, 4, 7)
    ]
    images.append('<image id="8" name="frame_000008"><box label="fall" xtl="1" ytl="1" xbr="2" ybr="2"></box></image>')
    assert [one[1:] for one in stretches(xml(cvat(*images)))] == [
        *(("jump", (1, 4)), ("fall", (4, 5)), ("fall", (7, 9)))
    ]


def test_a_cvat_project_and_a_job(folder, xml, tmp_path):
    tasks = "<task><id>4</id><source>day/match one.mp4</source><subset>Test</subset></task><task><id>9</id></task>"
    meta = f"<project><id>1</id><name>p</name><tasks>{tasks}</tasks></project>"
    (one,) = read_exports("cvat", xml(cvat(track("jump", 1, -9, task="4"), meta=meta)))
    assert (one.video, one.split, one.frames) == ("day/match one.mp4", "test", (1, 9))
    job = xml(cvat(track("jump", 1, -9), meta="<job><id>3</id><mode>interpolation</mode></job>"))
    out = tmp_path / "m.csv"
    with pytest.raises(UserError, match=r"line 5: the export names no video, as those of a CVAT job do not"):
        prepare(Prepare(name="cvat", root=folder, annotations=job, out=out, num_workers=0))
    report = prepare(Prepare(name="cvat", root=folder / "ring.mp4", annotations=job, out=out, num_workers=0))
    assert [row["path"] for row in manifest_rows(report)] == [f"{folder / 'ring.mp4'}#t=0.016667,0.283333"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", r"annotations\.xml is no XML: .*line 1"),
        (cvat("<track></track>"), r"annotations\.xml, line 5: <track> has no label"),
        (cvat("<track label='x'>"), r"annotations\.xml is no XML: mismatched tag: line 6"),
        ("<html></html>", r"is no export of CVAT: it begins with <html>\. Choose CVAT for video 1\.1"),
        (cvat(), r"holds no labels"),
        (cvat(track("x", 1).replace('frame="1"', 'frame="1.5"')), r"line 5: frame is '1\.5'; accepted: a frame, from"),
        (
            '<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY e "' + "e" * 10 + '">]>\n<annotations>&e;</annotations>',
            r"annotations\.xml, line 2 declares a document type; CVAT declares none",
        ),
    ],
)
def test_wrong_exports_of_cvat(xml, text, message):
    with pytest.raises(UserError, match=message):
        read_exports("cvat", xml(text))


def test_wrong_arguments(folder, export, xml, tmp_path):
    file = export(task("x/match one.mp4", timeline(1, 3, "x")))
    out = tmp_path / "m.csv"

    def fails(message, name="label_studio", root=folder, **arguments):
        with pytest.raises(UserError, match=message):
            prepare(Prepare(name=name, root=root, out=out, num_workers=0, **arguments))

    fails(r"match one\.mp4 can be .*day/match one\.mp4 or .*night.*Give a root that", annotations=file)
    fails(r"No export of label_studio is given", annotations=None)
    fails(r"nowhere\.json does not exist\. Give the tool's export, a \.json file", annotations="nowhere.json")
    fails(r"is none\. Give the tool's export, a \.xml file", name="cvat", annotations=file)
    fails(r"only Label Studio's exports have any", name="cvat", annotations=xml(cvat()), control="x")
    fails(r"A control and label_fps are of label_studio and cvat; folder has none", name="folder", label_fps=24.0)
    fails(r"label_fps is -1", annotations=file, label_fps=-1.0)
    fails(r"or the one video that the labels are of", root=file, annotations=file)
    late = export(task("ring.mp4", timeline(41, 43, "x")))
    fails(r"ring\.mp4 has 40 frames; frame 40 is labelled, counted from 0", annotations=late)


def test_a_list_of_segments(folder, tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,start,end,label\n{folder}/ring.mp4,0.5,1,jump\n{folder}/ring.mp4,,0.1,fall\n")
    report = prepare(Prepare(name="folder", root=listed, num_workers=0))
    assert report.manifest == tmp_path / "list_manifest.csv"
    catalog = read_catalog(Listing(root=report.manifest), labelled=True)
    assert [(catalog.classes[i.label], grey_levels(i.path)) for i in catalog.items if i.label is not None] == [
        ("jump", list(range(15, 30))),
        ("fall", [0, 1, 2]),
    ]


@pytest.mark.parametrize("fps", [23.976, 25, 29.97, 30, 59.94, 120])
def test_seconds_lie_between_frames(fps):
    for first in (0, 1, 7, 100_000):
        start, end = seconds_of((first, first + 3), fps)
        shown = [i for i in range(max(0, first - 2), first + 6) if start <= i / fps < end]
        assert shown == [first, first + 1, first + 2]


def test_the_command(folder, export, tmp_path):
    file = export(task("ring.mp4", timeline(1, 20, "jump")))
    done = mam2("prepare", "label_studio", "--root", folder, "--annotations", file, "--out", tmp_path / "m.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.csv").exists()
    done = mam2("prepare", "label_studio", "--root", folder, "--annotations", "x.json")
    assert (done.returncode, done.stderr[-60:]) == (2, done.stderr[-60:])
    assert "mam2: x.json does not exist" in done.stderr


class Sample(SimpleNamespace):
    """A stand-in for FiftyOne's sample: fields by attribute and by name."""

    def __getitem__(self, name):
        return getattr(self, name)

    def compute_metadata(self):
        self.metadata = SimpleNamespace(frame_rate=30.0)


class Dataset:
    def __init__(self, name):
        self.name = name
        self.samples = []

    def __iter__(self):
        return iter(self.samples)

    def add_samples(self, samples):
        self.samples += samples

    def compute_metadata(self):
        for sample in self:
            sample.compute_metadata()


def test_the_snippets_for_fiftyone(folder, tmp_path, monkeypatch):
    """Out to FiftyOne and back gives the frames that were labelled."""
    export = tmp_path / "export.json"
    export.write_text(json.dumps([task("ring.mp4", timeline(1, 10, "jump"), timeline(16, 40, "fall"))]))
    prepare(Prepare(name="label_studio", root=folder, annotations=export, out=tmp_path / "labels.csv", num_workers=0))
    shown = []
    stub = SimpleNamespace(
        Sample=Sample,
        TemporalDetections=lambda: SimpleNamespace(detections=[]),
        TemporalDetection=SimpleNamespace,
        Dataset=Dataset,
        launch_app=shown.append,
        load_dataset=lambda name: shown[-1],
    )
    monkeypatch.setitem(sys.modules, "fiftyone", stub)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "labels.md").read_text()
    out_of_it, into_it = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(into_it, {})
    (sample,) = shown[-1]
    assert [(event.label, event.support) for event in sample.events.detections] == [
        *(("jump", [1, 10]), ("fall", [16, 40]))
    ]
    exec(out_of_it, {})
    catalog = read_catalog(Listing(root=tmp_path / "events.csv"), labelled=True)
    assert [grey_levels(item.path) for item in catalog.items] == [list(range(10)), list(range(15, 40))]
