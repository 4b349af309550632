"""From a table to rows: which of them have a text and a label, and the labels as numbers.

column of labels ─► parsed by the task's objective, None for an empty cell ─► class ids | 0s and 1s | numbers
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from rankwise.errors import RankwiseError
from rankwise.tasks import messages, objectives, words
from rankwise.tasks.cells import MISSING_WORDS, OddCell, class_name, is_empty, number, plain, text_of
from rankwise.tasks.encoding import Rows
from rankwise.tasks.file_kinds import is_saved_dataset
from rankwise.tasks.labels import Labels
from rankwise.tasks.language import Learned
from rankwise.tasks.prompts import one_completion_a_row
from rankwise.tasks.registry import TASKS
from rankwise.tasks.streams import Stream, saved_split
from rankwise.tasks.table import Places, Table, shown
from rankwise.tasks.tables import read_tables
from rankwise.tasks.task import Task


def read_rows(path: Path | str, task: Task) -> tuple[Rows, tuple[str, ...]]:
    """Return the labelled rows of a file; `idx` is the row's position in the file, from 0.

    Args:
        path: CSV, TSV, JSONL or Parquet; a pattern reads several as one; or a data set that `save_to_disk` wrote.
        task: says which columns, and the label names the model knows.

    Returns:
        The rows, and notes on rows that were left out.

    Raises:
        RankwiseError: the file or a column of it can't be read, or a label isn't one of the task's.
    """
    return rows_of(_table(Path(path)), task)


def _table(path: Path) -> Table:
    return saved_split(path) if is_saved_dataset(path) else read_tables([path])


def rows_of(table: Table, task: Task) -> tuple[Rows, tuple[str, ...]]:
    """Return the rows that have a text and a label, and a note on each kind of row that is left out."""
    table = one_completion_a_row(table, task)
    objective, learned = objectives.named(task.problem), learned_from(table, task)
    texts = _texts(table, task)
    no_text = without_text(texts)
    labels = labels_of(table, task, task.label_names) if objective.has_column else [""] * len(table)
    no_label = np.array([label is None for label in labels]) & ~no_text
    notes = table.notes + _left_out(table, no_text, "text") + _left_out(table, no_label, "label")
    if learned is None and not objective.of_words:
        notes += tuple(note for column in texts for note in _odd_texts(table, column))
    kept = np.flatnonzero(~(no_text | no_label))
    if objective.of_words:
        _check_tags(table, task, texts[0], labels, kept)
    if learned is not None and learned.chat and task.text_pair:
        _check_pairs(table, task, texts, kept)
    if not len(kept):
        needed = "both text and label" if objective.has_column else "text"
        raise RankwiseError(f"{table.name} has no row with {needed}.")
    return Rows(
        text=[texts[0][row] for row in kept],
        text_pair=[texts[1][row] for row in kept] if len(texts) > 1 else None,
        labels=_encoded(table, task, {int(row): labels[row] for row in kept}),
        idx=kept,
        learned=learned,
        of_words=objective.of_words,
    ), notes


def left_out(table: Table, task: Task, rows: Rows) -> dict[str, int]:
    """Return why rows of a table aren't among `rows`, which `rows_of` returned for it, and their number."""
    lacking = len(table) - len(rows)
    no_text = int((~has_text(table, task)).sum()) if lacking else 0
    return {"without text": no_text, "without label": lacking - no_text}


def _check_tags(
    table: Table, task: Task, texts: list[str], labels: Sequence[Any], rows: Int64[np.ndarray, "rows"]
) -> None:
    for row in rows.tolist():
        n, tags = len(words.load(texts[row])), len(labels[row])
        if n != tags:
            raise RankwiseError(
                f"{table.name} {table.where([row])}: column {task.text!r} has {n:,} words, and {task.label!r} has {tags:,} tags. Each word "
                "has one."
            )


def _check_pairs(table: Table, task: Task, texts: list[list[str]], rows: Int64[np.ndarray, "rows"]) -> None:
    for row in rows.tolist():
        try:
            messages.check_pair(texts[0][row], texts[1][row])
        except OddCell as odd:
            raise odd_label(table, row, f"{task.text} and {task.text_pair}", odd) from None


