"""Figures of what training costs: peak memory and speed."""

from collections.abc import Sequence
from typing import Any

from rankwise import inert
from rankwise.report.document import Document
from rankwise.report.figures.plot import KINDS, Figure, Style, by_task, label, rows_layout, style_of
from rankwise.report.row import Row


def memory(document: Document) -> list[Figure]:
    """Draw peak memory, stacked by kind where every run of the task recorded it by kind."""
    style, made = style_of(document), []
    measured = [row for row in document.rows if row.peak_mb is not None]
    for place, (task, rows) in enumerate(by_task(measured).items()):
        by_kind = all(row.memory for row in rows)
        layout = rows_layout([label(row.method) for row in rows], "peak MB")
        layout |= {"barmode": "stack", "bargap": 0.45}
        layout["xaxis"] |= {"range": [0, 1.15 * max(row.peak_mb or 0.0 for row in rows)]}
        peaks = [row.peak_mb for row in rows]
        data = _stacked(rows) if by_kind else _bars(peaks, rows, style, "MB")
        description = ", ".join(f"{row.method} {row.peak_mb:,.0f} MB" for row in rows)
        made.append(
            Figure(f"memory-{place}", task, f"{task}: {description}", {"data": data, "layout": layout})
        )
    return made


def _stacked(rows: Sequence[Row]) -> list[dict[str, Any]]:
    traces = []
    present = {kind for row in rows for kind, mb in (row.memory or {}).items() if mb and kind != "total"}
    for kind in [k for k in KINDS if k in present] + sorted(present - {*KINDS}):
        values = [(row.memory or {}).get(kind) or 0.0 for row in rows]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": inert.plot(kind),
                "x": [round(value, 2) for value in values],
                "y": list(range(len(rows))),
                "marker": {
                    "color": f"var(--{kind})" if kind in KINDS else "var(--muted)",
                    "line": {"color": "var(--panel)", "width": 1},
                },
                "text": [
                    f"{inert.plot(row.method)}, {inert.plot(kind)}: {value:,.1f} of {row.peak_mb:,.0f} MB"
                    for row, value in zip(rows, values, strict=True)
                ],
                "textposition": "none",
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    total = {
        "type": "scatter",
        "mode": "text",
        "x": [row.peak_mb for row in rows],
        "y": list(range(len(rows))),
        "text": [f" {row.peak_mb:,.0f}" for row in rows],
        "textposition": "middle right",
        "cliponaxis": False,
        "hoverinfo": "skip",
    }
    return [*traces, total]


def _bars(
    values: Sequence[float | None], rows: Sequence[Row], style: Style, unit: str
) -> list[dict[str, Any]]:
    return [
        {
            "type": "bar",
            "orientation": "h",
            "x": [None if value is None else round(value, 2) for value in values],
            "y": list(range(len(rows))),
            "marker": {"color": [style.colour(row.method) for row in rows]},
            "text": [f"{value:,.0f}" if value is not None else "" for value in values],
            "textposition": "inside",
            "insidetextanchor": "start",
            "insidetextfont": {"color": "var(--panel)"},
            "hovertemplate": "%{x:,.0f} " + unit + "<extra></extra>",
        }
    ]


def speed(document: Document) -> list[Figure]:
    """Draw training rows per second: the median seed, with a bar from the slowest to the fastest."""
    style, made = style_of(document), []
    measured = [row for row in document.rows if row.rows_per_second]
    for place, (task, rows) in enumerate(by_task(measured).items()):
        layout = rows_layout([label(row.method) for row in rows], "training rows/s")
        layout |= {"bargap": 0.45}
        layout["xaxis"] |= {"rangemode": "tozero"}
        data = _bars([row.rows_per_second for row in rows], rows, style, "rows/s")
        median = [row.rows_per_second or 0.0 for row in rows]
        if any(len(row.speeds) > 1 for row in rows):
            data[0]["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": [round(max(row.speeds) - m, 2) for row, m in zip(rows, median, strict=True)],
                "arrayminus": [round(m - min(row.speeds), 2) for row, m in zip(rows, median, strict=True)],
                "color": "var(--ink)",
                "thickness": 1,
                "width": 3,
            }
        description = ", ".join(f"{row.method} {row.rows_per_second:.0f} rows/s" for row in rows)
        made.append(
            Figure(f"speed-{place}", task, f"{task}: {description}", {"data": data, "layout": layout})
        )
    return made
