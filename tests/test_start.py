"""Start of the command line: help pages and answers to mistakes import little, and fit a terminal of 80 columns."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY_ENCODER

from mam2.__main__ import main
from mam2.cli.help import in_short, options_of
from mam2.cli.pretrain import by_default as pretrain_by_default
from mam2.cli.probe import ProbeCommand
from mam2.cli.search import SearchCommand
from mam2.cli.tables import print_table
from mam2.recipes import RECIPES
from mam2.terminal import wrapped, wrapped_command
from mam2.verbs import VERBS, module_of, usage

HEAVY = {"torchvision", "torch._dynamo", "torch._inductor", "matplotlib", "vector_quantize_pytorch", "sympy", "gradio"}
NAMED = (("pretrain", "mam2_tiny"), ("finetune", "finetune_tiny"), ("cost", "mam2_tiny"), ("study", "fig2"))
PAGES = [(*verb.split(), "--help") for verb in VERBS] + [(*words, "--help") for words in NAMED] + [("--help",)]
MISTAKES = (
    ("pretrain", "mam2_tiny", "--looop.duration", "3"),
    ("pretrain", "mam2_tyni"),
    ("pretrain", "mam2_tiny", "--data.root", "absent", "--out", "out"),
    ("predict", "absent", "a.mp4", "--out", "labels.csv"),
    ("embed", "absent", "a.mp4", "--out", "features.parquet"),
    ("show", "absent", "a.mp4"),
    ("export", "absent", "--format", "pt2", "--out", "a.pt2"),
    ("evaluate", "absent", "--data.root", "absent"),
)
PROGRAM = """
import json, sys
from mam2.__main__ import main
statuses = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["mam2", *words]
    try:
        main()
        statuses.append(0)
    except SystemExit as end:
        statuses.append(end.code)
