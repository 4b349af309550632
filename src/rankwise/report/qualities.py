"""How good each task and method's predictions are: over all its runs, whose predictions of the same rows are pooled."""

from typing import Any

import numpy as np
import pyarrow as pa

from rankwise.errors import RankwiseError, first_line
from rankwise.report.cells import Cell, Cells, Run
from rankwise.tasks import look, objectives, quality
from rankwise.tasks.labels import IGNORED
from rankwise.tasks.metrics import ENTITY_METRICS, METRICS
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
        except (RankwiseError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            notes.append(
                f"{' '.join(cell)}: how good its predictions are can't be measured ({first_line(error)})."
            )
            continue
        if measured is not None:
            found[cell] = measured
    return found, notes


def _measure(runs: list[Run]) -> Quality | None:
    first = runs[0]
    metric, task = first.result["metric"], first.record.get("task") or {}
    objective = objectives.OBJECTIVES.get(task.get("problem") or _problem(first.predictions))
    if objective is None or metric not in ({**METRICS, **ENTITY_METRICS} if objective.of_words else METRICS):
        return None
    groups = np.concatenate([_column(run.predictions, "idx") for run in runs])
    if objective.of_words:
        labels, logits = _of_words(runs, len(task["label_names"]))
    else:
        labels, logits = (
            np.concatenate([_column(run.predictions, name) for run in runs]) for name in ("label", "logits")
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


def _of_words(runs: list[Run], tags: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of words [rows, words], and their logits [rows, words, tags], NaN behind a row's last word.

    Raises:
        ValueError: a row's logits aren't finite, or not one for each word and tag.
    """
    said = [
        np.asarray(row, dtype=np.float32) for run in runs for row in run.predictions["logits"].to_pylist()
    ]
    given = [row for run in runs for row in run.predictions["label"].to_pylist()]
    most = max((len(row) // tags for row in said), default=0)
    labels = np.full((len(given), most), IGNORED, dtype=np.int64)
    logits = np.full((len(said), most, tags), np.nan, dtype=np.float32)
    for i, (row, numbers) in enumerate(zip(given, said, strict=True)):
        if len(numbers) % tags or not np.isfinite(numbers).all():
            raise ValueError("a logit isn't a number, or there isn't one for each tag")
        words = len(numbers) // tags
        labels[i, :words] = row[:words]
        logits[i, :words] = numbers.reshape(words, tags)
    return labels, logits


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
