"""What a cell of a table holds, whoever wrote it: a file, NumPy, PyTorch, pandas, or Python itself.

cell ─► plain Python value ─► text | name of a class | number | None for a missing value
"""

import re
from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

import numpy as np

MISSING_WORDS = frozenset(
    ("NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "-NaN", "NULL", "null", "None", "NONE", "#NA")
)
"""Words that other programs write, or read, where a value is missing. Here they are ordinary text."""


class OddCell(ValueError):
    """A cell that doesn't hold what is looked for.

    Attributes:
        value: the cell, or the part of it that is wrong.
        expected: what it should hold, as a clause of a sentence.
        row: of the cell, counted from 0, where a column was read.
    """

    row: int = 0

    def __init__(self, value: Any, expected: str) -> None:
        super().__init__(f"{value!r:.60}; {expected}")
        self.value, self.expected = value, expected


def plain(value: Any) -> Any:
    """Return a cell as files hold it: values of NumPy, PyTorch and pandas as Python's, tuples as lists, None for a missing value."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_scalar(one) for one in value] if isinstance(value, list | tuple) else _scalar(value)


def _scalar(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas' missing values
        return None
    return None if isinstance(value, float | Decimal) and value != value else value


def is_empty(value: Any) -> bool:
    """Return whether a plain value is missing: nothing, or nothing but white space."""
    return value is None or (isinstance(value, str) and not value.strip())


def text_of(value: Any) -> str:
    """Return the text that a cell holds, empty for a missing one. Numbers and dates are texts as Python writes them.

    Raises:
        OddCell: the cell holds something else: a list, bytes, an image …
    """
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, int | float | Decimal | date | time):
        return str(value)
    raise OddCell(value, "a text is a string")


def whole_text(text: str) -> str:
    """Return the text without halves of surrogate pairs, which JSON can hold and tokenizers refuse."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def class_name(value: Any, names: Sequence[str] = (), *, ids: bool = False) -> str | None:
    """Return the name of a class as a cell holds it, None for an empty cell.

    Whole numbers are read as integers, however they are written (`1`, `1.0`, `"1.0"`): a column of integers becomes one of floats when a
    value is missing. A number with leading zeros (`007`) stays as it is.

    Args:
        value: of the cell.
        names: of the head's outputs, if they are known.
        ids: whether an integer may stand for the name of that output.

    Raises:
        OddCell: the value is neither a string nor a finite number.
    """
    value = _scalar(value)
    if isinstance(value, str):
        text = _plain_integer(whole_text(value).strip())
        is_truth = text.lower() in ("true", "false") and text not in names
        return (_truth(text, names) if is_truth else None) or text or None
    if isinstance(value, bool):
        named = _truth(str(value), names)
        if named or not names:
            return named or str(value)
        value = int(value)
    # from 1e16 on Python writes an exponent
    if isinstance(value, float | Decimal) and is_whole(value) and abs(value) < 1e16:
        value = int(value)
    if isinstance(value, int) and ids and all(number(name) is None for name in names):
        return names[value] if 0 <= value < len(names) else _digits(value)
    if not isinstance(value, int | float | Decimal | None) or value in (float("inf"), -float("inf")):
        raise OddCell(value, "labels are strings or numbers")
    return _digits(value) if isinstance(value, int) else None if value is None else str(value)


def _truth(text: str, names: Sequence[str]) -> str | None:
    """Return the name that is the same truth value, however it is written (`true`, `True`, `TRUE`)."""
    return next((name for name in names if name.lower() == text.lower()), None)


def _digits(value: int) -> str:
    """Return an integer in decimal digits.

    Raises:
        OddCell: it has more than Python writes.
    """
    try:
        return str(value)
    except ValueError:
        raise OddCell("an integer of thousands of digits", "labels are strings or numbers") from None


def whole_numbers(cells: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Return the cells of a column with `1e3` as `1000`, if nothing but numbers stands in it and `names` are none but numbers.

    Elsewhere `1e3` may be a code, and stays as it is.

    Args:
        cells: plain values of the whole column.
        names: of the head's outputs, empty if they are unknown.
    """
    numbers = [number(cell) for cell in cells]
    filled = [n for n, cell in zip(numbers, cells, strict=True) if not is_empty(cell)]
    if None in filled or any(number(name) is None for name in names):
        return list(cells)
    return [
        str(int(n)) if n is not None and n.is_integer() and "e" in str(cell).lower() else cell
        for n, cell in zip(numbers, cells, strict=True)
    ]


def is_whole(value: float | Decimal) -> bool:
    """Return whether a number is finite and has no fraction."""
    return bool(np.isfinite(float(value))) and value == int(value)


def _plain_integer(text: str) -> str:
    """Return the integer that a text without leading zeros is, and any other text as it is."""
    found = re.fullmatch(r"([+-]?)(0|[1-9][0-9]*)(\.0*)?", text)
    if found is None:
        return text
    return found[2] if found[1] != "-" or found[2] == "0" else f"-{found[2]}"


def number(value: Any) -> float | None:
    """Return a finite number as a file may hold it, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    if isinstance(value, str) and not re.fullmatch(
        r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", value
    ):
        return None
    try:
        return float(value) if np.isfinite(float(value)) else None
    except OverflowError:  # an integer beyond every float
        return None
