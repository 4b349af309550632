"""What a model is trained for: the GLUE tasks and `movies` as entries of `TASKS`, or a table of one's own.

    task name ─► Parquet folder | hub | package ─┐
                                                 ├─► Table ─► Rows (incomplete ones left out) ─► Dataset
    reviews.csv (--text, --label) ───────────────┘

GLUE: Wang et al. 2019, arXiv:1804.07461; columns, label ids and metrics are those of `nyu-mll/glue`.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from rankwise import embedded
from rankwise.config import RunConfig, TableOptions
from rankwise.data import Rows, Table, read_table
from rankwise.errors import RankwiseError, nearest
from rankwise.hub import quiet_hub

HUB = "nyu-mll/glue"
MOVIES = "movies"
MOVIES_NEUTRAL = 0.3
"""Sentences rated nearer to 0 than this have no sentiment to learn; 10,318 of 10,605 remain."""
MOVIES_VALIDATION = 0.15
"""Share of the movie sentences that is validated on."""
TABLE_VALIDATION = 0.2
TABLE_VALIDATION_ROWS = 2000
"""A table's own validation split: this share of its rows, and about this many at most."""


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        name: as in `--tasks`.
        text: column of the text.
        text_pair: column of the second text, where rows are pairs.
        label: column of the label.
        label_names: name of each class id, in order.
        metrics: see `metrics.METRICS`; the first is the headline score.
        source: whom to cite.
        validation: splits to evaluate on by their stored names, the headline first; the others where present.
        official_train_rows: rows of the published training split, where there is one.
    """

    name: str
    text: str
    text_pair: str | None
    label: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    source: str
    validation: tuple[str, ...] = ("validation",)
    official_train_rows: int | None = None


@dataclass(frozen=True)
class Dataset:
    """What one run trains and evaluates on.

    Attributes:
        task: with its label names filled in.
        train: training rows, in the order that every method shares.
        validation: `validation` first, the headline (mnli's matched); mnli may add `validation_mismatched`.
        notes: sentences for the log: what was left out, shared, or differs from the published data.
    """

    task: Task
    train: Rows
    validation: dict[str, Rows]
    notes: tuple[str, ...] = field(default=())


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="sst2",
            text="sentence",
            text_pair=None,
            label="label",
            label_names=("negative", "positive"),
            metrics=("accuracy",),
            source="SST-2: Socher et al. 2013; GLUE: Wang et al. 2019",
            official_train_rows=67_349,
        ),
        Task(
            name="rte",
            text="sentence1",
            text_pair="sentence2",
            label="label",
            label_names=("entailment", "not_entailment"),
            metrics=("accuracy",),
            source="RTE: Dagan et al. 2006 and its successors; GLUE: Wang et al. 2019",
            official_train_rows=2_490,
        ),
        Task(
            name="mrpc",
            text="sentence1",
            text_pair="sentence2",
            label="label",
            label_names=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
            source="MRPC: Dolan & Brockett 2005; GLUE: Wang et al. 2019",
            official_train_rows=3_668,
        ),
        Task(
            name="qnli",
            text="question",
            text_pair="sentence",
            label="label",
            label_names=("entailment", "not_entailment"),
            metrics=("accuracy",),
            source="QNLI from SQuAD: Rajpurkar et al. 2016; GLUE: Wang et al. 2019",
            official_train_rows=104_743,
        ),
        Task(
            name="mnli",
            text="premise",
            text_pair="hypothesis",
            label="label",
            label_names=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            source="MultiNLI: Williams et al. 2018; GLUE: Wang et al. 2019",
            validation=("validation_matched", "validation_mismatched"),
            official_train_rows=392_702,
        ),
        Task(
            name="qqp",
            text="question1",
            text_pair="question2",
            label="label",
            label_names=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            source="Quora Question Pairs: Iyer et al. 2017; GLUE: Wang et al. 2019",
            official_train_rows=363_846,
        ),
        Task(
            name="cola",
            text="sentence",
            text_pair=None,
            label="label",
            label_names=("unacceptable", "acceptable"),
            metrics=("mcc", "accuracy"),
            source="CoLA: Warstadt et al. 2019; GLUE: Wang et al. 2019",
            official_train_rows=8_551,
        ),
        Task(
            name="wnli",
            text="sentence1",
            text_pair="sentence2",
            label="label",
            label_names=("not_entailment", "entailment"),
            metrics=("accuracy",),
            source="WNLI from the Winograd schemas: Levesque et al. 2012; GLUE: Wang et al. 2019",
            official_train_rows=635,
        ),
        Task(
            name=MOVIES,
            text="text",
            text_pair=None,
            label="label",
            label_names=("negative", "positive"),
            metrics=("accuracy",),
            source="Movie-review sentences with human ratings: Hutto & Gilbert, VADER, ICWSM 2014",
        ),
    )
}


def named(name: str) -> Task:
    """The task of that name.

    Raises:
        RankwiseError: there is none; the sentence gives the nearest.
    """
    if name not in TASKS:
        raise RankwiseError(f"There is no task {name!r}.{nearest(name, TASKS)}")
    return TASKS[name]


def load(config: RunConfig) -> Dataset:
    """Training and validation rows of a run: of its task by name, or of its own table where one is given.

    Raises:
        RankwiseError: the data can't be found or can't be trained on.
    """
    limits = config.data
    own = config.table.train_file is not None
    dataset = _load_table(config.table) if own else _load_named(named(config.task), limits.data)
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
    rows, notes = _rows(table, task, labelled=True)
    if "idx" in table.columns:
        rows = replace(rows, idx=np.array(table.column("idx", "--data"), dtype=np.int64)[rows.idx])
    return rows, notes


def read_rows(path: Path | str, task: Task, *, labelled: bool) -> tuple[Rows, tuple[str, ...]]:
    """Rows of a file, to evaluate (labelled) or predict on; `idx` is the row's position in the file, from 0.

    Args:
        path: CSV, TSV, JSONL or Parquet.
        task: says which columns, and the label names the model knows.
        labelled: read labels too, and leave out rows without one.

    Returns:
        The rows, and notes on what was left out.

    Raises:
        RankwiseError: the file or a column of it can't be read, or a label isn't one of the task's.
    """
    return _rows(read_table(path), task, labelled=labelled)


def stratified_split(rows: Rows, share: float) -> tuple[Rows, Rows]:
    """A fixed split into training and validation rows, the same share of each class.

    Rows of a class are ordered by a hash of their text and the first of them go to validation: no seed,
    nothing that changes with a library's version, and texts that differ only in case or punctuation stay together.

    Args:
        rows: labelled.
        share: of each class that goes to validation; a class of two texts or more gives at least one.
    """
    assert rows.labels is not None
    keys = np.array([hashlib.sha256(key.encode()).digest()[:16] for key in _loose_keys(rows)], dtype="S16")
    held_out = np.zeros(len(rows), dtype=bool)
    for label in np.unique(rows.labels):
        ordered = np.sort(keys[rows.labels == label])
        if len(ordered) > 1:
            bound = ordered[max(1, round(share * len(ordered)))]
            held_out |= (rows.labels == label) & (keys < bound)
    return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))


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
    lines = embedded.movies_file().read_text(encoding="utf-8").splitlines()
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


# ── A table of one's own ──────────────────────────────────────────────────────────────────────


def _load_table(options: TableOptions) -> Dataset:
    path = options.train_file
    assert path is not None
    table = read_table(path)
    task = Task(
        name=path.stem,
        text=options.text or "text",
        text_pair=options.text_pair,
        label=options.label or "label",
        label_names=(),
        metrics=("accuracy", "mcc"),
        source=path.name,
    )
    task = replace(task, label_names=_label_names(table, task))
    train, notes = _rows(table, task, labelled=True)
    if options.validation is not None:
        validation, more = read_rows(options.validation, task, labelled=True)
        notes += more
        shared = _shared(train, validation)
        if shared:
            notes += (
                f"{shared:,} of {len(validation):,} rows of {options.validation.name} also stand in "
                f"{path.name}: a score on them shows memory, not learning.",
            )
        return Dataset(task, train, {"validation": validation}, notes)
    share = min(TABLE_VALIDATION, TABLE_VALIDATION_ROWS / len(train))
    train, validation = stratified_split(train, share)
    if not len(validation):
        raise RankwiseError(
            f"{path.name} is too small to split validation rows off; give some with --validation."
        )
    notes += (f"{len(validation):,} rows of {path.name} are split off for validation, stratified by label.",)
    return Dataset(task, train, {"validation": validation}, notes)


def _label_names(table: Table, task: Task) -> tuple[str, ...]:
    """The classes that rows with a text have: sorted, numerically where all are integers."""
    labels = _label_strings(table, task)
    present = ~_without_text(_texts(table, task))
    names = {label for label, has_text in zip(labels, present, strict=True) if has_text and label is not None}
    if len(names) < 2:
        found = f"only the label {next(iter(names))!r}" if names else "no row with both text and label"
        raise RankwiseError(
            f"{table.name} has {found} in column {task.label!r}; training takes two classes or more."
        )
    return tuple(sorted(names, key=int) if all_integers(names) else sorted(names))


def _shared(train: Rows, validation: Rows) -> int:
    """Validation rows whose text (or pair) is one of the training rows', label or not."""
    known = set(_keys(train))
    return sum(key in known for key in _keys(validation))


# ── From a table to rows ──────────────────────────────────────────────────────────────────────


def _rows(table: Table, task: Task, *, labelled: bool) -> tuple[Rows, tuple[str, ...]]:
    """Rows with text (and label, where asked for), and a note for each kind that is left out."""
    texts = _texts(table, task)
    no_text = _without_text(texts)
    labels = _label_strings(table, task) if labelled else [""] * len(table)
    no_label = np.array([label is None for label in labels]) & ~no_text
    notes = _left_out(table, no_text, "text") + _left_out(table, no_label, "label")
    kept = np.flatnonzero(~(no_text | no_label))
    if not len(kept):
        raise RankwiseError(f"{table.name} has no row with {'both text and label' if labelled else 'text'}.")
    return Rows(
        text=[texts[0][row] for row in kept],
        text_pair=[texts[1][row] for row in kept] if len(texts) > 1 else None,
        labels=_class_ids(table, task, labels, kept) if labelled else None,
        idx=kept,
    ), notes


def _texts(table: Table, task: Task) -> list[list[str]]:
    """The one or two text columns as strings; a missing text is empty."""
    columns = [(task.text, "--text")] + ([(task.text_pair, "--text-pair")] if task.text_pair else [])
    texts = []
    for name, flag in columns:
        values = table.column(name, flag)
        odd = next((row for row, value in enumerate(values) if isinstance(value, list | dict | bytes)), None)
        if odd is not None:
            raise RankwiseError(
                f"{table.name} {table.where([odd])}: column {name!r} holds {values[odd]!r:.40}, not text. "
                f"Say which with {flag}."
            )
        # pandas writes a missing text as None or as NaN, which alone differs from itself.
        texts.append(["" if value is None or value != value else _whole(str(value)) for value in values])
    return texts


def _whole(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can carry and tokenizers refuse."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _without_text(texts: list[list[str]]) -> Bool[np.ndarray, "rows"]:
    return np.array([not all(text.strip() for text in row) for row in zip(*texts, strict=True)], dtype=bool)


def _label_strings(table: Table, task: Task) -> list[str | None]:
    """Labels as strings, None where there is none.

    Whole floating-point numbers are integers: that is what a column of integers becomes where one is missing.
    """
    labels: list[str | None] = []
    for row, value in enumerate(table.column(task.label, "--label")):
        if isinstance(value, float) and (np.isnan(value) or value.is_integer()):
            value = None if np.isnan(value) else int(value)
        if not isinstance(value, str | int | None):
            raise RankwiseError(
                f"{table.name} {table.where([row])}: column {task.label!r} holds {value!r:.40}; "
                "labels are strings or integers."
            )
        labels.append(str(value).strip() or None if value is not None else None)
    return labels


def _class_ids(
    table: Table, task: Task, labels: Sequence[str | None], kept: Int64[np.ndarray, "kept"]
) -> Int64[np.ndarray, "kept"]:
    names = task.label_names
    ids = {name: number for number, name in enumerate(names)}
    published = TASKS.get(task.name)
    if (published and names == published.label_names) or all(name == f"LABEL_{ids[name]}" for name in names):
        ids |= {
            str(number): number for number in range(len(names))
        }  # such files and models speak in class ids
    unknown = [int(row) for row in kept if labels[row] not in ids]
    if unknown:
        label = labels[unknown[0]]
        same = [row for row in unknown if labels[row] == label]
        raise RankwiseError(
            f"{table.name} {table.where(same)}: label {label!r} is not one of the task's classes: "
            f"{_shown(names)}."
        )
    return np.array([ids[labels[row]] for row in kept], dtype=np.int64)  # pyright: ignore[reportArgumentType]


def _left_out(table: Table, rows: Bool[np.ndarray, "rows"], lacking: str) -> tuple[str, ...]:
    numbers = np.flatnonzero(rows).tolist()
    if not numbers:
        return ()
    return (
        f"{table.name}: {len(numbers):,} row{'s' if len(numbers) > 1 else ''} without {lacking} left out "
        f"({table.where(numbers)}).",
    )


def all_integers(names: Iterable[str]) -> bool:
    """The classes are numbers, so that they go by size and not by spelling."""
    return all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _keys(rows: Rows) -> list[tuple[Any, ...]]:
    """What makes two rows the same row: the text or the pair, without white space around it."""
    columns = [rows.text] if rows.text_pair is None else [rows.text, rows.text_pair]
    return [tuple(text.strip() for text in row) for row in zip(*columns, strict=True)]


def _loose_keys(rows: Rows) -> list[str]:
    """The same but for case and punctuation, unless nothing else is there."""
    return [
        "\t".join(re.sub(r"\W+", " ", text.casefold()).strip() or text for text in row) for row in _keys(rows)
    ]
