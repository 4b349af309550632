"""Files to tables: CSV, TSV, JSONL and Parquet, read strictly; several files as one table.

A malformed table is refused, with the line that is wrong: a mistaken guess about texts or labels would only show as a poor score.
"""

import csv
import glob
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
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
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Excel file",
    b"\x1f\x8b": "a gzip file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\x04\x22\x4d\x18": "an LZ4 file",
    b"7z\xbc\xaf\x27\x1c": "a 7z file",
    b"Rar!\x1a\x07": "a RAR file",
    b"ARROW1\0\0": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow file",
    b"FEA1": "a Feather file",
    b"PARE": "an encrypted Parquet file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3\0": "an SQLite data base",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy file",
    b"%PDF-": "a PDF",
}
"""First bytes of files that people pass by mistake."""
BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)")
"""The first bytes of a bzip2 file: text may begin with `BZh` too, but not with the number behind it."""
SAVED_DATASET = ("dataset_dict.json", "state.json")
"""The folder that `save_to_disk` of the `datasets` library writes holds one of these."""


@dataclass(frozen=True)
class Table:
    """The columns of one file, and where its rows are found in it.

    Attributes:
        name: of the file, for messages.
        columns: name → values, one a row.
        lines: where each row begins: its line, or `part-2.csv:7` if several files make one table. None for a file without lines
            (Parquet), whose rows are counted from 1.
        notes: sentences on how the file was read, where that could have been otherwise.
    """

    name: str
    columns: Mapping[str, Sequence[Any] | pa.ChunkedArray]
    lines: Sequence[int | str] | None = None
    notes: tuple[str, ...] = ()

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
    return join([read_table(file) for file in expand(files)])


def join(tables: Sequence[Table]) -> Table:
    """Return the rows of several tables as one table, in their order.

    Raises:
        RankwiseError: a table has other columns than the first.
    """
    first, *others = tables
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
        notes=tuple(note for table in tables for note in table.notes),
    )


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the `datasets` library."""
    return any((path / name).is_file() for name in SAVED_DATASET)


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
    if path.is_dir() and is_saved_dataset(path):
        return f"{path} is a data set that `save_to_disk` wrote, not one table among several. Give it alone with `dataset=`."
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
    foreign = next((kind for start, kind in FOREIGN.items() if content.startswith(start)), None)
    foreign = "a bzip2 file" if BZIP2.match(content) else foreign
    if foreign is not None:
        raise RankwiseError(
            f"{path.name} is {foreign} by its content. Decompress or export it as CSV, TSV, JSONL or Parquet."
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
        file = pq.ParquetFile(pa.BufferReader(content))
        _refuse_repeated(name, file.schema_arrow.names)
        table = file.read()
    except pa.ArrowNotImplementedError as error:
        raise RankwiseError(f"{name} can't be read: {str(error).splitlines()[0]}") from error
    except (pa.ArrowException, OSError) as error:
        raise RankwiseError(f"{name} is a damaged Parquet file: {str(error).splitlines()[0]}") from error
    if not table.num_rows:
        raise RankwiseError(f"{name} has columns and no rows.")
    return Table(name, dict(zip(table.column_names, table.columns, strict=True)))


def _refuse_repeated(name: str, columns: Sequence[str]) -> None:
    counts = Counter(columns)
    twice = next((column for column in columns if counts[column] > 1), None)
    if twice is not None:
        raise RankwiseError(
            f"{name} has {'two' if counts[twice] == 2 else counts[twice]} columns named {twice!r}; rename one."
        )


class _RepeatedKeyError(Exception):
    """A key that a JSON object has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKeyError(next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1))
    return found


def _jsonl(name: str, text: str) -> Table:
    lines, objects = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except _RepeatedKeyError as error:
            raise RankwiseError(f"{name} line {number} names {error.args[0]!r} twice; rename one.") from None
        except ValueError as error:
            raise RankwiseError(f"{name} line {number} isn't JSON: {error}.") from error
        except RecursionError:
            raise RankwiseError(f"{name} line {number} is nested too deep to be a row.") from None
        if not isinstance(row, dict):
            raise RankwiseError(f"{name} line {number} isn't a JSON object: {line.strip()[:40]!r}.")
        lines.append(number)
        objects.append(row)
    columns = {
        key: [row.get(key) for row in objects] for key in dict.fromkeys(key for row in objects for key in row)
    }
    return Table(name, columns, lines)


