"""A run's rows: of a task by name, or of your own table.

task name ─► its loader | Parquet folder | hub ─┐
                                                ├─► Rows ─► Dataset
reviews.csv (text, label) ─► Table ─────────────┘
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import numpy as np

from rankwise.config import RunConfig
from rankwise.errors import RankwiseError
from rankwise.tasks import registry
from rankwise.tasks.custom import load_table
from rankwise.tasks.encoding import Rows
from rankwise.tasks.hub_tables import read_split
from rankwise.tasks.labels import Labels
from rankwise.tasks.rows import rows_of
from rankwise.tasks.splits import Dataset
from rankwise.tasks.table import Table, join
from rankwise.tasks.tables import read_table
from rankwise.tasks.task import Task


def load_dataset(config: RunConfig, table: Table | None = None, validation: Table | None = None) -> Dataset:
    """Return training and validation rows of a run: of its task by name, or of its own table if one is given.

    Args:
        config: says which rows.
        table: rows that are in memory already, in the place of `config`'s.
        validation: likewise, of those to evaluate on.

    Raises:
        RankwiseError: the data can't be found or can't be trained on.
    """
    limits = config.data
    if table is not None or config.table.given:
        dataset = load_table(config.table, config.train, table, validation)
    else:
        _refuse_table_options(config, validation)
        dataset = _load_named(registry.named(config.task), limits.data)
    _check_loss_options(config, dataset.task)
    train, splits, left_out = dataset.train, dataset.validation, dict(dataset.left_out)
    # The seed is fixed, so that every run of a grid has the same rows. The first rows would not do: some files are sorted by label.
    if limits.limit_train is not None:
        left_out["by `limit_train=`"] = max(0, len(train) - limits.limit_train)
        train = train.select(np.random.default_rng(0).permutation(len(train))[: limits.limit_train])
    if limits.limit_eval is not None:
        left_out["by `limit_eval=`"] = sum(max(0, len(rows) - limits.limit_eval) for rows in splits.values())
        splits = {
            split: rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[: limits.limit_eval]))
            for split, rows in splits.items()
        }
    return replace(dataset, train=train, validation=splits, left_out=left_out)


def _refuse_table_options(config: RunConfig, validation: Table | None) -> None:
    """Refuse options of a table of your own where a task by name is read."""
    given = [f.name for f in fields(config.table) if getattr(config.table, f.name) is not None]
    if given or validation is not None:
        option = given[0] if given else "validation"
        raise RankwiseError(f"`{option}=` is for a table of your own, and no rows are given beside it.")


def _check_loss_options(config: RunConfig, task: Task) -> None:
    """Refuse options of language models for other tasks, and where a task by name says itself what is learned."""
    for name in ("completion_only_loss", "assistant_only_loss"):
        if getattr(config.train, name) is None:
            continue
        if task.loss_on is None:
            raise RankwiseError(f'`{name}=` is for `problem="generation"`; {task.name} is {task.problem}.')
        if registry.entry(task) is not None:
            raise RankwiseError(
                f"`{name}=` is for a table of your own; {task.name} says itself what is learned."
            )


def load_split(task: Task, split: str, folder: Path | None = None) -> tuple[Rows, tuple[str, ...]]:
    """Return one labelled split of a task by name.

    Args:
        task: a registered task, or one that a run recorded.
        split: `train`, `validation` (the headline's), or another by its stored name (mrpc's `test`).
        folder: holds `<task>/<split>.parquet` (or the hub's `<split>-*.parquet`). None asks the hub.

    Returns:
        The rows, and notes on rows that were left out.

    Raises:
        RankwiseError: the split can't be found or read, or has no labels.
    """
    entry = registry.entry(task)
    if entry is None:
        raise RankwiseError(
            f"{task.name} is no task by name, so it has no split {split!r}; give a file instead."
        )
    stored = entry.validation[0] if split == "validation" else split
    if entry.loader is not None:
        return entry.loader(stored, folder)
    return _load_stored(replace(task, hub=entry.hub, hub_config=entry.hub_config), stored, folder)


def at_hand(task: Task, folder: Path | None) -> bool:
    """Whether the rows of a task by name can be read without a hub or a download."""
    entry = registry.entry(task)
    if entry is None or entry.loader is None:
        return folder is not None
    return entry.download is None or entry.download.here


def _load_named(task: Task, folder: Path | None) -> Dataset:
    train, notes = load_split(task, "train", folder)
    splits = {}
    for split in ("validation", *task.validation[1:]):
        if split == "validation" or task.loader or folder is None or _split_files(task, split, folder):
            splits[split], more = load_split(task, split, folder)
            notes += more
    if len(train) < 0.99 * (task.official_train_rows or 0):  # the whole of qqp has a few rows without text
        notes += (
            f"{task.name} here has {len(train):,} of {task.benchmark}'s {task.official_train_rows:,} training rows: "
            "comparable between methods, not with published figures.",
        )
    return Dataset(task, train, splits, notes)


def _load_stored(task: Task, split: str, folder: Path | None) -> tuple[Rows, tuple[str, ...]]:
    """Read a split by its stored name from Parquet files or the hub, with the file's `idx` if it has one."""
    table = read_split(task, split) if folder is None else _folder_table(task, split, folder)
    rows, notes = rows_of(table, task)
    if "idx" in table.columns:
        rows = replace(rows, idx=np.array(table.column("idx", "data"), dtype=np.int64)[rows.idx])
    if task.problem == "regression" and len(np.unique(cast(Labels, rows.labels))) == 1:
        raise RankwiseError(f"{task.name}'s split {split!r} has no labels: each row has the same number.")
    return rows, notes


def _split_files(task: Task, split: str, folder: Path) -> list[Path]:
    whole = folder / task.name / f"{split}.parquet"
    return [whole] if whole.is_file() else sorted((folder / task.name).glob(f"{split}-*.parquet"))


def _folder_table(task: Task, split: str, folder: Path) -> Table:
    files = _split_files(task, split, folder)
    if not files:
        place = next((path for path in (folder / task.name, folder) if path.is_dir()), None)
        listed = ", ".join(sorted(entry.name for entry in place.iterdir())) if place else ""
        held = f" {place} holds: {listed or 'nothing'}." if place else f" There is no folder {folder}."
        raise RankwiseError(f"`data=` has no {folder / task.name / f'{split}.parquet'}.{held}")
    table = join([read_table(file) for file in files])
    return replace(table, name="/".join(files[0].parts[-2:]))
