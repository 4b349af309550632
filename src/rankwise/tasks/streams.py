"""Files as tables in pieces: what predicting reads, so that a file may be larger than memory.

    rows.csv ─► open_stream: checks the whole file and counts its rows, keeping none ─► pieces: one `Table` after the other

A file is read in the same way as `tables` reads it whole, and the same files are refused.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.errors import RankwiseError
from rankwise.tasks import delimited, file_kinds, tables
from rankwise.tasks.file_kinds import is_saved_dataset
from rankwise.tasks.hub_tables import read_dataset
from rankwise.tasks.table import OnDemand, Table, check_same_columns, refuse_repeated

ROWS = 4096
"""Rows of a piece at most."""
SIZE = 1 << 24
"""About the most characters (of a Parquet file, bytes) of a piece."""
HEAD = 1 << 16
"""Bytes from which a file's kind is told."""


@dataclass(frozen=True)
class Stream:
    """A table that is read in pieces.

    Attributes:
        name: of the file, for messages.
        columns: names, in order.
        rows: their number.
        pieces: begins anew with the first rows. It reads the columns named, or all.
        notes: sentences on how the file was read, where that could have been otherwise.
        schema: types of the columns, where the file has some.
        of_text: cells are text as it stands in a CSV or TSV file.
    """

    name: str
    columns: tuple[str, ...]
    rows: int
    pieces: Callable[[Sequence[str] | None], Iterator[Table]]
    notes: tuple[str, ...] = ()
    schema: pa.Schema | None = None
    of_text: bool = False


def open_stream(path: Path | str) -> Stream:
    """Open a file to be read in pieces, after a pass over all of it that finds what is wrong.

    Args:
        path: CSV, TSV, JSONL or Parquet; a pattern reads several as one; or a data set that `save_to_disk` wrote.

    Raises:
        RankwiseError: it can't be read, or has no rows.
    """
    if is_saved_dataset(Path(path)):
        return _of_table(saved_split(Path(path)))
    first, *others = streams = [_open(file) for file in tables.expand([Path(path)])]
    if not others:
        return first
    check_same_columns([(one.name, one.columns) for one in streams])
    return Stream(
        name=f"{first.name} and {len(others)} more",
        columns=first.columns,
        rows=sum(one.rows for one in streams),
        pieces=partial(_joined, streams),
        notes=tuple(note for one in streams for note in one.notes),
        schema=first.schema if all(one.schema == first.schema for one in streams) else None,
        of_text=all(one.of_text for one in streams),
    )


def saved_split(path: Path) -> Table:
    """Return the one split of a data set that `save_to_disk` wrote.

    Raises:
        RankwiseError: it has several.
    """
    splits = read_dataset(str(path), None)
    if len(splits) > 1:
        raise RankwiseError(
            f"{path} holds the splits {', '.join(splits)}. Give the folder of one, such as {path / next(iter(splits))}."
        )
    return next(iter(splits.values()))


def _joined(streams: Sequence[Stream], columns: Sequence[str] | None) -> Iterator[Table]:
    """Return the pieces of several files. Rows are named by their file."""
    before = 0
    for stream in streams:
        for piece in stream.pieces(columns):
            lines = piece.lines or range(piece.first + 1, piece.first + len(piece) + 1)
            named = [f"{stream.name}:{line}" for line in lines]
            yield replace(piece, lines=named, first=before + piece.first)
        before += stream.rows


def _open(path: Path) -> Stream:
    file_kinds.check_file(path)
    head = _head(path)
    if file_kinds.is_blank(head):
        raise RankwiseError(f"{path} is empty.")
    kind = file_kinds.kind_of(path, head)
    stream = {"Parquet": _parquet, "JSONL": _jsonl}.get(kind, partial(_delimited, tabs=kind == "TSV"))(path)
    if not stream.rows:
        raise file_kinds.no_rows(path.name, kind)
    return stream


def _head(path: Path) -> bytes:
    """Return the beginning of a file, with the whole of the first line that isn't blank."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            while more := b"" if head.startswith(b"PAR1") or _has_line(head) else file.read(HEAD):
                head += more
            return head
    except OSError as error:
        raise file_kinds.unreadable(path, error) from error


def _has_line(head: bytes) -> bool:
    return len(head.lstrip(b"\xef\xbb\xbf\r\n\t ").splitlines()) > 1


def _lines(path: Path, newline: str) -> Iterator[str]:
    """Return the lines of a text file with their ends: `newline` is as in `open`."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield from file
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except OSError as error:
        raise file_kinds.unreadable(path, error) from error


def _not_utf8(path: Path) -> RankwiseError:
    at = 0
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return file_kinds.not_utf8(path.name, head, line[error.start], at + error.start, number)
            at += len(line)
    return RankwiseError(f"{path.name} has changed while it was read.")


