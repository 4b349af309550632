"""How good each task and method's predictions are: over all its runs, whose predictions of the same rows are pooled."""

from typing import Any

import numpy as np
import pyarrow as pa

from rankwise.report.cells import Cell, Cells, Run
from rankwise.tasks import look, objectives, quality
from rankwise.tasks.metrics import METRICS
from rankwise.tasks.quality import Quality


def qualities(cells: Cells) -> tuple[dict[Cell, Quality], list[str]]:
    """Measure the stored predictions.

    Returns:
        What was measured, where the predictions hold logits of a known objective and metric; and a sentence for each that is damaged.
    """
    found: dict[Cell, Quality] = {}
    notes: list[str] = []
    for cell, runs in cells.items():
        try:
            measured = _measure(list(runs.values()))
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            notes.append(f"{' '.join(cell)}: how good its predictions are can't be measured ({why}).")
            continue
        if measured is not None:
            found[cell] = measured
    return found, notes


def _measure(runs: list[Run]) -> Quality | None:
    first = runs[0]
    metric, task = first.result["metric"], first.record.get("task") or {}
    objective = objectives.OBJECTIVES.get(task.get("problem") or _problem(first.predictions))
    if objective is None or objective.of_words or metric not in METRICS:
        return None
    labels, logits, groups = (
        np.concatenate([_column(run.predictions, name) for run in runs])
        for name in ("label", "logits", "idx")
    )
    if not np.isfinite(logits).all():
        raise ValueError("a logit isn't a number")
    return quality.measure(
        objective,
        metric,
        list(task.get("label_names") or [str(i) for i in range(logits.shape[1])]),
        labels,
        logits,
        most_frequent=_most_frequent(first, objective.name),
        groups=groups if len(runs) > 1 else None,
    )


def _problem(predictions: pa.Table) -> str:
    kind = predictions["label"].type
    return (
        "multi-label"
        if pa.types.is_list(kind)
        else "classification"
        if pa.types.is_integer(kind)
        else "regression"
    )


def _column(table: pa.Table, name: str) -> np.ndarray:
    column = table[name]
    return np.array(column.to_pylist()) if pa.types.is_list(column.type) else column.to_numpy()


def _most_frequent(run: Run, problem: str) -> list[str] | None:
    stored: Any = run.record.get("look")
    try:
        return None if stored is None else look.most_frequent(look.from_json(stored), problem)
    except ValueError:  # the section on the data says so
        return None
