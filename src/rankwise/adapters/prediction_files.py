"""Prediction files: CSV, TSV, JSONL and Parquet, by the ending of their name."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise import inert
from rankwise.errors import RankwiseError
from rankwise.files import check_place


def check_out(out: Path, file: Path) -> None:
    """Make sure that predictions can be written to `out`.

    Args:
        out: the file to write.
        file: the rows to predict on.

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
    if out.exists() and file.exists() and out.samefile(file):
        raise RankwiseError(
            f"{out} holds the rows to predict on, which would be lost. Name another file with `out=`."
        )
    check_place(out, out.absolute().parent, "file")


def write(table: pa.Table, out: Path) -> tuple[str, ...]:
    """Write a table atomically, in the format of the file's ending.

    Returns:
        A note where names had to be changed: a spreadsheet would take them for formulas.

    Raises:
        RankwiseError: the file can't be written.
    """
    partial = out.with_name(f"{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[out.suffix.lower()](table, partial)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RankwiseError(
            f"{out} can't be written: {error.strerror or error}. Name another file with `out=`."
        ) from None
    changed = _formulas(table) if out.suffix.lower() in (".csv", ".tsv") else []
    if not changed:
        return ()
    return (
        f"An apostrophe stands before {', '.join(changed)} in {out}, so that no spreadsheet takes it for a formula. "
        ".jsonl and .parquet have names as they are.",
    )


def _formulas(table: pa.Table) -> list[str]:
    """The texts of a table that a spreadsheet would take for formulas, each once, the first few."""
    texts = [c for c in table.columns if pa.types.is_string(c.type)]
    found = [value for column in texts for value in column.unique().to_pylist()]
    return [repr(value) for value in found if inert.spreadsheet(value) != value][:3]


def _write_jsonl(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


def _write_delimited(delimiter: str) -> Callable[[pa.Table, Path], None]:
    def write(table: pa.Table, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(map(inert.spreadsheet, table.column_names))
            writer.writerows(map(_cell, row.values()) for row in table.to_pylist())

    return write


def _cell(value: Any) -> Any:
    return inert.json(value) if isinstance(value, list) else inert.spreadsheet(value)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_delimited(","),
    ".tsv": _write_delimited("\t"),
    ".parquet": lambda table, path: pq.write_table(table, path),
}
"""Ending → how a table is written."""
