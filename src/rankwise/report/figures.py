"""The page's figures as plain values in plotly's own schema. Colours are names (`var(--m0)`) that the page fills in for light and dark.

One small figure a task, side by side, because tasks differ in scale; a method has one colour and one symbol throughout.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.report.curves import Curve
from rankwise.report.document import Document
from rankwise.report.rank_pattern import RankMap, held
from rankwise.report.row import REFERENCE, Row
from rankwise.report.stats import Estimate
from rankwise.report.words import count, percent

COLOURS = 7
"""Of methods other than full fine-tuning, in the page's style sheet; further methods repeat them with another symbol."""
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
KINDS = ("weights", "gradients", "optimizer", "activations", "batch", "workspace")
"""Of memory, in the order they are stacked."""
ROW = 30
"""Height of a method's row in pixels."""


@dataclass(frozen=True)
class Figure:
    """A plot of the page.

    Attributes:
        key: its element's id.
        title: above it.
        says: what it shows, for whoever doesn't see it.
        spec: plotly's data and layout.
    """

    key: str
    title: str
    says: str
    spec: dict[str, Any]


class Look:
    """Each method's colour, symbol and dash, the same in every figure."""

    def __init__(self, methods: Sequence[str]) -> None:
        others = [method for method in methods if method != REFERENCE]
        self._place = {method: place for place, method in enumerate(others)}

    def colour(self, method: str) -> str:
        return "var(--full)" if method == REFERENCE else f"var(--m{self._place[method] % COLOURS})"

    def symbol(self, method: str) -> str:
        return "circle" if method == REFERENCE else SYMBOLS[self._place[method] // COLOURS % len(SYMBOLS)]

    def dash(self, method: str) -> str:
        return "solid" if method == REFERENCE else DASHES[self._place[method] // COLOURS % len(DASHES)]


def look(document: Document) -> Look:
    return Look(list(dict.fromkeys(row.method for row in document.rows)))


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    return tasks


def plain(text: str) -> str:
    """Text from data as plotly shows it literally: it knows a little HTML."""
    return html.escape(str(text), quote=False)


def label(method: str) -> str:
    """A method's name in an axis: long options on lines of their own."""
    name, _, options = method.partition(":")
    if len(method) <= 16:
        return plain(method)
    return "<br>".join(plain(part) for part in [f"{name}:", *options.split(",")] if part)


# ── Scores ────────────────────────────────────────────────────────────────────────────────────


def scores(document: Document) -> list[Figure]:
    """Mean and interval over seeds, single seeds, and published figures."""
    looks, made = look(document), []
    for place, (task, rows) in enumerate(by_task(document.rows).items()):
        published = [entry for entry in document.published_scores if entry["task"] == task]
        data = [trace for y, row in enumerate(rows) for trace in _scored(row, y, looks)]
        data += [_published(entry, len(rows) + y) for y, entry in enumerate(published)]
        names = [label(row.method) for row in rows]
        names += [f"{plain(entry['method'])}<br>(published)" for entry in published]
        layout = _rows_layout(names, f"{rows[0].metric} in %")
        layout["xaxis"]["range"] = _range(data, 2.0)
        said = ", ".join(f"{row.method} {percent(row.score)}" for row in rows)
        made.append(
            Figure(f"score-{place}", f"{task}, {rows[0].metric}", f"{task}: {said}", _spec(data, layout))
        )
    return made


def differences(document: Document) -> list[Figure]:
    """Paired differences to full fine-tuning, with 0 as a line."""
    looks, made = look(document), []
    compared = [row for row in document.rows if row.difference is not None]
    for place, (task, rows) in enumerate(by_task(compared).items()):
        data = [trace for y, row in enumerate(rows) for trace in _scored(row, y, looks, difference=True)]
        layout = _rows_layout([label(row.method) for row in rows], "points more or less than full")
        layout["xaxis"] |= {"zeroline": True, "zerolinewidth": 1.5, "range": _range(data, 1.0, [0.0])}
        said = ", ".join(
            f"{row.method} {percent(row.difference, sign=True)}" for row in rows if row.difference is not None
        )
        made.append(Figure(f"difference-{place}", task, f"{task}: {said}", _spec(data, layout)))
    return made


def _scored(row: Row, y: int, looks: Look, *, difference: bool = False) -> list[dict[str, Any]]:
    """A row's mean with its interval, and below it its single seeds."""
    value, single = (row.difference, row.differences) if difference else (row.score, row.scores)
    sign = "+" if difference else ""
    if value is None:
        return []
    traces = [_estimate(row, value, y, looks, sign=difference)]
    if len(single) > 1:
        shown = [f"{plain(row.method)}, seed {seed}: {100 * v:{sign}.2f}" for seed, v in single.items()]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [_points(v) for v in single.values()],
                "y": [y + 0.27] * len(single),
                "marker": {"color": looks.colour(row.method), "size": 5, "opacity": 0.55},
                "text": shown,
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    return traces


def _estimate(row: Row, value: Estimate, y: float, looks: Look, *, sign: bool = False) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": [_points(value.mean)],
        "y": [y],
        "marker": {
            "color": looks.colour(row.method),
            "size": 11,
            "symbol": looks.symbol(row.method),
            "line": {"color": "var(--panel)", "width": 1.5},
        },
        "text": [f"{plain(row.method)}: {percent(value, sign=sign)}, n = {value.n}"],
        "hovertemplate": "%{text}<extra></extra>",
    }
    if value.half is not None:
        trace["error_x"] = {
            "type": "data",
            "array": [_points(value.half)],
            "color": looks.colour(row.method),
            "thickness": 2,
            "width": 5,
        }
    return trace


def _published(entry: dict[str, Any], y: int) -> dict[str, Any]:
    about = f"{entry['method']} {entry['settings']}: {100 * entry['score']:.1f}, published, full task; {entry['source']}"
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [_points(entry["score"])],
        "y": [y],
        "marker": {"color": "var(--muted)", "size": 11, "symbol": "diamond-open", "line": {"width": 1.5}},
        "text": [plain(about)],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _range(data: Sequence[dict[str, Any]], least: float, also: Sequence[float] = ()) -> list[float]:
    """From the smallest to the largest that is drawn, intervals included, and no narrower than `least`."""
    ends = list(also)
    for trace in data:
        half = trace.get("error_x", {}).get("array", [0.0])[0]
        ends += [x + side * half for x in trace["x"] for side in (-1, 1)]
    low, high = min(ends), max(ends)
    pad = max(0.06 * (high - low), (least - (high - low)) / 2)
    return [round(low - pad, 3), round(high + pad, 3)]


def _rows_layout(names: Sequence[str], x: str) -> dict[str, Any]:
    """Horizontal rows at 0, 1, 2 …, the first on top."""
    lines = sum(1 + name.count("<br>") / 2 for name in names)
    return {
        "height": round(72 + ROW * lines),
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {"title": {"text": plain(x)}},
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": list(names),
            "range": [len(names) - 0.4, -0.6],
            "showgrid": False,
            "ticklabelstandoff": 6,
        },
    }


