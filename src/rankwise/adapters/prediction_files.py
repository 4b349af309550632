"""Prediction files: CSV, TSV, JSONL and Parquet, by the ending of their name, written piece by piece.

A row of the file is a row of the input: its own columns as they are, then the answer. Where an input column has the name of one of the
answer's, it is written as `input_NAME`.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise import inert
from rankwise.errors import RankwiseError
from rankwise.files import check_place, is_text
from rankwise.tasks.cells import whole_text

RENAMED = "input_"
"""Stands before the name of an input column that has the name of one of the answer's."""


def check_out(out: Path, files: Sequence[Path]) -> None:
    """Make sure that predictions can be written to `out`.

    Args:
        out: the file to write.
        files: the rows to predict on.

    Raises:
        RankwiseError: no ending of a known kind, a folder, a place that can't be written, or the rows' own file.
    """
    if out.suffix.lower() not in WRITERS:
        found = f"as {out.suffix!r}" if out.suffix else f"to {str(out)!r}, which has no ending"
        raise RankwiseError(
            f"Predictions can't be written {found}. Name `out=` with one of {', '.join(WRITERS)}."
        )
    if out.is_dir():
        raise RankwiseError(f"{out} is a folder. Name a file in it with `out=`.")
    if out.exists() and any(file.exists() and out.samefile(file) for file in files):
        raise RankwiseError(
            f"{out} holds the rows to predict on, which would be lost. Name another file with `out=`."
        )
    check_place(out, out.absolute().parent, "file")


def names_beside(columns: Sequence[str], answers: Sequence[str]) -> dict[str, str]:
    """Return the name under which each input column is written beside the answer's columns."""
    taken, names = {*columns, *answers}, {}
    for column in columns:
        name = column
        while name in answers or (name != column and name in taken):
            name = f"{RENAMED}{name}"
        taken.add(name)
        names[column] = name
    return names


@dataclass
class Columns:
    """The columns of a prediction file, and what had to be changed in them.

    Attributes:
        kept: types of the input's columns, by the name in the file; empty where they are left out.
        answers: the answer's columns.
        as_they_are: the input's cells are those of a CSV or TSV file, and stay what they are there.
        formulas: the first texts that got an apostrophe, because a spreadsheet would take them for formulas.
    """

    kept: Mapping[str, pa.DataType]
    answers: pa.Schema
    as_they_are: bool
    formulas: dict[str, None] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All of them, in order."""
        return [*self.kept, *self.answers.names]

    @property
    def schema(self) -> pa.Schema:
        """All of them with their types."""
        return pa.schema([*self.kept.items(), *self.answers])

    def cell(self, value: Any) -> Any:
        """Return a value as a cell of CSV that no spreadsheet takes for a formula."""
        value = inert.json(_plain(value)) if isinstance(value, list | dict) else _scalar(value)
        value = whole_text(value) if isinstance(value, str) else value
        safe = inert.spreadsheet(value)
        if safe != value and len(self.formulas) < 3:
            self.formulas[repr(value)] = None
        return safe


Piece = Mapping[str, Sequence[Any] | pa.ChunkedArray]
"""Name of an input column in the file → values."""
Write = Callable[[Piece, pa.Table], None]
"""Adds rows: the input's, and the answers."""
Writer = Callable[[Path, Columns], AbstractContextManager[Write]]


@contextmanager
def writing(out: Path, columns: Columns) -> Iterator[Write]:
    """Write a prediction file in a `with` block. It appears whole, in the format of its ending, when the block ends well.

    Raises:
        RankwiseError: the file can't be written.
    """
    partial = out.with_name(f"{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with WRITERS[out.suffix.lower()](partial, columns) as write:
            yield write
        partial.replace(out)
    except OSError as error:
        raise RankwiseError(
            f"{out} can't be written: {error.strerror or error}. Name another file with `out=`."
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def note_on_formulas(out: Path, columns: Columns) -> tuple[str, ...]:
    """Say which texts of a CSV or TSV file had to be changed."""
    if not columns.formulas:
        return ()
    return (
        f"An apostrophe stands before {', '.join(columns.formulas)} in {out}, so that no spreadsheet takes it for a formula. "
        ".jsonl and .parquet have texts as they are.",
    )


@contextmanager
def _jsonl(path: Path, columns: Columns) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:

        def write(kept: Piece, answers: pa.Table) -> None:
            for row in zip(*_values(kept, answers), strict=True):
                line = dict(zip(columns.names, map(_plain, row), strict=True))
                text = json.dumps(line, ensure_ascii=False, allow_nan=False)
                file.write(f"{text if is_text(text) else json.dumps(line)}\n")

        yield write


def _delimited(delimiter: str) -> Writer:
    @contextmanager
    def open_file(path: Path, columns: Columns) -> Iterator[Write]:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            n = len(columns.kept) if columns.as_they_are else 0

            def write_row(row: Sequence[Any]) -> None:
                writer.writerow([*row[:n], *map(columns.cell, row[n:])])

            def write(kept: Piece, answers: pa.Table) -> None:
                for row in zip(*_values(kept, answers), strict=True):
                    write_row(row)

            write_row(columns.names)
            yield write

    return open_file


@contextmanager
def _parquet(path: Path, columns: Columns) -> Iterator[Write]:
    with pq.ParquetWriter(path, columns.schema) as writer:

        def write(kept: Piece, answers: pa.Table) -> None:
            arrays = [_array(values, columns.kept[name]) for name, values in kept.items()]
            writer.write_table(pa.table([*arrays, *answers.columns], schema=columns.schema))

        yield write


def _values(kept: Piece, answers: pa.Table) -> list[Sequence[Any]]:
    return [*map(_python, kept.values()), *(column.to_pylist() for column in answers.columns)]


def _python(values: Any) -> Sequence[Any]:
    if not isinstance(values, pa.ChunkedArray):
        return values
    # Arrow writes nanoseconds and time zones that Python has no values for
    timed = pa.types.is_timestamp(values.type) or pa.types.is_duration(values.type)
    return values.cast(pa.string()).to_pylist() if timed else values.to_pylist()


def _array(values: Sequence[Any] | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray):
        return values
    if pa.types.is_string(kind):
        values = [_text(value) for value in values]
    return pa.array(values, type=kind)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value and whole_text(value)
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    """Return None for a number that isn't finite, and text for what JSON has no form of (dates, decimals).

    Raises:
        RankwiseError: bytes, which neither JSON nor CSV can hold.
    """
    if isinstance(value, bytes):
        raise RankwiseError(
            "The rows hold bytes, which only .parquet can: name such a file with `out=`, or leave the rows' columns out with `keep=none`."
        )
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


WRITERS: dict[str, Writer] = {
    ".jsonl": _jsonl,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".parquet": _parquet,
}
"""Ending → how rows are written."""
