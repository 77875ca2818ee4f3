"""Configurations as strict JSON, bounds, durations, seeds, errors. It knows no torch.

A configuration is a keyword-only frozen dataclass in the file of the code it configures. It is written to JSON
with `to_json` and read back equal with `from_json`, which refuses a name it does not know.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import math
import operator
import re
import types
import typing
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

from annotated_types import Ge, Gt, Le, Lt

ConfigT = TypeVar("ConfigT")
PartT = TypeVar("PartT")

RENAMED = {"encoder_waits": "freeze_encoder_for", "numbers": "embedding_dim"}
"""Fields of version 0.1 by their names of today: files written with the old ones are read."""

RENAMED_WORDS = {"several": "multilabel", "numbers": "regression"}
"""Values of version 0.1 by their names of today, likewise."""


class UserError(ValueError):
    """An error the user can fix. Its message says what was found, what is accepted and what to do."""


def printable(text: str) -> str:
    """Text with control characters and undecodable bytes as escapes: names of files may hold either.

    Example: a name that would clear the terminal, ESC [2J, becomes \\x1b[2J.
    """
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs", "Cf") and char not in "\n\t" else char
        for char in text
    )


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """End of an error message about an unknown name: `Did you mean ...?`, or the accepted names."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Accepted: {', '.join(options)}."


def is_plug_in(name: str) -> bool:
    """True for the import path of a plug-in, `package.module:name`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def load_plug_in(name: str, kind: type[PartT]) -> PartT:
    """Imports a plug-in, `package.module:name`, that must be of class `kind`.

    Raises:
        UserError: no such package or name, or another class; errors of the module itself come through.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module needs is missing
        raise UserError(
            f"{name} needs the package {error.name}, which Python does not find. Install it, or add the folder that it "
            "is in to PYTHONPATH."
        ) from error
    except AttributeError as error:
        raise UserError(f"The module {module} has no {attribute}, which {name} names.") from error
    if not isinstance(found, kind):
        raise UserError(f"{name} is {type(found).__name__}; accepted: {kind.__name__}.")
    return found


def seed_of(*parts: int) -> int:
    """A 63-bit seed from integers such as (seed, step, sample): equal on every machine, unrelated for neighbours."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Duration:
    """A length of training: so many steps of the optimiser, or so many epochs. Written `500 steps`, `20 epochs`."""

    value: float
    unit: Literal["steps", "epochs"]

    def __post_init__(self) -> None:
        if not 0 <= self.value < math.inf or (self.unit == "steps" and self.value != int(self.value)):
            raise UserError(
                f"A duration of {self.value} {self.unit} makes no sense: use whole steps, or epochs, from 0 up."
            )

    def steps(self, steps_per_epoch: int) -> int:
        """The duration in optimiser steps."""
        return int(self.value) if self.unit == "steps" else round(self.value * steps_per_epoch)

    def times(self, share: float) -> Duration:
        """A share of the duration, or a multiple of it; steps are rounded."""
        value = self.value * share
        return Duration(round(value) if self.unit == "steps" else value, self.unit)

    def __str__(self) -> str:
        return f"{int(self.value) if self.value == int(self.value) else self.value} {self.unit}"

    @staticmethod
    def parse(text: str) -> Duration:
        """Reads `500 steps`, `500steps`, `20 epochs` or `1.5 epochs`; UserError for anything else."""
        match = re.fullmatch(r"(.*?)(steps?|epochs?)", text.strip(), re.DOTALL)
        number, unit = match.groups() if match else ("", "")
        try:
            value = float(number)
        except ValueError as error:
            raise UserError(
                f"{text!r} is not a duration. Write a number and a unit, such as '500 steps' or '20 epochs'."
            ) from error
        return Duration(value, "steps" if unit.startswith("step") else "epochs")


def Steps(value: int) -> Duration:
    """`Steps(500)`: five hundred steps of the optimiser."""
    return Duration(value, "steps")


def Epochs(value: float) -> Duration:
    """`Epochs(20)`: twenty passes over the training videos."""
    return Duration(value, "epochs")


BOUNDS: dict[type, tuple[Callable[[Any, Any], bool], str]] = {
    Ge: (operator.ge, "at least"),
    Gt: (operator.gt, "above"),
    Le: (operator.le, "at most"),
    Lt: (operator.lt, "below"),
}
"""Comparison and words of each kind of bound."""


def check(config: Any, prefix: str) -> None:
    """Raises UserError unless every field of a configuration holds a value that its type accepts.

    Accepted are the choices of a Literal, finite numbers, and what lies within the bounds that stand in the type:
    `Annotated[int, Ge(1)]`, also inside a tuple.

    Args:
        config: a dataclass.
        prefix: words that users write before its fields' names: `objective.`.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        accepted = _accepted(hints[field.name], value)
        if accepted:
            raise UserError(f"{prefix}{field.name} is {value!r}; accepted: {accepted}.")


def _accepted(hint: Any, value: Any) -> str:
    """Values that a type accepts, in words, if this value is none of them; else empty."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "" if value in args else ", ".join(map(str, args))
    if origin is tuple and isinstance(value, tuple):
        return next((words for item in value if (words := _accepted(args[0], item))), "")
    if origin is Annotated:
        bounds = [bound for bound in args[1:] if type(bound) in BOUNDS]
        if not all(BOUNDS[type(bound)][0](value, _limit(bound)) for bound in bounds):
            return ", ".join(map(bound_in_words, bounds))
        return _accepted(args[0], value)
    return "" if not isinstance(value, float) or math.isfinite(value) else "finite numbers"


def bound_in_words(bound: Ge | Gt | Le | Lt) -> str:
    """A bound as error messages and help pages say it: at least 1."""
    return f"{BOUNDS[type(bound)][1]} {_limit(bound)}"


def _limit(bound: Ge | Gt | Le | Lt) -> Any:
    return getattr(bound, type(bound).__name__.lower())


def to_json(config: Any) -> Any:
    """A configuration as plain dicts, lists, numbers and strings.

    In a union of dataclasses, "is" names the class; a plug-in's is its import path, `package.module:name`.
    """
    if isinstance(config, Duration):
        return str(config)
    if dataclasses.is_dataclass(config):
        hints = typing.get_type_hints(type(config))
        found = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return {
            n: _tag(value, choices) if len(choices := _choices(hints[n])) > 1 else to_json(value)
            for n, value in found.items()
        }
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    return config


def from_json(cls: type[ConfigT], value: Any, *, where: str = "") -> ConfigT:
    """Reads back what `to_json` wrote: `from_json(type(c), to_json(c)) == c`.

    Args:
        cls: the dataclass to build.
        value: parsed JSON.
        where: the dotted name of the field being read, for messages.

    Raises:
        UserError: an unknown field (with the nearest known name), or a value of another type.
    """
    if not isinstance(value, dict):
        raise UserError(
            f"{where or cls.__name__} is {value!r}; it must be an object with the fields of {cls.__name__}."
        )
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(typing.cast(Any, cls))}
    today = {old: new for old, new in RENAMED.items() if new in names and old not in names}
    value = {today.get(name, name): item for name, item in value.items()}
    for name in value:
        if name not in names:
            raise UserError(
                f"{where + '.' if where else ''}{name} is no field of {cls.__name__}. {did_you_mean(name, names)}"
            )
    prefix = f"{where}." if where else ""
    return cls(**{name: _read(hints[name], item, prefix + name) for name, item in value.items()})


def _choices(hint: Any) -> dict[str, Any]:
    """The dataclasses of a union by name; none for other types."""
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    classes = [a for a in typing.get_args(hint) if isinstance(a, type)] if is_union else []
    return {cls.__name__: cls for cls in classes if dataclasses.is_dataclass(cls)}


def _tag(config: Any, choices: dict[str, Any]) -> dict[str, Any]:
    cls = type(config)
    own = f"{cls.__module__}:{cls.__name__}"
    return {"is": cls.__name__ if choices.get(cls.__name__) is cls else own, **to_json(config)}


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, args, choices = typing.get_origin(hint), typing.get_args(hint), _choices(hint)
    if len(choices) > 1 and isinstance(value, dict):
        name = value.get("is", next(iter(choices)))  # what was written before there was a choice is the first
        if name not in choices and not is_plug_in(str(name)):
            raise UserError(f"{where}.is is {name!r}. {did_you_mean(str(name), choices)}")
        chosen = choices[name] if name in choices else load_plug_in(name, type)
        return from_json(chosen, {n: item for n, item in value.items() if n != "is"}, where=where)
    if origin in (Union, types.UnionType):  # only `X | None` is used
        return None if value is None else _read(next(a for a in args if a is not type(None)), value, where)
    if hint is Duration:
        return Duration.parse(str(value))
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where=where)
    if origin is tuple and isinstance(value, list):
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(inner) == len(value):
            return tuple(_read(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(inner, value, strict=True)))
    if origin is Literal and value in args:
        return value
    if origin is Literal and isinstance(value, str) and RENAMED_WORDS.get(value) in args:
        return RENAMED_WORDS[value]
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    accepted = " or ".join(map(repr, args)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UserError(f"{where} is {value!r}; accepted: {accepted}.")
