"""The columns of a table, and what each looks like by its values: to find those of the text and of the label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rankwise.errors import RankwiseError
from rankwise.tasks.cells import is_empty, number, plain
from rankwise.tasks.table import Table

Kind = Literal["text", "label", "number", "id", "list", "empty", "other"]
EXAMPLE = 48
"""Characters of an example."""
CLASSES = 50
"""Values that a column of labels has at most, unless they are a small share of its rows."""
SHARE = 0.02
"""That share."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: of the column.
        kind: what its values look like.
        empty: cells without a value.
        different: values that differ.
        example: its first value.
    """

    name: str
    kind: Kind
    empty: int
    different: int
    example: str


def columns(table: Table) -> list[Column]:
    """Describe every column of a table, in its order."""
    return [_column(table, name) for name in table.columns]


def _column(table: Table, name: str) -> Column:
    try:
        cells = [plain(cell) for cell in table.column(name, "text")]
    except RankwiseError:
        return Column(name, "other", 0, 0, "can't be read")
    filled = [cell.strip() if isinstance(cell, str) else cell for cell in cells if not is_empty(cell)]
    different = len({repr(cell) for cell in filled})
    example = " ".join(str(filled[0]).split()) if filled else ""
    if len(example) > EXAMPLE:
        example = f"{example[: EXAMPLE - 1]}…"
    return Column(name, _kind(filled, different), len(cells) - len(filled), different, example)


def _kind(filled: Sequence[Any], different: int) -> Kind:
    """Say what values look like. Labels are few different ones, ids all different ones of one word."""
    if not filled:
        return "empty"
    if any(isinstance(cell, list) for cell in filled):
        return "list"
    if not all(isinstance(cell, str | int | float) for cell in filled):
        return "other"
    few = different <= max(min(CLASSES, len(filled) / 2), SHARE * len(filled))
    numbers = [number(cell) for cell in filled]
    if all(n is not None for n in numbers):
        whole = all(n is not None and n.is_integer() for n in numbers)
        return "number" if not whole else "label" if few else "id" if different == len(filled) else "number"
    words = float(np.mean([len(str(cell).split()) for cell in filled]))
    if few and words < 6:
        return "label"
    return "id" if words <= 1 and different > 0.9 * len(filled) else "text"
