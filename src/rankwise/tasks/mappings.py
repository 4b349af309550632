"""Rows given in Python: a list of dicts, a `datasets.Dataset`, or any other iterable of mappings."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from rankwise.config import TrainOptions
from rankwise.errors import RankwiseError
from rankwise.tasks import messages, tables, words
from rankwise.tasks.cells import OddCell, plain, text_of
from rankwise.tasks.encoding import Rows
from rankwise.tasks.hub_tables import by_name, class_names, table_of
from rankwise.tasks.labels import IGNORED, Labels, default_names
from rankwise.tasks.language import KINDS, Learned, loss_on
from rankwise.tasks.objectives import Objective
from rankwise.tasks.table import refuse_repeated, shown


@runtime_checkable
class ArrowTable(Protocol):
    """What a `pyarrow.Table` offers."""

    @property
    def column_names(self) -> list[str]: ...
    def to_pylist(self) -> list[dict[str, Any]]: ...


@runtime_checkable
class DataFrame(Protocol):
    """What a `pandas.DataFrame` offers."""

    @property
    def iloc(self) -> Any: ...
    @property
    def columns(self) -> Any: ...
    def to_dict(self, orient: Any) -> Any: ...


Table = Iterable[Mapping[str, Any]] | ArrowTable | DataFrame
"""Rows as mappings: a list of dicts, a `datasets.Dataset` …; or a `pyarrow.Table` or a `pandas.DataFrame`."""


@dataclass(frozen=True)
class Columns:
    """The keys under which a row holds its text and label.

    Attributes:
        text: of the text.
        text_pair: of the second text, where rows are pairs.
        label: of the label: a class's name or id; a number; or a list of label names, or of a 0 or 1 for each label.
        tokens: of the list of words, for token classifiers.
        tags: of the tags of these words: names or ids.
        prompt: of a language model's prompt: a text, or a list of messages.
        completion: of its completion, likewise.
        messages: instead of these two, of whole conversations. Rows with neither hold texts.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"
    tokens: str = "tokens"
    tags: str = "tags"


def read(
    table: Table,
    columns: Columns,
    objective: Objective | None = None,
    names: Sequence[str] = (),
    train: TrainOptions | None = None,
    *,
    of_words: bool = False,
) -> Rows:
    """Read rows.

    Args:
        table: the rows.
        columns: their keys.
        objective: how labels are read; None leaves labels out.
        names: of the model's outputs.
        train: says which tokens a language model learns. Default: TRL's defaults.
        of_words: rows are lists of words, each with a tag.

    Raises:
        RankwiseError: no rows, or a row without text or with a label that the objective doesn't know.
    """
    entries = entries_of(table)
    if not entries:
        raise RankwiseError("There are no rows: the table is empty.")
    if objective is not None and not objective.has_column:
        return _read_language(entries, columns, objective, train or TrainOptions())
    if of_words:
        return _read_words(entries, columns, objective, names)
    needed = objective is not None
    text = [_text(entry, columns.text, i, needed=needed) for i, entry in enumerate(entries)]
    pair = None
    if columns.text_pair:
        pair = [_text(entry, columns.text_pair, i, needed=needed) for i, entry in enumerate(entries)]
    labels = None if objective is None else _labels(entries, columns.label, objective, names)
    return Rows(text=text, text_pair=pair, labels=labels, idx=np.arange(len(entries), dtype=np.int64))


def _read_words(
    entries: Sequence[Mapping[str, Any]], columns: Columns, objective: Objective | None, names: Sequence[str]
) -> Rows:
    """Read rows of words."""
    text = []
    for i, entry in enumerate(entries):
        try:
            text.append(words.dump(entry.get(columns.tokens)))
        except OddCell as odd:
            raise RankwiseError(
                f"Row {i}: {columns.tokens!r} holds {odd.value!r:.60}; {odd.expected}."
            ) from None
        if not text[-1]:
            has = shown(map(str, entry))
            raise RankwiseError(f"Row {i} has no words in {columns.tokens!r}; it has: {has}.")
    labels = None if objective is None else _labels(entries, columns.tags, objective, names)
    counts = [] if labels is None else (labels != IGNORED).sum(axis=1).tolist()
    for i, tags in enumerate(counts):
        if (n := len(words.load(text[i]))) != tags:
            raise RankwiseError(f"Row {i} has {n:,} words and {tags:,} tags. Each word has one.")
    return Rows(
        text=text, text_pair=None, labels=labels, idx=np.arange(len(entries), dtype=np.int64), of_words=True
    )


