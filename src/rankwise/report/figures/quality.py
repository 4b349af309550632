"""Figures of how good predictions are: confusion matrices, and calibration."""

from typing import Any

from rankwise import inert
from rankwise.report.document import Document
from rankwise.report.figures.plot import Figure, style_of
from rankwise.tasks.quality import Quality

NUMBERED = 12
"""Classes of a matrix whose cells have numbers at most."""
CELL = 34
"""Height of a row of a matrix in pixels; less where there are many classes."""


def confusions(document: Document, task: str) -> list[Figure]:
    """Draw each method's confusion matrix: the share of each class's rows by the class that is predicted."""
    made = []
    for place, ((of, method), quality) in enumerate(document.qualities.items()):
        if of == task and quality.confusion is not None:
            spec = _matrix(quality, quality.confusion)
            made.append(
                Figure(f"confusion-{place}", method, f"{task}, {method}: {_described(quality)}", spec)
            )
    return made


def _described(quality: Quality) -> str:
    return ", ".join(
        f"{one.name} recall {one.recall:.3f}, precision {one.precision:.3f}" for one in quality.classes
    )


def _matrix(quality: Quality, counts: list[list[int]]) -> dict[str, Any]:
    names = [one.name for one in quality.classes]
    ticks = [inert.plot(name if len(name) <= 14 else f"{name[:13]}…") for name in names]
    shares = [[n / max(1, sum(row)) for n in row] for row in counts]
    height = CELL if len(names) <= NUMBERED else max(6, 480 // len(names))
    places = list(range(len(names)))
    heat: dict[str, Any] = {
        "type": "heatmap",
        "x": places,
        "y": places,
        "z": [[round(share, 4) for share in row] for row in shares],
        "zmin": 0,
        "zmax": 1,
        "colorscale": "shares",
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "customdata": [
            [f"{inert.plot(a)} predicted as {inert.plot(b)}: {n:,}" for b, n in zip(names, row, strict=True)]
            for a, row in zip(names, counts, strict=True)
        ],
        "hovertemplate": "%{customdata}, %{z:.1%} of the class<extra></extra>",
    }
    if len(names) <= NUMBERED:
        heat["text"] = [[f"{100 * share:.0f} %" if share else "" for share in row] for row in shares]
        heat["texttemplate"] = "%{text}"
    axis = {"tickvals": places, "ticktext": ticks, "showgrid": False}
    if len(names) > NUMBERED:
        axis = {"showticklabels": False, "showgrid": False}
    layout = {
        "height": 90 + max(90, height * len(names)),
        "showlegend": False,
        "xaxis": {**axis, "title": {"text": "predicted"}, "range": [-0.5, len(names) - 0.5]},
        "yaxis": {**axis, "title": {"text": "label"}, "range": [len(names) - 0.5, -0.5]},
    }
    return {"data": [heat], "layout": layout}


def calibration(document: Document, task: str) -> list[Figure]:
    """Draw the share of right predictions by their probability, a line for each method; on the diagonal both are the same."""
    style = style_of(document)
    found = [
        (method, quality.calibration)
        for (of, method), quality in document.qualities.items()
        if of == task and quality.calibration is not None
    ]
    if not found:
        return []
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [0, 100],
            "y": [0, 100],
            "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    for method, curve in found:
        bins = zip(curve.confidence, curve.right, curve.rows, strict=True)
        shown = inert.plot(method)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": shown,
                "x": [round(100 * x, 2) for x in curve.confidence],
                "y": [round(100 * y, 2) for y in curve.right],
                "text": [f"{shown}: {100 * y:.1f} % right of {n:,} at {100 * x:.1f} %" for x, y, n in bins],
                "line": {"color": style.colour(method), "width": 2, "dash": style.dash(method)},
                "marker": {"size": 7, "symbol": style.symbol(method)},
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    low = 10 * int(min(min(curve.confidence + curve.right) for _, curve in found) * 10)
    layout = {
        "height": 300,
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {"title": {"text": "probability of the prediction in %"}, "range": [low, 101]},
        "yaxis": {"title": {"text": "right in %"}, "range": [low, 101]},
    }
    place = list(dict.fromkeys(of for of, _ in document.qualities)).index(task)
    described = ", ".join(f"{method} {curve.error:.3f}" for method, curve in found)
    description = f"{task}: expected calibration error {described}"
    return [Figure(f"calibration-{place}", "Calibration", description, {"data": data, "layout": layout})]