def _spec(data: list[dict[str, Any]], layout: dict[str, Any]) -> dict[str, Any]:
    return {"data": data, "layout": layout}


# ── Cost ──────────────────────────────────────────────────────────────────────────────────────


def memory(document: Document) -> list[Figure]:
    """Peak memory, stacked by kind where it was followed by kind."""
    looks, made = look(document), []
    measured = [row for row in document.rows if row.peak_mb is not None]
    for place, (task, rows) in enumerate(by_task(measured).items()):
        split = all(row.memory for row in rows)
        layout = _rows_layout([label(row.method) for row in rows], "MB at the peak")
        layout |= {"barmode": "stack", "bargap": 0.45}
        layout["xaxis"] |= {"range": [0, 1.15 * max(row.peak_mb or 0.0 for row in rows)]}
        peaks = [row.peak_mb for row in rows]
        data = _stacked(rows) if split else _bars(peaks, rows, looks, "MB")
        said = ", ".join(f"{row.method} {row.peak_mb:,.0f} MB" for row in rows)
        made.append(Figure(f"memory-{place}", task, f"{task}: {said}", _spec(data, layout)))
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
                "name": plain(kind),
                "x": [round(value, 2) for value in values],
                "y": list(range(len(rows))),
                "marker": {
                    "color": f"var(--{kind})" if kind in KINDS else "var(--muted)",
                    "line": {"color": "var(--panel)", "width": 1},
                },
                "text": [
                    f"{plain(row.method)}, {plain(kind)}: {value:,.1f} of {row.peak_mb:,.0f} MB"
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
    values: Sequence[float | None], rows: Sequence[Row], looks: Look, unit: str
) -> list[dict[str, Any]]:
    return [
        {
            "type": "bar",
            "orientation": "h",
            "x": [None if value is None else round(value, 2) for value in values],
            "y": list(range(len(rows))),
            "marker": {"color": [looks.colour(row.method) for row in rows]},
            "text": [f"{value:,.0f}" if value is not None else "" for value in values],
            "textposition": "inside",
            "insidetextanchor": "start",
            "insidetextfont": {"color": "var(--panel)"},
            "hovertemplate": "%{x:,.0f} " + unit + "<extra></extra>",
        }
    ]


