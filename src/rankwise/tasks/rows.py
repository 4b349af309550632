"""From a table to rows: which have a text and a label, and what the labels are as numbers.

column of labels ─► as the file has them, None where there is none ─► class ids | 0s and 1s | numbers
"""

import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from rankwise.errors import RankwiseError
from rankwise.tasks.encoding import Rows
from rankwise.tasks.problems import Labels
from rankwise.tasks.registry import TASKS
from rankwise.tasks.tables import Table, read_tables
from rankwise.tasks.task import Task


def read_rows(path: Path | str, task: Task, *, labelled: bool) -> tuple[Rows, tuple[str, ...]]:
    """Rows of a file, to evaluate (labelled) or predict on; `idx` is the row's position in the file, from 0.

    Args:
        path: CSV, TSV, JSONL or Parquet; a pattern reads several as one.
        task: says which columns, and the label names the model knows.
        labelled: read labels too, and leave out rows without one.

    Returns:
        The rows, and notes on what was left out.

    Raises:
        RankwiseError: the file or a column of it can't be read, or a label isn't one of the task's.
    """
    return rows_of(read_tables([Path(path)]), task, labelled=labelled)


def rows_of(table: Table, task: Task, *, labelled: bool) -> tuple[Rows, tuple[str, ...]]:
    """Rows with text (and label, where asked for), and a note for each kind that is left out."""
    texts = _texts(table, task)
    no_text = without_text(texts)
    labels = labels_of(table, task) if labelled else [""] * len(table)
    no_label = np.array([label is None for label in labels]) & ~no_text
    notes = _left_out(table, no_text, "text") + _left_out(table, no_label, "label")
    kept = np.flatnonzero(~(no_text | no_label))
    if not len(kept):
        raise RankwiseError(f"{table.name} has no row with {'both text and label' if labelled else 'text'}.")
    return Rows(
        text=[texts[0][row] for row in kept],
        text_pair=[texts[1][row] for row in kept] if len(texts) > 1 else None,
        labels=_NUMBERED[task.problem](table, task, {int(row): labels[row] for row in kept})
        if labelled
        else None,
        idx=kept,
    ), notes


def _left_out(table: Table, rows: Bool[np.ndarray, "rows"], lacking: str) -> tuple[str, ...]:
    numbers = np.flatnonzero(rows).tolist()
    if not numbers:
        return ()
    return (
        f"{table.name}: {len(numbers):,} row{'s' if len(numbers) > 1 else ''} without {lacking} left out "
        f"({table.where(numbers)}).",
    )


# ── Texts ─────────────────────────────────────────────────────────────────────────────────────


def has_text(table: Table, task: Task) -> Bool[np.ndarray, "rows"]:
    """Which rows have every text that the task asks for."""
    return ~without_text(_texts(table, task))


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


def without_text(texts: list[list[str]]) -> Bool[np.ndarray, "rows"]:
    return np.array([not all(text.strip() for text in row) for row in zip(*texts, strict=True)], dtype=bool)


# ── Labels as the file has them ───────────────────────────────────────────────────────────────


def labels_of(table: Table, task: Task) -> list[Any]:
    """Each row's label, None where there is none: a class's name, a tuple of names, or a number."""
    return _READ[task.problem](table, task)


def _odd(table: Table, row: int, column: str, value: Any, what: str) -> RankwiseError:
    return RankwiseError(f"{table.name} {table.where([row])}: column {column!r} holds {value!r:.40}; {what}.")


def _names(table: Table, task: Task) -> list[str | None]:
    column = _one_column(task)
    return [_name(table, row, column, value) for row, value in enumerate(table.column(column, "--label"))]


def _one_column(task: Task) -> str:
    assert task.label is not None
    return task.label


def _name(table: Table, row: int, column: str, value: Any) -> str | None:
    """A class's name, None where there is none.

    Whole floating-point numbers are integers: that is what a column of integers becomes where one is missing.
    """
    if isinstance(value, float) and (np.isnan(value) or value.is_integer()):
        value = None if np.isnan(value) else int(value)
    if not isinstance(value, str | int | float | None):
        raise _odd(table, row, column, value, "labels are strings or numbers")
    return None if value is None else str(value).strip() or None


