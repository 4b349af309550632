"""Your own table: the task that is inferred from it, and which of its rows are kept for validation.

reviews.csv | part-*.csv | owner/name on the hub ─► Table ─► Task (columns, problem, label names) ─► Dataset
"""

import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rankwise.config import TableOptions, TrainOptions
from rankwise.errors import RankwiseError
from rankwise.tasks import objectives
from rankwise.tasks.cells import MISSING_WORDS, OddCell, is_empty, number, plain
from rankwise.tasks.encoding import Rows
from rankwise.tasks.file_kinds import is_saved_dataset
from rankwise.tasks.hub_tables import read_dataset
from rankwise.tasks.language import KINDS, LEARNED, loss_on
from rankwise.tasks.rows import has_text, labels_of, left_out, odd_label, read_rows, rows_of
from rankwise.tasks.splits import Dataset, fold_split, same_row, stratified_split, two_labels
from rankwise.tasks.table import Table, shown
from rankwise.tasks.tables import read_tables
from rankwise.tasks.task import Task
from rankwise.tasks.words import COLUMNS

VALIDATION = 0.2
"""Share of a table's rows that are split off for validation if none are given."""
VALIDATION_ROWS = 2000
"""About the most that are."""
FEW = 10
"""In tables of fewer labelled rows, each row may have a class of its own."""
LARGE = 100.0
"""Numbers beyond this are far from what a new head predicts at first."""


def load_table(
    options: TableOptions, train: TrainOptions, table: Table | None = None, validation: Table | None = None
) -> Dataset:
    """Return training and validation rows of a run on files, or on a data set of the hub.

    Args:
        options: which files and columns.
        train: says which tokens a language model learns.
        table: rows that are in memory already, in the place of files.
        validation: likewise, of those to evaluate on.

    Raises:
        RankwiseError: they can't be read, or can't be trained on.
    """
    given = options.validation if validation is None else validation
    name = options.dataset or _saved_dataset(options)
    if table is None and name is not None:
        splits = read_dataset(name, options.dataset_config)
        trained_on, other = _train_and_validation(name, options, splits)
        held_out = None if other is None else splits[other]
        return _dataset(options, train, splits[trained_on], held_out if given is None else given)
    if table is None:
        assert options.train_file is not None
        table = read_tables(options.train_file)
    return _dataset(options, train, table, given)


def _saved_dataset(options: TableOptions) -> str | None:
    """Return the folder that was given as the one file, if `save_to_disk` of the `datasets` library wrote it."""
    files = options.train_file or ()
    return str(files[0]) if len(files) == 1 and is_saved_dataset(files[0]) else None


def load_dataset_split(options: TableOptions, task: Task, split: str) -> tuple[Rows, tuple[str, ...]]:
    """Return labelled rows of another split of the data set that a run was trained on, and notes."""
    assert options.dataset is not None
    return rows_of(read_dataset(options.dataset, options.dataset_config, split)[split], task)


def _train_and_validation(
    name: str, options: TableOptions, splits: dict[str, Table]
) -> tuple[str, str | None]:
    """Return the names of the splits to train and to validate on; None if rows are to be split off."""
    train, validation = options.train_split or "train", options.validation_split
    for asked, argument in ((train, "train_split"), (validation, "validation_split")):
        if asked is not None and asked not in splits:
            raise RankwiseError(
                f"{name} has no split {asked!r}. It has: {', '.join(splits)}. Say which with `{argument}=`."
            )
    return train, validation or ("validation" if "validation" in splits else None)