def speed(document: Document) -> list[Figure]:
    """Training rows a second: the median seed, and from the slowest to the fastest."""
    looks, made = look(document), []
    measured = [row for row in document.rows if row.rows_per_second]
    for place, (task, rows) in enumerate(by_task(measured).items()):
        layout = _rows_layout([label(row.method) for row in rows], "training rows/s")
        layout |= {"bargap": 0.45}
        layout["xaxis"] |= {"rangemode": "tozero"}
        data = _bars([row.rows_per_second for row in rows], rows, looks, "rows/s")
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
        said = ", ".join(f"{row.method} {row.rows_per_second:.0f} rows/s" for row in rows)
        made.append(Figure(f"speed-{place}", task, f"{task}: {said}", _spec(data, layout)))
    return made


def parameters(document: Document) -> list[Figure]:
    """Score against the number of trained parameters."""
    looks, made = look(document), []
    for place, (task, rows) in enumerate(by_task(document.rows).items()):
        data = []
        for row in rows:
            trace = _estimate(row, row.score, 0, looks)
            error = trace.pop("error_x", None)
            shown = f"{plain(row.method)}: {percent(row.score)} {plain(row.metric)}, {count(row.trainable)} trained"
            trace |= {"x": [row.trainable], "y": trace["x"], "text": [shown], "name": plain(row.method)}
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
            "yaxis": {"title": {"text": plain(f"{rows[0].metric} in %")}},
        }
        said = ", ".join(f"{row.method} {count(row.trainable)}, {percent(row.score)}" for row in rows)
        made.append(Figure(f"parameters-{place}", task, f"{task}: {said}", _spec(data, layout)))
    return made


# ── Training ──────────────────────────────────────────────────────────────────────────────────


def losses(document: Document) -> list[Figure]:
    """Training loss by step: the mean over seeds in a band from the least to the greatest."""
    looks, made = look(document), []
    tasks = list(dict.fromkeys(curve.task for curve in document.curves))
    for place, task in enumerate(tasks):
        curves = [curve for curve in document.curves if curve.task == task]
        data = [_band(curve, looks) for curve in curves if curve.n > 1]
        data += [_line(curve, looks) for curve in curves]
        layout = {
            "height": 300,
            "showlegend": False,
            "hovermode": "closest",
            "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "training loss"}},
        }
        said = ", ".join(
            f"{curve.method} from {curve.loss[0]:.3f} to {curve.loss[-1]:.3f}" for curve in curves
        )
        made.append(Figure(f"loss-{place}", task, f"{task}: {said}", _spec(data, layout)))
    return made


def _line(curve: Curve, looks: Look) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines" if len(curve.steps) > 1 else "markers",
        "name": plain(curve.method),
        "x": curve.steps,
        "y": curve.loss,
        "line": {"color": looks.colour(curve.method), "width": 2, "dash": looks.dash(curve.method)},
        "hovertemplate": f"{plain(curve.method)}, step %{{x}}: %{{y:.4f}}<extra></extra>",
    }


def _band(curve: Curve, looks: Look) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": curve.steps + curve.steps[::-1],
        "y": curve.high + curve.low[::-1],
        "fill": "toself",
        "fillcolor": looks.colour(curve.method),
        "opacity": 0.1,
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def validation(document: Document) -> list[Figure]:
    """The validation score while training, where it was asked for."""
    looks, made = look(document), []
    scored = [curve for curve in document.curves if curve.scored]
    for place, task in enumerate(dict.fromkeys(curve.task for curve in scored)):
        curves = [curve for curve in scored if curve.task == task]
        data = [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(curve.method),
                "x": curve.scored,
                "y": [_points(score) for score in curve.scores],
                "line": {"color": looks.colour(curve.method), "width": 2, "dash": looks.dash(curve.method)},
                "hovertemplate": f"{plain(curve.method)}, step %{{x}}: %{{y:.2f}}<extra></extra>",
            }
            for curve in curves
        ]
        layout = {
            "height": 300,
            "showlegend": False,
            "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": plain(f"{curves[0].metric} in %")}},
        }
        said = ", ".join(
            f"{curve.method} {100 * curve.scores[-1]:.2f} at step {curve.scored[-1]}" for curve in curves
        )
        made.append(Figure(f"validation-{place}", task, f"{task}: {said}", _spec(data, layout)))
    return made


