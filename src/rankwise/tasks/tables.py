"""Files to tables: CSV, TSV, JSONL and Parquet, read strictly; several files as one table.

A malformed table is refused, with the line that is wrong: a mistaken guess about texts or labels would only show as a poor score.
"""

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.errors import RankwiseError
from rankwise.files import parse_json
from rankwise.tasks import delimited

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
class OnDemand(Mapping[str, Sequence[Any]]):
    """Columns that are made when they are asked for: there may be thousands, and some may be unreadable.

    Attributes:
        names: of the columns, in order.
        rows: in each.
        make: name → values.
    """

    names: Collection[str]
    rows: int
    make: Callable[[str], Sequence[Any]]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self.names:
            raise KeyError(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Table:
    """The columns of one file, and where its rows are found in it.

    Attributes:
        name: of the file, for messages.
        columns: name → values, one a row.
        lines: where each row begins: its line, or `part-2.csv:7` if several files make one table. None for a file without lines
            (Parquet), whose rows are counted from 1.
        notes: sentences on how the file was read, where that could have been otherwise.
        first: rows of the file before these, where they are a piece of it (see `streams`).
    """

    name: str
    columns: Mapping[str, Sequence[Any] | pa.ChunkedArray]
    lines: Sequence[int | str] | None = None
    notes: tuple[str, ...] = ()
    first: int = 0

    def __len__(self) -> int:
        if isinstance(self.columns, OnDemand):
            return self.columns.rows
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str, argument: str) -> list[Any]:
        """Return the values of a column as Python objects.

        Args:
            name: of the column.
            argument: the library's argument that gives the column, for the message.

        Raises:
            RankwiseError: there is no such column, or Python has no value for one of its cells.
        """
        if name not in self.columns:
            raise RankwiseError(
                f"{self.name} has no column {name!r}. Its columns: {shown(self.columns, 30)}. Say which with `{argument}=`."
            )
        try:
            values = self.columns[name]
            return values.to_pylist() if isinstance(values, pa.ChunkedArray) else list(values)  # pyright: ignore[reportAttributeAccessIssue]
        # damaged bytes, dates beyond Python's, unknown time zones: each raises its own
        except Exception as error:
            raise RankwiseError(
                f"{self.name}: column {name!r} can't be read ({_first_line(error)}). Write it as text or numbers."
            ) from error

    def where(self, rows: Sequence[int]) -> str:
        """Return `line 7` or `lines 7, 9, 12 and 40 more`, for a message."""
        places = Places()
        places.add(self, rows)
        return str(places)


@dataclass
class Places:
    """Where some rows of a file stand, for a message: the first few, and how many there are.

    Attributes:
        count: of rows.
        shown: the first rows' lines.
        unit: what they are counted in.
    """

    count: int = 0
    shown: list[str] = field(default_factory=list)
    unit: str = "row"

    def add(self, table: Table, rows: Sequence[int]) -> None:
        """Add rows of a file, or of a piece of one."""
        self.count += len(rows)
        self.unit = "row" if table.lines is None else "line"
        for row in rows[: 5 - len(self.shown)]:
            self.shown.append(str(table.first + row + 1 if table.lines is None else table.lines[row]))

    def __str__(self) -> str:
        """Return `line 7` or `lines 7, 9, 12 and 40 more`."""
        more = f" and {self.count - 5:,} more" if self.count > 5 else ""
        return f"{self.unit}{'s' if self.count > 1 else ''} {', '.join(self.shown)}{more}"


def shown(names: Iterable[str], most: int = 10) -> str:
    """Return the first names, for a sentence."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


def join(tables: Sequence[Table]) -> Table:
    """Return the rows of several tables as one table, in their order.

    Raises:
        RankwiseError: a table has other columns than the first.
    """
    first, *others = tables
    check_same_columns([(table.name, table.columns) for table in tables])
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


def check_same_columns(files: Sequence[tuple[str, Iterable[str]]]) -> None:
    """Check that files, each with its name and columns, make one table.

    Raises:
        RankwiseError: one has other columns than the first.
    """
    first, *others = [(name, list(columns)) for name, columns in files]
    for other in others:
        for one, two in ((first, other), (other, first)):
            missing = next((column for column in one[1] if column not in two[1]), None)
            if missing is not None:
                raise RankwiseError(
                    f"{two[0]} has no column {missing!r}, which {one[0]} has. Files that make one table have the same columns."
                )


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of the `datasets` library."""
    return any(os.path.isfile(path / name) for name in SAVED_DATASET)  # noqa: PTH113 (takes names of any length)


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


