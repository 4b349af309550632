"""Evaluates a trained model on labelled rows, and predicts on a file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rankwise.adapters import prediction_files
from rankwise.adapters.prediction_files import check_out
from rankwise.adapters.trained import Trained, open_trained
from rankwise.engine import row_check
from rankwise.engine.compute import predict_logits
from rankwise.errors import RankwiseError
from rankwise.files import cache_folder
from rankwise.tasks import objectives
from rankwise.tasks.custom import load_dataset_split
from rankwise.tasks.encoding import Rows, encode
from rankwise.tasks.load import load_dataset, load_split
from rankwise.tasks.rows import read_rows

__all__ = [
    "Trained",
    "check_out",
    "evaluate",
    "labelled_rows",
    "logits_of",
    "open_trained",
    "predict_file",
    "task_rows",
]

Progress = Callable[[int, int], None]
"""Called with (rows done, all rows)."""


def logits_of(trained: Trained, rows: Rows, on_progress: Progress = lambda done, of: None) -> np.ndarray:
    """Compute logits [rows, outputs], in the order of the rows.

    Raises:
        RankwiseError: the model doesn't take these rows, or a logit isn't a number.
    """
    encoded = encode(rows, trained.tokenizer, trained.compute.max_length, cache_folder())
    row_check.check(trained.model, encoded)
    logits = predict_logits(trained.model, encoded, trained.compute, on_progress=on_progress)
    odd = ~np.isfinite(logits).all(axis=1)
    if odd.any():
        raise RankwiseError(
            f"The model in {trained.folder} gives no numbers for {odd.sum():,} of {len(logits):,} rows (the first is row "
            f"{rows.idx[odd.argmax()]}): its weights hold values that aren't numbers, or its number type overflows."
        )
    return logits


def evaluate(
    trained: Trained,
    file: Path | None = None,
    split: str = "validation",
    folder: Path | None = None,
    on_progress: Progress = lambda done, of: None,
) -> dict[str, Any]:
    """Score a model on `labelled_rows`.

    Returns:
        `n` rows, the task's metrics, `loss`, and `notes` on the rows.
    """
    rows, notes = labelled_rows(trained, file, split, folder)
    return {**_scores(trained, rows, on_progress), "notes": [*trained.notes, *notes]}


def labelled_rows(
    trained: Trained, file: Path | None = None, split: str = "validation", folder: Path | None = None
) -> tuple[Rows, Sequence[str]]:
    """Read labelled rows from a file, or from the run's own data (`task_rows`) where none is given; with notes on them."""
    return task_rows(trained, split, folder) if file is None else read_rows(file, trained.task, labelled=True)


def task_rows(trained: Trained, split: str, folder: Path | None) -> tuple[Rows, Sequence[str]]:
    """Read a split of the run's own data. `validation` gives the rows that the run was scored on, with its limit.

    Args:
        trained: by rankwise.
        split: `validation`, or another of a task by name.
        folder: as in `--data`; the run's own where not given.

    Raises:
        RankwiseError: rankwise didn't train it, or its data is no longer there.
    """
    config = trained.config
    if config is None:
        raise RankwiseError(
            f"{trained.task.source} doesn't say what it was trained on. Name a file with labelled rows."
        )
    if split == "validation":
        config = replace(config, data=replace(config.data, data=folder or config.data.data))
        return load_dataset(config).validation["validation"], ()
    if config.table.dataset is not None:
        return load_dataset_split(config.table, trained.task, split)
    return load_split(trained.task, split, folder or config.data.data)


def _scores(trained: Trained, rows: Rows, on_progress: Progress) -> dict[str, Any]:
    if not len(rows) or rows.labels is None:
        raise RankwiseError("There is no row with both text and label to evaluate on.")
    logits, objective = logits_of(trained, rows, on_progress), objectives.named(trained.task.problem)
    return {
        "n": len(rows),
        **objective.score(trained.task.metrics, rows.labels, logits),
        "loss": objective.mean_loss(logits, rows.labels),
    }


def predict_file(
    trained: Trained, file: Path, out: Path, on_progress: Progress = lambda done, of: None
) -> dict[str, Any]:
    """Predict every row of `file` that has a text: its label with probabilities and logits, or its number.

    Args:
        file: CSV, TSV, JSONL or Parquet.
        out: the same kinds, by its ending. Its column `idx` is the row's position in `file`, from 0.
        on_progress: called as rows are done.

    Returns:
        `n`, `out`, `notes`, and `predicted`: how often each label was predicted, or the lowest, mean and highest number.
    """
    check_out(out, file)
    rows, notes = read_rows(file, trained.task, labelled=False)
    logits = logits_of(trained, rows, on_progress)
    columns, predicted = objectives.named(trained.task.problem).columns(logits, trained.task.label_names)
    table = pa.table({"idx": rows.idx, **columns})
    notes = [*trained.notes, *notes, *prediction_files.write(table, out)]
    return {"n": len(rows), "out": str(out), "predicted": predicted, "notes": notes}
