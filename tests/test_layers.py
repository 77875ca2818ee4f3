"""The map of the package: imports point one way, and one file alone knows of other processes."""

import ast
import importlib.util
from pathlib import Path

import torch
from torch import nn

import mam2
from mam2 import distributed

ROOT = Path(mam2.__file__).parent
# From the bottom up. A file imports from its own level and those below.
LEVELS = (
    {"config", "device"},
    {"files", "inert", "patches", "masks", "cross_entropy", "losses", "ridge", "distributed"},
    {"data", "model", "targets"},
    {"objectives", "evaluate"},
    {"train"},
    {"probe", "pictures", "use", "cost"},
    {"recipes"},
    {"studies"},
    {"quickstart"},
    {"cli"},
    {"__main__", "__init__"},
)
DATA_LEVELS = (
    {
        "video/source",
        "video/orientation",
        "video/index",
        "sampling",
        "transforms",
        "mixing",
        "csv_list",
        "labels",
        "catalog",
        "video/segment",
        "video/still",
        "workers",
        "bad_videos",
        "synthetic",
    },
    {"video/pyav", "video/torchcodec", "video/jpeg_folder", "video/frame_file"},
    {"video/open"},
    {"clips"},
    {"loader", "views", "windows"},
    {"prepare/official_lists", "prepare/label_tools", "prepare/inspect"},
    {"prepare/manifest", "prepare/extract"},
)
LEVEL_OF = {part: number for number, parts in enumerate(LEVELS) for part in parts}
FILES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def part_of(file: str) -> str:
    """`train/engine.py` is of train, `masks.py` of masks."""
    return file.split("/")[0].removesuffix(".py")


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
    """The modules of this package a file imports: `data.loader`, `config`."""
    own = {name.removeprefix("mam2.") for name in imports(tree) if name.startswith("mam2.")}
    return {
        name for name in own if (ROOT / name.replace(".", "/")).with_suffix(".py").is_file() or (ROOT / name).is_dir()
    }


def test_every_file_has_a_level() -> None:
    assert {part_of(file) for file in FILES} <= set(LEVEL_OF), (
        "give the new file a level in LEVELS, and a line in the map"
    )


def test_the_imports_are_found() -> None:
    assert {"distributed", "config", "losses", "train.optim"} <= own_imports(FILES["train/engine.py"])
    assert own_imports(ast.parse("def f():\n    from mam2.train import engine\n    import mam2.masks")) == {
        "train",
        "train.engine",
        "masks",
    }


def test_imports_point_one_way() -> None:
    wrong = [
        f"{file} imports {name}"
        for file, tree in FILES.items()
        for name in own_imports(tree)
        if LEVEL_OF[name.split(".")[0]] > LEVEL_OF[part_of(file)]
    ]
    assert wrong == []


def test_imports_inside_data_point_one_way() -> None:
    level_of = {part: number for number, parts in enumerate(DATA_LEVELS) for part in parts}
    wrong = [
        f"{file} imports {name}"
        for file, tree in FILES.items()
        if (part := file.removeprefix("data/").removesuffix(".py")) in level_of and file.startswith("data/")
        for name in own_imports(tree)
        if level_of.get(name.removeprefix("data.").replace(".", "/"), -1) > level_of[part]
    ]
    assert wrong == []
    parts = {file.removeprefix("data/").removesuffix(".py") for file in FILES if file.startswith("data/")}
    assert {part for part in parts if not part.endswith("__init__")} <= set(level_of)


def test_models_targets_losses_and_masks_know_no_data() -> None:
    for file, tree in FILES.items():
        if part_of(file) in ("model", "targets", "losses", "masks"):
            assert not {name for name in own_imports(tree) if name.split(".")[0] == "data"}, file


def test_the_model_knows_no_targets_and_the_targets_no_model() -> None:
    for file, tree in FILES.items():
        other = {"model": "targets", "targets": "model"}.get(part_of(file))
        assert not {name for name in own_imports(tree) if name.split(".")[0] == other}, file


def test_the_loop_knows_no_method_and_no_data() -> None:
    for file in ("train/engine.py", "train/logs.py", "train/optim.py", "train/checkpoint.py"):
        known = {name.split(".")[0] for name in own_imports(FILES[file])}
        assert not known & {"objectives", "targets", "data", "masks"}, file


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
