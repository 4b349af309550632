"""Files to tables: CSV, TSV, JSONL and Parquet, read strictly; several files as one table.

A malformed table is refused, with the line that is wrong: a mistaken guess about texts or labels would only show as a poor score.
"""

import csv
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.errors import RankwiseError

SUFFIXES = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".json": "JSONL",
    ".parquet": "Parquet",
}
FOREIGN = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\x1f\x8b": "a gzip file",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF",
}
"""First bytes of files that people pass by mistake."""


@dataclass(frozen=True)
class Table:
    """The columns of one file, and where its rows are found in it.

    Attributes:
        name: of the file, for messages.
        columns: name → values, one a row.
        lines: where each row begins: its line, or `part-2.csv:7` if several files make one table. None for a file without lines
            (Parquet), whose rows are counted from 1.
    """

    name: str
    columns: Mapping[str, Sequence[Any] | pa.ChunkedArray]
    lines: Sequence[int | str] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str, argument: str) -> list[Any]:
        """Return the values of a column as Python objects.

        Args:
            name: of the column.
            argument: of the library that names the column, for the message.

        Raises:
            RankwiseError: there is no such column.
        """
        if name not in self.columns:
            raise RankwiseError(
                f"{self.name} has no column {name!r}. Its columns: {', '.join(self.columns)}. "
                f"Say which with `{argument}=`."
            )
        values = self.columns[name]
        return values.to_pylist() if isinstance(values, pa.ChunkedArray) else list(values)  # pyright: ignore[reportAttributeAccessIssue]

    def where(self, rows: Sequence[int]) -> str:
        """Return `line 7` or `lines 7, 9, 12 and 40 more`, for a message."""
        unit = "row" if self.lines is None else "line"
        shown = [str(row + 1 if self.lines is None else self.lines[row]) for row in rows[:5]]
        more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
        return f"{unit}{'s' if len(rows) > 1 else ''} {', '.join(shown)}{more}"


def expand(files: Sequence[Path]) -> tuple[Path, ...]:
    """Return the files that names and patterns (`part-*.csv`) stand for, each once.

    Raises:
        RankwiseError: no file matches a pattern.
    """
    found: dict[Path, None] = {}
    for file in files:
        pattern = str(file)
        matches = [file]
        if not file.exists() and glob.has_magic(pattern):
            matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 (takes whole paths)
            if not matches:
                raise RankwiseError(f"No file matches {pattern}.")
        found |= dict.fromkeys(matches)
    return tuple(found)


def read_tables(files: Sequence[Path]) -> Table:
    """Return one table from one file or several, in their order.

    Args:
        files: names or patterns, of all kinds that `read_table` reads.

    Raises:
        RankwiseError: a file can't be read, or its columns aren't those of the first.
    """
    first, *others = tables = [read_table(file) for file in expand(files)]
    for other in others:
        for one, two in ((first, other), (other, first)):
            missing = next((column for column in one.columns if column not in two.columns), None)
            if missing is not None:
                raise RankwiseError(
                    f"{two.name} has no column {missing!r}, which {one.name} has. Files that make one table have the same columns."
                )
    if not others:
        return first
    return Table(
        name=f"{first.name} and {len(others)} more",
        columns={name: [v for table in tables for v in table.column(name, "")] for name in first.columns},
        lines=[
            f"{table.name}:{line}" for table in tables for line in table.lines or range(1, len(table) + 1)
        ],
    )