def _dataset(
    options: TableOptions, settings: TrainOptions, table: Table, validation: Table | Path | None = None
) -> Dataset:
    task, taken = _task(table, options, settings)
    train, notes = rows_of(table, task)
    lacking = left_out(table, task, train)
    notes = (*taken, *notes, *_doubts(table, task, train))
    if options.folds is not None and options.fold is not None:
        if validation is not None:
            raise RankwiseError(
                f"`folds=` validates on every row of {table.name} in turn; with rows to validate on, leave it out."
            )
        return _fold(Dataset(task, train, {}, notes, lacking), table.name, options.folds, options.fold)
    if validation is not None:
        held_out, more = (
            rows_of(validation, task) if isinstance(validation, Table) else read_rows(validation, task)
        )
        both = same_row(train, held_out)
        if both:
            more += (
                f"{both:,} of {len(held_out):,} rows of {validation.name} also stand in "
                f"{table.name}: a score on them shows memory, not learning.",
            )
        return Dataset(task, train, {"validation": held_out}, notes + more, lacking)
    train, held_out = stratified_split(
        train, min(VALIDATION, VALIDATION_ROWS / len(train)), objectives.named(task.problem)
    )
    if not len(held_out):
        texts = len({text.strip() for text in train.text})
        if 20 * texts <= len(train):
            why = f"has {texts:,} different text{'s' * (texts > 1)} on {len(train):,} rows, such as {train.text[0].strip()!r:.40}, too few"
        else:
            why = "is too small"
        raise RankwiseError(f"{table.name} {why} to split validation rows off. Give some with `validation=`.")
    how = ", stratified by label" if task.problem == "classification" else ""
    notes += (f"{len(held_out):,} rows of {table.name} are split off for validation{how}.",)
    return Dataset(task, train, {"validation": held_out}, notes, lacking)


def _fold(dataset: Dataset, name: str, folds: int, fold: int) -> Dataset:
    """Return the rows of a table split for one fold of its cross-validation."""
    objective = objectives.named(dataset.task.problem)
    train, held_out = fold_split(dataset.train, folds, fold, objective)
    if not len(train) or not len(held_out):
        raise RankwiseError(f"{name} is too small for {folds} folds. Give fewer `folds=`.")
    note = f"Fold {fold + 1} of {folds}: {len(held_out):,} rows of {name} are validated on, the others trained on."
    return replace(dataset, train=train, validation={"validation": held_out}, notes=(*dataset.notes, note))


# ── What is to be learned ─────────────────────────────────────────────────────────────────────


def _task(table: Table, options: TableOptions, train: TrainOptions) -> tuple[Task, tuple[str, ...]]:
    """Return the task with its label names, and notes on what was inferred."""
    if options.problem == "generation" or (options.problem is None and (options.prompt or options.messages)):
        return _language_task(table, options, train)
    _refuse_generation_options(options)
    if options.problem is None and options.label is None and "label" not in table.columns:
        kind = next(
            (k for k in ("messages", "prompt") if all(part in table.columns for part in KINDS[k])), None
        )
        if kind is not None:
            raise RankwiseError(
                f"{table.name} has no column 'label', and what a language model learns from: {' and '.join(KINDS[kind])}. "
                'Say `problem="generation"`, or which column holds the label with `label=`.'
            )
    of_words = options.problem == "tokens"
    text, label = COLUMNS if of_words else ("text", "label")
    options = replace(options, text=options.text or text, label=options.label or (label,))
    column, *others = columns = options.label or (label,)
    _refuse_same_column(options, columns)
    if of_words and options.text_pair is not None:
        raise RankwiseError("`text_pair=` is not for tokens: a row is one list of words.")
    problem = options.problem or _problem(table, columns)
    if others and problem != "multi-label":
        raise RankwiseError(
            f"`label=` names {len(columns)} columns, and {problem} has one. Leave out `problem=`."
        )
    task = Task(
        name=options.name,
        text=options.text or "text",
        text_pair=options.text_pair,
        label=None if others else column,
        label_names=columns,
        metrics=objectives.named(problem).metrics,
        source=table.name,
        problem=problem,
    )
    names = _label_names(table, task)
    task = replace(task, label_names=names, metrics=objectives.named(problem).metrics_for(names))
    return task, _taken(table, task, options)


