"""Parses the arguments of a command into its dataclass, and says at the end what it wrote."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO, TypeVar, cast

import tyro
from tyro.conf import arg

from mam2 import distributed
from mam2.cli.help import help_page, options_of
from mam2.config import RENAMED, RENAMED_WORDS, Duration, UserError
from mam2.terminal import say
from mam2.verbs import VERBS

log = logging.getLogger("mam2")
STARTED = time.monotonic()  # a command imports this file first
CommandT = TypeVar("CommandT")
Flat = arg(name="")  # --data.root rather than --config.data.root


def asks_for_help(arguments: list[str]) -> bool:
    """True if an argument asks for the help page."""
    return bool({"-h", "--help"} & set(arguments))


def parse(
    command: type[CommandT], verb: str, arguments: list[str], *, first: str = "", default: CommandT | None = None
) -> CommandT:
    """The command that the arguments describe; prints the help page and exits if they ask for it.

    Args:
        command: its dataclass.
        verb: its name.
        arguments: words after the name, and after `first`.
        first: the recipe or the like that the command begins with.
        default: values of the options that are not given.
    """
    words = f"{verb} {first}".rstrip()
    if asks_for_help(arguments):
        print(help_page(verb, words, options_of(cast(type, command), default)))
        sys.exit(0)
    # A recipe says which objective it is; messages name an argument as the help page does.
    settings = (tyro.conf.AvoidSubcommands, tyro.conf.PositionalMetavarFromFieldName)
    parsed: Any = tyro.cli(
        command,
        args=in_words_of_today(arguments),
        prog=f"mam2 {words}",
        default=default,
        config=settings,
        registry=with_durations(),
    )
    return cast(CommandT, parsed)


def in_words_of_today(arguments: list[str]) -> list[str]:
    """The arguments with options and labels of version 0.1 by their names of today, which a message says once."""
    found: list[str] = []
    renamed: dict[str, str] = {}
    for before, word in zip(["", *arguments], arguments, strict=False):
        option, equals, value = word.partition("=")
        section, _, field = option.rpartition(".")
        if section.startswith("--") and (name := RENAMED.get(field.replace("-", "_"))):
            renamed[option] = f"{section}.{name}".replace("_", "-")
            word = f"{renamed[option]}{equals}{value}"
        elif (label := word.removeprefix("--labels=")) in RENAMED_WORDS and "--labels" in (option, before):
            renamed[f"--labels {label}"] = f"--labels {RENAMED_WORDS[label]}"
            word = word.replace(label, RENAMED_WORDS[label])
        found.append(word)
    for before, today in renamed.items():
        log.warning(f"{before} is called {today} now.")
    return found


def first_word(verb: str, arguments: list[str], *, names: str, page: Callable[[], str]) -> tuple[str, list[str]]:
    """The recipe or encoder that a command begins with, and the other arguments.

    Args:
        verb: the command's name.
        arguments: words after it.
        names: words for what the first one names.
        page: makes the help page, where no name stands before `--help`.

    Raises:
        UserError: nothing is named.
    """
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if asks_for_help(arguments):
        print(page())
        sys.exit(0)
    raise UserError(f"Name {names}: mam2 {verb} {VERBS[verb].usage}. See `mam2 {verb} --help`.")


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


def finished(what: str, *next_commands: str, file: TextIO | None = None) -> None:
    """Says what a command wrote, how long it took, and what to type next, on stdout or in `file`."""
    if distributed.rank() > 0:
        return
    seconds = time.monotonic() - STARTED
    took = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    say(f"Wrote {what} in {took}.", file=file)
    for number, command in enumerate(next_commands):
        say(f"{'Next:' if number == 0 else '     '} {command}", file=file)


def left_out(bad: Mapping[str, str]) -> str:
    """Words about damaged videos; empty without any."""
    return f"; of {len(bad)} something was left out, see above" if bad else ""
