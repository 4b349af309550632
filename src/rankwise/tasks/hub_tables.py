"""Data sets of the Hugging Face hub as tables. This is the only module that uses the `datasets` library.

It is imported inside functions, because it is slow to import and only such data need it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankwise.errors import RankwiseError, nearest
from rankwise.models.hub import quiet_hub
from rankwise.tasks.cells import OddCell, plain
from rankwise.tasks.file_kinds import is_saved_dataset
from rankwise.tasks.table import OnDemand, Table
from rankwise.tasks.tables import read_tables
from rankwise.tasks.task import Task

TEXT_FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Suffixes of files whose cells the `datasets` library would give types that it infers."""


def read_split(task: Task, split: str) -> Table:
    """Return one split of a task's repository on the hub, with labels as stored.

    Raises:
        RankwiseError: the task is on no hub, the hub can't be reached, or it has no such split.
    """
    instead = f"Give a folder that holds {task.name}/{split}.parquet with `data=`."
    if task.hub is None:
        raise RankwiseError(f"{task.name} is on no hub. {instead}")
    import datasets

    config = task.hub_config or task.name
    try:
        with quiet_hub():
            rows = datasets.load_dataset(task.hub, config, split=split)
    except Exception as error:  # the hub client raises whatever its HTTP and file layers raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RankwiseError(
            f"{task.name} can't be loaded from the hub's {task.hub} ({reason[0]}). {instead}"
        ) from error
    return Table(f"{task.hub} {config} {split}", {name: list(rows[name]) for name in rows.column_names})


def read_dataset(name: str, config: str | None, split: str | None = None) -> dict[str, Table]:
    """Return the splits of a data set that the `datasets` library loads, with classes by their names.

    Args:
        name: on the hub (`owner/name`), or a folder: of files, or what `save_to_disk` wrote. There, a single data set is `train`.
        config: one of its configurations, if it has several.
        split: only this one. Default: all.

    Raises:
        RankwiseError: it can't be loaded, or has no such split.
    """
    import datasets

    try:
        with quiet_hub(), _no_bars(datasets):
            files = _text_files(datasets, name, config)
            loaded = {} if files else _load(datasets, name, config)
            found = files or {str(key): rows for key, rows in loaded.items()}
    except Exception as error:  # the hub client raises whatever its HTTP and file layers raise
        reason = " ".join(str(error).split()) or type(error).__name__
        which = " Say which with `dataset_config=`." if "Config name is missing" in reason else ""
        raise RankwiseError(
            f"The data set {name} can't be loaded ({reason[:200]}).{which or ' Without the hub, give files or a folder instead.'}"
        ) from error
    if split is not None and split not in found:
        raise RankwiseError(f"{name} has no split {split!r}.{nearest(split, found)}")
    return {
        key: read_tables(rows) if isinstance(rows, list) else table_of(f"{name} {key}", rows)
        for key, rows in found.items()
        if split in (None, key)
    }


def table_of(name: str, rows: Any) -> Table:
    """Return a `datasets.Dataset` as a table."""
    return Table(name, OnDemand(rows.column_names, len(rows), lambda column: _named(rows, column)))


def _text_files(datasets: Any, name: str, config: str | None) -> dict[str, list[Path]]:
    """Return the files of each split of a folder that holds nothing but text formats, in which the library would infer types.

    They are read as files given one by one are. A folder whose README describes its columns is left to the library.
    """
    folder = Path(name)
    if not folder.is_dir() or is_saved_dataset(folder) or (folder / "README.md").exists():
        return {}
    found = datasets.load_dataset_builder(name, config).config.data_files or {}
    files = {str(split): [Path(file) for file in some] for split, some in found.items()}
    typed = any(file.suffix.lower() not in TEXT_FORMATS for some in files.values() for file in some)
    return {} if typed else files


def _load(datasets: Any, name: str, config: str | None) -> Mapping[str, Any]:
    if not is_saved_dataset(Path(name)):
        return datasets.load_dataset(name, config)
    saved = datasets.load_from_disk(name)
    return saved if isinstance(saved, dict) else {"train": saved}


def _named(rows: Any, column: str) -> list[Any]:
    """Return a column's values, with classes by the names that the data set gives them; −1 stands for no class."""
    names = class_names(rows, column)
    return list(rows[column]) if names is None else [by_name(value, names) for value in rows[column]]


def class_names(rows: Any, column: str) -> list[str] | None:
    """Return the names that a data set gives the classes of a column, or of the lists in it; None if it gives none."""
    feature = (getattr(rows, "features", None) or {}).get(column)
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def by_name(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class id, or the names in a list of ids; None for a negative id.

    Raises:
        OddCell: the id is none of the data set's.
    """
    value = plain(value)
    if isinstance(value, list):
        return [by_name(one, names) for one in value]
    if not isinstance(value, int | None) or (value is not None and value >= len(names)):
        n = len(names)
        raise OddCell(value, f"the data set has {n} class{'es' * (n != 1)}, with ids from 0 on")
    return None if value is None or value < 0 else names[value]


@contextmanager
def _no_bars(datasets: Any) -> Iterator[None]:
    """Keep the library's own progress bars off the terminal."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