def _left_out(table: Table, rows: Bool[np.ndarray, "rows"], lacking: str) -> tuple[str, ...]:
    numbers = np.flatnonzero(rows).tolist()
    if not numbers:
        return ()
    return (
        f"{table.name}: {len(numbers):,} row{'s' if len(numbers) > 1 else ''} without {lacking} left out "
        f"({table.where(numbers)}).",
    )


def _odd_texts(table: Table, texts: Sequence[str]) -> tuple[str, ...]:
    """Say what may be wrong with a column of texts that are read as they are."""
    column = _TextColumn()
    column.add(table, texts)
    return column.notes(table.name)


@dataclass
class _TextColumn:
    """What may be wrong with a column of texts that are read as they are, piece by piece.

    Attributes:
        word: the first that stands for a missing value elsewhere; `words` says where there are such.
        numbers: the first text, if every one so far is a number.
    """

    word: str = ""
    words: Places = field(default_factory=Places)
    numbers: str | None = ""

    def add(self, table: Table, texts: Sequence[str]) -> None:
        words = [row for row, text in enumerate(texts) if text in MISSING_WORDS]
        if words:
            self.word = self.word or texts[words[0]]
            self.words.add(table, words)
        if self.numbers is not None:
            only = all(number(text) is not None for text in texts if text)
            self.numbers = (self.numbers or next(filter(None, texts), "")) if only else None

    def notes(self, name: str) -> tuple[str, ...]:
        found = ()
        if self.word:
            found = (
                f"{name}: {self.word!r} is a text ({self.words}); where a text is missing, the cell is empty.",
            )
        if self.numbers:
            found += (
                f"{name}: every text is a number, such as {self.numbers!r}. Is that the column? Say which with `text=`.",
            )
        return found


# ── Rows to predict on, piece by piece ────────────────────────────────────────────────────────


NOT_TEXT = ("not text", "not a list of words")
"""Ends of reasons that speak of another kind of cell."""


def survey(stream: Stream, task: Task) -> tuple[str, ...]:
    """Read the texts of a whole file and return notes on them.

    Raises:
        RankwiseError: a column isn't there, or no row has the texts that the task needs.
    """
    columns = {name: _TextColumn() for name in (task.text, task.text_pair) if name}
    readable, odd = False, None
    for piece in stream.pieces(tuple(columns)):
        texts, reasons = texts_or_reasons(piece, task)
        readable = readable or None in reasons
        if not readable and odd is None and (found := next(filter(None, reasons), "")).endswith(NOT_TEXT):
            argument = "text_pair" if found.startswith(repr(task.text_pair)) else "text"
            where = piece.where([reasons.index(found)])
            odd = f"{stream.name} {where}: column {found}. Say which with `{argument}=`."
        for column, values in zip(columns.values(), texts, strict=True):
            column.add(piece, values)
    if not readable:
        raise RankwiseError(odd or f"{stream.name} has no row with text.")
    return stream.notes + tuple(note for column in columns.values() for note in column.notes(stream.name))


def texts_or_reasons(piece: Table, task: Task) -> tuple[list[list[str]], list[str | None]]:
    """Return the one or two text columns as strings, and for each row None, or why it can't be scored."""
    reasons: list[str | None] = [None] * len(piece)
    texts, of_words = [], objectives.named(task.problem).of_words
    read, wanted = (words.dump, "a list of words") if of_words else (text_of, "text")
    for name, argument in ((task.text, "text"), (task.text_pair, "text_pair")):
        if name is None:
            continue
        column = []
        for row, value in enumerate(piece.column(name, argument)):
            try:
                column.append(read(value))
            except OddCell as odd:
                column.append("")
                reasons[row] = reasons[row] or f"{name!r} holds {odd.value!r:.40}, not {wanted}"
            if not column[-1].strip():
                reasons[row] = reasons[row] or f"no text in {name!r}"
        texts.append(column)
    return texts, reasons


# ── Texts ─────────────────────────────────────────────────────────────────────────────────────


def has_text(table: Table, task: Task) -> Bool[np.ndarray, "rows"]:
    """Return which rows have every text that the task needs."""
    return ~without_text(_texts(table, task))


