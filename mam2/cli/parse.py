"""Parses a command's arguments with tyro, and prints its help page."""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
import shutil
import sys
import textwrap
import time
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar, cast

import docstring_parser
import tyro
from rich.logging import RichHandler
from tyro.conf import arg

from mam2 import distributed
from mam2.cli.verbs import VERBS
from mam2.config import Duration, UserError, printable, to_json
from mam2.progress import stderr_console
from mam2.recipes import RECIPES, get_recipe
from mam2.train.finetune import Finetune
from mam2.train.pretrain import Pretrain

CommandT = TypeVar("CommandT")
Flat = arg(name="")  # --data.root rather than --config.data.root
OWN_VIDEOS = ("mam2_tiny", "mam2_lite_b_k400", "mam2_b_k400_rp")
"""Pre-training recipes that need no download."""
NEEDED_BY_ALL = (
    *("data.root", "unlabelled", "train", "test", "init", "out", "videos", "kind", "shots"),
    *("loop.duration", "loop.batch_size", "data.stride_frames", "data.flip", "encoder.frames", "encoder.size"),
    *("optim.base_lr", "data.num_workers", "loop.precision", "scale", "budget", "seeds", "tests"),
)
"""Options that stand first in a help page."""
OUT_HELP = "a new folder, or that of the same run, which resumes"


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def say(words: str, *, file: TextIO | None = None) -> None:
    """Prints words that may hold names of files; by default on stdout."""
    print(printable(words), file=file)


def start_logging() -> None:
    """Logs to stderr."""
    handler = RichHandler(console=stderr_console(), show_path=False, show_time=False)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("mam2").setLevel(logging.INFO)


def parse(command: type[CommandT], verb: str, arguments: list[str], *, default: CommandT | None = None) -> CommandT:
    """The command that the arguments describe.

    Args:
        command: a dataclass.
        verb: what stands before the arguments.
        default: the values of options that are not given.
    """
    if default is not None and {"-h", "--help"} & set(arguments):
        print(help_page(verb, default))
        sys.exit(0)
    avoid = (tyro.conf.AvoidSubcommands,)  # a recipe says which objective it is
    parsed: Any = tyro.cli(
        command, args=arguments, prog=f"mam2 {verb}", default=default, config=avoid, registry=with_durations()
    )
    return cast(CommandT, parsed)


def first_word(verb: str, arguments: list[str], *, names: str) -> tuple[str, list[str]]:
    """The recipe or encoder that a command begins with, and the other arguments. Prints the help page without one.

    Raises:
        UserError: nothing is named.
    """
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if {"-h", "--help"} & set(arguments):
        print(help_without_recipe(verb))
        sys.exit(0)
    raise UserError(f"Name {names}: mam2 {verb} {VERBS[verb].usage}. See `mam2 {verb} --help`.")


def help_without_recipe(verb: str) -> str:
    """Usage, the recipes or studies to start with, and the options that everyone needs."""
    examples = [f"  mam2 {verb} {words}" for words in VERBS[verb].examples]
    lines = [f"usage: mam2 {verb} {VERBS[verb].usage}", "", f"{VERBS[verb].summary}.", "", *examples, ""]
    heading, names, config = starts_of(verb)
    lines += [heading, *(f"  {name:<18} {words}" for name, words in names.items())]
    if names:
        lines += ["", f"mam2 {verb} {next(iter(names))} --help lists all options. The first:"]
    options = [option for option in options_of(config) if option.name in NEEDED_BY_ALL]
    if "--out" in VERBS[verb].usage:  # the command's own, not the configuration's
        options.append(Option("out", "--out PATH", OUT_HELP, ""))
    options.sort(key=lambda option: NEEDED_BY_ALL.index(option.name))
    return "\n".join([*lines, *option_lines(options)])


def starts_of(verb: str) -> tuple[str, dict[str, str], Any]:
    """A heading, what the first word may be with a line about each, and a configuration whose options are shown."""
    if verb == "probe":
        from mam2.probe.probe import Probe

        return "Options:", {}, Probe()
    if verb == "study":
        from mam2.studies.builtin import STUDIES
        from mam2.studies.study import Settings

        return "Studies:", {name: study.title for name, study in STUDIES.items()}, Settings()
    kind = Finetune if verb == "finetune" else Pretrain
    own = ("finetune_tiny",) if kind is Finetune else OWN_VIDEOS
    names = {name: first_sentence(RECIPES[name].make.__doc__ or "") for name in own}
    return "Recipes for your own videos; `mam2 recipes` lists all:", names, get_recipe(own[0], kind)


