"""CSV and TSV, read strictly. Whether quotes enclose cells is found from the whole file; what is malformed or ambiguous is refused.

    lines ─► study: a pass or two over the whole file, which keeps nothing of it ─► Layout ─► records: the rows, one after the other

So a file that is larger than memory is read as a small one is.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import StringIO
from itertools import islice

from rankwise.errors import RankwiseError

_LINE_END = re.compile(r"\r\n|\n|\r")

Lines = Callable[[], Iterable[str]]
"""Begins the text anew: its lines, each with its end."""


@dataclass(frozen=True)
class Record:
    """The header or a row: its fields, and the first and last line it stands on."""

    fields: list[str]
    begins: int
    ends: int


@dataclass(frozen=True)
class Layout:
    """How a file is read.

    Attributes:
        columns: names, without white space around them.
        rows: their number.
        delimiter: between fields.
        quoted: whether quotes enclose cells; otherwise a row is a line.
        notes: where how quotes are read changes the rows.
    """

    columns: list[str]
    rows: int
    delimiter: str
    quoted: bool
    notes: tuple[str, ...] = ()


def read(name: str, text: str, *, tabs: bool) -> tuple[list[str], list[Record], tuple[str, ...]]:
    """Return the names of the columns, the rows, and a note if how quotes are read changes them.

    Args:
        name: of the file, for messages.
        text: its content, with a header.
        tabs: whether fields are separated by tabs; otherwise by commas or semicolons.

    Raises:
        RankwiseError: see `study`.
    """

    def lines() -> Iterable[str]:
        return StringIO(text, newline="")

    layout = study(name, lines, tabs=tabs)
    return layout.columns, list(records(name, lines, layout)), layout.notes


def study(name: str, lines: Lines, *, tabs: bool) -> Layout:
    """Find out how a file is read, and check every row.

    A quote at the start of a cell either opens a quoted cell, which may hold delimiters and line breaks, or is a character of the text.
    In CSV it opens a cell. In TSV it does so if every row then has the header's fields, unless the file is whole with a row on each line.

    Args:
        name: of the file, for messages.
        lines: with a header.
        tabs: whether fields are separated by tabs; otherwise by commas or semicolons.

    Raises:
        RankwiseError: a row has another number of fields than the header, or is the header again; quotes are malformed, or can be read in
            two ways.
    """
    delimiter = "\t" if tabs else _delimiter(lines())
    plain = _Shape()
    for record in _by_lines(lines(), delimiter):
        plain.add(record)
    quoted, notes = _choose(name, lines, delimiter, plain)
    shape = quoted or plain
    if (row := shape.faulty) is not None:
        if len(row.fields) != len(shape.header):
            raise RankwiseError(_uneven(name, row, shape.header, delimiter))
        raise RankwiseError(
            f"{name} line {row.begins} is the header again: several files in one? Give them one by one."
        )
    columns = [column.strip() for column in shape.header]
    return Layout(columns, shape.rows, delimiter, quoted is not None, notes)


def records(name: str, lines: Lines, layout: Layout) -> Iterator[Record]:
    """Return the rows of a file that `study` has read, one after the other."""
    by = (
        _by_quotes(name, lines(), layout.delimiter) if layout.quoted else _by_lines(lines(), layout.delimiter)
    )
    return islice(by, 1, None)


@dataclass
class _Shape:
    """What is kept of all records of a file.

    Attributes:
        header: fields of the first record.
        rows: number of records without the header.
        even: whether every row has as many fields as the header.
        quotes: whether a field begins with a quote.
        faulty: the first row that has another number of fields than the header, or is the header again.
        long: the first records that take several lines; `n_long` is their number.
    """

    header: list[str] = field(default_factory=list)
    rows: int = -1
    even: bool = True
    quotes: bool = False
    faulty: Record | None = None
    long: list[Record] = field(default_factory=list)
    n_long: int = 0

    def add(self, record: Record) -> None:
        self.rows += 1
        self.quotes = self.quotes or any(text.startswith('"') for text in record.fields)
        if record.ends > record.begins:
            self.n_long += 1
            self.long += [record][: 3 - len(self.long)]
        if not self.rows:
            self.header = record.fields
            return
        self.even = self.even and len(record.fields) == len(self.header)
        again = record.fields == self.header and len(self.header) > 1
        if self.faulty is None and (again or not self.even):
            self.faulty = record

    @property
    def in_words(self) -> str:
        """`1 row`, `1,200 rows`."""
        return f"{self.rows:,} row{'' if self.rows == 1 else 's'}"

    @property
    def long_in_words(self) -> str:
        """The lines of the first records that take several."""
        spans = ", ".join(f"{record.begins}-{record.ends}" for record in self.long)
        return f"lines {spans}{f' and {self.n_long - 3:,} more' if self.n_long > 3 else ''}"


def _choose(name: str, lines: Lines, delimiter: str, plain: _Shape) -> tuple[_Shape | None, tuple[str, ...]]:
    """Return the shape of a file whose quotes enclose cells, or None where a row is a line; and a note if that changes the rows.

    Raises:
        RankwiseError: a quoted cell is malformed, or rows may as well be texts that begin with a quote.
    """
    if not plain.quotes:
        return None, ()
    tabs, whole, quoted = delimiter == "\t", plain.even, _Shape()
    try:
        for record in _by_quotes(name, lines(), delimiter):
            quoted.add(record)
    except RankwiseError:
        if tabs and whole:
            return None, (f"{name}: quotes are read as characters of the cells; not all of them are closed.",)
        raise
    if tabs and whole and not quoted.even:
        return None, (f"{name}: quotes are read as characters of the cells, one row a line.",)
    if quoted.rows == plain.rows:
        return quoted, ()
    header_is_quoted = all(re.fullmatch(r'".*"', text.strip()) for text in plain.header)
    if whole and not header_is_quoted:
        if tabs:
            return None, (
                f"{name}: {plain.in_words}, one a line; quotes are read as characters of the cells. "
                f"If they enclosed cells, it would be {quoted.in_words}.",
            )
        if quoted.even and len(plain.header) > 1:
            raise RankwiseError(
                f"{name} has {plain.in_words} if quotes are characters of the texts, and {quoted.rows:,} if they enclose "
                f"cells ({quoted.long_in_words}). Put quotes around every cell, those of the header too, and double the quotes inside; "
                "or write JSONL or Parquet."
            )
    _refuse_swallowed(name, lines, delimiter, len(quoted.header))
    return quoted, (
        f"{name}: {quoted.in_words} on {plain.rows:,} lines; quoted cells hold line breaks ({quoted.long_in_words}).",
    )


def _delimiter(lines: Iterable[str]) -> str:
    """Return the comma or the semicolon, by the header without its quoted names."""
    first = next((line for line in lines if line.strip("\r\n")), "")
    header = re.sub(r'"[^"]*"', "", first)
    return max(",;", key=header.count)  # takes the comma on a tie


def _uneven(name: str, row: Record, header: list[str], delimiter: str) -> str:
    what = {"\t": "a tab", ",": "a comma", ";": "a semicolon"}[delimiter]
    found, wanted = len(row.fields), len(header)
    holds = f"that hold {what}" if found > wanted else "with line breaks"
    return (
        f"{name} line {row.begins} has {found} field{'s' * (found != 1)} where the header has {wanted}. "
        f"Put quotes around texts {holds}."
    )


def _refuse_swallowed(name: str, lines: Lines, delimiter: str, width: int) -> None:
    """Refuse a row on several lines that may be one row a line.

    It may be where some of its cells have no quotes, every line has all fields, and in one column the lines hold cells that rows on one
    line have there, too. Texts that merely begin and end with a quote look like that.
    """
    doubtful: list[tuple[Record, list[list[str]]]] = []
    seen: list[str] = []
    for place, record in enumerate(_by_quotes(name, lines(), delimiter, seen)):
        inside = [line.split(delimiter) for text in seen if (line := text.rstrip("\r\n"))]
        seen.clear()
        if place and len(inside) > 1 and not any(len(fields) != width for fields in inside):
            cells = delimiter.join('"{}"'.format(cell.replace('"', '""')) for cell in record.fields)
            if [line for line in _LINE_END.split(cells) if line] != [delimiter.join(row) for row in inside]:
                doubtful.append((record, [[cell.strip() for cell in row] for row in inside]))
    asked = {(i, cell) for _, inside in doubtful for row in inside[:-1] for i, cell in enumerate(row) if cell}
    stands: set[tuple[int, str]] = set()
    if asked:
        for record in islice(_by_quotes(name, lines(), delimiter), 1, None):
            if record.begins == record.ends:
                stands |= asked & {(i, cell.strip()) for i, cell in enumerate(record.fields)}
    for record, inside in doubtful:
        if any(all((i, row[i]) in stands for row in inside[:-1]) for i in range(width)):
            raise RankwiseError(
                f"{name} lines {record.begins}-{record.ends} are one row if their quotes enclose a cell, and {len(inside)} rows if "
                "they are characters of the texts. Put quotes around every cell, and double the quotes inside; or write JSONL or Parquet."
            )


def _by_lines(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """Return a record for each line that isn't blank, with quotes as characters."""
    for number, line in enumerate(lines, 1):
        if text := line.rstrip("\r\n"):
            yield Record(text.split(delimiter), number, number)


def _by_quotes(
    name: str, lines: Iterable[str], delimiter: str, seen: list[str] | None = None
) -> Iterator[Record]:
    """Return the records as RFC 4180 reads them, without blank lines. What was read of the text is added to `seen`."""
    csv.field_size_limit(1 << 30)  # the default refuses texts of 128 KB
    reader = csv.reader(lines if seen is None else _noted(lines, seen), delimiter=delimiter, strict=True)
    begins = 1
    try:
        for fields in reader:
            if fields:
                yield Record(fields, begins, reader.line_num)
            elif seen is not None:
                seen.clear()
            begins = reader.line_num + 1
    except csv.Error as error:
        raise RankwiseError(
            f"{name} line {begins} can't be read: {error}. "
            "A quote inside a quoted text is written twice, and each opened quote is closed."
        ) from error


def _noted(lines: Iterable[str], seen: list[str]) -> Iterator[str]:
    for line in lines:
        seen.append(line)
        yield line
