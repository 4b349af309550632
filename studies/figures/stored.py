"""What the figures and tables share: where results are stored, which runs are meant, and how generated text gets into a page."""

import statistics
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
STUDIES, DOCS, IMAGES = ROOT / "studies", ROOT / "docs", ROOT / "docs" / "images"
sys.path.insert(0, str(STUDIES))
import grid  # noqa: E402

__all__ = ["grid"]

GRID = ("grid.parquet", "grid-cuda.parquet", "grid-cuda-two-phase.parquet", "grid-two-phase.parquet")
"""Adaptive at both settings (CPU); full fine-tuning (GPU); ranks 8 and 64 on a GPU and other fixed ranks on a CPU, with its schedule."""
TASKS = ("movies", "sst2", "mrpc", "qqp", "qnli", "mnli", "rte")
RANKS = (1, 2, 4, 8, 16, 32, 64)
ADAPTIVE, SIZE = grid.ADAPTIVE, grid.SIZE
END = "<!-- end -->"
Row = dict[str, Any]


def read(*names: str) -> list[Row]:
    """Return the rows of Parquet files in studies/, one after the other."""
    return [row for name in names for row in pq.read_table(STUDIES / name).to_pylist()]


def of_rank(rank: int, everywhere: bool = False) -> str:
    """Return the grid's name of a fixed rank on query and value, or in all linear layers."""
    where = "targets=all-linear,lr=1e-3" if everywhere else "lr=2e-3"
    return f"lora:rank={rank},alpha=5.66,rslora=true,{where}"


def by_task(rows: list[Row], method: str, value: str = "score") -> dict[str, list[float]]:
    """Return a method's values by task, a value a seed; tasks without a run are left out."""
    found = {
        task: [row[value] for row in rows if (row["task"], row["method"]) == (task, method)] for task in TASKS
    }
    return {task: values for task, values in found.items() if values}


def mean_over_tasks(values: dict[str, list[float]]) -> float:
    """Return the mean over tasks of the means over seeds."""
    return statistics.fmean(statistics.fmean(of_task) for of_task in values.values())


def replace_between(page: str, begin: str, text: str) -> str:
    """Return the page with `text` between the line `begin` and the next `<!-- end -->`.

    Raises:
        ValueError: the page has no such line, or nothing ends what it begins.
    """
    before, found, rest = page.partition(f"{begin}\n")
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"The page has no {begin} with an {END} behind it.")
    return f"{before}{begin}\n{text}{end}{after}"
