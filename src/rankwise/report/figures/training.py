"""Figures of the training curves: loss, and validation score where it was asked for."""

from typing import Any

from rankwise import inert
from rankwise.report import units
from rankwise.report.curves import Curve
from rankwise.report.document import Document
from rankwise.report.figures.plot import Figure, Style, style_of


def losses(document: Document) -> list[Figure]:
    """Draw training loss by step: the mean over seeds, in a band from the lowest seed to the highest."""
    style, made = style_of(document), []
    tasks = list(dict.fromkeys(curve.task for curve in document.curves))
    for place, task in enumerate(tasks):
        curves = [curve for curve in document.curves if curve.task == task]
        data = [_band(curve, style) for curve in curves if curve.n > 1]
        data += [_line(curve, style) for curve in curves]
        layout = {
            "height": 300,
            "showlegend": False,
            "hovermode": "closest",
            "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "training loss"}},
        }
        description = ", ".join(
            f"{curve.method} from {curve.loss[0]:.3f} to {curve.loss[-1]:.3f}" for curve in curves
        )
        made.append(Figure(f"loss-{place}", task, f"{task}: {description}", {"data": data, "layout": layout}))
    return made


def _line(curve: Curve, style: Style) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines" if len(curve.steps) > 1 else "markers",
        "name": inert.plot(curve.method),
        "x": curve.steps,
        "y": curve.loss,
        "line": {"color": style.colour(curve.method), "width": 2, "dash": style.dash(curve.method)},
        "hovertemplate": f"{inert.plot(curve.method)}, step %{{x}}: %{{y:.4f}}<extra></extra>",
    }


def _band(curve: Curve, style: Style) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": curve.steps + curve.steps[::-1],
        "y": curve.high + curve.low[::-1],
        "fill": "toself",
        "fillcolor": style.colour(curve.method),
        "opacity": 0.1,
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def validation(document: Document) -> list[Figure]:
    """Draw the validation score during training, where it was asked for."""
    style, made = style_of(document), []
    scored = [curve for curve in document.curves if curve.scored]
    for place, task in enumerate(dict.fromkeys(curve.task for curve in scored)):
        curves = [curve for curve in scored if curve.task == task]
        data = [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": inert.plot(curve.method),
                "x": curve.scored,
                "y": [units.drawn(score, curve.metric) for score in curve.scores],
                "line": {"color": style.colour(curve.method), "width": 2, "dash": style.dash(curve.method)},
                "hovertemplate": f"{inert.plot(curve.method)}, step %{{x}}: %{{y:.4~f}}<extra></extra>",
            }
            for curve in curves
        ]
        layout = {
            "height": 300,
            "showlegend": False,
            "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": inert.plot(units.axis(curves[0].metric))}},
        }
        description = ", ".join(
            f"{curve.method} {units.number(curve.scores[-1], curve.metric)} at step {curve.scored[-1]}"
            for curve in curves
        )
        made.append(
            Figure(f"validation-{place}", task, f"{task}: {description}", {"data": data, "layout": layout})
        )
    return made
