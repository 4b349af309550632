"""Draw docs/images/score-by-size.png: score against adapter size on each task and in the mean, as studies/grid.py stored it, in Chromium.

python studies/figures/score_by_size.py
"""

import math
import shutil
import statistics

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright
from plotly.subplots import make_subplots

from stored import ADAPTIVE, GRID, IMAGES, RANKS, SIZE, TASKS, Row, of_rank, read

WIDTH, HEIGHT = 1240, 560
EDGES = (6_000, 900_000)
"""Of the axis of adapter parameters."""
FIXED, LINEAR, FULL = "#4477aa", "#228833", "#666666"
SETTINGS = {ADAPTIVE: ("#cc3311", "adaptive rank"), SIZE: ("#ee7733", "adaptive rank, prefer=size")}
"""Of adaptive: a color, and what a setting is called."""
MEAN = "mean of the tasks"


def main() -> None:
    rows = read(*GRID)
    plots = {task: [row for row in rows if row["task"] == task] for task in TASKS}
    plots[MEAN] = _means(rows)
    columns = (len(plots) + 1) // 2
    figure = make_subplots(
        2, columns, subplot_titles=list(plots), horizontal_spacing=0.05, vertical_spacing=0.17
    )
    for i, (title, of_plot) in enumerate(plots.items()):
        for trace in _traces(of_plot, first=i == 0, fewest=1 if title == MEAN else 2):
            figure.add_trace(trace, row=i // columns + 1, col=i % columns + 1)
    figure.update_xaxes(
        type="log",
        tickvals=[10_000, 30_000, 100_000, 300_000],
        ticktext=["10k", "30k", "100k", "300k"],
        gridcolor="#eee",
        range=[math.log10(edge) for edge in EDGES],
    )
    figure.update_yaxes(gridcolor="#eee", ticksuffix=" ")
    figure.update_xaxes(title="adapter parameters", row=2)
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


def _means(rows: list[Row]) -> list[Row]:
    """Return each method's mean score and size over the tasks of the means over seeds, of methods that all tasks were run with."""
    found = []
    for method in sorted({row["method"] for row in rows}):
        by_task = [[row for row in rows if (row["task"], row["method"]) == (task, method)] for task in TASKS]
        if all(by_task):
            score, size = (
                statistics.fmean(statistics.fmean(row[name] for row in of) for of in by_task)
                for name in ("score", "adapter_params")
            )
            found.append({"method": method, "score": score, "adapter_params": size})
    return found


def _traces(rows: list[Row], first: bool, fewest: int) -> list[go.Scatter]:
    """Return the lines of one plot: fixed ranks joined, adaptive's seeds and their mean, full fine-tuning across."""
    full = [100 * row["score"] for row in rows if row["method"] == "full"]
    lines: list[go.Scatter] = []
    for everywhere, color, name in (
        (False, FIXED, "LoRA on query and value, ranks 1 to 64"),
        (True, LINEAR, "LoRA in all linear layers"),
    ):
        of = {n: [r for r in rows if r["method"] == of_rank(n, everywhere)] for n in RANKS}
        several = [found for found in of.values() if len(found) >= fewest]
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
    for setting, (color, name) in SETTINGS.items():
        runs = [(row["adapter_params"], 100 * row["score"]) for row in rows if row["method"] == setting]
        if runs:
            x, y = zip(*runs, strict=True)
            lines.append(
                go.Scatter(
                    x=[statistics.fmean(x)],
                    y=[statistics.fmean(y)],
                    mode="markers",
                    marker={"color": color, "symbol": "star", "size": 13},
                    name=name,
                    showlegend=first,
                )
            )
            lines.append(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="markers",
                    marker={"color": color, "symbol": "circle-open", "size": 6},
                    showlegend=False,
                )
            )
    return lines


if __name__ == "__main__":
    main()
