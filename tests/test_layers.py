"""The map of the package: imports point one way, and one file alone knows of other processes."""

import ast
import importlib.util
from pathlib import Path

import torch
from torch import nn

import mam2
from mam2 import distributed

ROOT = Path(mam2.__file__).parent
# Floors from the bottom up, and the rooms on each. A file imports from its own room and from the floors below.
FLOORS = (
    "ground",
    "data model targets",
    "objectives evaluate pictures",
    "train",
    "trained cost recipes",
    "probe share use",
    "studies",
    "cli",
    "top",
)
# The files of each room, in the order of their imports: a file imports from the lines above its own.
ROOMS = {
    "ground": (
        "config cross_entropy device progress ridge verbs version",
        "distributed files inert losses masks patches terminal",
    ),
    "data": (
        "bad_videos benchmarks mixing sampling shape synthetic transforms workers",
        "video/orientation video/segment_path video/source",
        "csv_list rand_augment video/index",
        "labels video/even_frames video/indexed",
        "catalog video/frame_file video/jpeg_folder video/pyav video/segment video/still video/torchcodec",
        "video/open prepare/labelled prepare/official_lists",
        "clips prepare/cvat prepare/inspect prepare/label_studio",
        "prepare/label_tools",
        "loader views windows prepare/extract prepare/find",
        "prepare/manifest",
    ),
    "model": (
        "attention positions weight_file importers/names",
        "blocks",
        "encoder regressor",
        "classifier decoders pooling importers/facts",
        "clip_order",
        "weights importers/recognise importers/tensors",
        "importers/inflate importers/own",
        "importers/build",
        "importers/__init__",
        "load",
    ),
    "targets": (
        "cache hog motion pixels raft teacher tokenizers/codes",
        "tokenizers/dalle tokenizers/random_projection tokenizers/vq tokenizers/vqgan",
        "table tokenizers/convert",
        "maker",
    ),
    "objectives": ("contract", "mae mam2 masked_input vjepa", "__init__"),
    "evaluate": ("evaluate",),
    "pictures": ("canvas page", "charts hits masks prediction", "score_page timeline"),
    "train": (
        "checkpoint optim tokenizer tracking",
        "logs run",
        "engine online_probe",
        "begin",
        "finetune pretrain",
    ),
    "cost": ("cost",),
    "trained": ("trained",),
    "probe": ("heads", "features", "probe"),
    "recipes": ("pretrain tables", "ablations finetune rivals", "__init__", "scales"),
    "share": ("auto_model export mteb_encoder", "hub transformers_model"),
    "use": (
        "__init__ evaluate_run features_file hidden_patches",
        "embedder lance predictions_file show",
        "run_page sliding_windows",
        "embed predict search",
        "hits_page",
        "demo/shown",
        "demo/page",
    ),
    "studies": (
        "budget study",
        "builtin results summary",
        "frames study_page",
        "compare protocol",
        "jobs",
        "conduct",
        "quickstart",
    ),
    "cli": (
        "help tables",
        "parse",
        "recipe_options",
        "compare cost demo embed evaluate export finetune import_ masks predict prepare pretrain probe push",
        "quickstart recipes report search show study targets tokenizer",
    ),
    "top": ("__init__", "__main__"),
}
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
LINE_OF = {
    (room, file): number
    for room, lines in ROOMS.items()
    for number, files in enumerate(lines)
    for file in files.split()
}
ROOM_OF_FILE = {
    file: room for room in ("ground", "evaluate", "trained", "cost", "top") for file in " ".join(ROOMS[room]).split()
}
FILES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def place_of(file: str) -> tuple[str, str]:
    """Room and name in it: `train/engine.py` is engine of train, `masks.py` is masks of the ground floor."""
    name = file.removesuffix(".py")
    if "/" not in name:
        return ROOM_OF_FILE.get(name, "none"), name
    room, rest = name.split("/", 1)
    return room, rest


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of all that a file imports, within functions too; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide where a name comes from"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(tree: ast.AST) -> set[str]:
    """The files of this package that a file imports: `data/loader.py`, `config.py`, `objectives/__init__.py`."""
    found = set()
    for name in imports(tree):
        if name.startswith("mam2."):
            path = name.removeprefix("mam2.").replace(".", "/")
            found |= {file for file in (f"{path}.py", f"{path}/__init__.py") if file in FILES}
    return found


