"""The results table of the page: each column's heading, explanation and cells in one place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankwise.report import units
from rankwise.report.document import Document
from rankwise.report.figures import Style
from rankwise.report.row import Row
from rankwise.report.stats import Estimate
from rankwise.report.words import clock, minus, probability, share, spread
from rankwise.tasks.quality import Quality, in_words


@dataclass(frozen=True)
class Cell:
    """A number of the table.

    Attributes:
        text: as shown.
        value: what the column sorts by; None sorts last.
        half: half the interval, set apart so that means align.
        arrow: points up or down where a difference is shown.
    """

    text: str = ""
    value: float | None = None
    half: str | None = None
    arrow: str = ""


@dataclass(frozen=True)
class Column:
    """A column of numbers: its heading, its explanation, and the cell of a row."""

    name: str
    about: str
    cell: Callable[[Row], Cell]


def columns(document: Document) -> list[Column]:
    """List the columns behind task and method."""
    metrics = sorted({name for row in document.rows for name in row.other_metrics})
    in_unit = units.of_differences([row.metric for row in document.rows])
    several_seeds = any(row.p_seeds is not None for row in document.rows)
    seeds = "folds" if any(row.folds for row in document.rows) else "seeds"
    p_seeds = Column(f"p {seeds}", f"Paired t test over {seeds}, Holm-corrected", lambda row: _p(row.p_seeds))
    return [
        Column("n", seeds.capitalize(), lambda row: Cell(str(row.score.n), row.score.n)),
        Column(
            "Score",
            "Mean over seeds ± half its 95 % t interval, in % where it is a share",
            lambda row: _interval(row, row.score),
        ),
        *(
            Column(name, f"Mean over seeds{', in %' if units.scale(name) > 1 else ''}", _metric(name))
            for name in metrics
        ),
        Column(
            "Δ full",
            f"Paired difference from full fine-tuning over the same seeds, {in_unit}",
            lambda row: _interval(row, row.difference, sign=True, verdict=row.verdict),
        ),
        Column(
            "p rows",
            "Exact McNemar test over validation rows, Holm-corrected",
            lambda row: _p(row.p_rows),
        ),
        *([p_seeds] if several_seeds else []),
        Column(
            "Trained",
            "Trained parameters, mean over seeds with its range, and their share of the plain model's",
            lambda row: Cell(_trained(row), row.trainable),
        ),
        Column(
            "Rows/s", "Training speed, median over seeds", lambda row: _number(row.rows_per_second, "{:.0f}")
        ),
        Column("MB", "Peak memory, median over seeds", lambda row: _number(row.peak_mb, "{:,.0f}")),
        Column(
            "Time",
            "Training time, median over seeds",
            lambda row: Cell(clock(row.train_seconds), row.train_seconds),
        ),
    ]


def cells(row: Row, columns: list[Column], style: Style) -> dict[str, Any]:
    """Make a row of the table for the template."""
    return {
        "task": row.task,
        "method": row.method,
        "colour": style.colour(row.method),
        "metric": row.metric,
        "cells": [column.cell(row) for column in columns],
    }


def _metric(name: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        value = row.other_metrics.get(name)
        return (
            Cell()
            if value is None
            else Cell(f"{units.scale(name) * value:.{1 if units.scale(name) > 1 else 4}f}", value)
        )

    return cell


def _trained(row: Row) -> str:
    return f"{spread(row.trainable, row.trainable_range)} ({share(row.trainable_share)})"


def _number(value: float | None, form: str) -> Cell:
    return Cell() if value is None else Cell(form.format(value), value)


def _p(p: float | None) -> Cell:
    return Cell() if p is None else Cell(probability(p), p)


def _interval(row: Row, value: Estimate | None, *, sign: bool = False, verdict: str | None = None) -> Cell:
    if value is None:
        return Cell()
    mean, _, half = minus(units.estimate(value, row.metric, sign=sign)).partition(" ± ")
    arrow = ("▲" if units.better(row.metric) * value.mean > 0 else "▼") if verdict == "shown" else ""
    return Cell(mean, value.mean, f"± {half}" if half else None, arrow)


def quality_headers(quality: Quality) -> list[str]:
    """Name the columns of the table of qualities."""
    first, *others = [in_words(name) for name in quality.scores]
    return [first, "95 % over rows", *others, *([] if quality.calibration is None else ["calibration error"])]


def quality_cells(quality: Quality) -> list[str]:
    """Write a method's row of that table."""
    first, *others = (_score(name, value) for name, value in quality.scores.items())
    low_high = "" if quality.interval is None else " to ".join(f"{100 * end:.1f}" for end in quality.interval)
    error = [] if quality.calibration is None else [f"{100 * quality.calibration.error:.1f}"]
    return [first, low_high, *others, *error]


def baseline_cells(quality: Quality) -> list[str]:
    """Write the row of always giving the same answer."""
    first, *others = (_score(name, value) for name, value in quality.baseline.items())
    return [first, "", *others, *([] if quality.calibration is None else [""])]


def _score(name: str, value: float) -> str:
    """Write shares in %, and errors of numbers as they are."""
    return f"{value:.4g}" if name.endswith("error") else f"{100 * value:.1f}"
