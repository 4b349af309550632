"""Write the results table of README.md and docs/results.md: score, size, memory and speed of four methods.

python studies/figures/results_table.py

Scores and sizes are those of studies/grid.py. Memory and speed are those of one benchmark, in which all methods take turns on one
machine. Where it doesn't have a method, the cell says so with a dash.
"""

import json
from dataclasses import dataclass
from typing import Any

from stored import (
    DOCS,
    GRID,
    ROOT,
    TASKS,
    Row,
    by_task,
    grid,
    mean_over_tasks,
    of_rank,
    read,
    replace_between,
)

BEGIN = "<!-- python studies/figures/results_table.py -->"
PAGES = (ROOT / "README.md", DOCS / "results.md")
BENCHMARK = "roberta-base-qnli.json"


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        label: what the line is called.
        method: its name in the grid.
        contender: its name in the benchmark; None where the benchmark doesn't have it.
    """

    label: str
    method: str
    contender: str | None


METHODS = (
    Method("full fine-tuning", "full", "rankwise full"),
    Method("LoRA, rank 8 on query and value", of_rank(8), "rankwise lora"),
    Method("LoRA, rank 8 in all linear layers", of_rank(8, everywhere=True), None),
    Method("**adaptive rank**", "adaptive", None),
)


def main() -> None:
    for page in PAGES:
        page.write_text(with_table(page.read_text()))


def with_table(page: str) -> str:
    """Return the page with the table of what is stored now."""
    return replace_between(page, BEGIN, table(read(*GRID), benchmark()))


def benchmark() -> dict[str, Any]:
    """Return the stored benchmark: its title, and a row for each contender."""
    (path,) = ROOT.glob(f"bench*/results/{BENCHMARK}")
    return json.loads(path.read_text())


def table(rows: list[Row], measured: dict[str, Any]) -> str:
    """Return the table in Markdown, with a paragraph below that says what the columns are.

    Args:
        rows: runs of the grid.
        measured: the benchmark.
    """
    contenders = {row["name"]: row for row in measured["rows"]}
    lines = [
        "| | mean score | 95 % interval | seeds | adapter parameters | peak memory | rows/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for of in METHODS:
        scores, sizes = by_task(rows, of.method), by_task(rows, of.method, "adapter_params")
        mean, half = 100 * mean_over_tasks(scores), 100 * grid.half_over_seeds(list(scores.values()))
        seeds = min(len(values) for values in scores.values())
        size = f"{mean_over_tasks(sizes):,.0f}" if mean_over_tasks(sizes) else "the whole model"
        found = contenders.get(of.contender or "")
        memory = f"{found['peak_memory_mb']:,.0f} MB" if found else "–"
        speed = f"{found['rows_per_second']['median']:.0f}" if found else "–"
        score, interval = f"{mean:.1f}", f"{mean - half:.1f} – {mean + half:.1f}"
        if of.label.startswith("**"):
            score = f"**{score}**"
        lines.append(f"| {of.label} | {score} | {interval} | {seeds} | {size} | {memory} | {speed} |")
    return "\n".join(lines) + (
        f"\n\nScores are means over {len(TASKS)} tasks ({', '.join(TASKS)}) of all-MiniLM-L6-v2. "
        "Intervals are for other seeds of these tasks (t). Adapter parameters are those at the end of training. "
        f"Memory and speed were measured on another model, all on one machine: {measured['title']}. "
        "A dash: not measured there.\n"
    )


if __name__ == "__main__":
    main()