def _grouped(rows: Iterable[tuple[Any, Any, int]]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Group (line, row, characters) to pieces: their lines, and their rows."""
    lines, group, size = [], [], 0
    for line, row, characters in rows:
        if group and (len(group) == ROWS or size + characters > SIZE):
            yield lines, group
            lines, group, size = [], [], 0
        lines.append(line)
        group.append(row)
        size += characters
    if group:
        yield lines, group


def _delimited(path: Path, *, tabs: bool) -> Stream:
    open_lines = partial(_lines, path, "")
    layout = delimited.study(path.name, open_lines, tabs=tabs)
    refuse_repeated(path.name, layout.columns)

    def pieces(columns: Sequence[str] | None) -> Iterator[Table]:
        rows = delimited.records(path.name, open_lines, layout)
        places = {name: i for i, name in enumerate(layout.columns) if columns is None or name in columns}
        first = 0
        for lines, group in _grouped((row.begins, row.fields, sum(map(len, row.fields))) for row in rows):
            yield Table(
                path.name, {name: [row[i] for row in group] for name, i in places.items()}, lines, first=first
            )
            first += len(group)

    return Stream(path.name, tuple(layout.columns), layout.rows, pieces, layout.notes, of_text=True)


def _jsonl(path: Path) -> Stream:
    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        return tables.objects_of(path.name, _lines(path, "\n"))

    keys: dict[str, None] = {}
    rows = 0
    for _, one in objects():
        keys |= dict.fromkeys(one)
        rows += 1
    names = tuple(keys)

    def pieces(columns: Sequence[str] | None) -> Iterator[Table]:
        wanted = [name for name in names if columns is None or name in columns]
        first = 0
        for lines, group in _grouped((line, one, _characters(one)) for line, one in objects()):
            yield Table(
                path.name, {name: [one.get(name) for one in group] for name in wanted}, lines, first=first
            )
            first += len(group)

    return Stream(path.name, names, rows, pieces)


def _characters(row: Mapping[str, Any]) -> int:
    return sum(len(value) if isinstance(value, str | list | dict) else 8 for value in row.values())


def _parquet(path: Path) -> Stream:
    with tables.parquet_errors(path.name), pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        refuse_repeated(path.name, schema.names)

    def pieces(columns: Sequence[str] | None) -> Iterator[Table]:
        names = [name for name in schema.names if columns is None or name in columns]
        first = 0
        # buffered: otherwise whole groups of rows would be read at once
        with tables.parquet_errors(path.name):
            file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        with file:
            batches = file.iter_batches(batch_size=ROWS, columns=names)
            while True:
                with tables.parquet_errors(path.name):
                    batch = next(batches, None)
                if batch is None:
                    return
                for part in _parts(pa.table(batch)):
                    columns_of = dict(zip(part.column_names, part.columns, strict=True))
                    yield Table(path.name, columns_of, first=first)
                    first += part.num_rows

    return Stream(path.name, tuple(schema.names), rows, pieces, schema=schema)


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    rows = max(1, table.num_rows // -(-table.nbytes // SIZE)) if table.nbytes else ROWS
    return (table.slice(start, rows) for start in range(0, table.num_rows, rows))


def _of_table(table: Table) -> Stream:
    """Return a table that is there already as a stream."""

    def pieces(columns: Sequence[str] | None) -> Iterator[Table]:
        names = [name for name in table.columns if columns is None or name in columns]
        values = {name: table.column(name, "text") for name in names}
        for first in range(0, len(table), ROWS):
            last = min(first + ROWS, len(table))
            part = {name: column[first:last] for name, column in values.items()}
            yield Table(table.name, OnDemand(names, last - first, part.__getitem__), first=first)

    return Stream(table.name, tuple(table.columns), len(table), pieces, table.notes)


# ── Types of the columns, for a file that has types ───────────────────────────────────────────

WHOLE = 2**53
"""Integers up to this size are floats, too, without rounding."""


def arrow_types(stream: Stream) -> dict[str, pa.DataType]:
    """Return an Arrow type for each column that holds every one of its values; that of text where the values have none in common.

    A file without types is read once more.
    """
    if stream.schema is not None:
        return dict(zip(stream.columns, stream.schema.types, strict=True))
    if stream.of_text:
        return dict.fromkeys(stream.columns, pa.string())
    found = {name: _Kind() for name in stream.columns}
    for piece in stream.pieces(None):
        for name, kind in found.items():
            kind.add(piece.column(name, "text"))
    return {name: pa.string() if pa.types.is_null(kind.type) else kind.type for name, kind in found.items()}


@dataclass
class _Kind:
    """The type that the values of a column have in common so far, and whether an integer among them is too large for a float."""

    type: pa.DataType = pa.null()  # noqa: RUF009 (no value of it is ever changed)
    large: bool = False

    def add(self, values: Sequence[Any]) -> None:
        self.large = self.large or any(isinstance(v, int) and abs(v) > WHOLE for v in values)
        try:
            found = pa.array(values).type
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            found = pa.string()
        if pa.types.is_null(found):
            return
        both = {self.type, found}
        if both == {pa.int64(), pa.float64()}:
            found = pa.float64()
        elif not pa.types.is_null(self.type) and len(both) > 1:
            found = pa.string()
        self.type = pa.string() if self.large and found == pa.float64() else found