def _name_sets(table: Table, task: Task) -> list[tuple[str, ...] | None]:
    """The names of each row's labels: of a list, or of the columns that hold 1."""
    if task.label is None:
        marks = [_marks(table, name) for name in task.label_names]
        rows = list(zip(*marks, strict=True))
        return [
            None
            if None in row
            else tuple(name for name, mark in zip(task.label_names, row, strict=True) if mark)
            for row in rows
        ]
    sets: list[tuple[str, ...] | None] = []
    for row, value in enumerate(table.column(task.label, "--label")):
        if value is None or value == "":
            sets.append(None)
            continue
        if not isinstance(value, list):
            what = "several labels are a list in each row (JSONL, Parquet), or a column of 0s and 1s for each: --label toxic insult"
            raise _odd(table, row, task.label, value, what)
        names = [_name(table, row, task.label, one) for one in value]
        if None in names or len(set(names)) < len(names):
            raise _odd(table, row, task.label, value, "a list names the labels that a row has, each once")
        sets.append(tuple(names))  # pyright: ignore[reportArgumentType]
    return sets


_MARKS = {"0": False, "1": True, "false": False, "true": True}


def _marks(table: Table, column: str) -> list[bool | None]:
    """A column of 0s and 1s (or true and false), None where there is nothing."""
    marks: list[bool | None] = []
    for row, value in enumerate(table.column(column, "--label")):
        text = str(_name(table, row, column, value) or "").lower()
        if text and text not in _MARKS:
            raise _odd(table, row, column, value, "a column of a label holds 0 and 1")
        marks.append(_MARKS.get(text))
    return marks


def _numbers(table: Table, task: Task) -> list[float | None]:
    column = _one_column(task)
    numbers: list[float | None] = []
    for row, value in enumerate(table.column(column, "--label")):
        missing = value is None or value == "" or value != value
        numbers.append(None if missing else number(value))
        if not missing and numbers[-1] is None:
            raise _odd(table, row, column, value, "regression takes numbers")
    return numbers


def number(value: Any) -> float | None:
    """A finite number as a file may hold it, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    if isinstance(value, str) and not re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", value):
        return None
    return float(value) if np.isfinite(float(value)) else None


_READ: dict[str, Callable[[Table, Task], list[Any]]] = {
    "classification": _names,
    "multi-label": _name_sets,
    "regression": _numbers,
}


# ── Labels as numbers ─────────────────────────────────────────────────────────────────────────


def _class_ids(table: Table, task: Task, labels: dict[int, str]) -> Labels:
    ids = _ids(task)
    _refuse_unknown(table, task, {row: name for row, name in labels.items() if name not in ids})
    return np.array([ids[name] for name in labels.values()], dtype=np.int64)


def _several_hot(table: Table, task: Task, labels: dict[int, tuple[str, ...]]) -> Labels:
    ids = _ids(task)
    unknown = {row: name for row, names in labels.items() for name in names if name not in ids}
    _refuse_unknown(table, task, unknown)
    hot = np.zeros((len(labels), len(task.label_names)), dtype=np.float32)
    for i, names in enumerate(labels.values()):
        hot[i, [ids[name] for name in names]] = 1
    return hot


def _floats(table: Table, task: Task, labels: dict[int, float]) -> Labels:
    return np.array(list(labels.values()), dtype=np.float32)


_NUMBERED: dict[str, Callable[[Table, Task, dict[int, Any]], Labels]] = {
    "classification": _class_ids,
    "multi-label": _several_hot,
    "regression": _floats,
}


def _ids(task: Task) -> dict[str, int]:
    names = task.label_names
    ids = {name: place for place, name in enumerate(names)}
    published = TASKS.get(task.name)
    if (published and names == published.label_names) or all(name == f"LABEL_{ids[name]}" for name in names):
        ids |= {str(place): place for place in range(len(names))}  # such files and models speak in class ids
    return ids


def _refuse_unknown(table: Table, task: Task, unknown: dict[int, str]) -> None:
    if unknown:
        label = next(iter(unknown.values()))
        same = [row for row, name in unknown.items() if name == label]
        raise RankwiseError(
            f"{table.name} {table.where(same)}: label {label!r} is not one of the task's classes: {shown(task.label_names)}."
        )


def all_integers(names: Iterable[str]) -> bool:
    """The classes are numbers, so that they go by size and not by spelling."""
    return all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names sorted, numerically where all are integers."""
    names = set(names)
    return tuple(sorted(names, key=int) if all_integers(names) else sorted(names))


def shown(names: Sequence[str]) -> str:
    """The first names, for a sentence."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
