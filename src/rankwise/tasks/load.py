"""A run's rows: of a task by name, from a folder, the hub or a package; or of a table of one's own.

task name ─► Parquet folder | hub | package ─┐
                                             ├─► Table ─► Rows (incomplete ones left out) ─► Dataset
reviews.csv (--text, --label) ───────────────┘
"""

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from rankwise import downloads
from rankwise.config import RunConfig
from rankwise.errors import RankwiseError, nearest
from rankwise.models.hub import quiet_hub
from rankwise.tasks.custom import load_table
from rankwise.tasks.encoding import Rows
from rankwise.tasks.problems import Labels
from rankwise.tasks.registry import HUB, MOVIES, TASKS, Task, named
from rankwise.tasks.rows import rows_of
from rankwise.tasks.splits import Dataset, stratified_split
from rankwise.tasks.tables import Table, read_table

MOVIES_NEUTRAL = 0.3
"""Sentences rated nearer to 0 than this have no sentiment to learn; 10,318 of 10,605 remain."""
MOVIES_VALIDATION = 0.15
"""Share of the movie sentences that is validated on."""


def load(config: RunConfig) -> Dataset:
    """Training and validation rows of a run: of its task by name, or of its own table where one is given.

    Raises:
        RankwiseError: the data can't be found or can't be trained on.
    """
    limits = config.data
    own = config.table.train_file is not None or config.table.dataset is not None
    dataset = load_table(config.table) if own else _load_named(named(config.task), limits.data)
    train, validation = dataset.train, dataset.validation
    # Drawn by a seed of their own: every run of a grid has the same rows. The first rows would not do, since files go by label.
    if limits.limit_train is not None:
        train = train.select(np.random.default_rng(0).permutation(len(train))[: limits.limit_train])
    if limits.limit_eval is not None:
        validation = {
            split: rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[: limits.limit_eval]))
            for split, rows in validation.items()
        }
    return replace(dataset, train=train, validation=validation)


def load_split(task: Task, split: str, folder: Path | None = None) -> tuple[Rows, tuple[str, ...]]:
    """One labelled split of a task by name.

    Args:
        task: an entry of `TASKS`.
        split: `train`, `validation` (the headline's), or another by its stored name (mrpc's `test`).
        folder: holds `<task>/<split>.parquet` (or the hub's `<split>-*.parquet`). None asks the hub.

    Returns:
        The rows, and notes on what was left out.

    Raises:
        RankwiseError: the split can't be found or read, or has no labels.
    """
    if task.name not in TASKS or task.source != TASKS[task.name].source:  # a table may be called sst2.csv
        raise RankwiseError(
            f"{task.name} is no task by name, so it has no split {split!r}; give a file instead."
        )
    if task.name == MOVIES:
        return _movies(split), ()
    stored = task.validation[0] if split == "validation" else split
    table = _hub_table(task, stored) if folder is None else _folder_table(task, stored, folder)
    rows, notes = rows_of(table, task, labelled=True)
    if "idx" in table.columns:
        rows = replace(rows, idx=np.array(table.column("idx", "--data"), dtype=np.int64)[rows.idx])
    if task.problem == "regression" and len(np.unique(cast(Labels, rows.labels))) == 1:
        raise RankwiseError(
            f"{task.name}'s split {split!r} has no labels of its own: each row has the same number."
        )
    return rows, notes


# ── Tasks by name ─────────────────────────────────────────────────────────────────────────────


def _load_named(task: Task, folder: Path | None) -> Dataset:
    train, notes = load_split(task, "train", folder)
    splits = {}
    for split in ("validation", *task.validation[1:]):
        if split == "validation" or folder is None or _split_files(task, split, folder):
            splits[split], more = load_split(task, split, folder)
            notes += more
    if len(train) < 0.99 * (task.official_train_rows or 0):  # the whole of qqp has a few rows without text
        notes += (
            f"{task.name} here has {len(train):,} of GLUE's {task.official_train_rows:,} training rows: "
            "comparable between methods, not with published figures.",
        )
    return Dataset(task, train, splits, notes)


def _split_files(task: Task, split: str, folder: Path) -> list[Path]:
    whole = folder / task.name / f"{split}.parquet"
    return [whole] if whole.is_file() else sorted((folder / task.name).glob(f"{split}-*.parquet"))


def _folder_table(task: Task, split: str, folder: Path) -> Table:
    files = _split_files(task, split, folder)
    if not files:
        place = next((path for path in (folder / task.name, folder) if path.is_dir()), None)
        listed = ", ".join(sorted(entry.name for entry in place.iterdir())) if place else ""
        held = f" {place} holds: {listed or 'nothing'}." if place else f" There is no folder {folder}."
        raise RankwiseError(f"--data has no {folder / task.name / f'{split}.parquet'}.{held}")
    tables = [read_table(file) for file in files]
    shards = [{name: table.column(name, "--data") for name in table.columns} for table in tables]
    columns = {name: [value for shard in shards for value in shard.get(name, ())] for name in shards[0]}
    return Table("/".join(files[0].parts[-2:]), columns)


def _hub_table(task: Task, split: str) -> Table:
    import datasets  # slow to import, and only the hub needs it

    try:
        with quiet_hub():
            rows = datasets.load_dataset(HUB, task.name, split=split)
    except Exception as error:  # the hub client raises whatever its HTTP and file layers raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RankwiseError(
            f"{task.name} can't be loaded from the hub's {HUB} ({reason[0]}). "
            f"Give a folder that holds {task.name}/train.parquet with --data."
        ) from error
    return Table(f"{HUB} {task.name} {split}", {name: list(rows[name]) for name in rows.column_names})


def _movies(split: str) -> Rows:
    lines = downloads.movies_file().read_text(encoding="utf-8").splitlines()
    idx, ratings, texts = zip(*(line.split("\t") for line in lines), strict=True)
    rating = np.array(ratings, dtype=float)
    rows = Rows(list(texts), None, (rating > 0).astype(np.int64), np.array(idx, dtype=np.int64))
    train, validation = stratified_split(
        rows.select(np.flatnonzero(np.abs(rating) >= MOVIES_NEUTRAL)), MOVIES_VALIDATION
    )
    splits = {"train": train, "validation": validation}
    if split not in splits:
        raise RankwiseError(f"{MOVIES} has no split {split!r}.{nearest(split, splits)}")
    return splits[split]
