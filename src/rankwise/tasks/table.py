"""What a table is: columns by name, and the line that each row begins at, so that an error can say where it is."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rankwise.errors import RankwiseError, first_line


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
                f"{self.name}: column {name!r} can't be read ({first_line(error)}). Write it as text or numbers."
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
