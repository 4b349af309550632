"""docs/rank.png: score against size, adaptive among fixed ranks, from what studies/grid.py stored; drawn in headless Chromium.

python docs/rank.py
"""

import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pyarrow.parquet as pq
from playwright.sync_api import sync_playwright
from plotly.subplots import make_subplots

STUDIES = Path(__file__).parent.parent / "studies"
FILES = ("grid.parquet", "grid-cuda.parquet", "grid-cuda-knee.parquet", "grid-knee.parquet")
"""Adaptive; full fine-tuning; fixed ranks, with adaptive's schedule, on a GPU and on a CPU."""
WIDTH, HEIGHT = 1240, 560
FIXED, ADAPTIVE, FULL = "#4477aa", "#cc3311", "#666666"
ORDER = ("movies", "sst2", "mrpc", "qqp", "qnli", "mnli", "rte")


def main() -> None:
    rows = [row for name in FILES for row in pq.read_table(STUDIES / name).to_pylist()]
    tasks = [task for task in ORDER if any((r["task"], r["method"]) == (task, "adaptive") for r in rows)]
    columns = (len(tasks) + 1) // 2
    figure = make_subplots(2, columns, subplot_titles=tasks, horizontal_spacing=0.05, vertical_spacing=0.17)
    for i, task in enumerate(tasks):
        for trace in _traces([row for row in rows if row["task"] == task], first=i == 0):
            figure.add_trace(trace, row=i // columns + 1, col=i % columns + 1)
    figure.update_xaxes(
        type="log",
        tickvals=[1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8],
        ticktext=["⅛", "¼", "½", "1", "2", "4", "8"],
        gridcolor="#eee",
        range=[-1.1, 1.1],
    )
    figure.update_yaxes(gridcolor="#eee", ticksuffix=" ")
    for column in range(1, columns + 1):  # below the last plot of each column
        lowest = 2 if columns + column <= len(tasks) else 1
        figure.update_xaxes(title="adapter parameters, of r=8's", row=lowest, col=column)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=HEIGHT,
        margin={"l": 50, "r": 20, "t": 70, "b": 50},
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
        tab.locator(".plotly-graph-div").screenshot(path=Path(__file__).with_name("rank.png"))
        browser.close()


def _traces(rows: list[dict[str, Any]], first: bool) -> list[go.Scatter]:
    """Fixed ranks joined by a line, adaptive's seeds and their mean, full fine-tuning across."""
    scores: dict[int, list[float]] = {}
    for row in rows:
        if (
            found := re.fullmatch(r"lora:rank=(\d+),alpha=5\.66,rslora=true,lr=2e-3", row["method"])
        ) is not None:
            scores.setdefault(int(found[1]), []).append(100 * row["score"])
    ranks = sorted(scores)
    adaptive = [
        (row["adapter_params"] / row["r8"], 100 * row["score"]) for row in rows if row["method"] == "adaptive"
    ]
    full = [100 * row["score"] for row in rows if row["method"] == "full"]
    lines = [
        go.Scatter(
            x=[rank / 8 for rank in ranks],
            y=[statistics.fmean(scores[rank]) for rank in ranks],
            mode="lines+markers",
            name="fixed ranks on query and value, 1 (⅛) to 64 (8)",
            marker={"color": FIXED},
            showlegend=first,
        )
    ]
    if full:
        lines.append(
            go.Scatter(
                x=[0.08, 12],
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
                name="adaptive, each seed",
                showlegend=first,
            ),
            go.Scatter(
                x=[statistics.fmean(x)],
                y=[statistics.fmean(y)],
                mode="markers",
                marker={"color": ADAPTIVE, "symbol": "star", "size": 13},
                name="adaptive",
                showlegend=first,
            ),
        ]
    return lines


if __name__ == "__main__":
    main()
