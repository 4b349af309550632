"""The curve of a run's adapter: the loss increase of its smaller sizes on validation rows, measured after training."""

from typing import cast

import numpy as np
import torch

from rankwise.engine.compute import predict_logits
from rankwise.rank import curve
from rankwise.runs.evaluation import labels
from rankwise.runs.prepare import Prepared

LEAST, ROWS_TRAINED_ON_PER_ROW = 200, 96
"""Sizes are evaluated on this many validation rows, or on one for every 96 rows trained on (over all epochs) where that is more."""


def measure(run: Prepared) -> curve.Curve | None:
    """Measure what each smaller size of the adapter costs; None where ranks weren't found, or nothing was kept.

    Args:
        run: after its last step.
    """
    training, rows = run.training, run.rows
    if training.rank is None or not training.rank.done or not any(training.rank.ranks.values()):
        return None
    judged = rows.validation[rows.headline]
    n = max(LEAST, training.step_number * training.batches.batch_size // ROWS_TRAINED_ON_PER_ROW)
    if len(judged) > n:
        judged = judged.select(np.random.default_rng(run.config.seed).choice(len(judged), n, replace=False))
    found = torch.from_numpy(cast(np.ndarray, labels(judged)))
    metrics, names = rows.dataset.task.metrics, rows.dataset.task.label_names

    def judge() -> tuple[torch.Tensor, dict[str, float]]:
        logits = predict_logits(run.model, judged, training.compute, objective=rows.objective)
        losses = rows.objective.calibrated_losses(torch.from_numpy(logits), found)
        return losses, rows.objective.score(metrics, labels(judged), logits, names)

    return curve.measure(training.rank, judge)
