"""Rows given in Python: a list of dicts, a `datasets.Dataset`, or any other iterable of mappings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwise.errors import RankwiseError
from rankwise.tasks.encoding import Rows
from rankwise.tasks.objectives import Objective, OddLabel

Table = Iterable[Mapping[str, Any]]
"""Rows as mappings: a list of dicts, a `datasets.Dataset`, `pyarrow.Table.to_pylist()` …"""


@dataclass(frozen=True)
class Columns:
    """The keys under which a row holds its text and label.

    Attributes:
        text: of the text.
        text_pair: of the second text, where rows are pairs.
        label: of the label: a class's name or id; a number; or a list of label names, or of a 0 or 1 for each label.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"


def read(
    table: Table, columns: Columns, objective: Objective | None = None, names: Sequence[str] = ()
) -> Rows:
    """Read rows.

    Args:
        table: the rows.
        columns: their keys.
        objective: how labels are read; None leaves labels out.
        names: of the model's outputs.

    Raises:
        RankwiseError: no rows, or a row without text or with a label that the objective doesn't know.
    """
    entries = list(table)
    if not entries:
        raise RankwiseError("There are no rows: the table is empty.")
    text = [_text(entry, columns.text, i) for i, entry in enumerate(entries)]
    pair, labels = None, None
    if columns.text_pair:
        pair = [_text(entry, columns.text_pair, i) for i, entry in enumerate(entries)]
    if objective is not None:
        labels = np.array([_label(e, columns.label, objective, names, i) for i, e in enumerate(entries)])
    return Rows(text=text, text_pair=pair, labels=labels, idx=np.arange(len(entries), dtype=np.int64))


def _text(entry: Mapping[str, Any], column: str, i: int) -> str:
    if not isinstance(entry.get(column), str):
        raise RankwiseError(f"Row {i} has no text in {column!r}; it has: {', '.join(map(str, entry))}.")
    return entry[column]


def _label(entry: Mapping[str, Any], column: str, objective: Objective, names: Sequence[str], i: int) -> Any:
    try:
        return objective.from_python(entry.get(column), names)
    except OddLabel as error:
        raise RankwiseError(
            f"Row {i} has the label {error.value!r:.60} in {column!r}; {error.expected}."
        ) from None
