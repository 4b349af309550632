"""The validation rows on which methods disagree most, hardest first.

A row's text is shown where the task's data is on this machine: a report downloads nothing.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rankwise.config import RunConfig
from rankwise.config_json import from_json
from rankwise.report.cells import Cells, Run, tables_of
from rankwise.tasks import load, registry
from rankwise.tasks.encoding import Rows
from rankwise.tasks.splits import joined

SHOWN = 6
"""Rows shown of each task."""


@dataclass(frozen=True)
class Example:
    """A validation row.

    Attributes:
        task: its task's name.
        idx: the row's number in its task.
        label: the name of its class.
        text: one text or two; None where the data isn't on this machine.
        right: method → (seeds that are right on it, all seeds).
        predicted: method → the class that most of its seeds predict.
    """

    task: str
    idx: int
    label: str
    text: tuple[str, ...] | None
    right: dict[str, tuple[int, int]]
    predicted: dict[str, str]


def disagreements(cells: Cells) -> list[Example]:
    """Find the rows of each task on which the share of right seeds differs most between two methods.

    Among equals, those that most methods get wrong come first. Only classification has right and wrong.
    """
    found = []
    for task in dict.fromkeys(task for task, _ in cells):
        found += _of_task(task, {method: runs for (of, method), runs in cells.items() if of == task})
    return found


def _of_task(task: str, methods: dict[str, dict[int, Run]]) -> list[Example]:
    first = next(iter(next(iter(methods.values())).values()))
    if not pa.types.is_integer(first.predictions["label"].type):
        return []
    idx, label, _ = _columns(tables_of(next(iter(methods.values())))[0])
    predictions: dict[str, np.ndarray] = {}  # method → [seeds, rows]
    for method, runs in methods.items():
        columns = [_columns(table) for table in tables_of(runs)]
        same = [c[2] for c in columns if np.array_equal(c[0], idx) and np.array_equal(c[1], label)]
        if same:
            predictions[method] = np.stack(same)
    if len(predictions) < 2:
        return []
    right = np.stack([(predicted == label).mean(axis=0) for predicted in predictions.values()])
    disagreement, mean = right.max(axis=0) - right.min(axis=0), right.mean(axis=0)
    order = np.lexsort((idx, mean, -disagreement))
    rows, names = _rows(first.record), _label_names(first.record)
    return [
        _example(task, int(idx[i]), int(label[i]), {m: p[:, i] for m, p in predictions.items()}, names, rows)
        for i in order[:SHOWN]
        if disagreement[i] > 0
    ]


def _example(
    task: str,
    idx: int,
    label: int,
    predictions: dict[str, np.ndarray],
    names: list[str],
    rows: Rows | None,
) -> Example:
    """One row, with each method's predictions of it [seeds]."""
    return Example(
        task=task,
        idx=idx,
        label=_name(names, label),
        text=_text(rows, idx, label),
        right={method: (int((p == label).sum()), len(p)) for method, p in predictions.items()},
        predicted={
            method: _name(names, Counter(p.tolist()).most_common(1)[0][0])
            for method, p in predictions.items()
        },
    )


def _columns(predictions: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return idx, label and prediction, sorted by idx."""
    idx, label, prediction = (predictions[name].to_numpy() for name in ("idx", "label", "prediction"))
    order = np.argsort(idx, kind="stable")
    return idx[order], label[order], prediction[order]


def _label_names(record: dict[str, Any]) -> list[str]:
    return list((record.get("task") or {}).get("label_names") or [])


def _name(names: list[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def _rows(record: dict[str, Any]) -> Rows | None:
    """Read a run's validation rows from files on this machine; None where they would have to be downloaded."""
    try:
        config = from_json(RunConfig, record["resolved"])
        if config.table.dataset is not None:
            return None
        if config.table.train_file is not None:
            dataset = load.load_dataset(config)
            rows = dataset.validation["validation"]
            return rows if config.table.folds is None else joined(dataset.train, rows)
        task, folder = registry.named(config.task), config.data.data
        return load.load_split(task, "validation", folder)[0] if load.at_hand(task, folder) else None
    except Exception:  # a text is an extra: whatever a stored request makes of the data, the report goes on
        return None


def _text(rows: Rows | None, idx: int, label: int) -> tuple[str, ...] | None:
    """Return the row's text where the data still has that row with that label."""
    if rows is None or rows.labels is None or rows.idx is None:
        return None
    (places,) = np.nonzero(np.asarray(rows.idx) == idx)
    if len(places) != 1 or rows.labels[places[0]] != label:
        return None
    texts = [rows.text, *([rows.text_pair] if rows.text_pair else [])]
    return tuple(column[places[0]] for column in texts)
