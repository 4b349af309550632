"""The validation rows on which methods disagree most, hardest first, with their text where the task's data is still at hand."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rankwise.config import RunConfig, from_json
from rankwise.errors import RankwiseError
from rankwise.tasks import load, registry
from rankwise.tasks.encoding import Rows

if TYPE_CHECKING:
    from rankwise.report.document import Cell, Run

SHOWN = 6
"""Rows of each task."""


@dataclass(frozen=True)
class Example:
    """A validation row.

    Attributes:
        idx: the row's own number in its task.
        label: the name of its class.
        text: one text or two; None where the data isn't at hand.
        right: method → seeds that are right on it, and seeds.
        said: method → the class that most of its seeds predict.
    """

    task: str
    idx: int
    label: str
    text: tuple[str, ...] | None
    right: dict[str, tuple[int, int]]
    said: dict[str, str]


def disagreements(cells: "Mapping[Cell, dict[int, Run]]") -> list[Example]:
    """For each task the rows on which one method is right and another wrong in most seeds, those first that most methods get wrong."""
    found = []
    for task in dict.fromkeys(task for task, _ in cells):
        found += _of_task(task, {method: runs for (of, method), runs in cells.items() if of == task})
    return found


def _of_task(task: str, methods: "dict[str, dict[int, Run]]") -> list[Example]:
    first = next(iter(next(iter(methods.values())).values()))
    if not pa.types.is_integer(first.predictions["label"].type):  # right and wrong are of classes
        return []
    idx, label, _ = _columns(first.predictions)
    said: dict[str, np.ndarray] = {}
    for method, runs in methods.items():
        columns = [_columns(run.predictions) for run in runs.values()]
        same = [c[2] for c in columns if np.array_equal(c[0], idx) and np.array_equal(c[1], label)]
        if same:
            said[method] = np.stack(same)
    if len(said) < 2:
        return []
    share = np.stack([(predictions == label).mean(axis=0) for predictions in said.values()])
    apart, right = share.max(axis=0) - share.min(axis=0), share.mean(axis=0)
    order = np.lexsort((idx, right, -apart))
    chosen = [place for place in order[:SHOWN] if apart[place] > 0]
    rows = _rows_of(first.record)
    names = _label_names(first.record)
    return [
        Example(
            task=task,
            idx=int(idx[place]),
            label=_name(names, int(label[place])),
            text=_text(rows, int(idx[place]), int(label[place])),
            right={
                m: (int((p[:, place] == label[place]).sum()), len(p)) for m, p in said.items()
            },
            said={m: _name(names, Counter(p[:, place].tolist()).most_common(1)[0][0]) for m, p in said.items()},
        )
        for place in chosen
    ]  # fmt: skip


def _columns(predictions: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """idx, label and prediction, by idx."""
    idx, label, prediction = (predictions[name].to_numpy() for name in ("idx", "label", "prediction"))
    order = np.argsort(idx, kind="stable")
    return idx[order], label[order], prediction[order]


def _label_names(record: dict[str, Any]) -> list[str]:
    return list((record.get("task") or {}).get("label_names") or [])


def _name(names: list[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def _rows_of(record: dict[str, Any]) -> Rows | None:
    """A run's validation rows, from files that are on this machine; a report calls no hub."""
    try:
        config = from_json(RunConfig, record["resolved"])
        if config.table.dataset is not None:
            return None
        if config.table.train_file is not None:
            return load.load_dataset(config).validation["validation"]
        task, folder = registry.named(config.task), config.data.data
        return load.load_split(task, "validation", folder)[0] if load.at_hand(task, folder) else None
    except (RankwiseError, KeyError, TypeError, OSError):
        return None


def _text(rows: Rows | None, idx: int, label: int) -> tuple[str, ...] | None:
    """The row's text, where the data still has that row with that label."""
    if rows is None or rows.labels is None or rows.idx is None:
        return None
    (places,) = np.nonzero(np.asarray(rows.idx) == idx)
    if len(places) != 1 or rows.labels[places[0]] != label:
        return None
    texts = [rows.text, *([rows.text_pair] if rows.text_pair else [])]
    return tuple(column[places[0]] for column in texts)
