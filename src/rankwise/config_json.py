"""Options as JSON and back, checked where they are read; and in what two of them differ.

    RunConfig ─► to_json ─► {"task": "sst2", "train": {"epochs": 3, …}, …} ─► from_json ─► RunConfig

`run.json`, `grid.json` and the file for `--config` hold them.
"""

from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from rankwise.config import RunConfig


def to_json(config: Any) -> Any:
    """Return the options as a nested dict of plain values: paths as strings, tuples as lists."""
    if is_dataclass(config):
        stored = [f.name for f in fields(config) if f.metadata.get("stored", True)]
        return {name: to_json(getattr(config, name)) for name in stored}
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, tuple):
        return [to_json(value) for value in config]
    return config


def from_json(kind: type, values: Any) -> Any:
    """Make a `kind`, a dataclass of options, from what `to_json` returned.

    Raises:
        ValueError: an option is unknown or of another type; the message names it.
        RankwiseError: an option has a value that it can't have.
    """
    return _from_json(kind, values, kind.__name__)


def _from_json(kind: Any, value: Any, name: str) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        (kind,) = (arg for arg in get_args(kind) if arg is not type(None))
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r:.40}, not an object")
        stored = {f.name for f in fields(kind) if f.metadata.get("stored", True)}
        hints = {key: hint for key, hint in get_type_hints(kind).items() if key in stored}
        if unknown := value.keys() - hints.keys():
            raise ValueError(f"there is no option {min(unknown):.60}")
        try:
            return kind(**{key: _from_json(hints[key], one, key) for key, one in value.items()})  # pyright: ignore[reportCallIssue]
        except TypeError as error:  # a field without a default is missing
            raise ValueError(str(error)) from None
    if kind is Path:
        return Path(_leaf(str, value, name))
    if get_origin(kind) is tuple:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list):
            raise ValueError(f"{name} is {value!r:.40}, not a list")
        return tuple(_from_json(get_args(kind)[0], one, name) for one in values)
    return _leaf(kind, value, name)


def _leaf(kind: Any, value: Any, name: str) -> Any:
    """Return a value that is of one of the plain types, or one of a `Literal`."""
    kinds = tuple(type(one) for one in get_args(kind)) or ((int, float) if kind is float else (kind,))
    fits = isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)
    if not fits or (get_args(kind) and value not in get_args(kind)):
        raise ValueError(f"{name} is {value!r:.40}")
    return value


def flat(config: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults by name, those of groups too, as `to_json` gives values."""
    found = {}
    for option in fields(config):
        value = getattr(config, option.name)
        if is_dataclass(value):
            found |= flat(value)
        elif value != option.default:
            found[option.name] = to_json(value)
    return found


def options_of(config: Any, out: Path) -> dict[str, Any]:
    """Return what a file for `--config` holds to ask for a run or a grid again: its files, method and seed, and what isn't a default."""
    found = flat(config)
    always = {
        "files": found.pop("train_file", None),
        "method": getattr(config, "method", None),
        "seed": getattr(config, "seed", None),
    }
    if isinstance(config, RunConfig) and not config.table.train_file and config.table.dataset is None:
        always["task"] = config.task
    return {name: value for name, value in always.items() if value is not None} | found | {"out": str(out)}


def same_run(request: dict[str, Any]) -> dict[str, Any]:
    """Return the `to_json` of a RunConfig without what may differ where a run is continued: its threads, and where its weights are."""
    model = {
        name: value for name, value in request.get("model", {}).items() if name not in ("threads", "shard")
    }
    return {**request, "model": model}


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return a line (`train.epochs: 3 there, 1 now`) for each option in which two `to_json` forms differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return lines
    return [] if old == new else [f"{prefix}: {old!r} there, {new!r} now"]
