"""CSV and TSV, read strictly. Whether quotes enclose cells is found from the whole file; what is malformed or ambiguous is refused."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

from rankwise.errors import RankwiseError

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class Record:
    """The header or a row: its fields, and the first and last line it stands on."""

    fields: list[str]
    begins: int
    ends: int


def read(name: str, text: str, *, tabs: bool) -> tuple[list[str], list[Record], tuple[str, ...]]:
    """Return the names of the columns, the rows, and a note if how quotes are read changes them.

    Args:
        name: of the file, for messages.
        text: its content, with a header.
        tabs: whether fields are separated by tabs; otherwise by commas or semicolons.

    Raises:
        RankwiseError: a row has another number of fields than the header, or is the header again; quotes are malformed, or can be read in
            two ways.
    """
    delimiter = "\t" if tabs else _delimiter(text)
    (first, *rows), notes = _records(name, text, delimiter)
    for row in rows:
        if len(row.fields) != len(first.fields):
            raise RankwiseError(_uneven(name, row, first, delimiter))
        if row.fields == first.fields and len(first.fields) > 1:
            raise RankwiseError(
                f"{name} line {row.begins} is the header again: several files in one? Give them one by one."
            )
    return [column.strip() for column in first.fields], rows, notes


def _delimiter(text: str) -> str:
    """Return the comma or the semicolon, by the header without its quoted names."""
    header = re.sub(r'"[^"]*"', "", _LINE_END.split(text.lstrip("\r\n"), maxsplit=1)[0])
    return max(",;", key=header.count)  # takes the comma on a tie


def _uneven(name: str, row: Record, header: Record, delimiter: str) -> str:
    what = {"\t": "a tab", ",": "a comma", ";": "a semicolon"}[delimiter]
    found, wanted = len(row.fields), len(header.fields)
    holds = f"that hold {what}" if found > wanted else "with line breaks"
    return (
        f"{name} line {row.begins} has {found} field{'s' * (found != 1)} where the header has {wanted}. "
        f"Put quotes around texts {holds}."
    )


def _records(name: str, text: str, delimiter: str) -> tuple[list[Record], tuple[str, ...]]:
    """Return the header and the rows of a whole file, and a note if how quotes are read changes them.

    A quote at the start of a cell either opens a quoted cell, which may hold delimiters and line breaks, or is a character of the text.
    In CSV it opens a cell. In TSV it does so if every row then has the header's fields, unless the file is whole with a row on each line.

    Raises:
        RankwiseError: a quoted cell is malformed, or rows may as well be texts that begin with a quote.
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
    _refuse_swallowed(name, quoted, plain, delimiter)
    lines = len(plain) - 1
    return quoted, (
        f"{name}: {_rows(quoted)} on {lines:,} lines; quoted cells hold line breaks ({_long(quoted)}).",
    )


def _refuse_swallowed(name: str, quoted: Sequence[Record], plain: Sequence[Record], delimiter: str) -> None:
    """Refuse a row on several lines that may be one row a line.

    It may be where some of its cells have no quotes, every line has all fields, and in one column the lines hold cells that rows on one
    line have there, too. Texts that merely begin and end with a quote look like that.
    """
    width, by_line = len(quoted[0].fields), {record.begins: record.fields for record in plain}
    for record in quoted[1:]:
        inside = [by_line[n] for n in range(record.begins, record.ends + 1) if n in by_line]
        if len(inside) < 2 or any(len(fields) != width for fields in inside):
            continue
        cells = delimiter.join(f'"{cell}"' for cell in (field.replace('"', '""') for field in record.fields))
        if [line for line in _LINE_END.split(cells) if line] == [delimiter.join(fields) for fields in inside]:
            continue
        if any(all(_stands(fields[i], i, quoted) for fields in inside[:-1]) for i in range(width)):
            raise RankwiseError(
                f"{name} lines {record.begins}-{record.ends} are one row if their quotes enclose a cell, and {len(inside)} rows if "
                "they are characters of the texts. Put quotes around every cell, and double the quotes inside; or write JSONL or Parquet."
            )


def _stands(cell: str, column: int, records: Sequence[Record]) -> bool:
    """Return whether a row on one line has this cell in that column."""
    rows = (record.fields for record in records[1:] if record.begins == record.ends)
    return bool(cell.strip()) and any(
        len(row) > column and row[column].strip() == cell.strip() for row in rows
    )


def _even(records: Sequence[Record]) -> bool:
    """Return whether every row has as many fields as the header."""
    return all(len(record.fields) == len(records[0].fields) for record in records)


def _rows(records: Sequence[Record]) -> str:
    return f"{len(records) - 1:,} row{'' if len(records) == 2 else 's'}"


def _long(records: Sequence[Record]) -> str:
    """Return the lines of the first records that take several."""
    spans = [f"{record.begins}-{record.ends}" for record in records if record.ends > record.begins]
    return f"lines {', '.join(spans[:3])}{f' and {len(spans) - 3:,} more' if len(spans) > 3 else ''}"


def _by_lines(text: str, delimiter: str) -> list[Record]:
    """Return a record for each line that isn't blank, with quotes as characters."""
    lines = enumerate(_LINE_END.split(text), 1)
    return [Record(line.split(delimiter), number, number) for number, line in lines if line]


def _by_quotes(name: str, text: str, delimiter: str) -> list[Record]:
    """Return the records as RFC 4180 reads them, without blank lines."""
    csv.field_size_limit(1 << 30)  # the default refuses texts of 128 KB
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, begins = [], 1
    try:
        for fields in reader:
            if fields:
                records.append(Record(fields, begins, reader.line_num))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise RankwiseError(
            f"{name} line {begins} can't be read: {error}. "
            "A quote inside a quoted text is written twice, and each opened quote is closed."
        ) from error
    return records
