"""Figures of an adapter's sizes: how much of what it gains each smaller size loses."""

import math
from typing import Any

from rankwise import inert
from rankwise.report.document import Document
from rankwise.report.figures.plot import Figure, Style, style_of
from rankwise.report.sizes import Sizes

WORST = 0.25
"""Loss increase, as a share of the gain, up to which sizes are drawn."""


def sizes(document: Document) -> list[Figure]:
    """Draw the loss increase of smaller sizes, with its standard error; a line a run."""
    style, made = style_of(document), []
    for place, task in enumerate(dict.fromkeys(one.task for one in document.sizes)):
        runs = [one for one in document.sizes if one.task == task]
        layout: dict[str, Any] = {
            "height": 300,
            "showlegend": False,
            "hovermode": "closest",
            "xaxis": {
                "type": "log",
                "title": {"text": "adapter parameters"},
                "tick0": 4,
                "dtick": math.log10(2),
                "tickformat": "~s",
            },
            "yaxis": {"title": {"text": "% of the gain lost"}, "rangemode": "tozero"},
        }
        data = [_line(one, style) for one in runs]
        description = "; ".join(
            f"{one.method}, seed {one.seed}: {100 * one.curve.within_loss(0.01).params / one.curve.points[0].params:.0f} % "
            "of its parameters lose 1 % of the gain"
            for one in runs
        )
        made.append(
            Figure(f"sizes-{place}", task, f"{task}: {description}", {"data": data, "layout": layout})
        )
    return made


def _line(one: Sizes, style: Style) -> dict[str, Any]:
    gain = one.curve.gain
    points = [
        point
        for place, point in enumerate(one.curve.points)
        if point.params and (place < 2 or point.loss_increase <= WORST * gain)
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [point.params for point in points],
        "y": [round(100 * point.loss_increase / gain, 3) for point in points],
        "error_y": {
            "type": "data",
            "array": [round(100 * point.error / gain, 3) for point in points],
            "color": style.colour(one.method),
            "thickness": 1,
            "width": 3,
        },
        "line": {"color": style.colour(one.method), "dash": style.dash(one.method), "width": 1.5},
        "marker": {"color": style.colour(one.method), "symbol": style.symbol(one.method), "size": 7},
        "text": [
            f"{inert.plot(one.method)}, seed {one.seed}: {point.params:,} parameters lose "
            f"{100 * point.loss_increase / gain:.2f} ± {100 * point.error / gain:.2f} % of the gain; "
            + ", ".join(f"{inert.plot(metric)} {100 * score:.2f}" for metric, score in point.scores.items())
            for point in points
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }
