"""Figures of rank patterns: each layer's rank over the steps, the decisions on top, and memory underneath."""

import math
from typing import Any

from rankwise import inert
from rankwise.report.document import Document
from rankwise.report.figures.plot import KINDS, Figure
from rankwise.report.rank_pattern import RankPattern, summary

LEGEND_HEIGHT = 240
"""Height of the colour bar in pixels at most."""


def ranks(document: Document) -> list[Figure]:
    """Draw each layer's rank over the steps, with a mark and the evidence at each decision."""
    return [
        Figure(
            f"ranks-{place}",
            f"{pattern.task}, {pattern.method}, seed {pattern.seed}",
            summary(pattern),
            {"data": _heat(pattern), "layout": _heat_layout(pattern)},
        )
        for place, pattern in enumerate(document.rank_patterns)
    ]


def _heat(pattern: RankPattern) -> list[dict[str, Any]]:
    layers = [inert.plot(layer) for layer in pattern.layers]
    highest = max((rank for row in pattern.ranks for rank in row if rank is not None), default=1)
    ticks = [0, *(2**k for k in range(max(highest, 1).bit_length()))]
    cells = {
        "type": "heatmap",
        "x": pattern.edges,
        "y": layers,
        "z": pattern.ranks,  # the page maps ranks to colours on a log2 scale
        "zmin": 0,
        "zmax": math.log2(1 + max(ticks[-1], highest)),
        "hovertemplate": "%{y}: rank %{text}<extra></extra>",
        "colorscale": "ranks",
        "ygap": 1,
        "colorbar": {
            "title": {"text": "rank"},
            "tickvals": [math.log2(1 + tick) for tick in ticks],
            "ticktext": [str(tick) for tick in ticks],
            "thickness": 12,
            "lenmode": "pixels",
            "len": min(LEGEND_HEIGHT, _height(pattern)),
            "y": 1,
            "yanchor": "top",
            "outlinewidth": 0,
        },
    }
    return [cells, *(_marks(pattern, layers, accepted) for accepted in (True, False))]


def _marks(pattern: RankPattern, layers: list[str], accepted: bool) -> dict[str, Any]:
    """The decisions of one kind, one mark for each layer and step.

    Several decisions at one step share a mark, which counts as accepted if one of them was.
    """
    decisions: dict[tuple[int, str], list[tuple[bool, str]]] = {}  # (step, layer) → (accepted, text)
    for decision in pattern.decisions:
        for layer, (before, after) in decision.changes.items():
            if before != after:
                rejected = "" if decision.accepted else " (rejected)"
                text = f"{inert.plot(decision.text)}<br>{inert.plot(layer)}: {before} → {after}{rejected}"
                decisions.setdefault((decision.step, inert.plot(layer)), []).append((decision.accepted, text))
    marks = {place: made for place, made in decisions.items() if any(done for done, _ in made) == accepted}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [step for step, _ in marks],
        "y": [layer for _, layer in marks],
        "text": ["<br>".join(text for _, text in made) for made in marks.values()],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": "var(--panel)" if accepted else "var(--rejected)",
            "size": 7,
            "symbol": "circle" if accepted else "x-thin",
            "line": {
                "color": "var(--ink)" if accepted else "var(--rejected)",
                "width": 1.2 if accepted else 2,
            },
        },
    }


def rank_memory(document: Document) -> dict[str, Figure]:
    """Draw memory by kind over the steps of each run that recorded it.

    Returns:
        Key of the rank figure → the figure to show under it.
    """
    made = {}
    for place, pattern in enumerate(document.rank_patterns):
        if not pattern.memory:
            continue
        steps, peaks = list(pattern.memory), list(pattern.memory.values())
        present = [kind for kind in KINDS if any(peak.get(kind) for peak in peaks)]
        data = [
            {
                "type": "scatter",
                "mode": "lines",
                "stackgroup": "kinds",
                "name": kind,
                "x": steps,
                "y": [round(peak.get(kind, 0.0), 2) for peak in peaks],
                "fillcolor": f"var(--{kind})",
                "line": {"width": 0, "color": f"var(--{kind})"},
                "hovertemplate": f"step %{{x}}, {kind}: %{{y:,.1f}} MB<extra></extra>",
            }
            for kind in present
        ]
        layout = {
            "height": 240,
            "showlegend": False,
            "hovermode": "closest",
            "xaxis": {"title": {"text": "step"}, "range": [pattern.edges[0], pattern.edges[-1]]},
            "yaxis": {"title": {"text": "MB"}, "rangemode": "tozero"},
        }
        totals = [sum(peak.get(kind, 0.0) for kind in KINDS) for peak in peaks]
        description = (
            f"memory {totals[0]:,.0f} MB at step {steps[0]}, {max(totals):,.0f} MB at most, "
            f"{totals[-1]:,.0f} MB at step {steps[-1]}"
        )
        made[f"ranks-{place}"] = Figure(
            f"ranks-{place}-memory",
            "Peak memory of recorded steps",
            description,
            {"data": data, "layout": layout},
        )
    return made


def _height(pattern: RankPattern) -> int:
    """Height of all rows in pixels: 24 for each layer, 15 where there are many."""
    return max(15, min(24, 900 // max(1, len(pattern.layers)))) * len(pattern.layers)


def _heat_layout(pattern: RankPattern) -> dict[str, Any]:
    return {
        "height": 90 + _height(pattern),
        "showlegend": False,
        "xaxis": {
            "title": {"text": "step"},
            "range": [pattern.edges[0], pattern.edges[-1]],
            "showgrid": False,
        },
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [inert.plot(layer) for layer in pattern.layers][::-1],
            "range": [-0.5, len(pattern.layers) - 0.5],
            "showgrid": False,
            "tickfont": {"size": 11},
            "dtick": 1,
        },
    }
