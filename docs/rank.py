"""What studies/grid.py stored, for the eye: docs/rank.png, score against size, drawn in headless Chromium, and the table of README.md.

python docs/rank.py
"""

import shutil
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pyarrow.parquet as pq
from playwright.sync_api import sync_playwright
from plotly.subplots import make_subplots

ROOT = Path(__file__).parent.parent
STUDIES, README = ROOT / "studies", ROOT / "README.md"
FILES = ("grid.parquet", "grid-cuda.parquet", "grid-cuda-knee.parquet", "grid-knee.parquet")
"""Adaptive; full fine-tuning; fixed ranks, with adaptive's schedule, on a GPU and on a CPU."""
BEGIN, END = "<!-- python docs/rank.py -->\n", "<!-- end -->"
"""What is between them in the README is written here."""
Rows = list[dict[str, Any]]
WIDTH, HEIGHT = 1240, 560
FIXED, LINEAR, ADAPTIVE, FULL = "#4477aa", "#228833", "#cc3311", "#666666"
RANKS = (1, 2, 4, 8, 16, 32, 64)
ORDER = ("movies", "sst2", "mrpc", "qqp", "qnli", "mnli", "rte")


def main() -> None:
    rows = stored()
    README.write_text(with_table(README.read_text(), rows))
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


def stored() -> Rows:
    """A row a run."""
    return [row for name in FILES for row in pq.read_table(STUDIES / name).to_pylist()]


def with_table(readme: str, rows: Rows) -> str:
    """The README with the table of these rows in its place."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{BEGIN}{table(rows)}{end}{after}"


def table(rows: Rows) -> str:
    """Markdown: mean scores by method and task, and adaptive's size."""

    def mean(method: str, value: Callable[[dict[str, Any]], float]) -> dict[str, float]:
        found = {t: [value(r) for r in rows if (r["method"], r["task"]) == (method, t)] for t in ORDER}
        return {task: statistics.fmean(values) for task, values in found.items() if values}

    def score(row: dict[str, Any]) -> float:
        return 100 * row["score"]

    def line(name: str, cells: Iterable[str], average: str) -> str:
        return f"| {name} | {' | '.join(cells)} | {average} |\n"

    def scores(name: str, by_task: dict[str, float], note: Callable[[str], str] = lambda task: "") -> str:
        cells = (f"{by_task[task]:.1f}{note(task)}" for task in ORDER)
        return line(name, cells, f"{statistics.fmean(by_task.values()):.1f}")

    fixed = {rank: mean(of_rank(rank), score) for rank in RANKS}
    best = {task: max(RANKS, key=lambda rank: fixed[rank][task]) for task in ORDER}
    of_best = {task: fixed[rank][task] for task, rank in best.items()}
    sizes = mean("adaptive", lambda row: 100 * row["adapter_params"] / row["r8"])
    shares = (f"{sizes[task]:.0f} %" for task in ORDER)
    return (
        f"| | {' | '.join(ORDER)} | mean |\n|---|{'---:|' * (len(ORDER) + 1)}\n"
        + scores("full fine-tuning", mean("full", score))
        + scores("rank 8", fixed[8])
        + scores("the best fixed rank, seen afterwards", of_best, lambda task: f" ({best[task]})")
        + scores("rank 8 in all linear layers", mean(of_rank(8, everywhere=True), score))
        + scores("**adaptive**", mean("adaptive", score))
        + line("its parameters, of rank 8's", shares, f"{statistics.fmean(sizes.values()):.0f} %")
    )


def of_rank(rank: int, everywhere: bool = False) -> str:
    """The method that has a fixed rank on query and value, or in all linear layers."""
    where = "targets=all-linear,lr=1e-3" if everywhere else "lr=2e-3"
    return f"lora:rank={rank},alpha=5.66,rslora=true,{where}"


def _traces(rows: Rows, first: bool) -> list[go.Scatter]:
    """Fixed ranks joined by a line, adaptive's seeds and their mean, full fine-tuning across."""
    adaptive = [
        (row["adapter_params"] / row["r8"], 100 * row["score"]) for row in rows if row["method"] == "adaptive"
    ]
    full = [100 * row["score"] for row in rows if row["method"] == "full"]
    lines: list[go.Scatter] = []
    for everywhere, color, name in (
        (False, FIXED, "fixed ranks on query and value, 1 (⅛) to 64 (8)"),
        (True, LINEAR, "fixed ranks 4 and 8 in all linear layers"),
    ):
        of = {n: [r for r in rows if r["method"] == of_rank(n, everywhere)] for n in RANKS}
        several = [found for found in of.values() if len(found) > 1]
        lines.append(
            go.Scatter(
                x=[found[0]["adapter_params"] / found[0]["r8"] for found in several],
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
