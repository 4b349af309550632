"""Write the results table of README.md and docs/results.md: score, size, memory and speed of four methods.

python studies/figures/results_table.py

Scores and sizes are those of studies/grid.py. Memory and speed are those of studies/cost.py, one machine for all methods. Until that is
stored, they are those of a benchmark; where it doesn't have a method, the cell says so with a dash.
"""

import json
import textwrap
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from stored import (
    ADAPTIVE,
    DOCS,
    GRID,
    ROOT,
    SIZE,
    STUDIES,
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
        cost: its name in studies/cost.py.
        contender: its name in the benchmark; None where the benchmark doesn't have it.
    """

    label: str
    method: str
    cost: str
    contender: str | None = None


METHODS = (
    Method("full fine-tuning", "full", "full", "rankwise full"),
    Method("LoRA, rank 8 on query and value", of_rank(8), "lora", "rankwise lora"),
    Method(
        "LoRA, rank 8 in all linear layers", of_rank(8, everywhere=True), "lora:rank=8,targets=all-linear"
    ),
    Method("**adaptive rank**", ADAPTIVE, ADAPTIVE),
    Method("**adaptive rank**, `prefer=size`", SIZE, SIZE),
)


@dataclass(frozen=True)
class Costs:
    """What methods take on one machine.

    Attributes:
        of: peak memory in MB and rows/s, by the method's label; methods that weren't measured are missing.
        where: a sentence that says how they were measured.
    """

    of: dict[str, tuple[float, float]]
    where: str


def main() -> None:
    for page in PAGES:
        page.write_text(with_table(page.read_text()))


def with_table(page: str) -> str:
    """Return the page with the table of what is stored now."""
    return replace_between(page, BEGIN, table(read(*GRID), costs()))


def costs() -> Costs:
    """Return memory and speed as studies/cost.py stored them or, before that, as the benchmark did."""
    if (STUDIES / "cost.parquet").exists():
        return of_study(read("cost.parquet"))
    (path,) = ROOT.glob(f"bench*/results/{BENCHMARK}")
    return of_benchmark(json.loads(path.read_text()))


def of_study(rows: list[Row]) -> Costs:
    """Return the costs of each method on movies, means over its seeds."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["method"], []).append(row)
    found = {
        method: (fmean(r["peak_memory_mb"] for r in of), fmean(r["rows_per_second"] for r in of))
        for method, of in runs.items()
    }
    one = rows[0]
    where = (
        f"Memory and speed are means of {len(runs[one['method']])} runs each on movies ({one['n_train']:,} rows, one machine): batches of "
        f"{one['batch_size']}, {one['dtype']}, {one['threads']} threads. Speed is over the whole training, checks included."
    )
    return Costs({of.label: found[of.cost] for of in METHODS if of.cost in found}, where)


def of_benchmark(stored: dict[str, Any]) -> Costs:
    """Return the costs of the benchmark's contenders."""
    found = {row["name"]: (row["peak_memory_mb"], row["rows_per_second"]["median"]) for row in stored["rows"]}
    where = f"Memory and speed were measured on another model, all on one machine: {stored['title']}. A dash: not measured there."
    return Costs({of.label: found[of.contender] for of in METHODS if of.contender in found}, where)


def table(rows: list[Row], costs: Costs) -> str:
    """Return the table in Markdown, with a paragraph below that says what the columns are.

    Args:
        rows: runs of the grid.
        costs: memory and speed.
    """
    lines = [
        "| | mean score | 95 % interval | seeds | adapter parameters | peak memory | rows/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for of in METHODS:
        scores, sizes = by_task(rows, of.method), by_task(rows, of.method, "adapter_params")
        if len(scores) < len(TASKS) or min(map(len, scores.values())) < 2:  # not run yet
            continue
        mean, half = 100 * mean_over_tasks(scores), 100 * grid.half_over_seeds(list(scores.values()))
        seeds = min(len(values) for values in scores.values())
        size = f"{mean_over_tasks(sizes):,.0f}" if mean_over_tasks(sizes) else "the whole model"
        memory, speed = "–", "–"
        if of.label in costs.of:
            megabytes, rate = costs.of[of.label]
            memory, speed = f"{megabytes:,.0f} MB", f"{rate:.0f}"
        score, interval = f"{mean:.1f}", f"{mean - half:.1f} – {mean + half:.1f}"
        if of.label.startswith("**"):
            score = f"**{score}**"
        lines.append(f"| {of.label} | {score} | {interval} | {seeds} | {size} | {memory} | {speed} |")
    text = (
        f"Scores are means over {len(TASKS)} tasks ({', '.join(TASKS)}) of all-MiniLM-L6-v2. "
        "Intervals are for other seeds of these tasks (t). Adapter parameters are those at the end of training. "
        f"{costs.where}"
    )
    return "\n".join([*lines, "", *textwrap.wrap(text, 140), ""])


if __name__ == "__main__":
    main()
