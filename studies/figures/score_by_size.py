"""Draw docs/images/score-by-size.png: score against adapter size on each task, as studies/grid.py stored it, in headless Chromium.

python studies/figures/score_by_size.py
"""

import math
import shutil
import statistics

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright
from plotly.subplots import make_subplots

from stored import GRID, IMAGES, RANKS, TASKS, Row, of_rank, read

WIDTH, HEIGHT = 1240, 560
EDGES = (6_000, 900_000)
"""Of the axis of adapter parameters."""
FIXED, LINEAR, ADAPTIVE, FULL = "#4477aa", "#228833", "#cc3311", "#666666"


def main() -> None:
    rows = read(*GRID)
    columns = (len(TASKS) + 1) // 2
    figure = make_subplots(2, columns, subplot_titles=TASKS, horizontal_spacing=0.05, vertical_spacing=0.17)
    for i, task in enumerate(TASKS):
        for trace in _traces([row for row in rows if row["task"] == task], first=i == 0):
            figure.add_trace(trace, row=i // columns + 1, col=i % columns + 1)
    figure.update_xaxes(
        type="log",
        tickvals=[10_000, 30_000, 100_000, 300_000],
        ticktext=["10k", "30k", "100k", "300k"],
        gridcolor="#eee",
        range=[math.log10(edge) for edge in EDGES],
    )
    figure.update_yaxes(gridcolor="#eee", ticksuffix=" ")
    for column in range(1, columns + 1):  # below the last plot of each column
        lowest = 2 if columns + column <= len(TASKS) else 1
        figure.update_xaxes(title="adapter parameters", row=lowest, col=column)
    figure.update_yaxes(title="score, %", col=1)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=HEIGHT,
        margin={"l": 60, "r": 20, "t": 70, "b": 50},
        legend={"orientation": "h", "y": 1.14, "x": 0.5, "xanchor": "center"},
        font={"family": "sans-serif", "size": 13},
    )
    page = figure.to_html(include_plotlyjs=True, config={"staticPlot": True})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=2)
        tab.set_content(page)
        tab.wait_for_selector(".plot-container")
        tab.locator(".plotly-graph-div").screenshot(path=IMAGES / "score-by-size.png")
        browser.close()


def _traces(rows: list[Row], first: bool) -> list[go.Scatter]:
    """Return the lines of one task: fixed ranks joined, adaptive's seeds and their mean, full fine-tuning across."""
    adaptive = [(row["adapter_params"], 100 * row["score"]) for row in rows if row["method"] == "adaptive"]
    full = [100 * row["score"] for row in rows if row["method"] == "full"]
    lines: list[go.Scatter] = []
    for everywhere, color, name in (
        (False, FIXED, "LoRA on query and value, ranks 1 to 64"),
        (True, LINEAR, "LoRA in all linear layers, ranks 4 and 8"),
    ):
        of = {n: [r for r in rows if r["method"] == of_rank(n, everywhere)] for n in RANKS}
        several = [found for found in of.values() if len(found) > 1]
        lines.append(
            go.Scatter(
                x=[found[0]["adapter_params"] for found in several],
                y=[statistics.fmean(100 * row["score"] for row in found) for found in several],
                mode="lines+markers",
                name=name,
                marker={"color": color},
                showlegend=first,
            )
        )
    if full:
        lines.append(
            go.Scatter(
                x=EDGES,
                y=[statistics.fmean(full)] * 2,
                mode="lines",
                line={"dash": "dash", "color": FULL},
                name="full fine-tuning",
                showlegend=first,
            )
        )
    if adaptive:
        x, y = zip(*adaptive, strict=True)
        lines += [
            go.Scatter(
                x=x,
                y=y,
                mode="markers",
                marker={"color": ADAPTIVE, "symbol": "circle-open", "size": 7},
                name="adaptive rank, each seed",
                showlegend=first,
            ),
            go.Scatter(
                x=[statistics.fmean(x)],
                y=[statistics.fmean(y)],
                mode="markers",
                marker={"color": ADAPTIVE, "symbol": "star", "size": 13},
                name="adaptive rank, mean",
                showlegend=first,
            ),
        ]
    return lines


if __name__ == "__main__":
    main()
