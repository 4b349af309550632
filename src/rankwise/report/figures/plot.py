"""What all figures share: the plot itself, each method's colour and symbol, and the layout of horizontal rows.

Figures are plain values in plotly's schema. Colours are names (`var(--m0)`), which the page replaces by those of its light or dark
scheme. Tasks differ in scale, so each has a small figure of its own.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rankwise import inert
from rankwise.report import units
from rankwise.report.document import Document
from rankwise.report.row import REFERENCE, Row
from rankwise.report.stats import Estimate

COLOURS = 7
"""Colours of methods other than full fine-tuning, in the page's style sheet. Further methods repeat them with another symbol."""
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
KINDS = ("weights", "gradients", "optimizer", "activations", "batch", "workspace")
"""Kinds of memory, in the order in which they are stacked."""
ROW_HEIGHT = 30
"""Height of a method's row in pixels."""


@dataclass(frozen=True)
class Figure:
    """A plot of the page.

    Attributes:
        key: its element's id.
        title: stands above it.
        description: what it shows, for screen readers.
        spec: plotly's `data` and `layout`.
    """

    key: str
    title: str
    description: str
    spec: dict[str, Any]


class Style:
    """Each method's colour, symbol and dash, the same in every figure."""

    def __init__(self, methods: Sequence[str], references: Collection[str] = (REFERENCE,)) -> None:
        others = [method for method in methods if method not in references]
        self._references = references
        self._place = {method: place for place, method in enumerate(others)}

    def colour(self, method: str) -> str:
        """The name of its colour in the style sheet."""
        return "var(--full)" if method in self._references else f"var(--m{self._place[method] % COLOURS})"

    def symbol(self, method: str) -> str:
        """Plotly's name of its symbol."""
        return (
            "circle" if method in self._references else SYMBOLS[self._place[method] // COLOURS % len(SYMBOLS)]
        )

    def dash(self, method: str) -> str:
        """Plotly's name of its line style."""
        return "solid" if method in self._references else DASHES[self._place[method] // COLOURS % len(DASHES)]


def style_of(document: Document) -> Style:
    """Assign colours and symbols in the order of the table."""
    references = {row.method for row in document.rows if row.reference}
    return Style(list(dict.fromkeys(row.method for row in document.rows)), references)


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows by task."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    return tasks


def label(method: str) -> str:
    """Write a method's name for an axis, with long options on lines of their own."""
    name, _, options = method.partition(":")
    if len(method) <= 16:
        return inert.plot(method)
    return "<br>".join(inert.plot(part) for part in [f"{name}:", *options.split(",")] if part)


def rows_layout(names: Sequence[str], x: str) -> dict[str, Any]:
    """Lay out horizontal rows at y = 0, 1, 2 …, the first on top.

    Args:
        names: of the rows, as `label` writes them.
        x: title of the horizontal axis.
    """
    lines = sum(1 + name.count("<br>") / 2 for name in names)
    return {
        "height": round(72 + ROW_HEIGHT * lines),
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {"title": {"text": inert.plot(x)}},
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": list(names),
            "range": [len(names) - 0.4, -0.6],
            "showgrid": False,
            "ticklabelstandoff": 6,
        },
    }


def estimate_trace(
    row: Row, value: Estimate, y: float, style: Style, *, sign: bool = False
) -> dict[str, Any]:
    """A mean at (mean, y), with its interval where there is one."""
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": [units.drawn(value.mean, row.metric)],
        "y": [y],
        "marker": {
            "color": style.colour(row.method),
            "size": 11,
            "symbol": style.symbol(row.method),
            "line": {"color": "var(--panel)", "width": 1.5},
        },
        "text": [f"{inert.plot(row.method)}: {units.estimate(value, row.metric, sign=sign)}, n = {value.n}"],
        "hovertemplate": "%{text}<extra></extra>",
    }
    if value.half is not None:
        trace["error_x"] = {
            "type": "data",
            "array": [units.drawn(value.half, row.metric)],
            "color": style.colour(row.method),
            "thickness": 2,
            "width": 5,
        }
    return trace
