"""Help pages: usage, examples, arguments, the options that everyone needs, then the others by section."""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import docstring_parser
import tyro
from annotated_types import Ge, Gt, Le, Lt

from mam2.config import Duration, bound_in_words, to_json
from mam2.terminal import width_of, wrapped, wrapped_command
from mam2.verbs import VERBS

NEEDED_BY_ALL = (
    *("data.root", "unlabelled", "train", "test", "init", "out", "videos", "kind", "shots"),
    *("loop.duration", "loop.batch_size", "data.stride_frames", "data.flip", "encoder.frames", "encoder.size"),
    *("optim.base_lr", "data.num_workers", "loop.precision", "scale", "budget", "seeds", "tests"),
)
"""Options that stand first in the help page of a command with many."""
MANY = 14
REQUIRED = "[required]"
READABLE = 10_000  # a bound above it keeps memory and files sane, and tells nobody what to type
POSITIONAL = tyro.conf.Positional[str].__metadata__[0]  # type: ignore[attr-defined]  # the mark that tyro puts on a type


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """A field of a command, as an option or an argument.

    Attributes:
        name: dotted name of the field.
        words: the option as it is typed.
        description: meaning of its values, of 0 and of none.
        bounds: smallest and largest values accepted; may be empty.
        default: default value in brackets; may be empty.
        is_argument: given by its place.
    """

    name: str
    words: str
    description: str
    bounds: str
    default: str
    is_argument: bool = False

    @property
    def section(self) -> str:
        """The part of the configuration that it belongs to; empty for the command's own."""
        return self.name.rpartition(".")[0]


def help_page(verb: str, words: str, options: Iterable[Option]) -> str:
    """All options of a command; `words` are those before the options: the command, and a recipe or the like."""
    options = sorted(options, key=lambda option: (not option.is_argument, option.default != REQUIRED))
    if len(options) <= MANY:
        return "\n".join([*opening(verb, words), *option_lines(options, whole=True)])
    options.sort(key=lambda option: option.section != "")
    first = needed_by_all(options)
    lines = [*opening(verb, words), *option_lines(first)]
    for section in dict.fromkeys(option.section for option in options):
        others = [option for option in options if option.section == section and option not in first]
        if others:
            lines += ["", f"{section or 'other'}:", *option_lines(others)]
    return "\n".join(lines)


def start_page(verb: str, heading: str, starts: Mapping[str, str], options: Iterable[Option]) -> str:
    """The page of a command that begins with a name.

    Args:
        verb: the command.
        heading: words above the names.
        starts: names to start with, and a line about each.
        options: options of the first name; those that everyone needs are listed.
    """
    width = width_of(sys.stdout) or 100
    lines = [*opening(verb, verb), *wrapped(heading, width).splitlines()]
    left = max(map(len, starts), default=0) + 4
    for name, words in starts.items():
        first, *others = textwrap.wrap(words, max(20, width - left), break_on_hyphens=False)
        lines += [f"{'  ' + name:<{left}}{first}", *(" " * left + other for other in others)]
    if starts:
        lines += ["", f"mam2 {verb} {next(iter(starts))} --help lists all options. The first:"]
    return "\n".join([*lines, *option_lines(needed_by_all(list(options)))])


def needed_by_all(options: list[Option]) -> list[Option]:
    """The options that everyone needs, in their order."""
    return [option for name in NEEDED_BY_ALL for option in options if option.name == name]


def opening(verb: str, words: str) -> list[str]:
    """Usage, summary and examples."""
    width = width_of(sys.stdout) or 100
    about = VERBS[verb]
    rest = about.usage if words == verb else f"{about.usage.partition(' ')[2]} [options]"
    lines = [*textwrap.wrap(f"usage: mam2 {words} {rest}", width, subsequent_indent=" " * 12), ""]
    if words != verb:
        return lines
    examples = [wrapped_command(f"mam2 {verb} {example}".rstrip(), width, indent="  ") for example in about.examples]
    return [*lines, *wrapped(f"{about.summary}.", width).splitlines(), "", *examples, ""]