def _read_language(
    entries: Sequence[Mapping[str, Any]], columns: Columns, objective: Objective, train: TrainOptions
) -> Rows:
    """Read rows of a language model, all of the kind that the first one is."""
    names = {name: getattr(columns, name) for kind in KINDS.values() for name in kind}
    there = [kind for kind, parts in KINDS.items() if all(names[part] in entries[0] for part in parts)]
    if not there:
        wanted = "messages, prompt and completion, or a text"
        raise RankwiseError(f"Row 0 has none of {wanted}; it has: {shown(map(str, entries[0]))}.")
    parts = [names[part] for part in KINDS[there[0]]]
    chat = isinstance(plain(entries[0].get(parts[0])), list)
    read = messages.dump if chat else text_of
    texts: list[list[str]] = [[] for _ in parts]
    for i, entry in enumerate(entries):
        for part, column in zip(parts, texts, strict=True):
            try:
                column.append(read(entry.get(part)))
                if not column[-1].strip():
                    raise OddCell(entry.get(part), "a language model's row isn't empty")
            except OddCell as odd:
                raise RankwiseError(f"Row {i}: {part!r} holds {odd.value!r:.60}; {odd.expected}.") from None
        try:
            if chat and len(parts) > 1:
                messages.check_pair(texts[0][-1], texts[1][-1])
        except OddCell as odd:
            raise RankwiseError(f"Row {i} holds {odd.value!r:.60}; {odd.expected}.") from None
    return Rows(
        text=texts[0],
        text_pair=texts[1] if len(parts) > 1 else None,
        labels=objective.encode(entries, {}, 0),
        idx=np.arange(len(entries), dtype=np.int64),
        learned=Learned(chat=chat, loss_on=loss_on(there[0], train)),
    )


def entries_of(table: Table) -> list[Mapping[str, Any]]:
    """Return the rows of a table as a list. Classes of a `datasets.Dataset` are there as `NamedClass`.

    Raises:
        RankwiseError: a row is no mapping, or a column is there twice.
    """
    rows: Any = table
    if isinstance(table, ArrowTable):
        refuse_repeated("The table", list(table.column_names))
        rows = table.to_pylist()
    elif isinstance(table, DataFrame):
        refuse_repeated("The table", list(table.columns))
        rows = table.to_dict("records")
    named = {
        name: names
        for name in getattr(rows, "column_names", None) or ()
        if (names := class_names(rows, name))
    }
    entries = list(rows)
    odd = next((i for i, entry in enumerate(entries) if not isinstance(entry, Mapping)), None)
    if odd is not None:
        raise RankwiseError(
            f"Row {odd} is {entries[odd]!r:.40}, not a mapping of columns to values. Give a list of dicts or a `datasets.Dataset`."
        )
    if not named:
        return entries
    return [
        {key: NamedClass(v, named[key]) if key in named else v for key, v in entry.items()}
        for entry in entries
    ]


def as_table(table: Table, name: str) -> tables.Table:
    """Return rows as a table that is read as a file is: label names and the problem are found in its columns.

    Args:
        table: the rows.
        name: of the table, for messages.

    Raises:
        RankwiseError: no rows, a row is no mapping, or a column is there twice.
    """
    if getattr(table, "features", None) and len(cast(Any, table)):
        return table_of(name, table)
    entries = entries_of(table)
    if not entries:
        raise RankwiseError(f"{name} has no rows.")
    columns = dict.fromkeys(str(key) for entry in entries for key in entry)
    made = tables.OnDemand(columns, len(entries), lambda column: [entry.get(column) for entry in entries])
    return tables.Table(name, made)


@dataclass(frozen=True)
class NamedClass:
    """A class id, or a list of them, with the names that a data set gives its classes.

    Attributes:
        value: the id or ids.
        names: of the data set's classes, in the order of their ids.
    """

    value: Any
    names: Sequence[str]

    def of(self, outputs: Sequence[str]) -> Any:
        """Return the name or names; for outputs without names of their own, and as many, the id or ids."""
        unnamed = len(outputs) == len(self.names) > 1 and list(outputs) == default_names(len(outputs))
        names = outputs if unnamed else self.names
        return by_name(self.value, names)


def several_labels(entries: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether a row has several labels: its label is a list."""
    values = (entry.get(column) for entry in entries)
    return any(isinstance(plain(v.value if isinstance(v, NamedClass) else v), list) for v in values)


def _text(entry: Mapping[str, Any], column: str, i: int, *, needed: bool) -> str:
    value = entry.get(column)
    try:
        text = text_of(value)
    except OddCell:
        raise RankwiseError(f"Row {i} has {value!r:.60} in {column!r}, not a text.") from None
    if plain(value) is None or (needed and not text.strip()):
        raise RankwiseError(f"Row {i} has no text in {column!r}; it has: {shown(map(str, entry))}.")
    return text


def _labels(
    entries: Sequence[Mapping[str, Any]], column: str, objective: Objective, names: Sequence[str]
) -> Labels:
    """Return labels as numbers: read as those of a file are, but an integer may be an id, and each row has a label."""
    cells = [_cell(i, entry.get(column), column, names) for i, entry in enumerate(entries)]
    known = (
        f"the model knows {json.dumps(list(names))}" if objective.fewest_names else "each row has a number"
    )
    try:
        labels = objective.read(cells, names, ids=True)
    except OddCell as odd:
        raise _odd(odd.row, column, odd.value, odd.expected) from None
    ids = objective.outputs_of(names)
    for i, label in enumerate(labels):
        if label is None or any(name not in ids for name in objective.names_in(label)):
            raise _odd(i, column, cells[i], known)
    return objective.encode(labels, ids, len(names))


def _cell(i: int, value: Any, column: str, names: Sequence[str]) -> Any:
    if not isinstance(value, NamedClass):
        return value
    try:
        return value.of(names)
    except OddCell as odd:
        raise _odd(i, column, odd.value, odd.expected) from None


def _odd(i: int, column: str, value: Any, expected: str) -> RankwiseError:
    return RankwiseError(f"Row {i} has the label {value!r:.60} in {column!r}; {expected}.")