# ── CSV and TSV ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class _Record:
    """The header or a row: its fields, and the first and last line it stands on."""

    fields: list[str]
    begins: int
    ends: int


def _delimited(name: str, text: str, kind: str) -> Table:
    first_line = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if kind == "TSV" else max(",;", key=first_line.count)  # max takes the comma on a tie
    (first, *rows), notes = _records(name, text, delimiter)
    header = [column.strip() for column in first.fields]
    _refuse_repeated(name, header)
    for row in rows:
        if len(row.fields) != len(header):
            raise RankwiseError(
                f"{name} line {row.begins} has {len(row.fields)} fields where the header has {len(header)}. "
                f"Put quotes around texts that hold a {'tab' if kind == 'TSV' else repr(delimiter)}."
            )
    columns = {column: [row.fields[i] for row in rows] for i, column in enumerate(header)}
    return Table(name, columns, [row.begins for row in rows], notes)


def _records(name: str, text: str, delimiter: str) -> tuple[list[_Record], tuple[str, ...]]:
    """Return the header and the rows of a whole file, and a note if how quotes are read changes them.

    A quote at the start of a cell either opens a quoted cell, which may hold delimiters and line breaks, or is a character of the text.
    In CSV it opens a cell. In TSV it does so if every row then has the header's fields, unless the file is whole with a row on each line.

    Raises:
        RankwiseError: a quoted cell is malformed, or a CSV file is whole either way, with different rows.
    """
    plain = _by_lines(text, delimiter)
    if not any(field.startswith('"') for record in plain for field in record.fields):
        return plain, ()
    tabs, whole = delimiter == "\t", _even(plain)
    try:
        quoted = _by_quotes(name, text, delimiter)
    except RankwiseError:
        if tabs and whole:
            return plain, (
                f"{name}: quotes are read as characters of the cells; not all of them are closed.",
            )
        raise
    if tabs and whole and not _even(quoted):
        return plain, (f"{name}: quotes are read as characters of the cells, one row a line.",)
    if len(quoted) == len(plain):
        return quoted, ()
    header_is_quoted = all(re.fullmatch(r'".*"', field.strip()) for field in plain[0].fields)
    if whole and not header_is_quoted:
        if tabs:
            return plain, (
                f"{name}: {_rows(plain)}, one a line; quotes are read as characters of the cells. "
                f"If they enclosed cells, it would be {_rows(quoted)}.",
            )
        if _even(quoted) and len(plain[0].fields) > 1:
            raise RankwiseError(
                f"{name} has {_rows(plain)} if quotes are characters of the texts, and {len(quoted) - 1:,} if they enclose "
                f"cells ({_long(quoted)}). Put quotes around every cell, those of the header too, and double the quotes inside; "
                "or write JSONL or Parquet."
            )
    lines = len(plain) - 1
    return quoted, (
        f"{name}: {_rows(quoted)} on {lines:,} lines; quoted cells hold line breaks ({_long(quoted)}).",
    )


def _even(records: Sequence[_Record]) -> bool:
    """Whether every row has as many fields as the header."""
    return all(len(record.fields) == len(records[0].fields) for record in records)


def _rows(records: Sequence[_Record]) -> str:
    return f"{len(records) - 1:,} row{'' if len(records) == 2 else 's'}"


def _long(records: Sequence[_Record]) -> str:
    """Return the lines of the first records that take several."""
    spans = [f"{record.begins}-{record.ends}" for record in records if record.ends > record.begins]
    return f"lines {', '.join(spans[:3])}{f' and {len(spans) - 3:,} more' if len(spans) > 3 else ''}"


def _by_lines(text: str, delimiter: str) -> list[_Record]:
    """Return a record for each line that isn't blank, with quotes as characters."""
    lines = enumerate(_LINE_END.split(text), 1)
    return [_Record(line.split(delimiter), number, number) for number, line in lines if line]


def _by_quotes(name: str, text: str, delimiter: str) -> list[_Record]:
    """Return the records as RFC 4180 reads them, without blank lines."""
    csv.field_size_limit(1 << 30)  # the default refuses texts of 128 KB
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, begins = [], 1
    try:
        for fields in reader:
            if fields:
                records.append(_Record(fields, begins, reader.line_num))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise RankwiseError(
            f"{name} line {begins} can't be read: {error}. "
            "A quote inside a quoted text is written twice, and each opened quote is closed."
        ) from error
    return records
