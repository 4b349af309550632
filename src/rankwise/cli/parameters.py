"""The library's options as flags of a command: a dataclass field `batch_size: int` becomes `--batch-size INT`.

The dataclasses know nothing of a command line, and the library's errors name arguments (`` `memory=` ``). Everything that turns the one
into the other is here: names, headings, whole numbers, and the words of an error.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

from cyclopts import Parameter, Token

from rankwise.config import DataOptions, LoraOptions, ModelOptions, TableOptions, TrainOptions
from rankwise.errors import RankwiseError
from rankwise.inference_options import HowToRun, TextOptions

Command = TypeVar("Command", bound=Callable[..., Any])

HEADINGS: dict[type, str] = {
    DataOptions: "Data",
    ModelOptions: "Model",
    LoraOptions: "LoRA",
    TrainOptions: "Training",
    TableOptions: "A table of your own",
    HowToRun: "How it runs",
    TextOptions: "Texts of a language model",
}
"""Under which heading of `--help` a group of options stands."""
NO_FLAGS = {(TableOptions, "train_file"), (TableOptions, "folds"), (TableOptions, "fold")}
"""Fields that a command fills in itself."""
ARGUMENT = re.compile(r"`([a-z_]+)=([^`]*)`|(?<![^\s(])([a-z_]+)=([\w-]*(?:\.\w+)*)(?!\S*=)")
"""How a message of the library writes an argument, with or without a value: `` `memory=` ``, `` `memory="fast"` ``, `memory=fast`."""
OTHER_NAMES = {"base=": "--model", "head=False": "--no-head", "of_class=": "--class"}
"""Arguments of the library whose flag is called otherwise."""


def with_flags(command: Command) -> Command:
    """Give a command's parameters the annotations that cyclopts reads flags from; call it before the command is registered.

    A parameter that is one of the library's dataclasses becomes a flag for each of its fields, groups of fields included.
    """
    hints = get_type_hints(command, include_extras=True)
    command.__annotations__ = {name: _annotated(hint) for name, hint in hints.items()}
    _names.update(name for name in hints if name != "return")
    return command


def flag(name: str) -> str:
    """Return a name as a flag: `batch_size` → `--batch-size`."""
    return f"--{name.replace('_', '-')}"


def in_flags(message: str) -> str:
    """Rewrite the arguments that a library's message names as flags: `` `lr=` `` as `--lr`, `` `memory="fast"` `` as `--memory fast`.

    Names that no command has as a flag stay as they are.
    """

    def rewrite(found: re.Match[str]) -> str:
        name, value = (
            one or other for one, other in zip(found.groups()[:2], found.groups()[2:], strict=True)
        )
        if other := OTHER_NAMES.get(f"{name}={value or ''}"):
            return other
        if name not in _names:
            return found.group()
        value = (value or "").strip("\"'")
        return flag(name) if value in ("", "True") else f"{flag(name)} {value}"

    return ARGUMENT.sub(rewrite, message)


_names: set[str] = set()
"""Parameters and fields that are flags of some command."""


class _CheckItself:
    """Keeps pydantic from checking options, which cyclopts asks for as soon as anything has imported pydantic.

    What a class of flags makes is of another class, which checks its own values.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.any_schema()


def _annotated(hint: Any) -> Any:
    """Return a parameter's type with what cyclopts has to know about it."""
    if is_dataclass(hint):
        group = HEADINGS.get(cast(type, hint))
        parameter = Parameter(name="*") if group is None else Parameter(name="*", group=group)
        return Annotated[_flags(cast(type, hint)), parameter, _CheckItself()]
    if hint is int or set(get_args(hint)) == {int, NoneType}:
        return Annotated[hint, Parameter(converter=_whole)]
    return hint


@cache
def _flags(kind: type) -> type:
    """Return a dataclass with the fields of `kind`, annotated for cyclopts; calling it makes a `kind`."""
    hints = get_type_hints(kind, include_extras=True)
    made = []
    for one in fields(kind):
        hidden = any((base, one.name) in NO_FLAGS for base in kind.__mro__)
        hint = Annotated[hints[one.name], Parameter(parse=False)] if hidden else _annotated(hints[one.name])
        if _is_turned_off(hints[one.name], one.default):
            off = flag(f"no_{one.name}")
            hint = Annotated[hint, Parameter(negative=off)]
            OTHER_NAMES[f"{one.name}=False"] = off
        made.append((one.name, hint, field(default=one.default, default_factory=one.default_factory)))
        if not hidden:
            _names.add(one.name)
    make = {"__new__": lambda _, **values: kind(**values), "__module__": kind.__module__}
    return make_dataclass(kind.__name__, made, bases=(kind,), namespace=make, frozen=True, kw_only=True)


def _is_turned_off(hint: Any, default: object) -> bool:
    """Return whether a flag needs its opposite: it is on by itself, or is both on and off by what it is used on."""
    return default is True or set(get_args(hint)) == {bool, NoneType}


def _whole(kind: Any, tokens: Sequence[Token]) -> int:
    """Read a whole number; cyclopts itself would round 4.5 to 4 without a word."""
    (token,) = tokens
    try:
        return int(token.value)
    except ValueError:
        name = token.keyword or "This setting"
        raise RankwiseError(f"{name} must be a whole number; it is {token.value!r}.") from None
