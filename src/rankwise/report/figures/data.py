"""Figures of the rows: classes, the lengths of texts, and the numbers of a regression, by split."""

from typing import Any

from rankwise import inert
from rankwise.report.figures.plot import Figure
from rankwise.tasks.look import Histogram, Look

CLASSES = 40
"""Classes drawn at most, the largest ones."""
BAR_HEIGHT = 26
"""Height of a class in pixels."""


def data(look: Look, key: str) -> list[Figure]:
    """Draw a look at the rows.

    Args:
        look: what is known of them.
        key: begins the ids of the figures.
    """
    labels = _classes(look, key) if look.numbers is None else _numbers(look, look.numbers, key)
    return [labels, _lengths(look, key)]


def _classes(look: Look, key: str) -> Figure:
    names = list(look.splits["train"].classes)
    shown = names[:CLASSES]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": inert.plot(split),
            "y": list(range(len(shown))),
            "x": [round(100 * part.classes.get(name, 0) / max(1, part.rows), 3) for name in shown],
            "marker": {"color": f"var(--m{place})"},
            "text": [f"{part.classes.get(name, 0):,}" for name in shown],
            "textposition": "none",
            "customdata": [inert.plot(name) for name in shown],
            "hovertemplate": f"%{{customdata}}, {inert.plot(split)}: %{{text}} rows, %{{x:.1f}} %<extra></extra>",
        }
        for place, (split, part) in enumerate(look.splits.items())
    ]
    ticks = [name if len(name) <= 18 else f"{name[:17]}…" for name in shown]
    layout = {
        "height": 60 + BAR_HEIGHT * max(3, len(shown)),
        "showlegend": False,
        "barmode": "group",
        "bargap": 0.3,
        "xaxis": {"title": {"text": "% of the split's rows"}, "rangemode": "tozero"},
        "yaxis": {
            "tickvals": list(range(len(shown))),
            "ticktext": [inert.plot(tick) for tick in ticks],
            "range": [len(shown) - 0.4, -0.6],
            "showgrid": False,
            "ticklabelstandoff": 6,
        },
    }
    title = "Classes" if len(shown) == len(names) else f"The {CLASSES} largest of {len(names):,} classes"
    train = look.splits["train"].classes
    description = f"{title}: {', '.join(f'{name} {train[name]:,} training rows' for name in shown)}"
    return Figure(f"{key}-classes", title, description, {"data": traces, "layout": layout})


def _numbers(look: Look, histogram: Histogram, key: str) -> Figure:
    low, mean, high = look.splits["train"].numbers or (0.0, 0.0, 0.0)
    description = f"Numbers to predict: {low:g} to {high:g} in training, mean {mean:.4g}"
    spec = _bars(histogram, "number to predict")
    return Figure(f"{key}-numbers", "Numbers to predict", description, spec)


def _lengths(look: Look, key: str) -> Figure:
    median, most, longest = look.splits["train"].lengths
    title = f"{look.unit.capitalize()} of a text"
    description = f"{title}: median {median}, 95 % within {most}, longest {longest} in training"
    return Figure(f"{key}-lengths", title, description, _bars(look.lengths, f"{look.unit} of a text"))


def _bars(histogram: Histogram, x: str) -> dict[str, Any]:
    pairs = list(zip(histogram.edges[:-1], histogram.edges[1:], strict=True))
    traces = []
    for place, (split, counts) in enumerate(histogram.counts.items()):
        colour = f"var(--m{place})"
        if place == 0:
            drawn = {
                "type": "bar",
                "width": [high - low for low, high in pairs],
                "opacity": 0.55,
                "marker": {"color": colour},
            }
            drawn["textposition"] = "none"
        else:  # a line, so that the bars stay visible
            drawn = {
                "type": "scatter",
                "mode": "lines",
                "line": {"color": colour, "width": 2, "shape": "hvh"},
            }
        traces.append(
            drawn
            | {
                "name": inert.plot(split),
                "x": [round((low + high) / 2, 4) for low, high in pairs],
                "y": [round(100 * n / max(1, sum(counts)), 3) for n in counts],
                "text": [f"{low:g} to {high:g}" for low, high in pairs],
                "hovertemplate": f"{inert.plot(split)}, %{{text}}: %{{y:.1f}} %<extra></extra>",
            }
        )
    layout = {
        "height": 240,
        "showlegend": False,
        "bargap": 0,
        "xaxis": {"title": {"text": x}, "showgrid": False},
        "yaxis": {"title": {"text": "% of the split's rows"}, "rangemode": "tozero"},
    }
    return {"data": traces, "layout": layout}


def facts(look: Look) -> list[tuple[str, list[str]]]:
    """List what is known of each split as (name, a cell for each split)."""
    parts = list(look.splits.values())
    rows = [("rows", [f"{part.rows:,}" for part in parts])]
    rows += [
        (f"{look.unit}, {name}", [f"{part.lengths[place]:,}" for part in parts])
        for place, name in enumerate(("median", "95 % within", "longest"))
    ]
    if look.limit is not None:
        rows.append((f"texts truncated to {look.limit} tokens", [f"{part.truncated:,}" for part in parts]))
    rows.append(("rows with the text of another", [f"{part.repeated:,}" for part in parts]))
    also = ["" if name == "train" else f"{part.in_train:,}" for name, part in look.splits.items()]
    return [*rows, ("rows with the text of a training row", also)]