def _language_task(table: Table, options: TableOptions, train: TrainOptions) -> tuple[Task, tuple[str, ...]]:
    """Return the task of a language model: columns of messages, of prompt and completion, or of texts, whichever the table has."""
    for argument, value in (("label", options.label), ("text_pair", options.text_pair)):
        if value is not None:
            raise RankwiseError(
                f"`{argument}=` is not for generation, which has prompt= and completion=, messages= or text=."
            )
    given = [a for a in ("prompt", "messages", "text") if getattr(options, a) is not None]
    if len(given) > 1:
        raise RankwiseError(f"`{given[0]}=` and `{given[1]}=` are both given. A row is one of them.")
    columns = {a: getattr(options, a) or a for a in ("messages", "prompt", "completion", "text")}
    there = [kind for kind, parts in KINDS.items() if all(columns[part] in table.columns for part in parts)]
    kind = (given or there or ["prompt"])[0]
    learned = loss_on(kind, train)
    task = Task(
        name=options.name,
        text=columns[kind],
        text_pair=columns["completion"] if kind == "prompt" else None,
        label=None,
        label_names=(),
        metrics=objectives.named("generation").metrics,
        source=table.name,
        problem="generation",
        loss_on=learned,
    )
    for part in KINDS[kind]:
        table.column(columns[part], part)
    return task, (
        f"Generation from {' and '.join(columns[part] for part in KINDS[kind])}; {LEARNED[learned]} are learned.",
    )


def _refuse_generation_options(options: TableOptions) -> None:
    given = next((a for a in ("prompt", "completion", "messages") if getattr(options, a) is not None), None)
    if given is not None:
        raise RankwiseError(f'`{given}=` is for `problem="generation"`.')


def _refuse_same_column(options: TableOptions, labels: tuple[str, ...]) -> None:
    """Refuse one column in two places: a model that reads its label as text learns nothing else."""
    places = [("text", options.text or "text"), *[("label", label) for label in labels]]
    places += [("text_pair", options.text_pair)] if options.text_pair else []
    seen: dict[str, str] = {}
    for argument, column in places:
        if column in seen:
            both = (
                f"`{seen[column]}=` and `{argument}=` name"
                if seen[column] != argument
                else f"`{argument}=` names twice"
            )
            raise RankwiseError(f"{both} the column {column!r}. Each has its own.")
        seen[column] = argument


def _problem(table: Table, columns: tuple[str, ...]) -> str:
    """Infer the problem: several columns or lists are multi-label, numbers with fractions regression, all else classification."""
    column, *others = columns
    if others:
        return "multi-label"
    values = [v for v in map(plain, table.column(column, "label")) if not is_empty(v)]
    if any(isinstance(value, list) for value in values):
        return "multi-label"
    numbers = [number(value) for value in values]
    words = [value for value, n in zip(values, numbers, strict=True) if n is None]
    if any(n is not None and not n.is_integer() for n in numbers):
        if not words:
            return "regression"
        raise RankwiseError(
            f"{table.name}: column {column!r} holds numbers with fractions, and {words[0]!r:.40}. Say what it is: "
            '`problem="classification"`, or `problem="regression"` once each row has a number or nothing.'
        )
    if len(words) < len(values) and words and all(isinstance(w, str) and w in MISSING_WORDS for w in words):
        raise RankwiseError(
            f"{table.name}: column {column!r} holds numbers, and {words[0]!r}. Leave the cell empty where a label is missing, "
            f'or say `problem="classification"`, which takes {words[0]!r} as a class.'
        )
    return "classification"


