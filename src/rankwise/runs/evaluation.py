"""A model's predictions on labelled rows, its metrics and its loss, during a run and at its end."""

import math

import numpy as np

from rankwise.engine.compute import predict_logits
from rankwise.engine.training import Training
from rankwise.errors import RankwiseError
from rankwise.runs.events import Emit
from rankwise.tasks import objectives
from rankwise.tasks.encoding import Encoded
from rankwise.tasks.labels import Labels
from rankwise.tasks.task import Task


def labels(rows: Encoded) -> Labels:
    """Return the labels of rows.

    Raises:
        RankwiseError: they have none.
    """
    if rows.labels is None:
        raise RankwiseError("These rows have no labels. Name the column that holds them with `label=`.")
    return rows.labels


def evaluate(
    training: Training, rows: Encoded, *, split: str, task: Task, emit: Emit
) -> tuple[np.ndarray, dict[str, float]]:
    """Evaluate a model in training on the rows of a split of its task.

    Returns:
        Logits [rows, outputs], and the task's metrics with `loss`.

    Raises:
        RankwiseError: the loss isn't finite.
    """
    objective = objectives.named(task.problem)
    logits = predict_logits(
        training.model,
        rows,
        training.compute,
        objective=objective,
        on_progress=lambda done, of: emit({"event": "evaluate", "split": split, "done": done, "of": of}),
    )
    scores = objective.score(task.metrics, labels(rows), logits, task.label_names)
    loss = objective.mean_loss(logits, labels(rows))
    if not math.isfinite(loss):
        raise RankwiseError(
            f"The loss on the {split} rows is {loss} after step {training.step_number} of {training.steps}. "
            f'Lower `lr=` (now {training.peak_lr:g}), or use `dtype="float32"`.'
        )
    return logits, scores | {"loss": loss}
