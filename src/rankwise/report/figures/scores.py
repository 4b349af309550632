"""Figures of scores: means over seeds, paired differences, and score against the number of trained parameters."""

import math
from collections.abc import Sequence
from typing import Any

from rankwise import inert
from rankwise.report import units
from rankwise.report.document import Document
from rankwise.report.figures.plot import (
    Figure,
    Style,
    by_task,
    estimate_trace,
    label,
    rows_layout,
    style_of,
)
from rankwise.report.row import Row
from rankwise.report.words import count, spread


def scores(document: Document) -> list[Figure]:
    """Draw the mean and interval over seeds, single seeds, and published scores."""
    style, made = style_of(document), []
    for place, (task, rows) in enumerate(by_task(document.rows).items()):
        published = [entry for entry in document.published_scores if entry["task"] == task]
        data = [trace for y, row in enumerate(rows) for trace in _scored(row, y, style)]
        methods = list(dict.fromkeys(entry["method"] for entry in published))  # one row each
        data += [_published(entry, len(rows) + methods.index(entry["method"])) for entry in published]
        names = [label(row.method) for row in rows]
        names += [f"{inert.plot(method)}<br>(published)" for method in methods]
        layout = rows_layout(names, units.axis(rows[0].metric))
        layout["xaxis"]["range"] = _range(data, 0.02 * units.scale(rows[0].metric))
        description = ", ".join(f"{row.method} {units.estimate(row.score, row.metric)}" for row in rows)
        made.append(
            Figure(
                f"score-{place}",
                f"{task}, {rows[0].metric}",
                f"{task}: {description}",
                {"data": data, "layout": layout},
            )
        )
    return made


def differences(document: Document) -> list[Figure]:
    """Draw paired differences from full fine-tuning, with a line at 0."""
    style, made = style_of(document), []
    compared = [row for row in document.rows if row.difference is not None]
    for place, (task, rows) in enumerate(by_task(compared).items()):
        data = [trace for y, row in enumerate(rows) for trace in _scored(row, y, style, difference=True)]
        layout = rows_layout([label(row.method) for row in rows], _against(rows[0].metric))
        layout["xaxis"] |= {
            "zeroline": True,
            "zerolinewidth": 1.5,
            "range": _range(data, 0.01 * units.scale(rows[0].metric), [0.0]),
        }
        description = ", ".join(
            f"{row.method} {units.estimate(row.difference, row.metric, sign=True)}"
            for row in rows
            if row.difference is not None
        )
        made.append(
            Figure(f"difference-{place}", task, f"{task}: {description}", {"data": data, "layout": layout})
        )
    return made


def _scored(row: Row, y: int, style: Style, *, difference: bool = False) -> list[dict[str, Any]]:
    """A row's mean with its interval, and its single seeds below."""
    value, single = (row.difference, row.differences) if difference else (row.score, row.scores)
    if value is None:
        return []
    traces = [estimate_trace(row, value, y, style, sign=difference)]
    if len(single) > 1:
        shown = [
            f"{inert.plot(row.method)}, seed {seed}: {units.number(v, row.metric, sign=difference)}"
            for seed, v in single.items()
        ]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [units.drawn(v, row.metric) for v in single.values()],
                "y": [y + 0.27] * len(single),
                "marker": {"color": style.colour(row.method), "size": 5, "opacity": 0.55},
                "text": shown,
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    return traces


def _against(metric: str) -> str:
    return "points above or below full" if units.scale(metric) == 100 else f"{metric} above or below full"


def _published(entry: dict[str, Any], y: int) -> dict[str, Any]:
    about = f"{entry['method']} {entry['settings']}: {100 * entry['score']:.1f}, published, full task; {entry['source']}"
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [units.drawn(entry["score"], "")],
        "y": [y],
        "marker": {"color": "var(--muted)", "size": 11, "symbol": "diamond-open", "line": {"width": 1.5}},
        "text": [inert.plot(about)],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _range(data: Sequence[dict[str, Any]], least: float, also: Sequence[float] = ()) -> list[float]:
    """The axis range that shows every point and interval of `data` and the values `also`, at least `least` wide."""
    ends = list(also)
    for trace in data:
        half = trace.get("error_x", {}).get("array", [0.0])[0]
        ends += [x + side * half for x in trace["x"] for side in (-1, 1)]
    low, high = min(ends), max(ends)
    pad = max(0.06 * (high - low), (least - (high - low)) / 2)
    return [round(low - pad, 3), round(high + pad, 3)]


def parameters(document: Document) -> list[Figure]:
    """Draw score against the number of trained parameters."""
    style, made = style_of(document), []
    for place, (task, rows) in enumerate(by_task(document.rows).items()):
        data = []
        for row in rows:
            trace = estimate_trace(row, row.score, 0, style)
            error = trace.pop("error_x", None)
            trained = spread(row.trainable, row.trainable_range)
            shown = inert.plot(
                f"{row.method}: {units.estimate(row.score, row.metric)} {row.metric}, {trained} trained"
            )
            trace |= {"x": [row.trainable], "y": trace["x"], "text": [shown], "name": inert.plot(row.method)}
            low, high = row.trainable_range
            if low < high:  # seeds that found other ranks
                trace["error_x"] = {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - row.trainable],
                    "arrayminus": [row.trainable - low],
                    "color": style.colour(row.method),
                    "thickness": 2,
                    "width": 5,
                }
            data.append(trace | ({"error_y": error} if error else {}))
        low, high = (math.log10(f(max(row.trainable, 1) for row in rows)) for f in (min, max))
        layout = {
            "height": 300,
            "showlegend": False,
            "xaxis": {
                "type": "log",
                "title": {"text": "trained parameters"},
                "range": [low - 0.3, high + 0.3],
                "dtick": 1,
            },
            "yaxis": {"title": {"text": inert.plot(units.axis(rows[0].metric))}},
        }
        description = ", ".join(
            f"{row.method} {count(row.trainable)}, {units.estimate(row.score, row.metric)}" for row in rows
        )
        made.append(
            Figure(f"parameters-{place}", task, f"{task}: {description}", {"data": data, "layout": layout})
        )
    return made