def read_table(path: Path | str) -> Table:
    """Read a CSV, TSV, JSONL or Parquet file whose content agrees with its name.

    Cells of CSV and TSV stay strings: nothing is inferred from `007`, `true` or `NA`.

    Args:
        path: `.csv` (commas or semicolons), `.tsv`, `.jsonl`, `.parquet`; of other names the content decides.

    Raises:
        RankwiseError: the file is missing, empty, another kind than its name says, not UTF-8, or malformed.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RankwiseError(_unreadable(path, error)) from error
    if not content.removeprefix(b"\xef\xbb\xbf").strip():
        raise RankwiseError(f"{path} is empty.")
    kind = _kind(path, content)
    if kind == "Parquet":
        return _parquet(path.name, content)
    text = _decode(path.name, content)
    table = _jsonl(path.name, text) if kind == "JSONL" else _delimited(path.name, text, kind)
    if not len(table):
        raise RankwiseError(f"{path.name} has a header and no rows.")
    return table


def _unreadable(path: Path, error: OSError) -> str:
    if path.is_dir():
        return f"{path} is a folder; a table is one CSV, TSV, JSONL or Parquet file."
    if not isinstance(error, FileNotFoundError):
        return f"{path} can't be read: {error.strerror}."
    if not path.parent.is_dir():
        return f"There is no file {path}: the folder {path.parent} doesn't exist."
    tables = sorted(file.name for file in path.parent.iterdir() if file.suffix.lower() in SUFFIXES)
    close = get_close_matches(path.name, tables, n=3, cutoff=0.5)
    if close:
        return f"There is no file {path}. Nearest in that folder: {', '.join(close)}."
    return f"There is no file {path}. Tables in that folder: {', '.join(tables[:8]) or 'none'}."


def _kind(path: Path, content: bytes) -> str:
    """Return the kind that its name says, unless the first bytes contradict it."""
    for start, foreign in FOREIGN.items():
        if content.startswith(start):
            raise RankwiseError(
                f"{path.name} is {foreign} by its content; export it as CSV, TSV, JSONL or Parquet."
            )
    first_line = content.lstrip(b"\xef\xbb\xbf\r\n\t ").splitlines()[0]
    if content.startswith(b"PAR1"):
        found = "Parquet"
    elif first_line.startswith(b"{") and first_line.rstrip().endswith(b"}"):
        found = "JSONL"
    else:
        found = "TSV" if b"\t" in first_line and b"," not in first_line else "CSV"
    named = SUFFIXES.get(path.suffix.lower(), found)
    if named == "JSONL" and first_line.startswith(b"["):
        raise RankwiseError(f"{path.name} holds one JSON array; write one object a line instead (JSONL).")
    # The readers report a broken first line of JSONL with its line; a TSV with one column looks like CSV.
    if (
        named == found
        or (named == "JSONL" and first_line.startswith(b"{"))
        or (named == "TSV" and found == "CSV")
    ):
        return named
    raise RankwiseError(
        f"{path.name} isn't {named}: by its content it is {found} (it begins with "
        f"{first_line[:30].decode(errors='replace')!r}). Give it the suffix of what it is."
    )


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise RankwiseError(
                f"{name} is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 {name}."
            ) from error
        if b"\0" in content[:4096]:
            raise RankwiseError(
                f"{name} isn't text, so it isn't UTF-8 either: byte 0x{error.object[error.start]:02x} at {error.start}. "
                "Export it as CSV, TSV, JSONL or Parquet."
            ) from error
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RankwiseError(
            f"{name} isn't UTF-8: byte 0x{error.object[error.start]:02x} on line {line}. Save it as UTF-8, "
            f"or convert it: iconv -f LATIN1 -t UTF-8 {name} (if Latin-1 is what it is)."
        ) from error


def _parquet(name: str, content: bytes) -> Table:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise RankwiseError(f"{name} is a damaged Parquet file: {str(error).splitlines()[0]}") from error
    if not table.num_rows:
        raise RankwiseError(f"{name} has columns and no rows.")
    return Table(name, dict(zip(table.column_names, table.columns, strict=True)))


def _jsonl(name: str, text: str) -> Table:
    lines, objects = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RankwiseError(f"{name} line {number} isn't JSON: {error}.") from error
        if not isinstance(row, dict):
            raise RankwiseError(f"{name} line {number} isn't a JSON object: {line.strip()[:40]!r}.")
        lines.append(number)
        objects.append(row)
    columns = {
        key: [row.get(key) for row in objects] for key in dict.fromkeys(key for row in objects for key in row)
    }
    return Table(name, columns, lines)


def _delimited(name: str, text: str, kind: str) -> Table:
    first_line = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if kind == "TSV" else max(",;", key=first_line.count)  # max takes the comma on a tie
    records = _records(name, text, delimiter)
    _, header = next(records)
    header = [column.strip() for column in header]
    twice = next((column for column in header if header.count(column) > 1), None)
    if twice is not None:
        raise RankwiseError(f"{name} has two columns named {twice!r}; rename one.")
    lines, rows = [], []
    for line, row in records:
        if len(row) != len(header):
            raise RankwiseError(
                f"{name} line {line} has {len(row)} fields where the header has {len(header)}. "
                f"Put quotes around texts that hold a {'tab' if kind == 'TSV' else repr(delimiter)}."
            )
        lines.append(line)
        rows.append(row)
    columns = {column: [row[i] for row in rows] for i, column in enumerate(header)}
    return Table(name, columns, lines)


def _records(name: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that isn't a blank line, with the line it begins at."""
    csv.field_size_limit(1 << 30)  # the default refuses texts of 128 KB
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begins = 1
    try:
        for record in reader:
            if record:
                yield begins, record
            begins = reader.line_num + 1
    except csv.Error as error:
        raise RankwiseError(
            f"{name} line {begins} can't be read: {error}. "
            "A quote inside a quoted text is written twice, and each opened quote is closed."
        ) from error
