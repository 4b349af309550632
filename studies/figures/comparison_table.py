"""Write the comparison tables of docs/results.md: each setting of adaptive against fixed ranks, full fine-tuning, baselines of its size.

python studies/figures/comparison_table.py
"""

import statistics
from collections.abc import Sequence

from stored import ADAPTIVE, DOCS, GRID, RANKS, SIZE, TASKS, Row, grid, of_rank, read, replace_between

BEGIN = "<!-- python studies/figures/comparison_table.py -->"
PAGE = DOCS / "results.md"
EQUAL_SIZE = ("equal_size.parquet", "equal_size-cuda.parquet")
"""On a CPU; on a GPU, what didn't run on a CPU."""
METHODS = (
    *((f"rank {rank} on query and value", of_rank(rank)) for rank in RANKS),
    *((f"rank {rank} in all linear layers", of_rank(rank, everywhere=True)) for rank in RANKS),
    ("full fine-tuning", "full"),
)
OF_ITS_SIZE = (
    ("AdaLoRA of its size", "peft:adalora,rank=1,targets=all-linear,lr=8e-3"),
    ("EVA of its size", "peft:eva,rank=1,targets=all-linear,lr=1e-3"),
    ("rank 16 in all linear layers, compressed by PEFT to its size", "post hoc"),
)
"""What a line is called, and the method's stored name. The size of the second ones is that of `prefer=size`."""


def main() -> None:
    PAGE.write_text(with_table(PAGE.read_text()))


def with_table(page: str) -> str:
    """Return the page with the tables of what is stored now."""
    return replace_between(page, BEGIN, table(read(*GRID), read(*EQUAL_SIZE)))


def table(runs: Sequence[Row], of_its_size: Sequence[Row]) -> str:
    """Return a table for each setting of adaptive, in Markdown.

    Args:
        runs: of the grid.
        of_its_size: runs of the baselines; of a task and seed the first one counts.
    """
    tables = (
        _lines(ADAPTIVE, METHODS, runs),
        _lines(SIZE, (*METHODS, *OF_ITS_SIZE), [*runs, *of_its_size]),
    )
    return "\n\n".join("\n".join(lines) for lines in tables) + "\n"


def _lines(setting: str, methods: Sequence[tuple[str, str]], runs: Sequence[Row]) -> list[str]:
    lines = [
        f"| compared with | {setting} − it | other seeds | other tasks | tasks | seeds | its parameters |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label, method in methods:
        named = [row for row in runs if row["method"] == method]
        others = list({(row["task"], row["seed"]): row for row in reversed(named)}.values())
        found = differences([row for row in runs if row["method"] == setting], others)
        seeds = min(map(len, found.values()), default=0)
        if seeds < 2 or (len(found) < len(TASKS) and (label, method) in METHODS):  # not run everywhere yet
            continue
        size = statistics.fmean(row["adapter_params"] for row in others)
        cells = [
            label,
            *numbers(list(found.values())),
            str(len(found)),
            str(seeds),
            f"{size:,.0f}" if size else "the whole model",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def differences(first: Sequence[Row], second: Sequence[Row]) -> dict[str, list[float]]:
    """Return first − second by task, on the seeds that both have; of a task and seed the first run of each counts."""

    def scores(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
        return {(row["task"], row["seed"]): row["score"] for row in reversed(rows)}

    one, other = scores(first), scores(second)
    shared = sorted(one.keys() & other.keys())
    found = {task: [one[key] - other[key] for key in shared if key[0] == task] for task in TASKS}
    return {task: of_task for task, of_task in found.items() if of_task}


def numbers(found: Sequence[Sequence[float]]) -> tuple[str, str, str]:
    """Return the mean over tasks of the means over seeds, and half its 95 % interval for other seeds and for other tasks, in points.

    Args:
        found: differences of each task, by seed.
    """
    mean = grid.estimate([statistics.fmean(of_task) for of_task in found])
    several = min(map(len, found)) > 1  # of a single seed nothing says how others differ
    seeds = f"± {100 * grid.half_over_seeds(found):.2f}" if several else "–"
    return signed([mean.mean]), seeds, f"± {100 * (mean.half or 0.0):.2f}"


def signed(values: Sequence[float]) -> str:
    """Return shares as points with their signs."""
    return ", ".join(f"{100 * value:+.2f}".replace("-", "−") for value in values)


if __name__ == "__main__":
    main()