# ── Ranks ─────────────────────────────────────────────────────────────────────────────────────


def ranks(document: Document) -> list[Figure]:
    """Each layer's rank from the first step to the last; the decisions stand on it with their evidence."""
    return [
        Figure(
            f"ranks-{place}",
            f"{rank_map.task}, {rank_map.method}, seed {rank_map.seed}",
            held(rank_map),
            {"data": _heat(rank_map), "layout": _heat_layout(rank_map)},
        )
        for place, rank_map in enumerate(document.maps)
    ]


def _heat(rank_map: RankMap) -> list[dict[str, Any]]:
    layers = [plain(layer) for layer in rank_map.layers]
    highest = max((rank for row in rank_map.ranks for rank in row if rank is not None), default=1)
    ticks = [0, *(2**k for k in range(max(highest, 1).bit_length()))]
    cells = {
        "type": "heatmap",
        "x": rank_map.edges,
        "y": layers,
        "z": rank_map.ranks,  # the page colours them by doublings, as the colour bar's ticks are
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
            "outlinewidth": 0,
        },
    }
    return [cells, *(_marks(rank_map, layers, accepted) for accepted in (True, False))]


def _marks(rank_map: RankMap, layers: list[str], accepted: bool) -> dict[str, Any]:
    """One mark a layer and step: what was done, with what was tried before it; or what was tried for nothing."""
    tried: dict[tuple[int, str], list[tuple[bool, str]]] = {}
    for decision in rank_map.decisions:
        for layer, (before, after) in decision.changes.items():
            if before != after:
                done = "" if decision.accepted else " (not done)"
                said = f"{plain(decision.text)}<br>{plain(layer)}: {before} → {after}{done}"
                tried.setdefault((decision.step, plain(layer)), []).append((decision.accepted, said))
    marks = {place: told for place, told in tried.items() if any(done for done, _ in told) == accepted}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [step for step, _ in marks],
        "y": [layer for _, layer in marks],
        "text": ["<br>".join(said for _, said in told) for told in marks.values()],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": "var(--panel)" if accepted else "var(--refused)",
            "size": 7,
            "symbol": "circle" if accepted else "x-thin",
            "line": {
                "color": "var(--ink)" if accepted else "var(--refused)",
                "width": 1.2 if accepted else 2,
            },
        },
    }


def rank_memory(document: Document) -> dict[str, Figure]:
    """Memory by kind over the run, under each rank map (by its key) whose run followed any."""
    made = {}
    for place, rank_map in enumerate(document.maps):
        if not rank_map.memory:
            continue
        steps, peaks = list(rank_map.memory), list(rank_map.memory.values())
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
            "xaxis": {"title": {"text": "step"}, "range": [rank_map.edges[0], rank_map.edges[-1]]},
            "yaxis": {"title": {"text": "MB"}, "rangemode": "tozero"},
        }
        totals = [sum(peak.get(kind, 0.0) for kind in KINDS) for peak in peaks]
        said = f"memory {totals[0]:,.0f} MB at step {steps[0]}, {max(totals):,.0f} MB at most, {totals[-1]:,.0f} MB at step {steps[-1]}"
        made[f"ranks-{place}"] = Figure(
            f"ranks-{place}-memory",
            "Memory at the peak of steps that were followed",
            said,
            _spec(data, layout),
        )
    return made


def _heat_layout(rank_map: RankMap) -> dict[str, Any]:
    return {
        "height": 90 + max(15, min(24, 900 // max(1, len(rank_map.layers)))) * len(rank_map.layers),
        "showlegend": False,
        "xaxis": {
            "title": {"text": "step"},
            "range": [rank_map.edges[0], rank_map.edges[-1]],
            "showgrid": False,
        },
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [plain(layer) for layer in rank_map.layers][::-1],
            "range": [-0.5, len(rank_map.layers) - 0.5],
            "showgrid": False,
            "tickfont": {"size": 11},
            "dtick": 1,
        },
    }


def _points(value: float) -> float:
    return round(100 * value, 3)
