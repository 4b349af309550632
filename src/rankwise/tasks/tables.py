"""Files to tables: CSV, TSV, JSONL and Parquet, read strictly; several files as one table.

    file ─► file_kinds: which kind it is ─► one reader for each kind ─► Table ─► join

A malformed table is refused, with the line that is wrong: a mistaken guess about texts or labels would only show as a poor score.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.errors import RankwiseError, first_line
from rankwise.files import parse_json
from rankwise.tasks import delimited
from rankwise.tasks.file_kinds import check_file, is_blank, kind_of, no_rows, not_utf8, unreadable
from rankwise.tasks.table import OnDemand, Table, join, refuse_repeated


def expand(files: Sequence[Path]) -> tuple[Path, ...]:
    """Return the files that names and patterns (`part-*.csv`) stand for, each once.

    Raises:
        RankwiseError: no file matches a pattern.
    """
    found: dict[str, Path] = {}
    for file in files:
        pattern = str(file)
        matches = [file]
        if glob.has_magic(pattern) and not os.path.exists(file):  # noqa: PTH110 (takes names of any length)
            matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 (takes whole paths)
            if not matches:
                raise RankwiseError(f"No file matches {pattern}.")
        for match in matches:
            found.setdefault(os.path.realpath(match), match)
    return tuple(found.values())


def read_tables(files: Sequence[Path]) -> Table:
    """Return one table from one file or several, in their order.

    Args:
        files: names or patterns, of all kinds that `read_table` reads.

    Raises:
        RankwiseError: a file can't be read, or its columns aren't those of the first.
    """
    return join([read_table(file) for file in expand(files)])


def read_table(path: Path | str) -> Table:
    """Read a CSV, TSV, JSONL or Parquet file whose content agrees with its name.

    Cells of CSV and TSV stay strings: nothing is inferred from `007`, `true` or `NA`.

    Args:
        path: `.csv` (commas or semicolons), `.tsv`, `.jsonl`, `.parquet`; of other names the content decides.

    Raises:
        RankwiseError: the file is missing, empty, another kind than its name says, not UTF-8, or malformed.
    """
    path = Path(path)
    check_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if is_blank(content):
        raise RankwiseError(f"{path} is empty.")
    kind = kind_of(path, content)
    if kind == "Parquet":
        return _parquet(path.name, content)
    text = _decode(path.name, content)
    table = _jsonl(path.name, text) if kind == "JSONL" else _delimited(path.name, text, kind)
    if not len(table):
        raise no_rows(path.name, kind)
    return table


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise not_utf8(name, content, error.object[error.start], error.start, line) from error


def _parquet(name: str, content: bytes) -> Table:
    with parquet_errors(name):
        file = pq.ParquetFile(pa.BufferReader(content))
        refuse_repeated(name, file.schema_arrow.names)
        table = file.read()
    if not table.num_rows:
        raise no_rows(name, "Parquet")
    return Table(name, dict(zip(table.column_names, table.columns, strict=True)))


@contextmanager
def parquet_errors(name: str) -> Iterator[None]:
    """Turn Arrow's errors in a block of code into sentences about a file."""
    try:
        yield
    except pa.ArrowNotImplementedError as error:
        raise RankwiseError(f"{name} can't be read: {first_line(error)}") from error
    # names that aren't UTF-8 are a ValueError
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RankwiseError(f"{name} is a damaged Parquet file: {first_line(error)}") from error


def _jsonl(name: str, text: str) -> Table:
    numbered = list(objects_of(name, text.split("\n")))
    lines, objects = [number for number, _ in numbered], [row for _, row in numbered]
    keys = dict.fromkeys(key for one in objects for key in one)
    return Table(name, OnDemand(keys, len(objects), lambda key: [one.get(key) for one in objects]), lines)


def objects_of(name: str, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the rows of a JSONL file with their lines, one after the other.

    Raises:
        RankwiseError: a line that isn't blank is no JSON object.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, constant=float)  # pandas and Python write NaN for a missing number
        except ValueError as error:
            raise RankwiseError(f"{name} line {number} isn't a row in JSON: {error}.") from error
        if not isinstance(row, dict):
            raise RankwiseError(f"{name} line {number} isn't a JSON object: {line.strip()[:40]!r}.")
        yield number, row


def _delimited(name: str, text: str, kind: str) -> Table:
    header, rows, notes = delimited.read(name, text, tabs=kind == "TSV")
    refuse_repeated(name, header)
    columns = {column: [row.fields[i] for row in rows] for i, column in enumerate(header)}
    return Table(name, columns, [row.begins for row in rows], notes)
