"""The finished runs that a report is made of, read from their folders and grouped by task, method and seed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rankwise.errors import RankwiseError
from rankwise.files import damaged
from rankwise.report import settings
from rankwise.run_folder import RunFolder

Cell = tuple[str, str]
"""A task and a method."""


@dataclass(frozen=True)
class Run:
    """A finished run. Each of its files is read once.

    Attributes:
        folder: where it is.
        result: its result.json.
        record: its run.json.
        predictions: see `RunFolder.read_predictions`.
        settings: how it was trained, in words.
    """

    folder: RunFolder
    result: dict[str, Any]
    record: dict[str, Any]
    predictions: pa.Table
    settings: dict[str, str]

    @property
    def folds(self) -> int | None:
        """Parts of the cross-validation that it is one fold of; None where it is none."""
        table = self.record["requested"].get("table")
        found = table.get("folds") if isinstance(table, dict) else None
        return found if isinstance(found, int) else None


Cells = Mapping[Cell, dict[int, Run]]
"""Runs by task and method, then by seed."""


def folds_of(runs: Mapping[int, Run]) -> int | None:
    """Return how many folds the runs of a cell are of; None where they are seeds."""
    return next(iter(runs.values())).folds if runs else None


def tables_of(runs: Mapping[int, Run]) -> list[pa.Table]:
    """Return the predictions of every seed, or of all folds together: each fold has rows of its own."""
    tables = [run.predictions for run in runs.values()]
    return [pa.concat_tables(tables)] if folds_of(runs) else tables


def read(folder: RunFolder) -> Run:
    """Read a finished run.

    Raises:
        RankwiseError: a file is missing, damaged, or belongs to another run.
    """
    result, record, predictions = folder.read_result(), folder.read_run(), folder.read_predictions()
    if len(predictions) != result["n_validation"]:
        raise _inconsistent(
            folder,
            f"predictions.parquet has {len(predictions):,} rows, result.json says {result['n_validation']:,}",
        )
    if result["adapter_params"] >= result["total_params"]:
        raise _inconsistent(
            folder,
            f"result.json says {result['adapter_params']:,} of {result['total_params']:,} parameters are the adapter's",
        )
    try:
        words = settings.of_run(record, result)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise damaged(folder.path / "run.json", f"its settings can't be read: {error}") from None
    return Run(folder, result, record, predictions, words)


def _inconsistent(folder: RunFolder, why: str) -> RankwiseError:
    return RankwiseError(f"{folder.path} is inconsistent: {why}. Remove this folder to run it again.")


def distinct(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Separate runs that can stand beside those before them, and a sentence for each of the others.

    Two folders with one run would be one seed counted twice, and scores by two metrics have no mean.
    """
    kept: list[Run] = []
    left_out: list[str] = []
    folders: dict[tuple[str, str, int], str] = {}
    metrics: dict[str, tuple[str, str]] = {}
    parts: dict[str, int | None] = {}
    for run in runs:
        task, method, seed = (run.result[key] for key in ("task", "method", "seed"))
        name, metric = run.folder.path.name, run.result["metric"]
        twin = folders.setdefault((task, method, seed), name)
        other, usual = metrics.setdefault(task, (name, metric))
        if twin != name:
            left_out.append(f"Left out: {name} is the same run as {twin}: {task}, {method}, seed {seed}.")
        elif run.folds != parts.setdefault(task, run.folds):
            left_out.append(f"Left out: {name} belongs to another cross-validation than {other}, or to none.")
        elif metric != usual:
            left_out.append(f"Left out: {name} is scored by {metric}, and {other} by {usual}.")
        else:
            kept.append(run)
    return kept, left_out


def by_cell(runs: Iterable[Run], grid: Mapping[str, Any]) -> Cells:
    """Group runs by task and method, in the order in which the grid asked for them, then by seed.

    Args:
        runs: finished runs.
        grid: grid.json; runs that it doesn't name come last, by name.
    """
    cells: dict[Cell, dict[int, Run]] = {}
    for run in runs:
        cells.setdefault((run.result["task"], run.result["method"]), {})[run.result["seed"]] = run
    tasks, methods = (
        {name: place for place, name in enumerate(grid.get(key, []))} for key in ("tasks", "methods")
    )
    order = sorted(cells, key=lambda cell: (tasks.get(cell[0], 99), methods.get(cell[1], 99), cell))
    return {cell: dict(sorted(cells[cell].items())) for cell in order}
