"""`--config run.yaml`: the options of any command from a YAML or TOML file. What the command line gives itself comes first.

    epochs: 3                  --epochs=3
    methods: [lora, adaptive]  --methods=lora --methods=adaptive
    rslora: true               --rslora
    files: reviews.csv         reviews.csv, by the name that --help gives it

Every run writes such a file, `run.yaml`, and a grid `compare.yaml`. Values are read as they are written: `no` is a text, unless an option
is a switch.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cyclopts import App

from rankwise.errors import RankwiseError, nearest

OPTION = "--config"
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
ABSENT = ("", "~", "null", "Null", "NULL")
"""How YAML writes that there is no value."""


@dataclass(frozen=True)
class Entry:
    """An option of a file: its name, where it stands, and its value or values; None where it has none."""

    name: str
    where: str
    value: str | list[str] | None


def with_file(app: App, arguments: list[str]) -> list[str]:
    """Return a command line with the options of the file that `--config` names.

    Args:
        app: knows the commands.
        arguments: as they were given.

    Raises:
        RankwiseError: the file can't be read, or the command has no such option.
    """
    file, rest = _taken_out(arguments)
    if file is None:
        return arguments
    command = rest[0] if rest else ""
    if command.startswith("-") or command not in app:
        raise RankwiseError(f"{OPTION} stands behind a command: rankwise train {OPTION} {file}.")
    known = {
        _name(one): one
        for one in app[command].assemble_argument_collection()
        if one.parameter.parse is not False
    }
    given = next((i for i, token in enumerate(rest[1:]) if token.startswith("-")), len(rest) - 1)
    positional: dict[int, list[str]] = {}
    options: list[str] = []
    for entry in _entries(file):
        if entry.name not in known:
            raise RankwiseError(
                f"{entry.where}: rankwise {command} has no option {entry.name!r}.{nearest(entry.name, known)}"
            )
        argument = known[entry.name]
        if entry.value is None:
            continue
        if argument.index is not None:
            if argument.index >= given:
                positional[argument.index] = [entry.value] if isinstance(entry.value, str) else entry.value
        elif not any(
            token == name or token.startswith(f"{name}=") for token in rest for name in argument.names
        ):
            options += _tokens(entry, argument.name, argument.hint)
    places = [token for index in sorted(positional) for token in positional[index]]
    return [command, *rest[1 : given + 1], *places, *rest[given + 1 :], *options]


def _taken_out(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the file that `--config` names, and the other arguments."""
    file, rest, tokens = None, [], iter(arguments)
    for token in tokens:
        if token != OPTION and not token.startswith(f"{OPTION}="):
            rest.append(token)
            continue
        value = token.partition("=")[2] if "=" in token else next(tokens, "")
        if not value or file is not None:
            raise RankwiseError(f"{OPTION} takes one YAML or TOML file.")
        file = Path(value)
    return file, rest


def _name(argument: Any) -> str:
    return argument.name.lstrip("-").lower().replace("-", "_")


def _tokens(entry: Entry, flag: str, hint: Any) -> list[str]:
    if hint is bool:
        on = SWITCH.get(str(entry.value).lower())
        if on is None:
            raise RankwiseError(f"{entry.where}: {entry.name} is true or false, not {entry.value!r}.")
        return [flag] if on else []
    if isinstance(entry.value, str):
        return [f"{flag}={entry.value}"]
    if "tuple" not in str(hint):
        raise RankwiseError(f"{entry.where}: {entry.name} takes one value, not a list.")
    return [f"{flag}={one}" for one in entry.value or ()]


def _entries(file: Path) -> list[Entry]:
    """Read a file.

    Raises:
        RankwiseError: it isn't there, is malformed, or holds more than options with their values.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        entries = _toml(file, text) if file.suffix.lower() == ".toml" else _yaml(file, text)
    except OSError as error:
        raise RankwiseError(f"{file} can't be read: {error.strerror or error}.") from None
    except (ValueError, yaml.YAMLError) as error:
        raise RankwiseError(f"{file} can't be read: {' '.join(str(error).split())}.") from None
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RankwiseError(f"{file} has {twice!r} twice.")
    return entries


def _toml(file: Path, text: str) -> list[Entry]:
    entries = []
    for key, value in tomllib.loads(text).items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, dict | list) for one in values):
            raise _nested(str(file), key)
        words = [str(one).lower() if isinstance(one, bool) else str(one) for one in values]
        entries.append(
            Entry(key.replace("-", "_"), str(file), words if isinstance(value, list) else words[0])
        )
    return entries


def _yaml(file: Path, text: str) -> list[Entry]:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise RankwiseError(f"{file} holds no options: write one a line, such as epochs: 3.")
    entries = []
    for key, value in root.value:
        name, where = str(key.value).replace("-", "_"), f"{file} line {key.start_mark.line + 1}"
        nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(node, yaml.ScalarNode) for node in nodes):
            raise _nested(where, name)
        words = [node.value for node in nodes]
        absent = isinstance(value, yaml.ScalarNode) and value.style is None and value.value in ABSENT
        found = words if isinstance(value, yaml.SequenceNode) else words[0]
        entries.append(Entry(name, where, None if absent else found))
    return entries


def _nested(where: str, name: str) -> RankwiseError:
    return RankwiseError(
        f"{where}: {name} holds more than a value or a list of values. Options stand one a line, without groups."
    )