print(json.dumps([statuses, sorted(sys.modules)]))
"""


def start(*commands: tuple[str, ...], folder: Path) -> tuple[list[int], set[str]]:
    """Runs commands one after another in a new process: their statuses, and the modules that they imported."""
    arguments = json.dumps([list(map(str, words)) for words in commands])
    call = [sys.executable, "-c", PROGRAM, arguments]
    done = subprocess.run(call, capture_output=True, text=True, timeout=280, cwd=folder, env=os.environ)
    assert done.returncode == 0, done.stderr
    statuses, modules = json.loads(done.stdout.splitlines()[-1])
    return statuses, set(modules)


def test_every_command_has_a_file_of_its_name() -> None:
    folder = Path(__file__).parents[1] / "mam2" / "cli"
    assert {module_of(verb) for verb in VERBS} == {verb.split()[0].replace("import", "import_") for verb in VERBS}
    assert {module_of(verb) for verb in VERBS} <= {file.stem for file in folder.glob("*.py")}
    assert all(verb.examples for verb in VERBS.values())


def test_help_imports_little(tmp_path) -> None:
    statuses, modules = start(*PAGES, folder=tmp_path)
    assert set(statuses) == {0}
    assert "torch" in modules
    assert not modules & HEAVY


def test_mistakes_are_answered_before_much_is_imported(tmp_path) -> None:
    statuses, modules = start(*MISTAKES, folder=tmp_path)
    assert set(statuses) == {2}
    assert not modules & HEAVY
    assert list(tmp_path.iterdir()) == []


def test_embed_predict_and_search_import_little(videos, tmp_path, monkeypatch) -> None:
    train = ("--init", "scratch", "--data.root", videos, "--loop.duration", "1 steps", "--optim.warmup", "0 steps")
    words = ("finetune", "finetune_tiny", *TINY_ENCODER, *train, "--out", tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["mam2", *map(str, words)])
    main()
    video = videos / "left" / "0.mp4"
    commands = (
        ("embed", "run", videos, "--out", "f.parquet", "--window", "4 frames", "--num-workers", "0"),
        ("predict", "run", videos, "--out", "whole.csv"),
        ("predict", "run", video, "--out", "windows.csv", "--window", "4 frames"),
        ("search", "f.parquet", video, "--html", "hits.html"),
    )
    statuses, modules = start(*commands, folder=tmp_path)
    assert statuses == [0, 0, 0, 0]
    assert {"f.parquet", "whole.csv", "windows.csv", "hits.html"} <= {file.name for file in tmp_path.iterdir()}
    assert not modules & HEAVY


def printed(monkeypatch: pytest.MonkeyPatch, *words: str, columns: int) -> str:
    """What a command prints on a terminal that wide."""
    monkeypatch.setattr(sys, "argv", ["mam2", *words])
    monkeypatch.setenv("COLUMNS", str(columns))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    return out.getvalue()


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_help_fits_80_columns(monkeypatch, words) -> None:
    page = printed(monkeypatch, *words, columns=80)
    assert page.startswith(f"usage: mam2 {' '.join(words[:-1]) or 'COMMAND'}")
    assert max(map(len, page.splitlines())) <= 80
    assert "…" not in page
    if len(words) == 2 and words[0] != "tokenizer":
        assert f"  mam2 {words[0]}" in page, "an example"


def test_lists_that_are_typed_again_are_whole_at_80_columns(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for words, names in ((("recipes",), RECIPES), (("recipes", "--table", "8"), ["finetune_b_ssv2"])):
        page = printed(monkeypatch, *words, columns=80)
        assert max(map(len, page.splitlines())) <= 80
        assert "…" not in page
        shown = set(re.findall(r"\w+", page))
        assert set(names) <= shown
    assert "-–init" not in page
    joined = re.sub(r" \\\n +", " ", page)
    assert "mam2 finetune finetune_b_ssv2 --data.root DIR --out RUN --init PRETRAINED\n" in joined


def test_a_piped_list_is_not_wrapped(monkeypatch, capsys) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "argv", ["mam2", "recipes"])
    main()
    page = capsys.readouterr().out
    row = next(line for line in page.splitlines() if " mam2_lite_l_k400 " in line)
    assert all(words in row for words in ("Kinetics-400", "ViT-L", "epochs"))


def test_commands_are_wrapped_so_that_a_shell_reads_them_whole() -> None:
    command = "mam2 predict RUN VIDEOS --out labels.csv --window '2 s' --hop '1 s' --timeline scores.html"
    lines = wrapped_command(command, 40, indent="  ").split("\n")
    assert all(len(line) <= 40 for line in lines)
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert re.sub(r" \\\n +", " ", "\n".join(lines)).strip() == command
    assert any("--window '2 s'" in line for line in lines)
    assert wrapped_command(command, 0) == command
    assert wrapped("a long sentence\nof two lines", 8) == "a long\nsentence\nof two\nlines"


def test_the_list_of_commands_is_wrapped() -> None:
    page = usage(50)
    assert max(map(len, page.splitlines())) <= 50
    assert all(f"  {verb} " in page for verb in VERBS)


def test_options_say_what_is_accepted_and_what_nothing_means() -> None:
    options = {option.name: option for option in options_of(ProbeCommand)}
    assert options["shots"].words == "--shots N"
    assert options["baseline"].words == "--no-baseline"
    assert "0 takes all" in in_short(options["shots"].description)
    assert options["train_clips"].bounds == "at least 1"
    assert options["held_out"].bounds == "above 0, below 1"
    assert options["kind"].words == "--kind linear|ridge|attentive|knn"
    assert options["out"].default == "[required]"
    found = {option.name: option for option in options_of(SearchCommand)}
    assert (found["features"].is_argument, found["features"].words) == (True, "FEATURES")
    assert found["top_k"].default == "[10]"
    nested = [option.name for option in options_of(type(pretrain_by_default("mam2_tiny", [])))]
    assert "data.root" in nested


@pytest.mark.parametrize("recipe", ["mam2_tiny", "vjepa_b_k400", "videomae_b_k400", "maskfeat_b_k400"])
def test_every_0_is_explained(recipe) -> None:
    command = pretrain_by_default(recipe, [])
    plain = {"loop.seed", "optim.min_lr", "optim.freeze_encoder_for", "objective.alignment_ramp"}  # 0 is 0
    for option in options_of(type(command), command):
        if option.default in ("[0]", "[0.0]", "[0 steps]") and option.name not in plain:
            assert re.search(r"\b0\b", in_short(option.description)), option.name


def test_no_cell_of_a_table_is_cut(monkeypatch, capsys) -> None:
    from rich.table import Table

    monkeypatch.setenv("COLUMNS", "40")
    table = Table("name", "words")
    table.add_row("a_name_of_thirty_characters_ok", "words that take more than one line of so few columns")
    print_table(table, names=1)
    out = capsys.readouterr().out
    assert "a_name_of_thirty_characters_ok" in out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 40
