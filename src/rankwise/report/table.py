"""The table for the terminal, and the same figures for machines."""

from dataclasses import asdict
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankwise.progress import clock
from rankwise.report.document import Document, Row
from rankwise.stats import Estimate

HEADERS = ("task", "method", "n", "score", "Δ full", "p", "trained", "rows/s", "MB", "time")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, one cell a header."""
    more = "".join(f", {name} {value:.3f}" for name, value in row.more.items())
    return (
        row.task,
        row.method,
        str(row.score.n),
        f"{_percent(row.score)} {row.metric}{more}",
        "" if row.difference is None else _percent(row.difference, sign=True),
        "" if row.p is None else (f"{row.p:.3f}" if row.p >= 0.001 else "<0.001"),
        f"{_count(row.trainable)} ({_share(row.share)})",
        "" if row.rows_per_second is None else f"{row.rows_per_second:.0f}",
        "" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
        clock(row.train_seconds),
    )


def _percent(value: Estimate, *, sign: bool = False) -> str:
    """`86.52 ± 0.81`, in points."""
    mean = f"{100 * value.mean:+.2f}" if sign else f"{100 * value.mean:.2f}"
    return mean if value.half is None else f"{mean} ± {100 * value.half:.2f}"


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _count(n: int) -> str:
    return f"{n / 1e6:.3g}M" if n >= 1e6 else f"{n / 1e3:.3g}k" if n >= 1e3 else str(n)


def table(document: Document) -> Table:
    """One row a task and method."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in HEADERS:
        made.add_column(header, justify="left" if header in ("task", "method", "score") else "right")
    for row in document.rows:
        made.add_row(*(Text(cell) for cell in cells(row)))
    return made


def show(document: Document, stream: TextIO) -> None:
    """Prints the table and what belongs beside it; on a stream that is no terminal without colours, a sentence a line."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console = Console(file=stream, highlight=False, width=160)
    console.print()
    console.print(table(document))
    console.print()
    plain = not console.is_terminal
    for line in [*document.notes, *document.published, *document.left_out]:
        console.print(Text(line), style="dim", soft_wrap=plain)
    written = f"Written: {document.out / 'report.md'}, {document.out / 'results.parquet'}"
    console.print(Text(written), soft_wrap=plain)


def to_json(document: Document) -> dict[str, Any]:
    """The report as plain values: `rows` (one a task and method), `runs`, `notes`, `left_out`, `published`, `settings`."""
    return {**asdict(document), "out": str(document.out)}
