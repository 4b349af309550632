"""The results table for the terminal, and the report as plain values."""

from dataclasses import asdict, fields
from typing import Any, TextIO

from rich.table import Table

from rankwise import console
from rankwise.adapters import rank_table
from rankwise.console import text
from rankwise.report import units
from rankwise.report.document import Document
from rankwise.report.rank_pattern import summary
from rankwise.report.row import Row
from rankwise.report.words import clock, probability, share, spread

FILES = ("report.html", "report.md", "report.json", "results.parquet")
HEADERS = ("task", "method", "n", "score", "Δ full", "p rows", "trained", "rows/s", "MB", "time")


def cells(row: Row) -> tuple[str, ...]:
    """Write a row as text, one cell for each header."""
    others = "".join(f", {name} {value:.3f}" for name, value in row.other_metrics.items())
    return (
        row.task,
        row.method,
        str(row.score.n),
        f"{units.estimate(row.score, row.metric)} {row.metric}{others}",
        "" if row.difference is None else units.estimate(row.difference, row.metric, sign=True),
        "" if row.p_rows is None else probability(row.p_rows),
        f"{spread(row.trainable, row.trainable_range)} ({share(row.trainable_share)})",
        "" if row.rows_per_second is None else f"{row.rows_per_second:.0f}",
        "" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
        clock(row.train_seconds),
    )


def table(document: Document) -> Table:
    """Lay the rows out for a terminal."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in HEADERS:
        made.add_column(header, justify="left" if header in ("task", "method", "score") else "right")
    for row in document.rows:
        made.add_row(*(text(cell) for cell in cells(row)))
    return made


def rank_tables(document: Document) -> list[str]:
    """Draw the final ranks of each task and method that changed them, of several seeds their mean."""
    ranks = {(run["task"], run["method"], run["seed"]): run.get("rank") for run in document.runs}
    lines, drawn = [], set()
    for pattern in document.rank_patterns:
        cell = (pattern.task, pattern.method)
        final = ranks[(*cell, pattern.seed)]
        if cell in drawn or not final:
            continue
        drawn.add(cell)
        seeds = [
            found
            for (*of, _), found in ranks.items()
            if tuple(of) == cell and found and found.keys() == final.keys()
        ]
        whose, about = f"seed {pattern.seed}", summary(pattern)
        if len(seeds) > 1:
            (row,) = (row for row in document.rows if (row.task, row.method) == cell)
            size = spread(row.adapter_params, row.adapter_params_range)
            whose, about = f"mean of {len(seeds)} seeds", f"{size} parameters of the adapter"
            final = {path: round(sum(found[path] for found in seeds) / len(seeds)) for path in final}
        lines += [
            "",
            f"Rank pattern of {pattern.task}, {pattern.method}, {whose}: {about}.",
            *rank_table.draw(final),
        ]
    return [*lines, ""] if lines else []


def show(document: Document, stream: TextIO, *, written: bool = True) -> None:
    """Print the table, the headline and the notes. A stream that is no terminal gets no colours, and one line for each sentence.

    Args:
        document: the report.
        stream: that people read.
        written: the report's files are in the grid's folder.
    """
    shown = console.console(stream)
    shown.print()
    shown.print(table(document))
    shown.print()
    plain = not shown.is_terminal
    shown.print(text(document.answer[0]), style="bold", soft_wrap=plain)
    for line in rank_tables(document):
        shown.print(text(line), soft_wrap=plain)
    for line in [*document.notes, *document.published, *document.left_out]:
        shown.print(text(line), style="dim", soft_wrap=plain)
    if written:
        names = ", ".join(str(document.out / name) for name in FILES)
        shown.print(text(f"Written: {names}"), soft_wrap=plain)


def show_progress(document: Document, stream: TextIO) -> None:
    """Print how many runs have finished, after each report of a grid that is still running."""
    done, planned = len(document.runs), document.planned
    console.line(f"{done} of {planned} runs are finished: {document.out / FILES[0]}", stream)


def to_json(document: Document) -> dict[str, Any]:
    """Turn the report into plain values, one key for each attribute of `Document`; each row has its `verdict` too.

    Training curves, rank patterns and sizes are left out: the run folders' own logs hold them.
    """
    left_out = ("curves", "rank_patterns", "sizes")
    plain = {f.name: getattr(document, f.name) for f in fields(document) if f.name not in left_out}
    return {
        **plain,
        "out": str(document.out),
        "rows": [{**asdict(row), "verdict": row.verdict} for row in document.rows],
        "examples": [asdict(example) for example in document.examples],
        "written": [asdict(one) for one in document.written],
        "qualities": [
            {"task": task, "method": method, **quality.to_json()}
            for (task, method), quality in document.qualities.items()
        ],
        "looks": {task: look.to_json() for task, look in document.looks.items()},
    }