def _label_names(table: Table, task: Task) -> tuple[str, ...]:
    """Return the names of the classes or labels of rows with a text; for numbers, that of the column."""
    if task.label is None:
        return task.label_names
    objective, rows = objectives.named(task.problem), np.flatnonzero(has_text(table, task))
    labels = labels_of(table, task)
    labels = [labels[row] for row in rows if labels[row] is not None]
    if not objective.fewest_names:
        _refuse_constant(table, task, labels)
        return task.label_names
    cells = table.column(task.label, "label")
    try:
        names = objective.find_names([cells[row] for row in rows])
    except OddCell as odd:
        raise odd_label(table, int(rows[odd.row]), task.label, odd) from None
    _refuse_spellings(table, task, names)
    _refuse_ids(table, task, labels)
    if len(names) < objective.fewest_names:
        found = f"only the label {names[0]!r}" if names else "no row with both text and label"
        raise RankwiseError(
            f"{table.name} has {found} in column {task.label!r}; training takes two classes or more."
        )
    return names


def _refuse_spellings(table: Table, task: Task, names: tuple[str, ...]) -> None:
    """Refuse names that are one number, one truth value or one word to the eye, written in two ways."""
    seen: dict[object, str] = {}
    for name in names:
        value = number(name)
        key = _visible(name) if value is None else value
        if key in seen:
            raise RankwiseError(
                f"{table.name}: column {task.label!r} holds {seen[key]!a} and {name!a}, which are the same value. Write it in one way."
            )
        seen[key] = name


def _visible(name: str) -> str:
    """Return a name as it looks: accents in one form, without characters that have no width, truth values in small letters."""
    seen = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
    return seen.lower() if seen.lower() in ("true", "false") else seen


def _refuse_ids(table: Table, task: Task, labels: list[Any]) -> None:
    """Refuse a column in which most rows have a class of their own."""
    if task.problem != "classification" or len(labels) < FEW:
        return
    alone = sum(n == 1 for n in Counter(labels).values())
    if alone > len(labels) / 2:
        raise RankwiseError(
            f"{table.name}: column {task.label!r} holds {len(set(labels)):,} different labels on {len(labels):,} rows, {alone:,} of them "
            'once: ids, texts or numbers? Say which column holds the label with `label=`, or `problem="regression"` for numbers.'
        )


def _doubts(table: Table, task: Task, rows: Rows) -> tuple[str, ...]:
    """Return notes on labels that may not be what they should be."""
    names, notes = objectives.named(task.problem).fewest_names, ()
    words = [name for name in task.label_names if name in MISSING_WORDS]
    if names and task.label is not None and words:
        notes += (f"{table.name}: {words[0]!r} is a class; where a label is missing, the cell is empty.",)
    both = two_labels(rows) if names else 0
    if both:
        notes += (f"{table.name}: {both:,} rows have a text that stands there with another label too.",)
    return notes


def _refuse_constant(table: Table, task: Task, numbers: list[Any]) -> None:
    if len(set(numbers)) < 2:
        found = f"only the number {numbers[0]:g}" if numbers else "no row with both text and label"
        raise RankwiseError(f"{table.name} has {found} in column {task.label!r}; there is nothing to learn.")


def _taken(table: Table, task: Task, options: TableOptions) -> tuple[str, ...]:
    """Return a note on what the labels were taken for, and how to choose otherwise."""
    if task.problem == "regression":
        numbers = [n for n in labels_of(table, task) if n is not None]
        low, high = min(numbers), max(numbers)
        other = "" if options.problem else '; `problem="classification"` takes them as classes'
        scale = (
            " Smaller units train faster: the loss is the squared error." if max(-low, high) > LARGE else ""
        )
        return (f"Regression on numbers from {low:g} to {high:g}{other}.{scale}",)
    if task.problem == "tokens":
        return (f"A tag for each word, {len(task.label_names)} tags: {shown(task.label_names)}.",)
    if options.problem:
        return ()
    if task.problem == "multi-label":
        return (f"Multi-label, {len(task.label_names)} labels: {shown(task.label_names)}.",)
    classes = f"Classification, {len(task.label_names)} classes: {shown(task.label_names)}"
    numeric = all(number(name) is not None for name in task.label_names) and len(task.label_names) > 2
    return (f'{classes}; `problem="regression"` takes them as numbers.' if numeric else f"{classes}.",)