def check_file(path: Path) -> None:
    """Check that a path is an ordinary file.

    Raises:
        RankwiseError: it is something else, or isn't there.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise RankwiseError(
                f"{path} is a device or a pipe; a table is a file, which is read more than once."
            )
    except OSError as error:
        raise unreadable(path, error) from error


def is_blank(content: bytes) -> bool:
    """Return whether a file's content is nothing but white space."""
    return not content.removeprefix(b"\xef\xbb\xbf").strip()


def no_rows(name: str, kind: str) -> RankwiseError:
    """Return the error for a file without rows."""
    has = {"JSONL": "objects without keys", "Parquet": "columns"}.get(kind, "a header")
    return RankwiseError(f"{name} has {has} and no rows.")


def unreadable(path: Path, error: OSError) -> RankwiseError:
    """Return the error for a file that can't be opened or read."""
    return RankwiseError(_unreadable(path, error))


def _unreadable(path: Path, error: OSError) -> str:
    if is_saved_dataset(path):
        return f"{path} is a data set that `save_to_disk` wrote, not one table among several. Give it alone with `dataset=`."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder; a table is one CSV, TSV, JSONL or Parquet file."
    if not isinstance(error, FileNotFoundError):
        return f"{path} can't be read: {error.strerror}."
    if not os.path.isdir(path.parent):  # noqa: PTH112 (takes names of any length)
        return f"There is no file {path}: the folder {path.parent} doesn't exist."
    tables = sorted(file.name for file in path.parent.iterdir() if file.suffix.lower() in SUFFIXES)
    close = get_close_matches(path.name, tables, n=3, cutoff=0.5)
    if close:
        return f"There is no file {path}. Nearest in that folder: {', '.join(close)}."
    return f"There is no file {path}. Tables in that folder: {', '.join(tables[:8]) or 'none'}."


def kind_of(path: Path, content: bytes) -> str:
    """Return the kind of a file by its suffix.

    Args:
        path: of the file.
        content: its beginning, the first line that isn't blank included.

    Raises:
        RankwiseError: the first bytes contradict it.
    """
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
        line = error.object.count(b"\n", 0, error.start) + 1
        raise not_utf8(name, content, error.object[error.start], error.start, line) from error


def not_utf8(name: str, content: bytes, byte: int, at: int, line: int) -> RankwiseError:
    """Return the error for a file that isn't UTF-8.

    Args:
        name: of the file.
        content: its beginning.
        byte: the first that isn't UTF-8.
        at: its place in the file.
        line: on which it stands.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return RankwiseError(f"{name} is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 {name}.")
    if b"\0" in content[:4096]:
        return RankwiseError(
            f"{name} isn't text, so it isn't UTF-8 either: byte 0x{byte:02x} at {at}. "
            "Export it as CSV, TSV, JSONL or Parquet."
        )
    return RankwiseError(
        f"{name} isn't UTF-8: byte 0x{byte:02x} on line {line}. Save it as UTF-8, "
        f"or convert it: iconv -f LATIN1 -t UTF-8 {name} (if Latin-1 is what it is)."
    )


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
        raise RankwiseError(f"{name} can't be read: {_first_line(error)}") from error
    # names that aren't UTF-8 are a ValueError
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RankwiseError(f"{name} is a damaged Parquet file: {_first_line(error)}") from error


def refuse_repeated(name: str, columns: Sequence[str]) -> None:
    """Refuse a table with two columns of one name.

    Raises:
        RankwiseError: naming the column.
    """
    counts = Counter(columns)
    twice = next((column for column in columns if counts[column] > 1), None)
    if twice is not None:
        raise RankwiseError(
            f"{name} has {'two' if counts[twice] == 2 else counts[twice]} columns named {twice!r}; rename one."
        )


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