def help_page(verb: str, command: Any) -> str:
    """All options of a command: those that everyone needs first, then the others by section."""
    options = sorted(options_of(command), key=lambda option: option.section != "")
    first = [option for name in NEEDED_BY_ALL for option in options if option.name == name]
    lines = [f"usage: mam2 {verb} {VERBS[verb.split()[0]].usage.partition(' ')[2]} [options]"]
    lines += ["", *option_lines(first)]
    for section in dict.fromkeys(option.section for option in options):
        others = [option for option in options if option.section == section and option not in first]
        if others:
            lines += ["", f"{section or 'other'}:", *option_lines(others)]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of a command, as an option."""

    name: str
    words: str
    description: str
    default: str

    @property
    def section(self) -> str:
        """The part of the configuration that it belongs to; empty for the command's own."""
        return self.name.rpartition(".")[0]


def options_of(config: Any, prefix: str = "") -> Iterator[Option]:
    """The fields of a dataclass as options, those of dataclasses in it with a dotted name."""
    params = docstring_parser.parse(type(config).__doc__ or "").params
    texts = {name: param.description or "" for param in params for name in param.arg_name.split(", ")}
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, Duration):
            yield from options_of(value, prefix if field.name == "config" else f"{prefix}{field.name}.")
            continue
        name = f"{prefix}{field.name}"
        flag = name.replace("_", "-")
        notes = [note.help for note in getattr(hints[field.name], "__metadata__", ()) if getattr(note, "help", None)]
        words = f"--{flag}" if isinstance(value, bool) else f"--{flag} {kind_of(hints[field.name])}"
        text = notes[0] if notes else texts.get(field.name, "")
        if value is True:
            words = f"--{prefix.replace('_', '-')}no-{field.name.replace('_', '-')}"
            text = text if notes else f"turn off: {text}"
        missing = value is tyro.MISSING or value == ""
        shown = "" if missing or isinstance(value, bool) else f"[{as_text(value)}]"
        yield Option(name, words, text, shown)


def kind_of(hint: Any) -> str:
    """A type as a help page shows it: its choices, or what it is."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    names = {int: "N", float: "X", str: "TEXT", Path: "PATH", Duration: "DURATION"}
    return names.get(hint, "VALUE" if typing.get_origin(hint) is not tuple else "VALUES")


def as_text(value: Any) -> str:
    """A value as it is typed."""
    plain = to_json(value) if isinstance(value, Duration) else value
    return " ".join(map(str, plain)) if isinstance(plain, tuple) else str(plain)


def option_lines(options: Iterable[Option]) -> list[str]:
    """Each option: how it is typed, what it is, its default; wrapped at the terminal's width."""
    width = shutil.get_terminal_size((100, 24)).columns
    lines = []
    for option in options:
        left = f"  {option.words:<34} "
        if len(option.words) > 34:
            lines.append(left.rstrip())
            left = " " * 37
        text = f"{first_clause(option.description)} {option.default}"
        first, *others = textwrap.wrap(text, max(20, width - 37), break_on_hyphens=False) or [""]
        lines += [f"{left}{first}".rstrip(), *(" " * 37 + other for other in others)]
    return lines


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line, without its full stop."""
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def first_clause(text: str) -> str:
    """The beginning of a description, up to a semicolon, a bracket or a full stop."""
    return re.split(r"(?<!Eq|Ng)[.;](?: |$)| \(", " ".join(text.split()))[0]


def with_durations() -> tyro.constructors.ConstructorRegistry:
    """tyro's rules, and one that reads `500 steps`."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def duration(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[Duration] | None:
        if info.type is not Duration:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="DURATION",
            instance_from_str=lambda words: Duration.parse(words[0]),
            is_instance=lambda value: isinstance(value, Duration),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def typed() -> str:
    """The command as it was typed."""
    return shlex.join(["mam2", *sys.argv[1:]])


def finished(what: str, start: float, *next_commands: str, file: TextIO | None = None) -> None:
    """Prints what a command wrote, how long it took since `start` (of time.monotonic), and what to type next.

    Args:
        file: where to print; by default stdout.
    """
    if distributed.rank() > 0:
        return
    seconds = time.monotonic() - start
    took = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    say(f"Wrote {what} in {took}.", file=file)
    for number, command in enumerate(next_commands):
        say(f"{'Next:' if number == 0 else '     '} {command}", file=file)