def _texts(table: Table, task: Task) -> list[list[str]]:
    """Return the one or two text columns as strings; a missing text is empty."""
    columns = [(task.text, "text")] + ([(task.text_pair, "text_pair")] if task.text_pair else [])
    learned, texts = learned_from(table, task), []
    read = text_of if learned is None or not learned.chat else messages.dump
    of_words = objectives.named(task.problem).of_words
    if of_words:
        read = words.dump
    for name, argument in columns:
        values, column = table.column(name, argument), []
        for row, value in enumerate(values):
            try:
                column.append(read(value))
            except OddCell as odd:
                if learned is not None or of_words:
                    raise odd_label(table, row, name, odd) from None
                raise RankwiseError(
                    f"{table.name} {table.where([row])}: column {name!r} holds {odd.value!r:.40}, not text. "
                    f"Say which with `{argument}=`."
                ) from None
        texts.append(column)
    if task.separator and not (learned is not None and learned.chat):
        texts[0] = [text and text + task.separator for text in texts[0]]
    return texts


def learned_from(table: Table, task: Task) -> Learned | None:
    """Return how a language model's rows are read; None for other problems. They are messages where the first cell is a list."""
    if task.loss_on is None:
        return None
    cells = map(plain, table.column(task.text, "text"))
    first = next((cell for cell in cells if not is_empty(cell)), None)
    return Learned(chat=isinstance(first, list), loss_on=task.loss_on)


def without_text(texts: list[list[str]]) -> Bool[np.ndarray, "rows"]:
    """Return which rows lack a text."""
    return np.array([not all(text.strip() for text in row) for row in zip(*texts, strict=True)], dtype=bool)


# ── Labels ────────────────────────────────────────────────────────────────────────────────────


def labels_of(table: Table, task: Task, names: Sequence[str] = ()) -> list[Any]:
    """Return each row's label as the task's objective reads it, None for an empty cell. `names` are the outputs', if they are known."""
    if task.label is None:
        return _marked(table, task)
    try:
        return objectives.named(task.problem).read(table.column(task.label, "label"), names)
    except OddCell as odd:
        raise odd_label(table, odd.row, task.label, odd) from None


def odd_label(table: Table, row: int, column: str, odd: OddCell) -> RankwiseError:
    """Return the error for a label that has no meaning, with its line."""
    return RankwiseError(
        f"{table.name} {table.where([row])}: column {column!r} holds {odd.value!r:.40}; {odd.expected}."
    )


def _marked(table: Table, task: Task) -> list[tuple[str, ...] | None]:
    """Return the names of the columns that hold 1 in each row, None for a row with an empty cell."""
    marks = [_marks(table, name) for name in task.label_names]
    return [
        None if None in row else tuple(name for name, mark in zip(task.label_names, row, strict=True) if mark)
        for row in zip(*marks, strict=True)
    ]


_MARKS = {"0": False, "1": True, "false": False, "true": True}


def _marks(table: Table, column: str) -> list[bool | None]:
    """Return a column of 0s and 1s (or true and false), None for an empty cell."""
    marks: list[bool | None] = []
    for row, value in enumerate(table.column(column, "label")):
        try:
            text = str(class_name(value) or "").lower()
        except OddCell as odd:
            raise odd_label(table, row, column, odd) from None
        if text and text not in _MARKS:
            raise odd_label(table, row, column, OddCell(value, "a column of a label holds 0 and 1"))
        marks.append(_MARKS.get(text))
    return marks


def _encoded(table: Table, task: Task, labels: dict[int, Any]) -> Labels:
    """Return labels, by row, as numbers.

    Raises:
        RankwiseError: a name is none of the task's.
    """
    objective = objectives.named(task.problem)
    ids = objective.outputs_of(task.label_names)
    published = TASKS.get(task.name)
    if published and task.label_names == published.label_names:
        ids |= {str(place): place for place in range(len(ids))}  # files of benchmarks hold class ids
    unknown = {
        row: name for row, label in labels.items() for name in objective.names_in(label) if name not in ids
    }
    _refuse_unknown(table, task, unknown)
    return objective.encode(list(labels.values()), ids, len(task.label_names))


def _refuse_unknown(table: Table, task: Task, unknown: dict[int, str]) -> None:
    if unknown:
        label = next(iter(unknown.values()))
        same = [row for row, name in unknown.items() if name == label]
        raise RankwiseError(
            f"{table.name} {table.where(same)}: label {label!r} is not one of the task's classes: {shown(task.label_names)}."
        )