def options_of(command: type, given: Any = None, prefix: str = "") -> Iterator[Option]:
    """The fields of a dataclass as options, those of dataclasses in it with a dotted name.

    Args:
        command: the dataclass.
        given: an instance that holds the default values; None takes those of the fields.
        prefix: words before the names.
    """
    texts = texts_of(command)
    hints = typing.get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        value = default_of(field) if given is None else getattr(given, field.name)
        plain, notes = without_notes(hints[field.name])
        part = plain if value is tyro.MISSING else type(value)
        if dataclasses.is_dataclass(part) and part is not Duration:
            is_flat = any(getattr(note, "name", None) == "" for note in notes)
            inner = None if value is tyro.MISSING else value
            yield from options_of(cast(type, part), inner, prefix if is_flat else f"{prefix}{field.name}.")
            continue
        name = f"{prefix}{field.name}"
        text = next((note.help for note in notes if getattr(note, "help", None)), texts.get(field.name, ""))
        flag = f"--{name}".replace("_", "-")
        words = flag if isinstance(value, bool) else f"{flag} {type_in_words(plain)}"
        if value is True:
            words = f"--{prefix}no-{field.name}".replace("_", "-")
            text = f"turn off: {text}" if field.name in texts else text
        if is_argument := POSITIONAL in notes:
            words = field.name.upper()
        yield Option(
            name=name,
            words=words,
            description=" ".join(text.split()),
            bounds=bounds_of(plain, notes),
            default=default_in_words(value),
            is_argument=is_argument,
        )


def texts_of(command: type) -> dict[str, str]:
    """The words about each attribute in the docstring of a class and of those that it extends."""
    documents = [docstring_parser.parse(part.__doc__ or "") for part in reversed(command.__mro__)]
    params = [param for document in documents for param in document.params]
    return {name: param.description or "" for param in params for name in param.arg_name.split(", ")}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default; tyro.MISSING if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


def without_notes(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type, and the notes that `Annotated` adds to it."""
    if typing.get_origin(hint) is Annotated:
        return typing.get_args(hint)[0], hint.__metadata__
    return hint, ()


def type_in_words(hint: Any) -> str:
    """A type as a help page shows it: its choices, or a word such as PATH."""
    hint, _ = without_notes(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(str(choice) for choice in args if choice != "")
    if origin in (typing.Union, types.UnionType):
        return "PATH" if Path in args else "|".join(type_in_words(part) for part in args if part is not type(None))
    if origin is tuple:
        kinds = [type_in_words(part) for part in args if part is not Ellipsis]
        return " ".join(kinds) + " (several)" * (Ellipsis in args)
    return {int: "N", float: "X", str: "TEXT", Path: "PATH", Duration: "DURATION"}.get(hint, "VALUE")


def bounds_of(hint: Any, notes: Iterable[Any]) -> str:
    """The bounds of a number, or of each number of several; nobody needs to read that 0 is the smallest."""
    if typing.get_origin(hint) is tuple:
        hint, notes = without_notes(typing.get_args(hint)[0])
    said = [bound_in_words(note) for note in notes if isinstance(note, Ge | Gt | Le | Lt) and note != Ge(0)]
    return ", ".join(words for words in said if float(words.split()[-1]) <= READABLE)


def default_in_words(value: Any) -> str:
    """A default in brackets; empty where a flag, or nothing, is the default."""
    if value is tyro.MISSING:
        return REQUIRED
    if value is None or value == "" or isinstance(value, bool):
        return ""
    plain = to_json(value) if isinstance(value, Duration) else value
    return f"[{' '.join(map(str, plain)) if isinstance(plain, tuple) else plain}]"


def option_lines(options: Iterable[Option], *, whole: bool = False) -> list[str]:
    """Lines on each option, at the terminal's width: words to type, description (in short unless `whole`), default."""
    width = width_of(sys.stdout) or 100
    lines = []
    for option in options:
        left = f"  {option.words:<34} "
        if len(option.words) > 34:
            spaced = textwrap.wrap(f"  {option.words}".replace("|", "| "), width, subsequent_indent=" " * 6)
            lines += [line.replace("| ", "|") for line in spaced]
            left = " " * 37
        description = option.description.rstrip(".") if whole else in_short(option.description)
        text = f"{'; '.join(filter(None, (description, option.bounds)))} {option.default}"
        first, *others = textwrap.wrap(text, max(20, width - 37), break_on_hyphens=False) or [""]
        lines += [f"{left}{first}".rstrip(), *(" " * 37 + other for other in others)]
    return lines


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line, without its full stop."""
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def in_short(text: str) -> str:
    """The first clause of a description, and those that say what 0, nothing or the default means; without brackets."""
    plain = re.sub(r" \([^()]*\)", "", text)
    first, *others = re.split(r"(?<!Eq|Ng)[.;](?: |$)", plain)
    says_default = re.compile(r'\b(0|empty|none|default)\b|""')
    return "; ".join([first, *filter(says_default.search, others)]).rstrip(".")