def is_only_a_title(file: str) -> bool:
    """A package's __init__ that holds a docstring alone: importing something of the package imports nothing more."""
    return file.endswith("/__init__.py") and len(FILES[file].body) <= 1


def test_every_file_has_a_place() -> None:
    places = {place_of(file) for file in FILES if not is_only_a_title(file)}
    assert places - set(LINE_OF) == set(), "give the new file a line in ROOMS"
    assert set(LINE_OF) - places == set(), "no such file"
    assert set(FLOOR_OF) == set(ROOMS)


def test_there_are_at_most_nine_floors() -> None:
    assert len(FLOORS) <= 9


def test_the_imports_are_found() -> None:
    assert {"distributed.py", "config.py", "losses.py", "train/optim.py"} <= own_imports(FILES["train/engine.py"])
    assert own_imports(ast.parse("def f():\n    from mam2.train import engine\n    import mam2.masks")) == {
        "train/__init__.py",
        "train/engine.py",
        "masks.py",
    }


def test_imports_point_one_way() -> None:
    wrong = []
    for file, tree in FILES.items():
        room, name = place_of(file)
        for imported in own_imports(tree) - {file}:
            if is_only_a_title(imported):
                continue
            other_room, other = place_of(imported)
            below = FLOOR_OF[other_room] < FLOOR_OF[room]
            above_in_the_list = room == other_room and LINE_OF[room, other] < LINE_OF[room, name]
            if not (below or above_in_the_list):
                wrong.append(f"{file} imports {imported}")
    assert wrong == []


def test_nobody_imports_the_front_door() -> None:
    for file, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert "mam2" not in {alias.name for alias in node.names}, file
            if isinstance(node, ast.ImportFrom) and node.module == "mam2":
                for alias in node.names:
                    assert {f"{alias.name}.py", f"{alias.name}/__init__.py"} & set(FILES), f"{file}: {alias.name}"


def test_the_model_and_the_targets_know_no_data() -> None:
    for file, tree in FILES.items():
        if place_of(file)[0] in ("model", "targets", "ground"):
            assert not {name for name in own_imports(tree) if name.startswith("data/")}, file


def test_the_model_knows_no_targets_and_the_targets_no_model() -> None:
    for file, tree in FILES.items():
        other = {"model": "targets", "targets": "model"}.get(place_of(file)[0])
        assert not {name for name in own_imports(tree) if place_of(name)[0] == other}, file


def test_the_loop_knows_no_method_and_no_data() -> None:
    for file in ("train/engine.py", "train/logs.py", "train/optim.py", "train/checkpoint.py"):
        known = {name.split("/")[0] for name in own_imports(FILES[file])}
        assert not known & {"objectives", "targets", "data", "masks.py"}, file


def test_configurations_know_no_torch() -> None:
    assert not {name for name in imports(FILES["config.py"]) if name.split(".")[0] in ("torch", "mam2")}


def test_one_file_alone_names_torch_distributed() -> None:
    for file, tree in FILES.items():
        if file == "distributed.py":
            continue
        found = imports(tree) | {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names = ("torch.distributed", "torch.nn.parallel", "nn.parallel")
        assert not {name for name in found if name.startswith(names)}, file


def test_nothing_in_the_package_needs_the_tests() -> None:
    for file, tree in FILES.items():
        assert not {name for name in imports(tree) if name.split(".")[0] in ("tests", "pytest")}, file


def test_every_file_says_what_it_is() -> None:
    silent = [file for file, tree in FILES.items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def test_every_file_can_be_found_by_name() -> None:
    for file in FILES:
        module = "mam2." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if module != "mam2.__init__":
            assert importlib.util.find_spec(module) is not None, file


def test_a_process_by_itself_needs_no_others() -> None:
    with distributed.session():
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        model = nn.Linear(2, 2)
        assert distributed.wrap(model) is model
        with distributed.without_sync(model, True):
            model(torch.zeros(1, 2)).sum().backward()
        assert distributed.mean(torch.tensor([2.0, 3.0])).tolist() == [2.0, 3.0]
        assert (distributed.any_rank(True), distributed.any_rank(False)) == (True, False)
        assert distributed.gather({"x": 1}) == [{"x": 1}]
        distributed.barrier()
